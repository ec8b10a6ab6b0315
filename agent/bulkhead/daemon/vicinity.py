"""The other nodes, for whoever names and explains: made anew when the roster changes, and not for every event."""

from __future__ import annotations

from bulkhead.daemon.wire import WireIdentity
from bulkhead.observe.neighbours import Neighbours
from bulkhead.policy.nodes import Roster


class Vicinity:
    """Gives the neighbours as they are now."""

    def __init__(self, wire: WireIdentity, own: str) -> None:
        self._wire = wire
        self._own = own
        self._roster: Roster | None = None
        self._known = Neighbours()

    def __call__(self) -> Neighbours:
        roster, speaks = self._wire.roster, not self._wire.mute
        if roster is not self._roster or speaks != self._known.speaks:
            self._roster, self._known = roster, Neighbours(roster, self._own, speaks)
        return self._known
