"""`kind: Node`: the record of one node, as authors write it. What records mean is in `policy.nodes`."""

from __future__ import annotations

import base64
import binascii
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from bulkhead.policy.draft import DraftNode
from bulkhead.policy.fields import Keys, expect_items, read_mapping, read_text, read_word, read_written
from bulkhead.policy.findings import Findings
from bulkhead.policy.model import Network
from bulkhead.policy.nodes import AUTHORITIES_MAX, KEY_BYTES, NAME, NUMBER_MAX, Unknown
from bulkhead.policy.trust_documents import folded, read_certificate
from bulkhead.policy.values import read_network
from bulkhead.policy.yaml_nodes import Mapping, Node, Scalar, Spot

KEYS_NODE: Final = Keys(
    "the node", ("apiVersion", "kind", "metadata", "addresses"), ("key", "number", "unknown", "revoked", "ca")
)
KEYS_NODE_METADATA: Final = Keys("`metadata`", ("name",))

NUMBER: Final = re.compile(r"[1-9][0-9]{0,7}")
UNKNOWNS: Final = {word.value: word for word in Unknown}
FLAGS: Final = {"true": True, "false": False}

_NOWHERE: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(text), what)
    for text, what in (
        ("0.0.0.0/32", "the unspecified address"),
        ("::/128", "the unspecified address"),
        ("127.0.0.0/8", "a loopback address"),
        ("::1/128", "a loopback address"),
        ("224.0.0.0/4", "a multicast address"),
        ("ff00::/8", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("::ffff:0:0/96", "an IPv4-mapped address"),
    )
)
"""Addresses that no packet between two nodes bears."""


def read_node(document: Mapping, findings: Findings) -> DraftNode | None:
    """The record in a document; None, with findings, when it is not sound."""
    fields = read_mapping(document, KEYS_NODE, findings)
    if fields is None:
        return None
    before = findings.count
    spots: dict[object, Spot] = {}
    name = _read_metadata(fields["metadata"], findings) if "metadata" in fields else None
    addresses = _read_addresses(fields["addresses"], spots, findings) if "addresses" in fields else ()
    key = _read_key(fields["key"], spots, findings) if "key" in fields else None
    number = _read_number(fields["number"], spots, findings) if "number" in fields else None
    unknown = read_word(fields["unknown"], "`unknown`", UNKNOWNS, findings) if "unknown" in fields else None
    revoked = _read_flag(fields["revoked"], findings) if "revoked" in fields else False
    ca = _read_authorities(fields["ca"], findings) if "ca" in fields else ()
    # A key that is not sound must not make a node that runs no agent.
    if findings.count > before or name is None or not addresses:
        return None
    return DraftNode(name, number, key, addresses, unknown or Unknown.DENY, revoked, _spot(document), spots, ca)


def _read_metadata(node: Node, findings: Findings) -> Scalar | None:
    fields = read_mapping(node, KEYS_NODE_METADATA, findings) or {}
    name = read_text(fields["name"], "`name`", findings) if "name" in fields else None
    if name is not None and not NAME.fullmatch(name.text):
        findings.add("BH0323", name, text=name.text)
        return None
    return name


def _read_addresses(node: Node, spots: dict[object, Spot], findings: Findings) -> tuple[Network, ...]:
    items = expect_items(node, "`addresses`", findings, empty=False) or ()
    found: list[Network] = []
    for item in items:
        network = read_network(item, findings, name_hint="a node is known by addresses, not by a name to look up")
        if network is None or not isinstance(item, Scalar):
            continue
        what = next((what for nowhere, what in _NOWHERE if _meet(network, nowhere)), None)
        if what is None:
            found.append(network)
            spots[network] = _spot(item)
        else:
            findings.add("BH0324", item, text=item.text, what=what)
    return tuple(dict.fromkeys(found))


def _meet(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.overlaps(other)
    return isinstance(other, IPv6Network) and one.overlaps(other)


def _read_key(node: Node, spots: dict[object, Spot], findings: Findings) -> bytes | None:
    text = read_text(node, "`key`", findings)
    if text is None:
        return None
    key, problem = _key(text.text)
    if key is None:
        findings.add("BH0325", text, hint="the public key of the node's agent, in base64", problem=problem)
        return None
    spots[key] = _spot(text)
    return key


def _key(text: str) -> tuple[bytes | None, str]:
    """The key, or what is wrong with it. One key has one spelling, so that two records of it are seen to be equal."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None, "it is not base64"
    if len(key) != KEY_BYTES:
        return None, f"it has {len(key)} bytes, not {KEY_BYTES}"
    if base64.b64encode(key).decode() != text:
        return None, "it is not as base64 writes it"
    return (key, "") if any(key) else (None, "it is all zero")


def _read_authorities(node: Node, findings: Findings) -> tuple[bytes, ...]:
    items = expect_items(node, "`ca`", findings, empty=False) or ()
    found = [der for item in items if (der := _read_authority(item, findings)) is not None]
    if len(items) > AUTHORITIES_MAX:
        problem = f"there are {AUTHORITIES_MAX} before it already"
        findings.add("BH0327", _spot_of(items[AUTHORITIES_MAX]), problem=problem)
    return tuple(dict.fromkeys(found))


def _read_authority(node: Node, findings: Findings) -> bytes | None:
    text = read_text(folded(node), "`ca`", findings)
    der = read_certificate(text.text) if text is not None else None
    if text is not None and der is None:
        hint = "what `bulkhead identity init` prints"
        findings.add("BH0327", text, hint=hint, problem="it is no certificate in base64 or PEM")
    return der


def _read_number(node: Node, spots: dict[object, Spot], findings: Findings) -> int | None:
    text = read_text(node, "`number`", findings, number=True)
    if text is None:
        return None
    if not NUMBER.fullmatch(text.text) or int(text.text) > NUMBER_MAX:
        findings.add("BH0326", text, hint=f"a whole number from 1 to {NUMBER_MAX}", text=text.text)
        return None
    spots[int(text.text)] = _spot(text)
    return int(text.text)


def _read_flag(node: Node, findings: Findings) -> bool:
    text = read_written(node, "`revoked`", findings)
    if text is None:
        return False
    if not text.plain or text.text not in FLAGS:
        findings.add("BH0306", text, hint="write `true` or `false`", text=text.text, what="`revoked`")
        return False
    return FLAGS[text.text]


def _spot(node: Scalar | Mapping) -> Spot:
    return Spot(node.line, node.column, node.width)


def _spot_of(node: Node) -> Spot:
    return Spot(node.line, node.column)
