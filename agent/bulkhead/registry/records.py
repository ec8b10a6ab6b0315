"""The records that a registry has, by name, kept up to date and bounded: what cannot be understood hurts no other."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import replace
from typing import Final

from bulkhead.policy.nodes import Node, Refused, Roster, roster
from bulkhead.registry import record

NODES_MAX: Final = 10_000
"""Records that count; of more, the first by name."""

_SHOWN: Final = 80


class Records:
    """Everything below one place of a store."""

    def __init__(self, where: str) -> None:
        self.revision = 0
        """Of the store: what the records are of."""
        self._where = where
        """For people: `etcd /bulkhead/nodes/`."""
        self._found: dict[str, Node | Refused] = {}
        self._names: list[str] = []
        self._revoked: set[str] = set()
        self.lacks_some = False
        """One that did not count may count now, and was not kept: they have to be listed again."""

    def __len__(self) -> int:
        return len(self._found)

    def put(self, name: str, value: bytes) -> None:
        """A record is there, or there anew."""
        try:
            found: Node | Refused = record.read(name, value, f"{self._where}{name}")
        except record.RecordError as error:
            shown = _shown(name)
            found = Refused(shown, "invalid", f"the record `{self._where}{shown}` is no node: {error}")
        if name not in self._found:
            insort(self._names, name)
        self._found[name] = found
        if len(self._names) > NODES_MAX + 1:
            del self._found[self._names.pop()]

    def remove(self, name: str) -> None:
        """A record is gone."""
        if self._found.pop(name, None) is not None:
            self.lacks_some |= len(self._names) > NODES_MAX
            del self._names[bisect_left(self._names, name)]

    def revoke(self, name: str) -> None:
        """Whatever the record says, it does not count."""
        self._revoked.add(name)

    def restore(self, name: str) -> None:
        """It is no longer revoked."""
        self._revoked.discard(name)

    def is_revoked(self, name: str) -> bool:
        """By the operator, whatever the record says."""
        return name in self._revoked

    def node(self, name: str) -> Node | None:
        """The node of that name, if it has a record that can be understood."""
        found = self._found.get(name)
        return found if isinstance(found, Node) else None

    def is_taken(self, number: int, name: str) -> bool:
        """Has another node than the one of that name the number?"""
        return any(isinstance(n, Node) and n.number == number and n.name != name for n in self._found.values())

    def nodes(self) -> list[Node]:
        """The records that can be understood, by name, with what is revoked marked so."""
        found = (self._found[name] for name in self._names[:NODES_MAX])
        return [self._marked(one) for one in found if isinstance(one, Node)]

    def roster(self) -> Roster:
        """What counts of it all."""
        invalid = [one for name in self._names[:NODES_MAX] if isinstance(one := self._found[name], Refused)]
        if len(self._names) > NODES_MAX:
            first = _shown(self._names[NODES_MAX])
            problem = f"`{first}` and what follows it do not count: the first {NODES_MAX} records by name do"
            invalid.append(Refused(first, "invalid", problem))
        return roster(self.nodes(), invalid)

    def _marked(self, node: Node) -> Node:
        return replace(node, revoked=True) if node.name in self._revoked else node


def _shown(name: str) -> str:
    """For people; what no node can be called is never taken for the name of one."""
    return name if record.is_node_name(name) else f"{ascii(name[:_SHOWN])[1:-1]}…"
