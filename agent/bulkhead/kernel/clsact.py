"""Hooking a device through the `clsact` queueing discipline, for kernels without tcx (before 6.6).

Our filters are direct-action bpf filters with one preference, handle and name, so that they are found again, replaced
in place and told from other people's. Preference 1 puts them first: an earlier filter that accepts would end the chain.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import Final

from bulkhead.abi import Direction
from bulkhead.errors import KernelError, RefusedError
from bulkhead.kernel.devices import Device
from bulkhead.kernel.libbpf import Fd
from bulkhead.kernel.rtnetlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Rtnetlink,
    attribute,
    attributes,
    text_attribute,
    text_of,
)

_RTM_NEWQDISC: Final = 36
_RTM_DELQDISC: Final = 37
_RTM_GETQDISC: Final = 38
_RTM_NEWTFILTER: Final = 44
_RTM_DELTFILTER: Final = 45
_RTM_GETTFILTER: Final = 46
_TCMSG: Final = struct.Struct("=BxHiIII")
"""Family, padding, device index, handle, parent, info (preference and protocol)."""
_QDISC_HANDLE: Final = 0xFFFF0000
_QDISC_PARENT: Final = 0xFFFFFFF1
_PARENTS: Final = {Direction.INGRESS: 0xFFFFFFF2, Direction.EGRESS: 0xFFFFFFF3}
_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2
_TCA_BPF_FD: Final = 6
_TCA_BPF_NAME: Final = 7
_TCA_BPF_FLAGS: Final = 8
_TCA_BPF_ID: Final = 11
_DIRECT_ACTION: Final = 1
_ALL_PROTOCOLS: Final = 0x0300
"""ETH_P_ALL in network order."""

PREFERENCE: Final = 1
_HANDLE: Final = 0xB0
_NAME: Final = "bulkhead"


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter in the order of the chain. `program_id` is 0 unless `kind` is bpf."""

    preference: int
    handle: int
    kind: str
    name: str
    program_id: int

    @property
    def is_ours(self) -> bool:
        return self.kind == "bpf" and self.handle == _HANDLE and self.name == _NAME


def qdisc_ensure(netlink: Rtnetlink, device: Device) -> bool:
    """Give the device a clsact; False when it had one. Raises RefusedError when an `ingress` one is in the way."""
    body = _TCMSG.pack(0, 0, device.index, _QDISC_HANDLE, _QDISC_PARENT, 0) + text_attribute(_TCA_KIND, "clsact")
    try:
        netlink.request(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, f"add clsact to `{device.name}`")
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
        kind = _qdisc_kind(netlink, device)
        if kind != "clsact":
            raise RefusedError(
                f"`{device.name}` has a queueing discipline `{kind}`, which leaves no room for clsact: "
                f"remove it with `tc qdisc del dev {device.name} ingress`"
            ) from error
        return False
    return True


def qdisc_remove(netlink: Rtnetlink, device: Device) -> bool:
    """Take the clsact away; False when someone still has a filter in it."""
    if any(filters(netlink, device, direction) for direction in Direction):
        return False
    body = _TCMSG.pack(0, 0, device.index, _QDISC_HANDLE, _QDISC_PARENT, 0)
    netlink.request(_RTM_DELQDISC, 0, body, f"remove clsact from `{device.name}`")
    return True


def _qdisc_kind(netlink: Rtnetlink, device: Device) -> str:
    body = _TCMSG.pack(0, 0, device.index, 0, 0, 0)
    for message in netlink.dump(_RTM_GETQDISC, body, f"list the queueing disciplines of `{device.name}`"):
        _, _, index, handle, _, _ = _TCMSG.unpack_from(message.body)
        if index == device.index and handle == _QDISC_HANDLE:
            return text_of(attributes(message.body, _TCMSG.size).get(_TCA_KIND, b""))
    return ""


def filter_put(netlink: Rtnetlink, device: Device, direction: Direction, program: Fd) -> None:
    """Add our filter or replace its program in one step. The device must have a clsact."""
    options = (
        attribute(_TCA_BPF_FD, struct.pack("=I", program.fileno()))
        + text_attribute(_TCA_BPF_NAME, _NAME)
        + attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    )
    body = _filter_head(device, direction) + attribute(_TCA_OPTIONS, options)
    try:
        netlink.request(_RTM_NEWTFILTER, NLM_F_CREATE, body, f"hook `{device.name}` {direction.name.lower()}")
    except KernelError as error:
        first = next((f for f in filters(netlink, device, direction) if f.preference == PREFERENCE), None)
        if first is None or first.kind == "bpf":
            raise
        raise RefusedError(
            f"`{device.name}` has a foreign `{first.kind}` filter at preference {PREFERENCE} "
            f"({direction.name.lower()}), where ours must be: give it a higher one"
        ) from error


def filter_remove(netlink: Rtnetlink, device: Device, direction: Direction) -> bool:
    """Remove our filter; False when it was not there."""
    if not any(f.is_ours for f in filters(netlink, device, direction)):
        return False
    body = _filter_head(device, direction)
    netlink.request(_RTM_DELTFILTER, 0, body, f"unhook `{device.name}` {direction.name.lower()}")
    return True


def filters(netlink: Rtnetlink, device: Device, direction: Direction) -> list[Filter]:
    """The chain, first to run first; empty without clsact."""
    body = _TCMSG.pack(0, 0, device.index, 0, _PARENTS[direction], 0)
    found = netlink.dump(_RTM_GETTFILTER, body, f"list the filters of `{device.name}`")
    chain = [_filter(message) for message in found if message.kind == _RTM_NEWTFILTER]
    return [f for f in chain if f.handle]  # handle 0 announces a preference, not a filter


def _filter_head(device: Device, direction: Direction) -> bytes:
    info = PREFERENCE << 16 | _ALL_PROTOCOLS
    head = _TCMSG.pack(0, 0, device.index, _HANDLE, _PARENTS[direction], info)
    return head + text_attribute(_TCA_KIND, "bpf")


def _filter(message: Message) -> Filter:
    _, _, _, handle, _, info = _TCMSG.unpack_from(message.body)
    found = attributes(message.body, _TCMSG.size)
    kind = text_of(found.get(_TCA_KIND, b""))
    options = attributes(found.get(_TCA_OPTIONS, b"")) if kind == "bpf" else {}
    return Filter(
        preference=info >> 16,
        handle=handle,
        kind=kind,
        name=text_of(options.get(_TCA_BPF_NAME, b"")),
        program_id=int.from_bytes(options.get(_TCA_BPF_ID, b""), "little"),
    )
