"""Who judges a conversation on its way, one after the other, and what each says: by the model, or of a probe. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from bulkhead.abi import Direction
from bulkhead.observe.answer import ALLOW, DENY, REFUSALS, WOULD_DENY, Answer, EndAnswer, because
from bulkhead.observe.explain import Explanation, is_of_an_answer, is_of_the_wire, nearest_text
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.names import short
from bulkhead.observe.neighbours import Neighbours
from bulkhead.observe.question import Kind, Subject
from bulkhead.policy.nodes import Node

ELSEWHERE: Final = "elsewhere"
"""It is not for this host to say."""
BY_ADDRESS: Final = "by address"
SAYS_WHO: Final = "says who"
"""Both ends will prove who they are."""
VERIFIED: Final = "verified"
NOTHING: Final = "nothing"
NOT_REACHED: Final = "not reached"
UNKNOWN: Final = "unknown"

CONNECTED, ANSWERED, RESET, REFUSED_CALL, TIMEOUT = "connected", "answered", "reset", "refused", "timeout"
OUTCOMES: Final = (CONNECTED, ANSWERED, RESET, REFUSED_CALL, TIMEOUT)
"""What a probe can come to. `answered` is a datagram's `connected`; `refused`: the call failed with EPERM."""


@dataclass(frozen=True, slots=True)
class Step:
    """One judge on the way."""

    judge: str
    """A workload, a node, or whatever else is there."""
    what: str
    """`egress`, `wire`, `ingress`."""
    verdict: str
    """`allow`, `deny`, `would-deny`, or one of the words above."""
    because: str
    rule: str = ""
    """Name and place of the rule that allows it."""
    nearest: str = ""
    """Name, place and failed clauses of the rule that comes closest."""
    ms: float | None = None
    """Since the probe began; None: not measured."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How this host stands with the others."""

    nodes: Neighbours
    mute: str
    """Why it says nothing on the wire; empty: it speaks."""
    has_key: Callable[[Node], bool]


@dataclass(frozen=True, slots=True)
class Probed:
    """What became of a probe."""

    outcome: str
    """One of OUTCOMES, or the name of another error."""
    ms: float
    record: FlowRecord | None
    """The verdict on it; None: nobody on this host has judged it, or it was not heard."""
    explanation: Explanation | None
    """Of the record."""


def model(answer: Answer, source: Subject, destination: Subject, wire: Wire) -> list[Step]:
    """What each judge on the way says by the policy in force here."""
    steps = [_end(answer.source_end)]
    between = _between(answer, source, destination, wire)
    return [*steps, *([between] if between is not None else []), _end(answer.destination_end)]


def _end(end: EndAnswer) -> Step:
    rule = f"{end.rule.name}  {end.rule.loc.short}" if end.rule is not None and end.verdict == ALLOW else ""
    text = "; ".join(dict.fromkeys(filter(None, ("" if rule else because(end), end.note))))
    what = "egress" if end.direction == Direction.EGRESS else "ingress"
    nearest = nearest_text(end.nearest) if end.nearest is not None and end.verdict in REFUSALS else ""
    return Step(short(end.name), what, end.verdict or ELSEWHERE, text, rule, nearest)


def _between(answer: Answer, source: Subject, destination: Subject, wire: Wire) -> Step | None:
    """What happens between two hosts; None when both ends can only be on this one."""
    if answer.question.protocol not in ("tcp", "udp"):
        return Step("wire", "wire", BY_ADDRESS, f"{answer.question.protocol} carries no identity")
    far = destination if destination.address is not None or source.address is None else source
    if far.address is not None:
        return _at_address(far, wire)
    if far.workload is None:
        return None if far.kind is Kind.HOST else Step("wire", "wire", BY_ADDRESS, f"`{far.name}` is known by address")
    hosts = wire.nodes.names_hosting(far.workload.match)
    if not hosts or wire.mute:
        return None if far.workload.local else Step("wire", "wire", NOTHING, wire.mute or "no node may host it")
    return Step("wire", "wire", SAYS_WHO, f"on another node, if that is {hosts}")


def _at_address(far: Subject, wire: Wire) -> Step:
    assert far.address is not None
    node = wire.nodes.at(far.address)
    if wire.mute:
        return Step("wire", "wire", BY_ADDRESS, f"this host says nothing on the wire: {wire.mute}")
    if node is None:
        return Step("wire", "wire", BY_ADDRESS, f"no registered node is at {far.address}")
    if node.key is None:
        return Step(node.name, "wire", BY_ADDRESS, "the node runs no agent: it is the entity `legacy`")
    if not wire.has_key(node):
        return Step(node.name, "wire", DENY, "no key is shared with the node")
    return Step(node.name, "wire", SAYS_WHO, "a key is shared with the node: each end is told who the other is")


def probe(expected: Sequence[Step], probed: Probed) -> list[Step]:
    """What each judge on the way said of a probe; `expected` is what the model says of it."""
    by_kind = {step.what: step for step in expected}
    steps = [_left(by_kind["egress"], probed), _over_wire(by_kind.get("wire"), probed), _arrived(by_kind, probed)]
    return [step for step in steps if step is not None]


def verdict(probed: Probed) -> str:
    """What the probe comes to: a verdict, or UNKNOWN."""
    if probed.outcome in (CONNECTED, ANSWERED):
        return probed.record.verdict if probed.record is not None and probed.record.verdict == WOULD_DENY else ALLOW
    refused = probed.outcome == REFUSED_CALL or (probed.record is not None and probed.record.verdict == DENY)
    return DENY if refused else UNKNOWN


def _judged(step: Step, probed: Probed) -> Step:
    """A step with what was recorded in place of what the model says."""
    found = probed.explanation
    if found is None:
        return step
    refused = found.verdict in REFUSALS
    text = "; ".join(filter(None, (found.because if refused else "", found.note)))
    rule = "" if refused else found.rule
    return replace(step, verdict=found.verdict, because=text, rule=rule, nearest=found.nearest, ms=probed.ms)


def _has_refused_here(probed: Probed) -> bool:
    """Whether the caller's end refused it before anything left, by policy or for lack of what the wire needs."""
    record = probed.record
    if record is None or record.direction != "egress" or record.told_by or record.verdict != DENY:
        return probed.outcome == REFUSED_CALL
    return not _was_answered(record)


def _was_answered(record: FlowRecord) -> bool:
    """Whether what was refused is the answer of another node."""
    return bool(record.node) and (record.cut or is_of_an_answer(record))


def _left(step: Step, probed: Probed) -> Step:
    record = probed.record
    if record is not None and record.direction == "egress" and not record.told_by and not is_of_the_wire(record):
        return _judged(step, probed)
    if probed.outcome == REFUSED_CALL:
        return replace(step, verdict=DENY, because="the call failed with EPERM", rule="", ms=probed.ms)
    if record is not None and is_of_the_wire(record):
        return replace(step, because="policy lets it leave") if step.verdict == ALLOW else step
    return replace(step, because="it left") if step.verdict == ALLOW else step


def _over_wire(step: Step | None, probed: Probed) -> Step | None:
    record = probed.record
    if _has_refused_here(probed) and not (record is not None and is_of_the_wire(record)):
        return replace(step, verdict=NOT_REACHED, because="") if step is not None else None
    if record is not None and record.node:
        step = replace(step or Step("wire", "wire", "", ""), judge=record.node)
        if record.told_by:
            return replace(
                step, verdict=VERIFIED, because="the node believed who calls, and its refusal is authenticated"
            )
        if is_of_the_wire(record):
            return _judged(step, probed)
        if record.destination_spiffe_id:
            text = f"`{short(record.destination)}` answered, proven by {record.node}"
            return replace(step, verdict=VERIFIED, because=text)
        if step.verdict != BY_ADDRESS:
            return replace(step, verdict=BY_ADDRESS, because="whoever answered is known by the address alone")
    if step is None or step.verdict != SAYS_WHO:
        return step
    if probed.outcome in (CONNECTED, ANSWERED):
        return replace(step, verdict=UNKNOWN, because="what came back was not heard of here")
    if probed.outcome == TIMEOUT:
        return replace(step, verdict=NOTHING, because=f"nothing came back in {probed.ms / 1000:.1f} s")
    return replace(step, verdict=NOTHING, because="nothing came back that proves who sent it")


def _arrived(expected: dict[str, Step], probed: Probed) -> Step:
    step, record = expected["ingress"], probed.record
    if record is not None and record.told_by:
        there = f"generation {record.generation}" + (f", commit {record.commit[:7]}" if record.commit else "")
        told = _judged(replace(step, judge=f"{short(record.destination)} on {record.told_by}"), probed)
        return replace(told, because=f"{told.because} ({there})")
    if record is not None and record.direction == "ingress":
        return _judged(step, probed)
    if record is not None and record.destination_spiffe_id:
        step = replace(step, judge=short(record.destination) + (f" on {record.node}" if record.node else ""))
    if _has_refused_here(probed):
        return replace(step, verdict=NOT_REACHED, because="", rule="", nearest="")
    if probed.outcome in (CONNECTED, ANSWERED):
        return replace(step, verdict=ALLOW, because=f"it was let in, and {probed.outcome}", nearest="", ms=probed.ms)
    if record is not None and record.verdict == DENY:
        return replace(step, verdict=ALLOW, because="it was let in: the answer came back", nearest="")
    text = {
        RESET: "a reset that proves nothing: nobody listens there, or something on the way refused it",
        TIMEOUT: "nothing tells what became of it: what proves nothing is dropped without a word",
    }.get(probed.outcome, f"the probe failed with {probed.outcome}")
    return replace(step, verdict=UNKNOWN, because=text, rule="", nearest="", ms=probed.ms)


def steps_to_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The judges as the control socket and `-o json` show them, numbered from 1."""
    return [{"step": number, **asdict(step)} for number, step in enumerate(steps, 1)]
