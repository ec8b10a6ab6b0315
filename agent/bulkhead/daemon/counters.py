"""The kernel's counters, summed over CPUs. Exact: every number here was counted by the program that judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from bulkhead.abi import ControlKind, Direction, DnsOutcome, DropReason, EdgeKey, Loss, Verdict, name_of
from bulkhead.dataplane.resolve import Limits
from bulkhead.kernel.libbpf import Map
from bulkhead.kernel.maps import KernelMaps

_COUNTED_MAPS: Final = ("executables", "datagrams", "fragments", "echoes", "edges", "questions", "learned")
_GENERATION_MAPS: Final = ("policy", "classes4", "classes6", "cgroups", "members", "subjects", "names")


_MADE_TO_MEASURE: Final = {
    "policy": Limits().policy_entries,
    "classes4": Limits().prefixes,
    "classes6": Limits().prefixes,
    "names": Limits().names,
}
"""Maps that are made as large as their content: what bounds them is the compiler's limit."""


class Refusals(NamedTuple):
    """Refusals of one reason and direction, dropped or only observed."""

    reason: str
    direction: str
    verdict: str
    total: int


class Edge(NamedTuple):
    """Refusals between two identities."""

    local: int
    remote: int
    direction: Direction
    verdict: str
    reason: str
    total: int


class Counters:
    """Reads the accounting maps."""

    def __init__(self, maps: KernelMaps) -> None:
        self._maps = maps

    def refusals(self) -> Iterator[Refusals]:
        """Every reason and direction that has refused something."""
        sums = _sums(self._maps.fixed("refusals"))
        for reason in DropReason:
            if reason in (DropReason.NONE, DropReason.MAX):
                continue
            for direction in Direction:
                for would, verdict in enumerate((Verdict.DENY, Verdict.WOULD_DENY)):
                    count = sums[int(reason) * 4 + int(direction) * 2 + would]
                    if count:
                        yield Refusals(
                            name_of(DropReason, reason), direction.name.lower(), name_of(Verdict, verdict), count
                        )

    def edges(self) -> list[Edge]:
        """Refusals by pair of identities."""
        edges = self._maps.fixed("edges")
        keys, values = edges.lookup_batch()
        stride = edges.stride * (len(values) // edges.stride // max(1, len(keys) // edges.info.key_size))
        found = []
        for index in range(len(keys) // edges.info.key_size):
            key = EdgeKey.from_buffer_copy(keys, index * edges.info.key_size)
            (count,) = edges.sum_words(values[index * stride : (index + 1) * stride])
            found.append(
                Edge(
                    key.local_identity,
                    key.remote_identity,
                    Direction(key.direction),
                    name_of(Verdict, key.verdict),
                    name_of(DropReason, key.reason),
                    count,
                )
            )
        return found

    def hits(self, slots: dict[str, int]) -> dict[str, int]:
        """Conversations allowed, by rule name."""
        hits = self._maps.fixed("hits")
        return {
            name: hits.sum_words(hits.lookup(slot.to_bytes(4, "little")) or b"\0" * 8)[0]
            for name, slot in slots.items()
        }

    def losses(self) -> dict[str, int]:
        """What user space was not told, by source."""
        sums = _sums(self._maps.fixed("losses"))
        return {name_of(Loss, kind): sums[kind] for kind in Loss if kind is not Loss.MAX}

    def dns_answers(self) -> dict[str, int]:
        """Answers about names that policy knows, by what became of them."""
        sums = _sums(self._maps.fixed("dns_answers"))
        return {name_of(DnsOutcome, kind): sums[kind] for kind in DnsOutcome if kind is not DnsOutcome.MAX}

    def controls(self) -> dict[str, int]:
        """Kernel control packets that passed, by kind."""
        buckets = self._maps.fixed("buckets")
        passed = {}
        for kind in ControlKind:
            if kind is ControlKind.MAX:
                continue
            raw = buckets.lookup(int(kind).to_bytes(4, "little"))
            passed[name_of(ControlKind, kind)] = buckets.sum_words(raw)[2] if raw else 0
        return passed

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Entries and capacity of maps that can fill up."""
        opened = [(name, self._maps.current(name)) for name in _GENERATION_MAPS]
        opened += [(name, self._maps.fixed(name)) for name in _COUNTED_MAPS]
        return {
            name: (count_entries(found), _MADE_TO_MEASURE.get(name, found.info.max_entries))
            for name, found in opened
            if found is not None
        }


def count_entries(opened: Map) -> int:
    """Entries in a hash or trie; reads them in batches, so ask seldom."""
    keys, _ = opened.lookup_batch()
    return len(keys) // opened.info.key_size


def _sums(array: Map) -> list[int]:
    """A per-CPU array's values in order."""
    keys, values = array.lookup_batch()
    width = len(values) // max(1, len(keys) // 4)
    return [array.sum_words(values[at : at + width])[0] for at in range(0, len(values), width)]
