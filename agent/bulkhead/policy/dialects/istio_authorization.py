"""`security.istio.io` AuthorizationPolicy: who may request what of the workloads of one namespace.

Absent and empty differ in Istio's words, not always in its messages: no `rules` match nothing, a rule `{}` matches
everything, and a list without items is refused, because it could be read either way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Lookup
from typing import Final, NamedTuple

from bulkhead.policy.dialects.istio_objects import key_of, read_selected, reads_dry_run
from bulkhead.policy.dialects.istio_texts import (
    SERVICE_ACCOUNTS_MAX,
    Check,
    account_problem,
    host_problem,
    method_problem,
    namespace_problem,
    path_problem,
    principal_problem,
    read_blocks,
    read_port_texts,
    read_values,
    request_principal_problem,
    trust_domain_problem,
)
from bulkhead.policy.dialects.istio_when import read_when
from bulkhead.policy.dialects.objects import read_object
from bulkhead.policy.fields import Keys, expect_items, expect_mapping, read_mapping, read_text, read_word
from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import (
    UNNUMBERED,
    Action,
    AuthorizationPolicy,
    IstioRule,
    Networks,
    Operation,
    Source,
    Texts,
)
from bulkhead.policy.yaml_nodes import Mapping, Node

KIND: Final = "AuthorizationPolicy"
TARGETS: Final = ("targetRef", "targetRefs")
SPEC = Keys("`spec`", (), ("selector", "rules", "action", "provider", *TARGETS))
RULE = Keys("a rule", (), ("from", "to", "when"))
FROM = Keys("an entry of `from`", ("source",))
TO = Keys("an entry of `to`", ("operation",))
PROVIDER = Keys("`provider`", ("name",))
ACTIONS = {action.value: action for action in Action}

VALUES_MAX: Final = 2000
"""Of one rule: what a proxy is told of it is bounded."""
REGO: Final = "rego/"
"""Begins the name of a provider that is the repository's own Rego."""
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")

_SOURCE_TEXTS: Final[Lookup[str, Check]] = {
    "principals": principal_problem,
    "requestPrincipals": request_principal_problem,
    "namespaces": namespace_problem,
    "serviceAccounts": account_problem,
    "trustDomains": trust_domain_problem,
}
_SOURCE_BLOCKS: Final = ("ipBlocks", "remoteIpBlocks")
_OPERATION_TEXTS: Final[Lookup[str, Check]] = {
    "hosts": host_problem,
    "methods": method_problem,
    "paths": path_problem,
}


def _both(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(each for name in names for each in (name, _negated(name)))


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def _field(name: str) -> str:
    """The name of a key in the model."""
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name)


SOURCE = Keys("`source`", (), _both((*_SOURCE_TEXTS, *_SOURCE_BLOCKS)))
OPERATION = Keys("`operation`", (), _both((*_OPERATION_TEXTS, "ports")))


class _Doing(NamedTuple):
    """What a policy does."""

    action: Action
    provider: str


def read_authorization_policy(node: Mapping, findings: Findings) -> AuthorizationPolicy | None:
    """The policy that the object says; None, with findings, when it is none."""
    found = read_object(node, KIND, findings, namespaced=True)
    fields = read_mapping(found.spec, SPEC, findings) if found else None
    if found is None or fields is None:
        return None
    for key in TARGETS:
        if key in fields:
            spot = key_of(found.spec, key)
            findings.add("BH1302", spot, hint="use `selector`", key=key, problem="it names gateways and services")
    doing = _read_doing(fields, found.spec, findings)
    return AuthorizationPolicy(
        name=found.name.text,
        namespace=found.namespace,
        labels=read_selected(fields, findings),
        action=doing.action,
        provider=doing.provider,
        dry_run=reads_dry_run(node, findings),
        rules=_read_rules(fields.get("rules"), findings),
        loc=findings.loc(found.name),
    )


def _read_doing(fields: dict[str, Node], spec: Node, findings: Findings) -> _Doing:
    action = read_word(fields["action"], "`action`", ACTIONS, findings) if "action" in fields else Action.ALLOW
    if (action is Action.CUSTOM) != ("provider" in fields):
        findings.add("BH1304", key_of(spec, "provider" if "provider" in fields else "action"))
    provider = _read_provider(fields["provider"], findings) if "provider" in fields else ""
    return _Doing(action or Action.ALLOW, provider)


def _read_provider(node: Node, findings: Findings) -> str:
    fields = read_mapping(node, PROVIDER, findings)
    name = read_text(fields["name"], "`name`", findings) if fields and "name" in fields else None
    if name is None:
        return ""
    package = name.text.removeprefix(REGO)
    if not name.text.startswith(REGO) or not _PACKAGE.fullmatch(package):
        findings.add("BH1305", name, hint=f"write `{REGO}PACKAGE`", name=name.text)
    return package


def _read_rules(node: Node | None, findings: Findings) -> tuple[IstioRule, ...]:
    items = expect_items(node, "`rules`", findings) if node else None
    rules = [_read_rule(item, number, findings) for number, item in enumerate(items or (), start=1)]
    return tuple(rule for rule in rules if rule)


def _read_rule(node: Node, number: int, findings: Findings) -> IstioRule | None:
    fields = read_mapping(node, RULE, findings)
    if fields is None:
        return None
    sources = [_read_source(item, findings) for item in _items(fields, "from", findings)]
    operations = [_read_operation(item, findings) for item in _items(fields, "to", findings)]
    when = [read_when(item, findings) for item in _items(fields, "when", findings)]
    rule = IstioRule(
        UNNUMBERED,
        f"rule-{number}",
        findings.loc(node),
        tuple(each for each in sources if each),
        tuple(each for each in operations if each),
        tuple(each for each in when if each),
    )
    count = sum(len(values) for one in rule.terms() for values in one.values())
    if count > VALUES_MAX:
        findings.add("BH1309", node, what="a rule", count=count, limit=VALUES_MAX)
    return rule


def _items(fields: dict[str, Node], key: str, findings: Findings) -> tuple[Node, ...]:
    return expect_items(fields[key], f"`{key}`", findings, empty=False) or () if key in fields else ()


def _read_source(node: Node, findings: Findings) -> Source | None:
    fields = _read_inner(node, FROM, "source", SOURCE, findings)
    if fields is None:
        return None
    texts = _read_texts(fields, _SOURCE_TEXTS, findings)
    blocks: dict[str, Networks] = {
        _field(key): read_blocks(fields[key], f"`{key}`", findings) for key in _both(_SOURCE_BLOCKS) if key in fields
    }
    _check_accounts(fields, texts, findings)
    return Source(**texts, **blocks)  # type: ignore[arg-type]  # texts and networks, each under the key of its type


def _check_accounts(fields: dict[str, Node], texts: Lookup[str, Texts], findings: Findings) -> None:
    """The API wants accounts by themselves, and few of them."""
    for key in _both(("serviceAccounts",)):
        if key not in fields:
            continue
        count = len(texts[_field(key)])
        if count > SERVICE_ACCOUNTS_MAX:
            findings.add("BH1204", fields[key], what=f"`{key}`", count=count, limit=SERVICE_ACCOUNTS_MAX)
        for other in _both(("principals", "namespaces")):
            if other in fields:
                hint = "make two entries of `from`"
                findings.add("BH1307", fields[key], hint=hint, key=key, other=other)


def _read_operation(node: Node, findings: Findings) -> Operation | None:
    fields = _read_inner(node, TO, "operation", OPERATION, findings)
    if fields is None:
        return None
    texts = _read_texts(fields, _OPERATION_TEXTS, findings)
    ports = {key: read_port_texts(fields[key], f"`{key}`", findings) for key in _both(("ports",)) if key in fields}
    return Operation(**texts, ports=ports.get("ports", ()), not_ports=ports.get("notPorts", ()))


def _read_inner(node: Node, outer: Keys, key: str, keys: Keys, findings: Findings) -> dict[str, Node] | None:
    """The fields of the one mapping within another, of which it must have some."""
    around = read_mapping(node, outer, findings)
    inner = expect_mapping(around[key], keys.what, findings, empty=False) if around and key in around else None
    return read_mapping(inner, keys, findings) if inner else None


def _read_texts(fields: dict[str, Node], checks: Lookup[str, Check], findings: Findings) -> dict[str, Texts]:
    """The lists of texts, by the names of their fields."""
    named = {key: check for name, check in checks.items() for key in (name, _negated(name))}
    return {
        _field(key): read_values(fields[key], f"`{key}`", check, findings)
        for key, check in named.items()
        if key in fields
    }
