"""Private network namespaces and the wires between them.

A namespace has no name: it lives as long as its file descriptor, so that nothing is left behind even when the test
process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bulkhead.kernel import netns

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace. `path` is good for `netns.enter`, `nsenter --net=` and `ip`, while this process lives."""

    fd: int

    @property
    def path(self) -> Path:
        return Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Run a block of the calling thread inside; processes started there are inside too."""
        return netns.entered(self.path)

    def run(self, *command: str) -> str:
        """Run a command inside; its output. Raises CalledProcessError with its complaint in `stderr`."""
        with self.entered():
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def ip(self, command: str) -> str:
        """`ip` inside, as in `ip("link set lo up")`."""
        return self.run("ip", *command.split())


@contextlib.contextmanager
def network_namespace() -> Iterator[Namespace]:
    """A new namespace with nothing but loopback, up."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    library = ctypes.CDLL(None, use_errno=True)
    try:
        if library.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        try:
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            if library.setns(home, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the network namespace of before")
    finally:
        os.close(home)
    try:
        namespace = Namespace(fd)
        namespace.ip("link set lo up")
        yield namespace
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Wire:
    """A veth pair between two namespaces: one device and one address of each family at either end."""

    left: Namespace
    right: Namespace
    device: str
    """Same name at both ends."""
    left_address4: str
    right_address4: str
    left_address6: str
    right_address6: str


@contextlib.contextmanager
def wire(device: str = "eth0", subnet: int = 1) -> Iterator[Wire]:
    """Two namespaces joined by a veth pair, addresses 10.77.`subnet`.1 and .2, fd77:`subnet`::1 and ::2."""
    with network_namespace() as left, network_namespace() as right:
        yield connect(left, right, device, subnet)


def connect(left: Namespace, right: Namespace, device: str = "eth0", subnet: int = 1) -> Wire:
    """Join two namespaces by a veth pair. It goes when either namespace does."""
    left.ip(f"link add {device} type veth peer name {device} netns {right.path}")
    addresses = []
    for end, namespace in enumerate((left, right), start=1):
        address4, address6 = f"10.77.{subnet}.{end}", f"fd77:{subnet}::{end}"
        namespace.ip(f"addr add {address4}/24 dev {device}")
        namespace.ip(f"addr add {address6}/64 dev {device} nodad")
        namespace.ip(f"link set {device} up")
        addresses.append((address4, address6))
    (left4, left6), (right4, right6) = addresses
    return Wire(left, right, device, left4, right4, left6, right6)
