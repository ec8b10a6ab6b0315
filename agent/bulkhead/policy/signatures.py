"""Signatures of commits, verified by git itself with keys that are in force, and by nothing else on this machine.

A signer chooses the date of his commit. So a key counts while it is valid at that date, which ssh-keygen sees to, and
at the moment of judging: an expired key cannot be used again by setting a clock back.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bulkhead.errors import UnreachableError
from bulkhead.policy import git
from bulkhead.policy.keys import key_fingerprint
from bulkhead.policy.levels import RANK
from bulkhead.policy.signers import Roots, Trusted

PLACEHOLDERS: Final = "%G?|%GF|%GP|%GK"
"""For git's `--format`: what it found, fingerprints of the key and of its primary key, and what else it calls it."""

_GPG_CONF: Final = (
    "batch\nno-tty\nno-autostart\ntrust-model always\nno-auto-key-retrieve\nno-auto-key-locate\n"
    "no-auto-check-trustdb\nweak-digest SHA1\n"
)
_SIGNATURE: Final = re.compile(
    rb"^gpgsig(?:-sha256)? -----BEGIN SSH SIGNATURE-----\n((?: .*\n)*?) -----END SSH SIGNATURE-----", re.MULTILINE
)
_TOOL_TIMEOUT_S: Final = 20


@dataclass(frozen=True, slots=True)
class Found:
    """What git says of a commit's signature."""

    verdict: str
    """The letter of `%G?`."""
    fingerprint: str
    primary: str
    key: str

    @classmethod
    def read(cls, text: str) -> Found:
        """From git's output for PLACEHOLDERS."""
        return cls(*text.split("|", 3))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a signature does not count: a code, and the name or fingerprint that its message needs."""

    code: str
    key: str = ""
    name: str = ""


class Keyring:
    """The keys of the signers in force, as git and its helpers want them: files below `directory`, made anew."""

    def __init__(self, directory: Path, roots: Roots, signers: Sequence[Trusted]) -> None:
        """Raises UnreachableError when the keys cannot be written, or the programs for them are not installed."""
        self._directory = directory
        self._revoked = roots.revoked
        self._by_fingerprint: dict[str, list[Trusted]] = {}
        for signer in signers:
            self._by_fingerprint.setdefault(signer.fingerprint, []).append(signer)
        try:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700, parents=True)
            self._allowed.write_text("".join(map(_allowed_line, (one for one in signers if not one.is_openpgp))))
            self._write_gnupg([one for one in signers if one.is_openpgp])
        except OSError as error:
            raise UnreachableError(f"cannot write the keys of signers to `{directory}`: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"gpg did not read a key within {_TOOL_TIMEOUT_S} seconds") from error
        if any(not one.is_openpgp for one in signers) and shutil.which("ssh-keygen") is None:
            raise UnreachableError("ssh-keygen is not installed, and the signers have SSH keys: signatures need it")

    @property
    def _allowed(self) -> Path:
        return self._directory / "allowed_signers"

    def _write_gnupg(self, signers: Sequence[Trusted]) -> None:
        home = self._directory / "gnupg"
        home.mkdir(mode=0o700)
        (home / "gpg.conf").write_text(_GPG_CONF)
        if not signers:
            return
        if shutil.which("gpg") is None:
            raise UnreachableError("gpg is not installed, and a signer has an OpenPGP key: signatures need it")
        for signer in signers:
            command = ["gpg", "--homedir", str(home), "--quiet", "--import"]
            subprocess.run(
                command,
                input=signer.public_key,
                capture_output=True,
                check=False,  # a key that is not there verifies nothing
                timeout=_TOOL_TIMEOUT_S,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                cwd="/",
            )

    @property
    def config(self) -> dict[str, str]:
        """For git: it overrides whatever a repository's own configuration would have it run."""
        return {
            "gpg.program": "gpg",
            "gpg.openpgp.program": "gpg",
            "gpg.ssh.program": "ssh-keygen",
            "gpg.x509.program": "/bin/false",
            "gpg.minTrustLevel": "undefined",
            "gpg.ssh.allowedSignersFile": str(self._allowed),
            "gpg.ssh.revocationFile": str(self._revoked or os.devnull),
        }

    @property
    def variables(self) -> dict[str, str]:
        """For git's environment."""
        return {"GNUPGHOME": str(self._directory / "gnupg")}

    def judge(self, directory: Path, commit: str, found: Found, now: datetime) -> Trusted | Refusal:
        """The signer of a commit, the highest when a key has several; or why its signature does not count."""
        if found.verdict == "N":
            return Refusal("BH1101")
        named = self._by_fingerprint.get(found.primary or found.fingerprint, [])
        shown = found.primary or found.fingerprint or found.key
        name = named[0].name if named else ""
        if found.verdict in ("G", "U", "X", "Y", "R") and not named:
            return Refusal("BH1102", shown)
        if found.verdict == "G":
            valid = [one for one in named if one.is_valid(now)]
            return max(valid, key=lambda one: RANK[one.level]) if valid else Refusal("BH1103", shown, name)
        if found.verdict in ("X", "Y") or (found.verdict == "U" and not named[0].is_openpgp):
            return Refusal("BH1103", shown, name)
        if found.verdict == "R":
            return Refusal("BH1104", shown, name)
        return Refusal("BH1102", shown) if found.verdict == "E" else self._bad(directory, commit, shown)

    def _bad(self, directory: Path, commit: str, key_id: str) -> Refusal:
        """git says only that it is no good: whether the key was revoked has to be asked for."""
        key = signing_key(git.run(directory, "cat-file", "commit", commit))
        shown = key_fingerprint(key) if key else key_id
        named = self._by_fingerprint.get(shown, [])
        return Refusal("BH1104" if key and self._is_revoked(key) else "BH1105", shown, named[0].name if named else "")

    def _is_revoked(self, key: str) -> bool:
        if self._revoked is None:
            return False
        file = self._directory / "asked.pub"
        file.write_text(key + "\n")
        command = ["ssh-keygen", "-Q", "-f", str(self._revoked), str(file)]
        asked = subprocess.run(command, capture_output=True, check=False, timeout=_TOOL_TIMEOUT_S)
        return b"REVOKED" in asked.stdout or key.encode() in self._revoked.read_bytes()


def _allowed_line(signer: Trusted) -> str:
    options = ['namespaces="git"']
    for name, moment in (("valid-after", signer.valid_after), ("valid-before", signer.valid_before)):
        if moment is not None:
            options.append(f'{name}="{moment.astimezone(UTC):%Y%m%d%H%M%S}"')
    return f"signer {','.join(options)} {signer.key}\n"


def signing_key(commit: bytes) -> str:
    """The public key that an SSH signature of a raw commit names, canonical; empty when there is none."""
    match = _SIGNATURE.search(commit)
    try:
        blob = base64.b64decode(match[1].replace(b"\n", b"").replace(b" ", b"")) if match else b""
        (size,) = struct.unpack_from(">I", blob, 10)  # behind the magic and the version
        key = blob[14 : 14 + size]
        (length,) = struct.unpack_from(">I", key)
        return f"{key[4 : 4 + length].decode('ascii')} {base64.b64encode(key).decode()}"
    except (binascii.Error, struct.error, UnicodeDecodeError):
        return ""
