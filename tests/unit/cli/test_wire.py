"""`bulkhead wire keygen`: a key file that the agent takes, and the line for the node's record."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from bulkhead import keyd
from bulkhead.cli.main import run


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_text("correct horse\n")
    return path


def keygen(out: Path, passphrase: Path) -> int:
    return run(["wire", "keygen", "--out", str(out), "--passphrase-file", str(passphrase)])


def test_a_key_is_written_for_its_owner_alone_and_its_public_half_printed(
    tmp_path: Path, passphrase: Path, capsys
) -> None:
    out = tmp_path / "node.key"
    assert keygen(out, passphrase) == 0
    assert out.stat().st_mode & 0o777 == 0o600
    public = keyd.Keys(keyd.read_key(out, passphrase)).public
    assert capsys.readouterr().out == f"key: {base64.b64encode(public).decode()}\n"


def test_a_key_that_is_there_is_never_written_over(tmp_path: Path, passphrase: Path, capsys) -> None:
    out = tmp_path / "node.key"
    assert keygen(out, passphrase) == 0
    before = out.read_bytes()
    assert keygen(out, passphrase) == 2
    assert "File exists" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_passphrase_that_others_may_read_is_refused(tmp_path: Path, passphrase: Path, capsys) -> None:
    passphrase.chmod(0o644)
    assert keygen(tmp_path / "node.key", passphrase) == 2
    assert "others than its owner may read" in capsys.readouterr().err
    assert not (tmp_path / "node.key").exists()
