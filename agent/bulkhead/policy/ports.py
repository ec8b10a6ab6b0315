"""Ports: what an author writes in `ports`, and behind the colon of a test's target.

`443` is TCP, `8000-8100` a range; `53/udp` names another protocol, also for ranges; `any/tcp` is every port of one
protocol; `icmp` every type of ICMP and ICMPv6, `icmp/echo` one type in both; `proto/47` an IP protocol by number; `any`
is TCP, UDP, ICMP and ICMPv6, every port.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import lru_cache

from bulkhead.policy.model import PortSpec

TCP = 6
UDP = 17
SCTP = 132
ICMP = 1
ICMPV6 = 58
PORT_MAX = 65535
PROTOCOL_MAX = 255

PROTOCOLS = {"tcp": TCP, "udp": UDP}
"""Those whose ports the kernel programs can tell, and rules can therefore name."""

TRANSPORTS = PROTOCOLS | {"sctp": SCTP}
"""Those that have ports."""

ICMP_TYPES = {
    "echo": (8, 128),
    "unreachable": (3, 1),
    "time-exceeded": (11, 3),
    "parameter-problem": (12, 4),
}
"""Name of an ICMP type, with its number in ICMP and in ICMPv6."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")


class PortError(ValueError):
    """The text is not a port; `hint` says what to write instead."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.hint = hint


@lru_cache(maxsize=65536)
def parse_port(text: str, with_sctp: bool = False) -> tuple[PortSpec, ...]:
    """The port written as `text`, one PortSpec for each IP protocol it covers.

    `with_sctp`: ports of SCTP too, `3868/sctp`, which can be asked about but not enforced on hosts. Raises PortError
    when it is none.
    """
    if text == "any":
        return tuple(PortSpec(number, 0, PORT_MAX, text) for number in (TCP, UDP, ICMP, ICMPV6))
    if text == "icmp":
        return tuple(PortSpec(number, 0, PORT_MAX, text) for number in (ICMP, ICMPV6))
    head, slash, tail = text.partition("/")
    if slash and head == "icmp":
        return _icmp_type(tail, text)
    if slash and head == "proto":
        return (PortSpec(_protocol_number(tail), 0, PORT_MAX, text),)
    protocol = _protocol(tail, TRANSPORTS if with_sctp else PROTOCOLS) if slash else TCP
    if slash and head == "any":
        return (PortSpec(protocol, 0, PORT_MAX, text),)
    first, last = _bounds(head)
    return (PortSpec(protocol, first, last, text),)


def _protocol(name: str, known: Mapping[str, int]) -> int:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name.lower()[:16], known, n=1, cutoff=0.5)
    raise PortError("its protocol is neither `tcp` nor `udp`", f"did you mean `{close[0]}`?" if close else "")


def _protocol_number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > PROTOCOL_MAX:
        raise PortError(f"an IP protocol is a number from 0 to {PROTOCOL_MAX}")
    named = {TCP: "any/tcp", UDP: "any/udp", ICMP: "icmp", ICMPV6: "icmp"}
    if int(text) in named:
        raise PortError("that protocol has a name of its own", f"write `{named[int(text)]}`")
    return int(text)


def _icmp_type(name: str, text: str) -> tuple[PortSpec, ...]:
    if name not in ICMP_TYPES:
        close = difflib.get_close_matches(name[:32], ICMP_TYPES, n=1)
        known = ", ".join(f"`{known}`" for known in ICMP_TYPES)
        raise PortError("that ICMP type has no name here", f"did you mean `icmp/{close[0]}`?" if close else known)
    four, six = ICMP_TYPES[name]
    return (
        PortSpec(ICMP, four << 8, four << 8 | 255, text),
        PortSpec(ICMPV6, six << 8, six << 8 | 255, text),
    )


def _bounds(text: str) -> tuple[int, int]:
    between = _RANGE.fullmatch(text)
    first, last = (_port(between[1]), _port(between[2])) if between else (_port(text),) * 2
    if first > last:
        raise PortError("the range descends", f"write `{last}-{first}`")
    return first, last


def _port(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise PortError("a port is a number from 1 to 65535, a range, `any` or `icmp`", _spelling(text))
    number = int(text)
    if not 1 <= number <= PORT_MAX:
        raise PortError(f"ports are 1 to {PORT_MAX}")
    return number


def _spelling(text: str) -> str:
    """What a number that is not written as a plain decimal probably meant."""
    if text.lower() in ("*", "all", "any"):
        return "write `any`"
    if re.fullmatch(r"0+[1-9][0-9]{0,4}", text):
        return f"write `{text.lstrip('0')}`"
    if re.fullmatch(r"[0-9]+:[0-9]+", text):
        return f"write `{text.replace(':', '-')}` for a range"
    return ""


@lru_cache(maxsize=65536)
def ports_overlap(first: tuple[PortSpec, ...], second: tuple[PortSpec, ...]) -> bool:
    """Whether some port is in both lists."""
    return any(a.protocol == b.protocol and a.first <= b.last and b.first <= a.last for a in first for b in second)
