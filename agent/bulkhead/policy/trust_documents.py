"""`kind: TrustBundle`: what vouches for the workloads of another trust domain, as authors write it.

Here is checked what the text is; which keys are in it is read where SVIDs are verified (`svid.bundle`).
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Final

from bulkhead.policy.draft import DraftTrustBundle
from bulkhead.policy.fields import Keys, read_mapping, read_text
from bulkhead.policy.findings import Findings
from bulkhead.policy.values import read_trust_domain
from bulkhead.policy.yaml_nodes import Mapping, Node, Scalar, Spot

KEYS_TRUST_BUNDLE: Final = Keys("the trust bundle", ("apiVersion", "kind", "metadata", "bundle"))
KEYS_TRUST_BUNDLE_METADATA: Final = Keys("`metadata`", ("name",))

DOCUMENT_BYTES_MAX: Final = 256 << 10
CERTIFICATE_BYTES_MAX: Final = 8 << 10
_PEM_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_PEM_END: Final = "-----END CERTIFICATE-----"


def read_trust_bundle(document: Mapping, findings: Findings) -> DraftTrustBundle | None:
    """The bundle in a document; None, with findings, when it is not sound."""
    fields = read_mapping(document, KEYS_TRUST_BUNDLE, findings)
    if fields is None:
        return None
    name = _read_name(fields["metadata"], findings) if "metadata" in fields else None
    text = _read_bundle(fields["bundle"], findings) if "bundle" in fields else None
    if name is None or text is None:
        return None
    return DraftTrustBundle(name, text, Spot(document.line, document.column, document.width))


def _read_name(node: Node, findings: Findings) -> Scalar | None:
    fields = read_mapping(node, KEYS_TRUST_BUNDLE_METADATA, findings) or {}
    name = fields.get("name")
    known = read_trust_domain(name, findings, "`name`") if name is not None else None
    return name if known is not None and isinstance(name, Scalar) else None


def _read_bundle(node: Node, findings: Findings) -> str | None:
    text = read_text(folded(node), "`bundle`", findings)
    if text is None:
        return None
    problem = _problem(text.text)
    if problem:
        findings.add("BH0328", text, hint="a SPIFFE bundle document: JSON with `keys`", problem=problem)
        return None
    return text.text


def folded(node: Node) -> Node:
    """A text of several lines as one: in PEM and JSON the ends of lines mean nothing."""
    return node._replace(text=" ".join(node.text.split())) if isinstance(node, Scalar) and "\n" in node.text else node


def _problem(text: str) -> str:
    """What is wrong with a document; empty when it looks like one."""
    if len(text) > DOCUMENT_BYTES_MAX:
        return f"it has more than {DOCUMENT_BYTES_MAX} bytes"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return "it is not JSON"
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        return "it has no list `keys`"
    return next((problem for key in keys if (problem := _key_problem(key))), "")


def _key_problem(key: Any) -> str:
    if not isinstance(key, dict):
        return "one of its keys is no object"
    if "d" in key:
        return "it holds a private key"
    if key.get("use") == "x509-svid":
        chain = key.get("x5c")
        if not isinstance(chain, list) or len(chain) != 1 or read_certificate(chain[0]) is None:
            return "a key for X.509-SVIDs has no `x5c` of one certificate"
    if key.get("use") == "jwt-svid" and not (isinstance(key.get("kid"), str) and key["kid"]):
        return "a key for JWT-SVIDs has no `kid`"
    return ""


def read_certificate(text: object) -> bytes | None:
    """A certificate (DER) that is written as base64 or PEM; None when it has not the form of one."""
    if not isinstance(text, str):
        return None
    body = text.strip()
    if body.startswith(_PEM_BEGIN) and body.endswith(_PEM_END):
        body = body.removeprefix(_PEM_BEGIN).removesuffix(_PEM_END)
    try:
        der = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return der if len(der) <= CERTIFICATE_BYTES_MAX and _is_sequence(der) else None


def _is_sequence(der: bytes) -> bool:
    """Whether the bytes are one value of ASN.1, a sequence with a length of two bytes, as every certificate is."""
    return der[:2] == b"\x30\x82" and len(der) == 4 + int.from_bytes(der[2:4], "big")
