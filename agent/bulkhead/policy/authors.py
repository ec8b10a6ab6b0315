"""Who wrote the lines of a policy, and who took lines out of it, as git tells."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from bulkhead.errors import Loc, UnreachableError
from bulkhead.policy import git
from bulkhead.policy.model import PolicySet

FILES_MAX: Final = 64
"""Looked into for each commit; who wrote the rest stays unsaid."""
RANGES_MAX: Final = 1_000
"""Places asked about in one file; beyond, the whole of it is."""
SECONDS_MAX: Final = 30.0
"""For all of it."""

_SHA1_DIGITS: Final = 40
_HEAD: Final = re.compile(rb"([0-9a-f]{40}(?:[0-9a-f]{24})?) (\d+) (\d+)(?: \d+)?")


class Author(NamedTuple):
    """A commit, and who wrote it. Git takes both words on trust: only a signature proves them."""

    time: int
    """Unix seconds at which the author says to have written it."""
    name: str
    commit: str


@dataclass(frozen=True, slots=True)
class Authors:
    """Authors of what two commits say, by place."""

    written: Mapping[Loc, Author] = field(default_factory=dict)
    """Of places in the commit after: who last touched any line of the thing that stands there."""
    removed: Mapping[Loc, Author] = field(default_factory=dict)
    """Of places in the commit before: who last took a line of the thing out, or put another in its place."""
    unsaid: str = ""
    """Why some are missing; empty when none needs to be."""


def authors(
    repository: Path, before: PolicySet, after: PolicySet, written: Iterable[Loc], removed: Iterable[Loc]
) -> Authors:
    """The authors of things at places of `after`, and of the removal of things at places of `before`.

    A thing is the line of its place, and the lines below that are indented further; a place without a column stands for
    its whole file. What is removed is followed from
    `before` forwards: its author is that of the commit in which a line of it is first missing. There is none where
    `before` is no ancestor of `after`, and where no line of it is missing. What git does not tell in time stays unsaid.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="bulkhead-authors-") as scratch:
            search = _Search(_Objects.of(repository, after.commit, Path(scratch)), before, after)
            return Authors(search.written(set(written)), search.removed(set(removed)), search.unsaid)
    except UnreachableError as error:
        return Authors(unsaid=str(error))


@dataclass(frozen=True, slots=True)
class _Objects:
    """The objects of a repository and nothing else of it.

    Its configuration can have `git blame` pass over commits, rename authors and run a command on every file.
    """

    directory: Path
    variables: Mapping[str, str]
    ends: frozenset[str]
    """Commits at which a shallow clone ends: what is older counts as theirs."""
    until: float
    """Monotonic seconds when the time for all of it is over."""

    @classmethod
    def of(cls, repository: Path, commit: str, scratch: Path) -> _Objects:
        """As git finds them in a repository. `scratch` is an empty directory that lasts as long."""
        real = git.git_directory(repository)
        objects, shallow = (
            Path(git.run(real, "rev-parse", "--path-format=absolute", "--git-path", name).decode().strip())
            for name in ("objects", "shallow")
        )
        (scratch / "refs").mkdir()
        (scratch / "HEAD").write_text("ref: refs/heads/none\n")
        if len(commit) > _SHA1_DIGITS:
            config = "[core]\nrepositoryformatversion = 1\n[extensions]\nobjectformat = sha256\n"
            (scratch / "config").write_text(config)
        variables = {"GIT_OBJECT_DIRECTORY": str(objects)}
        ends = frozenset(shallow.read_text().split()) if shallow.is_file() else frozenset()
        if ends:
            variables["GIT_SHALLOW_FILE"] = str(shallow)
        return cls(scratch, variables, ends, time.monotonic() + SECONDS_MAX)

    def ask(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """The output of git. Raises UnreachableError when it fails, and when the time is over."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise UnreachableError(f"the authors were not found within {SECONDS_MAX:g} seconds")
        done = git.attempt(self.directory, arguments, stdin=stdin, variables=self.variables, timeout_s=left)
        if done.status:
            raise UnreachableError(f"git {arguments[0]} failed: {done.complaint or f'status {done.status}'}")
        return done.output


class _Line(NamedTuple):
    """A line of a blame."""

    commit: str
    number: int
    """In the commit that was asked about."""


class _Search:
    """Questions to git, as few as will do: one for each file, on the lines that matter."""

    def __init__(self, objects: _Objects, before: PolicySet, after: PolicySet) -> None:
        self._objects = objects
        self._before = before
        self._after = after
        self.unsaid = ""

    def written(self, places: Iterable[Loc]) -> dict[Loc, Author]:
        """Who last touched what stands at some places of the commit after."""
        lines = self._blamed(places, self._after, (self._after.commit,))
        return self._latest({loc: [line.commit for line in found] for loc, found in lines.items()})

    def removed(self, places: Iterable[Loc]) -> dict[Loc, Author]:
        """Who took lines out of what stands at some places of the commit before."""
        if self._before.commit == self._after.commit:
            return {}
        return self._latest(self._removing(places, self._after.commit))

    def _removing(self, places: Iterable[Loc], end: str) -> dict[Loc, list[str]]:
        """The commits up to `end` in which lines are first missing."""
        span = f"{self._before.commit}..{end}"
        last_with = {
            loc: {line.commit for line in lines} - {end}
            for loc, lines in self._blamed(places, self._before, ("--reverse", span)).items()
        }
        gone = {loc: commits for loc, commits in last_with.items() if commits}
        history = _History(self._objects.ask("rev-list", "--parents", span) if gone else b"")
        found: dict[Loc, list[str]] = {}
        merged: dict[str, list[tuple[Loc, str]]] = {}
        for loc, commits in gone.items():
            for commit in commits:
                found.setdefault(loc, []).extend(history.following(commit))
                for merge, other in history.merges(commit):
                    merged.setdefault(other, []).append((loc, merge))
        # A merge takes out what the other branch did: who did it is found there.
        for other, wanted in merged.items():
            there = self._removing([loc for loc, _ in wanted], other)
            for loc, merge in wanted:
                found.setdefault(loc, []).extend(there.get(loc) or [merge])
        return {loc: commits for loc, commits in found.items() if commits}

    def _blamed(self, places: Iterable[Loc], policy_set: PolicySet, arguments: Sequence[str]) -> dict[Loc, list[_Line]]:
        found: dict[Loc, list[_Line]] = {}
        files = {file.path: file.content for file in policy_set.sources.files} if policy_set.sources else {}
        wanted: dict[str, list[Loc]] = {}
        for loc in sorted(places):
            if loc.file in files:
                wanted.setdefault(loc.file, []).append(loc)
        for path in list(wanted)[FILES_MAX:]:
            del wanted[path]
            self.unsaid = f"the authors in {FILES_MAX} files are looked up, not in more"
        for path, locs in wanted.items():
            text = files[path].split(b"\n")
            spans = {loc: _span(text, loc) for loc in locs}
            lines = {line.number: line for line in self._blame(path, spans.values(), arguments)}
            found.update(
                (loc, [lines[number] for number in range(first, last + 1) if number in lines])
                for loc, (first, last) in spans.items()
            )
        return found

    def _blame(self, path: str, spans: Iterable[tuple[int, int]], arguments: Sequence[str]) -> Iterator[_Line]:
        ranges = sorted(set(spans))
        limits = [f"-L{first},{last}" for first, last in ranges] if len(ranges) <= RANGES_MAX else []
        output = self._objects.ask("blame", "--porcelain", *limits, *arguments, "--", path)
        for line in output.split(b"\n"):
            head = _HEAD.fullmatch(line)
            if head:
                yield _Line(head[1].decode(), int(head[3]))

    def _latest(self, commits: Mapping[Loc, Sequence[str]]) -> dict[Loc, Author]:
        """Of the commits of each place the one written last."""
        listed = {commit for found in commits.values() for commit in found}
        if listed & self._objects.ends:
            self.unsaid = "the clone is shallow: what was written before it begins is nobody's"
        known = dict(self._authors(sorted(listed - self._objects.ends))) if listed - self._objects.ends else {}
        told = {loc: [known[commit] for commit in found if commit in known] for loc, found in commits.items()}
        return {loc: max(found) for loc, found in told.items() if found}

    def _authors(self, commits: Sequence[str]) -> Iterator[tuple[str, Author]]:
        output = self._objects.ask(
            "log", "--no-walk", "--format=%H%x00%at%x00%an", "--stdin", stdin="\n".join(commits).encode()
        )
        for line in output.decode("utf-8", "replace").splitlines():
            commit, at, name = line.split("\0")
            yield commit, Author(int(at), name, commit)


class _History:
    """Which commits of a range follow which. `listing` is of `git rev-list --parents`."""

    def __init__(self, listing: bytes) -> None:
        self._following: dict[str, list[str]] = {}
        self._merges: dict[str, list[tuple[str, str]]] = {}
        for line in listing.decode("ascii").splitlines():
            commit, *parents = line.split()
            if len(parents) == 1:
                self._following.setdefault(parents[0], []).append(commit)
                continue
            for parent in parents:
                others = [(commit, other) for other in parents if other != parent]
                self._merges.setdefault(parent, []).extend(others)

    def following(self, commit: str) -> list[str]:
        """The commits right after one."""
        return self._following.get(commit, [])

    def merges(self, commit: str) -> list[tuple[str, str]]:
        """Merges of a commit with another, and that other; none where a commit follows that is no merge."""
        return [] if commit in self._following else self._merges.get(commit, [])


def _span(lines: Sequence[bytes], loc: Loc) -> tuple[int, int]:
    return extent(lines, loc.line) if loc.column else (1, max(1, len(lines) - (not lines[-1])))


def extent(lines: Sequence[bytes], line: int) -> tuple[int, int]:
    """First and last line of the thing that begins on a line: those below it that are indented further.

    Blank lines and comments count only with something of the thing below them.
    """
    indent = _indent(lines[line - 1])
    last = line
    for number in range(line + 1, len(lines) + 1):
        text = lines[number - 1]
        if not text.strip() or text.lstrip().startswith(b"#"):
            continue
        if _indent(text) <= indent:
            break
        last = number
    return line, last


def _indent(text: bytes) -> int:
    return len(text) - len(text.lstrip(b" "))
