"""Offloads of a network device. Without them every packet on a wire is one frame with all its checksums computed."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_SETTERS = {"rx": 0x15, "tx": 0x17, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
"""ETHTOOL_S* by name."""
SEGMENTATION = ("tso", "gso", "gro")
ALL = tuple(_SETTERS)


def set_offloads(device: str, is_on: bool, names: tuple[str, ...] = ALL) -> None:
    """Switch offloads of a device of the calling thread's network namespace. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name in names:
            argument = ctypes.create_string_buffer(struct.pack("=II", _SETTERS[name], is_on), 8)
            request = struct.pack("=16sQ16x", device.encode(), ctypes.addressof(argument))
            fcntl.ioctl(control, _SIOCETHTOOL, request)
