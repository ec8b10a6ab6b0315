"""bulkhead-keys: the process that holds this node's private key.

The agent asks it for what follows from the key: the public half, and the keys that authenticate messages from and to
another node. The private half and what is shared with a node stay here, in memory that is locked, written to no core
file and readable by nobody who lacks CAP_SYS_PTRACE. It holds no capability and writes no file.

Messages to the agent, each a JSON line followed by `bytes` raw bytes:

    {"kind": "own", "key": …, "ephemeral": false, "locked": true, "bytes": 0}
    {"kind": "failed", "error": …, "bytes": 0}                    no key: this process ends
    {"kind": "keys", "id": …, "weak": […], "bytes": N}            of each peer but the weak, for each epoch, 32 bytes

Messages from it, a JSON line each; when it closes its end, this process ends:

    {"op": "derive", "id": …, "domain": …, "name": …, "number": …, "first": …, "count": …,
     "peers": [[name, number, key], …]}
"""

from __future__ import annotations

import hmac
import json
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from bulkhead import config
from bulkhead.confinement import confine, end_with_parent, hide_memory, lock_memory
from bulkhead.errors import UsageError
from bulkhead.secret_files import read_passphrase, read_secret

KEY_BYTES: Final = 16
"""Of one direction's key, for SipHash."""
_LABEL: Final = b"bulkhead wire v1"
_MEMORY_BYTES_MAX: Final = 1 << 30
_FILES_MAX: Final = 64
_REQUEST_BYTES_MAX: Final = 1 << 20
_PEERS_MAX: Final = 1 << 16


class Party(NamedTuple):
    """One end of a conversation."""

    name: str
    number: int


class Keys:
    """One node's private key, and what it shares with others."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self._shared: dict[bytes, bytes] = {}
        """HKDF's pseudo-random key, by the other's public key."""

    @property
    def public(self) -> bytes:
        """The public half, 32 bytes."""
        return _raw(self._private)

    def pair(self, domain: str, own: Party, peer: Party, key: bytes, epochs: range) -> bytes:
        """For each epoch the key for what we send to `peer`, and that for what it sends to us.

        Raises ValueError for a public key with which nothing secret would be shared.
        """
        shared = self._share(key)
        sending, receiving = _label(domain, own, peer), _label(domain, peer, own)
        return b"".join(_expand(shared, label, epoch) for epoch in epochs for label in (sending, receiving))

    def _share(self, peer: bytes) -> bytes:
        found = self._shared.get(peer)
        if found is None:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(peer))
            if not any(secret):  # the library refuses it too, today
                raise ValueError("the public key is a point of low order")
            if len(self._shared) >= _PEERS_MAX:
                self._shared.clear()
            found = self._shared[peer] = hmac.digest(_LABEL, secret, "sha256")
        return found


def _label(domain: str, sender: Party, receiver: Party) -> bytes:
    texts = (text.encode() for text in (domain, sender.name, receiver.name))
    numbers = sender.number.to_bytes(3, "big") + receiver.number.to_bytes(3, "big")
    return b"\0".join([_LABEL, *texts, numbers])


def _expand(shared: bytes, label: bytes, epoch: int) -> bytes:
    """HKDF-Expand, of which one block is more than enough."""
    return hmac.digest(shared, label + epoch.to_bytes(4, "big") + b"\x01", "sha256")[:KEY_BYTES]


def _raw(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


# Key files


def generate(passphrase: bytes) -> tuple[bytes, bytes]:
    """A new key: the file under that passphrase, and the public half."""
    private = X25519PrivateKey.generate()
    protection = serialization.BestAvailableEncryption(passphrase)
    file = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    return file, _raw(private)


def read_key(path: Path, passphrase: Path) -> X25519PrivateKey:
    """The private key of a file that its owner alone may read. Raises UsageError, which holds nothing of the key."""
    text, phrase = read_secret(path), read_passphrase(passphrase)
    try:
        private = serialization.load_pem_private_key(text, phrase)
    except TypeError:
        raise UsageError(f"the key file `{path}` is not encrypted: `bulkhead wire keygen` makes one that is") from None
    except Exception:  # noqa: BLE001  what the library raises differs by version, and may quote what it read
        raise UsageError(f"the key file `{path}` is no PKCS#8 key under that passphrase") from None
    if not isinstance(private, X25519PrivateKey):
        raise UsageError(f"the key file `{path}` holds another kind of key than X25519")
    return private


# The process


class Requests:
    """What the agent asks, a line at a time."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Until the agent is gone."""
        with self._channel.makefile("rb") as lines:
            while line := lines.readline(_REQUEST_BYTES_MAX):
                yield json.loads(line)


def serve(keys: Keys, channel: socket.socket) -> None:
    """Answer until the agent is gone."""
    for request in Requests(channel):
        weak, body = derive(keys, request)
        _send(channel, {"kind": "keys", "id": request["id"], "weak": weak}, body)


def derive(keys: Keys, request: dict[str, Any]) -> tuple[list[str], bytes]:
    """The peers with which nothing secret is shared, and the keys of all others."""
    weak, found = [], []
    own, epochs = (
        Party(request["name"], request["number"]),
        range(request["first"], request["first"] + request["count"]),
    )
    for name, number, key in request["peers"]:
        try:
            found.append(keys.pair(request["domain"], own, Party(name, number), bytes.fromhex(key), epochs))
        except ValueError:
            weak.append(name)
    return weak, b"".join(found)


def _send(channel: socket.socket, head: dict[str, object], body: bytes = b"") -> None:
    channel.sendall(json.dumps(head | {"bytes": len(body)}).encode() + b"\n" + body)


def main() -> None:
    """Entry point: `keyd FD SETTINGS`."""
    end_with_parent()
    hide_memory()
    locked = lock_memory()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    channel = socket.socket(fileno=int(sys.argv[1]))
    settings = config.parse(sys.argv[2])
    try:
        if settings.node_key is None or settings.node_key_passphrase is None:
            private = X25519PrivateKey.generate()
        else:
            private = read_key(settings.node_key, settings.node_key_passphrase)
        confine(_MEMORY_BYTES_MAX, _FILES_MAX)
        keys = Keys(private)
        own = {"kind": "own", "key": keys.public.hex(), "ephemeral": settings.node_key is None, "locked": locked}
        _send(channel, own)
        serve(keys, channel)
    except UsageError as error:
        _send(channel, {"kind": "failed", "error": str(error)})
    except ConnectionError:
        return  # the agent is gone, and nobody is left to tell


if __name__ == "__main__":
    main()
