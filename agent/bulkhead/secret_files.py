"""Files that hold secrets: read only where nobody else could read or replace them, and never written over another."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from bulkhead.errors import UsageError

_BYTES_MAX: Final = 64 << 10
_CREDENTIALS: Final = "$CREDENTIALS_DIRECTORY/"


def read_secret(path: Path) -> bytes:
    """A file that its owner alone may read. `$CREDENTIALS_DIRECTORY/` is where systemd puts it. Raises UsageError."""
    place = _place(path)
    try:
        with place.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"`{path}` is not a file")
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise UsageError(f"others than its owner may read `{path}`: its mode has to be 0600 or less")
            if status.st_uid not in (0, os.geteuid()):
                raise UsageError(f"`{path}` belongs to user {status.st_uid}, who could replace it")
            return file.read(_BYTES_MAX)
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}") from None


def read_passphrase(path: Path) -> bytes:
    """The first line of a file that its owner alone may read. Raises UsageError."""
    lines = read_secret(path).splitlines()
    if not lines or not lines[0]:
        raise UsageError(f"the passphrase file `{path}` is empty")
    return lines[0]


def write_secret(path: Path, content: bytes) -> None:
    """A new file, mode 0600. Never over another one: it could be the key that a node lives by. Raises UsageError."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write the key to `{path}`: {error.strerror}") from error


def _place(path: Path) -> Path:
    if not str(path).startswith(_CREDENTIALS):
        return path
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        raise UsageError(f"`{path}`: no credentials were given to the agent by systemd (LoadCredentialEncrypted=)")
    return Path(directory) / str(path).removeprefix(_CREDENTIALS)
