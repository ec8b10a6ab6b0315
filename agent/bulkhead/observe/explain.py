"""Recorded verdicts in words: what happened, where, by which rule, and what would have allowed it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bulkhead.abi import DropReason, Identity, name_of
from bulkhead.observe.answer import (
    DENY,
    REFUSALS,
    WOULD_DENY,
    Answer,
    EndAnswer,
    answer_to_json,
    because,
    can,
    rule_to_json,
)
from bulkhead.observe.flows import FlowRecord, record_to_json
from bulkhead.observe.names import short
from bulkhead.observe.nearest import Nearest, find_nearest
from bulkhead.observe.question import Directory, Kind, Question, Subject, recorded
from bulkhead.observe.reasons import reason_named
from bulkhead.observe.tables import Tables, tables_of
from bulkhead.policy.model import PortSpec

EVENT_LOSSES = ("event-ring", "event-rate", "log")
"""Losses that can hide a verdict from the records."""

_OF_ANSWERS = tuple(
    name_of(DropReason, reason)
    for reason in DropReason
    if reason.name.startswith("WIRE_") and reason not in (DropReason.WIRE_NO_KEY, DropReason.WIRE_NO_ROOM)
)
"""What can be wrong with the answer to an opening; the others keep the opening from leaving."""

Wanted = Callable[[FlowRecord], bool]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A recorded verdict in words. Every field is one line; empty ones have nothing to say."""

    verdict: str
    count: int
    """Events seen, which are samples."""
    first_seen: float
    last_seen: float
    source: str
    destination: str
    where: str
    because: str
    rule: str
    """Name and place of the rule that decided."""
    nearest: str
    """Name, place and failed clauses of the rule that comes closest."""
    since: str
    """The commit it was judged by."""
    note: str
    """What keeps this explanation from saying more."""
    advice: str
    data: str
    complete: bool


def explain(record: FlowRecord, tables: Tables | None, lost: Mapping[str, int], host: str = "") -> Explanation:
    """Why it was judged so. `tables` are those of the record's generation, or the latest; None: no longer known.

    For what another node told they are those of the commit that it enforces, if this host knows it.
    """
    reason = reason_named(record.reason)
    refused = record.verdict in REFUSALS
    complete, data = completeness(lost)
    by_rule = refused and record.reason == "policy"
    nearest = nearest_of(record, tables) if by_rule and tables is not None else None
    return Explanation(
        verdict=record.verdict,
        count=record.count,
        first_seen=record.first_seen,
        last_seen=record.last_seen,
        source=_end(record, short(record.source), record.source_spiffe_id, record.source_address, "source"),
        destination=_destination(record),
        where=_where(record, host),
        because=reason.because if refused else f"allowed by {record.rule or 'a rule no longer known'}",
        rule="  ".join(filter(None, (record.rule, record.rule_place))),
        nearest=nearest_text(nearest) if nearest else "",
        since=_since(record),
        note=_unknown_commit(record) if by_rule and tables is None else "",
        advice=_advice(record, reason.advice) if refused else "",
        data=data,
        complete=complete,
    )


def nearest_of(record: FlowRecord, tables: Tables) -> Nearest | None:
    """The rule that comes closest to allowing what was recorded."""
    spec, text = _recorded_port(record)
    source = Subject(record.source, Kind.NOBODY, (record.source_identity,))
    # What nobody has answered was meant for some workload, or for the address.
    meant = (int(Identity.PEER),) if record.is_unanswered else ()
    ends = [Subject(record.destination, Kind.NOBODY, (one,)) for one in (*meant, record.destination_identity)]
    found = [find_nearest(tables, source, end, spec, text, record.last_seen) for end in ends]
    return min((one for one in found if one is not None), key=lambda one: len(one.failed), default=None)


def nearest_text(nearest: Nearest) -> str:
    """`shop/api-db  shop.yaml:22@3f2c1ab  from: api, not web`."""
    return "  ".join((str(nearest.rule.name), nearest.rule.loc.short, "; ".join(nearest.failed)))


def _recorded_port(record: FlowRecord) -> tuple[PortSpec, str]:
    number = {"tcp": 6, "udp": 17, "icmp": 58 if ":" in record.destination_address else 1}.get(record.protocol)
    if number is None:
        return PortSpec(int(record.protocol.removeprefix("proto/")), 0, 65535, record.protocol), record.protocol
    return PortSpec(number, record.port, record.port, ""), port_text(record.protocol, record.port)


def port_text(protocol: str, port: int) -> str:
    """A port as policy writes it: `443`, `53/udp`, `icmp type 8`, `proto/47`."""
    if protocol == "tcp":
        return str(port)
    if protocol == "icmp":
        return f"icmp type {port >> 8}"
    return f"{port}/{protocol}" if protocol == "udp" else protocol


def _end(record: FlowRecord, name: str, spiffe_id: str, address: str, end: str) -> str:
    is_remote = end == ("source" if record.direction == "ingress" else "destination")
    parts = [f"{name} on {record.node}" if record.node and is_remote else name, spiffe_id or _address(address)]
    if end == record.process_end and record.pid:
        parts += [f"pid {record.pid}", record.exe or record.comm, record.unit or record.cgroup, f"uid {record.uid}"]
    elif end != record.process_end and record.peer_pid:
        parts.append(f"pid {record.peer_pid}")
    return "  ".join(filter(None, parts))


def _destination(record: FlowRecord) -> str:
    separator = " " if record.protocol == "icmp" else ":"
    name = f"{short(record.destination)}{separator}{port_text(record.protocol, record.port)}"
    return _end(record, name, record.destination_spiffe_id, record.destination_address, "destination")


def _address(text: str) -> str:
    """An address as it is written beside a name; that of a socket that has none yet is left out."""
    if text in ("::", "0.0.0.0"):
        return ""
    return f"[{text}]" if ":" in text else text


def _where(record: FlowRecord, host: str) -> str:
    if record.told_by:
        commit = f", commit {record.commit[:7]}" if record.commit else ""
        there = f"ingress at {short(record.destination)} on {record.told_by}"
        return f"{there}, which said so (generation {record.generation}{commit}); this host let it leave"
    at = f"{record.direction} at {short(record.local)}" + (f" on {host}" if host else "")
    if record.verdict == WOULD_DENY:
        return f"{at}; it passed, since {short(record.local)} is in observe mode"
    if record.verdict != DENY:
        return at
    if record.direction == "egress" and record.node and (record.cut or is_of_an_answer(record)):
        return f"{at}; refused when {record.node} answered" + (", or cut later" if record.cut else "")
    if record.cut:
        return f"{at}; an open conversation was cut"
    if record.hook == "call":
        return f"{at}; the call failed with EPERM, no packet was made"
    if record.direction == "egress":
        return f"{at}; {short(record.destination)} never saw it"
    if record.source_spiffe_id and record.node and record.protocol == "tcp" and not is_of_the_wire(record):
        return f"{at}; it arrived from {record.node}, which is told why it was refused"
    return f"{at}; it arrived and was dropped"


def is_of_the_wire(record: FlowRecord) -> bool:
    """Whether it was refused for what a packet says of its sender, or does not say, and not by policy."""
    return record.reason.startswith("wire-")


def is_of_an_answer(record: FlowRecord) -> bool:
    """Whether what was wrong is what another node answered."""
    return record.reason in _OF_ANSWERS


def _since(record: FlowRecord) -> str:
    at = f" at {record.told_by}" if record.told_by else ""
    generation = f"generation {record.generation}{at}" if record.generation else ""
    return "  ".join(filter(None, (record.commit[:7], generation)))


def _unknown_commit(record: FlowRecord) -> str:
    if not record.told_by:
        return ""
    if not record.commit:
        return f"{record.told_by} did not say which commit it enforces: ask there which rule comes closest"
    other = f"{record.told_by} enforces another commit ({record.commit[:7]}) than this host"
    return f"{other}: ask there which rule comes closest"


def _advice(record: FlowRecord, text: str) -> str:
    """What policy refuses is put right in git; all else where it was refused."""
    return f"on {record.told_by}: {text}" if record.told_by and record.reason not in ("policy", "expired") else text


def completeness(lost: Mapping[str, int]) -> tuple[bool, str]:
    """Whether records hold every verdict, and how to say it."""
    missing = {source: lost.get(source, 0) for source in EVENT_LOSSES if lost.get(source, 0)}
    if not missing:
        return True, "complete: 0 events lost"
    named = ", ".join(f"{count:,} {source}" for source, count in missing.items())
    return False, f"incomplete: {sum(missing.values()):,} events lost ({named}); counters are exact all the same"


def decisive(records: Sequence[FlowRecord]) -> FlowRecord | None:
    """The record that says how it stands: of each end the latest counts, and a refusal beats an allow."""
    latest: dict[str, FlowRecord] = {}
    for record in sorted(records, key=lambda one: one.last_seen):
        latest[record.direction] = record
    rank = {DENY: 0, WOULD_DENY: 1}
    ordered = sorted(latest.values(), key=lambda one: (rank.get(one.verdict, 2), -one.last_seen))
    return ordered[0] if ordered else None


def mismatch(record: FlowRecord | None, answer: Answer) -> str:
    """What to say when a record of the very commit contradicts the model: a bug, never to be glossed over."""
    if record is None or record.reason not in ("none", "policy") or not _is_of_commit(record, answer.commit):
        return ""
    judged_here = record.direction == "egress" and not record.told_by
    end = answer.source_end if judged_here else answer.destination_end
    if not end.verdict or (end.verdict in REFUSALS) == (record.verdict in REFUSALS):
        return ""
    return f"BH0900 model/kernel mismatch: the kernel said {record.verdict}, the model says {end.verdict}"


def _is_of_commit(record: FlowRecord, commit: str) -> bool:
    return commit.startswith(record.commit or "-") if record.told_by else record.commit == commit


def why(
    records: Sequence[FlowRecord],
    answer: Answer,
    tables: Tables | None,
    lost: Mapping[str, int],
    host: str = "",
    of_commit: Callable[[str], Tables | None] = lambda _: None,
) -> dict[str, Any]:
    """What `bulkhead why` shows: the model's answer, the records, and the explanation of the decisive one.

    `of_commit` gives the tables of a commit by its first digits, for what another node told.
    """
    record = decisive(records)
    judged_by = of_commit(record.commit) if record is not None and record.told_by else tables
    explanation = explain(record, judged_by, lost, host) if record else None
    complete, data = completeness(lost)
    return {
        "answer": answer_to_json(answer),
        "records": [record_to_json(one) for one in records],
        "explanation": explanation_to_json(explanation) if explanation else None,
        "complete": complete,
        "data": data,
        "mismatch": mismatch(record, answer),
    }


def asked_about(tables: Tables, question: Question, aliases: Mapping[str, int] | None = None) -> Wanted:
    """The predicate that picks the records of a question. Raises UsageError as `can` does."""
    directory = Directory(tables, aliases)
    ends = directory.subject(question.source), directory.subject(question.destination)
    return recorded(*ends, question.specs())


def explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    """An explanation as the control socket and `-o json` show it."""
    return {name: getattr(explanation, name) for name in Explanation.__slots__}


__all__ = [
    "Answer", "EndAnswer", "Explanation", "Question", "Tables", "answer_to_json", "asked_about", "because", "can",
    "completeness", "decisive", "explain", "explanation_to_json", "is_of_an_answer", "is_of_the_wire", "mismatch",
    "nearest_of", "nearest_text", "port_text", "rule_to_json", "tables_of", "why",
]  # fmt: skip
