"""Workloads that could claim one endpoint with equal right, found in the files alone.

Two selectors tie when some endpoint is matched by both with the same specificity. The keys are taken as independent of
each other; `unit` and `cgroup` are not, so that a pair that both write may be refused although their combination cannot
occur. No tie is missed, save those that depend on a host's own tables (a user's name against a number): they show up
live, where they deny and are reported.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from bulkhead.errors import Diagnostic
from bulkhead.identity.globs import Domain, literal_prefix, normal_path, shared_closeness
from bulkhead.identity.selectors import UNIT_ENDINGS, compile_match, pod_shape
from bulkhead.policy.model import Match, Workload

FINDINGS_LIMIT = 50
"""Ties reported at once; more of them help nobody."""

_GLOBS = {
    "host": Domain(),
    "unit": Domain(endings=UNIT_ENDINGS),
    "cgroup": Domain(subtree=True),
    "namespace": Domain(),
    "service_account": Domain(),
}
_EXACT = Domain()
"""Keys without wildcards; compared by identity."""

_KEYS = ("exe", "unit", "cgroup", "user", "group", "host")
_POD_KEYS = ("service_account", "namespace")

_LABELS_TELLING = 4
"""Keys of labels, the most frequent ones, by which pods are told apart before they are compared pair by pair."""

_Shape = tuple[object, ...]

_Difference = tuple[int, int]
"""How much closer the first of two selectors is: keys without wildcard, literal characters."""


def may_tie(first: Match, second: Match) -> bool:
    """Whether some endpoint that can exist is matched by both with equal specificity."""
    nothing = Match()
    if nothing in (first, second) or _shape(first) != _shape(second) or _are_apart(first, second):
        return False
    sums: set[_Difference] = {(0, 0)}
    for key in _keys(first):
        differences = _differences(key, getattr(first, key), getattr(second, key))
        sums = {(exact + e, literals + n) for exact, literals in sums for e, n in differences}
        if not sums:
            return False
    return (0, 0) in sums


def _shape(match: Match) -> _Shape:
    """What is equal for two selectors whenever they tie."""
    return ("pods", *pod_shape(match)) if match.of_pods else compile_match(match).shape


def _keys(match: Match) -> tuple[str, ...]:
    return _POD_KEYS if match.of_pods else _KEYS


def _are_apart(first: Match, second: Match) -> bool:
    """Whether clusters or labels exclude each other."""
    labels = dict(second.labels)
    return first.cluster != second.cluster or any(labels.get(key, value) != value for key, value in first.labels)


def find_ties(workloads: Sequence[Workload]) -> list[Diagnostic]:
    """A finding for each pair of workloads that may tie, at the later one; at most FINDINGS_LIMIT."""
    found: list[Diagnostic] = []
    for first, second in _suspects(workloads):
        if may_tie(first.match, second.match):
            found.append(_finding(*sorted((first, second), key=lambda workload: workload.loc)))
        if len(found) >= FINDINGS_LIMIT:
            break
    return sorted(found, key=lambda finding: finding.loc)


def _finding(earlier: Workload, later: Workload) -> Diagnostic:
    more = "another label" if later.match.of_pods else "`exe`"
    return Diagnostic(
        "BH0601",
        f"workloads `{earlier.qualified}` and `{later.qualified}` can select the same endpoint with equal right",
        later.loc,
        hint=f"let one of them say more, such as {more}, or let their patterns exclude each other",
        related=((earlier.loc, f"`{earlier.qualified}` is here"),),
    )


def _differences(key: str, first: tuple[str, ...], second: tuple[str, ...]) -> set[_Difference]:
    if not first and not second:
        return {(0, 0)}
    domain = _GLOBS.get(key, _EXACT)
    if not first or not second:
        # Only `host` may be written by one alone; what is not written matches all and adds nothing.
        sign = 1 if first else -1
        pairs = shared_closeness(first or second, ("*",), domain)
        return {(sign * written.exact, sign * written.literals) for written, _ in pairs}
    if domain is _EXACT or (not domain.subtree and not any(map(_has_wildcard, (*first, *second)))):
        return {(0, 0)} if set(first) & set(second) else set()
    return {(a.exact - b.exact, a.literals - b.literals) for a, b in shared_closeness(first, second, domain)}


def _has_wildcard(pattern: str) -> bool:
    return literal_prefix(pattern) != pattern


def _suspects(workloads: Sequence[Workload]) -> Iterator[tuple[Workload, Workload]]:
    """Pairs of the same shape whose literal prefixes do not exclude each other in any key."""
    shapes: defaultdict[_Shape, list[Workload]] = defaultdict(list)
    for workload in workloads:
        shapes[_shape(workload.match)].append(workload)
    for alike in shapes.values():
        frequent = Counter(key for workload in alike for key, _ in workload.match.labels).most_common(_LABELS_TELLING)
        labels = [key for key, _ in frequent]
        entries = [_Entry(at, _all_prefixes(workload.match, labels)) for at, workload in enumerate(alike)]
        for first, second in dict.fromkeys(_close_pairs(entries)):
            yield alike[first], alike[second]


def _all_prefixes(match: Match, labels: Iterable[str]) -> dict[str, tuple[str, ...]]:
    prefixes = {key: tuple(_prefixes(key, match)) for key in _keys(match)}
    if match.of_pods:
        prefixes["cluster"] = (f"{match.cluster}\0",)
        carried = dict(match.labels)
        prefixes |= {f"labels.{key}": (f"{carried[key]}\0" if key in carried else "",) for key in labels}
    return prefixes


class _Entry(NamedTuple):
    """A workload by position, with what its matches begin with in each key."""

    at: int
    prefixes: dict[str, tuple[str, ...]]

    def may_meet(self, other: _Entry) -> bool:
        return all(_begin_alike(prefixes, other.prefixes[key]) for key, prefixes in self.prefixes.items())


def _begin_alike(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    if len(first) == len(second) == 1:
        return first[0].startswith(second) or second[0].startswith(first)
    return any(a.startswith(second) for a in first) or any(b.startswith(first) for b in second)


def _close_pairs(entries: Sequence[_Entry]) -> Iterator[tuple[int, int]]:
    """Divides by whatever key tells some apart, again and again; compares only what no key divides, pair by pair."""
    keys = tuple(entries[0].prefixes) if entries else ()
    for key in keys:
        groups = _apart(entries, key)
        if len(groups) > 1:
            for group in groups:
                yield from _close_pairs(group)
            return
    outer = min((_outermost(entries, key) for key in keys), key=len, default=[])
    if len(outer) > len(entries) // 4:
        outer = list(entries)
    outside = {entry.at for entry in outer}
    inner = [entry for entry in entries if entry.at not in outside]
    for number, first in enumerate(outer):
        for second in (*outer[number + 1 :], *inner):
            if first.may_meet(second):
                yield min(first.at, second.at), max(first.at, second.at)
    if inner:
        yield from _close_pairs(inner)


def _outermost(entries: Sequence[_Entry], key: str) -> list[_Entry]:
    """Entries with the shortest prefix, which may keep together what could be divided without them."""
    shortest = min((prefix for entry in entries for prefix in entry.prefixes[key]), key=len, default="")
    return [entry for entry in entries if shortest in entry.prefixes[key]]


def _apart(entries: Sequence[_Entry], key: str) -> list[list[_Entry]]:
    """Groups between which no prefix begins another. An entry of several prefixes may be in several groups."""
    groups: list[dict[int, _Entry]] = []
    outer: str | None = None
    by_prefix = sorted((prefix, entry.at, entry) for entry in entries for prefix in entry.prefixes[key])
    for prefix, _, entry in by_prefix:
        if outer is None or not prefix.startswith(outer):
            groups.append({})
            outer = prefix
        groups[-1][entry.at] = entry
    # Groups as large as the whole would be divided for ever.
    return [list(group.values()) for group in groups] if all(len(g) < len(entries) for g in groups) else []


def _prefixes(key: str, match: Match) -> Iterable[str]:
    patterns: tuple[str, ...] = getattr(match, key)
    if not patterns:
        return ("",)
    if key == "cgroup":
        return {literal_prefix(normal_path(pattern)) for pattern in patterns}
    return {_ended_prefix(pattern, key in _GLOBS) for pattern in patterns}


def _ended_prefix(pattern: str, is_glob: bool) -> str:
    """What a match begins with. A pattern without wildcard is closed, so that it begins nothing but itself."""
    prefix = literal_prefix(pattern) if is_glob else pattern
    return f"{prefix}\0" if prefix == pattern else prefix
