"""Ports of the dialects: numbers, ranges and the names that pods give their ports."""

from __future__ import annotations

import re

from bulkhead.policy.cluster import ClusterPort
from bulkhead.policy.dialects.objects import read_number
from bulkhead.policy.fields import Keys, read_mapping, read_text, read_word
from bulkhead.policy.findings import Findings
from bulkhead.policy.ports import PORT_MAX, TCP, UDP
from bulkhead.policy.scalars import DECIMAL
from bulkhead.policy.yaml_nodes import Node

SCTP = 132
PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}

PORTS_SHOWN = 6

_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?")
_PROTOCOL_TEXTS = {number: name.lower() for name, number in PROTOCOLS.items()}


def read_protocol(fields: dict[str, Node], findings: Findings) -> int | None:
    """The IP protocol of a port: TCP unless it says otherwise."""
    return read_word(fields["protocol"], "`protocol`", PROTOCOLS, findings) if "protocol" in fields else TCP


def read_port_number(node: Node, what: str, findings: Findings) -> int | None:
    """One port, 1 to 65535."""
    return read_number(node, what, 1, PORT_MAX, findings)


def read_port_name(node: Node, what: str, findings: Findings) -> str | None:
    """What a pod may call a port of its own."""
    text = read_text(node, what, findings, number=True)
    if text is None:
        return None
    if not _NAME.fullmatch(text.text):
        hint = f"write {text.text} without quotes" if DECIMAL.fullmatch(text.text[: len(str(PORT_MAX)) + 1]) else ""
        findings.add("BH1208", text, hint=hint, text=text.text)
        return None
    return text.text


def read_range(node: Node, what: str, findings: Findings, *, protocol: int | None = None) -> ClusterPort | None:
    """`start` to `end`, which must be greater; with a `protocol` key of its own, unless one is given."""
    own = ("protocol",) if protocol is None else ()
    fields = read_mapping(node, Keys(what, ("start", "end"), own), findings)
    if fields is None or not {"start", "end"} <= fields.keys():
        return None
    number = protocol or read_protocol(fields, findings)
    first = read_port_number(fields["start"], "`start`", findings)
    last = read_port_number(fields["end"], "`end`", findings)
    if number is None or first is None or last is None:
        return None
    if first >= last:
        findings.add("BH1209", fields["end"], what="`end`", last=last, comparison="not greater than", first=first)
        return None
    return ClusterPort(number, first, last)


def named_port(protocol: int | None, name: str) -> ClusterPort:
    """The port that the receiving pod calls by this name."""
    return ClusterPort(protocol, 0, 0, name)


def ports_text(ports: tuple[ClusterPort, ...] | None, most: int = PORTS_SHOWN) -> str:
    """Ports in a few words, such as `80, 443-445/udp, http`; TCP goes without saying. Of them, `most` are written."""
    if ports is None:
        return "any"
    shown = [_port_text(port) for port in ports[:most]]
    rest = len(ports) - most
    return ", ".join([*shown, f"{rest} more"] if rest > 0 else shown)


def _port_text(port: ClusterPort) -> str:
    whole = not port.name and port.first == 0
    protocol = "any" if port.protocol is None else _PROTOCOL_TEXTS[port.protocol]
    if whole:
        return f"any/{protocol}"
    between = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
    return (port.name or between) + ("" if port.protocol == TCP else f"/{protocol}")
