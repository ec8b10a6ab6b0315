"""The conditions of an AuthorizationPolicy: which attributes there are, and how their values are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from bulkhead.policy.dialects.istio_texts import (
    SERVICE_ACCOUNTS_MAX,
    Check,
    account_problem,
    namespace_problem,
    port_problem,
    principal_problem,
    read_blocks,
    read_values,
    request_principal_problem,
    trust_domain_problem,
    wildcard_problem,
)
from bulkhead.policy.fields import Keys, did_you_mean, read_mapping, read_text
from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import When
from bulkhead.policy.yaml_nodes import Node, Scalar

WHEN = Keys("a condition", ("key",), ("values", "notValues"))

PLAIN: Final[Mapping[str, Check | None]] = {
    "source.ip": None,
    "remote.ip": None,
    "source.namespace": namespace_problem,
    "source.principal": principal_problem,
    "source.serviceAccount": account_problem,
    "source.trustDomain": trust_domain_problem,
    "request.auth.principal": request_principal_problem,
    "request.auth.audiences": wildcard_problem,
    "request.auth.presenter": wildcard_problem,
    "destination.ip": None,
    "destination.port": port_problem,
    "connection.sni": wildcard_problem,
}
"""Attributes with the check of their values; None: addresses."""

BRACKETED: Final = ("request.headers", "request.auth.claims")
"""Attributes that say in brackets which header, or which claim."""

EXPERIMENTAL: Final = "experimental."
_BRACKETS = re.compile(r"([a-z.A-Z]+)((?:\[[^\[\]]+\])+)")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _Key(NamedTuple):
    """An attribute, and what stands in its brackets."""

    key: str
    names: tuple[str, ...]


def read_when(node: Node, findings: Findings) -> When | None:
    """One condition; None, with findings, when it is none."""
    fields = read_mapping(node, WHEN, findings)
    text = read_text(fields["key"], "`key`", findings) if fields and "key" in fields else None
    key = _read_key(text, findings) if text else None
    if fields is None or text is None or key is None:
        return None
    if not {"values", "notValues"} & fields.keys():
        findings.add("BH0206", text, hint="or `notValues`, or both", what="a condition", key="values")
        return None
    values, excluded = (_read_values(fields.get(name), f"`{name}`", key, findings) for name in ("values", "notValues"))
    return When(key.key, key.names, values, excluded)


def _read_key(text: Scalar, findings: Findings) -> _Key | None:
    if text.text in PLAIN:
        return _Key(text.text, ())
    if text.text.startswith(EXPERIMENTAL):
        findings.add("BH1302", text, key=text.text, problem="it reads what one filter of a proxy says to another")
        return None
    found = _BRACKETS.fullmatch(text.text)
    if found and found[1] in BRACKETED:
        names = tuple(found[2][1:-1].split("]["))
        if found[1] != "request.headers":
            return _Key(found[1], names)
        if len(names) == 1 and _HEADER.fullmatch(names[0]):
            return _Key(found[1], (names[0].lower(),))
    known = [*PLAIN, *(f"{key}[NAME]" for key in BRACKETED)]
    findings.add("BH1303", text, hint=did_you_mean(text.text, known, findings), key=text.text)
    return None


def _read_values(node: Node | None, what: str, key: _Key, findings: Findings) -> tuple[str, ...]:
    if node is None:
        return ()
    check = PLAIN.get(key.key, wildcard_problem)
    if check is None:
        return tuple(map(str, read_blocks(node, what, findings)))
    values = read_values(node, what, check, findings)
    if key.key == "source.serviceAccount" and len(values) > SERVICE_ACCOUNTS_MAX:
        findings.add("BH1204", node, what=what, count=len(values), limit=SERVICE_ACCOUNTS_MAX)
    return values
