"""A node's record as JSON: written by its agent, or by an operator; read as if by neither.

    {"version": 1, "name": "web-1", "number": 4711, "key": "<base64>", "addresses": ["10.0.0.7", "fd00::7"],
     "unknown": "deny", "revoked": false, "ca": ["<base64>"]}

`key` is null for a node without an agent. `number`, `key`, `unknown`, `revoked` and `ca` may be absent.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from ipaddress import IPv6Network, ip_network
from typing import Any, Final

from bulkhead.policy.model import Network
from bulkhead.policy.nodes import AUTHORITIES_MAX, KEY_BYTES, NUMBER_MAX, Node, Unknown, default_number
from bulkhead.policy.trust_documents import read_certificate

RECORD_BYTES_MAX: Final = 64 << 10
ADDRESSES_MAX: Final = 64
SHORTEST_PREFIX: Final = {4: 16, 6: 48}
"""Of the networks behind one node, by version: whoever writes a record must not be able to claim half the world."""
VERSION: Final = 1

_FIELDS: Final = frozenset({"name", "number", "key", "addresses", "unknown", "revoked", "ca"})
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]{0,251}[A-Za-z0-9])?")


class RecordError(ValueError):
    """It is no record of a node; says why in one clause."""


def is_node_name(name: str) -> bool:
    """May a node have this name in a registry?"""
    return _NAME.fullmatch(name) is not None


def write(node: Node) -> bytes:
    """The record of a node."""
    fields: dict[str, object] = {
        "version": VERSION,
        "name": node.name,
        "number": node.number,
        "key": None if node.key is None else base64.b64encode(node.key).decode(),
        "addresses": [str(network) for network in node.addresses],
        "unknown": node.unknown.value,
        "revoked": node.revoked,
    }
    if node.ca:  # an agent that knows of none refuses a field that it does not know
        fields["ca"] = [base64.b64encode(der).decode() for der in node.ca]
    return json.dumps(fields, separators=(",", ":")).encode()


def read(name: str, value: bytes, origin: str) -> Node:
    """The node that a record filed under `name` is of. Raises RecordError for whatever is not understood whole."""
    if not is_node_name(name):
        raise RecordError("the name it is filed under is none that a host can have")
    if len(value) > RECORD_BYTES_MAX:
        raise RecordError(f"it has {len(value)} bytes, more than {RECORD_BYTES_MAX}")
    fields = _object(value)
    if fields.pop("version", None) != VERSION:
        raise RecordError(f"`version` is not {VERSION}")
    if strange := [key for key in fields if key not in _FIELDS]:
        raise RecordError(f"it has a field `{strange[0][:40]}`, which version {VERSION} does not know")
    if missing := [key for key in ("name", "addresses") if key not in fields]:
        raise RecordError(f"`{missing[0]}` is missing")
    if fields["name"] != name:
        raise RecordError("`name` is not the name that it is filed under")
    return Node(
        name,
        _number(fields.get("number", default_number(name))),
        _addresses(fields["addresses"]),
        _key(fields.get("key")),
        _unknown(fields.get("unknown", Unknown.DENY)),
        _revoked(fields.get("revoked", False)),
        origin,
        _authorities(fields.get("ca", [])),
    )


def _object(value: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise RecordError("it has a field twice")
        return fields

    try:
        fields = json.loads(value.decode("utf-8"), object_pairs_hook=unique)
    except RecordError:
        raise
    except (ValueError, RecursionError) as error:
        raise RecordError("it is not JSON") from error
    if not isinstance(fields, dict):
        raise RecordError("it is not a JSON object")
    return fields


def _number(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= NUMBER_MAX:
        raise RecordError(f"`number` is not 1..{NUMBER_MAX}")
    return value


def _key(value: Any) -> bytes | None:
    if value is None:
        return None
    try:
        key = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES or not any(key):
        raise RecordError(f"`key` is not {KEY_BYTES} bytes of an X25519 public key in base64")
    return key


def _addresses(value: Any) -> tuple[Network, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= ADDRESSES_MAX:
        raise RecordError(f"`addresses` is not a list of 1..{ADDRESSES_MAX}")
    return tuple(dict.fromkeys(_address(one) for one in value))


def _address(value: Any) -> Network:
    try:
        network = ip_network(value) if isinstance(value, str) else None
    except ValueError:
        network = None
    if network is None:
        raise RecordError("`addresses` has what is no address or prefix")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise RecordError(f"`addresses` has `{network}`, which is an IPv4 address in disguise")
    if network.is_multicast or network.is_loopback or network.is_unspecified:
        raise RecordError(f"`addresses` has `{network}`, which is where no node is")
    if network.prefixlen < SHORTEST_PREFIX[network.version]:
        raise RecordError(f"`addresses` has `{network}`, shorter than /{SHORTEST_PREFIX[network.version]}")
    return network


def _unknown(value: Any) -> Unknown:
    try:
        return Unknown(value)
    except ValueError as error:
        raise RecordError("`unknown` is not `deny` or `address`") from error


def _revoked(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RecordError("`revoked` is not true or false")
    return value


def _authorities(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > AUTHORITIES_MAX:
        raise RecordError(f"`ca` is not a list of {AUTHORITIES_MAX} at most")
    found = tuple(map(read_certificate, value))
    if None in found:
        raise RecordError("`ca` has what is no certificate in base64")
    return tuple(dict.fromkeys(der for der in found if der is not None))
