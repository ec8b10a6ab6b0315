"""A suggested policy as its author will read it: in canonical form, with the evidence above every rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from bulkhead.dataplane.addresses import Address
from bulkhead.observe.evidence import Coverage, age_text
from bulkhead.observe.scores import DAY_S, Score
from bulkhead.observe.traffic import Seen
from bulkhead.policy.format import format_file

_LISTED_MAX: Final = 40
"""Of what is left out, so many are listed."""


@dataclass(frozen=True, slots=True)
class DraftWorkload:
    """A workload for a program that had none: by unit, or by control group and executable."""

    name: str
    host: str
    unit: str
    cgroup: str
    exe: str


@dataclass(frozen=True, slots=True)
class DraftExternal:
    """The addresses that were seen together."""

    name: str
    addresses: tuple[Address, ...]
    around: tuple[str, ...]
    """Externals of the policy that hold all of them, and more."""


@dataclass(frozen=True, slots=True)
class DraftRule:
    """One source, one destination, one port, with what was seen of it."""

    name: str
    source: str
    destination: str
    port: str
    seen: Seen
    score: Score


@dataclass(frozen=True, slots=True)
class Draft:
    """A whole suggestion."""

    policy: str
    host: str
    made: datetime
    coverage: Coverage
    edges: int
    workloads: tuple[DraftWorkload, ...]
    externals: tuple[DraftExternal, ...]
    rules: tuple[DraftRule, ...]
    left_out: tuple[str, ...]
    any_is_named: bool
    """A rule of the policy is about `any`, which the new workloads join."""


def policy_text(draft: Draft) -> str:
    """The file."""
    lines = [
        *(f"# {_plain(line)}" for line in _header(draft)),
        "apiVersion: bulkhead/v1alpha1",
        "kind: Policy",
        f"metadata: {{name: {_text(draft.policy)}}}",
    ]
    if draft.workloads:
        lines += ["workloads:", *(_workload(one) for one in draft.workloads)]
    if draft.externals:
        lines += ["externals:", *(line for one in draft.externals for line in _external(one))]
    lines += ["allow:", *(line for one in draft.rules for line in _rule(one))]
    return format_file("suggestion", ("\n".join(lines) + "\n").encode()).decode()


def _header(draft: Draft) -> Iterator[str]:
    coverage = draft.coverage
    made = draft.made.strftime("%Y-%m-%dT%H:%MZ")
    yield f"Suggested {made} from what was recorded on {draft.host}. It was seen, not approved: review every rule."
    asked = f"{age_text(coverage.covered_s)} of the {age_text(coverage.asked_s)} that were asked about"
    yield f"Recorded: {asked}. {draft.edges} edges; counts are of events, which are samples."
    for gap in coverage.gaps:
        yield f"INCOMPLETE: {gap}."
    if coverage.covered_s < DAY_S:
        yield "INCOMPLETE: less than a day was recorded; what runs daily, weekly or monthly may not be in it."
    for remark in coverage.notes:
        yield f"Note: {remark}."
    if draft.any_is_named:
        yield "Note: a rule of the policy is about `any`, which the workloads below join."
    if draft.left_out:
        yield "Left out:"
        yield from (f"- {one}" for one in draft.left_out[:_LISTED_MAX])
        if len(draft.left_out) > _LISTED_MAX:
            yield f"- and {len(draft.left_out) - _LISTED_MAX} more"


def _workload(one: DraftWorkload) -> str:
    keys = {"host": one.host, "unit": one.unit, "cgroup": one.cgroup, "exe": one.exe}
    match = ", ".join(f"{key}: {_text(value)}" for key, value in keys.items() if value)
    return f"  {one.name}: {{match: {{{match}}}, mode: observe}}"


def _external(one: DraftExternal) -> Iterator[str]:
    count = len(one.addresses)
    around = f"; all inside {', '.join(one.around)}, which would be wider" if one.around else ""
    yield f"  # {count} address{'' if count == 1 else 'es'} seen{_plain(around)}"
    prefixes = ", ".join(_text(f"{address}/{address.max_prefixlen}") for address in one.addresses)
    yield f"  {one.name}: {{cidr: [{prefixes}]}}"


def _rule(one: DraftRule) -> Iterator[str]:
    yield f"  # {_plain(evidence_text(one))}"
    port = one.port if one.port.isdecimal() else _text(one.port)
    ends = f"from: {_text(one.source)}, to: {_text(one.destination)}"
    yield f"  - {{name: {_text(one.name)}, {ends}, ports: [{port}]}}"


def evidence_text(one: DraftRule) -> str:
    """The score of a rule with all that it rests on."""
    seen = one.seen
    count = "seen once" if seen.count == 1 else f"seen {seen.count} times over {age_text(seen.last - seen.first)}"
    when = f"{_time(seen.first)} to {_time(seen.last)}" if seen.count > 1 else _time(seen.first)
    known = len(seen.processes)
    processes = f", {known} process{'' if known == 1 else 'es'}" if known else ""
    reasons = [reason for reason in one.score.reasons if reason != count]
    return f"{one.score.level}: {count} ({when}){processes}" + "".join(f"; {reason}" for reason in reasons)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _plain(text: str) -> str:
    """Text as a comment can hold it: in one line, and without a character that a terminal would obey."""
    return "".join(one if one.isprintable() else f"\\u{{{ord(one):x}}}" for one in text)


def _text(value: str) -> str:
    """A YAML text that means nothing else; the canonical form drops quotes that are not needed."""
    return json.dumps(value, ensure_ascii=False)
