"""`jwt` of the repository: who may sign the JWTs that rules ask for."""

from __future__ import annotations

import json
from typing import Any, Final

from bulkhead.policy.fields import Keys, expect_items, expect_mapping, read_mapping
from bulkhead.policy.findings import Findings
from bulkhead.policy.l7 import Issuer
from bulkhead.policy.l7_documents import read_value
from bulkhead.policy.values import read_name
from bulkhead.policy.yaml_nodes import Node, Scalar, Spot

KEYS_ISSUER = Keys("an issuer of JWTs", ("issuer", "jwks"), ("audiences",))

ISSUERS_MAX: Final = 32
JWKS_MAX: Final = 64 << 10
"""Characters of one key set."""
_PUBLIC: Final = frozenset({"RSA", "EC", "OKP"})


def read_issuers(node: Node, findings: Findings) -> tuple[Issuer, ...]:
    """All that are sound, in the order in which they are written."""
    mapping = expect_mapping(node, "`jwt`", findings, empty=False)
    if mapping is None:
        return ()
    if len(mapping.entries) > ISSUERS_MAX:
        count = f"{len(mapping.entries):,}"
        findings.add("BH0348", Spot(node.line, node.column), count=count, what="issuers", limit=ISSUERS_MAX)
        return ()
    found = [_read_issuer(key, value, findings) for key, value in mapping.entries]
    return tuple(issuer for issuer in found if issuer)


def _read_issuer(key: Scalar, node: Node, findings: Findings) -> Issuer | None:
    name = read_name(key, "a name", findings)
    fields = read_mapping(node, KEYS_ISSUER, findings)
    if name is None or fields is None or len(fields.keys() & set(KEYS_ISSUER.required)) < len(KEYS_ISSUER.required):
        return None
    issuer = read_value(fields["issuer"], "`issuer`", findings)
    items = expect_items(fields["audiences"], "`audiences`", findings, empty=False) if "audiences" in fields else ()
    audiences = [read_value(item, "an audience", findings) for item in items or ()]
    jwks = _read_jwks(fields["jwks"], findings)
    if issuer is None or items is None or None in audiences or not jwks:
        return None
    heard = tuple(dict.fromkeys(one.text for one in audiences if one))
    return Issuer(name.text, issuer.text, heard, jwks, findings.loc(key))


def _read_jwks(node: Node, findings: Findings) -> str:
    """The key set in one line, so that how it is laid out does not matter."""
    if not isinstance(node, Scalar):
        findings.add("BH0207", node, what="`jwks`", wanted="text", found="a mapping or a list")
        return ""
    problem = "it is larger than 64 KiB" if len(node.text) > JWKS_MAX else ""
    keys: Any = None
    if not problem:
        try:
            keys = json.loads(node.text)
        except (ValueError, RecursionError):
            problem = "it is not JSON"
    problem = problem or _keys_problem(keys)
    if problem:
        findings.add("BH0346", Spot(node.line, node.column), problem=problem)
        return ""
    return json.dumps(keys, separators=(",", ":"), sort_keys=True)


def _keys_problem(value: Any) -> str:
    keys = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(keys, list) or not keys or not all(isinstance(key, dict) for key in keys):
        return "it has no list `keys` with a key"
    kind = next((key.get("kty") for key in keys if key.get("kty") not in _PUBLIC), None)
    if kind is not None or any("kty" not in key for key in keys):
        return f"it has a key of the kind `{kind}`, which is not a public one"
    if any("d" in key for key in keys):
        return "it has a private key: take that out of the repository, and use it nowhere any more"
    return ""
