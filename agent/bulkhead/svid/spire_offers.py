"""What SPIRE hands out, and what of it is taken: SVIDs of the wanted SPIFFE ID that the bundles vouch for, and bundles.

SPIRE is trusted to issue, not to be right about what is asked: an entry that is registered under another SPIFFE ID than
policy expects would make a workload somebody else, so it is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import serialization

from bulkhead.svid import bundle as bundles_form
from bulkhead.svid.bundle import AUTHORITIES_MAX, Bundle, BundleError, read_certificate, spki
from bulkhead.svid.jwt import TokenError, validate
from bulkhead.svid.spiffe_id import SCHEME, is_trust_domain
from bulkhead.svid.spire_calls import CallError, Failure, shown
from bulkhead.svid.svids import JwtSvid, Workload, X509Svid
from bulkhead.svid.verify import SvidError, verify

OFFERS_MAX: Final = 64
"""SVIDs of one workload: beyond, somebody registered entries at random."""
DOMAINS_MAX: Final = 1024
"""Trust domains that SPIRE may know of."""


class Offer(NamedTuple):
    """One X.509-SVID as SPIRE hands it out; nothing of it is checked."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    """DER, the leaf first."""
    key: bytes
    """PKCS#8, DER."""


class Token(NamedTuple):
    """One JWT-SVID as SPIRE hands it out; nothing of it is checked."""

    spiffe_id: str
    token: str


def take(workload: Workload, offers: Sequence[Offer], bundles: Mapping[str, Bundle]) -> X509Svid:
    """The SVID that the workload is to have. Raises CallError, `wrong_id` or `withheld` when it is not among them."""
    if len(offers) > OFFERS_MAX:
        raise CallError(Failure.TOO_LARGE, f"SPIRE gives `{workload.name}` more than {OFFERS_MAX} SVIDs")
    wanted = _wanted(workload, [offer.spiffe_id for offer in offers])
    _, chain, key = offers[wanted]
    try:
        verified = verify(chain, bundles)
        leaf = read_certificate(chain[0])
        agrees = spki(leaf.public_key()) == _public(key)
    except (SvidError, BundleError) as error:
        raise _bad(workload, str(error)) from None
    if str(verified.spiffe_id) != workload.spiffe_id:
        raise _bad(workload, f"its certificate is of `{verified.spiffe_id}`")
    if not agrees:
        raise _bad(workload, "its key is not the certificate's")
    begins = leaf.not_valid_before_utc.timestamp()
    return X509Svid(workload.spiffe_id, chain, key, begins, verified.expires_at, workload.name)


def take_token(
    workload: Workload, audiences: Sequence[str], tokens: Sequence[Token], bundles: Mapping[str, Bundle]
) -> JwtSvid:
    """The JWT-SVID that the workload is to have, for these audiences, one at least. Raises CallError."""
    token = tokens[_wanted(workload, [one.spiffe_id for one in tokens])].token
    try:
        identity, claims = [validate(token, audience, bundles) for audience in audiences][-1]
    except TokenError as error:
        raise _bad(workload, str(error)) from None
    if str(identity) != workload.spiffe_id:
        raise _bad(workload, f"its token is of `{identity}`")
    return JwtSvid(workload.spiffe_id, token, float(claims["exp"]), workload.name)


def _wanted(workload: Workload, offered: Sequence[str]) -> int:
    if workload.spiffe_id in offered:
        return offered.index(workload.spiffe_id)
    if offered:
        others = f"`{shown(offered[0])}`" + (f" and {len(offered) - 1} more" if len(offered) > 1 else "")
        wants = f"policy says `{workload.spiffe_id}`"
        raise CallError(Failure.WRONG_ID, f"SPIRE gives `{workload.name}` the SPIFFE ID {others}, and {wants}")
    raise CallError(Failure.WITHHELD, f"SPIRE has no SVID for `{workload.name}`: no entry of it matches")


def _bad(workload: Workload, why: str) -> CallError:
    return CallError(Failure.MALFORMED, f"what SPIRE gives `{workload.name}` is refused: {why}")


def _public(key: bytes) -> bytes:
    try:
        private = serialization.load_der_private_key(key, None)
    except Exception:  # noqa: BLE001  what the library raises differs by version, and may quote what it read
        raise BundleError("its key is no PKCS#8 key in the clear") from None
    return spki(private.public_key())


# Bundles


def x509_authorities(ders: Mapping[str, bytes]) -> dict[str, tuple[bytes, ...]]:
    """Certificates by trust domain, from concatenated DER by trust domain. Raises CallError."""
    found = {}
    for key, der in _bounded(ders).items():
        domain = _domain(key)
        certificates = certificates_of(der)
        try:
            for one in certificates:
                spki(read_certificate(one).public_key())
        except BundleError as error:
            raise _bad_bundle(domain, str(error)) from None
        found[domain] = certificates
    return found


def jwt_authorities(documents: Mapping[str, bytes]) -> dict[str, Mapping[str, bytes]]:
    """Public keys by key id, by trust domain, from JWKS by trust domain. Raises CallError."""
    found = {}
    for key, document in _bounded(documents).items():
        domain = _domain(key)
        try:
            found[domain] = bundles_form.read(domain, _with_uses(document)).jwt
        except BundleError as error:
            raise _bad_bundle(domain, str(error)) from None
    return found


def certificates_of(ders: bytes) -> tuple[bytes, ...]:
    """The certificates that are written one behind the other. Raises CallError when that is not what it is."""
    found: list[bytes] = []
    rest = memoryview(ders)
    while rest:
        length = _der_length(rest)
        if length > len(rest) or len(found) == AUTHORITIES_MAX:
            raise CallError(Failure.MALFORMED, "SPIRE's certificates are no DER, one behind the other")
        found.append(bytes(rest[:length]))
        rest = rest[length:]
    return tuple(found)


def _der_length(der: memoryview) -> int:
    """Of the SEQUENCE at its beginning; more than there is when there is none."""
    beyond = len(der) + 1
    if len(der) < 2 or der[0] != 0x30:
        return beyond
    if der[1] < 0x80:
        return 2 + der[1]
    octets = der[1] & 0x7F
    if not 1 <= octets <= 3 or len(der) < 2 + octets:
        return beyond
    return 2 + octets + int.from_bytes(der[2 : 2 + octets], "big")


def _with_uses(document: bytes) -> bytes:
    """SPIRE leaves out what the keys of its JWT bundles are for."""
    try:
        fields = json.loads(document)
        keys = [{"use": "jwt-svid"} | entry for entry in fields["keys"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BundleError("it is no JWKS") from None
    return json.dumps({"keys": keys}).encode()


def _bounded(given: Mapping[str, bytes]) -> Mapping[str, bytes]:
    if len(given) > DOMAINS_MAX:
        raise CallError(Failure.TOO_LARGE, f"SPIRE has bundles of more than {DOMAINS_MAX} trust domains")
    return given


def _domain(key: str) -> str:
    """The API says that bundles are keyed by name, SPIRE keys them by SPIFFE ID."""
    domain = key.removeprefix(SCHEME)
    if not is_trust_domain(domain):
        raise CallError(Failure.MALFORMED, f"SPIRE has a bundle of `{shown(key)}`, which is no trust domain")
    return domain


def _bad_bundle(domain: str, why: str) -> CallError:
    return CallError(Failure.MALFORMED, f"SPIRE's bundle of `{domain}` is refused: {why}")
