"""Recorded verdicts in words: what happened, where, by which rule, and what would have allowed it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    advice: str
    data: str
    complete: bool


def explain(record: FlowRecord, tables: Tables | None, lost: Mapping[str, int], host: str = "") -> Explanation:
    """Why it was judged so. `tables` are those of the record's generation, or the latest; None: no longer known."""
    reason = reason_named(record.reason)
    refused = record.verdict in REFUSALS
    complete, data = completeness(lost)
    nearest = nearest_of(record, tables) if refused and tables is not None and record.reason == "policy" else None
    return Explanation(
        verdict=record.verdict,
        count=record.count,
        first_seen=record.first_seen,
        last_seen=record.last_seen,
        source=_end(record, short(record.source), record.source_spiffe_id, _address(record.source_address), "source"),
        destination=_destination(record),
        where=_where(record, host),
        because=reason.because if refused else f"allowed by {record.rule or 'a rule no longer known'}",
        rule="  ".join(filter(None, (record.rule, record.rule_place))),
        nearest=nearest_text(nearest) if nearest else "",
        since=_since(record),
        advice=reason.advice if refused else "",
        data=data,
        complete=complete,
    )


def nearest_of(record: FlowRecord, tables: Tables) -> Nearest | None:
    """The rule that comes closest to allowing what was recorded."""
    spec, text = _recorded_port(record)
    source = Subject(record.source, Kind.NOBODY, (record.source_identity,))
    destination = Subject(record.destination, Kind.NOBODY, (record.destination_identity,))
    return find_nearest(tables, source, destination, spec, text, record.last_seen)


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
    parts = [name, spiffe_id or address]
    if end == record.process_end and record.pid:
        parts += [f"pid {record.pid}", record.exe or record.comm, record.unit or record.cgroup, f"uid {record.uid}"]
    elif end != record.process_end and record.peer_pid:
        parts.append(f"pid {record.peer_pid}")
    return "  ".join(filter(None, parts))


def _destination(record: FlowRecord) -> str:
    separator = " " if record.protocol == "icmp" else ":"
    name = f"{short(record.destination)}{separator}{port_text(record.protocol, record.port)}"
    return _end(record, name, record.destination_spiffe_id, _address(record.destination_address), "destination")


def _address(text: str) -> str:
    """An address as it is written beside a name; that of a socket that has none yet is left out."""
    if text in ("::", "0.0.0.0"):
        return ""
    return f"[{text}]" if ":" in text else text


def _where(record: FlowRecord, host: str) -> str:
    at = f"{record.direction} at {short(record.local)}" + (f" on {host}" if host else "")
    if record.verdict == WOULD_DENY:
        return f"{at}; it passed, since {short(record.local)} is in observe mode"
    if record.verdict != DENY:
        return at
    if record.cut:
        return f"{at}; an open conversation was cut"
    if record.hook == "call":
        return f"{at}; the call failed with EPERM, no packet was made"
    if record.direction == "egress":
        return f"{at}; {short(record.destination)} never saw it"
    return f"{at}; it arrived and was dropped"


def _since(record: FlowRecord) -> str:
    generation = f"generation {record.generation}" if record.generation else ""
    return "  ".join(filter(None, (record.commit[:7], generation)))


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
    if record is None or record.commit != answer.commit or record.reason not in ("none", "policy"):
        return ""
    end = answer.source_end if record.direction == "egress" else answer.destination_end
    if not end.verdict or (end.verdict in REFUSALS) == (record.verdict in REFUSALS):
        return ""
    return f"BH0900 model/kernel mismatch: the kernel said {record.verdict}, the model says {end.verdict}"


def why(
    records: Sequence[FlowRecord], answer: Answer, tables: Tables | None, lost: Mapping[str, int], host: str = ""
) -> dict[str, Any]:
    """What `bulkhead why` shows: the model's answer, the records, and the explanation of the decisive one."""
    record = decisive(records)
    explanation = explain(record, tables, lost, host) if record else None
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
    "completeness", "decisive", "explain", "explanation_to_json", "mismatch", "nearest_of", "nearest_text", "port_text",
    "rule_to_json", "tables_of", "why",
]  # fmt: skip
