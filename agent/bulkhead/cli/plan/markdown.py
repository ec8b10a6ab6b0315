"""A plan for a comment on a pull request. What an author wrote is in code spans, and can be no markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bulkhead.cli.markup import code
from bulkhead.cli.plan import words
from bulkhead.cli.plan.cluster import remark
from bulkhead.cli.plan.plan import Plan
from bulkhead.cli.plan.rows import Row, address_rows, rows
from bulkhead.dataplane.replay import Edge, Effect
from bulkhead.policy.alterations import Altered

COMMENT_MAX: Final = 65_000
"""Bytes, so that some are left of the 65,536 characters that GitHub takes."""
_RESERVED: Final = 200
"""Bytes for the end of a section that was cut short."""


def markdown(plan: Plan) -> str:
    """The comment: what breaks first, the rest folded where it is long; cut, and said so, where it would not fit."""
    page = _Page()
    page.add(["### Policy plan", "", f"**{words.summary(plan)}**", "", *_closing(plan)])
    edges = plan.replay.edges if plan.replay else ()
    breaking = [edge for edge in edges if edge.effect is Effect.BREAKS]
    others = [edge for edge in edges if edge.effect is not Effect.BREAKS]
    heads = ("", "from", "to", "port", "traffic", "allowed by")
    page.table("What breaks", heads, (_edge(plan, edge) for edge in breaking), len(breaking))
    changed = rows(plan)
    traffic = ("traffic",) if plan.replay else ()
    page.table("Reach", ("", "from", "to", "ports", *traffic, "by"), (_row(plan, row) for row in changed), len(changed))
    page.table("Traffic that it lets through", heads, (_edge(plan, edge) for edge in others), len(others), fold=True)
    addresses = [(mark, *map(code, texts)) for mark, *texts in address_rows(plan)]
    page.table("Addresses", ("", "external", "addresses", "by"), addresses, len(addresses), fold=True)
    altered = plan.found.altered
    written = (_altered(plan, one) for one in altered)
    page.table("What is written differently", ("", "what", "how", "at", "by"), written, len(altered), fold=True)
    return page.text


class _Page:
    """Markdown of a bounded size."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._left = COMMENT_MAX

    @property
    def text(self) -> str:
        return "\n".join(self._lines).rstrip("\n") + "\n"

    def add(self, lines: Iterable[str]) -> None:
        """Lines that are wanted whatever they cost."""
        for line in lines:
            self._lines.append(line)
            self._left -= _size(line)

    def table(
        self, title: str, heads: Sequence[str], lines: Iterable[Sequence[str]], total: int, *, fold: bool = False
    ) -> None:
        """A table of `total` lines under its title, as much of it as fits."""
        if not total:
            return
        head = [f"<details><summary>{title} ({total})</summary>", ""] if fold else [f"#### {title}", ""]
        head += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        if self._left < sum(map(_size, head)) + _RESERVED:
            self.add([f"{title}: {total}, which do not fit here; `bulkhead plan` shows them.", ""])
            return
        self.add(head)
        shown = 0
        for line in lines:
            text = f"| {' | '.join(line)} |"
            if self._left - _size(text) < _RESERVED:
                break
            self.add([text])
            shown += 1
        if shown < total:
            self.add(["", f"{total - shown} more do not fit here; `bulkhead plan` shows them."])
        self.add(["", "</details>", ""] if fold else [""])


def _size(line: str) -> int:
    return len(line.encode()) + 1


def _closing(plan: Plan) -> Iterator[str]:
    if plan:
        yield words.checks_text(plan)
    inside = remark(plan)
    if inside:
        yield f"<br>cluster {code(inside)}"
    data = words.data_text(plan)
    if data:
        yield f"<br>data {code(data)}"
    if plan.authors.unsaid:
        yield f"<br>authors {code(plan.authors.unsaid)}"
    yield ""


def _edge(plan: Plan, edge: Edge) -> tuple[str, ...]:
    source, destination = words.edge_ends(edge)
    addresses = words.few([str(address) for address in edge.addresses])
    traffic = [words.traffic_text([edge])]
    traffic += [f"last seen {words.time_text(edge.last_seen)}"] if edge.last_seen else []
    traffic += [code(f"{talk.process} {talk.peer}") for talk in edge.talks[: words.SHOWN]]
    more = len(edge.talks) - words.SHOWN
    traffic += [f"and {more} more"] if more > 0 else []
    return (
        "!" if edge.effect is Effect.BREAKS else "+",
        code(source),
        code(destination) + (f"<br>{code(addresses)}" if addresses else ""),
        code(words.port_text(edge.protocol, edge.port, edge.port)),
        "<br>".join(traffic),
        "<br>".join(map(code, words.edge_rule(plan, edge))),
    )


def _row(plan: Plan, row: Row) -> tuple[str, ...]:
    by: list[str] = []
    for rule in row.rules[: words.SHOWN]:
        by.append(code(words.reason_text(rule, row.kind)))
        author = words.author_of_rule(plan, rule, row.kind)
        by += [code(author)] if author else []
    more = len(row.rules) - words.SHOWN
    by += [f"and {more} more"] if more > 0 else []
    ends = (code(words.few(row.sources)), code(words.few(row.destinations)))
    traffic = (row.traffic,) if plan.replay else ()
    return (words.MARKS[row.kind], *ends, code(row.ports), *traffic, "<br>".join(by))


def _altered(plan: Plan, one: Altered) -> tuple[str, ...]:
    how = ("" if one.effect else "no effect ") + code(words.altered_text(one))
    name = code(f"{one.kind} {one.name}".strip())
    return words.WHAT[one.what], name, how, code(words.altered_place(one)), code(words.author_of(plan, one))
