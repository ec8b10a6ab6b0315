"""Field offsets, from type information written here and from the running kernel's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bulkhead.errors import RefusedError
from bulkhead.kernel.btf import VMLINUX, field_offsets

_INT, _STRUCT, _UNION, _TYPEDEF, _CONST = 1, 4, 5, 8, 10


class _Writer:
    """Writes type information, type by type; ids count from 1."""

    def __init__(self) -> None:
        self._strings = b"\0"
        self._types = b""

    def add(self, kind: int, name: str, target: int, elements: bytes = b"", *, bit_fields: bool = False) -> None:
        count = len(elements) // 12 if kind in (_STRUCT, _UNION) else 0
        info = kind << 24 | count | bit_fields << 31
        self._types += struct.pack("=III", self._name(name), info, target) + elements

    def member(self, name: str, type_id: int, bits: int, width: int = 0) -> bytes:
        return struct.pack("=III", self._name(name), type_id, bits | width << 24)

    def bytes(self) -> bytes:
        sizes = (len(self._types), len(self._types), len(self._strings))
        return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, *sizes) + self._types + self._strings

    def _name(self, name: str) -> int:
        if not name:
            return 0
        self._strings += name.encode() + b"\0"
        return len(self._strings) - len(name) - 1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """struct outer { int first; const struct { int a; union { int b, c; }; }; int flag:1, wide:8; }, by a typedef."""
    out = _Writer()
    out.add(_INT, "int", 4, struct.pack("=I", 32))
    out.add(_UNION, "", 4, out.member("b", 1, 0) + out.member("c", 1, 0))
    out.add(_STRUCT, "", 8, out.member("a", 1, 0) + out.member("", 2, 32))
    out.add(_TYPEDEF, "inner_t", 3)
    out.add(_CONST, "", 4)
    fields = (
        out.member("first", 1, 0) + out.member("", 5, 32) + out.member("flag", 1, 97, 1) + out.member("wide", 1, 104, 8)
    )
    out.add(_STRUCT, "outer", 16, fields, bit_fields=True)
    path = tmp_path / "btf"
    path.write_bytes(out.bytes())
    return path


def test_fields_of_anonymous_members_count_as_their_owners(source: Path) -> None:
    wanted = {name: ("outer", name) for name in ("first", "a", "b", "c", "wide")}
    assert field_offsets(wanted, source) == {"first": 0, "a": 4, "b": 8, "c": 8, "wide": 13}


@pytest.mark.parametrize(
    ("structure", "field", "complaint"),
    [
        ("outer", "gone", "this kernel's `struct outer` has no field `gone`"),
        ("outer", "flag", "`flag` of this kernel's `struct outer` is a bit-field"),
        ("inner_t", "a", "this kernel has no `struct inner_t`"),
    ],
)
def test_what_is_missing_or_has_no_byte_offset_is_named(
    source: Path, structure: str, field: str, complaint: str
) -> None:
    with pytest.raises(RefusedError, match=complaint):
        field_offsets({"X": (structure, field)}, source)


@pytest.mark.parametrize("content", [None, b"", b"no type information"])
def test_a_kernel_without_type_information_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "absent"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RefusedError, match="this kernel offers no type information at"):
        field_offsets({"X": ("task_struct", "mm")}, path)


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no type information")
def test_the_running_kernel_knows_the_fields_that_identify_an_executable() -> None:
    found = field_offsets(
        {"MM": ("task_struct", "mm"), "EXE": ("mm_struct", "exe_file"), "DEV": ("super_block", "s_dev")}
    )
    assert all(offset > 0 for offset in found.values())
