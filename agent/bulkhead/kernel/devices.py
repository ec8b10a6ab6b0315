"""Network devices of the current network namespace: which there are, and what happens to them.

Open the watcher first and list afterwards: what happens in between is then reported, possibly twice, never missed.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

from bulkhead.errors import KernelError
from bulkhead.kernel.rtnetlink import Message, Rtnetlink, attributes, messages, text_of

_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_RTNLGRP_LINK_MASK: Final = 1
_RTNLGRP_TC_MASK: Final = 1 << 3
_HOOK_KINDS: Final = range(36, 48)
"""RTM_NEWQDISC to RTM_GETTFILTER: somebody changed what packets of a device pass."""
_IFINFO: Final = struct.Struct("=BxHiII")
"""Family, hardware type, index, flags, change mask."""
_IFF_LOOPBACK: Final = 8
_ARPHRD_ETHER: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_OPERSTATE: Final = 16
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_OPERSTATES: Final = ("unknown", "not-present", "down", "lower-layer-down", "testing", "dormant", "up")
_QUEUE_BYTES: Final = 1 << 20


class Framing(StrEnum):
    """What a packet on the device starts with, as the hooks see it."""

    ETHERNET = "ethernet"
    BARE = "bare"
    """The IP header: tunnels, WireGuard, tun. Also framings that nothing here can parse: they are refused."""
    LOOPBACK = "loopback"
    """An Ethernet header; both ends of every conversation are on this machine."""


@dataclass(frozen=True, slots=True)
class Device:
    """A network device. `kind` is the driver's link kind (`veth`, `bridge`), empty for hardware and loopback."""

    index: int
    name: str
    kind: str
    is_loopback: bool
    operstate: str
    framing: Framing = Framing.ETHERNET


@dataclass(frozen=True, slots=True)
class DeviceAdded:
    """A device is there that was not, or its index now belongs to another one."""

    device: Device


@dataclass(frozen=True, slots=True)
class DeviceRemoved:
    """A device is gone, or has left for another network namespace."""

    device: Device


@dataclass(frozen=True, slots=True)
class DeviceRenamed:
    """Same device, other name."""

    device: Device
    old_name: str


@dataclass(frozen=True, slots=True)
class Resync:
    """Notifications were lost: list the devices again."""


@dataclass(frozen=True, slots=True)
class HooksChanged:
    """A queueing discipline or filter of some device was changed, by whomever."""


DeviceEvent = DeviceAdded | DeviceRemoved | DeviceRenamed | Resync | HooksChanged


def list_devices() -> tuple[Device, ...]:
    """Every device, by index."""
    with Rtnetlink() as netlink:
        found = netlink.dump(_RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0), "list the network devices")
    devices = (_device(message) for message in found if message.kind == _RTM_NEWLINK)
    return tuple(sorted(devices, key=lambda device: device.index))


def _device(message: Message) -> Device:
    _, hardware, index, flags, _ = _IFINFO.unpack_from(message.body)
    found = attributes(message.body, _IFINFO.size)
    link_info = attributes(found.get(_IFLA_LINKINFO, b""))
    state = int.from_bytes(found.get(_IFLA_OPERSTATE, b"\0")[:1], "little")
    return Device(
        index=index,
        name=text_of(found.get(_IFLA_IFNAME, b"")),
        kind=text_of(link_info.get(_IFLA_INFO_KIND, b"")),
        is_loopback=bool(flags & _IFF_LOOPBACK),
        operstate=_OPERSTATES[state] if state < len(_OPERSTATES) else str(state),
        framing=_framing(hardware, bool(flags & _IFF_LOOPBACK)),
    )


def _framing(hardware: int, is_loopback: bool) -> Framing:
    if is_loopback:
        return Framing.LOOPBACK
    return Framing.ETHERNET if hardware == _ARPHRD_ETHER else Framing.BARE


class DeviceWatcher:
    """Reports what happens to devices, from its creation on. Never blocks: for an event loop's add_reader."""

    def __init__(self, queue_bytes: int = _QUEUE_BYTES) -> None:
        self._known: dict[int, Device] = {}
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, queue_bytes)
        self._socket.bind((0, _RTNLGRP_LINK_MASK | _RTNLGRP_TC_MASK))

    def fileno(self) -> int:
        """Readable when there is something to `read`."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def devices(self) -> tuple[Device, ...]:
        """List the devices, and take them as known: later events are relative to this list."""
        found = list_devices()
        self._known = {device.index: device for device in found}
        return found

    def known(self) -> tuple[Device, ...]:
        """The devices of which `devices` and `read` have told and that are there still."""
        return tuple(self._known.values())

    def read(self) -> list[DeviceEvent]:
        """What happened since the last call, in order; empty when nothing did. After Resync call `devices` again."""
        events: list[DeviceEvent] = []
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                return events
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(
                        f"cannot watch the network devices: {error.strerror}", error.errno or 0
                    ) from error
                events.append(Resync())
                continue
            for message in messages(data):
                events.extend(self._events(message))

    def _events(self, message: Message) -> list[DeviceEvent]:
        if message.kind in _HOOK_KINDS:
            return [HooksChanged()]
        # Bridges announce their ports with the same message types under family AF_BRIDGE: a port leaving is no
        # device leaving.
        if message.kind not in (_RTM_NEWLINK, _RTM_DELLINK) or message.body[0] != socket.AF_UNSPEC:
            return []
        device = _device(message)
        if message.kind == _RTM_DELLINK:
            return [DeviceRemoved(self._known.pop(device.index, device))]
        before = self._known.get(device.index)
        self._known[device.index] = device
        if before is None:
            return [DeviceAdded(device)]
        return [DeviceRenamed(device, before.name)] if before.name != device.name else []
