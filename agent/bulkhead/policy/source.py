"""The files of a policy, as the blobs of a commit; or of a directory, for work in progress.

A repository is somebody else's: what is not a regular file of it is refused rather than followed, and everything is
bounded before it is read.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from bulkhead.errors import Diagnostic, Loc, PolicyError, UnreachableError
from bulkhead.policy import git
from bulkhead.policy.codes import message, presentable

FILE_BYTES_MAX = 1 << 20
REPOSITORY_BYTES_MAX = 64 << 20
FILES_MAX = 10_000
SUFFIXES = (".yaml", ".yml")
REPOSITORY_FILE = "bulkhead.yaml"
HOSTS = "hosts"
"""The policy that lifeline rules belong to."""
MODULE_SUFFIX = ".rego"
MODULES_MAX = 256
ABBREVIATED = 7
"""Characters of a commit id in places and messages."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One policy file. `path` is relative to the repository's root; `blob_id` is git's id of `content`."""

    path: str
    blob_id: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Sources:
    """All policy files of a commit, in byte order of their paths. `commit` is empty when read from a directory."""

    commit: str
    files: tuple[SourceFile, ...]
    modules: tuple[SourceFile, ...] = ()
    """Its files of Rego, in the same order."""

    @property
    def abbreviated(self) -> str:
        """The commit as it is shown."""
        return self.commit[:ABBREVIATED]


class _Entry(NamedTuple):
    mode: str
    object_id: str
    size: int
    path: str


def read_commit(repository: Path, revision: str) -> Sources:
    """The policy files of the commit that `revision` names.

    Raises UnreachableError when the repository or the commit is not there, PolicyError when a file is not one that may
    be read.
    """
    directory = git.git_directory(repository)
    commit = git.resolve(directory, revision, repository)
    listing = git.run(directory, "ls-tree", "-r", "-l", "-z", "--full-tree", commit)
    entries = _select(_entries(listing), commit[:ABBREVIATED])
    return _sources(commit, _read_blobs(directory, entries, commit))


def read_directory(path: Path) -> Sources:
    """The policy files below a directory, committed or not, by the rules of a commit. `.git` is passed over.

    Raises UnreachableError when it cannot be read, PolicyError when a file is not one that may be read.
    """
    if not path.is_dir():
        raise UnreachableError(f"`{presentable(str(path))}` is not a directory")
    try:
        entries = _select(_walk(path), "")
        contents = [(entry, _read_regular(path / entry.path)) for entry in entries]
    except OSError as error:
        raise UnreachableError(f"cannot read `{presentable(str(error.filename))}`: {error.strerror}") from error
    for entry, content in contents:
        _check_size(entry.path, len(content), "")
    return _sources("", (SourceFile(entry.path, blob_id(content), content) for entry, content in contents))


def blob_id(content: bytes, algorithm: str = "sha1") -> str:
    """The id that git gives to a blob of this content."""
    digest = hashlib.new(algorithm, b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


def is_policy(path: str) -> bool:
    """Whether a path is read as policy: by its suffix, unless a directory on the way begins with a dot."""
    return path.lower().endswith(SUFFIXES) and not path.startswith(".") and "/." not in path


def is_module(path: str) -> bool:
    """Whether a path is read as Rego, by the same rule."""
    return path.lower().endswith(MODULE_SUFFIX) and not path.startswith(".") and "/." not in path


def _sources(commit: str, read: Iterable[SourceFile]) -> Sources:
    files = tuple(read)
    return Sources(
        commit,
        tuple(file for file in files if not is_module(file.path)),
        tuple(file for file in files if is_module(file.path)),
    )


def _entries(listing: bytes) -> Iterator[_Entry]:
    """The lines of `git ls-tree -l -z`: mode, type, id, size, path."""
    for line in listing.split(b"\0")[:-1]:
        head, _, path = line.partition(b"\t")
        mode, _, object_id, size = head.decode("ascii").split()
        yield _Entry(mode, object_id, int(size) if size.isdigit() else 0, path.decode("utf-8", "surrogateescape"))


def _select(entries: Iterable[_Entry], commit: str) -> list[_Entry]:
    """The policy files among all entries of a tree, in order, after every check that needs no content."""
    chosen: dict[str, _Entry] = {}
    folded: dict[str, str] = {}
    modules = 0
    for entry in entries:
        _check_kind(entry, commit)
        if not is_policy(entry.path) and not is_module(entry.path):
            continue
        _check_size(entry.path, entry.size, commit)
        if entry.path in chosen or not entry.path.isprintable():
            _refuse("BH0802", entry.path, commit)
        other = folded.setdefault(entry.path.casefold(), entry.path)
        if other != entry.path:
            _refuse("BH0805", entry.path, commit, other=other)
        chosen[entry.path] = entry
        if len(chosen) > FILES_MAX:
            _refuse("BH0804", entry.path, commit, amount=f"{len(chosen)} files", limit=FILES_MAX)
        modules += is_module(entry.path)
        if modules > MODULES_MAX:
            _refuse("BH0804", entry.path, commit, amount=f"{modules} files of Rego", limit=MODULES_MAX)
    total = sum(entry.size for entry in chosen.values())
    if total > REPOSITORY_BYTES_MAX:
        _refuse("BH0804", min(chosen), commit, amount=f"{total} bytes", limit=REPOSITORY_BYTES_MAX)
    return [chosen[path] for path in sorted(chosen)]


_KINDS = {"120000": "symbolic link", "160000": "submodule"}


def _check_kind(entry: _Entry, commit: str) -> None:
    parts = entry.path.split("/")
    if any(part in ("", ".", "..") or part.casefold() == ".git" for part in parts):
        _refuse("BH0802", entry.path, commit)
    if entry.mode in _KINDS:
        _refuse("BH0801", entry.path, commit, what=_KINDS[entry.mode])
    if entry.mode not in ("100644", "100755") and entry.path.lower().endswith((*SUFFIXES, MODULE_SUFFIX)):
        _refuse("BH0801", entry.path, commit, what=f"file of mode {entry.mode}")


def _check_size(path: str, size: int, commit: str) -> None:
    if size > FILE_BYTES_MAX:
        _refuse("BH0803", path, commit, size=size, limit=FILE_BYTES_MAX)


def _refuse(number: str, path: str, commit: str, **values: object) -> NoReturn:
    text = message(number, path=path, **values)
    raise PolicyError([Diagnostic(number, text, Loc(presentable(path), 1, commit=commit))])


def _read_blobs(directory: Path, entries: list[_Entry], commit: str) -> Iterator[SourceFile]:
    """The contents, all from one run of git, each held against its id."""
    wanted = "".join(f"{entry.object_id}\n" for entry in entries).encode()
    output = memoryview(git.run(directory, "cat-file", "--batch", stdin=wanted) if entries else b"")
    position = 0
    for entry in entries:
        head = f"{entry.object_id} blob {entry.size}\n".encode()
        start = position + len(head)
        if output[position:start] != head:
            raise UnreachableError(f"blob {entry.object_id} of `{presentable(entry.path)}` is missing")
        content = bytes(output[start : start + entry.size])
        if blob_id(content, "sha1" if len(entry.object_id) == 40 else "sha256") != entry.object_id:
            _refuse("BH0806", entry.path, commit[:ABBREVIATED], blob_id=entry.object_id)
        yield SourceFile(entry.path, entry.object_id, content)
        position = start + entry.size + 1


def _walk(root: Path) -> Iterator[_Entry]:
    """Everything below a directory, in the form of a tree's entries. Links are listed, never followed."""
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        with os.scandir(root / directory) as found:
            children = [child for child in found if child.name != ".git"]
        for child in children:
            path = f"{directory}/{child.name}" if directory else child.name
            status = child.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
            else:
                yield _Entry(_git_mode(status.st_mode), "", status.st_size, path)


def _git_mode(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "120000"
    return "100644" if stat.S_ISREG(mode) else f"{mode:o}"


def _read_regular(path: Path) -> bytes:
    """The content of a file that was regular a moment ago, and is refused if it has become something else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnreachableError(f"`{presentable(str(path))}` changed while it was read")
        return file.read(FILE_BYTES_MAX + 1)
