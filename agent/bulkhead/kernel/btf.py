"""Where the running kernel keeps fields of its own structures, read from its BTF.

libbpf indexes the 100,000 types (about 10 ms; a loop in Python takes ten times that), we walk the few that are asked
for.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_uint32, c_void_p
from pathlib import Path
from typing import Any, Final, NamedTuple

from bulkhead.errors import RefusedError
from bulkhead.kernel.libbpf import library

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_STRUCT: Final = 4
_UNION: Final = 5
_MODIFIERS: Final = (8, 9, 10, 11, 18)
"""Typedef, volatile, const, restrict, type tag: what stands between a member and its type."""
_TYPE_BYTES: Final = 12
_MEMBER: Final = struct.Struct("=III")
"""Name offset, type id, bit offset; with bit-fields about, the high byte of the latter is their width."""


class _Type(NamedTuple):
    """A type's common part. `target` is a size, or for modifiers a type id."""

    address: int
    kind: int
    elements: int
    has_bit_fields: bool
    target: int


class _Member(NamedTuple):
    name: str
    type_id: int
    bits: int


def field_offsets(wanted: Mapping[str, tuple[str, str]], source: Path = VMLINUX) -> dict[str, int]:
    """Byte offsets by name, for `{"MM": ("task_struct", "mm")}`. Fields of anonymous members count as their owner's.

    Raises RefusedError when the kernel has no BTF, or not that structure or field, or the field is a bit-field.
    """
    with _types(source) as types:
        return {name: _byte_offset(types, structure, field) for name, (structure, field) in wanted.items()}


def bit_offset(structure: str, field: str, source: Path = VMLINUX) -> int:
    """Where in bits a field, or bit-field, of a kernel structure is: on little-endian machines from the lowest bit.

    Raises RefusedError as `field_offsets` does.
    """
    with _types(source) as types:
        return _find(types, structure, field)


@contextmanager
def _types(source: Path) -> Iterator[int]:
    types = _library().btf__parse(os.fsencode(source), None)
    if not types:
        reason = os.strerror(ctypes.get_errno())
        raise RefusedError(f"this kernel offers no type information at `{source}`: {reason}")
    try:
        yield types
    finally:
        _library().btf__free(types)


@functools.cache
def _library() -> Any:
    lib = library()
    lib.btf__parse.argtypes, lib.btf__parse.restype = [c_char_p, c_void_p], c_void_p
    lib.btf__free.argtypes, lib.btf__free.restype = [c_void_p], None
    lib.btf__find_by_name_kind.argtypes, lib.btf__find_by_name_kind.restype = [c_void_p, c_char_p, c_uint32], c_int
    lib.btf__type_by_id.argtypes, lib.btf__type_by_id.restype = [c_void_p, c_uint32], c_void_p
    lib.btf__name_by_offset.argtypes, lib.btf__name_by_offset.restype = [c_void_p, c_uint32], c_char_p
    return lib


def _byte_offset(types: int, structure: str, field: str) -> int:
    bits = _find(types, structure, field)
    if bits % 8:
        raise RefusedError(f"`{field}` of this kernel's `struct {structure}` is a bit-field")
    return bits // 8


def _find(types: int, structure: str, field: str) -> int:
    type_id = _library().btf__find_by_name_kind(types, structure.encode(), _STRUCT)
    if type_id < 0:
        raise RefusedError(f"this kernel has no `struct {structure}`")
    bits = _bit_offset(types, _type(types, type_id), field)
    if bits is None:
        raise RefusedError(f"this kernel's `struct {structure}` has no field `{field}`")
    return bits


def _bit_offset(types: int, owner: _Type, field: str) -> int | None:
    for member in _members(types, owner):
        if member.name == field:
            return member.bits
        below = _bit_offset_inside(types, member, field) if not member.name else None
        if below is not None:
            return member.bits + below
    return None


def _bit_offset_inside(types: int, anonymous: _Member, field: str) -> int | None:
    inner = _type(types, anonymous.type_id)
    while inner.kind in _MODIFIERS:
        inner = _type(types, inner.target)
    return _bit_offset(types, inner, field) if inner.kind in (_STRUCT, _UNION) else None


def _type(types: int, type_id: int) -> _Type:
    address = _library().btf__type_by_id(types, type_id)
    _, info, target = struct.unpack("=III", ctypes.string_at(address, _TYPE_BYTES))
    return _Type(address, info >> 24 & 31, info & 0xFFFF, bool(info >> 31), target)


def _members(types: int, owner: _Type) -> Iterator[_Member]:
    mask = 0xFFFFFF if owner.has_bit_fields else 0xFFFFFFFF
    data = ctypes.string_at(owner.address + _TYPE_BYTES, owner.elements * _MEMBER.size)
    for name, type_id, bits in _MEMBER.iter_unpack(data):
        yield _Member(_library().btf__name_by_offset(types, name).decode(), type_id, bits & mask)
