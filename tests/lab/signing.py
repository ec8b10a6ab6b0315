"""Signers with real keys, and repositories whose commits they sign."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Files = Mapping[str, str | bytes | None]


@dataclass(frozen=True, slots=True)
class SshSigner:
    """Somebody with an SSH key."""

    name: str
    private: Path

    @property
    def public(self) -> str:
        """`TYPE BASE64`."""
        return " ".join(self.private.with_suffix(".pub").read_text().split()[:2])

    @property
    def written(self) -> str:
        """As in `key:`."""
        return self.public

    @property
    def options(self) -> list[str]:
        """For git, to sign as this one."""
        return ["-c", "gpg.format=ssh", "-c", f"user.signingKey={self.private}"]

    @property
    def environment(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class PgpSigner:
    """Somebody with an OpenPGP key, in a home of its own."""

    name: str
    home: Path
    fingerprint: str

    @property
    def written(self) -> str:
        return f"openpgp:{self.fingerprint}"

    @property
    def options(self) -> list[str]:
        return ["-c", "gpg.format=openpgp", "-c", f"user.signingKey={self.fingerprint}"]

    @property
    def environment(self) -> dict[str, str]:
        return {"GNUPGHOME": str(self.home)}

    def export(self) -> bytes:
        """The public key, armoured."""
        return gpg(self.home, "--armor", "--export", self.fingerprint)


Signer = SshSigner | PgpSigner


def ssh_signer(directory: Path, name: str) -> SshSigner:
    """A new Ed25519 key."""
    private = directory / name
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(private))
    return SshSigner(name, private)


def pgp_signer(directory: Path, name: str, expires: str = "never") -> PgpSigner:
    """A new Ed25519 key. `close_agent` ends the agent that holds it."""
    home = directory / f"g-{name}"
    home.mkdir(mode=0o700)
    gpg(home, "--passphrase", "", "--quick-gen-key", f"{name} <{name}@example.org>", "ed25519", "sign", expires)
    listed = gpg(home, "--list-keys", "--with-colons").decode()
    (fingerprint, *_) = [line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr")]
    return PgpSigner(name, home, fingerprint)


def close_agent(signer: PgpSigner) -> None:
    """End the agent that gpg started for this home."""
    run("gpgconf", "--homedir", str(signer.home), "--kill", "gpg-agent")


def gpg(home: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run gpg in a home."""
    return run(
        "gpg",
        "--batch",
        "--quiet",
        "--yes",
        "--pinentry-mode",
        "loopback",
        "--homedir",
        str(home),
        *arguments,
        stdin=stdin,
    )


def run(*command: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
    """The output of a command that must succeed."""
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C", **(environment or {})}
    done = subprocess.run(command, input=stdin, capture_output=True, env=env, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode()}")
    return done.stdout


class SignedRepository:
    """A git repository with a work tree, whose commits are signed by whom a test says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        run("git", "init", "-q", "-b", "main", str(path))

    def git(self, *arguments: str, signer: Signer | None = None, date: str = "", stdin: bytes = b"") -> str:
        """Run git as `signer`, at `date`."""
        options = signer.options if signer else []
        environment = {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "c",
            "GIT_COMMITTER_EMAIL": "c@example.org",
            **({"GIT_COMMITTER_DATE": date} if date else {}),
            **(signer.environment if signer else {}),
        }
        done = run("git", "-C", str(self.path), *options, *arguments, stdin=stdin, environment=environment)
        return done.decode().strip()

    def write(self, files: Files) -> None:
        """Write files; None removes one."""
        for name, content in files.items():
            target = self.path / name
            if content is None:
                target.unlink()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, files: Files | None = None, signer: Signer | None = None, date: str = "") -> str:
        """Commit all there is; the commit's id."""
        self.write(files or {})
        self.git("add", "--all")
        sign = ["-S"] if signer else []
        self.git("commit", "-q", "--allow-empty", "-m", "change", *sign, signer=signer, date=date)
        return self.head()

    def merge(self, branch: str, signer: Signer | None = None) -> str:
        """Merge a branch, with a merge commit."""
        sign = ["-S"] if signer else []
        self.git("merge", "-q", "--no-ff", "-m", "merge", *sign, branch, signer=signer)
        return self.head()

    def head(self) -> str:
        """The commit that is checked out."""
        return self.git("rev-parse", "HEAD")


def roots_file(path: Path, *signers: tuple[Signer, str], more: str = "", revoked: str = "") -> Path:
    """The operator's file: signers with their levels. `more` is added to the last one."""
    lines = [f'revoked_keys = "{revoked}"'] if revoked else []
    for signer, level in signers:
        lines += ["[[signer]]", f'name = "{signer.name}"', f'level = "{level}"', f'key = "{signer.written}"']
        if isinstance(signer, PgpSigner):
            file = path.with_name(f"{signer.name}.asc")
            file.write_bytes(signer.export())
            lines.append(f'public_key = "{file}"')
    path.write_text("\n".join([*lines, more]) + "\n")
    return path
