"""The authority's file: sealed, its owner's alone, and of one trust domain."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.x509.oid import NameOID

from bulkhead.errors import UsageError
from bulkhead.svid import authority


class Files(NamedTuple):
    path: Path
    passphrase: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "authority.pem", tmp_path / "passphrase")
    for path in found:
        path.touch(mode=0o600)
    found.passphrase.write_text("correct horse\n")
    return found


def sealed(key: object, phrase: bytes | None = b"correct horse") -> bytes:
    protection = serialization.BestAvailableEncryption(phrase) if phrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)  # type: ignore[attr-defined, no-any-return]


def test_what_is_made_is_read_back_and_is_an_anchor_as_the_standard_wants_it(files: Files) -> None:
    content, certificate = authority.generate("node-1", "example.org", b"correct horse")
    files.path.write_bytes(content)
    anchor = authority.read(*files)
    assert anchor.der == certificate
    extensions = anchor.certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (True, 1, True)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign and not usage.value.digital_signature
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://example.org"]
    (common,) = anchor.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common.value == "node-1"
    assert authority.check_domain(anchor, "example.org") == ""
    assert "partner.example" in authority.check_domain(anchor, "partner.example")


def test_while_it_is_rotated_the_file_may_hold_the_certificate_of_the_one_before(files: Files) -> None:
    old, _ = authority.generate("node-1", "example.org", b"correct horse")
    new, certificate = authority.generate("node-1", "example.org", b"correct horse")
    files.path.write_bytes(new + old[old.index(b"-----BEGIN CERT") :])
    assert authority.read(*files).der == certificate


def test_two_authorities_of_one_node_have_names_of_their_own() -> None:
    one, other = (authority.ephemeral("node-1", "example.org").anchor.certificate for _ in range(2))
    assert one.subject != other.subject


MADE, _ = authority.generate("node-1", "example.org", b"correct horse")
KEY, CERTIFICATE = MADE[: MADE.index(b"-----BEGIN CERT")], MADE[MADE.index(b"-----BEGIN CERT") :]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no PKCS#8 key"),
        (CERTIFICATE, "no PKCS#8 key"),
        (KEY, "no certificate of its key"),
        (sealed(ec.generate_private_key(ec.SECP256R1())) + CERTIFICATE, "no certificate of its key"),
        (sealed(ec.generate_private_key(ec.SECP256R1()), None) + CERTIFICATE, "not encrypted"),
        (sealed(ec.generate_private_key(ec.SECP256R1()), b"another") + CERTIFICATE, "no PKCS#8 key"),
        (sealed(ec.generate_private_key(ec.SECP384R1())) + CERTIFICATE, "another kind of key"),
        (sealed(x25519.X25519PrivateKey.generate()) + CERTIFICATE, "another kind of key"),
        (KEY + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused_and_not_quoted(files: Files, content: bytes, word: str) -> None:
    files.path.write_bytes(content)
    with pytest.raises(UsageError, match=word) as error:
        authority.read(*files)
    assert "BEGIN" not in str(error.value)


def test_a_file_that_others_may_read_is_refused(files: Files) -> None:
    files.path.write_bytes(MADE)
    files.path.chmod(0o640)
    with pytest.raises(UsageError, match="others than its owner may read"):
        authority.read(*files)
