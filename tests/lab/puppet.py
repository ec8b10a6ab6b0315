"""A process on a lab host that does what a test tells it: opens sockets, serves, calls, and says how that went.

Started once per role, it answers in a millisecond where a fresh interpreter would take a hundred, and it can hold a
connection while the world around it changes. What becomes of a call is told in one word: `ok`, the name of the error
(`EPERM`, `ECONNREFUSED`), or `timeout`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

QUIET_S = 0.4
"""How long a call waits for an answer before it says `timeout`."""
_held: dict[str, Any] = {}


class PuppetError(Exception):
    """The code that a test sent failed; the text is the puppet's traceback."""


class Puppet:
    """The test's end. `pid` is that of the process that owns the sockets."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = self.do("os.getpid()")

    def do(self, code: str) -> Any:
        """Evaluate an expression, or run statements, in the puppet; its value as JSON would carry it."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(code) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise PuppetError(f"the puppet has ended while it ran {code}")
        answer = json.loads(line)
        if answer["error"]:
            raise PuppetError(answer["error"])
        return answer["value"]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The functions below, by name: `puppet.tcp("127.0.0.1", 80)`."""

        def call(*arguments: Any, **options: Any) -> Any:
            given = [repr(one) for one in arguments] + [f"{key}={value!r}" for key, value in options.items()]
            return self.do(f"{name}({', '.join(given)})")

        return call

    def end(self) -> None:
        """End the process and wait for that."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


# What a puppet can do


@contextlib.contextmanager
def _word() -> Iterator[list[str]]:
    """Collects the one word that tells how a call went."""
    said = ["ok"]
    try:
        yield said
    except TimeoutError:
        said[0] = "timeout"
    except OSError as error:
        said[0] = errno.errorcode.get(error.errno or 0, str(error))


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve_tcp(address: str, port: int, proto: int = 0, reuse_port: bool = False, fast_open: bool = False) -> None:
    """Echo to everybody, for ever."""
    listener = socket.socket(family_of(address), socket.SOCK_STREAM, proto)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if fast_open:
        listener.setsockopt(socket.IPPROTO_TCP, 23, 16)
    listener.bind((address, port))
    listener.listen(128)
    _held[f"listener {address} {port}"] = listener

    def talk(one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                one.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = listener.accept()
                threading.Thread(target=talk, args=(one,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def serve_udp(address: str, port: int, prefix: bytes = b"") -> None:
    """Send every datagram back to where it came from, for ever."""
    one = socket.socket(family_of(address), socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((address, port))
    _held[f"udp {address} {port}"] = one

    def answer() -> None:
        while True:
            with contextlib.suppress(OSError):
                data, sender = one.recvfrom(1 << 16)
                one.sendto(prefix + data, sender)

    threading.Thread(target=answer, daemon=True).start()


def tcp(address: str, port: int, proto: int = 0, quiet_s: float = QUIET_S, mapped: bool = False) -> str:
    """Connect, send, hear the echo."""
    with _word() as said:
        family = socket.AF_INET6 if mapped else family_of(address)
        with socket.socket(family, socket.SOCK_STREAM, proto) as one:
            one.settimeout(quiet_s)
            one.connect((f"::ffff:{address}" if mapped else address, port))
            one.sendall(b"x")
            if one.recv(9) != b"x":
                raise OSError(errno.EPIPE, "no echo")
    return said[0]


def tcp_fast_open(address: str, port: int) -> str:
    """As `tcp`, with the data in the SYN."""
    with _word() as said, socket.socket(family_of(address), socket.SOCK_STREAM) as one:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # not a Python timeout: it makes the call non-blocking
            one.setsockopt(socket.SOL_SOCKET, option, struct.pack("=qq", 1, 0))
        one.sendto(b"x", socket.MSG_FASTOPEN, (address, port))
        if one.recv(9) != b"x":
            raise OSError(errno.EPIPE, "no echo")
    return said[0]


def udp(address: str, port: int, size: int = 1, connected: bool = False, quiet_s: float = QUIET_S) -> str:
    """Send a datagram and hear it back."""
    with _word() as said, socket.socket(family_of(address), socket.SOCK_DGRAM) as one:
        one.settimeout(quiet_s)
        data = bytes(size)
        if connected:
            one.connect((address, port))
            one.send(data)
        else:
            one.sendto(data, (address, port))
        if one.recv(1 << 16) != data:
            raise OSError(errno.EPIPE, "another answer")
    return said[0]


def udp_receive(address: str, port: int) -> None:
    """Only listen: `udp_received` tells what came."""
    one = socket.socket(family_of(address), socket.SOCK_DGRAM)
    one.bind((address, port))
    one.settimeout(QUIET_S)
    _held[f"inbox {port}"] = one


def udp_received(port: int) -> int:
    """Size of the next datagram; -1 when none comes."""
    try:
        return len(_held[f"inbox {port}"].recv(1 << 16))
    except TimeoutError:
        return -1


def hold(name: str, address: str, port: int, proto: int = 0, quiet_s: float = QUIET_S) -> str:
    """Connect and keep the connection under a name."""
    with _word() as said:
        one = socket.socket(family_of(address), socket.SOCK_STREAM, proto)
        one.settimeout(quiet_s)
        _held[name] = one
        one.connect((address, port))
    return said[0]


def use(name: str, quiet_s: float = QUIET_S) -> str:
    """Send through a held connection, and hear the echo."""
    with _word() as said:
        one = _held[name]
        one.settimeout(quiet_s)
        one.sendall(b"y")
        if one.recv(9) != b"y":
            raise OSError(errno.EPIPE, "closed")
    return said[0]


def drop(name: str) -> None:
    """Close what is held under a name."""
    _held.pop(name).close()


def raw_echo(address: str) -> str:
    """Ping through a raw socket."""
    is_six = ":" in address
    with _word() as said:
        proto = socket.IPPROTO_ICMPV6 if is_six else socket.IPPROTO_ICMP
        with socket.socket(family_of(address), socket.SOCK_RAW, proto) as one:
            one.settimeout(QUIET_S)
            one.sendto(_echo_request(is_six, os.getpid() & 0xFFFF), (address, 0))
            _await_reply(one, is_six, is_raw=True)
    return said[0]


def ping(address: str) -> str:
    """Ping through an unprivileged ping socket."""
    is_six = ":" in address
    with _word() as said:
        proto = socket.IPPROTO_ICMPV6 if is_six else socket.IPPROTO_ICMP
        with socket.socket(family_of(address), socket.SOCK_DGRAM, proto) as one:
            one.settimeout(QUIET_S)
            one.sendto(_echo_request(is_six, 0), (address, 0))
            _await_reply(one, is_six, is_raw=False)
    return said[0]


def _await_reply(one: socket.socket, is_six: bool, is_raw: bool) -> None:
    until = time.monotonic() + QUIET_S
    while time.monotonic() < until:
        data = one.recv(1500)
        icmp = data[20:] if is_raw and not is_six else data
        if icmp[0] == (129 if is_six else 0):
            return
    raise TimeoutError


def _echo_request(is_six: bool, identifier: int) -> bytes:
    head = struct.pack(">BBHHH", 128 if is_six else 8, 0, 0, identifier, 1)
    total = sum(struct.unpack(">4H", head))
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return head[:2] + struct.pack(">H", checksum) + head[4:]


def attempt(one: socket.socket, data: bytes = b"", address: tuple[str, int] | None = None) -> str:
    """Send, or without data receive; the name of the exception, or `ok`."""
    try:
        if address is not None:
            one.sendto(data, address)
        else:
            one.recv(1 << 16)
    except OSError as error:
        return type(error).__name__
    return "ok"


def sniff() -> None:
    """Look at every packet that reaches this machine from here on: `sniffed` lists them."""
    one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    one.setblocking(False)
    _held["wire"] = one


def sniffed() -> list[str]:
    """The IP packets that came since `sniff`, in hexadecimal, neighbour discovery left out."""
    found: list[str] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, (_, protocol, kind, *_) = _held["wire"].recvfrom(1 << 16)
            is_ours = kind == socket.PACKET_OUTGOING or protocol not in (0x0800, 0x86DD)
            if not is_ours and not (protocol == 0x86DD and data[6] in (0, 58)):
                found.append(data.hex())
    return found


def set_ids(uid: int, gid: int) -> None:
    """Become another user."""
    os.setegid(gid)
    os.seteuid(uid)


def main() -> None:
    """Do as told, a JSON string a line, until the line ends."""
    import traceback

    names = globals()
    for line in sys.stdin:
        code = json.loads(line)
        answer: dict[str, Any] = {"value": None, "error": ""}
        try:
            try:
                answer["value"] = eval(code, names)
            except SyntaxError:
                exec(code, names)
            json.dumps(answer["value"])
        except Exception:  # noqa: BLE001  whatever a test's code does wrong, the test is told
            answer = {"value": None, "error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
