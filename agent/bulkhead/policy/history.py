"""Whether a commit may follow the one that was accepted last: it descends from it, and all between is signed for.

Who may sign is what the operator's file says, and what the repository said before the commits that are judged. The
commits between two that change the signers are judged by those of the first, so that it makes no difference how often
a host has looked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bulkhead.errors import Diagnostic, Loc, PolicyError, UnreachableError
from bulkhead.policy import git
from bulkhead.policy.codes import message, presentable
from bulkhead.policy.levels import KEYS_DIRECTORY, RANK, Contents, Need, needed
from bulkhead.policy.model import Level
from bulkhead.policy.signatures import PLACEHOLDERS, Found, Keyring, Refusal
from bulkhead.policy.signers import Roots, Trusted, of_commit
from bulkhead.policy.source import ABBREVIATED, FILE_BYTES_MAX, REPOSITORY_BYTES_MAX, REPOSITORY_FILE, is_policy

COMMITS_MAX: Final = 1000
"""Commits that are judged in one go, and that are looked through for one to begin with."""

_CHUNK: Final = 50
"""Commits whose signatures are looked at together while one to begin with is searched."""

_NOTHING: Final = "0000000"
"""Begins the id of a blob that is not there."""

_VARIABLES: Final = {"GIT_SHALLOW_FILE": ""}
"""A history that was cut short is not taken for a whole one."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A commit, who signed it, and the level that it needed."""

    commit: str
    signer: Trusted
    need: Need


@dataclass(frozen=True, slots=True)
class _Change:
    """One file that differs from one parent."""

    path: str
    before: str
    after: str


@dataclass(slots=True)
class _Commit:
    commit: str
    found: Found
    parents: list[list[_Change]] = field(default_factory=list)
    """What differs from each parent that anything differs from."""


class History:
    """The commits of one repository, judged by signers whose keys are kept in `directory`."""

    def __init__(
        self, repository: Path, roots: Roots, directory: Path, now: Callable[[], datetime] | None = None
    ) -> None:
        self._git = git.git_directory(repository)
        self._roots = roots
        self._directory = directory
        self._now = now or (lambda: datetime.now(UTC))

    def descends(self, older: str, newer: str) -> bool:
        """Whether `newer` is `older` or follows it. False as well when the repository does not have them."""
        if older == newer:
            return True
        asked = git.attempt(self._git, ["merge-base", "--is-ancestor", older, newer], variables=_VARIABLES)
        return asked.status == 0

    def holds(self, commit: str) -> bool:
        """Whether the repository has a commit."""
        return git.attempt(self._git, ["cat-file", "-e", f"{commit}^{{commit}}"]).status == 0

    def judge(self, last: str, commit: str) -> tuple[Verified, ...]:
        """Everything from `last` to `commit`, in order; nothing when nobody has to sign. `last` empty: the first one.

        Raises PolicyError when `commit` may not follow, UnreachableError when that cannot be told.
        """
        if not last:
            return self._judge_first(commit, self._roots.signers)
        if last == commit:
            return ()
        if not self.descends(last, commit):
            raise _refusal("BH1107", commit, last=last[:ABBREVIATED])
        return self._judge_following(last, commit)

    def vouch(self, commit: str, last: str) -> tuple[Verified, ...]:
        """As `judge` for a first commit, with the signers that `last` names too. For one that an operator wants."""
        named = of_commit(self._git, last) if last and self.holds(last) else ()
        return self._judge_first(commit, (*self._roots.signers, *named))

    def _judge_first(self, commit: str, signers: Sequence[Trusted]) -> tuple[Verified, ...]:
        if not signers:
            return ()
        first = self._anchor(commit, signers)
        return first, *self._judge_following(first.commit, commit)

    def _judge_following(self, last: str, commit: str) -> tuple[Verified, ...]:
        signers = of_commit(self._git, last)
        verified: list[Verified] = []
        for end in self._stretches(last, commit):
            in_force = (*self._roots.signers, *signers)
            if in_force and end != last:
                verified += self._judge_stretch(last, end, in_force)
            last = end
            if end != commit:
                # Nobody could ever accept a commit whose signers cannot be read: those before it stay in force.
                with suppress(UnreachableError):
                    signers = of_commit(self._git, end)
        return tuple(verified)

    def _anchor(self, commit: str, signers: Sequence[Trusted]) -> Verified:
        """The newest commit up to `commit` by a signer who may write anything: all that it holds is vouched for."""
        keyring = Keyring(self._directory, self._roots, signers)
        everything = Need(Level.GUARDRAIL, "everything", REPOSITORY_FILE, 1)
        first: Trusted | Refusal | None = None
        listed = self._rev_list("--first-parent", f"--max-count={COMMITS_MAX}", commit)
        for chunk in (listed[:1], *(listed[start : start + _CHUNK] for start in range(1, len(listed), _CHUNK))):
            for one in self._read(chunk, keyring):
                signer = keyring.judge(self._git, one.commit, one.found, self._now())
                if isinstance(signer, Trusted) and signer.level is Level.GUARDRAIL:
                    return Verified(one.commit, signer, everything)
                first = first or signer
        if isinstance(first, Trusted):
            raise _level_refusal(commit, everything, first)
        raise _signature_refusal(commit, first or Refusal("BH1101"))

    def _stretches(self, last: str, commit: str) -> list[str]:
        """The ends of stretches with the same signers, oldest first, `commit` as the last."""
        watched = (REPOSITORY_FILE, KEYS_DIRECTORY.rstrip("/"))
        changing = self._rev_list("--first-parent", "--reverse", f"{last}..{commit}", "--", *watched)
        return [*(one for one in changing if one != commit and self.descends(last, one)), commit]

    def _judge_stretch(self, last: str, commit: str, signers: Sequence[Trusted]) -> Iterator[Verified]:
        listed = self._rev_list("--topo-order", "--reverse", f"--max-count={COMMITS_MAX + 1}", f"{last}..{commit}")
        if len(listed) > COMMITS_MAX:
            raise _refusal("BH1108", commit, amount=f"more than {COMMITS_MAX} commits", last=last[:ABBREVIATED])
        keyring = Keyring(self._directory, self._roots, signers)
        commits = self._read(listed, keyring)
        signed = [(one, self._signer(one, keyring)) for one in commits]
        blobs = _Blobs(self._git)
        blobs.load(one for one, signer in signed if signer.level is not Level.GUARDRAIL)
        for one, signer in signed:
            need = _need(one, blobs) if signer.level is not Level.GUARDRAIL else Need(Level.GUARDRAIL, "", "", 0)
            if RANK[need.level] > RANK[signer.level]:
                raise _level_refusal(one.commit, need, signer)
            yield Verified(one.commit, signer, need)

    def _signer(self, one: _Commit, keyring: Keyring) -> Trusted:
        signer = keyring.judge(self._git, one.commit, one.found, self._now())
        if isinstance(signer, Refusal):
            raise _signature_refusal(one.commit, signer)
        return signer

    def _rev_list(self, *arguments: str) -> list[str]:
        return git.run(self._git, "rev-list", *arguments, variables=_VARIABLES).decode("ascii").split()

    def _read(self, commits: Sequence[str], keyring: Keyring) -> list[_Commit]:
        """What git says of each commit's signature, and what differs from each of its parents."""
        # Not diff-tree: it takes no notice of gpg's configuration. So what a repository may configure is spelt out.
        output = git.run(
            self._git,
            *("log", "--stdin", "--no-walk=unsorted", "--no-show-signature", "--no-color", "--no-relative", "-z"),
            *("--diff-merges=separate", "--raw", "--no-abbrev", "--no-renames", "--ignore-submodules=none"),
            f"--format=@%H|{PLACEHOLDERS}",
            stdin="".join(f"{one}\n" for one in commits).encode(),
            config={**keyring.config, "log.showRoot": "true", "log.follow": "false"},
            variables={**_VARIABLES, **keyring.variables},
        )
        found = _commits(output)
        if [one.commit for one in found] != list(commits):
            raise UnreachableError("git shows another history than it lists")
        return found


def _commits(output: bytes) -> list[_Commit]:
    """From `log -z --raw`: a heading for each parent, then an entry and a path for each file."""
    found: list[_Commit] = []
    tokens = iter(output.split(b"\0"))
    for token in tokens:
        token = token.lstrip(b"\n")
        if token.startswith(b"@"):
            commit, _, rest = token[1:].decode("utf-8", "replace").partition("|")
            if not found or found[-1].commit != commit:
                found.append(_Commit(commit, Found.read(rest)))
            found[-1].parents.append([])
        elif token.startswith(b":"):
            _, _, before, after, *_ = token.decode("ascii").split()
            found[-1].parents[-1].append(_Change(next(tokens).decode("utf-8", "surrogateescape"), before, after))
    return found


class _Blobs:
    """The contents of files that changed, read in one go; None for one that is too large."""

    def __init__(self, directory: Path) -> None:
        self._git = directory
        self._contents: dict[str, bytes | None] = {}

    def load(self, commits: Iterable[_Commit]) -> None:
        """Raises PolicyError when they are too much."""
        changes = [(one, change) for one in commits for changes in one.parents for change in changes]
        wanted = {
            blob: one.commit
            for one, change in changes
            if is_policy(change.path)
            for blob in (change.before, change.after)
            if not blob.startswith(_NOTHING)
        }
        sizes = self._sizes(list(wanted))
        if sum(size for size in sizes.values() if size <= FILE_BYTES_MAX) > REPOSITORY_BYTES_MAX:
            commit = next(reversed(wanted.values()))
            raise _refusal(
                "BH1108", commit, amount=f"more than {REPOSITORY_BYTES_MAX} bytes of changes", last="the last one"
            )
        self._contents = {blob: None for blob, size in sizes.items() if size > FILE_BYTES_MAX}
        self._read([(blob, size) for blob, size in sizes.items() if size <= FILE_BYTES_MAX])

    def _sizes(self, blobs: list[str]) -> dict[str, int]:
        if not blobs:
            return {}
        listed = git.run(self._git, "cat-file", "--batch-check", stdin="".join(f"{one}\n" for one in blobs).encode())
        sizes = [line.split() for line in listed.decode("ascii").splitlines()]
        return {words[0]: int(words[2]) for words in sizes if len(words) == 3 and words[1] == "blob"}

    def _read(self, blobs: list[tuple[str, int]]) -> None:
        wanted = "".join(f"{blob}\n" for blob, _ in blobs).encode()
        output = git.run(self._git, "cat-file", "--batch", stdin=wanted) if blobs else b""
        position = 0
        for blob, size in blobs:
            start = output.index(b"\n", position) + 1
            self._contents[blob] = output[start : start + size]
            position = start + size + 1

    def content(self, blob: str) -> bytes | None:
        """What is not a blob (a submodule) is unreadable too."""
        return self._contents.get(blob)


def _need(one: _Commit, blobs: _Blobs) -> Need:
    """The highest level over all parents."""
    needs = (needed(*_sides(changes, blobs)) for changes in one.parents)
    return max(needs, key=lambda need: RANK[need.level], default=Need(Level.APP, "", "", 0))


def _sides(changes: Iterable[_Change], blobs: _Blobs) -> tuple[Contents, Contents]:
    before: dict[str, bytes | None] = {}
    after: dict[str, bytes | None] = {}
    for change in changes:
        for side, blob in ((before, change.before), (after, change.after)):
            if not blob.startswith(_NOTHING):
                side[change.path] = blobs.content(blob)
    return before, after


def _refusal(number: str, commit: str, path: str = REPOSITORY_FILE, line: int = 1, **values: object) -> PolicyError:
    shown = commit[:ABBREVIATED]
    text = message(number, commit=shown, **values)
    return PolicyError([Diagnostic(number, text, Loc(presentable(path), line, commit=shown))])


def _signature_refusal(commit: str, refusal: Refusal) -> PolicyError:
    signer = f"`{refusal.name}` ({refusal.key})" if refusal.name else refusal.key or "an unknown key"
    return _refusal(refusal.code, commit, signer=signer)


def _level_refusal(commit: str, need: Need, signer: Trusted) -> PolicyError:
    return _refusal(
        "BH1106",
        commit,
        need.path or REPOSITORY_FILE,
        max(need.line, 1),
        what=need.what,
        needed=need.level,
        signer=signer.name,
        level=signer.level,
    )
