"""A plan as people and programs read it: tables, Markdown for a pull request, JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bulkhead.cli.output import cell, safe
from bulkhead.dataplane.difference import FOREVER, REFUSED, Difference, Kind, Reach, Span
from bulkhead.errors import Loc
from bulkhead.policy.ports import ICMP, ICMP_TYPES, ICMPV6, PORT_MAX, TCP, UDP

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from bulkhead.dataplane.compile import RuleInfo
    from bulkhead.policy.alterations import Altered
    from bulkhead.policy.model import Network

SHOWN: Final = 4
"""Names or prefixes of one row that are written out."""

MARKS: Final = {Kind.GAINED: "+", Kind.LOST: "-", Kind.RETIMED: "~"}
_STYLES: Final = {Kind.GAINED: "green", Kind.LOST: "red", Kind.RETIMED: "yellow"}
_WHAT: Final = {"added": "+", "removed": "-", "changed": "~"}
_SUFFIX: Final = {TCP: "", UDP: "/udp"}
_WHOLE: Final = {TCP: "any/tcp", UDP: "any/udp", ICMP: "icmp", ICMPV6: "icmp"}


class Row(NamedTuple):
    """Reach that changes alike: every source with every destination."""

    kind: Kind
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: str
    rules: tuple[RuleInfo, ...]


# Words


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


def _span_text(protocol: int, span: Span) -> str:
    text = port_text(protocol, span.first, span.last)
    if span.kind is Kind.RETIMED:
        return f"{text} (until {_time(span.before)} -> {_time(span.after)})"
    until = span.after if span.kind is Kind.GAINED else span.before
    return text if until == FOREVER else f"{text} (until {_time(until)})"


def _time(until: float) -> str:
    if until == FOREVER:
        return "any time"
    return datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _few(texts: Sequence[str]) -> str:
    rest = len(texts) - SHOWN
    return ", ".join(texts) if rest <= 1 else f"{', '.join(texts[:SHOWN])} and {rest} more"


def _rule_text(rule: RuleInfo) -> str:
    return f"{rule.name} {rule.loc.short}"


def _end(name: str, one: Reach) -> str:
    if name.startswith("within "):
        return f"{name} ({_few([str(network) for network in one.addresses])})"
    return name


# Rows


def rows(found: Difference) -> list[Row]:
    """The reach that changes, in as few rows as say it exactly, new reach first."""
    ports: dict[tuple[Any, ...], dict[str, None]] = defaultdict(dict)
    for one in found.reach:
        key = (one.kind, _end(one.source, one), _end(one.destination, one), one.rules)
        ports[key].update(dict.fromkeys(_span_text(one.protocol, span) for span in one.ports))
    sources: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for (kind, source, destination, rules), texts in ports.items():
        sources[kind, destination, ", ".join(texts), rules].append(source)
    destinations: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for (kind, destination, text, rules), names in sources.items():
        destinations[kind, tuple(names), text, rules].append(destination)
    made = (Row(kind, names, tuple(ends), text, rules) for (kind, names, text, rules), ends in destinations.items())
    return sorted(made, key=lambda row: (list(Kind).index(row.kind), row.sources, row.destinations, row.ports))


def summary(found: Difference) -> str:
    """One line for all of it."""
    counts = [(sum(one.kind is kind for one in found.reach), kind.value) for kind in Kind]
    idle = sum(not one.effect for one in found.altered)
    parts = [f"{count} {word}" for count, word in counts if count]
    parts += [f"{idle} rules changed without effect"] if idle else []
    if not found:
        return "no changes"
    return ", ".join(parts) if parts else "nobody's reach changes"


def _details(one: Altered) -> str:
    if one.what == "changed":
        return "; ".join(
            f"{detail.field}: {detail.before or 'none'} -> {detail.after or 'none'}" for detail in one.details
        )
    return "; ".join(f"{detail.field}: {detail.before or detail.after}" for detail in one.details)


def _place(one: Altered) -> str:
    loc = one.after or one.before
    return loc.short if loc else ""


def _address_lines(found: Difference) -> Iterator[tuple[str, str, str]]:
    for change in found.addresses:
        for mark, networks in (("+", change.gained), ("-", change.lost)):
            if networks:
                yield mark, change.external, _few([str(network) for network in networks])


# Forms


def table(found: Difference) -> list[RenderableType]:
    """For a terminal. What is new is read first, what was only written anew last."""
    parts: list[RenderableType] = []
    changed = rows(found)
    if changed:
        parts += [_reach_table(changed), ""]
    addresses = list(_address_lines(found))
    if addresses:
        parts += [_grid(addresses, ("", "EXTERNAL", "ADDRESSES")), ""]
    if found.altered:
        lines = [
            (_WHAT[o.what], f"{o.kind} {o.name}".strip(), _effect(o) + _details(o), _place(o)) for o in found.altered
        ]
        parts += [_grid(lines, ("", "WRITTEN", "HOW", "AT")), ""]
    return [*parts, cell(f"Plan: {summary(found)}")]


def _effect(one: Altered) -> str:
    return "" if one.effect else "no effect; "


def _reach_table(changed: Iterable[Row]) -> RenderableType:
    grid = _new_grid(("", "FROM", "TO", "PORTS", "BY"))
    for row in changed:
        rules = "\n".join(map(_rule_text, row.rules[:SHOWN]))
        more = len(row.rules) - SHOWN
        texts = (_few(row.sources), _few(row.destinations), row.ports)
        by = cell("\n", "") if not rules else _lines(rules + (f"\nand {more} more" if more > 0 else ""))
        grid.add_row(cell(MARKS[row.kind], _STYLES[row.kind]), *map(cell, texts), by)
    return grid


def _lines(text: str) -> Text:
    from rich.text import Text

    return Text("\n".join(safe(line) for line in text.split("\n")))


def _new_grid(heads: Sequence[str]) -> Table:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        grid.add_column(head, overflow="fold")
    return grid


def _grid(lines: Iterable[Sequence[str]], heads: Sequence[str]) -> RenderableType:
    grid = _new_grid(heads)
    for line in lines:
        grid.add_row(*map(cell, line))
    return grid


def github(found: Difference) -> str:
    """For a comment on a pull request. What an author wrote is in code spans, and can be no markup."""
    lines = ["### Policy plan", "", f"**{summary(found)}**"]
    changed = rows(found)
    if changed:
        lines += ["", "| | from | to | ports | by |", "|---|---|---|---|---|"]
        lines += [_markdown_row(row) for row in changed]
    addresses = list(_address_lines(found))
    if addresses:
        lines += ["", "| | external | addresses |", "|---|---|---|"]
        lines += [f"| {mark} | {_code(name)} | {_code(text)} |" for mark, name, text in addresses]
    if found.altered:
        lines += ["", "<details><summary>What is written differently</summary>", ""]
        lines += ["| | what | how | at |", "|---|---|---|---|"]
        lines += [_markdown_altered(one) for one in found.altered]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _markdown_row(row: Row) -> str:
    by = "<br>".join(_code(_rule_text(rule)) for rule in row.rules[:SHOWN])
    more = len(row.rules) - SHOWN
    by += f"<br>and {more} more" if more > 0 else ""
    ends = (_code(_few(row.sources)), _code(_few(row.destinations)))
    return f"| {MARKS[row.kind]} | {ends[0]} | {ends[1]} | {_code(row.ports)} | {by} |"


def _markdown_altered(one: Altered) -> str:
    how = ("no effect " if not one.effect else "") + _code(_details(one))
    return f"| {_WHAT[one.what]} | {_code(f'{one.kind} {one.name}'.strip())} | {how} | {_code(_place(one))} |"


def _code(text: str) -> str:
    """A code span in a cell of a table: neither its end nor the cell's can be in it."""
    plain = safe(text).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain else ""


def plan_json(found: Difference) -> dict[str, Any]:
    """All of it, unabridged. A time of null: for ever."""
    return {
        "before": found.before,
        "after": found.after,
        "summary": summary(found),
        "reach": [_reach_json(one) for one in found.reach],
        "addresses": [
            {"external": one.external, "gained": _texts(one.gained), "lost": _texts(one.lost)}
            for one in found.addresses
        ],
        "altered": [_altered_json(one) for one in found.altered],
    }


def _reach_json(one: Reach) -> dict[str, Any]:
    return {
        "change": one.kind.value,
        "from": one.source,
        "to": one.destination,
        "protocol": one.protocol,
        "ports": [_span_json(one.protocol, span) for span in one.ports],
        "rules": [{"name": r.name, "kind": r.kind, "loc": r.loc.short} for r in one.rules],
        "addresses": _texts(one.addresses),
    }


def _span_json(protocol: int, span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": port_text(protocol, span.first, span.last),
        "first": span.first,
        "last": span.last,
    }
    for side, until in (("before", span.before), ("after", span.after)):
        found[side] = {"allowed": until != REFUSED, "until": None if until in (REFUSED, FOREVER) else _time(until)}
    return found


def _altered_json(one: Altered) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "name": one.name,
        "what": one.what,
        "effect": one.effect,
        "details": [detail._asdict() for detail in one.details],
        "before": _loc(one.before),
        "after": _loc(one.after),
    }


def _loc(loc: Loc | None) -> str | None:
    return loc.short if loc else None


def _texts(networks: Iterable[Network]) -> list[str]:
    return [str(network) for network in networks]
