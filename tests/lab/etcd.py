"""A real etcd that lets in only who shows a certificate, on loopback or on a lab host, and what tests do to it."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bulkhead.config import Etcd
from bulkhead.policy.nodes import KEY_BYTES, Node, default_number
from bulkhead.registry import record
from bulkhead.registry.etcd import EtcdRegistry
from bulkhead.registry.gateway import Gateway
from lab.authority import Authority

LOOPBACK = "127.0.0.1"
READY_S = 30.0


class EtcdServer:
    """One member, with its data below a directory, ended by its process. A context manager."""

    def __init__(self, directory: Path, address: str = LOOPBACK, netns: str = "") -> None:
        """It serves at an address of a network namespace, by name; empty: of this one."""
        self.directory = directory
        self._address = address
        self._wrap = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
        self.data = directory / "data"
        self.authority = Authority(directory)
        self._server = self.authority.issue("server", address)
        self._client = self.authority.issue("agent", named=False)
        self._port, self._peer_port = _free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def endpoint(self) -> str:
        """Where clients ask."""
        return f"https://{self._address}:{self._port}"

    def settings(self, prefix: str = "/bulkhead/", ttl_s: int = 2, **others: Any) -> Etcd:
        """What an agent has to be told. The lease is shorter than the settings allow, so that it ends within a test."""
        files = (str(self.authority.certificate), str(self._client.certificate), str(self._client.key))
        return Etcd((self.endpoint,), *files, prefix, ttl_s)._replace(**others)

    def start(self, token: str = "lab") -> None:
        """Start on the data that is there, and return when it serves."""
        peer = f"http://{LOOPBACK}:{self._peer_port}"
        options = {
            "name": "lab",
            "data-dir": self.data,
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"lab={peer}",
            "initial-cluster-token": token,
            "cert-file": self._server.certificate,
            "key-file": self._server.key,
            "trusted-ca-file": self.authority.certificate,
            "client-cert-auth": "true",
            # A lease is at least one and a half times as long as an election.
            "heartbeat-interval": "50",
            "election-timeout": "500",
            "log-level": "error",
        }
        told = self.directory / "ready"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(told))
            ready.settimeout(READY_S)
            self._process = subprocess.Popen(
                [*self._wrap, "etcd", *(f"--{name}={value}" for name, value in options.items())],
                env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(told)},
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            try:
                assert ready.recv(64) == b"READY=1"
            except BaseException:
                self.kill()
                raise
            finally:
                told.unlink()

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Connections are taken, and nothing is said."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def back_up(self, copy: Path) -> None:
        """Keep the data; the server is stopped."""
        shutil.copytree(self.data, copy)

    def restore(self, copy: Path) -> None:
        """Have the data of `back_up` again; the server is stopped."""
        self.forget()
        shutil.copytree(copy, self.data)

    def forget(self) -> None:
        """Lose all data; the server is stopped."""
        shutil.rmtree(self.data)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None


class Operator:
    """Somebody who may write everything. An asynchronous context manager."""

    def __init__(self, settings: Etcd) -> None:
        self._gateway = Gateway(settings.endpoints[0], settings)
        self._prefix = settings.prefix

    async def __aenter__(self) -> Self:
        await self._gateway.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._gateway.__aexit__(kind, value, at)

    async def put(self, key: str, value: bytes) -> None:
        """Below the prefix."""
        await self._gateway.call("kv/put", {"key": self._key(key), "value": _b64(value)})

    async def put_many(self, entries: Iterable[tuple[str, bytes]]) -> None:
        """Below the prefix, in as few requests as etcd takes."""
        puts = [{"request_put": {"key": self._key(key), "value": _b64(value)}} for key, value in entries]
        for i in range(0, len(puts), 128):
            await self._gateway.call("kv/txn", {"success": puts[i : i + 128]})

    async def delete(self, key: str) -> None:
        """Below the prefix."""
        await self._gateway.call("kv/deleterange", {"key": self._key(key)})

    async def get(self, key: str) -> bytes | None:
        """Below the prefix."""
        entries = (await self._gateway.range(f"{self._prefix}{key}".encode())).entries
        return entries[0].value if entries else None

    async def until_put(self, key: str, revision: int) -> None:
        """Wait until the key is written, at that revision or later."""
        at = f"{self._prefix}{key}".encode()
        async with contextlib.aclosing(self._gateway.watch(at, at + b"\0", revision)) as changes:
            async for change in changes:
                if any(not event.deleted for event in change.events):
                    return

    async def revision(self) -> int:
        """Of the database now."""
        return (await self._gateway.revision(b"/"))[1]

    async def compact(self) -> None:
        """Forget all history."""
        await self._gateway.call("kv/compaction", {"revision": str(await self.revision()), "physical": True})

    async def call(self, what: str, **asked: Any) -> dict[str, Any]:
        """Anything else."""
        return await self._gateway.call(what, asked)

    def _key(self, key: str) -> str:
        return _b64(f"{self._prefix}{key}".encode())


def node(name: str, at: int, **others: object) -> Node:
    """A node with a key and an address of its own, by `at`."""
    own = {
        "number": default_number(name),
        "addresses": (ip_network(f"10.9.{at >> 8}.{at & 255}"),),
        "key": bytes([1]) + at.to_bytes(KEY_BYTES - 1, "big"),
    }
    return Node(**({"name": name} | own | others))  # type: ignore[arg-type]


async def put(operator: Operator, *nodes: Node) -> None:
    """Records for good, as operators write them."""
    await operator.put_many((f"nodes/{one.name}", record.write(one)) for one in nodes)


def registry(etcd: Etcd, tmp_path: Path, host: str = "me") -> EtcdRegistry:
    """What an agent on `host` has."""
    return EtcdRegistry(etcd, host, tmp_path / f"{host}.json")


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
