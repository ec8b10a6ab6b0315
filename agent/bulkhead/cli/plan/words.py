"""The words of a plan, the same in every form of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from bulkhead.cli.plan.plan import Plan, stood_before
from bulkhead.dataplane.cluster_difference import SELECTS
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.difference import FOREVER, Kind, Span
from bulkhead.dataplane.replay import Edge, Effect
from bulkhead.observe.evidence import Coverage, age_text
from bulkhead.policy.alterations import CLUSTER_RULE, RULE_KINDS, Altered
from bulkhead.policy.authors import Author
from bulkhead.policy.ports import ICMP, ICMP_TYPES, ICMPV6, PORT_MAX, TCP, UDP

SHOWN: Final = 4
"""Names or prefixes of one row that are written out."""
MARKS: Final = {Kind.GAINED: "+", Kind.LOST: "-", Kind.RETIMED: "~"}
WHAT: Final = {"added": "+", "removed": "-", "changed": "~"}
SHORT: Final = 7
"""Characters of a commit id that are shown."""

_SAME: Final = "the same for everybody"

_SUFFIX: Final = {TCP: "", UDP: "/udp"}
_WHOLE: Final = {TCP: "any/tcp", UDP: "any/udp", ICMP: "icmp", ICMPV6: "icmp"}

# Ports and times


def port_text(protocol: int, first: int, last: int) -> str:
    """A range of ports as an author would write it."""
    if (first, last) == (0, PORT_MAX):
        return _WHOLE.get(protocol, f"proto/{protocol}")
    if protocol in (ICMP, ICMPV6):
        return _icmp_text(protocol, first, last)
    numbers = str(first) if first == last else f"{first}-{last}"
    return numbers + _SUFFIX.get(protocol, f"/proto-{protocol}")


def _icmp_text(protocol: int, first: int, last: int) -> str:
    position = 0 if protocol == ICMP else 1
    names = {numbers[position] << 8: name for name, numbers in ICMP_TYPES.items()}
    if first in names and last == first | 255:
        return f"icmp/{names[first]}"
    family = "icmp" if protocol == ICMP else "icmpv6"
    return f"{family} types {first >> 8}-{last >> 8}"


def span_text(protocol: int, span: Span) -> str:
    """Ports that change, with their deadlines."""
    text = port_text(protocol, span.first, span.last)
    if span.kind is Kind.RETIMED:
        return f"{text} (until {time_text(span.before)} -> {time_text(span.after)})"
    until = span.after if span.kind is Kind.GAINED else span.before
    return text if until == FOREVER else f"{text} (until {time_text(until)})"


def time_text(until: float) -> str:
    """A time in UTC."""
    if until == FOREVER:
        return "any time"
    return datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Things


def counted(number: int, noun: str) -> str:
    """`1 flow`, `1,000 flows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def few(texts: Sequence[str]) -> str:
    """Some of many."""
    rest = len(texts) - SHOWN
    return ", ".join(texts) if rest <= 1 else f"{', '.join(texts[:SHOWN])} and {rest} more"


def rule_text(rule: RuleInfo) -> str:
    """A rule with its place; what nobody's rule says has none."""
    return rule.name if rule.kind == "default" else f"{rule.name} {rule.loc.short}"


def reason_text(rule: RuleInfo, kind: Kind) -> str:
    """A rule as the reason of a change."""
    verb = {"deny": "denied by ", SELECTS: "selected by "}.get(rule.kind, "")
    return f"{'was ' if verb and kind is Kind.GAINED else ''}{verb}{rule_text(rule)}"


def author_text(author: Author, kind: Kind = Kind.GAINED) -> str:
    """Who wrote a line; or took it out, for what is lost."""
    day = datetime.fromtimestamp(author.time, UTC).strftime("%Y-%m-%d")
    verb = "removed by" if kind is Kind.LOST else "by"
    return f"{verb} {author.name}, {day}, {author.commit[:SHORT]}"


def author_of_rule(plan: Plan, rule: RuleInfo, kind: Kind) -> str:
    """Who brought a change by a rule; empty when that is not known, or the rule stands as it did."""
    if rule.kind == "default":
        return ""
    is_old = stood_before(rule, kind)
    author = (plan.authors.removed if is_old else plan.authors.written).get(rule.loc)
    return author_text(author, Kind.LOST if is_old else Kind.GAINED) if author else ""


def edge_rule(plan: Plan, edge: Edge) -> list[str]:
    """The rule that allows an edge, and who brought it or took it away."""
    if edge.rule is None:
        return []
    author = author_of_rule(plan, edge.rule, Kind.LOST if edge.effect is Effect.BREAKS else Kind.GAINED)
    return [rule_text(edge.rule), author] if author else [rule_text(edge.rule)]


def author_of(plan: Plan, one: Altered) -> str:
    """Who wrote something as it is, or removed it; empty when that is not known."""
    written = plan.authors.written.get(one.after) if one.after else None
    if written is not None:
        return author_text(written)
    removed = plan.authors.removed.get(one.before) if one.before else None
    return author_text(removed, Kind.LOST) if removed else ""


def altered_text(one: Altered) -> str:
    """What is written differently about a thing."""
    if one.what == "changed":
        texts = [f"{detail.field}: {detail.before or 'none'} -> {detail.after or 'none'}" for detail in one.details]
    else:
        texts = [f"{detail.field}: {detail.before or detail.after}" for detail in one.details]
    if one.requests:
        texts.insert(0, f"requests {one.requests}")
    return "; ".join(texts)


def altered_place(one: Altered) -> str:
    """Where it stands, or stood."""
    loc = one.after or one.before
    return loc.short if loc else ""


# Traffic


def traffic_text(edges: Iterable[Edge]) -> str:
    """What becomes of recorded edges, in one line; empty for none."""
    flows: Counter[str] = Counter()
    talks: Counter[str] = Counter()
    for edge in edges:
        words = effect_words(edge)
        flows[words] += edge.flows
        talks[words] += len(edge.talks)
    return "; ".join(f"{words} {_amounts(flows[words], talks[words])}" for words in flows)


def effect_words(edge: Edge) -> str:
    """`BREAKS`, `would break`, `UNBLOCKS`, `would unblock`: the small ones where observe mode lets it pass anyway."""
    word = "BREAK" if edge.effect is Effect.BREAKS else "UNBLOCK"
    return f"{word}S" if edge.enforced else f"would {word.lower()}"


def _amounts(flows: int, talks: int) -> str:
    parts = [counted(flows, "flow")] if flows or not talks else []
    parts += [counted(talks, "live socket")] if talks else []
    return ", ".join(parts)


def edge_ends(edge: Edge) -> tuple[str, str]:
    """Both ends, with some addresses of what is outside, and who they are to the commit that does not allow it."""
    return (
        _end_text(edge, edge.source, edge.source_elsewhere),
        _end_text(edge, edge.destination, edge.destination_elsewhere),
    )


def _end_text(edge: Edge, name: str, elsewhere: str) -> str:
    when = "after" if edge.effect is Effect.BREAKS else "before"
    return f"{name} ({when}: {elsewhere})" if elsewhere else name


def coverage_text(one: Coverage) -> str:
    """How much of what happened is known."""
    if not one.asked_s:
        return f"live sockets of {one.host or 'the agent'}"
    return f"{age_text(one.covered_s)} of {age_text(one.asked_s)} on {one.host}"


def data_text(plan: Plan) -> str:
    """What the answer rests on; empty when nothing recorded was asked about."""
    if plan.replay is None:
        return ""
    found = plan.replay
    parts = [", ".join(map(coverage_text, plan.coverage))]
    parts.append(f"{counted(found.flows, 'record')} and {counted(found.talks, 'live socket')} judged")
    parts.append(f"incomplete: {', '.join(plan.gaps)}" if plan.gaps else "complete")
    notes = [note for one in plan.coverage for note in one.notes]
    if found.by_name:
        notes.append(f"{found.by_name:,} judged by a recorded name alone")
    return "; ".join([*parts, *notes])


def checks_text(plan: Plan) -> str:
    """The tests and invariants of the commit after: without them there is no plan."""
    return f"tests {plan.tests}/{plan.tests}  never {plan.nevers}/{plan.nevers}"


# The whole


def summary(plan: Plan) -> str:
    """One line for all of it."""
    if not plan:
        return "no changes"
    rules = Counter(one.what for one in plan.found.altered if one.kind in (*RULE_KINDS, CLUSTER_RULE))
    reach = Counter(one.kind for one in plan.found.reach)
    idle = sum(not one.effect for one in plan.found.altered)
    groups = [
        ("rules", [f"{rules[what]} {what}" for what in ("added", "changed", "removed") if rules[what]]),
        ("reach", [f"{reach[kind]} {kind.value}" for kind in Kind if reach[kind]] or [_SAME]),
    ]
    if plan.cluster is not None:
        inside = Counter(one.kind for one in plan.cluster.reach)
        counts = [f"{inside[kind]} {kind.value}" for kind in Kind if inside[kind]]
        groups.append(("between pods", counts or [_SAME]))
    parts = [f"{name} {', '.join(counts)}" for name, counts in groups if counts]
    parts += [f"{idle} rules changed without effect"] if idle else []
    parts += [f"{len(plan.breaking)} BREAKING"] if plan.breaking else []
    return "; ".join(parts)
