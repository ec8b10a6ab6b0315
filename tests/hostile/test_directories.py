"""Hostile work trees: what `lint DIR` meets before anything is committed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile.refusal import lint
from lab.hostile import HONEST, MEGABYTE, REPOSITORY


def _link(root: Path) -> None:
    (root / "z.yaml").symlink_to("/etc/passwd")


def _linked_directory(root: Path) -> None:
    (root / "more").symlink_to("/etc")


def _loop(root: Path) -> None:
    (root / "loop").symlink_to(root)


def _pipe(root: Path) -> None:
    os.mkfifo(root / "z.yaml")


def _huge(root: Path) -> None:
    with (root / "z.yaml").open("wb") as file:
        file.truncate(100 * MEGABYTE)


def _many(root: Path) -> None:
    for number in range(10_001):
        (root / f"z{number:05}.yaml").touch()


def _many_bytes(root: Path) -> None:
    for number in range(65):
        (root / f"z{number:02}.yaml").write_bytes(b"#" * MEGABYTE)


def _unreadable_name(root: Path) -> None:
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff.yaml"))).write_bytes(HONEST)


def _deep(root: Path) -> None:
    """Deeper than a path can be long."""
    descriptor = os.open(root, os.O_PATH)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=descriptor)
        inner = os.open("d" * 200, os.O_PATH, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


TREES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a symbolic link": (_link, "BH0801"),
    "a link to a directory": (_linked_directory, "BH0801"),
    "a link to itself": (_loop, "BH0801"),
    "a pipe": (_pipe, "BH0801"),
    "a file of 100 MB": (_huge, "BH0803"),
    "too many files": (_many, "BH0804"),
    "too many bytes": (_many_bytes, "BH0804"),
    "a name that is no text": (_unreadable_name, "BH0802"),
    "directories without end": (_deep, "name too long"),
}


@pytest.mark.parametrize("what", TREES)
def test_refuse_whole_and_say_why(what: str, tmp_path: Path) -> None:
    build, says = TREES[what]
    (tmp_path / "bulkhead.yaml").write_bytes(REPOSITORY)
    (tmp_path / "t.yaml").write_bytes(HONEST)
    build(tmp_path)
    found = lint(tmp_path)
    assert found.refused, found
    assert says in found.codes or says in found.stderr, found
    assert found.cpu_s <= 5
    assert found.memory_bytes <= 1 << 30


def test_what_git_keeps_beside_the_files_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "bulkhead.yaml").write_bytes(REPOSITORY)
    (tmp_path / "t.yaml").write_bytes(HONEST)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "z.yaml").symlink_to("/etc/passwd")
    assert lint(tmp_path).returncode == 0
