"""`bulkhead fmt`: policy files in canonical form."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show_json
from bulkhead.errors import Diagnostic, ExitCode, Loc, PolicyError, UnreachableError, UsageError

STDIN = "-"


class Result(NamedTuple):
    """One file, before and after. `path` is None for standard input."""

    name: str
    path: Path | None
    before: bytes
    after: bytes

    @property
    def changed(self) -> bool:
        return self.before != self.after


@click.command()
@click.argument("places", metavar="[FILE|DIR|-]...", nargs=-1)
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if something is not in canonical form.")
@click.option("--diff", is_flag=True, help="Change nothing; show what would change.")
@view_options()
def fmt(view: View, places: Sequence[str], check: bool, diff: bool) -> ExitCode:
    """Write policy files in their canonical form: what they say, and every comment, stays.

    Takes files, directories (the current one unless given), or `-` for standard input to standard output. Documents
    that are not Bulkhead's own stay as they are. Files that are not sound YAML are refused, with exit code 2.
    """
    refused = False
    results = []
    for name, path, content in _contents(places or ["."]):
        try:
            results.append(_formatted(name, path, content))
        except PolicyError as error:
            note(str(error))
            refused = True
    changed = [one for one in results if one.changed]
    if diff:
        sys.stdout.write("".join(_difference(changed)))
    elif not check:
        for one in results:
            if one.changed or one.path is None:
                _write(one)
    if view.as_json:
        show_json("Formatted", [{"file": one.name, "changed": one.changed} for one in results])
    elif not diff:
        for one in changed:
            note(f"{one.name}: {'is not in canonical form' if check else 'formatted'}")
    if refused:
        return ExitCode.INVALID
    return ExitCode.NO if check and changed else ExitCode.OK


def _formatted(name: str, path: Path | None, content: bytes) -> Result:
    from bulkhead.policy.codes import message
    from bulkhead.policy.format import format_file
    from bulkhead.policy.source import FILE_BYTES_MAX

    if len(content) > FILE_BYTES_MAX:
        text = message("BH0803", path=name, size=f"more than {FILE_BYTES_MAX}", limit=FILE_BYTES_MAX)
        raise PolicyError([Diagnostic("BH0803", text, Loc(name, 1))])
    return Result(name, path, content, format_file(name, content))


def _contents(places: Iterable[str]) -> Iterator[tuple[str, Path | None, bytes]]:
    """Names, paths and contents of what was asked for."""
    from bulkhead.policy.source import FILE_BYTES_MAX, read_directory

    for place in places:
        path = Path(place)
        if place == STDIN:
            yield "standard input", None, sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        elif path.is_dir():
            for file in read_directory(path).files:
                yield str(path / file.path), path / file.path, file.content
        else:
            yield place, path, _read(path, FILE_BYTES_MAX + 1)


def _read(path: Path, limit: int) -> bytes:
    """The first bytes of a file named by itself. Links are refused, as in a repository: writing would replace them."""
    if path.is_symlink():
        raise UsageError(f"`{path}` is a symbolic link: name the file itself")
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise UnreachableError(f"`{path}` cannot be read: {error.strerror}") from error


def _difference(changed: Iterable[Result]) -> Iterator[str]:
    from difflib import unified_diff

    for one in changed:
        before, after = (text.decode("utf-8-sig").splitlines(keepends=True) for text in (one.before, one.after))
        for line in unified_diff(before, after, one.name, one.name):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _write(result: Result) -> None:
    if result.path is None:
        sys.stdout.buffer.write(result.after)
        sys.stdout.buffer.flush()
        return
    try:
        replace_file(result.path, result.after)
    except OSError as error:
        raise UnreachableError(f"`{result.path}` cannot be written: {error.strerror}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file in one step; mode and owner stay."""
    import contextlib
    import tempfile

    status = path.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
