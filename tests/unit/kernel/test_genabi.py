"""The generator accepts bpf/abi.h's grammar, nothing else, and its output means the same bytes as the C."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bulkhead import abi

ROOT = Path(__file__).resolve().parents[3]


def _load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("genabi", ROOT / "tools" / "genabi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["genabi"] = module
    spec.loader.exec_module(module)
    return module


genabi = _load_generator()


def test_committed_module_is_what_the_header_generates() -> None:
    header = (ROOT / "bpf" / "abi.h").read_text(encoding="utf-8")
    assert genabi.render(header) == (ROOT / "agent" / "bulkhead" / "abi.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("struct a { __u8 x; __u32 y; };", r"implicit padding before `a\.y` at byte 1"),
        ("struct a { __u32 y; __u8 x; };", r"implicit padding at the end of `struct a`, after byte 5"),
        ("struct a { int y; };", "`int` is no fixed-width scalar"),
        ("struct a { __u32 y : 4; };", "`:` is outside the grammar"),
        ("struct a { __u32 *y; };", r"`\*` is outside the grammar"),
        ("struct a { struct b y; };", "`struct` is no fixed-width scalar"),
        ("struct a { char c; };", "char comes in arrays only"),
        ("struct a { __u8 c[0]; };", "an array of length 0"),
        ("struct a { __u8 c[2][2]; };", "expected `;`, found `\\["),
        ("struct a { };", "`struct a` is empty"),
        ("struct a { __u8 c; }", "ends in the middle"),
        ("struct a { __u8 c; __u8 c; };", r"defined twice: `a\.c`"),
        ("enum a { A_X };", "expected `=`, found `}`"),
        ("enum a { A_X = -1 };", "`-` is outside the grammar"),
        ("enum a { A_X = B };", "`B` is no unsigned number"),
        ("enum a { B_X = 1 };", "`B_X` does not start with `A_`"),
        ("enum a { A_4 = 1 };", "`A_4` does not start with `A_`"),
        ("typedef int a;", "expected `enum` or `struct`"),
        ("#define A 1\n", "outside the grammar"),
        ("\n\n#include <x.h>\n", "line 3: `#`"),
    ],
)
def test_anything_outside_the_grammar_is_an_error_that_names_it(text: str, complaint: str) -> None:
    with pytest.raises(genabi.GrammarError, match=complaint):
        genabi.parse(text)


def test_digest_ignores_comments_and_space_but_not_meaning() -> None:
    plain = genabi.digest(genabi.parse("struct a { __u32 y; };"))
    assert plain == genabi.digest(genabi.parse("/* why */ struct a\n{ __u32   y; /* what */ };"))
    assert plain != genabi.digest(genabi.parse("struct a { __be32 y; };"))


def test_gaps_or_repeats_make_an_enum_numbers_instead_of_flags() -> None:
    def is_flag_set(body: str) -> bool:
        (enumeration,) = genabi.parse(f"enum a {{ {body} }};")
        return bool(enumeration.is_flag_set)

    assert is_flag_set("A_X = 1, A_Y = 2, A_Z = 4,")
    assert not is_flag_set("A_X = 1, A_Y = 2,")
    assert not is_flag_set("A_X = 1024, A_Y = 1024, A_Z = 2048,")


def test_network_order_fields_store_network_order_and_read_as_numbers() -> None:
    key = abi.PolicyKey(port=443)
    assert bytes(key)[-2:] == b"\x01\xbb"
    assert abi.PolicyKey.from_buffer_copy(bytes(key)).port == 443


def test_misspelt_field_is_an_error_at_run_time() -> None:
    with pytest.raises(AttributeError):
        abi.PolicyKey(**{"prot": 6})


def test_name_of_speaks_known_values_and_prints_unknown_ones() -> None:
    assert abi.name_of(abi.DropReason, abi.DropReason.NO_POLICY) == "no-policy"
    assert abi.name_of(abi.DropReason, 4711) == "4711"
    assert abi.name_of(abi.SockFlag, abi.SockFlag.OPENED | abi.SockFlag.RAW | 1 << 20) == f"opened,raw,{1 << 20}"
    assert abi.name_of(abi.Need, 0) == "none"


def test_socket_state_keeps_its_size_because_sockets_outlive_the_agent() -> None:
    assert len(bytes(abi.SockState())) == 128


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_static_assertions_hold_for_the_header_and_catch_a_narrowed_field(tmp_path: Path) -> None:
    header = "#include <linux/types.h>\n" + (ROOT / "bpf" / "abi.h").read_text(encoding="utf-8")

    def complaints(text: str) -> str:
        source = tmp_path / "abi.c"
        source.write_text(text + abi.static_assertions(), encoding="utf-8")
        return subprocess.run(["gcc", "-fsyntax-only", str(source)], capture_output=True, text=True, check=False).stderr

    assert complaints(header) == ""
    narrowed = header.replace("__u32 flags;      /* enum policy_flag */", "__u16 flags; __u16 rest;")
    assert narrowed != header
    assert "width of policy_entry.flags differs" in complaints(narrowed)
