"""Who may sign: the operator's file, and what a commit of the repository says of the next one.

The operator's file is TOML, `revoked_keys` first if there is one:

    revoked_keys = "revoked"             # public keys, or a KRL, as ssh-keygen takes them
    [[signer]]
    name = "ann@example.org"
    level = "guardrail"
    key = "ssh-ed25519 AAAA…"            # or "openpgp:FINGERPRINT", with public_key = "ann.asc"
    valid_after = 2026-01-01T00:00:00Z   # optional, as is valid_before

Paths are relative to the file.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bulkhead.errors import UnreachableError, UsageError
from bulkhead.policy import git
from bulkhead.policy.keys import OPENPGP, KeyProblemError, key_fingerprint, parse_key
from bulkhead.policy.levels import KEYS_DIRECTORY, RANK
from bulkhead.policy.model import Level
from bulkhead.policy.read import read_file
from bulkhead.policy.source import FILE_BYTES_MAX, REPOSITORY_FILE

_KEYS: Final = {"name", "level", "key", "public_key", "valid_after", "valid_before"}


@dataclass(frozen=True, slots=True)
class Trusted:
    """A signer in force."""

    name: str
    level: Level
    key: str
    """Canonical: `TYPE BASE64`, or the fingerprint of an OpenPGP key in upper case."""
    origin: str
    """Who says so: the operator's file, or a commit."""
    valid_after: datetime | None = None
    valid_before: datetime | None = None
    """Both timezone-aware; None: no such limit."""
    public_key: bytes = b""
    """Of an OpenPGP signer."""

    @property
    def fingerprint(self) -> str:
        return key_fingerprint(self.key)

    @property
    def is_openpgp(self) -> bool:
        return " " not in self.key

    def is_valid(self, now: datetime) -> bool:
        """Whether the key counts at that moment."""
        return (self.valid_after is None or self.valid_after <= now) and (
            self.valid_before is None or now < self.valid_before
        )


@dataclass(frozen=True, slots=True)
class Roots:
    """What the operator says: who may sign whatever the repository says, and which keys count no more."""

    signers: tuple[Trusted, ...] = ()
    revoked: Path | None = None
    """A KRL or list of public SSH keys."""


def read_operators(path: Path) -> Roots:
    """The operator's file. Raises UnreachableError when it cannot be read, UsageError when it says something else."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreachableError(f"cannot read the signers `{path}`: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the signers `{path}` are not valid TOML: {error}") from error
    listed, revoked = value.pop("signer", []), value.pop("revoked_keys", None)
    if value or not isinstance(listed, list) or not isinstance(revoked, str | None):
        raise UsageError(f"the signers `{path}` hold `[[signer]]` tables and the path `revoked_keys`, nothing else")
    if not listed:
        raise UsageError(f"the signers `{path}` name nobody")
    file = None if revoked is None else path.parent / revoked
    if file is not None and not file.is_file():
        raise UnreachableError(f"the revoked keys `{file}` are not there")
    return Roots(tuple(_operators(one, number, path) for number, one in enumerate(listed, start=1)), file)


def _operators(value: Any, number: int, path: Path) -> Trusted:
    """One table of the file."""

    def wrong(problem: str) -> UsageError:
        return UsageError(f"the signers `{path}`, signer {number}: {problem}")

    if not isinstance(value, dict) or value.keys() - _KEYS:
        raise wrong(f"known are {', '.join(sorted(_KEYS))}")
    name, level, key = (value.get(one) for one in ("name", "level", "key"))
    if not isinstance(name, str) or not name or not name.isprintable():
        raise wrong("`name` is a text")
    if not isinstance(level, str) or level not in RANK:
        raise wrong("`level` is guardrail, platform or app")
    try:
        canonical = parse_key(key if isinstance(key, str) else "")
    except KeyProblemError as error:
        raise wrong(f"`key` is not one that commits can be verified with: {error}") from error
    given = value.get("public_key")
    if (isinstance(key, str) and key.startswith(OPENPGP)) is not isinstance(given, str):
        raise wrong("`public_key` is the file of an OpenPGP key, and every OpenPGP signer has one")
    try:
        public_key = (path.parent / given).read_bytes() if isinstance(given, str) else b""
    except OSError as error:
        raise wrong(f"cannot read `public_key`: {error.strerror}") from error
    after, before = (_moment(value.get(one)) for one in ("valid_after", "valid_before"))
    if ("valid_after" in value and after is None) or ("valid_before" in value and before is None):
        raise wrong("`valid_after` and `valid_before` are dates or times, such as 2027-01-31T18:00:00Z")
    return Trusted(name, Level(level), canonical, str(path), after, before, public_key)


def _moment(value: object) -> datetime | None:
    """A TOML date or time; UTC unless it says otherwise."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
    except ValueError:
        return None


def of_commit(directory: Path, commit: str) -> tuple[Trusted, ...]:
    """Who may sign what follows `commit`, as it says itself. Raises UnreachableError when that cannot be told."""
    file = _blob(directory, commit, REPOSITORY_FILE)
    draft = read_file(REPOSITORY_FILE, file) if file is not None else None
    if draft is None or draft.repository is None or draft.diagnostics:
        # Nobody would mean that no signature is needed.
        raise UnreachableError(f"the signers of commit {commit[:7]} cannot be read from its `{REPOSITORY_FILE}`")
    origin = f"{REPOSITORY_FILE}@{commit[:7]}"
    return tuple(
        Trusted(
            one.name,
            one.level,
            one.key,
            origin,
            valid_before=one.expires,
            public_key=(_blob(directory, commit, f"{KEYS_DIRECTORY}{one.key}.asc") or b"")
            if " " not in one.key
            else b"",
        )
        for one in draft.repository.signers
    )


def _blob(directory: Path, commit: str, path: str) -> bytes | None:
    """A regular file of a commit; None when it is not there or too large."""
    listed = git.run(directory, "ls-tree", "-l", "-z", "--full-tree", commit, "--", path)
    mode, _, object_id, size, *_ = [*listed.decode("utf-8", "replace").split(), "", "", "", ""]
    if mode not in ("100644", "100755") or not size.isdigit() or int(size) > FILE_BYTES_MAX:
        return None
    return git.run(directory, "cat-file", "blob", object_id)
