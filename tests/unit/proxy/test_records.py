"""What is believed of an access record's line."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.observe.requests import (
    LINE_BYTES_MAX,
    Kind,
    MalformedError,
    RecordReader,
    RequestRecord,
    log_fields,
    parse,
)

TIME = "2026-01-01T00:00:00.000Z"
LINE = {"kind": "request", "time": TIME, "method": "GET", "path": "/a", "status": 403, "denied": "rule-7"}


def line(**changes: object) -> bytes:
    return json.dumps(LINE | changes).encode()


def test_a_line_is_a_record() -> None:
    wanted = RequestRecord(Kind.REQUEST, TIME, method="GET", path="/a", status=403, denied="rule-7")
    assert parse(line()) == wanted


def test_nothing_to_say_is_nothing() -> None:
    assert parse(line(status=None, method="-", path=None)) == RequestRecord(Kind.REQUEST, TIME, denied="rule-7")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="no-json"),
        pytest.param(b"[" * 9000, id="deep"),
        pytest.param(b"[]", id="no-object"),
        pytest.param(line(other=1), id="unknown-field"),
        pytest.param(line(kind="other"), id="unknown-kind"),
        pytest.param(line(kind=None), id="no-kind"),
        pytest.param(line(time=1), id="no-time"),
        pytest.param(line(status="403"), id="text-for-a-number"),
        pytest.param(line(status=-1), id="negative"),
        pytest.param(line(status=True), id="truth-for-a-number"),
        pytest.param(line(path=["/a"]), id="list-for-a-text"),
        pytest.param(line(path="/" + "a" * LINE_BYTES_MAX), id="long"),
    ],
)
def test_what_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(text)


@given(
    st.lists(st.sampled_from((line(), line(path="/ä"), b"garbage", b"x" * (LINE_BYTES_MAX + 1))), max_size=8),
    st.lists(st.integers(0, 8 * LINE_BYTES_MAX), max_size=12),
)
def test_records_are_the_same_however_the_bytes_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    text = b"".join(one + b"\n" for one in lines)
    reader, found = RecordReader(), []
    for begin, end in pairwise(sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})):
        found += reader.feed(text[begin:end])
    good = [one for one in lines if one.startswith(b"{")]
    assert found == [parse(one) for one in good]
    assert (reader.records, reader.malformed) == (len(good), len(lines) - len(good))


@pytest.mark.parametrize("kind", Kind)
def test_what_envoy_is_told_to_write_are_the_fields_of_a_record(kind: Kind) -> None:
    written = dict.fromkeys(log_fields(kind), "-") | {"kind": kind, "time": TIME}
    assert parse(json.dumps(written).encode()) == RequestRecord(kind, TIME)


def test_beyond_its_rate_a_reader_takes_refusals_only_and_counts_the_rest() -> None:
    now = [100.0]
    reader = RecordReader(lambda: now[0])
    allowed, refused = (json.dumps(LINE | {"status": status}, separators=(",", ":")).encode() for status in (200, 403))
    assert len(reader.feed(b"".join([allowed + b"\n"] * 600))) == 500
    assert len(reader.feed(refused + b"\n" + allowed + b"\n" + refused + b"\n")) == 2
    assert (reader.records, reader.passed_over, reader.malformed) == (502, 101, 0)
    now[0] += 1
    assert len(reader.feed(allowed + b"\n")) == 1
