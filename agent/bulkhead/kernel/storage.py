"""The socket storage maps, made before bcc runs.

A socket storage map must come with type information. bcc would give it by compiling everything with debug information,
which is half of its time; so the maps that need types are made here from ten words of them, and bcc finds their pins.
"""

from __future__ import annotations

import struct
from typing import Final

from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import BPF_F_NO_PREALLOC, Map, MapType

_INT, _ARRAY = 1 << 24, 3 << 24
_CLONE: Final = 1 << 9
"""BPF_F_CLONE."""
_KEY_TYPE, _VALUE_TYPE = 1, 3


def make(name: str, value_bytes: int, *, handed_down: bool) -> Map:
    """An empty socket storage map, not pinned. `handed_down`: a listener's value is copied into what it accepts."""
    flags = BPF_F_NO_PREALLOC | (_CLONE if handed_down else 0)
    with libbpf.btf_load(_describe(value_bytes)) as types:
        return libbpf.map_create(
            MapType.SK_STORAGE, name, 4, value_bytes, 0, flags, types=(types, _KEY_TYPE, _VALUE_TYPE)
        )


def _describe(value_bytes: int) -> bytes:
    """BTF of an int key (type 1) and an array (type 3) of bytes (type 2). Format: Documentation/bpf/btf.rst."""
    strings = b"\0int\0u8\0"
    types = struct.pack("=IIII", 1, _INT, 4, 1 << 24 | 32)
    types += struct.pack("=IIII", 5, _INT, 1, 8)
    types += struct.pack("=IIIIII", 0, _ARRAY, 0, 2, 1, value_bytes)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings
