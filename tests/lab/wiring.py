"""How hosts and the router are set up, as input of `ip`, `sysctl` and `nft`: the same for namespaces and for machines.

Needs nothing but what a bare Debian has.
"""

from __future__ import annotations

from collections.abc import Iterable

from lab.description import Interface, Nat, router_of

SYSCTLS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.conf.default.send_redirects": 0,
}
"""Of the router: it forwards whatever it is given, under whatever address."""

_HALVES = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
"""Everything, without being the default route: that of a virtual machine, which it was set up over, stays."""


def up(device: str, end: int) -> list[str]:
    """Bring up one end of a wire, 1 or 2, at once: addresses of our own choice need no detection of duplicates."""
    return [
        f"link set {device} addrgenmode none",
        f"link set {device} up",
        f"addr replace fe80::{end}/64 dev {device} nodad",
    ]


def router_addresses(addresses: Iterable[Interface], device: str) -> list[str]:
    """The router's end of a host's wire, in place of what it had."""
    return _addresses(map(router_of, addresses), device)


def host_addresses(addresses: Iterable[Interface], device: str) -> list[str]:
    """The host's end, in place of what it had; all that is elsewhere is reached through the router."""
    given = list(addresses)
    return _addresses(given, device) + [
        f"route replace {half} via {router_of(one).ip} dev {device}" for one in given for half in _HALVES[one.version]
    ]


def _addresses(addresses: Iterable[Interface], device: str) -> list[str]:
    flags = {4: "", 6: " nodad"}
    return [
        f"addr flush dev {device} scope global",
        *(f"addr add {one} dev {device}{flags[one.version]}" for one in addresses),
    ]


def ruleset(rules: Iterable[Nat]) -> str:
    """The router's address translation, for `nft --file -`; in place of the one of before.

    By addresses, never by devices: so it is the same in a namespace and on a machine of its own.
    """
    sources, destinations = [], []
    for rule in rules:
        port = f"meta l4proto {{ tcp, udp }} th dport {rule.port} " if rule.port else ""
        for of in rule.of:
            family = _family(of)
            to = next((f" to {_nft_target(one, rule.to_port)}" for one in rule.to if _family(one) == family), "")
            if rule.kind == "dnat" and to:
                destinations.append(f"{family} daddr {of} {port}dnat {family}{to}")
            elif rule.kind == "snat" and to:
                sources.append(f"{family} saddr {of} {family} daddr != {of} {port}snat {family}{to}")
            elif rule.kind == "masquerade":
                sources.append(f"{family} saddr {of} {family} daddr != {of} {port}masquerade")
    chains = (("prerouting", "dstnat", destinations), ("postrouting", "srcnat", sources))
    body = "".join(
        f"  chain {hook} {{\n    type nat hook {hook} priority {priority};\n    " + "\n    ".join(lines) + "\n  }\n"
        for hook, priority, lines in chains
        if lines
    )
    return "table inet lab_nat\ndelete table inet lab_nat\n" + (f"table inet lab_nat {{\n{body}}}\n" if body else "")


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _nft_target(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
