"""All addresses, divided by what two commits call them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from bulkhead.dataplane.compile import Compiled
from bulkhead.dataplane.halves import Halves
from bulkhead.dataplane.resolve import WORLD
from bulkhead.dataplane.stretches import Stretch, flattened, joined, overlaid, prefixes
from bulkhead.policy.model import Network, QualifiedName

_WIDTH: Final = {4: 32, 6: 128}


class Region(NamedTuple):
    """Addresses of one family that are of one class before and of one after."""

    before: int
    after: int
    version: int


class Regions:
    """All addresses, divided by what both commits call them."""

    def __init__(self, halves: Halves) -> None:
        self._halves = halves
        self._ranges: dict[Region, list[tuple[int, int]]] = defaultdict(list)
        self._labels: dict[tuple[frozenset[Region], int, int], str] = {}
        self._networks: dict[frozenset[Region], tuple[Network, ...]] = {}
        for version in (4, 6):
            before, after = (cut(half.compiled, version) for half in halves)
            for first, last, one, other in overlaid(before, after, WORLD):
                self._ranges[Region(one, other, version)].append((first, last))
        self._within = {(side, version): self._divided(side, version) for side in (0, 1) for version in (0, 4, 6)}

    def __iter__(self) -> Iterator[Region]:
        return iter(self._ranges)

    def networks(self, regions: frozenset[Region]) -> tuple[Network, ...]:
        """The addresses of some regions as the fewest prefixes, IPv4 first."""
        if regions not in self._networks:
            self._networks[regions] = tuple(self._listed(regions))
        return self._networks[regions]

    def _listed(self, regions: frozenset[Region]) -> Iterator[Network]:
        for version in (4, 6):
            ranges = [bounds for region in regions if region.version == version for bounds in self._ranges[region]]
            for first, last in joined(sorted(ranges)):
                yield from prefixes(version, first, last)

    def externals(self) -> list[QualifiedName]:
        """Externals that have addresses in either commit."""
        return sorted({name for half in self._halves for names in half.compiled.classes.values() for name in names})

    def of(self, side: int, external: str, version: int) -> frozenset[Region]:
        """The regions within an external before (side 0) or after (1), of one family or of both (0)."""
        return self._within[side, version].get(external, frozenset())

    def _divided(self, side: int, version: int) -> dict[str, frozenset[Region]]:
        found: dict[str, list[Region]] = defaultdict(list)
        for region in self:
            if version in (0, region.version):
                for name in self._halves[side].members(region[side]):
                    found[name].append(region)
        return {name: frozenset(regions) for name, regions in found.items()}

    def label(self, regions: frozenset[Region], side: int, version: int) -> str:
        """Some regions in the words of a policy, `version` as for `of`."""
        key = (regions, side, version)
        if key not in self._labels:
            self._labels[key] = self._label(*key)
        return self._labels[key]

    def _label(self, regions: frozenset[Region], side: int, version: int) -> str:
        if all(region in regions for region in self if version in (0, region.version)):
            return "world"
        around = {name for region in regions for name in self._halves[side].members(region[side])}
        inside = {name: own for name in around if (own := self.of(side, name, version)) <= regions}
        if frozenset().union(*inside.values()) == regions:
            return ", ".join(sorted(name for name, own in inside.items() if not self._is_inner(own, inside, side)))
        return f"within {', '.join(sorted(around)) or 'world'}"

    def _is_inner(self, own: frozenset[Region], inside: Mapping[QualifiedName, frozenset[Region]], side: int) -> bool:
        """Whether another external has all of these regions, and more: it would be around any of them."""
        around = self._halves[side].members(next(iter(own))[side]) if own else ()
        return not own or any(own < inside[name] for name in around if name in inside)


def cut(compiled: Compiled, version: int) -> list[Stretch[int]]:
    """The class of every address of a family, in stretches."""
    width = _WIDTH[version]
    prefixes = compiled.classes4 if version == 4 else compiled.classes6
    nested = [(int(network[0]), int(network[-1]), number) for network, number in prefixes.items()]
    # First, so that an external of all addresses, which is written after it, is further in.
    return flattened([(0, (1 << width) - 1, WORLD), *nested])
