"""Who wrote a line, and who took it out, in repositories with histories of every shape."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bulkhead.errors import Loc
from bulkhead.policy.authors import authors, extent
from bulkhead.policy.model import Mode, PolicySet
from bulkhead.policy.source import read_commit

LINES = ["first", "  more", "second", "", "third"]


class History:
    """A repository whose commits are made by name, an hour apart."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self._clock = 1_700_000_000
        path.mkdir()
        self.git("init", "-qb", "main", *options)

    def git(self, *arguments: str, who: str = "nobody") -> str:
        self._clock += 3600
        at = f"{self._clock} +0000"
        done = subprocess.run(
            ["git", "-c", f"user.name={who}", "-c", f"user.email={who}@example.org", *arguments],
            cwd=self.path,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "GIT_AUTHOR_DATE": at, "GIT_COMMITTER_DATE": at},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, who: str, *lines: str, path: str = "p.yaml") -> str:
        (self.path / path).write_text("".join(f"{line}\n" for line in lines))
        self.git("add", "-A")
        self.git("commit", "-qm", "change", who=who)
        return self.git("rev-parse", "HEAD")

    def names(self, before: str, after: str, line: int) -> tuple[str, str]:
        """Who wrote that line of `after`, and who took that line of `before` out; `-` for nobody."""
        place = Loc("p.yaml", line, 1)
        found = authors(self.path, self.read(before), self.read(after), [place], [place])
        return tuple(told[place].name if place in told else "-" for told in (found.written, found.removed))  # type: ignore[return-value]

    def read(self, revision: str) -> PolicySet:
        sources = read_commit(self.path, revision)
        return PolicySet(sources.commit, "example.org", Mode.OBSERVE, sources=sources)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "repository")


def test_a_thing_is_its_line_and_what_is_indented_below() -> None:
    text = b"a:\n  - {x: 1,\n     y: 2}\n\n  # about z\n  - name: z\n    from: a\n\n\nb: 1\n".split(b"\n")
    assert [extent(text, line) for line in (1, 2, 6, 10)] == [(1, 7), (2, 3), (6, 7), (10, 10)]


def test_the_last_to_touch_any_line_of_a_thing_is_its_author(history: History) -> None:
    old = history.commit("ann", *LINES)
    new = history.commit("bob", "first", "  less", *LINES[2:])
    assert history.names(old, new, 1)[0] == "bob"
    assert history.names(old, new, 3)[0] == "ann"


def test_who_takes_a_line_out_is_found_among_later_commits(history: History) -> None:
    old = history.commit("ann", *LINES)
    history.commit("bob", "new", *LINES)
    history.commit("cyd", "new", "second", "", "third")
    new = history.commit("dan", "new", "second", "", "third", "fourth")
    assert history.names(old, new, 1)[1] == "cyd"
    assert history.names(old, new, 3)[1] == "-"


def test_a_line_that_is_replaced_is_taken_out(history: History) -> None:
    old = history.commit("ann", *LINES)
    history.commit("bob", "first", "  more", "another", "", "third")
    assert history.names(old, history.commit("cyd", "first", "  more", "yet another"), 3)[1] == "bob"


def test_who_removes_a_file_takes_its_lines_out(history: History) -> None:
    old = history.commit("ann", *LINES)
    (history.path / "p.yaml").unlink()
    new = history.commit("bob", "other", path="q.yaml")
    assert history.names(old, new, 1) == ("-", "bob")


def test_of_a_merged_branch_the_one_who_did_it_is_named(history: History) -> None:
    old = history.commit("ann", *LINES)
    history.git("checkout", "-qb", "side")
    history.commit("bob", "second", "", "third")
    history.git("checkout", "-q", "main")
    history.commit("cyd", "elsewhere", path="q.yaml")
    history.git("merge", "-q", "--no-ff", "-m", "merge", "side", who="dan")
    assert history.names(old, "HEAD", 1)[1] == "bob"


def test_where_the_old_commit_is_no_ancestor_nobody_is_named(history: History) -> None:
    history.commit("ann", *LINES)
    history.git("checkout", "-qb", "side")
    old = history.commit("bob", *LINES, "fourth")
    history.git("checkout", "-q", "main")
    assert history.names(old, history.commit("cyd", "third"), 1)[1] == "-"


def test_a_repository_cannot_have_git_run_a_command_or_rename_authors(history: History, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = tmp_path / "convert"
    script.write_text(f"#!/bin/sh\ntouch {ran}\ncat $1\n")
    script.chmod(0o755)
    mailmap = tmp_path / "mailmap"
    mailmap.write_text("Mallory <ann@example.org>\n")
    history.git("config", "diff.evil.textconv", str(script))
    history.git("config", "mailmap.file", str(mailmap))
    history.git("config", "blame.ignoreRevsFile", "/nonexistent")
    (history.path / ".git" / "info" / "attributes").write_text("*.yaml diff=evil\n")
    old = history.commit("ann", *LINES)
    assert history.names(old, old, 1) == ("ann", "-")
    assert not ran.exists()


def test_places_that_no_file_has_are_left_out(history: History) -> None:
    new = history.read(history.commit("ann", *LINES))
    assert authors(history.path, new, new, [Loc("gone.yaml", 1, 1)], ()).written == {}


def test_a_place_without_a_column_stands_for_its_file(history: History) -> None:
    history.commit("ann", *LINES)
    new = history.read(history.commit("bob", *LINES, "fourth"))
    place = Loc("p.yaml", 1)
    assert authors(history.path, new, new, [place], ()).written[place].name == "bob"


def test_a_shallow_clone_credits_nobody_with_what_is_older(history: History, tmp_path: Path) -> None:
    history.commit("ann", *LINES)
    history.commit("bob", "first", "  more", "another")
    history.commit("cyd", "first", "  more", "another", "fourth")
    history.git("clone", "-q", "--depth=2", history.path.as_uri(), str(tmp_path / "clone"))
    clone = history.read("HEAD")
    places = [Loc("p.yaml", line, 1) for line in (1, 4)]
    found = authors(tmp_path / "clone", clone, clone, places, ())
    assert {loc.line: author.name for loc, author in found.written.items()} == {4: "cyd"}
    assert "shallow" in found.unsaid


def test_a_repository_of_sha256_has_authors(tmp_path: Path) -> None:
    history = History(tmp_path / "repository", "--object-format=sha256")
    old = history.commit("ann", *LINES)
    assert history.names(old, history.commit("bob", "third"), 1) == ("ann", "bob")
