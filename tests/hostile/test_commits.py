"""Hostile commits: refused whole, with their reason, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostile.refusal import lint
from lab.hostile import FORGED, HONEST, HOSTILE, REPOSITORY, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty repository."""
    return Store(tmp_path / "repository")


@pytest.mark.parametrize("what", HOSTILE)
def test_refuse_whole_and_say_why(what: str, store: Store) -> None:
    hostile = HOSTILE[what]
    hostile.build(store)
    found = lint(store.path, "main")
    assert found.refused, found
    assert hostile.says in found.codes or hostile.says in found.stderr, found
    assert found.cpu_s <= hostile.cpu_s
    assert found.memory_bytes <= hostile.memory_bytes


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + HONEST,
        HONEST.replace(b"\n", b"\r\n"),
        HONEST + b"#" * 900_000 + b"\n",
        HONEST + b"\n" * 900_000,
        HONEST + b"---\n" * 200_000,
    ],
    ids=["a byte order mark", "CRLF", "a long comment", "many lines", "many documents"],
)
def test_what_only_looks_odd_is_read(content: bytes, store: Store) -> None:
    store.files({b"t.yaml": content})
    found = lint(store.path, "main")
    assert (found.returncode, found.codes) == (0, []), found
    assert found.cpu_s <= 5


@pytest.mark.parametrize("how", ["replaced blob", "replaced commit", "grafts", "shallow"])
def test_what_stands_in_for_an_object_is_not_read(how: str, store: Store) -> None:
    """The forged policy is refused for its test, so reading it would show."""
    failing = FORGED + b'tests:\n  - {from: web, accept: ["api:443"]}\n'
    honest = store.files({b"t.yaml": HONEST})
    forged = store.git("commit-tree", "-m", "forged", store.tree(
        ("100644", b"bulkhead.yaml", store.blob(REPOSITORY)), ("100644", b"t.yaml", store.blob(failing))
    ))  # fmt: skip
    info = store.path / ".git" / "info"
    info.mkdir(exist_ok=True)
    if how == "replaced blob":
        store.git("replace", store.git("rev-parse", f"{honest}:t.yaml"), store.git("rev-parse", f"{forged}:t.yaml"))
    elif how == "replaced commit":
        store.git("replace", honest, forged)
    elif how == "grafts":
        (info / "grafts").write_text(f"{honest} {forged}\n")
    else:
        (store.path / ".git" / "shallow").write_text(f"{honest}\n")
    assert lint(store.path, forged).codes == ["BH0502"] if how != "replaced commit" else True
    assert lint(store.path, "main").returncode == 0


def test_objects_of_another_store_are_held_against_their_ids(store: Store, tmp_path: Path) -> None:
    """An alternate may lend objects, never other ones."""
    lender = Store(tmp_path / "lender")
    lender.files({b"t.yaml": HONEST})
    commit = store.files({b"t.yaml": HONEST})
    number = store.git("rev-parse", f"{commit}:t.yaml")
    store.loose(number).unlink()
    (store.path / ".git" / "objects" / "info" / "alternates").write_text(f"{lender.path}/.git/objects\n")
    assert lint(store.path, "main").returncode == 0
    forged = lender.loose(lender.blob(FORGED)).read_bytes()
    lender.loose(number).chmod(0o600)
    lender.loose(number).write_bytes(forged)
    assert lint(store.path, "main").refused


@pytest.mark.parametrize("name", ["--help", "--output=owned", "-h", "--upload-pack=touch owned", "..", "main@{-1}"])
def test_a_reference_that_looks_like_an_option_names_no_commit(name: str, store: Store) -> None:
    commit = store.files({b"t.yaml": HONEST})
    if "/" not in name and name != "..":
        (store.path / ".git" / "refs" / "heads" / name).write_text(f"{commit}\n")
    found = lint(store.path, name)
    assert found.returncode == 3, found
    assert "names no commit" in found.stderr
    assert not list(store.path.rglob("owned"))
