"""The process that holds the private key: what it derives, and which files it refuses."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from bulkhead import keyd
from bulkhead.config import Etcd, Settings
from bulkhead.daemon.keys import KeyProcess
from bulkhead.errors import UnreachableError, UsageError
from bulkhead.policy.nodes import Node, default_number
from lab.nodes import PASSPHRASE, KeyFile, key_file
from lab.wire import Party, direction_key, pair_secret

DOMAIN = "example.org"
ANN, BOB = Party("ann", b"\x01" * 32), Party("bob", b"\x02" * 32)
LOW_ORDER = (
    bytes(32),
    (1).to_bytes(32, "little"),
    ((1 << 255) - 19).to_bytes(32, "little"),
    ((1 << 255) - 20).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
)
ETCD = Etcd(("https://192.0.2.1:2379",), "/ca", "/cert", "/key")


def keys_of(party: Party) -> keyd.Keys:
    return keyd.Keys(X25519PrivateKey.from_private_bytes(party.secret))


def pair(own: Party, peer: Party, epochs: range, domain: str = DOMAIN) -> bytes:
    """What the process of `own` derives."""
    ends = keyd.Party(own.name, own.node), keyd.Party(peer.name, peer.node)
    return keys_of(own).pair(domain, *ends, peer.public, epochs)


def test_keys_are_those_that_a_second_implementation_derives() -> None:
    shared = pair_secret(ANN.secret, BOB.public)
    expected = b"".join(
        direction_key(shared, DOMAIN, sender, receiver, epoch)
        for epoch in (430000, 430001)
        for sender, receiver in ((ANN, BOB), (BOB, ANN))
    )
    assert pair(ANN, BOB, range(430000, 430002)) == expected


def test_what_one_end_sends_by_the_other_receives_by() -> None:
    ann, bob = pair(ANN, BOB, range(7, 8)), pair(BOB, ANN, range(7, 8))
    assert (ann[:16], ann[16:]) == (bob[16:], bob[:16])


def test_another_epoch_domain_name_or_number_is_another_key() -> None:
    found = {
        pair(ANN, BOB, range(7, 8)),
        pair(ANN, BOB, range(8, 9)),
        pair(ANN, BOB, range(7, 8), "example.net"),
        pair(ANN, Party("eve", BOB.secret), range(7, 8)),
        pair(ANN, Party("bob", BOB.secret, 9), range(7, 8)),
        pair(Party("ann", ANN.secret, 9), BOB, range(7, 8)),
    }
    assert len(found) == 6


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_point_of_low_order_shares_nothing_and_others_are_unaffected(point: bytes) -> None:
    peers = [["evil", 5, point.hex()], ["bob", BOB.node, BOB.public.hex()], ["short", 6, "00"]]
    request = {"domain": DOMAIN, "name": "ann", "number": ANN.node, "first": 7, "count": 1, "peers": peers}
    assert keyd.derive(keys_of(ANN), request) == (["evil", "short"], pair(ANN, BOB, range(7, 8)))


# Files


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return key_file(tmp_path)


def test_a_key_is_read_back_under_its_passphrase(key: KeyFile) -> None:
    assert keyd.Keys(keyd.read_key(key.path, key.passphrase)).public == key.public
    assert PASSPHRASE not in key.path.read_bytes()


def test_openssl_reads_the_file_too(key: KeyFile) -> None:
    command = [
        "openssl",
        "pkey",
        "-in",
        str(key.path),
        "-passin",
        f"file:{key.passphrase}",
        "-pubout",
        "-outform",
        "DER",
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    assert done.stdout.endswith(key.public)


def _plain(key: KeyFile) -> None:
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.path.write_bytes(X25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, *form))


def _elliptic(key: KeyFile) -> None:
    form = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(PASSPHRASE)
    key.path.write_bytes(generate_private_key(SECP256R1()).private_bytes(serialization.Encoding.PEM, *form))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_plain, "is not encrypted"),
        (_elliptic, "holds another kind of key than X25519"),
        (lambda key: key.path.write_bytes(b"?"), "is no PKCS#8 key under that passphrase"),
        (lambda key: key.passphrase.write_bytes(b"wrong\n"), "is no PKCS#8 key under that passphrase"),
        (lambda key: key.passphrase.write_bytes(b"\n"), "is empty"),
        (lambda key: key.path.chmod(0o640), "others than its owner may read"),
        (lambda key: key.passphrase.chmod(0o604), "others than its owner may read"),
        (lambda key: key.path.unlink(), "No such file or directory"),
        (lambda key: (key.path.unlink(), key.path.mkdir()), "Is a directory"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_one_sentence(
    key: KeyFile, spoil: Callable[[KeyFile], object], complaint: str
) -> None:
    spoil(key)
    with pytest.raises(UsageError) as refused:
        keyd.read_key(key.path, key.passphrase)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_of_another_user_is_refused(key: KeyFile) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    os.chown(key.path, 65534, 65534)
    with pytest.raises(UsageError, match="belongs to user 65534"):
        keyd.read_key(key.path, key.passphrase)


def test_a_path_may_begin_at_the_credentials_that_systemd_gives(key: KeyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [Path(f"$CREDENTIALS_DIRECTORY/{path.name}") for path in (key.path, key.passphrase)]
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key.path.parent))
    assert keyd.Keys(keyd.read_key(*places)).public == key.public
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(UsageError, match="no credentials were given"):
        keyd.read_key(*places)


# The process


def with_process(settings: Settings, work: Callable[[KeyProcess], Awaitable[None]]) -> None:
    """Runs the key process while `work` does."""

    async def main() -> None:
        keys = KeyProcess(settings)
        keys.start()
        try:
            await asyncio.wait_for(work(keys), 20)
        finally:
            await keys.stop()

    asyncio.run(main())


async def until(keys: KeyProcess, is_so: Callable[[], bool]) -> None:
    """Wait for something that the process is told to have come to."""
    told = asyncio.Event()
    keys.on_change = told.set
    while not is_so():
        told.clear()
        await told.wait()


def node(party: Party, key: bytes | None = None) -> Node:
    return Node(party.name, party.node, (ip_network("10.0.0.1"),), key or party.public)


def test_the_agent_gets_derived_keys_and_the_names_of_those_that_share_nothing(key: KeyFile) -> None:
    async def work(keys: KeyProcess) -> None:
        await until(keys, lambda: keys.own is not None)
        assert keys.own is not None
        assert (keys.own.public, keys.own.ephemeral, keys.error) == (key.public, False, "")
        evil = Node("evil", 5, (ip_network("10.0.0.5"),), LOW_ORDER[1])
        own = Node("ann", default_number("ann"), (ip_network("10.0.0.9"),), key.public)
        derived = await keys.derive(DOMAIN, own, [evil, node(BOB)], range(7, 9))
        assert (derived.weak, [one.name for one in derived.nodes]) == (("evil",), ["bob"])
        pseudo_random = pair_secret(BOB.secret, key.public)
        assert derived.values[:16] == direction_key(pseudo_random, DOMAIN, Party("ann", b""), BOB, 7)

    with_process(Settings(host="ann", node_key=key.path, node_key_passphrase=key.passphrase), work)


def test_without_a_file_the_key_lives_and_dies_with_the_process() -> None:
    async def work(keys: KeyProcess) -> None:
        await until(keys, lambda: keys.own is not None)
        first = keys.own
        assert first is not None
        assert first.ephemeral
        os.kill(keys.pid, 9)
        await until(keys, lambda: keys.own not in (None, first))
        assert keys.restarts == 1

    with_process(Settings(host="ann", registry="etcd", etcd=ETCD), work)


def test_without_key_and_registry_there_is_no_process() -> None:
    async def work(keys: KeyProcess) -> None:
        assert (keys.is_wanted, keys.pid, keys.error) == (False, 0, "no `node_key` is set")
        with pytest.raises(UnreachableError):
            await keys.derive(DOMAIN, node(ANN), [node(BOB)], range(7, 8))

    with_process(Settings(host="ann"), work)


def test_a_key_that_is_put_right_is_taken_up_without_a_restart_of_the_agent(key: KeyFile) -> None:
    async def work(keys: KeyProcess) -> None:
        await until(keys, lambda: "others than its owner may read" in keys.error)
        assert keys.own is None
        key.path.chmod(0o600)
        await until(keys, lambda: keys.own is not None)
        assert keys.error == ""

    key.path.chmod(0o644)
    with_process(Settings(host="ann", node_key=key.path, node_key_passphrase=key.passphrase), work)
