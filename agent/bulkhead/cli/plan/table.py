"""A plan for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from bulkhead.cli.output import cell, safe
from bulkhead.cli.plan import words
from bulkhead.cli.plan.cluster import remark
from bulkhead.cli.plan.plan import Plan
from bulkhead.cli.plan.rows import Row, address_rows, rows
from bulkhead.dataplane.difference import Kind
from bulkhead.dataplane.replay import Edge, Effect
from bulkhead.observe.evidence import age_text
from bulkhead.policy.alterations import Altered

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

ROWS_MAX: Final = 1_000
"""Of each part: nobody reads more on a terminal, and laying it out takes longer than finding it."""

_STYLES: Final = {Kind.GAINED: "green", Kind.LOST: "red", Kind.RETIMED: "yellow"}


def table(plan: Plan) -> list[RenderableType]:
    """What breaks is read first, then what is new; what was only written anew is last."""
    return [part for section in _sections(plan) for part in (section, "")] + _closing(plan)


def _sections(plan: Plan) -> Iterator[RenderableType]:
    if plan.replay is not None and plan.replay.edges:
        yield _edges(plan, plan.replay.edges)
    changed = rows(plan)
    if changed:
        yield _reach(plan, changed)
    addresses = list(address_rows(plan))
    if addresses:
        yield _grid(("", "EXTERNAL", "ADDRESSES", "BY"), addresses)
    if plan.found.altered:
        shown = plan.found.altered[:ROWS_MAX]
        yield _grid(("", "WRITTEN", "HOW", "AT"), [_altered(plan, one) for one in shown])


def _closing(plan: Plan) -> list[RenderableType]:
    """The checks, what the answer rests on, and the summary."""
    data, unsaid = words.data_text(plan), plan.authors.unsaid
    lines = [words.checks_text(plan)] if plan else []
    lines += [f"cluster: {inside}"] if (inside := remark(plan)) else []
    lines += [f"data {data}"] if data else []
    lines += [f"authors: {unsaid}"] if unsaid else []
    reach = (*plan.found.reach, *(plan.cluster.reach if plan.cluster else ()))
    longest = max(map(len, (plan.found.altered, reach, plan.replay.edges if plan.replay else ())))
    lines += [f"of each part no more than {ROWS_MAX:,} rows are shown: `-o json` has all"] if longest > ROWS_MAX else []
    return [*map(cell, lines), cell(f"Plan: {words.summary(plan)}")]


def _edges(plan: Plan, edges: Sequence[Edge]) -> RenderableType:
    grid = _new_grid(("", "FROM", "TO", "PORT", "TRAFFIC", "ALLOWED BY"))
    for edge in edges[:ROWS_MAX]:
        lines = [words.traffic_text([edge])]
        lines += [f"last seen {age_text(max(0.0, time.time() - edge.last_seen))} ago"] if edge.last_seen else []
        lines += [f"{talk.process} {talk.peer}" for talk in edge.talks[: words.SHOWN]]
        more = len(edge.talks) - words.SHOWN
        lines += [f"and {more} more"] if more > 0 else []
        source, destination = words.edge_ends(edge)
        port = words.port_text(edge.protocol, edge.port, edge.port)
        is_bad = edge.effect is Effect.BREAKS
        style = ("bold red" if is_bad else "green") if edge.enforced else "yellow"
        addresses = words.few([str(address) for address in edge.addresses])
        destination += f" ({addresses})" if addresses else ""
        mark = cell("!" if is_bad else "+", style)
        grid.add_row(
            mark, cell(source), cell(destination), cell(port), _lines(lines), _lines(words.edge_rule(plan, edge))
        )
    return grid


def _reach(plan: Plan, changed: Sequence[Row]) -> RenderableType:
    heads = ("", "FROM", "TO", "PORTS", *(("TRAFFIC",) if plan.replay else ()), "BY")
    grid = _new_grid(heads)
    for row in changed[:ROWS_MAX]:
        texts = [words.few(row.sources), words.few(row.destinations), row.ports]
        texts += [row.traffic] if plan.replay else []
        grid.add_row(cell(words.MARKS[row.kind], _STYLES[row.kind]), *map(cell, texts), _lines(_rules(plan, row)))
    return grid


def _rules(plan: Plan, row: Row) -> Iterator[str]:
    for rule in row.rules[: words.SHOWN]:
        yield words.reason_text(rule, row.kind)
        author = words.author_of_rule(plan, rule, row.kind)
        if author:
            yield f"  {author}"
    more = len(row.rules) - words.SHOWN
    if more > 0:
        yield f"and {more} more"


def _altered(plan: Plan, one: Altered) -> tuple[str, str, str, str]:
    how = ("" if one.effect else "no effect; ") + words.altered_text(one)
    author = words.author_of(plan, one)
    at = words.altered_place(one) + (f" {author}" if author else "")
    return words.WHAT[one.what], f"{one.kind} {one.name}".strip(), how, at


def _lines(texts: Iterable[str]) -> RenderableType:
    from rich.text import Text

    return Text("\n".join(map(safe, texts)))


def _grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> RenderableType:
    grid = _new_grid(heads)
    for line in lines[:ROWS_MAX]:
        grid.add_row(*map(cell, line))
    return grid


def _new_grid(heads: Sequence[str]) -> Table:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        grid.add_column(head, overflow="fold")
    return grid
