"""Text that means to hurt its reader."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.policy.findings import LINE_MAX, Findings, excerpt
from bulkhead.policy.yaml_nodes import Mapping, Scalar, compose

PATIENCE_S = 2.0
"""Processor time in which any file of 1 MiB must be dealt with."""


def codes_of(content: bytes) -> list[str]:
    findings = Findings("a.yaml", content)
    compose(content, findings)
    return [each.code for each in findings.diagnostics]


def test_nodes_know_their_line_column_and_width():
    findings = Findings("a.yaml", b"")
    composition = compose('k\u00e9y: "v\u00e9"\nlist:\n  - {a: b}\n'.encode(), findings)
    (root,) = composition.documents
    assert isinstance(root, Mapping)
    (key, value), (_, items) = root.entries
    assert key == Scalar("k\u00e9y", True, 1, 1, 3)
    assert value == Scalar("v\u00e9", False, 1, 6, 4)
    assert (items.items[0].line, items.items[0].column, items.items[0].width) == (3, 5, 6)


def test_a_byte_order_mark_moves_no_column():
    findings = Findings("a.yaml", b"")
    (root,) = compose(b"\xef\xbb\xbfa: b\n", findings).documents
    assert root.entries[0][0].column == 1
    assert not findings.diagnostics


def test_windows_line_ends_are_read_like_others():
    findings = Findings("a.yaml", b"")
    (root,) = compose(b"a: b\r\nc: d\r\n", findings).documents
    assert [value.text for _, value in root.entries] == ["b", "d"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"[" * 1_000_000, "BH0109"),
        (b"{a: " * 250_000, "BH0109"),
        (b"- " * 500_000, "BH0109"),
        (b"? " * 500_000, "BH0109"),
        (b"\n".join(b" " * n + b"a:" for n in range(1000)), "BH0109"),
        (b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "BH0104"),
        (b"a: &a [*a]\n", "BH0104"),
        (b"\x00" * 1_000_000, "BH0110"),
        (b"a: \xed\xa0\x80\n", "BH0102"),
        ("a: b\n".encode("utf-16"), "BH0102"),
        (b"a: '" + b"x" * 1_000_000, "BH0101"),
        (b"a: |\n " + b"\xf0\x9f", "BH0102"),
        (b"a: !!python/object/apply:os.system [id]\n", "BH0105"),
        (b"a: !<tag:yaml.org,2002:binary> aGk=\n", "BH0105"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_hostile_text_is_refused_quickly(content, code):
    begun = time.process_time()
    assert code in codes_of(content)
    assert time.process_time() - begun < PATIENCE_S


@pytest.mark.parametrize(
    "content", [b"a: [" + b"x," * 500_000 + b"]", b"a: " + b"x" * 1_000_000, b"a:\n" + b"- b\n" * 250_000]
)
def test_long_but_harmless_text_is_read(content):
    assert codes_of(content) == []


@given(st.binary(max_size=200))
def test_no_bytes_raise(content):
    codes_of(content)


@given(st.text(alphabet="ab:-?[]{}&*!|>'\"%@`#, \n\t<~.", max_size=60))
def test_no_text_raises_and_findings_lie_in_the_text(text):
    content = text.encode()
    findings = Findings("a.yaml", content)
    compose(content, findings)
    lines = text.split("\n")
    for each in findings.diagnostics:
        assert 1 <= each.loc.line <= len(lines) + 1
        assert each.render()


def test_a_line_is_shown_without_what_a_terminal_would_obey():
    assert excerpt("a\tb\x1b[0m\u202e\r\nnext".encode(), 1) == "a b\ufffd[0m\ufffd"
    assert excerpt(b"x" * (LINE_MAX + 1), 1) == ""
    assert excerpt(b"a", 2) == excerpt(b"a", 0) == ""
