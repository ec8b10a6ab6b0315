"""Globs of selectors: `*` any run and `?` any one character within a path component, all else itself.

Two questions are answered here: does a glob match a text, fast and without backtracking that an author could blow up;
and what can two lists of globs both match, exactly, for the check that no two workloads claim one endpoint.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

STATES_LIMIT = 20_000
"""States explored before the exact overlap of two lists gives way to the cautious one, pattern by pattern."""

_OTHER = "\0"
"""Stands for every character that no pattern spells out."""

_SEPARATOR = "/"


class Closeness(NamedTuple):
    """How closely a pattern describes what it matches. Greater is closer."""

    exact: int
    """1 when the pattern has no wildcard, else 0."""
    literals: int
    """Characters that are not wildcards."""


@dataclass(frozen=True, slots=True)
class Glob:
    """One pattern, ready to match."""

    pattern: str
    closeness: Closeness
    prefix: str
    """What every match begins with; for a subtree the part before the first wildcard."""
    regex: re.Pattern[str]

    def matches(self, text: str) -> bool:
        """Whether the pattern covers the whole text (for a subtree: the path or one of its ancestors)."""
        return self.regex.fullmatch(text) is not None


@lru_cache(maxsize=65536)
def compile_glob(pattern: str, subtree: bool = False) -> Glob:
    """A glob; with `subtree` one over normal paths, which matches everything below a match as well."""
    text = normal_path(pattern) if subtree else pattern
    regex = _SEPARATOR.join(_component_regex(component) for component in text.split(_SEPARATOR))
    if subtree:
        regex += "(?:/.*)?"
    wildcards = pattern.count("*") + pattern.count("?")
    closeness = Closeness(int(wildcards == 0), len(pattern) - wildcards)
    return Glob(pattern, closeness, literal_prefix(text), re.compile(regex, re.DOTALL))


def normal_path(path: str) -> str:
    """An absolute path without empty components; the root is the empty text, so that prefixes are ancestors."""
    return "".join(f"/{component}" for component in path.split(_SEPARATOR) if component)


def literal_prefix(pattern: str) -> str:
    """What precedes the first wildcard."""
    match = re.search(r"[*?]", pattern)
    return pattern[: match.start()] if match else pattern


def closest(globs: Iterable[Glob], text: str) -> Closeness | None:
    """The closeness of the closest glob that matches; None when none does."""
    return max((glob.closeness for glob in globs if glob.matches(text)), default=None)


def _component_regex(component: str) -> str:
    # Atomic groups: the leftmost place of each middle part is as good as any, so none is tried twice.
    parts = [_literal_regex(part) for part in re.sub(r"\*+", "*", component).split("*")]
    if len(parts) == 1:
        return parts[0]
    middle = "".join(f"(?>[^/]*?{part})" for part in parts[1:-1])
    return f"{parts[0]}{middle}[^/]*{parts[-1]}"


def _literal_regex(part: str) -> str:
    return "".join("[^/]" if char == "?" else re.escape(char) for char in part)


class PrefixIndex(Generic[T]):
    """Items under literal prefixes; finds those whose prefix begins a text without walking all of them."""

    def __init__(self) -> None:
        self._items: dict[str, list[T]] = {}
        self._lengths: tuple[int, ...] = ()

    def add(self, prefix: str, item: T) -> None:
        """Adds an item under what every text it concerns begins with."""
        self._items.setdefault(prefix, []).append(item)
        if len(prefix) not in self._lengths:
            self._lengths = tuple(sorted((*self._lengths, len(prefix))))

    def find(self, text: str) -> Iterator[T]:
        """Every item whose prefix begins `text`, shortest prefix first."""
        for length in self._lengths:
            if length > len(text):
                return
            yield from self._items.get(text[:length], ())


# What can two lists of globs both match?


@dataclass(frozen=True, slots=True)
class Domain:
    """The texts that exist at all for one key."""

    subtree: bool = False
    """Texts are normal paths and patterns cover subtrees; else texts are single components."""
    endings: tuple[str, ...] = ()
    """Texts end in one of these; empty: anything goes."""


@lru_cache(maxsize=16384)
def shared_closeness(
    first: tuple[str, ...], second: tuple[str, ...], domain: Domain
) -> frozenset[tuple[Closeness, Closeness]]:
    """Every pair of closenesses with which the two lists can match one and the same text; empty: they never do.

    Exact unless the patterns need more than STATES_LIMIT states together; then pairs may be named that no text has,
    and none is missing.
    """
    pairs = [(a, b) for a in first for b in second if may_intersect(a, b, domain.subtree)]
    cautious = frozenset((compile_glob(a).closeness, compile_glob(b).closeness) for a, b in pairs)
    lone = len(first) == len(second) == 1
    if not pairs or (lone and (not domain.endings or first[0].endswith(domain.endings))):
        return cautious
    exact = _Product(first, second, domain).outcomes()
    return cautious if exact is None else exact


def may_intersect(first: str, second: str, subtree: bool = False) -> bool:
    """Whether some text is matched by both patterns."""
    if not subtree:
        return _share_a_component(first, second)
    deeper = zip(normal_path(first).split(_SEPARATOR), normal_path(second).split(_SEPARATOR), strict=False)
    return all(_share_a_component(a, b) for a, b in deeper)


def _share_a_component(first: str, second: str) -> bool:
    """Whether some text without separator is matched by both: a walk over pairs of positions in the patterns."""
    seen = {(0, 0)}
    queue = deque(seen)
    while queue:
        at, other = queue.popleft()
        if at == len(first) and other == len(second):
            return True
        fresh = set(_moves(first[at : at + 1], second[other : other + 1], at, other)) - seen
        seen |= fresh
        queue.extend(fresh)
    return False


def _moves(char: str, other_char: str, at: int, other: int) -> Iterator[tuple[int, int]]:
    """Where both patterns can stand next. An empty text is the end of a pattern."""
    if char == "*":
        yield at + 1, other
    if other_char == "*":
        yield at, other + 1
    if char == "*" and other_char not in ("", "*"):
        yield at, other + 1
    elif other_char == "*" and char not in ("", "*"):
        yield at + 1, other
    elif char and other_char and (char == other_char or "?" in (char, other_char)):
        yield at + 1, other + 1


class _Machine:
    """A pattern as a set of positions, one bit each. The position after a complete subtree match absorbs all."""

    def __init__(self, pattern: str, subtree: bool) -> None:
        self.closeness = compile_glob(pattern).closeness
        self.text = normal_path(pattern) if subtree else pattern
        self.subtree = subtree
        self.end = len(self.text)
        self.start = self._close(1)

    def _close(self, mask: int) -> int:
        for at, char in enumerate(self.text):
            if char == "*" and mask >> at & 1:
                mask |= 1 << (at + 1)
        return mask

    def step(self, mask: int, char: str) -> int:
        reached = 0
        inside = char != _SEPARATOR
        for at, wanted in enumerate(self.text):
            if not mask >> at & 1:
                continue
            if wanted == "*" and inside:
                reached |= 1 << at
            elif wanted == char or (wanted == "?" and inside):
                reached |= 1 << (at + 1)
        below = mask >> (self.end + 1) & 1 or (mask >> self.end & 1 and not inside)
        if self.subtree and below:
            reached |= 1 << (self.end + 1)
        return self._close(reached)

    def accepts(self, mask: int) -> bool:
        return mask >> self.end != 0


_State = tuple[tuple[int, ...], str]
"""Positions of every machine, and the last character (only whether it is a separator matters)."""


class _Product:
    """All machines of two lists side by side, walked over every text that keeps both lists alive."""

    def __init__(self, first: Sequence[str], second: Sequence[str], domain: Domain) -> None:
        self.first = [_Machine(pattern, domain.subtree) for pattern in first]
        self.second = [_Machine(pattern, domain.subtree) for pattern in second]
        self.endings = [_Machine(f"*{ending}", False) for ending in domain.endings]
        self.machines = [*self.first, *self.second, *self.endings]
        self.domain = domain
        spelt = set("".join(machine.text for machine in self.machines)) - {"*", "?", _SEPARATOR}
        self.alphabet = [*sorted(spelt), _OTHER, *([_SEPARATOR] if domain.subtree else [])]

    def outcomes(self) -> frozenset[tuple[Closeness, Closeness]] | None:
        """The closeness pairs of all shared texts; None beyond the limit."""
        start: _State = (tuple(machine.start for machine in self.machines), "")
        seen = {start}
        queue = deque([start])
        found: set[tuple[Closeness, Closeness]] = set()
        while queue:
            state = queue.popleft()
            found.update(self._accepted(state))
            fresh = [successor for successor in self._successors(state) if successor not in seen]
            seen.update(fresh)
            queue.extend(dict.fromkeys(fresh))
            if len(seen) > STATES_LIMIT:
                return None
        return frozenset(found)

    def _successors(self, state: _State) -> Iterator[_State]:
        masks, last = state
        for char in self.alphabet:
            if self.domain.subtree and not _may_follow(last, char):
                continue
            stepped = tuple(machine.step(mask, char) for machine, mask in zip(self.machines, masks, strict=True))
            if self._alive(stepped):
                yield stepped, _SEPARATOR if char == _SEPARATOR else _OTHER

    def _alive(self, masks: tuple[int, ...]) -> bool:
        split = len(self.first)
        return any(masks[:split]) and any(masks[split : split + len(self.second)])

    def _accepted(self, state: _State) -> Iterator[tuple[Closeness, Closeness]]:
        masks, last = state
        if last == _SEPARATOR or (not self.domain.subtree and not last):
            return
        matched = [machine.accepts(mask) for machine, mask in zip(self.machines, masks, strict=True)]
        split, tail = len(self.first), len(self.first) + len(self.second)
        if self.endings and not any(matched[tail:]):
            return
        best_first = _best(self.first, matched[:split])
        best_second = _best(self.second, matched[split:tail])
        if best_first is not None and best_second is not None:
            yield best_first, best_second


def _may_follow(last: str, char: str) -> bool:
    """Normal paths begin with a separator and never have two in a row."""
    if last == "":
        return char == _SEPARATOR
    return not (last == _SEPARATOR and char == _SEPARATOR)


def _best(machines: list[_Machine], matched: list[bool]) -> Closeness | None:
    return max((m.closeness for m, hit in zip(machines, matched, strict=True) if hit), default=None)
