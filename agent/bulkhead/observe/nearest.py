"""The rule that would almost have allowed something, and the clauses in which it does not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bulkhead.abi import Identity
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.observe.names import short
from bulkhead.observe.question import Subject
from bulkhead.observe.tables import Tables
from bulkhead.policy.model import PortSpec
from bulkhead.policy.ports import parse_port

HOSTS: Final = "hosts"
"""Policy of the lifeline rules; bare names in it are looked for in all policies."""

CLAUSES: Final = ("from", "to", "port")


@dataclass(frozen=True, slots=True)
class Nearest:
    """A rule, and its clauses that are not met: `from: api, not web`. None failed: it would allow, but has expired."""

    rule: RuleInfo
    failed: tuple[str, ...]


class PeerIndex:
    """Who is meant by the peers of rules, which come as the text that the author wrote."""

    def __init__(self, tables: Tables) -> None:
        self._workloads = list(tables.workloads())
        self._identities = {workload.identity for workload in self._workloads}
        self._classes = tables.classes()
        self._names: dict[str, set[int]] = {}
        self._short: dict[str, set[str]] = {}
        for workload in self._workloads:
            self._learn(str(workload.qualified), workload.identity)
        for identity, members in self._classes.items():
            for name in members:
                self._learn(str(name), identity)
        self._known: dict[tuple[str, str], frozenset[int]] = {}

    def members(self, policy: str, text: str) -> frozenset[int]:
        """The identities that `text` means in a rule of `policy`; PEER, which stands for any workload, with them."""
        key = (policy, text)
        if key not in self._known:
            found = frozenset(self._members(policy, text))
            has_workloads = not found.isdisjoint(self._identities)
            self._known[key] = found | {int(Identity.PEER)} if has_workloads else found
        return self._known[key]

    def _learn(self, name: str, identity: int) -> None:
        self._names.setdefault(name, set()).add(identity)
        self._short.setdefault(short(name), set()).add(name)

    def _members(self, policy: str, text: str) -> Iterable[int]:
        if text.startswith("{"):
            return self._labelled(text)
        return (identity for name in text.split(", ") for identity in self._named(policy, name))

    def _labelled(self, text: str) -> Iterable[int]:
        wanted = {tuple(pair.split(": ", 1)) for pair in text.strip("{}").split(", ")}
        return (workload.identity for workload in self._workloads if wanted <= set(workload.labels))

    def _named(self, policy: str, name: str) -> Iterable[int]:
        if name == "any":
            return (workload.identity for workload in self._workloads)
        if name == "host":
            return (int(Identity.HOST),)
        if name == "world":
            return self._classes
        if name == "legacy":
            return (int(Identity.LEGACY),)
        if "/" in name:
            return self._names.get(name, ())
        if policy == HOSTS:
            return (identity for full in self._short.get(name, ()) for identity in self._names[full])
        return self._names.get(f"{policy}/{name}", ())


def find_nearest(
    tables: Tables, source: Subject, destination: Subject, spec: PortSpec, port_text: str, now: float
) -> Nearest | None:
    """The rule with the most clauses met, of which one at least is an end; the first of equals, None for none.

    An exception that has expired at `now` is near only when nothing but its end is in the way.
    """
    index = PeerIndex(tables)
    best: tuple[tuple[int, bool, bool], Nearest] | None = None
    for rule in tables.rules():
        policy = str(rule.name).partition("/")[0]
        met_from = index.members(policy, rule.source).issuperset(source.identities)
        met_to = index.members(policy, rule.destination).issuperset(destination.identities)
        if not met_from and not met_to:
            continue
        met_port = _covers(rule.ports, spec)
        score = (met_from + met_to + met_port, met_to, met_from)
        if rule.expires is not None and rule.expires <= now and score[0] < len(CLAUSES):
            continue
        if best is None or score > best[0]:
            best = (score, Nearest(rule, _failed(rule, source, destination, port_text, (met_from, met_to, met_port))))
    return best[1] if best else None


def _failed(
    rule: RuleInfo, source: Subject, destination: Subject, port_text: str, met: tuple[bool, bool, bool]
) -> tuple[str, ...]:
    written = (rule.source, rule.destination, rule.ports)
    asked = (source.short, destination.short, port_text)
    clauses = zip(CLAUSES, written, asked, met, strict=True)
    return tuple(f"{clause}: {text}, not {other}" for clause, text, other, is_met in clauses if not is_met)


def _covers(ports: str, wanted: PortSpec) -> bool:
    return any(
        spec.protocol == wanted.protocol and spec.first <= wanted.first and wanted.last <= spec.last
        for text in ports.split(", ")
        for spec in parse_port(text)
    )
