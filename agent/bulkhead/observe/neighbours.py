"""The other nodes, as records and questions meet them: by number, by address, by whom they may host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bulkhead.dataplane.addresses import Address
from bulkhead.identity.selectors import can_be_on
from bulkhead.policy.model import Match
from bulkhead.policy.nodes import Node, Roster

_SHOWN: Final = 3


class Neighbours:
    """The nodes that count, but for this one. `speaks`: whether this node says who it is, and hears who others are."""

    def __init__(self, known: Roster | None = None, own: str = "", speaks: bool = False) -> None:
        self.speaks = speaks
        self._nodes = {node.number: node for node in known or () if node.name != own}
        self._at: dict[tuple[int, int], dict[int, Node]] = {}
        for node in self:
            for network in node.addresses:
                bits = network.max_prefixlen - network.prefixlen
                self._at.setdefault((network.version, bits), {})[int(network.network_address) >> bits] = node
        self._order = sorted(self._at)
        """The longest prefixes first: they leave the fewest bits."""

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def name(self, number: int) -> str:
        """A node's name; the number itself for one that is not known, empty for 0."""
        node = self._nodes.get(number)
        return node.name if node is not None else str(number) if number else ""

    def named(self, name: str) -> Node | None:
        """The node of that name."""
        return next((node for node in self if node.name == name), None)

    def at(self, address: Address) -> Node | None:
        """The node at an address, as the kernel finds it; None: no registered one."""
        value = int(address)
        for version, bits in self._order:
            if version == address.version and (node := self._at[version, bits].get(value >> bits)) is not None:
                return node
        return None

    def judged_at(self, address: Address) -> Node | None:
        """The node at an address, where that makes a difference to who is taken to be there."""
        return self.at(address) if self.speaks else None

    def hosting(self, match: Match) -> list[Node]:
        """The nodes that policy lets host a workload, as far as they can say so."""
        return [node for node in self if node.key is not None and can_be_on(match, node.name)]

    def names_hosting(self, match: Match) -> str:
        """The same for people, the first few by name: `db-1, db-2, db-3 and 9 more`; empty: none may."""
        names = [node.name for node in self.hosting(match)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(names[:_SHOWN]) + more
