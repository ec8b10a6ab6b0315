"""SPIFFE IDs: one spelling each."""

from __future__ import annotations

import pytest

from bulkhead.svid.spiffe_id import SpiffeIdError, parse


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://example.org",
        "spiffe://example.org/shop/web",
        "spiffe://a_b-c.1/host/Web-1.example.org/unit/nginx.service",
        "spiffe://x/" + "a" * 2036,
    ],
)
def test_an_id_is_read_as_it_is_written(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "begin with"),
        ("https://example.org/web", "begin with"),
        ("SPIFFE://example.org/web", "begin with"),
        ("spiffe:///web", "trust domain"),
        ("spiffe://Example.org/web", "trust domain"),
        ("spiffe://example.org:8080/web", "trust domain"),
        ("spiffe://user@example.org/web", "trust domain"),
        ("spiffe://example.org,evil/web", "trust domain"),
        (f"spiffe://{'a' * 256}/web", "trust domain"),
        ("spiffe://example.org/", "segment"),
        ("spiffe://example.org/web/", "segment"),
        ("spiffe://example.org//web", "segment"),
        ("spiffe://example.org/./web", "segment"),
        ("spiffe://example.org/shop/../web", "segment"),
        ("spiffe://example.org/we%62", "segment"),
        ("spiffe://example.org/web,spiffe://example.org/db", "segment"),
        ("spiffe://example.org/web\0.evil", "segment"),
        ("spiffe://example.org/web\n", "segment"),
        ("spiffe://example.org/wéb", "segment"),
        ("spiffe://example.org/web?x=1", "segment"),
        ("spiffe://example.org/web#x", "segment"),
        ("spiffe://x/" + "a" * 2038, "longer than 2048"),
    ],
)
def test_what_is_no_id_is_refused(text: str, word: str) -> None:
    with pytest.raises(SpiffeIdError, match=word):
        parse(text)
