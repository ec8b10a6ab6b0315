"""Values with a form of their own: names, prefixes, points in time, labels, selectors."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_network

from bulkhead.policy.fields import Keys, expect_items, expect_mapping, read_mapping, read_text, read_written
from bulkhead.policy.findings import Findings
from bulkhead.policy.glob import can_end_in, has_wildcard
from bulkhead.policy.model import Entity, Match, Network, PortSpec
from bulkhead.policy.ports import PortError, parse_port
from bulkhead.policy.scalars import DECIMAL
from bulkhead.policy.yaml_nodes import Node, Scalar, Sequence

NAME_MAX = 63
UID_MAX = 4294967294
UNIT_SUFFIXES = (".service", ".scope", ".socket", ".mount", ".swap")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,61}[A-Za-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_USER = re.compile(r"[A-Za-z_][-A-Za-z0-9_.]{0,254}\$?")
_HOST = re.compile(r"[A-Za-z0-9._*?-]{1,253}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[-+][0-9]{2}:[0-9]{2})"
)
_PREFIX = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")
_MAPPED = IPv6Network("::ffff:0:0/96")

RESERVED = frozenset(Entity)

MATCH = Keys(
    "`match`",
    (),
    ("host", "unit", "cgroup", "exe", "user", "group", "all"),
    frozenset({"labels", "namespace"}),
)


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


def read_trust_domain(node: Node, findings: Findings) -> str | None:
    """A SPIFFE trust domain name."""
    text = read_text(node, "`trustDomain`", findings)
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
    networks = [_read_network(item, findings) for item in items]
    return tuple(dict.fromkeys(network for network in networks if network)) if all(networks) else None


def _read_network(node: Node, findings: Findings) -> Network | None:
    text = read_text(node, "a prefix", findings)
    if text is None:
        return None
    number, hint, network = _network(text.text)
    if network is None:
        findings.add(number, text, hint=hint, text=text.text)
    return network


@lru_cache(maxsize=16384)
def _network(text: str) -> tuple[str, str, Network | None]:
    """The prefix, or the code and hint of what is wrong with it."""
    if not _PREFIX.fullmatch(text):
        named = re.fullmatch(r"[A-Za-z][-A-Za-z0-9.]*", text)
        return "BH0303", "names cannot be matched in this version: list their prefixes" if named else "", None
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


def read_match(node: Node, findings: Findings) -> Match | None:
    """A selector. One of `host` alone selects everything there, as `all: true` does."""
    if expect_mapping(node, "`match`", findings, empty=False) is None:
        return None
    before = findings.count
    fields = read_mapping(node, MATCH, findings) or {}
    values = {key: _patterns(key, value, findings) for key, value in fields.items() if key != "all"}
    everything = "all" in fields and _read_all(fields["all"], values, findings)
    if findings.count > before or None in values.values():
        return None
    sound = {key: value for key, value in values.items() if value}
    return Match(**sound, everything=everything or sound.keys() == {"host"})


def _read_all(node: Node, others: dict[str, tuple[str, ...] | None], findings: Findings) -> bool:
    text = read_written(node, "`all`", findings)
    if text is None:
        return False
    if not (text.plain and text.text == "true"):
        findings.add("BH0312", text, hint="write `all: true` or leave it out", problem="its only value is `true`")
        return False
    if others.keys() - {"host"}:
        findings.add("BH0312", text, hint="leave it out", problem="the other keys would say nothing")
        return False
    return True


def _patterns(key: str, node: Node, findings: Findings) -> tuple[str, ...] | None:
    """A text or a list of texts."""
    items = expect_items(node, f"`{key}`", findings, empty=False) if isinstance(node, Sequence) else (node,)
    if items is None:
        return None
    texts = [read_text(item, f"`{key}`", findings, number=key in ("user", "group")) for item in items]
    checked = [text.text for text in texts if text and _check_pattern(key, text, findings)]
    return tuple(dict.fromkeys(checked)) if len(checked) == len(items) else None


def _check_pattern(key: str, text: Scalar, findings: Findings) -> bool:
    if key in ("user", "group"):
        return _check_account(key, text, findings)
    if key in ("cgroup", "exe"):
        return _check_path(key, text, findings)
    return _check_host(text, findings) if key == "host" else _check_unit(text, findings)


def _check_account(key: str, text: Scalar, findings: Findings) -> bool:
    sound = int(text.text) <= UID_MAX if DECIMAL.fullmatch(text.text) else _USER.fullmatch(text.text) is not None
    if not sound:
        findings.add("BH0310", text, text=text.text, what=key)
    return sound


def _check_path(key: str, text: Scalar, findings: Findings) -> bool:
    path = text.text
    problem, hint = "", ""
    if not path.startswith("/"):
        problem, hint = "it is not absolute", f"write `/{path}`" if key == "cgroup" else ""
    elif key == "exe" and has_wildcard(path):
        problem, hint = "`exe` takes no globs", "list the executables"
    elif "**" in path:
        problem, hint = "`*` stays within a component", "a control group covers its whole subtree"
    elif path != "/" and path.endswith("/"):
        problem, hint = "it ends in `/`", f"write `{path.rstrip('/') or '/'}`"
    elif key == "exe" and path == "/":
        problem = "it is a directory"
    elif path != "/" and any(part in ("", ".", "..") for part in path.split("/")[1:]):
        problem = "it is not in its shortest form"
    if problem:
        findings.add("BH0309", text, hint=hint, text=path, problem=problem)
    return not problem


def _check_host(text: Scalar, findings: Findings) -> bool:
    if not _HOST.fullmatch(text.text):
        findings.add("BH0308", text, text=text.text, problem="no host has such a name")
        return False
    return True


def _check_unit(text: Scalar, findings: Findings) -> bool:
    if "/" in text.text:
        findings.add("BH0308", text, hint="a path is a `cgroup`", text=text.text, problem="units have no `/`")
        return False
    if not any(can_end_in(text.text, suffix) for suffix in UNIT_SUFFIXES):
        hint = "" if text.text.endswith(".slice") else f"write `{text.text}.service`"
        problem = "units end in `.service`, `.scope`, `.socket`, `.mount` or `.swap`"
        findings.add("BH0308", text, hint=hint, text=text.text, problem=problem)
        return False
    return True
