"""The language of the control socket."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.control.protocol import (
    REQUEST_MAX,
    RemoteError,
    Request,
    decode_answer,
    decode_request,
    encode_answer,
    encode_error,
    encode_request,
)
from bulkhead.errors import BulkheadError, ExitCode, UsageError


def test_a_request_comes_out_as_it_went_in() -> None:
    request = Request("drops", {"from": ["wéb"], "since": 1.5})
    assert decode_request(encode_request(request)) == request


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"x\n",
        b"[]\n",
        b"{}\n",
        b'{"version": 2, "op": "a"}\n',
        b'{"version": 1}\n',
        b'{"version": 1, "op": 3}\n',
        b'{"version": 1, "op": "a", "args": []}\n',
        b'{"version": 1, "op": "a", "more": 1}\n',
        b"\xff\xfe\n",
        b"[" * 60_000,
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(UsageError):
        decode_request(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    try:
        decode_request(line)
    except UsageError:
        return


def test_a_request_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(UsageError, match="more than 65,536"):
        encode_request(Request("x", {"a": "b" * REQUEST_MAX}))


def test_an_answer_is_one_line_whatever_is_in_it() -> None:
    line = encode_answer({"comm": "a\nb\x1b[31m\u2028"})
    assert line.count(b"\n") == 1
    assert line.strip().decode("ascii").isprintable()
    assert decode_answer(line) == {"comm": "a\nb\x1b[31m\u2028"}


def test_an_error_keeps_its_words_and_exit_code() -> None:
    with pytest.raises(RemoteError, match="unknown workload") as caught:
        decode_answer(encode_error(UsageError("unknown workload `x`")))
    assert caught.value.exit_code is ExitCode.INVALID
    assert isinstance(caught.value, BulkheadError)


@pytest.mark.parametrize("value", [{}, {"ok": True}, {"ok": False}, {"ok": False, "error": "x"}, []])
def test_an_answer_of_another_shape_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        decode_answer(json.dumps(value).encode())


def test_an_exit_code_nobody_knows_is_unreachable() -> None:
    with pytest.raises(RemoteError) as caught:
        decode_answer(b'{"ok": false, "error": {"message": "m", "exit_code": 99}}')
    assert caught.value.exit_code is ExitCode.UNREACHABLE
