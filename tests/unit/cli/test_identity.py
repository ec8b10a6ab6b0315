"""`bulkhead identity`: an authority that is taken, and certificates that are or are not believed."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from bulkhead.cli.main import run
from bulkhead.svid import authority, bundle
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.pem import pem
from bulkhead.svid.x509 import make_intermediate, make_leaf

DOMAIN = "example.org"
WEB = f"spiffe://{DOMAIN}/shop/web"
NOW = time.time()
ANCHOR = authority.ephemeral("node-1", DOMAIN).anchor
SIGNER = make_intermediate(ANCHOR, DOMAIN, NOW, 86400)


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_text("correct horse\n")
    return path


def init(out: Path, passphrase: Path, domain: str = DOMAIN) -> int:
    words = ["identity", "init", "--node", "node-1", "--trust-domain", domain]
    return run([*words, "--out", str(out), "--passphrase-file", str(passphrase)])


def test_an_authority_is_written_for_its_owner_alone_and_its_line_for_the_record_printed(
    tmp_path: Path, passphrase: Path, capsys
) -> None:
    out = tmp_path / "authority.pem"
    assert init(out, passphrase) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    anchor = authority.read(out, passphrase)
    assert capsys.readouterr().out == f"ca: [{base64.b64encode(anchor.der).decode()}]\n"
    before = out.read_bytes()
    assert init(out, passphrase) == 2
    assert "File exists" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_trust_domain_that_is_none_is_refused(tmp_path: Path, passphrase: Path, capsys) -> None:
    assert init(tmp_path / "authority.pem", passphrase, "Example.org") == 2
    assert "`Example.org` is not a trust domain" in capsys.readouterr().err


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "svid.pem"
    leaf = make_leaf(SIGNER, WEB, NOW, 3600)
    path.write_bytes(pem("CERTIFICATE", leaf.der) + pem("CERTIFICATE", SIGNER.der))
    return path


DOCUMENT = bundle.write(Bundle(DOMAIN).with_anchors([ANCHOR.der]))


@pytest.mark.parametrize("content", [DOCUMENT, pem("CERTIFICATE", ANCHOR.der)], ids=["document", "certificates"])
def test_a_good_chain_is_believed_by_either_form_of_a_bundle(
    tmp_path: Path, chain: Path, capsys, content: bytes
) -> None:
    file = tmp_path / "bundle"
    file.write_bytes(content)
    words = ["identity", "verify", str(chain), "--bundle", str(file), "--trust-domain", DOMAIN]
    assert run(words) == 0
    assert capsys.readouterr().out.startswith(f"{WEB}, for another ")
    assert run([*words, "-o", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)["data"]
    assert (answer["ok"], answer["spiffe_id"]) == (True, WEB)


def test_a_chain_that_is_not_believed_is_refused_with_its_reason(tmp_path: Path, chain: Path, capsys) -> None:
    file = tmp_path / "bundle"
    file.write_bytes(bundle.write(Bundle(DOMAIN).with_anchors([authority.ephemeral("x", DOMAIN).anchor.der])))
    words = ["identity", "verify", str(chain), "--bundle", str(file), "--trust-domain", DOMAIN]
    assert run(words) == 1
    assert capsys.readouterr().out == f"refused (untrusted): no authority of `{DOMAIN}` vouches for `{WEB}`\n"
    assert run([*words, "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["data"]["reason"] == "untrusted"


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (b"", ["--bundle", "BUNDLE", "--trust-domain", DOMAIN], "has no certificate in PEM"),
        (None, ["--bundle", "BUNDLE"], "go together"),
        (None, ["--bundle", "BUNDLE", "--trust-domain", DOMAIN], "is no SPIFFE bundle"),
    ],
)
def test_files_that_make_no_sense_are_refused(
    tmp_path: Path, chain: Path, capsys, content: bytes | None, words: list[str], said: str
) -> None:
    file = tmp_path / "bundle"
    file.write_bytes(b"{}")
    if content is not None:
        chain.write_bytes(content)
    assert run(["identity", "verify", str(chain), *(str(file) if word == "BUNDLE" else word for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_without_an_agent_there_is_nobody_to_ask(tmp_path: Path, capsys) -> None:
    assert run(["identity", "get", "--endpoint", str(tmp_path / "workload.sock")]) == 3
    assert "there is no socket" in capsys.readouterr().err
    assert run(["--run-dir", str(tmp_path), "identity", "ls"]) == 3
