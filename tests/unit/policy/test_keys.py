"""Signers and their keys: those that OpenSSH makes are taken, whatever is damaged, weak or no key is not."""

from __future__ import annotations

import base64
import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bulkhead.policy.keys import KeyProblemError, key_fingerprint, parse_key
from bulkhead.policy.model import Level

FINGERPRINT = "0123456789abcdef" * 2 + "01234567"
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\nsigners:\n"


def made_key(path: Path, *options: str) -> str:
    """The public key of a fresh pair, as ssh-keygen writes it."""
    key = path / "key"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "ann@laptop", "-f", str(key), *options], check=True)
    return key.with_suffix(".pub").read_text().strip()


def blob(*fields: bytes, kind: str = "ssh-ed25519") -> str:
    packed = b"".join(struct.pack(">I", len(field)) + field for field in (kind.encode(), *fields))
    return f"{kind} {base64.b64encode(packed).decode()}"


@pytest.mark.parametrize(
    "options",
    [("-t", "ed25519"), ("-t", "rsa", "-b", "2048"), *(("-t", "ecdsa", "-b", bits) for bits in ("256", "384", "521"))],
    ids=" ".join,
)
def test_keys_of_openssh_are_taken_without_their_comment(options, tmp_path):
    written = made_key(tmp_path, *options)
    key = parse_key(written)
    assert written == f"{key} ann@laptop"
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "key")], capture_output=True, text=True, check=True
    )
    assert key_fingerprint(key) == shown.stdout.split()[1]


def test_keys_of_hardware_tokens_are_taken():
    for kind, fields in (
        ("sk-ssh-ed25519@openssh.com", (b"k" * 32, b"ssh:")),
        ("sk-ecdsa-sha2-nistp256@openssh.com", (b"nistp256", b"\x04" + b"k" * 64, b"ssh:")),
    ):
        text = blob(*fields, kind=kind)
        assert parse_key(text) == text


@pytest.mark.parametrize("digits", [FINGERPRINT, FINGERPRINT.upper(), "ab" * 32])
def test_fingerprints_of_openpgp_keys_are_taken_in_upper_case(digits):
    assert parse_key(f"openpgp:{digits}") == digits.upper() == key_fingerprint(digits.upper())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ssh-ed25519", "nothing behind"),
        ("ssh-ed25519 AAAA$", "not base64"),
        ("ssh-ed25519 AAAA", "cut short"),
        ("ssh-dss AAAAB3NzaC1kc3M=", "no type"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "no type"),
        (FINGERPRINT, "no type"),
        (f"ssh-ed25519 {'A' * 5000}", "4096 characters"),
        (blob(b"k" * 31), "32 bytes"),
        (blob(b"k" * 32, b"more"), "behind its end"),
        (blob(b"k" * 32).replace("ssh-ed25519", "ssh-rsa"), "another type"),
        (blob(b"nistp384", b"\x04" + b"k" * 64, kind="ecdsa-sha2-nistp256"), "another curve"),
        (blob(b"nistp256", b"\x02" + b"k" * 64, kind="ecdsa-sha2-nistp256"), "no point"),
        (blob(b"k" * 32, b"", kind="sk-ssh-ed25519@openssh.com"), "no application"),
        (blob(b"\x01\x00\x01", b"\x00\xff" + b"k" * 127, kind="ssh-rsa"), "2048 bits"),
        (blob(b"\x02", b"\x00\xff" + b"k" * 255, kind="ssh-rsa"), "exponent"),
        ("openpgp:0123456789ABCDEF", "40 or 64"),
        ("openpgp:" + "G" * 40, "40 or 64"),
    ],
)
def test_what_is_no_key_or_too_weak_is_refused(text, problem):
    with pytest.raises(KeyProblemError, match=problem):
        parse_key(text)


def test_signers_keep_their_level_and_end(parsed):
    key = blob(b"k" * 32)
    text = f"  - {{name: ann@example.org, level: guardrail, key: {key} ann@laptop}}\n"
    text += f"  - {{name: ann@example.org, level: app, key: 'openpgp:{FINGERPRINT}', expires: 2027-01-31T18:00:00Z}}\n"
    first, second = parsed(files={"bulkhead.yaml": REPOSITORY + text}).signers
    assert (first.name, first.level, first.key, first.expires) == ("ann@example.org", Level.GUARDRAIL, key, None)
    assert (second.key, second.expires) == (FINGERPRINT.upper(), datetime(2027, 1, 31, 18, tzinfo=UTC))
    assert (second.loc.file, second.loc.line) == ("bulkhead.yaml", 6)


def test_without_a_list_there_are_no_signers(parsed):
    assert parsed().signers == ()


@pytest.mark.parametrize(
    ("items", "number", "line", "column"),
    [
        ("  []\n", "BH0209", 5, 3),
        ("  - {name: ann, level: root, key: 'openpgp:KEY'}\n", "BH0306", 5, 24),
        ("  - {name: ann, level: app}\n", "BH0206", 5, 6),
        ("  - {name: ann, level: app, key: 'openpgp:short'}\n", "BH0317", 5, 34),
        ("  - {name: ann bob, level: app, key: 'openpgp:KEY'}\n", "BH0318", 5, 12),
        ("  - {name: '*', level: app, key: 'openpgp:KEY'}\n", "BH0318", 5, 12),
        ("  - {name: ann, level: app, key: 'openpgp:KEY', expires: 2027-01-31}\n", "BH0307", 5, 95),
        (
            "  - {name: a, level: app, key: 'openpgp:KEY'}\n  - {name: b, level: app, key: 'openpgp:KEY'}\n",
            "BH0404",
            6,
            5,
        ),
    ],
)
def test_signers_that_could_not_be_checked_are_refused(items, number, line, column, refused):
    (found,) = refused(files={"bulkhead.yaml": REPOSITORY + items.replace("KEY", FINGERPRINT)})
    assert (found.code, found.loc.line, found.loc.column) == (number, line, column)


def test_a_key_written_in_another_case_is_the_same_key(refused):
    items = "".join(
        f"  - {{name: {name}, level: app, key: 'openpgp:{digits}'}}\n"
        for name, digits in (("ann", FINGERPRINT), ("bob", FINGERPRINT.upper()))
    )
    (found,) = refused(files={"bulkhead.yaml": REPOSITORY + items})
    assert found.code == "BH0404"
    assert found.related[0][0].line == 5
