"""Log lines that nobody can forge."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator

import pytest

from bulkhead.observe.logs import Log, escaped, line, set_up, under_journal


@pytest.fixture
def log_to() -> Iterator[tuple[Log, io.StringIO]]:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    stream = io.StringIO()
    set_up(stream=stream, priorities=True)
    yield Log(), stream
    root.handlers, root.level = before, level


def test_fields_are_written_with_their_names() -> None:
    assert line("denied", {"src": "shop/web", "port": 5432, "cut": True}) == "denied src=shop/web port=5432 cut=yes"


def test_values_with_spaces_or_signs_are_quoted() -> None:
    assert line("x", {"a": "b c", "d": "e=f", "g": ""}) == 'x a="b c" d="e=f" g=""'
    assert line("x", {"a": 'say "hi" \\'}) == 'x a="say \\"hi\\" \\\\"'


def test_a_value_of_none_is_left_out() -> None:
    assert line("x", {"a": None, "b": 1}) == "x b=1"


@pytest.mark.parametrize(
    "name", ["a\nlevel=error forged=yes", "a\x1b[2J", "a\rb", "a\x00b", "a\u202eb", "a\u2028b", "a\x7fb", "a\udcffb"]
)
def test_a_process_name_cannot_forge_a_line_or_reach_the_terminal(name: str) -> None:
    text = line("denied", {"comm": name})
    assert text.isprintable()
    assert len(text.splitlines()) == 1
    text.encode("utf-8")


def test_a_quoted_value_cannot_end_its_quotes() -> None:
    text = line("denied", {"comm": 'x" src="shop/web'})
    assert text == 'denied comm="x\\" src=\\"shop/web"'


def test_messages_and_keys_are_escaped_too() -> None:
    assert line("a\nb", {"c d\n": 1}) == "a\\u{a}b c_d_=1"


def test_a_long_value_is_cut() -> None:
    assert len(escaped("x" * 10_000)) == 2000


def test_each_event_is_one_line_with_its_priority(log_to: tuple[Log, io.StringIO]) -> None:
    log, stream = log_to
    log.debug("not shown")
    log.info("ready", generation=7)
    log.warning("policy refused", error="line 1\nline 2")
    log.error("failed")
    assert stream.getvalue() == ('<6>ready generation=7\n<4>policy refused error="line 1\\u{a}line 2"\n<3>failed\n')


def test_an_exception_stays_on_its_line(log_to: tuple[Log, io.StringIO]) -> None:
    log, stream = log_to
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        log.error("failed", error, op="status")
    (text,) = stream.getvalue().splitlines()
    assert text.startswith('<3>failed op=status error="Traceback')
    assert "ValueError" in text


def test_other_libraries_write_the_same_way(log_to: tuple[Log, io.StringIO]) -> None:
    _, stream = log_to
    logging.getLogger("asyncio").warning("slow %s", "a\nb")
    assert stream.getvalue() == "<4>slow a\\u{a}b\n"


def test_without_journald_lines_begin_with_the_level() -> None:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    stream = io.StringIO()
    try:
        set_up(stream=stream, verbose=True)
        Log("bulkhead.x").debug("seen")
    finally:
        root.handlers, root.level = before, level
    assert stream.getvalue() == "debug seen\n"


def test_the_journal_is_known_by_its_stream(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with open(read), open(write, "w") as stream:
        status = os.fstat(write)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert under_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not under_journal(stream)
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not under_journal(stream)
    assert not under_journal(io.StringIO())
