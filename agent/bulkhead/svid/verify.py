"""Is this certificate chain an X.509-SVID that a trust domain's bundle vouches for? And if not, why not."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.spiffe_id import SpiffeId, SpiffeIdError, parse

T = TypeVar("T", bound=x509.ExtensionType)

CHAIN_MAX: Final = 5
_RSA_BITS_MIN: Final = 2048
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})
_UNDERSTOOD: Final = frozenset(
    {
        *(ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE),
        *(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.SUBJECT_KEY_IDENTIFIER),
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)
"""Extensions that may be critical: any other one would say something that is not looked at here."""


class Refusal(StrEnum):
    """Why a certificate is not believed. The words are labels of metrics."""

    MALFORMED = "malformed"
    NO_URI = "no-uri"
    SEVERAL_URIS = "several-uris"
    NOT_A_SPIFFE_ID = "not-a-spiffe-id"
    NO_PATH = "no-path"
    IS_AUTHORITY = "is-authority"
    KEY_USAGE = "key-usage"
    NOT_CRITICAL = "san-not-critical"
    CRITICAL_EXTENSION = "critical-extension"
    WEAK = "weak"
    NOT_YET_VALID = "not-yet-valid"
    EXPIRED = "expired"
    UNKNOWN_TRUST_DOMAIN = "unknown-trust-domain"
    UNTRUSTED = "untrusted"


class SvidError(Exception):
    """The certificate is not believed; the message is one sentence."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Verified:
    """A certificate that is believed."""

    spiffe_id: SpiffeId
    expires_at: float
    """Unix seconds."""
    chain: int
    """How many certificates vouch for it, its anchor among them."""


def verify(chain: Sequence[bytes], bundles: Mapping[str, Bundle], now: float | None = None) -> Verified:
    """Who the first of these certificates (DER, then intermediates) is of. Raises SvidError."""
    moment = datetime.datetime.fromtimestamp(time.time() if now is None else now, datetime.UTC)
    if not 1 <= len(chain) <= CHAIN_MAX:
        raise SvidError(Refusal.MALFORMED, f"a chain has 1 to {CHAIN_MAX} certificates, not {len(chain)}")
    leaf, *intermediates = map(_load, chain)
    identity = identity_of(leaf)
    _check_leaf(leaf)
    _check_dates(leaf, moment, "the certificate")
    bundle = bundles.get(identity.trust_domain)
    if bundle is None or not bundle.x509:
        domain = identity.trust_domain
        raise SvidError(Refusal.UNKNOWN_TRUST_DOMAIN, f"no bundle vouches for the trust domain `{domain}`")
    anchors = [_load(der) for der in bundle.x509]
    length = _vouched(leaf, intermediates, anchors, moment, 0)
    if not length:
        raise SvidError(Refusal.UNTRUSTED, f"no authority of `{identity.trust_domain}` vouches for `{identity}`")
    return Verified(identity, leaf.not_valid_after_utc.timestamp(), length)


def identity_of(certificate: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID that a certificate claims, which is not checked any further. Raises SvidError."""
    names = _names(certificate)
    if not names:
        raise SvidError(Refusal.NO_URI, "the certificate names no URI")
    if len(names) > 1:
        raise SvidError(Refusal.SEVERAL_URIS, f"the certificate names {len(names)} URIs: an SVID has exactly one")
    try:
        identity = parse(names[0])
    except SpiffeIdError as error:
        shown = ascii(names[0])[1:-1][:128]
        raise SvidError(Refusal.NOT_A_SPIFFE_ID, f"the URI `{shown}` is no SPIFFE ID: {error}") from error
    if not identity.is_workload:
        raise SvidError(Refusal.NO_PATH, f"`{identity}` is a trust domain, not a workload")
    return identity


def _load(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        unknown = [one.oid for one in certificate.extensions if one.critical and one.oid not in _UNDERSTOOD]
    except ValueError as error:
        raise SvidError(Refusal.MALFORMED, "a certificate cannot be read") from error
    if unknown:
        oid = unknown[0].dotted_string
        raise SvidError(Refusal.CRITICAL_EXTENSION, f"a certificate has the critical extension {oid}")
    return certificate


def _names(certificate: x509.Certificate) -> list[str]:
    found = _extension(certificate, x509.SubjectAlternativeName)
    return found.get_values_for_type(x509.UniformResourceIdentifier) if found is not None else []


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _check_leaf(leaf: x509.Certificate) -> None:
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise SvidError(Refusal.IS_AUTHORITY, "the certificate is of an authority (CA:TRUE)")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise SvidError(Refusal.KEY_USAGE, "the certificate's key may not sign (digitalSignature)")
    if usage.key_cert_sign or usage.crl_sign:
        raise SvidError(Refusal.KEY_USAGE, "the certificate's key may sign certificates or revocations")
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    if extended is not None and not both.issubset(extended):
        raise SvidError(Refusal.KEY_USAGE, "the certificate is for servers or clients only")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    if not leaf.subject.rdns and not names.critical:
        raise SvidError(Refusal.NOT_CRITICAL, "the certificate has no subject, and its alternative name is optional")
    _check_strength(leaf)


def _check_strength(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_BITS_MIN:
        raise SvidError(Refusal.WEAK, f"a key of RSA has {key.key_size} bits, fewer than {_RSA_BITS_MIN}")
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise SvidError(Refusal.WEAK, "a key is of another kind than ECDSA and RSA")
    digest = certificate.signature_hash_algorithm
    if digest is None or digest.name in _WEAK_HASHES:
        raise SvidError(Refusal.WEAK, "a certificate is signed with a weak hash")


def _check_dates(certificate: x509.Certificate, now: datetime.datetime, what: str) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        raise SvidError(Refusal.NOT_YET_VALID, f"{what} is not valid before {begins:%Y-%m-%d %H:%M:%S} UTC")
    if now > ends:
        raise SvidError(Refusal.EXPIRED, f"{what} has expired at {ends:%Y-%m-%d %H:%M:%S} UTC")


def _vouched(
    certificate: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime.datetime,
    below: int,
) -> int:
    """How many authorities there are from this certificate up to an anchor; 0: it leads to none."""
    for anchor in anchors:
        if _may_issue(anchor, now, below) and _issued(certificate, anchor):
            return below + 1
    for index, one in enumerate(intermediates):
        if _may_issue(one, now, below) and _issued(certificate, one):
            others = [*intermediates[:index], *intermediates[index + 1 :]]
            length = _vouched(one, others, anchors, now, below + 1)
            if length:
                return length
    return 0


def _may_issue(authority: x509.Certificate, now: datetime.datetime, below: int) -> bool:
    """`below` authorities stand between it and the leaf."""
    constraints, usage = _extension(authority, x509.BasicConstraints), _extension(authority, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        return False
    if constraints.path_length is not None and below > constraints.path_length:
        return False
    return authority.not_valid_before_utc <= now <= authority.not_valid_after_utc


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        _check_strength(by)
        certificate.verify_directly_issued_by(by)
    except (InvalidSignature, ValueError, TypeError, SvidError):
        return False
    return True
