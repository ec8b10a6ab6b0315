"""A socket storage map made by hand, for tests of what the agent does with one: no compiler, no programs."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from bulkhead.kernel.libbpf import Fd, Map

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_BPF_MAP_CREATE = 0
_BPF_BTF_LOAD = 18
_BPF_MAP_TYPE_SK_STORAGE = 24
_BPF_F_NO_PREALLOC = 1
_BPF_F_CLONE = 1 << 9
_BTF_INT, _BTF_ARRAY = 1, 3
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def sk_storage_map(value_bytes: int) -> Iterator[Map]:
    """An empty BPF_MAP_TYPE_SK_STORAGE map of that value size, whose values listeners hand down."""
    btf_fd = _load_btf(_describe(value_bytes))
    try:
        attributes = struct.pack(
            "=IIIII28xIII", _BPF_MAP_TYPE_SK_STORAGE, 4, value_bytes, 0, _BPF_F_NO_PREALLOC | _BPF_F_CLONE, btf_fd, 1, 3
        )
        storage = Map(Fd(_bpf(_BPF_MAP_CREATE, attributes)))
    finally:
        os.close(btf_fd)
    with storage:
        yield storage


def _describe(value_bytes: int) -> bytes:
    """BTF of an int key (type 1) and an array of that many bytes (type 3)."""
    strings = b"\0int\0u8\0"
    types = struct.pack("=IIII", 1, _BTF_INT << 24, 4, 1 << 24 | 32)
    types += struct.pack("=IIII", 5, _BTF_INT << 24, 1, 8)
    types += struct.pack("=IIIIII", 0, _BTF_ARRAY << 24, 0, 2, 1, value_bytes)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def _load_btf(data: bytes) -> int:
    buffer = ctypes.create_string_buffer(data, len(data))
    return _bpf(_BPF_BTF_LOAD, struct.pack("=QQIIII", ctypes.addressof(buffer), 0, len(data), 0, 0, 0))


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, 128)
    fd: int = _LIBC.syscall(_SYS_BPF, command, buffer, 128)
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return fd
