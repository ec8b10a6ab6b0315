"""By which addresses this machine is reached, as far as its routes tell."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

from bulkhead.policy.model import Network

_OUTSIDE: Final = ("192.0.2.1", "2001:db8::1")
"""Of documentation: nothing is sent there, the route is all that is asked for."""


def outward_addresses() -> tuple[Network, ...]:
    """The source address of what would go out by the default route, for each address family that has one.

    Not within an event loop: pyroute2 runs one of its own.
    """
    # Imported here: an agent that need not ask does not hold it.
    from pyroute2 import IPRoute, NetlinkError

    found = []
    with IPRoute() as routes:
        for destination in _OUTSIDE:
            try:
                answers = routes.route("get", dst=destination)
            except NetlinkError:
                continue
            found += [source for answer in answers if (source := answer.get_attr("RTA_PREFSRC"))]
    return tuple(ip_network(address) for address in found)


def own_addresses() -> tuple[str, ...]:
    """Every address of this network namespace's devices, loopback included.

    Not within an event loop: pyroute2 runs one of its own.
    """
    from pyroute2 import IPRoute

    with IPRoute() as routes:
        return tuple(sorted({one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS") for one in routes.get_addr()}))
