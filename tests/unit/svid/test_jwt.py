"""JWT-SVIDs: what is issued is believed by its audience for a while, and nothing else is."""

from __future__ import annotations

import time
from typing import Any

import jwt as pyjwt
import pytest

from bulkhead.svid import jwt
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.jwt import TokenError
from unit.svid.authorities import DOMAIN, WEB, anchor

ANCHOR, FOREIGN = anchor(), anchor("partner.example")
BUNDLES = {
    DOMAIN: Bundle(DOMAIN).with_anchors([ANCHOR.der]),
    "partner.example": Bundle("partner.example").with_anchors([FOREIGN.der]),
}
NOW = time.time()
CLAIMS: dict[str, Any] = {"sub": WEB, "aud": ["api"], "iat": int(NOW), "exp": int(NOW) + 300}


def token(
    signer: Any = ANCHOR, *, headers: dict[str, Any] | None = None, algorithm: str = "ES256", **claims: Any
) -> str:
    """As `issue` makes it, but for what is given; None leaves a claim out."""
    filled = {key: value for key, value in (CLAIMS | claims).items() if value is not None}
    key = signer if isinstance(signer, str) else signer.key
    kid = {} if isinstance(signer, str) else {"kid": signer.key_id.hex()}
    return pyjwt.encode(filled, key, algorithm=algorithm, headers=kid | (headers or {}))


def test_an_issued_token_is_believed_by_each_of_its_audiences() -> None:
    made = jwt.issue(ANCHOR, WEB, ["api", "db"], NOW, 300, "shop/web")
    assert pyjwt.get_unverified_header(made.token) == {"alg": "ES256", "kid": ANCHOR.key_id.hex(), "typ": "JWT"}
    for audience in ("api", "db"):
        identity, claims = jwt.validate(made.token, audience, BUNDLES)
        assert (str(identity), claims["aud"]) == (WEB, ["api", "db"])
    assert made.expires_at == jwt.expiry(made.token) == claims["exp"]
    assert 299 <= made.expires_at - NOW <= 302


NONE = pyjwt.encode(CLAIMS, None, algorithm="none", headers={"kid": ANCHOR.key_id.hex()})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no JSON Web Token"),
        ("a.b.c", "no JSON Web Token"),
        ("x" * (16 << 10) + ".a.b", "longer"),
        (NONE, "algorithm"),
        (token("secret" * 8, algorithm="HS256", headers={"kid": ANCHOR.key_id.hex()}), "algorithm"),
        (token(headers={"typ": "at+jwt"}), "another type"),
        (pyjwt.encode(CLAIMS, ANCHOR.key, algorithm="ES256"), "names no key"),
        (token(headers={"kid": "00"}), "key id"),
        (token(headers={"jku": "https://evil.example"}), "header `jku`"),
        (token(headers={"x5c": []}), "header `x5c`"),
        (token(sub=None), "no SPIFFE ID"),
        (token(sub="web"), "no SPIFFE ID"),
        (token(sub=f"spiffe://{DOMAIN}"), "trust domain"),
        (token(sub="spiffe://evil.example/web"), "no key of the trust domain"),
        (token(FOREIGN), "no key of the trust domain"),
        (token(sub="spiffe://partner.example/web"), "no key of the trust domain"),
        (token(FOREIGN, headers={"kid": ANCHOR.key_id.hex()}), "as its key would sign it"),
        (token(aud=["db"]), "another audience"),
        (token(aud=None), "aud"),
        (token(exp=None), "exp"),
        (token(exp=int(NOW) - 1), "expired"),
        (token(nbf=int(NOW) + 600), "not valid yet"),
        (token()[:-4] + "AAAA", "as its key would sign it"),
    ],
)
def test_a_token_that_is_not_as_it_should_be_is_refused(text: str, word: str) -> None:
    with pytest.raises(TokenError, match=word):
        jwt.validate(text, "api", BUNDLES)
