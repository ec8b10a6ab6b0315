"""The texts that Istio's policies hold requests against: which of them mean something, and the same to everybody.

Istio takes `*` at the beginning or at the end of a text for the rest of it, and anywhere else for itself; it takes a
path that no request can have, or a principal that no certificate can. A rule of such a text never matches, which in a
DENY nobody notices: it is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from bulkhead.policy.fields import expect_items, read_text
from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import ANY_SEGMENTS, ONE_SEGMENT
from bulkhead.policy.model import Network
from bulkhead.policy.ports import PORT_MAX
from bulkhead.policy.scalars import DECIMAL
from bulkhead.policy.values import read_network
from bulkhead.policy.yaml_nodes import Node, Scalar

SERVICE_ACCOUNTS_MAX: Final = 16

TEXT_MAX: Final = 1024

Check = Callable[[str], str]
"""Why a text cannot be meant; empty when it can."""

_NAMESPACE = re.compile(r"[-a-z0-9*]{1,63}")
_ACCOUNT = re.compile(r"(?:[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_METHOD = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")
_SEGMENT = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+")
"""What stands literally between the templates of a path."""


def read_values(node: Node, what: str, check: Check, findings: Findings) -> tuple[str, ...]:
    """The texts of a list that has one at least; those that cannot be meant are recorded and left out."""
    items = expect_items(node, what, findings, empty=False) or ()
    texts = [read_text(item, what, findings) for item in items]
    return tuple(dict.fromkeys(text.text for text in texts if text and _is_sound(text, what, check, findings)))


def _is_sound(text: Scalar, what: str, check: Check, findings: Findings) -> bool:
    problem = check(text.text) if len(text.text) <= TEXT_MAX else f"it has more than {TEXT_MAX} characters"
    if problem:
        findings.add("BH1301", text, text=text.text, what=what, problem=problem)
    return not problem


def read_blocks(node: Node, what: str, findings: Findings) -> tuple[Network, ...]:
    """The address prefixes of a list that has one at least."""
    items = expect_items(node, what, findings, empty=False) or ()
    networks = [read_network(item, findings, name_hint="addresses and prefixes are listed here") for item in items]
    return tuple(dict.fromkeys(network for network in networks if network))


def read_port_texts(node: Node, what: str, findings: Findings) -> tuple[int, ...]:
    """The ports of a list that has one at least; the API has them as text."""
    return tuple(int(text) for text in read_values(node, what, port_problem, findings))


def wildcard_problem(text: str) -> str:
    """Of any text: `*` is the rest of it, at one end."""
    if text == "*" or "*" not in text:
        return ""
    inner = text[1:] if text[0] == "*" else text[:-1] if text[-1] == "*" else text
    return (
        "`*` stands for the rest at the beginning or at the end, and for itself anywhere else" if "*" in inner else ""
    )


def principal_problem(text: str) -> str:
    """`TRUST-DOMAIN/PATH`, without the scheme."""
    if "://" in text:
        return "`spiffe://` is not written"
    if "//" in text or text.endswith("/"):
        return "no SPIFFE ID has an empty segment"
    if "*" not in text and "/" not in text:
        return "a principal is a trust domain and a path, such as `example.org/ns/shop/sa/web`"
    return wildcard_problem(text)


def request_principal_problem(text: str) -> str:
    """`ISSUER/SUBJECT`, parted at the last `/`."""
    issuer, slash, subject = text.rpartition("/")
    if text == "*" or (not slash and "*" in text):
        return wildcard_problem(text)
    if not subject or not issuer or issuer.endswith("/"):
        return "it is parted at its last `/` into issuer and subject, of which one is missing"
    return wildcard_problem(text)


def namespace_problem(text: str) -> str:
    """Any number of `*`."""
    return "" if _NAMESPACE.fullmatch(text) else "no namespace has such a name"


def account_problem(text: str) -> str:
    """`NAME` or `NAMESPACE/NAME`, without wildcards."""
    if "*" in text:
        return "service accounts are written out: `*` is not read here"
    return "" if _ACCOUNT.fullmatch(text) else "a service account is `NAME` or `NAMESPACE/NAME`"


def trust_domain_problem(text: str) -> str:
    """The name of a trust domain, or its beginning or end."""
    plain = text.strip("*")
    return wildcard_problem(text) or (
        "" if text == "*" or _TRUST_DOMAIN.fullmatch(plain) else "no trust domain has such a name"
    )


def host_problem(text: str) -> str:
    """What `:authority` says: a name, and a port where one was given."""
    return "a host is neither a URL nor a path" if "/" in text else wildcard_problem(text)


def method_problem(text: str) -> str:
    """An HTTP method, whose case counts."""
    plain = text.strip("*")
    if text != "*" and not _METHOD.fullmatch(plain):
        return "no HTTP method has such a name"
    if text.islower() and text.upper() in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        return f"the case of a method counts: write `{text.upper()}`"
    return wildcard_problem(text)


def path_problem(text: str) -> str:
    """A path without query; with `{*}` or `{**}`, by segments."""
    if "?" in text or "#" in text:
        return "a path is held without what begins at `?` or `#`"
    if not text.startswith(("/", "*")):
        return "every path begins with `/`"
    return _template_problem(text) if "{" in text or "}" in text else wildcard_problem(text)


def _template_problem(text: str) -> str:
    if not text.startswith("/"):
        return "a template begins with `/`"
    segments = text.strip("/").split("/")
    if ANY_SEGMENTS in segments and set(segments[segments.index(ANY_SEGMENTS) + 1 :]) & {ONE_SEGMENT, ANY_SEGMENTS}:
        return "behind `{**}` stands no other template"
    odd = next(
        (one for one in segments if one not in (ONE_SEGMENT, ANY_SEGMENTS) and not _SEGMENT.fullmatch(one)), None
    )
    return "" if odd is None else f"`{odd}` is no segment: `{{*}}`, `{{**}}`, or literal without `*` and braces"


def port_problem(text: str) -> str:
    """A port by its number."""
    decimal = DECIMAL.fullmatch(text[: len(str(PORT_MAX)) + 1])
    return "" if decimal and 1 <= int(text) <= PORT_MAX else f"ports are numbers from 1 to {PORT_MAX}"
