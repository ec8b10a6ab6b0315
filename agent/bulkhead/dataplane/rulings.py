"""What two commits say to a recorded flow, whose ends are derived anew under each from the facts that were recorded."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import product
from typing import NamedTuple

from bulkhead.abi import Direction, Identity
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import ENTITY_NAMES, Compiled, RuleInfo, lookup
from bulkhead.dataplane.halves import Halves
from bulkhead.dataplane.recorded import Facts, Flow, Party
from bulkhead.dataplane.regions import cut
from bulkhead.dataplane.resolve import HOST, LEGACY
from bulkhead.identity.selectors import OTHER, CgroupView, Host, Identified, Narrower, Outcome
from bulkhead.policy.model import Mode, RuleId


class Verdict(IntEnum):
    """By how far something gets."""

    DENY = 0
    WOULD_DENY = 1
    ALLOW = 2


class Ruling(NamedTuple):
    """What a commit says to a flow, and who it takes the ends to be."""

    verdict: Verdict
    rule: RuleId | None
    """The one that allows it, at the last end asked."""
    source: int
    destination: int


class Case(NamedTuple):
    """A flow that is decided under both commits. `by_name`, `contradicted`: see `Replay`."""

    flow: Flow
    before: Ruling
    after: Ruling
    by_name: bool
    contradicted: bool


class Court:
    """Both commits, and what is known of names from all flows."""

    def __init__(self, both: Halves, flows: Sequence[Flow]) -> None:
        self.sides = tuple(Commit(half.compiled) for half in both)
        self._known: dict[str, set[Facts]] = defaultdict(set)
        self._found: dict[tuple[int, str, Facts | None], list[int]] = {}
        for flow in flows:
            for party in (flow.source, flow.destination):
                if party.facts is not None and party.name:
                    self._known[party.name].add(party.facts)

    def judge(self, flow: Flow) -> Case | None:
        """None when the facts leave it open."""
        before, after = (self._ruling(side, flow) for side in (0, 1))
        if before is None or after is None:
            return None
        ends = (flow.source, flow.destination)
        by_name = any(end.address is None and not self._facts(end) for end in ends)
        contradicted = flow.passed is not None and flow.passed != (before.verdict is Verdict.ALLOW)
        return Case(flow, before, after, by_name, contradicted)

    def _ruling(self, side: int, flow: Flow) -> Ruling | None:
        sources, destinations = self._identities(side, flow.source), self._identities(side, flow.destination)
        found = [self.sides[side].ruling(flow, *pair) for pair in product(sources, destinations)]
        return found[0] if found and len({one.verdict for one in found}) == 1 else None

    def _identities(self, side: int, party: Party) -> list[int]:
        """Everybody that a party can be under a commit; nobody when that cannot be told."""
        if party.address is not None:
            return [self.sides[side].outside(party.name, party.address)]
        key = (side, party.name, party.facts)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._possible(side, party)
        return found

    def _possible(self, side: int, party: Party) -> list[int]:
        commit = self.sides[side]
        named = commit.named(party.name)
        facts = self._facts(party)
        if not facts:
            return [] if named is None else [named]
        possible = {identity for one in facts for identity in commit.identities(one)}
        if len(possible) > 1 and named in possible and (side == 0 or self._is_unchanged(possible)):
            # What was recorded of it decided it then; nothing has changed about those that it could be.
            return [named]
        return sorted(possible)

    def _facts(self, party: Party) -> Iterable[Facts]:
        return (party.facts,) if party.facts is not None else self._known.get(party.name, ())

    def _is_unchanged(self, identities: Iterable[int]) -> bool:
        old, new = self.sides
        names = [new.name(identity) for identity in identities]
        return all(old.matches.get(name) == new.matches.get(name) for name in names)


class Commit:
    """One commit, ready to be asked."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._names = {**ENTITY_NAMES, **{w.identity: str(w.qualified) for w in compiled.workloads}}
        self._numbers = {name: number for number, name in self._names.items()}
        self._modes = {HOST: compiled.host_mode, **{w.identity: w.mode for w in compiled.workloads}}
        self.matches = {str(w.qualified): w.match for w in compiled.workloads}
        self._stretches = {version: cut(compiled, version) for version in (4, 6)}
        written = {*compiled.classes4.values(), *compiled.classes6.values()}
        learned = {" + ".join(names): n for n, names in compiled.classes.items() if names and n not in written}
        self._known_by_name = {ENTITY_NAMES[LEGACY]: LEGACY, **learned}
        self._suspects: dict[str, _Suspects] = {}
        self._found: dict[Facts, frozenset[int]] = {}

    def rule(self, number: RuleId | None) -> RuleInfo | None:
        """The rule of that number."""
        return None if number is None else self._compiled.rules.get(number)

    def named(self, name: str) -> int | None:
        """The identity of a name of a workload or of `host`."""
        return self._numbers.get(name)

    def name(self, identity: int) -> str:
        """What to call an identity; `world` when it has no name."""
        if identity == Identity.AMBIGUOUS:
            return "ambiguous"
        return self._names.get(identity) or " + ".join(self._compiled.classes.get(identity, ())) or "world"

    def outside(self, name: str, address: Address) -> int:
        """Who an address is. One that was known by a DNS name still is, where the commit has that name, and a node
        without an agent still is one."""
        known = self._known_by_name.get(name)
        return self._class_of(address) if known is None else known

    def _class_of(self, address: Address) -> int:
        # By halving, since a log has many addresses.
        stretches = self._stretches[address.version]
        return stretches[bisect_right(stretches, int(address), key=lambda stretch: stretch[0]) - 1][2]

    def identities(self, facts: Facts) -> frozenset[int]:
        """Everybody that a process of these facts can be."""
        found = self._found.get(facts)
        if found is None:
            suspects = self._suspects.get(facts.host)
            if suspects is None:
                suspects = self._suspects[facts.host] = _Suspects(self._compiled, facts.host)
            found = self._found[facts] = frozenset(map(self._identity, suspects.outcomes(facts)))
        return found

    def _identity(self, outcome: Outcome) -> int:
        if isinstance(outcome, Identified):
            return self._numbers[outcome.workload.qualified]
        return HOST if isinstance(outcome, Host) else int(Identity.AMBIGUOUS)

    def ruling(self, flow: Flow, source: int, destination: int) -> Ruling:
        """What both ends on this machine say."""
        verdict, deciding = Verdict.ALLOW, None
        for party, local, direction, remote in (
            (flow.source, source, Direction.EGRESS, destination),
            (flow.destination, destination, Direction.INGRESS, source),
        ):
            if party.address is not None or local == LEGACY:
                continue
            entry = lookup(self._compiled, local, direction, remote, flow.protocol, flow.port)
            if entry is None:
                mode = self._modes.get(local, Mode.ENFORCE)
                verdict = min(verdict, Verdict.DENY if mode is Mode.ENFORCE else Verdict.WOULD_DENY)
            else:
                deciding = entry.rule_id
        return Ruling(verdict, deciding if verdict is Verdict.ALLOW else None, source, destination)


class _Suspects:
    """The workloads of one host, narrowed by what is known of a process. Names of users are not: numbers were recorded.

    A user or group that policy names could be the recorded number, or not: it counts as one that is not known.
    """

    def __init__(self, compiled: Compiled, host: str) -> None:
        self._numbers: dict[str, int] = {}
        workloads = (workload.as_workload() for workload in compiled.workloads)
        self._narrower = Narrower(workloads, host, self._stand_in, self._stand_in)

    def _stand_in(self, name: str) -> int:
        return self._numbers.setdefault(name, -1 - len(self._numbers))

    def outcomes(self, facts: Facts) -> Iterator[Outcome]:
        """What the process can be; the same more than once."""
        view: CgroupView = self._narrower.view(facts.cgroup)
        executables = (facts.exe,) if facts.exe is not None else (OTHER, *view.executables)
        for exe, uid, gid in product(executables, _possible(facts.uid, view.uids), _possible(facts.gid, view.gids)):
            yield view.decide(exe, uid, gid)


def _possible(known: int | None, wanted: Sequence[int]) -> Iterator[int | None]:
    """The numbers that matter which a recorded number can be: itself, and those that stand for names."""
    if known is None or known not in wanted:
        yield OTHER
    yield from (number for number in wanted if known is None or number == known or number < 0)
