"""What policy says to a question, and the rules it says it by. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.abi import Direction, DropReason, Identity, Verdict, name_of
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import Compiled, PolicyEntry, RuleInfo
from bulkhead.errors import UsageError
from bulkhead.observe.nearest import Nearest, find_nearest
from bulkhead.observe.neighbours import Neighbours
from bulkhead.observe.question import Directory, Kind, Question, Subject
from bulkhead.observe.reasons import REASONS
from bulkhead.observe.tables import Tables, tables_of
from bulkhead.policy.model import Mode, PortSpec
from bulkhead.policy.nodes import Node

ALLOW, DENY, WOULD_DENY = (name_of(Verdict, one) for one in (Verdict.ALLOW, Verdict.DENY, Verdict.WOULD_DENY))
REFUSALS: Final = (DENY, WOULD_DENY)

_SAYS_WHO: Final = (6, 17)
"""Protocols whose packets say who is talking: TCP, UDP."""


@dataclass(frozen=True, slots=True)
class EndAnswer:
    """What one end of a conversation says."""

    direction: Direction
    """Egress at the source, ingress at the destination."""
    name: str
    mode: Mode | None
    """None: this end is not judged here."""
    verdict: str
    """`allow`, `deny`, `would-deny`; empty when it is not judged here."""
    reason: DropReason
    rule: RuleInfo | None
    """The one that allows it, or allowed it until it expired."""
    nearest: Nearest | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What policy says to a question, as it is enforced now."""

    question: Question
    source: str
    destination: str
    verdict: str
    """`deny` when an end in enforce mode refuses, `would-deny` when only ends in observe mode do, else `allow`."""
    source_end: EndAnswer
    destination_end: EndAnswer
    commit: str
    host: str | None

    @property
    def ends(self) -> tuple[EndAnswer, EndAnswer]:
        return self.source_end, self.destination_end

    @property
    def deciding(self) -> EndAnswer:
        """The end that the verdict comes from: the first that gives it, the destination for an allow."""
        order = self.ends if self.verdict != ALLOW else self.ends[::-1]
        return next(end for end in order if end.verdict == self.verdict)


def can(
    source: Compiled | Bundle | Tables,
    question: Question,
    now: float,
    aliases: Mapping[str, int] | None = None,
    observe_only: bool = False,
    nodes: Neighbours | None = None,
) -> Answer:
    """Whether policy allows what is asked, and why: what each end on this host says, and where others are judged.

    `now` is in Unix seconds; `aliases` are further names for identities; `observe_only` as in the settings; `nodes` are
    those at whose addresses somebody says who is talking. Raises UsageError for names that mean nobody or several, and
    when neither end would be judged.
    """
    tables = tables_of(source) if isinstance(source, Compiled | Bundle) else source
    directory = Directory(tables, aliases)
    ends = directory.subject(question.source), directory.subject(question.destination)
    spec = _spec(question, *ends)
    case = _Case(tables, *ends, spec, question.port_text, now, observe_only, nodes or Neighbours())
    answers = case.judge(Direction.EGRESS), case.judge(Direction.INGRESS)
    verdicts = {answer.verdict for answer in answers} - {""}
    if not verdicts:
        raise UsageError(f"nobody here judges what goes from `{question.source}` to `{question.destination}`")
    verdict = next(one for one in (DENY, WOULD_DENY, ALLOW) if one in verdicts)
    return Answer(question, ends[0].name, ends[1].name, verdict, *answers, tables.commit, tables.host)


def _spec(question: Question, source: Subject, destination: Subject) -> PortSpec:
    """ICMP and ICMPv6 are two protocols: the one of the addresses named, if any."""
    specs = question.specs()
    versions = {end.address.version for end in (source, destination) if end.address is not None}
    return specs[-1] if versions == {6} else specs[0]


@dataclass(frozen=True, slots=True)
class _Case:
    """One question, resolved."""

    tables: Tables
    source: Subject
    destination: Subject
    spec: PortSpec
    port_text: str
    now: float
    observe_only: bool
    nodes: Neighbours

    def judge(self, direction: Direction) -> EndAnswer:
        """The answer of one end."""
        local, remote = (
            (self.source, self.destination) if direction == Direction.EGRESS else (self.destination, self.source)
        )
        mode = self._mode(local)
        if mode is None:
            return EndAnswer(direction, local.name, None, "", DropReason.NONE, None, None, self._not_judged(local))
        node = self._node(remote)
        readings = self._readings(remote, node, direction)
        found = [[self._lookup(local, direction, identity) for identity in identities] for identities in readings]
        refused = [[entry for entry in entries if entry is None or self._is_over(entry)] for entries in found]
        allowing = next((entries for entries, no in zip(found, refused, strict=True) if entries and not no), None)
        if allowing is not None:
            note = _who_is_there(node, direction) if node is not None and self._is_said() else ""
            return EndAnswer(direction, local.name, mode, ALLOW, DropReason.NONE, self._rule(allowing[0]), None, note)
        partly = f"part of `{remote.name}` is allowed" if len(refused[0]) < len(found[0]) else ""
        over = next((one for no in refused for one in no if one), None)
        return self._refusal(direction, local, mode, over, partly)

    def _node(self, end: Subject) -> Node | None:
        return self.nodes.judged_at(end.address) if end.address is not None else None

    def _is_said(self) -> bool:
        return self.spec.protocol in _SAYS_WHO

    def _readings(self, remote: Subject, node: Node | None, direction: Direction) -> list[tuple[int, ...]]:
        """Who the other end may be: one reading is enough, if all of it is allowed.

        An opening to a node leaves for any workload there, or by the class of its address: who answers is judged then.
        """
        if node is not None and node.key is None:
            return [(int(Identity.LEGACY),)]
        if node is not None and direction == Direction.EGRESS and self._is_said():
            return [(int(Identity.PEER),), remote.identities]
        return [remote.identities]

    def _refusal(
        self, direction: Direction, local: Subject, mode: Mode, entry: PolicyEntry | None, note: str
    ) -> EndAnswer:
        verdict = DENY if mode is Mode.ENFORCE else WOULD_DENY
        nearest = self.nearest()
        over = self._rule(entry) or (
            nearest.rule if nearest and not nearest.failed and self._has_expired(nearest) else None
        )
        if local.kind is Kind.NOBODY:
            reason = DropReason.AMBIGUOUS if Identity.AMBIGUOUS in local.identities else DropReason.UNATTESTED
        else:
            reason = DropReason.EXPIRED if over else DropReason.POLICY
        return EndAnswer(direction, local.name, mode, verdict, reason, over, None if over else nearest, note)

    def nearest(self) -> Nearest | None:
        """The rule that comes closest."""
        return find_nearest(self.tables, self.source, self.destination, self.spec, self.port_text, self.now)

    def _lookup(self, local: Subject, direction: Direction, remote: int) -> PolicyEntry | None:
        return self.tables.lookup(local.identities[0], int(direction), remote, self.spec.protocol, self.spec.first)

    def _is_over(self, entry: PolicyEntry) -> bool:
        return entry.deadline is not None and entry.deadline <= self.now

    def _has_expired(self, nearest: Nearest) -> bool:
        return nearest.rule.expires is not None and nearest.rule.expires <= self.now

    def _rule(self, entry: PolicyEntry | None) -> RuleInfo | None:
        return None if entry is None else self.tables.rule(entry.rule_id)

    def _mode(self, local: Subject) -> Mode | None:
        if local.kind is Kind.NOBODY:
            return Mode.ENFORCE if not self.observe_only else Mode.OBSERVE
        if local.workload is not None:
            mode = local.workload.mode if local.workload.local else None
        else:
            mode = self.tables.host_mode if local.kind is Kind.HOST else None
        return Mode.OBSERVE if mode and self.observe_only else mode

    def _not_judged(self, local: Subject) -> str:
        node = self._node(local)
        if node is not None and node.key is None:
            return f"the node `{node.name}` runs no agent: nothing judges there"
        if node is not None:
            return f"the node `{node.name}` judges there"
        if local.kind is Kind.OUTSIDE or local.workload is None:
            return f"`{local.name}` is outside: nothing judges there"
        hosts = self.nodes.names_hosting(local.workload.match)
        where = f"where it runs ({hosts})" if hosts else "where it runs"
        return f"`{local.name}` cannot be on `{self.tables.host}`: it is judged {where}"


def _who_is_there(node: Node, direction: Direction) -> str:
    if node.key is None:
        return f"`{node.name}` runs no agent"
    if direction == Direction.EGRESS:
        return f"who answers on `{node.name}` is judged when it does"
    return f"a workload of `{node.name}` is judged by who it is: name it"


def because(end: EndAnswer) -> str:
    """Why an end answers as it does, in one line."""
    if end.verdict == ALLOW and end.rule is not None:
        return f"allowed by {end.rule.name}"
    if end.reason is DropReason.EXPIRED and end.rule is not None:
        return f"{REASONS[end.reason].because}: {end.rule.name}"
    return REASONS[end.reason].because if end.verdict else end.note


def rule_to_json(rule: RuleInfo | None) -> dict[str, Any] | None:
    """A rule as the control socket and `-o json` show it."""
    if rule is None:
        return None
    return {
        "rule_id": int(rule.rule_id),
        "name": str(rule.name),
        "kind": rule.kind,
        "from": rule.source,
        "to": rule.destination,
        "ports": rule.ports,
        "source": rule.loc.short,
        "expires": rule.expires,
        "owner": rule.owner,
        "ticket": rule.ticket,
        "why": rule.why,
    }


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """An answer as the control socket and `-o json` show it."""
    return {
        "from": answer.source,
        "to": answer.destination,
        "port": answer.question.port,
        "protocol": answer.question.protocol,
        "verdict": answer.verdict,
        "because": because(answer.deciding),
        "ends": [_end_to_json(end) for end in answer.ends],
        "commit": answer.commit,
        "host": answer.host,
    }


def _end_to_json(end: EndAnswer) -> dict[str, Any]:
    refused = end.verdict in REFUSALS
    return {
        "direction": name_of(Direction, end.direction),
        "name": end.name,
        "judged": bool(end.verdict),
        "mode": end.mode.value if end.mode else None,
        "verdict": end.verdict or None,
        "reason": name_of(DropReason, end.reason),
        "because": because(end),
        "advice": REASONS[end.reason].advice if refused else "",
        "rule": rule_to_json(end.rule),
        "nearest": {"rule": rule_to_json(end.nearest.rule), "failed": list(end.nearest.failed)}
        if end.nearest
        else None,
        "note": end.note,
    }
