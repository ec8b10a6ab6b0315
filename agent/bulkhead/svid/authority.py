"""The node's certificate authority: its anchor, and the file in which the anchor's key is sealed."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bulkhead.errors import UsageError
from bulkhead.secret_files import read_passphrase, read_secret
from bulkhead.svid.x509 import Signer, make_anchor

ANCHOR_S: Final = 10 * 365 * 86400.0
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Authority:
    """What this node vouches for its workloads with."""

    trust_domain: str
    anchor: Signer
    ephemeral: bool
    """It was made for this run, and ends with it."""


def ephemeral(node: str, trust_domain: str) -> Authority:
    """An authority for one run of the process."""
    return Authority(trust_domain, make_anchor(node, trust_domain, time.time(), ANCHOR_S), ephemeral=True)


def generate(node: str, trust_domain: str, passphrase: bytes) -> tuple[bytes, bytes]:
    """A new authority: its file under that passphrase, and the certificate of its anchor, DER."""
    anchor = make_anchor(node, trust_domain, time.time(), ANCHOR_S)
    protection = serialization.BestAvailableEncryption(passphrase)
    key = anchor.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    return key + anchor.certificate.public_bytes(serialization.Encoding.PEM), anchor.der


def read(path: Path, passphrase: Path) -> Signer:
    """The anchor of a file that `generate` made. Raises UsageError, which holds nothing of the key.

    The file may hold certificates of other anchors too, such as the one before a rotation; the one of the key counts.
    """
    text, phrase = read_secret(path), read_passphrase(passphrase)
    key = _read_key(path, text, phrase)
    anchors = [one for one in _read_certificates(path, text) if one.public_key() == key.public_key()]
    if not anchors:
        raise UsageError(f"the authority file `{path}` has no certificate of its key")
    newest = max(anchors, key=lambda one: one.not_valid_after_utc)
    if newest.not_valid_after_utc.timestamp() <= time.time():
        raise UsageError(f"the certificate in the authority file `{path}` has expired: `bulkhead identity init`")
    return Signer(newest, key)


def _read_key(path: Path, text: bytes, phrase: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_CERTIFICATE.sub(b"", text), phrase)
    except TypeError:
        raise UsageError(
            f"the authority file `{path}` is not encrypted: `bulkhead identity init` makes one that is"
        ) from None
    except Exception:  # noqa: BLE001  what the library raises differs by version, and may quote what it read
        raise UsageError(f"the authority file `{path}` has no PKCS#8 key under that passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UsageError(f"the authority file `{path}` holds another kind of key than ECDSA on P-256")
    return key


def _read_certificates(path: Path, text: bytes) -> Sequence[x509.Certificate]:
    try:
        return [x509.load_pem_x509_certificate(one) for one in _CERTIFICATE.findall(text)]
    except ValueError:
        raise UsageError(f"the authority file `{path}` has a certificate that cannot be read") from None


def check_domain(anchor: Signer, trust_domain: str) -> str:
    """Why an anchor vouches for nobody of that trust domain; empty when it does."""
    names = anchor.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    if found == [f"spiffe://{trust_domain}"]:
        return ""
    return f"the node's authority is of `{', '.join(found)}`, and the policy's trust domain is `{trust_domain}`"
