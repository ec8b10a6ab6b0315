"""Policies as text, and repositories as real git repositories."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources, blob_id

REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\n"

Files = Mapping[str, str | bytes]
MakeSources = Callable[[Files], Sources]
Parse = Callable[..., PolicySet]
Refuse = Callable[..., list[Diagnostic]]


def make_sources(files: Files, commit: str = "") -> Sources:
    texts = {"bulkhead.yaml": REPOSITORY, **files}
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in texts.items()}
    return Sources(
        commit, tuple(SourceFile(path, blob_id(content), content) for path, content in sorted(contents.items()))
    )


@pytest.fixture
def sources_of() -> MakeSources:
    """Sources of the files given, with a plain `bulkhead.yaml` unless one is among them."""
    return make_sources


@pytest.fixture
def parsed() -> Parse:
    """The PolicySet of `shop.yaml` with this body below its head, and of further files."""

    def run(body: str = "", files: Files | None = None) -> PolicySet:
        return parse(make_sources({"shop.yaml": HEAD + body, **(files or {})}))

    return run


@pytest.fixture
def refused() -> Refuse:
    """The findings for which the same is refused."""

    def run(body: str = "", files: Files | None = None) -> list[Diagnostic]:
        with pytest.raises(PolicyError) as error:
            parse(make_sources({"shop.yaml": HEAD + body, **(files or {})}))
        return list(error.value.diagnostics)

    return run


class Repository:
    """A git repository with one branch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            **{
                f"GIT_{role}_{key}": f"a@{role.lower()}"
                for role in ("AUTHOR", "COMMITTER")
                for key in ("NAME", "EMAIL")
            },
        }
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments], input=stdin, capture_output=True, env=environment, check=True
        )
        return done.stdout.decode().strip()

    def commit(self, files: Files | None = None) -> str:
        """Writes the files, commits all there is, and gives the commit's id."""
        for name, text in (files or {}).items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text.encode() if isinstance(text, str) else text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=policy")
        return self.git("rev-parse", "HEAD")

    def commit_tree(self, listing: bytes) -> str:
        """A commit of a tree object as it is given, bytes and all."""
        tree = self.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=listing)
        return self.git("commit-tree", "-m", "crafted", tree)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """An empty git repository."""
    return Repository(tmp_path / "repository")
