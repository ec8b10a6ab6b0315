"""Hooking a device through the `clsact` queueing discipline, for kernels without tcx (before 6.6).

Our filters are direct-action bpf filters with one preference, handle and name, so that they are found again, replaced
in place and told from other people's. Preference 1 puts them first: an earlier filter that accepts would end the chain.

What is there is changed and listed by pyroute2. It does not decode which program a filter runs, so that is asked of
libbpf; and so is whether there may be anything of ours at all, so that a machine hooked by tcx never loads pyroute2.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int, c_size_t, c_uint32
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from bulkhead.abi import Direction
from bulkhead.errors import KernelError, RefusedError
from bulkhead.kernel import libbpf
from bulkhead.kernel.devices import Device
from bulkhead.kernel.libbpf import Fd

_QDISC_HANDLE: Final = 0xFFFF0000
_PARENTS: Final = {Direction.INGRESS: 0xFFFFFFF2, Direction.EGRESS: 0xFFFFFFF3}
_ATTACH_POINTS: Final = {Direction.INGRESS: 1, Direction.EGRESS: 2}
"""libbpf's names for the same."""
_NO_FILTER: Final = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
"""No such filter, or one of another kind; no clsact; no device."""

PREFERENCE: Final = 1
_HANDLE: Final = 0xB0
_NAME: Final = "bulkhead"


class _TcHook(ctypes.Structure):
    _fields_ = (("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32))


class _TcOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter in the order of the chain. `program_id` is 0 unless the filter is ours."""

    preference: int
    handle: int
    kind: str
    name: str
    program_id: int

    @property
    def is_ours(self) -> bool:
        return _is_ours(self.kind, self.handle, self.name)


class Tc:
    """pyroute2's requests for traffic control, answered at once, also inside a running event loop.

    pyroute2 runs an event loop of its own for each request, and a thread can run only one: so its socket is opened,
    used and closed in one thread of its own. Thread and library (over 10 MB) come with the first request.

    A network namespace belongs to a thread, and a new thread starts in that of its maker. So requests go to the
    namespace that the caller is in at the first one: enter it (`netns.enter`) before.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._socket: Any = None

    def close(self) -> None:
        """End the thread and its socket; harmless when repeated."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with thread:
                thread.submit(self._close_socket).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def request(self, what: str, call: Callable[[Any], Iterable[Any]]) -> list[Any]:
        """The answers to `call`, which is given the IPRoute. KernelError says `cannot {what}` and carries errno."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tc")
        return self._thread.submit(self._request, what, call).result()

    def _request(self, what: str, call: Callable[[Any], Iterable[Any]]) -> list[Any]:
        from pyroute2 import IPRoute, NetlinkError

        if self._socket is None:
            self._socket = IPRoute(groups=0, ext_ack=True)
        try:
            return list(call(self._socket))
        except NetlinkError as error:
            raise _refusal(what, error) from error

    def _close_socket(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()


def qdisc_ensure(tc: Tc, device: Device) -> bool:
    """Give the device a clsact; False when it had one. Raises RefusedError when an `ingress` one is in the way."""
    try:
        tc.request(f"add clsact to `{device.name}`", lambda route: route.tc("add", "clsact", device.index))
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
        kind = _qdisc_kind(tc, device)
        if kind != "clsact":
            raise RefusedError(
                f"`{device.name}` has a queueing discipline `{kind}`, which leaves no room for clsact: "
                f"remove it with `tc qdisc del dev {device.name} ingress`"
            ) from error
        return False
    return True


def qdisc_remove(tc: Tc, device: Device) -> bool:
    """Take the clsact away; False when someone still has a filter in it."""
    if any(filters(tc, device, direction) for direction in Direction):
        return False
    tc.request(f"remove clsact from `{device.name}`", lambda route: route.tc("del", "clsact", device.index))
    return True


def _qdisc_kind(tc: Tc, device: Device) -> str:
    what = f"list the queueing disciplines of `{device.name}`"
    for found in tc.request(what, lambda route: route.get_qdiscs(device.index)):
        if found["index"] == device.index and found["handle"] == _QDISC_HANDLE:
            return str(found.get_attr("TCA_KIND"))
    return ""


def filter_put(tc: Tc, device: Device, direction: Direction, program: Fd) -> None:
    """Add our filter or replace its program in one step. The device must have a clsact."""
    place = _place(device, direction)
    options = {"fd": program.fileno(), "name": _NAME, "direct_action": True}
    try:
        tc.request(
            f"hook `{device.name}` {direction.name.lower()}",
            lambda route: route.tc("replace-filter", "bpf", **place, **options),
        )
    except KernelError as error:
        first = next((f for f in filters(tc, device, direction) if f.preference == PREFERENCE), None)
        if first is None or first.kind == "bpf":
            raise
        raise RefusedError(
            f"`{device.name}` has a foreign `{first.kind}` filter at preference {PREFERENCE} "
            f"({direction.name.lower()}), where ours must be: give it a higher one"
        ) from error


def filter_remove(tc: Tc, device: Device, direction: Direction) -> bool:
    """Remove our filter; False when it was not there."""
    if not is_taken(device, direction) or not any(f.is_ours for f in filters(tc, device, direction)):
        return False
    place = _place(device, direction)
    what = f"unhook `{device.name}` {direction.name.lower()}"
    tc.request(what, lambda route: route.tc("del-filter", "bpf", **place))
    return True


def filters(tc: Tc, device: Device, direction: Direction) -> list[Filter]:
    """The chain, first to run first; empty without clsact."""
    what, parent = f"list the filters of `{device.name}`", _PARENTS[direction]
    found = tc.request(what, lambda route: route.get_filters(device.index, parent=parent))
    # Handle 0 announces a preference, not a filter.
    return [_filter(message, device, direction) for message in found if message["handle"]]


def is_taken(device: Device, direction: Direction) -> bool:
    """Is there a bpf filter where ours goes? Costs no pyroute2; whether it is ours, `filters` knows."""
    return bool(_program_id(device, direction))


def _is_ours(kind: str, handle: int, name: str) -> bool:
    return kind == "bpf" and handle == _HANDLE and name == _NAME


def _place(device: Device, direction: Direction) -> dict[str, int]:
    """Where our filter goes, in pyroute2's words."""
    return {"index": device.index, "handle": _HANDLE, "parent": _PARENTS[direction], "prio": PREFERENCE}


def _filter(message: Any, device: Device, direction: Direction) -> Filter:
    kind, handle = str(message.get_attr("TCA_KIND")), int(message["handle"])
    name = str(message.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME", "")) if kind == "bpf" else ""
    return Filter(
        preference=message["info"] >> 16,
        handle=handle,
        kind=kind,
        name=name,
        program_id=_program_id(device, direction) if _is_ours(kind, handle, name) else 0,
    )


def _program_id(device: Device, direction: Direction) -> int:
    """The program of the bpf filter where ours goes; 0 when there is none."""
    hook = _TcHook(sz=ctypes.sizeof(_TcHook), ifindex=device.index, attach_point=_ATTACH_POINTS[direction])
    opts = _TcOpts(sz=ctypes.sizeof(_TcOpts), handle=_HANDLE, priority=PREFERENCE)
    code = libbpf.library().bpf_tc_query(ctypes.byref(hook), ctypes.byref(opts))
    if code < 0 and -code not in _NO_FILTER:
        raise KernelError(f"cannot look for a filter on `{device.name}`: {os.strerror(-code)}", -code)
    return int(opts.prog_id) if code == 0 else 0


def _refusal(what: str, error: Any) -> KernelError:
    """pyroute2 puts the kernel's own words, where it has any, in place of the error's."""
    reason, detail = os.strerror(error.code), str(error.args[1])
    return KernelError(f"cannot {what}: {reason}{f' ({detail.lower()})' if detail != reason else ''}", error.code)
