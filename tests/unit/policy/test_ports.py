from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.policy.glob import can_end_in, has_wildcard
from bulkhead.policy.ports import ICMP_TYPES, PortError, parse_port
from bulkhead.policy.scalars import meaning

PORTS = st.integers(1, 65535)


@given(PORTS, PORTS, st.sampled_from(["", "/tcp", "/udp"]))
def test_a_range_covers_exactly_its_bounds(one, other, protocol):
    first, last = sorted((one, other))
    (spec,) = parse_port(f"{first}-{last}{protocol}")
    assert (spec.first, spec.last, spec.text) == (first, last, f"{first}-{last}{protocol}")
    assert spec.protocol == (17 if protocol == "/udp" else 6)


@given(PORTS)
def test_a_bare_number_is_tcp(port):
    (spec,) = parse_port(str(port))
    assert (spec.protocol, spec.first, spec.last) == (6, port, port)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("any", [(6, 0, 65535), (17, 0, 65535), (1, 0, 65535), (58, 0, 65535)]),
        ("any/udp", [(17, 0, 65535)]),
        ("icmp", [(1, 0, 65535), (58, 0, 65535)]),
        ("icmp/unreachable", [(1, 0x300, 0x3FF), (58, 0x100, 0x1FF)]),
        ("proto/47", [(47, 0, 65535)]),
        ("proto/0", [(0, 0, 65535)]),
    ],
)
def test_words_cover_what_they_say(text, expected):
    assert [(spec.protocol, spec.first, spec.last) for spec in parse_port(text)] == expected


@pytest.mark.parametrize("name", ICMP_TYPES)
def test_icmp_types_are_in_both_families(name):
    assert [spec.protocol for spec in parse_port(f"icmp/{name}")] == [1, 58]


@pytest.mark.parametrize(
    "text",
    ["", "0", "65536", "080", "-1", "1-", "-", "1-2-3", "2-1", "0-5", "80/", "/tcp", "80/TCP", "80/sctp", "any/icmp",
     "icmp/", "icmp/8", "icmp/echo/tcp", "proto/", "proto/256", "proto/1", "proto/58", "proto/x", "Any", "*",
     "80 ", "８０", "1_0", "80\n"],
)  # fmt: skip
def test_refuse_what_is_no_port(text):
    with pytest.raises(PortError):
        parse_port(text)


@given(st.text(max_size=20))
def test_any_text_is_a_port_within_bounds_or_none(text):
    try:
        specs = parse_port(text)
    except PortError:
        return
    for spec in specs:
        assert 0 <= spec.protocol <= 255
        assert 0 <= spec.first <= spec.last <= 65535


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("off", "a boolean"), ("No", "a boolean"), ("y", "a boolean"), ("~", "nothing"), ("NULL", "nothing"),
        ("22:22", "a number"), ("1:2:3", "a number"), ("010", "a number"), ("0x1f", "a number"), ("1_000", "a number"),
        ("1e3", "a number"), ("-.5", "a number"), (".inf", "a number"), (".NaN", "a number"), ("12.5e-3", "a number"),
        ("2027-01-31", "a date"), ("2027-01-31T18:00:00Z", "a date"), ("2027-1-1 1:00:00.5 -5", "a date"),
        ("<<", "a merge key"), ("=", "a default value"), ("", "nothing"),
    ],
)  # fmt: skip
def test_text_that_yaml_readers_turn_into_something_else_is_known(text, words):
    assert meaning(text) == words


@pytest.mark.parametrize(
    "text", ["web", "1.2.3.4", "10.0.0.0/8", "8000-8100", "53/udp", "host:22", "v1", "not", "onoff", "a=b", ".", "1:99"]
)
def test_plain_text_stays_text(text):
    assert meaning(text) == ""


@settings(deadline=None)  # the definition tries everything
@given(st.text(alphabet="ab*?.", max_size=6), st.text(alphabet="ab.", min_size=1, max_size=3))
def test_a_pattern_can_end_in_a_suffix_exactly_when_some_longer_text_shows_it(pattern, suffix):
    assert can_end_in(pattern, suffix) == any(_matches(pattern, head + suffix) for head in _heads())


def _heads() -> list[str]:
    """Enough beginnings for patterns of six characters over three letters, grown by one letter at a time."""
    heads = [""]
    for _ in range(6):
        heads += [head + letter for head in heads[-(3**6) :] for letter in "ab."]
    return sorted({head for head in heads if head}, key=len)[:1200]


def _matches(pattern: str, text: str) -> bool:
    """A glob by its definition."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return _matches(pattern[1:], text) or (bool(text) and _matches(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and _matches(pattern[1:], text[1:])


def test_wildcards_are_star_and_question_mark_only():
    assert has_wildcard("a*") and has_wildcard("?")
    assert not has_wildcard("[a-z]{x}")
