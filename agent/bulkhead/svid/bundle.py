"""Trust bundles: which keys vouch for the SPIFFE IDs of a trust domain, and their form as a SPIFFE bundle document."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

DOCUMENT_BYTES_MAX: Final = 1 << 20
AUTHORITIES_MAX: Final = 1024
_X509: Final = "x509-svid"
_JWT: Final = "jwt-svid"


class BundleError(ValueError):
    """It is no SPIFFE bundle document; says why in one clause."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What vouches for one trust domain. Without any authority nothing of the domain is believed."""

    trust_domain: str
    x509: tuple[bytes, ...] = ()
    """Certificates, DER."""
    jwt: Mapping[str, bytes] = field(default_factory=dict)
    """Public keys by key id: SubjectPublicKeyInfo, DER."""
    sequence: int = 0
    """Rises with each change, where the domain says so; 0: unknown."""
    refresh_s: int = 0
    """How often to look again, in seconds; 0: the domain gives no hint."""

    def with_anchors(self, anchors: Iterable[bytes]) -> Bundle:
        """With these nodes' anchors as well, each of which also vouches for JWT-SVIDs under its key id."""
        certificates = dict.fromkeys((*self.x509, *anchors))
        keys = dict(self.jwt) | dict(map(jwt_authority, anchors))
        return Bundle(self.trust_domain, tuple(certificates), keys, self.sequence, self.refresh_s)


def jwt_authority(anchor: bytes) -> tuple[str, bytes]:
    """The key id under which an anchor's key signs JWT-SVIDs, and its public half. Raises BundleError."""
    certificate = read_certificate(anchor)
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, ValueError) as error:
        raise BundleError("a certificate has no SubjectKeyIdentifier") from error
    return identifier.hex(), spki(certificate.public_key())


def check_anchor(der: bytes) -> None:
    """Whether a certificate can vouch for the workloads of a node. Raises BundleError."""
    certificate = read_certificate(der)
    _check_authority(certificate)
    jwt_authority(der)
    if certificate.not_valid_after_utc.timestamp() <= time.time():
        raise BundleError("a certificate has expired")


def _check_authority(certificate: x509.Certificate) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise BundleError("a certificate has no basic constraints") from error
    if not constraints.ca:
        raise BundleError("a certificate is not of an authority")
    spki(certificate.public_key())


def read_certificate(der: bytes) -> x509.Certificate:
    """The certificate. Raises BundleError."""
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise BundleError("a certificate cannot be read") from error


def spki(public: object) -> bytes:
    """A public key on a NIST curve or of RSA, DER. Raises BundleError for one of another kind."""
    if not isinstance(public, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise BundleError("a key is of another kind than ECDSA and RSA")
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


# Documents


def write(bundle: Bundle, *, jwt_only: bool = False) -> bytes:
    """The bundle as a SPIFFE bundle document; with `jwt_only` as the JWKS that the Workload API hands out."""
    keys = [_jwk(_load(key)) | {"use": _JWT, "kid": name} for name, key in bundle.jwt.items()]
    if jwt_only:
        return json.dumps({"keys": keys}, separators=(",", ":")).encode()
    for der in bundle.x509:
        chain = [base64.b64encode(der).decode()]
        keys.append(_jwk(read_certificate(der).public_key()) | {"use": _X509, "x5c": chain})
    document: dict[str, object] = {"keys": keys}
    if bundle.sequence:
        document["spiffe_sequence"] = bundle.sequence
    if bundle.refresh_s:
        document["spiffe_refresh_hint"] = bundle.refresh_s
    return json.dumps(document, separators=(",", ":")).encode()


def read(trust_domain: str, document: bytes) -> Bundle:
    """The bundle in a document of that trust domain. Keys of uses that are not known are passed over, as the standard
    asks. Raises BundleError."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise BundleError(f"it has more than {DOCUMENT_BYTES_MAX} bytes")
    try:
        fields = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BundleError("it is not JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("keys"), list):
        raise BundleError("it is no object with a list `keys`")
    certificates: dict[bytes, None] = {}
    keys: dict[str, bytes] = {}
    for entry in fields["keys"]:
        use = entry.get("use") if isinstance(entry, dict) else None
        if use == _X509:
            certificates[_certificate_of(entry)] = None
        elif use == _JWT:
            name, key = _key_of(entry)
            if name in keys:
                raise BundleError(f"two keys have the id `{name[:64]}`")
            keys[name] = key
    if len(certificates) + len(keys) > AUTHORITIES_MAX:
        raise BundleError(f"it has more than {AUTHORITIES_MAX} keys")
    numbers = (_number(fields, "spiffe_sequence"), _number(fields, "spiffe_refresh_hint"))
    return Bundle(trust_domain, tuple(certificates), keys, *numbers)


def _certificate_of(entry: dict[str, Any]) -> bytes:
    chain = entry.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise BundleError("a key for X.509-SVIDs has no `x5c` of one certificate")
    try:
        der = base64.b64decode(chain[0], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BundleError("an `x5c` is not base64") from error
    _check_authority(read_certificate(der))
    return der


def _key_of(entry: dict[str, Any]) -> tuple[str, bytes]:
    name = entry.get("kid")
    if not isinstance(name, str) or not name:
        raise BundleError("a key for JWT-SVIDs has no `kid`")
    if "d" in entry:
        raise BundleError(f"the key `{name[:64]}` is a private one")
    if entry.get("kty") not in ("EC", "RSA"):
        raise BundleError(f"the key `{name[:64]}` is of another kind than EC and RSA")
    try:
        key = ECAlgorithm.from_jwk(entry) if entry["kty"] == "EC" else RSAAlgorithm.from_jwk(entry)
    except (PyJWTError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"the key `{name[:64]}` cannot be read") from error
    return name, spki(key)


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name, 0)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise BundleError(f"`{name}` is no whole number")
    return value


def _load(key: bytes) -> object:
    return serialization.load_der_public_key(key)


def _jwk(key: object) -> dict[str, Any]:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return dict(ECAlgorithm.to_jwk(key, as_dict=True))
    if isinstance(key, rsa.RSAPublicKey):
        found = dict(RSAAlgorithm.to_jwk(key, as_dict=True))
        return {name: found[name] for name in ("kty", "n", "e")}
    raise BundleError("a key is of another kind than ECDSA and RSA")
