"""Certificates as this node's authority makes them: anchors, intermediates and X.509-SVIDs."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED_S: Final = 60.0
"""How far a certificate begins before it is made, for readers whose clocks are behind."""
_CURVE: Final = ec.SECP256R1()
_NO_USAGE: Final = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)
_SIGNS_CERTIFICATES: Final = x509.KeyUsage(**_NO_USAGE | {"key_cert_sign": True, "crl_sign": True})
_SIGNS: Final = x509.KeyUsage(**_NO_USAGE | {"digital_signature": True})
_BOTH_ENDS: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
_LEAF: Final = x509.BasicConstraints(ca=False, path_length=None)


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate that vouches for others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def expires_at(self) -> float:
        """Unix seconds."""
        return self.certificate.not_valid_after_utc.timestamp()

    @property
    def key_id(self) -> bytes:
        """Its SubjectKeyIdentifier."""
        return key_id(self.certificate.public_key())


def key_id(public: object) -> bytes:
    """The SubjectKeyIdentifier of a public key: SHA-1 of it, as RFC 5280 proposes, 20 bytes."""
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise TypeError("keys of authorities are on P-256")
    return x509.SubjectKeyIdentifier.from_public_key(public).digest


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256."""
    return ec.generate_private_key(_CURVE)


def private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8, DER, in the clear."""
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, none)


def make_anchor(node: str, trust_domain: str, now: float, lifetime_s: float) -> Signer:
    """A certificate that vouches for itself, and for intermediates that vouch for no other."""
    key = new_key()
    name = _name(node, key)
    builder = _dated(name, name, key, now, lifetime_s)
    return Signer(_authority(builder, key, key_id(key.public_key()), trust_domain, path_length=1).sign(key, _HASH), key)


def make_intermediate(anchor: Signer, trust_domain: str, now: float, lifetime_s: float) -> Signer:
    """A certificate of the anchor's that vouches for SVIDs only."""
    key = new_key()
    lifetime_s = min(lifetime_s, anchor.expires_at - now)
    builder = _dated(_name("intermediate", key), anchor.certificate.subject, key, now, lifetime_s)
    made = _authority(builder, key, anchor.key_id, trust_domain, path_length=0)
    return Signer(made.sign(anchor.key, _HASH), key)


def make_leaf(signer: Signer, spiffe_id: str, now: float, lifetime_s: float) -> Signer:
    """An X.509-SVID: nobody's name but the SPIFFE ID."""
    key = new_key()
    lifetime_s = min(lifetime_s, signer.expires_at - now)
    public = key.public_key()
    made = (
        _dated(x509.Name([]), signer.certificate.subject, key, now, lifetime_s)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True)
        .add_extension(_LEAF, critical=True)
        .add_extension(_SIGNS, critical=True)
        .add_extension(_BOTH_ENDS, critical=False)
        .add_extension(x509.SubjectKeyIdentifier(key_id(public)), critical=False)
        .add_extension(_issuer(signer.key_id), critical=False)
    )
    return Signer(made.sign(signer.key, _HASH), key)


_HASH: Final = hashes.SHA256()


def _name(common: str, key: ec.EllipticCurvePrivateKey) -> x509.Name:
    """Another one for each key: while an anchor is replaced, some readers look for an issuer by its name alone."""
    number = key_id(key.public_key()).hex()
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common[:64]), x509.NameAttribute(NameOID.SERIAL_NUMBER, number)]
    )


def _issuer(identifier: bytes) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier(identifier, None, None)


def _dated(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: float, lifetime_s: float
) -> x509.CertificateBuilder:
    begins, ends = (datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (now - BACKDATED_S, now + lifetime_s))
    return x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), begins, ends)


def _authority(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    issuer: bytes,
    trust_domain: str,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    names = [x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_SIGNS_CERTIFICATES, critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(key_id(key.public_key())), critical=False)
        .add_extension(_issuer(issuer), critical=False)
    )
