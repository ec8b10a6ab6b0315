"""Certificates that no honest authority makes."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from bulkhead.svid.x509 import Signer, make_anchor, make_intermediate

DOMAIN = "example.org"
WEB = f"spiffe://{DOMAIN}/shop/web"
NOW = time.time()
DAY_S = 86400.0
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def anchor(domain: str = DOMAIN, name: str = "node-1", lifetime_s: float = 3650 * DAY_S, now: float = NOW) -> Signer:
    return make_anchor(name, domain, now, lifetime_s)


def intermediate(of: Signer, lifetime_s: float = DAY_S, now: float = NOW) -> Signer:
    return make_intermediate(of, DOMAIN, now, lifetime_s)


def usage(*names: str) -> x509.KeyUsage:
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: name in names for name in every})


@dataclass
class Leaf:
    """A certificate as `sign` makes it, good unless said otherwise."""

    names: Sequence[x509.GeneralName] = (x509.UniformResourceIdentifier(WEB),)
    begins: float = NOW - 60
    ends: float = NOW + 3600
    is_authority: bool = False
    usage: x509.KeyUsage | None = field(default_factory=lambda: usage("digital_signature"))
    extended: Sequence[ObjectIdentifier] = BOTH
    critical_names: bool = True
    subject: str = ""
    hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    more: Sequence[tuple[x509.ExtensionType, bool]] = ()

    def sign(self, by: Signer) -> bytes:
        """DER."""
        dates = [datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (self.begins, self.ends)]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.subject)] if self.subject else [])
        builder = x509.CertificateBuilder(
            by.certificate.subject, subject, self.key.public_key(), x509.random_serial_number(), *dates
        )
        if self.names:
            builder = builder.add_extension(x509.SubjectAlternativeName(self.names), critical=self.critical_names)
        constraints = x509.BasicConstraints(ca=self.is_authority, path_length=None)
        builder = builder.add_extension(constraints, critical=True)
        if self.usage is not None:
            builder = builder.add_extension(self.usage, critical=True)
        if self.extended:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.extended), critical=False)
        for extension, critical in self.more:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(by.key, self.hash).public_bytes(serialization.Encoding.DER)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)
