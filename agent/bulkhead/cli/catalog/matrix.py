"""A catalogue as tables of who calls whom: a line for each caller, a column for each who is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from bulkhead.cli.catalog import words
from bulkhead.dataplane.catalog import Catalogue, Grant
from bulkhead.dataplane.usage import State, Undeclared

SIDE_MAX: Final = 40
"""Lines and columns of one matrix."""

MARKS_MAX: Final = 4
"""Rules or ports of one state that a cell writes out."""


class Mark(NamedTuple):
    """One rule, or one refused port, in a cell."""

    text: str
    rule: str
    """The rule to look at; empty: none allows it."""


class Marks(NamedTuple):
    """What is alike in a cell."""

    state: str
    """`allow`, `exception`, `expired`, `unused`, `unknown`, `deny` or `would-deny`: a word and a style."""
    shown: tuple[Mark, ...]
    left: int


class Matrix(NamedTuple):
    """Who calls whom, of everything or of one policy."""

    policy: str
    """Empty: everything."""
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[tuple[Marks, ...], ...]], ...]
    left_out: int
    """Callers and called that found no room."""


def matrices(found: Catalogue) -> list[Matrix]:
    """One matrix when it is small enough, else one for each policy, of those who may call its members.

    Of a catalogue that is narrowed to one policy: one matrix of all that its members have to do with.
    """
    names = _names(found.grants, found.undeclared)
    if not names:
        return []
    if found.only:
        own = {name for name in names if _room(name) == found.only} or set(names)
        return [_matrix(found.only, found, own, own)]
    if len(names) <= SIDE_MAX:
        return [_matrix("", found, set(), set(names))]
    columns: dict[str, set[str]] = defaultdict(set)
    for name in names:
        columns[_room(name) or "entities"].add(name)
    made = (_matrix(policy, found, set(), own) for policy, own in columns.items())
    return [one for one in made if one.columns]


def _room(name: str) -> str:
    """The policy that declares somebody; empty for entities."""
    return name.partition("/")[0] if "/" in name else ""


def _names(grants: Iterable[Grant], undeclared: Iterable[Undeclared]) -> dict[str, None]:
    names = dict.fromkeys(name for one in grants for party in (one.source, one.destination) for name in party.members)
    names.update(dict.fromkeys(name for one in undeclared for name in (one.source, one.destination)))
    return names


def _matrix(policy: str, found: Catalogue, callers: set[str], called: set[str]) -> Matrix:
    """Of what goes from one of `callers` to anybody, or from anybody to one of `called`."""
    cells: dict[tuple[str, str], dict[str, dict[Mark, None]]] = defaultdict(lambda: defaultdict(dict))
    for source, destination, state, mark in _marks(found, callers, called):
        cells[source, destination][state][mark] = None
    lines, columns = (_ordered((ends[side] for ends in cells), callers) for side in (0, 1))
    return Matrix(
        policy,
        tuple(columns[:SIDE_MAX]),
        tuple(
            (line, tuple(_shown(cells.get((line, column), {})) for column in columns[:SIDE_MAX]))
            for line in lines[:SIDE_MAX]
        ),
        max(0, len(lines) - SIDE_MAX) + max(0, len(columns) - SIDE_MAX),
    )


def _ordered(names: Iterable[str], first: set[str]) -> list[str]:
    return sorted(dict.fromkeys(names), key=lambda name: name not in first)


def _shown(states: dict[str, dict[Mark, None]]) -> tuple[Marks, ...]:
    return tuple(Marks(state, *words.few(list(marks), MARKS_MAX)) for state, marks in states.items())


def _marks(found: Catalogue, callers: set[str], called: set[str]) -> Iterator[tuple[str, str, str, Mark]]:
    for one in found.grants:
        state, mark = _state(one), Mark(words.ports(one.rule), one.name)
        # Chosen before they are multiplied: from `any` to `any` is a lot.
        near = [name for name in one.destination.members if name in called]
        for source in one.source.members:
            for destination in one.destination.members if source in callers else near:
                yield source, destination, state, mark
    for flow in found.undeclared:
        if flow.verdict != "allow" and (flow.source in callers or flow.destination in called):
            yield flow.source, flow.destination, flow.verdict, Mark(flow.port, "")


def _state(one: Grant) -> str:
    if one.expired:
        return "expired"
    if one.usage and one.usage.state is not State.USED:
        return str(one.usage.state)
    return "exception" if one.rule.kind == "exception" else "allow"
