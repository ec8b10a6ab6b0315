"""What a router does to packets beside forwarding them: which (a predicate), and what becomes of them (an action)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from lab.packet import EXPERIMENT, ICMP, ICMP6, TCP, UDP, Packet

Predicate = Callable[[Packet], bool]
_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMP6)}


def when(
    protocol: str | None = None, flags: str | None = None, port: int | None = None, to: str | None = None
) -> Predicate:
    """Matches packets of a protocol (`tcp`, `udp`, `icmp`), with exactly these TCP flags (`S`, `SA`, as in
    `Packet.flags`), from or to a port, to an address or prefix. What is not given matches everything."""
    numbers = None if protocol is None else _PROTOCOLS[protocol]
    network = None if to is None else ipaddress.ip_network(to)

    def matches(packet: Packet) -> bool:
        return (
            (numbers is None or packet.protocol in numbers)
            and (flags is None or packet.flags == flags)
            and (port is None or port in packet.ports)
            and (network is None or ipaddress.ip_address(packet.destination) in network)
        )

    return matches


class Action:
    """What becomes of a packet: none, one or more packets, in the order in which they go on."""

    def __init__(self, becomes: Callable[[Packet], Iterable[Packet]]) -> None:
        self.becomes = becomes

    def rest(self) -> Iterable[Packet]:
        """What is still held back, when the fault is switched off."""
        return ()


def rewrite(change: Callable[[Packet], Packet]) -> Action:
    """Go on altered."""
    return Action(lambda packet: (change(packet),))


def strip(kind: int = EXPERIMENT) -> Action:
    """Without the TCP options of a kind."""
    return rewrite(lambda packet: packet.without_option(kind))


def blank(kind: int = EXPERIMENT) -> Action:
    """With no-operations in place of the TCP options of a kind."""
    return rewrite(lambda packet: packet.with_option_blanked(kind))


def normalise(first: Sequence[int] = (EXPERIMENT,)) -> Action:
    """With TCP options in another order: these kinds first."""
    return rewrite(lambda packet: packet.with_options_in_order(first))


def strip_trailer() -> Action:
    """Without UDP options."""
    return rewrite(lambda packet: packet.with_trailer(b""))


def lose(every: int = 1) -> Action:
    """Every so many is lost; 1: all are."""
    seen = 0

    def becomes(packet: Packet) -> Iterable[Packet]:
        nonlocal seen
        seen += 1
        return () if seen % every == 0 else (packet,)

    return Action(becomes)


def duplicate(copies: int = 1) -> Action:
    """Followed by so many copies."""
    return Action(lambda packet: (packet,) * (1 + copies))


def copy(to: Callable[[Packet], None]) -> Action:
    """A copy goes elsewhere too: to a list's `append`, or to an attacker, by `Router.towards`."""

    def becomes(packet: Packet) -> Iterable[Packet]:
        to(packet)
        return (packet,)

    return Action(becomes)


class Swap(Action):
    """Each second one goes before the first: neighbours change places."""

    def __init__(self) -> None:
        super().__init__(self._swap)
        self._held: list[Packet] = []

    def _swap(self, packet: Packet) -> Iterable[Packet]:
        if self._held:
            return packet, self._held.pop()
        self._held.append(packet)
        return ()

    def rest(self) -> Iterable[Packet]:
        return self._held


class Late(Action):
    """The first is held back until the next that matches has gone; all that follow go at once."""

    def __init__(self) -> None:
        super().__init__(self._delay)
        self._held: list[Packet] = []
        self._has_begun = False

    def _delay(self, packet: Packet) -> Iterable[Packet]:
        if not self._has_begun:
            self._has_begun = True
            self._held.append(packet)
            return ()
        late, self._held = self._held, []
        return packet, *late

    def rest(self) -> Iterable[Packet]:
        return self._held
