"""What SPIRE hands out is looked at before it is taken: each flaw is refused, by kind and in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bulkhead.svid.spire_calls import CallError, Failure
from bulkhead.svid.spire_offers import (
    AUTHORITIES_MAX,
    DOMAINS_MAX,
    OFFERS_MAX,
    Offer,
    Token,
    certificates_of,
    jwt_authorities,
    take,
    take_token,
    x509_authorities,
)
from bulkhead.svid.svids import Workload
from lab.spire import Authority

WEB = Workload("spiffe://example.org/web", "shop/web")
API = "spiffe://example.org/api"
AUTHORITY = Authority()
STRANGER = Authority()
"""Of the same name, and nobody's."""
BUNDLES = {"example.org": AUTHORITY.bundle}


def offer(spiffe_id: str = WEB.spiffe_id, authority: Authority = AUTHORITY, **changes: object) -> Offer:
    """What would be taken, but for the changes."""
    return Offer(spiffe_id, *authority.issue(spiffe_id))._replace(**changes)  # type: ignore[arg-type]


def test_the_svid_of_the_wanted_id_is_taken_and_no_other() -> None:
    wanted = offer()
    svid = take(WEB, [offer(API), wanted], BUNDLES)
    assert (svid.spiffe_id, svid.chain, svid.key, svid.hint) == (WEB.spiffe_id, wanted.chain, wanted.key, "shop/web")
    assert 3500 < svid.expires_at - svid.issued_at < 3700


@pytest.mark.parametrize(
    ("offers", "failure", "complaint"),
    [
        (list, Failure.WITHHELD, "no SVID for `shop/web`"),
        (lambda: [offer(API)], Failure.WRONG_ID, f"`{API}`, and policy says `{WEB.spiffe_id}`"),
        (lambda: [offer(API), offer(API + "2")], Failure.WRONG_ID, f"`{API}` and 1 more"),
        (lambda: [offer(API)] * (OFFERS_MAX + 1), Failure.TOO_LARGE, f"more than {OFFERS_MAX}"),
        (lambda: [offer(chain=())], Failure.MALFORMED, "1 to 5 certificates"),
        (lambda: [offer(chain=(b"\x30\x03abc",))], Failure.MALFORMED, "cannot be read"),
        (lambda: [offer(chain=AUTHORITY.issue(API)[0])], Failure.MALFORMED, f"its certificate is of `{API}`"),
        (lambda: [offer(key=b"\x30\x03abc")], Failure.MALFORMED, "no PKCS#8 key"),
        (lambda: [offer(key=AUTHORITY.issue(API)[1])], Failure.MALFORMED, "key is not the certificate's"),
        (lambda: [offer(authority=STRANGER)], Failure.MALFORMED, "no authority of `example.org` vouches"),
        (lambda: [Offer(WEB.spiffe_id, *AUTHORITY.issue(WEB.spiffe_id, -1.0))], Failure.MALFORMED, "has expired"),
        (lambda: [offer(chain=(AUTHORITY.anchor.der,))], Failure.MALFORMED, "is a trust domain"),
    ],
)
def test_what_is_no_svid_of_the_workload_is_refused(
    offers: Callable[[], list[Offer]], failure: Failure, complaint: str
) -> None:
    with pytest.raises(CallError, match=complaint) as refused:
        take(WEB, offers(), BUNDLES)
    assert refused.value.failure is failure


def token(spiffe_id: str = WEB.spiffe_id, authority: Authority = AUTHORITY, audience: str = "db") -> str:
    """A token as SPIRE makes it."""
    return authority.token(spiffe_id, [audience])


def test_the_token_of_the_wanted_id_is_taken() -> None:
    made = token()
    svid = take_token(WEB, ["db"], [Token(API, token(API)), Token(WEB.spiffe_id, made)], BUNDLES)
    assert (svid.spiffe_id, svid.token, svid.hint) == (WEB.spiffe_id, made, "shop/web")


@pytest.mark.parametrize(
    ("tokens", "failure"),
    [
        (list, Failure.WITHHELD),
        (lambda: [Token(API, token(API))], Failure.WRONG_ID),
        (lambda: [Token(WEB.spiffe_id, token(API))], Failure.MALFORMED),
        (lambda: [Token(WEB.spiffe_id, token(authority=STRANGER))], Failure.MALFORMED),
        (lambda: [Token(WEB.spiffe_id, token(audience="other"))], Failure.MALFORMED),
        (lambda: [Token(WEB.spiffe_id, "x.y.z")], Failure.MALFORMED),
    ],
)
def test_what_is_no_token_of_the_workload_is_refused(tokens: Callable[[], list[Token]], failure: Failure) -> None:
    with pytest.raises(CallError) as refused:
        take_token(WEB, ["db"], tokens(), BUNDLES)
    assert refused.value.failure is failure


def test_bundles_are_read_by_name_and_by_spiffe_id() -> None:
    der, jwks = AUTHORITY.anchor.der, AUTHORITY.jwks()
    for key in ("example.org", "spiffe://example.org"):
        assert x509_authorities({key: der + STRANGER.anchor.der}) == {"example.org": (der, STRANGER.anchor.der)}
        assert jwt_authorities({key: jwks}) == {"example.org": AUTHORITY.bundle.jwt}
    assert x509_authorities({"example.org": b""}) == {"example.org": ()}


DER = AUTHORITY.anchor.der


@pytest.mark.parametrize(
    "ders",
    [
        b"\x30",
        b"\x30\x82\xff\xff" + b"\0" * 9,
        b"\x30\x84\0\0\0\x01\0",
        b"\x30\x80",
        DER[:-1],
        DER + b"x",
        b"PEM?",
        b"\x30\x00" * (AUTHORITIES_MAX + 1),
    ],
)
def test_what_is_no_row_of_certificates_is_refused(ders: bytes) -> None:
    with pytest.raises(CallError, match="no DER") as refused:
        certificates_of(ders)
    assert refused.value.failure is Failure.MALFORMED


@pytest.mark.parametrize(
    "read",
    [
        lambda: x509_authorities({"example.org": b"\x30\x03abc"}),
        lambda: x509_authorities({"spiffe://example.org/web": DER}),
        lambda: x509_authorities({"EXAMPLE\n": DER}),
        lambda: x509_authorities({f"td{number}": b"" for number in range(DOMAINS_MAX + 1)}),
        lambda: jwt_authorities({"example.org": b"{"}),
        lambda: jwt_authorities({"example.org": b'{"keys": [1]}'}),
        lambda: jwt_authorities({"example.org": b"[" * 100_000}),
        lambda: jwt_authorities(
            {"example.org": json.dumps({"keys": [{"kty": "oct", "kid": "a", "k": "AA"}]}).encode()}
        ),
    ],
)
def test_what_is_no_bundle_is_refused_in_one_printable_sentence(read: Callable[[], object]) -> None:
    with pytest.raises(CallError) as refused:
        read()
    assert refused.value.failure in (Failure.MALFORMED, Failure.TOO_LARGE)
    assert str(refused.value).isprintable()
