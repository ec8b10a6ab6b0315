"""That no two workloads can have one SPIFFE ID: by their SVIDs alone they would be one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice, product
from typing import Final, NamedTuple

from bulkhead.errors import Diagnostic
from bulkhead.identity.globs import compile_glob, may_intersect
from bulkhead.policy.codes import message
from bulkhead.policy.glob import has_wildcard
from bulkhead.policy.model import Workload
from bulkhead.policy.spiffe import HOST

FINDINGS_LIMIT: Final = 20


class _Template(NamedTuple):
    """The path of a workload's SPIFFE ID. `{host}` is in it once at most."""

    segments: tuple[str, ...]
    workload: Workload

    @property
    def host_at(self) -> int | None:
        return self.segments.index(HOST) if HOST in self.segments else None


def find_shared_ids(workloads: Sequence[Workload]) -> list[Diagnostic]:
    """A finding (BH0605) for each pair that may share one, at the later; at most FINDINGS_LIMIT."""
    if not any(workload.spiffe for workload in workloads):
        return []
    order = {workload.qualified: at for at, workload in enumerate(workloads)}
    pairs = (sorted(pair, key=lambda one: order[one.qualified]) for pair in _pairs(workloads))
    return [_finding(earlier, later) for earlier, later in islice(pairs, FINDINGS_LIMIT)]


def _pairs(workloads: Iterable[Workload]) -> Iterator[tuple[Workload, Workload]]:
    """Grouped by where `{host}` stands, so that only what agrees in all other segments is compared."""
    shapes: defaultdict[tuple[int, int | None], list[_Template]] = defaultdict(list)
    for workload in workloads:
        path = workload.spiffe or f"/{workload.qualified}"
        template = _Template(tuple(path.split("/")[1:]), workload)
        shapes[len(template.segments), template.host_at].append(template)
    for alike in shapes.values():
        for group in _by_literals(alike, alike[0].host_at, None).values():
            yield from _of_one_template([template.workload for template in group])
    for one, other in combinations(shapes, 2):
        if one[0] == other[0]:
            yield from _of_two_templates(shapes[one], shapes[other])


def _by_literals(templates: Iterable[_Template], *free: int | None) -> dict[tuple[str, ...], list[_Template]]:
    """Templates by their segments, but for some of these."""
    found: defaultdict[tuple[str, ...], list[_Template]] = defaultdict(list)
    for template in templates:
        found[tuple("" if at in free else text for at, text in enumerate(template.segments))].append(template)
    return found


def _of_one_template(workloads: Sequence[Workload]) -> Iterator[tuple[Workload, Workload]]:
    """Those that may be on one node; without `{host}` the nodes do not matter."""
    if HOST not in workloads[0].spiffe:
        yield from combinations(workloads, 2)
        return
    wide = [one for one in workloads if not one.match.host or any(map(has_wildcard, one.match.host))]
    narrow = [one for one in workloads if one.match.host and not any(map(has_wildcard, one.match.host))]
    named: defaultdict[str, list[Workload]] = defaultdict(list)
    for one in narrow:
        for host in one.match.host:
            named[host].append(one)
    yield from dict.fromkeys(pair for alike in named.values() for pair in combinations(alike, 2))
    for at, one in enumerate(wide):
        others = (*wide[at + 1 :], *narrow)
        yield from ((one, other) for other in others if _may_be_together(one, other))


def _may_be_together(one: Workload, other: Workload) -> bool:
    hosts, others = one.match.host or ("*",), other.match.host or ("*",)
    return any(may_intersect(a, b) for a, b in product(hosts, others))


def _of_two_templates(
    templates: Sequence[_Template], others: Sequence[_Template]
) -> Iterator[tuple[Workload, Workload]]:
    """Those that a name of a node, or of two, makes equal."""
    free = templates[0].host_at, others[0].host_at
    rivals = _by_literals(others, *free)
    for literals, group in _by_literals(templates, *free).items():
        for one, other in product(group, rivals.get(literals, ())):
            if _can_be_on(one, other) and _can_be_on(other, one):
                yield one.workload, other.workload


def _can_be_on(template: _Template, other: _Template) -> bool:
    """Whether a template's `{host}` may be the segment that the other has in its place."""
    if template.host_at is None:
        return True
    name, globs = other.segments[template.host_at], template.workload.match.host
    return not globs or any(compile_glob(glob).matches(name) for glob in globs)


def _finding(earlier: Workload, later: Workload) -> Diagnostic:
    related = ((earlier.loc, f"`{earlier.qualified}` is here"),)
    text = message("BH0605", one=earlier.qualified, other=later.qualified)
    return Diagnostic("BH0605", text, later.loc, hint="give one of them another `spiffe`", related=related)
