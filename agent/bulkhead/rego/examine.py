"""What is wrong with the Rego of a commit, and what its guardrails say of the commit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.check import finding
from bulkhead.policy.findings import FINDINGS_MAX
from bulkhead.policy.istio import AuthorizationPolicy
from bulkhead.policy.model import PolicySet
from bulkhead.policy.rego_modules import GUARDRAILS, RegoModule
from bulkhead.rego.calls import outline, unknown_calls
from bulkhead.rego.child import ChildError, in_child
from bulkhead.rego.engine import Engine, RegoError, UndefinedError, is_installed, syntax_tree
from bulkhead.rego.repository import repository_document

_READ_S: Final = 10.0
_JUDGE_S: Final = 2.0
_SIDES: Final = (("deny", "BH1405"), ("warn", "BH1406"))


def examine(policy_set: PolicySet) -> tuple[Diagnostic, ...]:
    """All findings about the Rego of a commit, in the order of files and lines; none where there is no Rego.

    One of severity `error` refuses the commit.
    """
    asked = _asked(policy_set)
    if not policy_set.modules and not asked:
        return ()
    first = policy_set.modules[0].loc if policy_set.modules else next(iter(asked.values()))
    if not is_installed():
        return (finding(policy_set, "BH1401", first),)
    try:
        found = [*_read(policy_set, asked)]
        if not found and _has_guardrails(policy_set):
            found = [*_judge(policy_set)]
    except ChildError as error:
        return (finding(policy_set, "BH1407", first, problem=str(error)),)
    return tuple(sorted(found, key=lambda one: (one.loc, one.code)))


def _asked(policy_set: PolicySet) -> dict[str, Loc]:
    """The packages that are asked about requests, and where that is first said."""
    found: dict[str, Loc] = {}
    for rule in policy_set.rules:
        if rule.authz:
            found.setdefault(rule.authz, rule.loc)
    for policy in policy_set.istio:
        if isinstance(policy, AuthorizationPolicy) and policy.provider:
            found.setdefault(policy.provider, policy.loc)
    return found


def _has_guardrails(policy_set: PolicySet) -> bool:
    """By the word alone: what a module says is for the engine to tell."""
    return any("bulkhead" in module.text for module in policy_set.modules)


# Reading


def _read(policy_set: PolicySet, asked: Mapping[str, Loc]) -> Iterator[Diagnostic]:
    modules = policy_set.modules
    read = json.loads(in_child(lambda: json.dumps(_read_here(modules)).encode(), _READ_S))
    for number, path, line, column, text in read["found"]:
        loc = _within(modules, path, line, column)
        yield finding(policy_set, number, loc, name=text, problem=text)
    if not read["found"]:
        for name, loc in asked.items():
            if f"{name}.allow" not in read["rules"]:
                yield finding(policy_set, "BH1404", loc, name=name)


def _read_here(modules: tuple[RegoModule, ...]) -> dict[str, Any]:
    """In the child: what is wrong with the modules, and which rules there are."""
    try:
        engine = Engine(modules)
        outlines = [outline(one.path, one.text, syntax_tree(one)) for one in modules]
    except RegoError as error:
        return {"found": [("BH1402", error.path, error.line, error.column, error.problem)], "rules": []}
    unknown = unknown_calls(outlines, engine.functions())[:FINDINGS_MAX]
    found = [("BH1403", call.path, call.line, call.column, call.name) for call in unknown]
    return {"found": found, "rules": sorted({name for one in outlines for name in one.rules})}


def _within(modules: tuple[RegoModule, ...], path: str, line: int, column: int) -> Loc:
    """A place in a module, as it is a place of the commit."""
    module = next((one for one in modules if one.path == path), modules[0])
    return Loc(module.path, line, column, module.loc.commit)


# Guardrails


def _judge(policy_set: PolicySet) -> Iterator[Diagnostic]:
    modules, document = policy_set.modules, repository_document(policy_set)
    judged = json.loads(in_child(lambda: json.dumps(_judge_here(modules, document)).encode(), _JUDGE_S))
    places = _places(policy_set)
    guardrail = next((one.loc for one in modules if GUARDRAILS in one.text), modules[0].loc)
    if "failed" in judged:
        path, line, column, problem = judged["failed"]
        loc = _within(modules, path, line, column) if path else guardrail
        yield finding(policy_set, "BH1407", loc, problem=problem)
        return
    for side, number in _SIDES:
        for one in judged[side][:FINDINGS_MAX]:
            problem, key = _said(one)
            loc = places.get(key, guardrail) if key else guardrail
            related = ((guardrail, "the guardrails are here"),) if loc is not guardrail else ()
            if problem is None:
                yield finding(policy_set, "BH1407", loc, problem=f"`{side}` of `{GUARDRAILS}` holds what is no message")
            else:
                yield finding(policy_set, number, loc, related=related, problem=problem)


def _judge_here(modules: tuple[RegoModule, ...], document: str) -> dict[str, Any]:
    """In the child: what the guardrails say."""
    found: dict[str, Any] = {}
    try:
        engine = Engine(modules)
        for side, _ in _SIDES:
            try:
                value = engine.value(f"{GUARDRAILS}.{side}", document)
            except UndefinedError:
                value = []
            found[side] = value if isinstance(value, list) else [value]
    except RegoError as error:
        return {"failed": [error.path, error.line, error.column, error.problem]}
    return found


_NAMED: Final = ("rule", "workload", "external", "never", "policy", "node")


def _said(one: Any) -> tuple[str | None, tuple[str, str] | None]:
    """A message, and the thing that it is about; no message where it is not one."""
    if isinstance(one, str):
        return one, None
    if isinstance(one, dict) and isinstance(one.get("msg"), str):
        named = next((kind for kind in _NAMED if isinstance(one.get(kind), str)), None)
        return one["msg"], (named, one[named]) if named else None
    return None, None


def _places(policy_set: PolicySet) -> dict[tuple[str, str], Loc]:
    """Where things are that a message may be about, by kind and name."""
    places = {("rule", str(one.qualified)): one.loc for one in policy_set.rules}
    places |= {("workload", str(one.qualified)): one.loc for one in policy_set.workloads}
    places |= {("external", str(one.qualified)): one.loc for one in policy_set.externals}
    places |= {("never", f"{one.policy}/{one.name}"): one.loc for one in policy_set.nevers}
    places |= {("policy", one.name): one.loc for one in reversed(policy_set.policies)}
    return places | {("node", one.name): one.place(policy_set.commit) for one in policy_set.nodes}
