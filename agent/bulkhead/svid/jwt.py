"""JWT-SVIDs: short statements of who a workload is, signed with the key of its node's anchor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from jwt.exceptions import ExpiredSignatureError, ImmatureSignatureError, InvalidAudienceError, PyJWTError

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.spiffe_id import SpiffeId, SpiffeIdError, parse
from bulkhead.svid.svids import JwtSvid
from bulkhead.svid.x509 import Signer

LIFETIME_S: Final = 300.0
TOKEN_BYTES_MAX: Final = 16 << 10
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512")
_HEADERS: Final = frozenset({"alg", "kid", "typ"})


class TokenError(ValueError):
    """The token is not believed; the message is one clause."""


def issue(
    anchor: Signer, spiffe_id: str, audiences: Sequence[str], now: float, lifetime_s: float, hint: str
) -> JwtSvid:
    """A JWT-SVID for those audiences, one at least."""
    issued_at, expires_at = math.floor(now), math.ceil(now + lifetime_s)
    claims = {"sub": spiffe_id, "aud": list(audiences), "iat": issued_at, "exp": expires_at}
    token = jwt.encode(claims, anchor.key, algorithm="ES256", headers={"kid": anchor.key_id.hex()})
    return JwtSvid(spiffe_id, token, float(expires_at), hint)


def validate(token: str, audience: str, bundles: Mapping[str, Bundle]) -> tuple[SpiffeId, dict[str, Any]]:
    """Who a token is of, and its claims. Raises TokenError."""
    if len(token) > TOKEN_BYTES_MAX:
        raise TokenError(f"the token is longer than {TOKEN_BYTES_MAX} bytes")
    header = _header(token)
    identity = _claimed(token)
    bundle = bundles.get(identity.trust_domain)
    key = bundle.jwt.get(str(header.get("kid", ""))) if bundle is not None else None
    if key is None:
        raise TokenError(f"no key of the trust domain `{identity.trust_domain}` has the token's key id")
    return identity, _checked(token, audience, key, str(header["alg"]))


def expiry(token: str) -> float:
    """When a token ends by its own words, in Unix seconds; 0 where it does not say. Nothing is checked."""
    try:
        ends = jwt.decode(token, options={"verify_signature": False}).get("exp", 0)
    except PyJWTError:
        return 0.0
    return float(ends) if isinstance(ends, int | float) else 0.0


def _header(token: str) -> dict[str, Any]:
    try:
        header = jwt.get_unverified_header(token)
    except PyJWTError as error:
        raise TokenError("it is no JSON Web Token") from error
    if strange := header.keys() - _HEADERS:
        raise TokenError(f"the token has a header `{min(strange)[:32]}`, which a JWT-SVID must not have")
    if header.get("alg") not in _ALGORITHMS:
        raise TokenError("the token is signed with an algorithm that a JWT-SVID must not have")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise TokenError("the token is of another type than JWT")
    if not isinstance(header.get("kid"), str):
        raise TokenError("the token names no key")
    return header


def _claimed(token: str) -> SpiffeId:
    """Who the token says it is of; nothing is believed yet but where to look for the key."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        identity = parse(str(claims.get("sub", "")))
    except SpiffeIdError as error:
        raise TokenError(f"the token's `sub` is no SPIFFE ID: {error}") from error
    except PyJWTError as error:
        raise TokenError("the token's claims cannot be read") from error
    if not identity.is_workload:
        raise TokenError("the token's `sub` is a trust domain, not a workload")
    return identity


def _checked(token: str, audience: str, key: bytes, algorithm: str) -> dict[str, Any]:
    public: Any = serialization.load_der_public_key(key)
    try:
        return dict(jwt.decode(token, public, [algorithm], {"require": ["sub", "aud", "exp"]}, audience=audience))
    except ExpiredSignatureError as error:
        raise TokenError("the token has expired") from error
    except ImmatureSignatureError as error:
        raise TokenError("the token is not valid yet") from error
    except InvalidAudienceError as error:
        raise TokenError("the token is for another audience") from error
    except (PyJWTError, TypeError, ValueError) as error:
        raise TokenError(f"the token is not as its key would sign it: {error}") from error
