"""What is too wide to be meant: networks that say where somebody is, the public, and ports that run machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_network

from bulkhead.policy.model import Network
from bulkhead.policy.ports import TCP, UDP

PLACES: dict[Network, int] = {
    ip_network("10.0.0.0/8"): 16,
    ip_network("172.16.0.0/12"): 16,
    ip_network("192.168.0.0/16"): 16,
    ip_network("100.64.0.0/10"): 16,
    ip_network("169.254.0.0/16"): 16,
    ip_network("fc00::/7"): 48,
    ip_network("fe80::/10"): 64,
}
"""Networks that say where somebody is and not who, with the prefix length up to which a part of one is a whole site."""

_LONGEST_SITE = {version: max(site for place, site in PLACES.items() if place.version == version) for version in (4, 6)}

EVERYBODY = {4: 1, 6: 3}
"""Prefixes of this length and shorter are no network but the public, by address family."""

MANAGEMENT = {
    (TCP, 22): "SSH",
    (TCP, 23): "Telnet",
    (TCP, 135): "RPC",
    (TCP, 445): "SMB",
    (UDP, 161): "SNMP",
    (UDP, 623): "IPMI",
    (TCP, 2375): "Docker",
    (TCP, 2376): "Docker",
    (TCP, 2379): "etcd",
    (TCP, 2380): "etcd",
    (TCP, 3389): "RDP",
    (TCP, 5900): "VNC",
    (TCP, 5985): "WinRM",
    (TCP, 5986): "WinRM",
    (TCP, 6443): "the Kubernetes API",
    (TCP, 10250): "the kubelet",
}
"""Ports through which a machine is run rather than used."""


def trusted_networks(networks: Iterable[Network], excluded: Sequence[Network]) -> Iterator[Network]:
    """Those that hold a site, or more, of a network that is a place. The default route is everybody instead."""
    for network in networks:
        if not 0 < network.prefixlen <= _LONGEST_SITE[network.version]:
            continue
        held = [place for place, site in PLACES.items() if _holds_site(network, place, site)]
        if any(not any(is_within(_common(place, network), each) for each in excluded) for place in held):
            yield network


def _holds_site(network: Network, place: Network, site: int) -> bool:
    return is_within(place, network) or (is_within(network, place) and network.prefixlen <= site)


def _common(one: Network, other: Network) -> Network:
    """Of two networks that are nested, the inner."""
    return one if one.prefixlen > other.prefixlen else other


def is_public(network: Network) -> bool:
    """Whether it is no network but everybody."""
    return network.prefixlen <= EVERYBODY[network.version]


def is_within(narrow: Network, wide: Network) -> bool:
    """Whether one holds all of the other."""
    return narrow.version == wide.version and narrow.prefixlen >= wide.prefixlen and narrow.network_address in wide
