"""Values with a form of their own: names, prefixes, points in time, labels, keys."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_network

from bulkhead.policy.fields import expect_items, expect_mapping, read_text, read_written
from bulkhead.policy.findings import Findings
from bulkhead.policy.keys import KeyProblemError, parse_key
from bulkhead.policy.model import Entity, Network, PortSpec
from bulkhead.policy.ports import PortError, parse_port
from bulkhead.policy.yaml_nodes import Node, Scalar

NAME_MAX = 63
DNS_NAME_MAX = 253

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,61}[A-Za-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[-+][0-9]{2}:[0-9]{2})"
)
_SIGNER = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.+@]{0,254}")
_DNS_LABEL = re.compile(r"[a-z0-9_]([-a-z0-9_]{0,61}[a-z0-9_])?")
_PREFIX = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
_WORD = re.compile(r"[A-Za-z][-A-Za-z0-9.]*")
_MAPPED = IPv6Network("::ffff:0:0/96")

RESERVED = frozenset(Entity)


def is_name(text: str) -> bool:
    """True for what may be the name of a policy, workload, external or rule."""
    return _NAME.fullmatch(text) is not None


def read_name(node: Node, what: str, findings: Findings) -> Scalar | None:
    """A name."""
    text = read_text(node, what, findings)
    if text is None:
        return None
    if not is_name(text.text):
        better = _as_name(text.text)
        findings.add("BH0301", text, hint=f"write `{better}`" if better else "", text=text.text)
        return None
    return text


def _as_name(text: str) -> str:
    candidate = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:NAME_MAX].strip("-")
    return candidate if is_name(candidate) else ""


def read_peer_name(node: Node, what: str, findings: Findings) -> Scalar | None:
    """The name of a peer: `NAME` or `POLICY/NAME`."""
    text = read_text(node, what, findings)
    if text is None:
        return None
    parts = text.text.split("/")
    if len(parts) > 2 or not all(is_name(part) for part in parts):
        findings.add("BH0301", text, hint=_peer_hint(text.text), text=text.text)
        return None
    return text


def _peer_hint(text: str) -> str:
    if text in ("*", "all"):
        return "write `any` for every workload, `world` for every address outside"
    if _PREFIX.fullmatch(text) and any(separator in text for separator in ".:"):
        return "addresses get a name under `externals`"
    return ""


def read_trust_domain(node: Node, findings: Findings, what: str = "`trustDomain`") -> str | None:
    """A SPIFFE trust domain name."""
    text = read_text(node, what, findings)
    if text is None:
        return None
    if not _TRUST_DOMAIN.fullmatch(text.text):
        lower = text.text.removeprefix("spiffe://").lower()
        hint = f"write `{lower}`" if _TRUST_DOMAIN.fullmatch(lower) else ""
        findings.add("BH0313", text, hint=hint, text=text.text)
        return None
    return text.text


def read_time(node: Node, what: str, findings: Findings) -> datetime | None:
    """A point in time, aware of its zone."""
    text = read_written(node, what, findings)
    if text is None:
        return None
    if _TIME.fullmatch(text.text):
        try:
            return datetime.fromisoformat(text.text.upper().replace(" ", "T"))
        except ValueError as error:
            findings.add("BH0307", text, hint=str(error), text=text.text)
            return None
    findings.add("BH0307", text, hint="write it as `2027-01-31T18:00:00Z`", text=text.text)
    return None


def read_ports(node: Node, what: str, findings: Findings) -> tuple[PortSpec, ...] | None:
    """A list of ports, not empty."""
    items = expect_items(node, what, findings, empty=False)
    if items is None:
        return None
    specs = [read_port(item, findings) for item in items]
    return tuple(dict.fromkeys(spec for each in specs if each for spec in each)) if all(specs) else None


def read_port(node: Node, findings: Findings) -> tuple[PortSpec, ...] | None:
    """One port."""
    text = read_text(node, "a port", findings, number=True)
    return port_of(text, text.text, findings) if text else None


def port_of(spot: Scalar, text: str, findings: Findings) -> tuple[PortSpec, ...] | None:
    """The port written as `text` at `spot`."""
    try:
        return parse_port(text)
    except PortError as error:
        findings.add("BH0302", spot, hint=error.hint, text=text, problem=error)
        return None


def read_networks(node: Node, what: str, findings: Findings, *, empty: bool) -> tuple[Network, ...] | None:
    """A list of address prefixes."""
    items = expect_items(node, what, findings, empty=empty)
    if items is None:
        return None
    networks = [read_network(item, findings) for item in items]
    return tuple(dict.fromkeys(network for network in networks if network)) if all(networks) else None


def read_network(
    node: Node, findings: Findings, *, name_hint: str = "DNS names are listed under `fqdn`"
) -> Network | None:
    """An address prefix; a bare address is one of its whole length. `name_hint` answers a DNS name."""
    text = read_text(node, "a prefix", findings)
    if text is None:
        return None
    number, hint, network = _network(text.text)
    if network is None:
        is_name = _WORD.fullmatch(text.text) and not _PREFIX.fullmatch(text.text)
        findings.add(number, text, hint=name_hint if is_name else hint, text=text.text)
    return network


@lru_cache(maxsize=16384)
def _network(text: str) -> tuple[str, str, Network | None]:
    """The prefix, or the code and hint of what is wrong with it."""
    if not _PREFIX.fullmatch(text):
        return "BH0303", "", None
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return "BH0303", "", None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return "BH0305", f"write `{_unmapped(network)}`", None
    if text.partition("/")[0] and ip_network(text.partition("/")[0])[0] != network[0]:
        return "BH0304", f"write `{network}`, or a longer prefix", None
    return "", "", network


def _unmapped(network: IPv6Network) -> Network:
    address = IPv6Address(network.network_address).ipv4_mapped
    return ip_network((int(address or 0), network.prefixlen - 96))


def read_names(node: Node, what: str, findings: Findings) -> tuple[str, ...] | None:
    """A list of DNS names, not empty; in lower case, without the final dot."""
    items = expect_items(node, what, findings, empty=False)
    if items is None:
        return None
    names = [_read_fqdn(item, findings) for item in items]
    return tuple(dict.fromkeys(name for name in names if name)) if all(names) else None


def _read_fqdn(node: Node, findings: Findings) -> str | None:
    text = read_text(node, "a DNS name", findings)
    if text is None:
        return None
    name = text.text.lower().removesuffix(".")
    problem, hint = _dns_problem(name)
    if problem:
        findings.add("BH0316", text, hint=hint, text=text.text, problem=problem)
        return None
    return name


def _dns_problem(name: str) -> tuple[str, str]:
    """What keeps a name from being looked up, and a hint; empty when nothing does."""
    labels = name.split(".")
    if not name.isascii():
        return "it is not ASCII", "write its A-labels (`xn--…`), as DNS has them"
    if "/" in name or ":" in name or labels[-1].isdecimal():
        return "it is an address or a URL", "addresses are listed under `cidr`"
    if len(labels) < 2 or labels == ["*", ""]:
        return "it has one label only", "write the name whole, with its domain"
    if any("*" in label for label in (labels[0] if labels[0] != "*" else "", *labels[1:])):
        return "`*` stands for the whole first label", ""
    if len(name) > DNS_NAME_MAX:
        return f"it has more than {DNS_NAME_MAX} characters", ""
    if len(labels) < 3 and labels[0] == "*":
        return "it is every name of a top-level domain", "name a domain below it"
    odd = next((label for label in labels[labels[0] == "*" :] if not _DNS_LABEL.fullmatch(label)), None)
    return ("", "") if odd is None else (f"`{odd}` is no label of a name", "")


def read_signer_name(node: Node, findings: Findings) -> str | None:
    """Who signs: fit for an OpenSSH file of allowed signers."""
    text = read_text(node, "`name`", findings)
    if text is None:
        return None
    if not _SIGNER.fullmatch(text.text):
        findings.add("BH0318", text, text=text.text)
        return None
    return text.text


def read_key(node: Node, findings: Findings) -> str | None:
    """The public key of a signer, in its canonical form."""
    text = read_text(node, "`key`", findings)
    if text is None:
        return None
    try:
        return parse_key(text.text)
    except KeyProblemError as error:
        findings.add("BH0317", text, hint=error.hint, problem=error)
        return None


def read_labels(node: Node, what: str, findings: Findings) -> tuple[tuple[str, str], ...] | None:
    """Labels, sorted by key; not empty."""
    mapping = expect_mapping(node, what, findings, empty=False)
    if mapping is None:
        return None
    pairs = [(_read_label(key, findings), _read_label(value, findings)) for key, value in mapping.entries]
    sound = [(key, value) for key, value in pairs if key and value]
    return tuple(sorted(sound)) if len(sound) == len(pairs) else None


def _read_label(node: Node, findings: Findings) -> str | None:
    text = read_text(node, "a label", findings)
    if text is None:
        return None
    if not _LABEL.fullmatch(text.text):
        findings.add("BH0311", text, text=text.text)
        return None
    return text.text
