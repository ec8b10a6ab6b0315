"""File handles: the kernel's own name for a file, independent of its path.

A handle of a cgroup2 directory is its 64-bit id, and a handle of a file on many filesystems carries the inode's
generation, which no other unprivileged call tells for them.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from bulkhead.errors import KernelError

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_EMPTY_PATH = 0x1000
_CAPACITY = 128
"""MAX_HANDLE_SZ: no handle of any kernel is longer."""


@dataclass(frozen=True, slots=True)
class FileHandle:
    """What name_to_handle_at(2) gives: `kind` tells how to read `data`."""

    kind: int
    data: bytes


def handle_of(fd: int) -> FileHandle | None:
    """The handle of an open file (O_PATH suffices); None when its filesystem gives none."""
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", _CAPACITY, 0), 8 + _CAPACITY)
    mount_id = ctypes.c_int()
    if _LIBC.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH) != 0:
        return None
    length, kind = struct.unpack_from("=Ii", buffer)
    return FileHandle(kind, buffer.raw[8 : 8 + length])


def open_handle(mount_fd: int, handle: FileHandle) -> int:
    """Open what `handle` names as an O_PATH descriptor, which the caller closes.

    `mount_fd` is any readable file of the same filesystem. Needs CAP_DAC_READ_SEARCH. Raises KernelError, with ESTALE
    when the file is gone.
    """
    buffer = ctypes.create_string_buffer(struct.pack("=Ii", len(handle.data), handle.kind) + handle.data)
    fd: int = _LIBC.open_by_handle_at(mount_fd, buffer, os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        errno = ctypes.get_errno()
        raise KernelError(f"cannot open a file by its handle: {os.strerror(errno)}", errno)
    return fd
