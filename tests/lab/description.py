"""What a lab consists of, as its YAML file says: hosts, a router between them, and the policy that they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import yaml

Interface = IPv4Interface | IPv6Interface
_NAME = re.compile(r"[a-z][a-z0-9-]{0,10}[a-z0-9]?")
"""Short: a device of the router is called after each host."""
_HOSTS_MAX = 200


@dataclass(frozen=True, slots=True)
class Serving:
    """A program that echoes, over TCP and UDP, in a control group of its host."""

    group: str
    port: int


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One host."""

    name: str
    number: int
    """1.., in the order of the file; it is in the default addresses."""
    addresses: tuple[Interface, ...]
    """Of its one device, eth0. The router has the lowest other address of each network."""
    agent: bool = True
    """False: nothing of Bulkhead runs there, as on an appliance or an attacker's machine."""
    serve: tuple[Serving, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of its agent, as in agent.toml."""

    @property
    def routers(self) -> tuple[Interface, ...]:
        """The router's address in each of the networks."""
        return tuple(map(router_of, self.addresses))


def router_of(address: Interface) -> Interface:
    """The lowest address of the network that is not the host's own."""
    network = address.network
    at = next(one for one in (network[1], network[2]) if one != address.ip)
    return ip_interface(f"{at}/{network.prefixlen}")


@dataclass(frozen=True, slots=True)
class Nat:
    """One rule of address translation. `of` and `to` are addresses or prefixes, hosts' names already replaced."""

    kind: str
    """`masquerade`, `snat` or `dnat`."""
    of: tuple[str, ...]
    """Whose addresses are replaced: sources, or the destinations that stand for somebody else."""
    to: tuple[str, ...] = ()
    port: int | None = None
    """Only conversations to this port are translated."""
    to_port: int | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """The whole lab."""

    hosts: tuple[HostSpec, ...]
    nat: tuple[Nat, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of every agent, as in agent.toml."""
    policy: Mapping[str, str] = field(default_factory=dict)
    """Files of the shared repository, by path."""
    wire: bool = False
    """Every agent has a key and a record, so that identities travel with conversations."""
    mesh: bool = False
    """Every agent has a certificate authority of its own as well, in its record: mutual TLS can be."""
    offloads: bool = False
    """Of all devices. Off: what is captured is what is on the wire, and no receiver takes a checksum on trust."""

    def host(self, name: str) -> HostSpec:
        """Raises ValueError when there is none of that name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise ValueError(f"there is no host `{name}`: known are {', '.join(host.name for host in self.hosts)}")


def load(path: Path) -> Description:
    """Read a file. Raises ValueError, one sentence, when it does not describe a lab."""
    try:
        return read(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read(given: Any, directory: Path = Path()) -> Description:
    """As `load`, from what YAML made of it. `directory` is where a path for `policy` starts from."""
    _check_keys("the description", given, {one.name for one in fields(Description)} - {"nat"} | {"router"})
    hosts = given.get("hosts")
    if not isinstance(hosts, Mapping) or not 1 <= len(hosts) <= _HOSTS_MAX:
        raise ValueError(f"`hosts` maps 1..{_HOSTS_MAX} names to what each host is")
    specs = tuple(_host(number, name, one or {}) for number, (name, one) in enumerate(hosts.items(), start=1))
    router = given.get("router") or {}
    _check_keys("`router`", router, {"nat"})
    return Description(
        hosts=specs,
        nat=tuple(nat(rule, specs) for rule in router.get("nat") or ()),
        settings=given.get("settings") or {},
        policy=_policy(given.get("policy") or {}, directory),
        wire=bool(given.get("wire", False)) or bool(given.get("mesh", False)),
        mesh=bool(given.get("mesh", False)),
        offloads=bool(given.get("offloads", False)),
    )


def _check_keys(what: str, given: Any, known: Iterable[str]) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} is a mapping")
    for key in given:
        if key not in known:
            raise ValueError(f"{what} has no key `{key}`: known are {', '.join(sorted(known))}")


def _host(number: int, name: Any, given: Any) -> HostSpec:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a host's name is up to 12 lower-case letters, digits and hyphens, not `{name}`")
    _check_keys(f"the host `{name}`", given, ("addresses", "agent", "serve", "settings"))
    addresses = given.get("addresses") or (f"10.78.{number}.2/24", f"fd78:{number}::2/64")
    return HostSpec(
        name=name,
        number=number,
        addresses=interfaces(addresses),
        agent=bool(given.get("agent", True)),
        serve=tuple(Serving(group, port) for group, port in (given.get("serve") or {}).items()),
        settings=given.get("settings") or {},
    )


def interfaces(addresses: Iterable[str]) -> tuple[Interface, ...]:
    """Addresses with their prefix lengths. Raises ValueError for one that leaves the router none in its network."""
    found = tuple(map(ip_interface, addresses))
    for one in found:
        if one.network.num_addresses < 4:
            raise ValueError(f"`{one}` leaves no room for the router in its network")
    return found


def nat(given: Any, hosts: Iterable[HostSpec]) -> Nat:
    """One rule: `{masquerade: HOST}`, `{snat: HOST, to: ADDRESS}`, `{dnat: ADDRESS, to: HOST, port: N, to_port: N}`.

    A host may be given as a prefix, too. Raises ValueError.
    """
    _check_keys("a rule of `nat`", given, ("masquerade", "snat", "dnat", "to", "port", "to_port"))
    kinds = [kind for kind in ("masquerade", "snat", "dnat") if kind in given]
    if len(kinds) != 1 or ("to" in given) == (kinds[0] == "masquerade"):
        raise ValueError(f"a rule of `nat` is masquerade, snat with `to`, or dnat with `to`, not {dict(given)}")
    known = {host.name: host for host in hosts}
    kind, of, to = kinds[0], given[kinds[0]], given.get("to")
    if kind == "dnat":
        return Nat(
            kind, tuple(_prefixes(of, {})), tuple(_addresses(to, known)), given.get("port"), given.get("to_port")
        )
    return Nat(kind, tuple(_prefixes(of, known)), tuple(_addresses(to, {})) if to else (), given.get("port"))


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _prefixes(given: Any, known: Mapping[str, HostSpec]) -> Iterator[str]:
    for one in _listed(given):
        if one in known:
            yield from (str(address.network) for address in known[one].addresses)
        else:
            yield str(ip_network(one))


def _addresses(given: Any, known: Mapping[str, HostSpec]) -> Iterator[str]:
    for one in _listed(given):
        if one in known:
            yield from (str(address.ip) for address in known[one].addresses)
        else:
            yield str(ip_address(one))


def _policy(given: Any, directory: Path) -> dict[str, str]:
    """Written out as file by file, or the path of a directory of them."""
    if isinstance(given, Mapping):
        return dict(given)
    root = directory / str(given)
    found = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.yaml"))}
    if not found:
        raise ValueError(f"no policy is in `{root}`")
    return found
