"""A node's record: what is written is read back, and what is not understood whole is refused."""

from __future__ import annotations

import base64
import json
from ipaddress import ip_network
from typing import Any

import pytest

from bulkhead.policy.nodes import Node, Unknown, default_number
from bulkhead.registry import record

KEY = base64.b64encode(bytes(range(32))).decode()

CERTIFICATE = b"\x30\x82\x01\x00" + bytes(256)


def written(**fields: Any) -> bytes:
    """A record that makes sense, with what is given in place of it; None leaves a field out."""
    sensible = {"version": 1, "name": "web-1", "number": 7, "key": KEY, "addresses": ["10.0.0.7", "fd00::/64"]}
    return json.dumps({key: one for key, one in (sensible | fields).items() if one is not None}).encode()


@pytest.mark.parametrize("key", [bytes(range(32)), None])
def test_what_is_written_is_read_back(key: bytes | None) -> None:
    networks = (ip_network("10.0.0.7"), ip_network("fd00::/64"))
    for authorities in ((), (CERTIFICATE,)):
        node = Node("web-1", 7, networks, key, Unknown.ADDRESS, revoked=True, origin="here", ca=authorities)
        assert record.read("web-1", record.write(node), "here") == node


def test_what_is_left_out_has_a_value() -> None:
    node = record.read("web-1", written(number=None, key=None), "here")
    assert (node.number, node.key, node.unknown, node.revoked) == (default_number("web-1"), None, Unknown.DENY, False)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"3", "not a JSON object"),
        (b'{"version": 1, "version": 1}', "a field twice"),
        (b" " * (64 << 10) + b"{}", "more than 65536"),
        (written(version=2), "`version` is not 1"),
        (written(version="1"), "`version` is not 1"),
        (written(labels=[]), "a field `labels`"),
        (written(name=None), "`name` is missing"),
        (written(name="web-2"), "not the name that it is filed under"),
        (written(name=["web-1"]), "not the name that it is filed under"),
        (written(number=0), "`number` is not 1..16777215"),
        (written(ca="AAAA"), "`ca` is not a list"),
        (written(ca=[base64.b64encode(CERTIFICATE).decode()] * 5), "`ca` is not a list"),
        (written(ca=["AAAA"]), "`ca` has what is no certificate"),
        (written(ca=[7]), "`ca` has what is no certificate"),
        (written(number=1 << 24), "`number` is not"),
        (written(number=True), "`number` is not"),
        (written(number=7.0), "`number` is not"),
        (written(number="7"), "`number` is not"),
        (written(key=3), "`key` is not 32 bytes"),
        (written(key=KEY[:-4]), "`key` is not 32 bytes"),
        (written(key="é" * 44), "`key` is not 32 bytes"),
        (written(key=base64.b64encode(bytes(32)).decode()), "`key` is not 32 bytes"),
        (written(addresses=None), "`addresses` is missing"),
        (written(addresses=[]), "not a list of 1..64"),
        (written(addresses="10.0.0.7"), "not a list of 1..64"),
        (written(addresses=["10.0.0.7"] * 65), "not a list of 1..64"),
        (written(addresses=[167772167]), "no address or prefix"),
        (written(addresses=["web-1.example"]), "no address or prefix"),
        (written(addresses=["10.0.0.7/24"]), "no address or prefix"),
        (written(addresses=["0.0.0.0/0"]), "shorter than /16"),
        (written(addresses=["10.0.0.0/15"]), "shorter than /16"),
        (written(addresses=["2001:db8::/47"]), "shorter than /48"),
        (written(addresses=["0.0.0.0"]), "where no node is"),
        (written(addresses=["127.0.0.1"]), "where no node is"),
        (written(addresses=["ff02::1"]), "where no node is"),
        (written(addresses=["::ffff:10.0.0.7"]), "in disguise"),
        (written(unknown="allow"), "`unknown` is not"),
        (written(unknown=[]), "`unknown` is not"),
        (written(revoked="no"), "`revoked` is not"),
        (written(revoked=0), "`revoked` is not"),
    ],
)
def test_what_is_not_understood_whole_is_refused_in_one_clause(value: bytes, word: str) -> None:
    with pytest.raises(record.RecordError) as refused:
        record.read("web-1", value, "here")
    assert word in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["web-1", "web-1.example.org", "A", "x" * 253])
def test_a_host_name_is_a_name_of_a_node(name: str) -> None:
    assert record.is_node_name(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "a/b", "a b", "a\n", "ä", "x" * 254, "..", "a\x00"])
def test_what_no_host_is_called_is_not(name: str) -> None:
    assert not record.is_node_name(name)
