"""SPIFFE bundle documents."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from bulkhead.svid import bundle
from bulkhead.svid.bundle import Bundle, BundleError
from bulkhead.svid.x509 import make_leaf
from unit.svid.authorities import NOW, WEB, anchor, intermediate

ANCHOR, OTHER = anchor(), anchor(name="node-2")
FULL = Bundle("example.org", sequence=7, refresh_s=300).with_anchors([ANCHOR.der, OTHER.der])


def test_what_is_written_is_read_back() -> None:
    assert bundle.read("example.org", bundle.write(FULL)) == FULL
    rsa_key = bundle.spki(rsa.generate_private_key(65537, 2048).public_key())
    with_rsa = Bundle("example.org", (ANCHOR.der,), {"r": rsa_key})
    assert bundle.read("example.org", bundle.write(with_rsa)) == with_rsa


def test_the_form_is_the_standards() -> None:
    document = json.loads(bundle.write(FULL))
    assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (7, 300)
    x509 = [key for key in document["keys"] if key["use"] == "x509-svid"]
    jwt = [key for key in document["keys"] if key["use"] == "jwt-svid"]
    assert [base64.b64decode(key["x5c"][0]) for key in x509] == [ANCHOR.der, OTHER.der]
    assert all("kid" not in key and "d" not in key for key in x509)
    assert [key["kid"] for key in jwt] == [ANCHOR.key_id.hex(), OTHER.key_id.hex()]
    assert all("x5c" not in key for key in jwt)
    tokens_only = json.loads(bundle.write(FULL, jwt_only=True))
    assert {key["use"] for key in tokens_only["keys"]} == {"jwt-svid"}


def test_the_same_anchor_twice_is_one() -> None:
    assert FULL.with_anchors([OTHER.der, ANCHOR.der]) == FULL


def test_no_keys_mean_that_nobody_is_believed() -> None:
    assert bundle.read("example.org", b'{"keys": []}') == Bundle("example.org")


def test_keys_of_other_uses_are_passed_over() -> None:
    found = bundle.read("example.org", b'{"keys": [{"use": "wit-svid", "kid": "1"}, {"kty": "EC"}, 7]}')
    assert found == Bundle("example.org")


X5C = base64.b64encode(ANCHOR.der).decode()
LEAF = base64.b64encode(make_leaf(intermediate(ANCHOR), WEB, NOW, 60).der).decode()
JWK: dict[str, Any] = next(key for key in json.loads(bundle.write(FULL))["keys"] if key["use"] == "jwt-svid")


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 90_000, "not JSON"),
        (b"[]", "list `keys`"),
        (b'{"keys": {}}', "list `keys`"),
        (b" " * ((1 << 20) + 1), "more than"),
        ({"keys": [{"use": "x509-svid"}]}, "`x5c`"),
        ({"keys": [{"use": "x509-svid", "x5c": []}]}, "`x5c`"),
        ({"keys": [{"use": "x509-svid", "x5c": [X5C, X5C]}]}, "`x5c`"),
        ({"keys": [{"use": "x509-svid", "x5c": ["%"]}]}, "not base64"),
        ({"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}, "cannot be read"),
        ({"keys": [{"use": "x509-svid", "x5c": [LEAF]}]}, "not of an authority"),
        ({"keys": [JWK | {"kid": ""}]}, "no `kid`"),
        ({"keys": [JWK, JWK]}, "two keys"),
        ({"keys": [JWK | {"d": "AAAA"}]}, "private"),
        ({"keys": [JWK | {"kty": "oct"}]}, "another kind"),
        ({"keys": [JWK | {"x": "AAAA"}]}, "cannot be read"),
        ({"keys": [], "spiffe_sequence": -1}, "spiffe_sequence"),
        ({"keys": [], "spiffe_refresh_hint": "soon"}, "spiffe_refresh_hint"),
    ],
)
def test_what_is_no_bundle_is_refused(document: bytes | dict[str, Any], word: str) -> None:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(BundleError, match=word):
        bundle.read("example.org", text)


def test_only_a_certificate_of_an_authority_is_an_anchor() -> None:
    bundle.check_anchor(ANCHOR.der)
    with pytest.raises(BundleError, match="not of an authority"):
        bundle.check_anchor(base64.b64decode(LEAF))
    with pytest.raises(BundleError, match="expired"):
        bundle.check_anchor(anchor(lifetime_s=60, now=NOW - 3600).der)
