from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path

import pytest

from bulkhead.errors import PolicyError, UnreachableError
from bulkhead.policy import source
from bulkhead.policy.source import read_commit, read_directory

BOTH = {"bulkhead.yaml": "kind: Repository\n", "team/shop.yml": "kind: Policy\n"}


def refusal(call, *arguments) -> str:
    with pytest.raises(PolicyError) as error:
        call(*arguments)
    (found,) = error.value.diagnostics
    return found.code


def entry(mode: str, name: bytes, object_id: str) -> bytes:
    return mode.encode() + b" " + name + b"\0" + bytes.fromhex(object_id)


def test_files_are_those_of_the_commit_and_not_of_the_work_tree(repository):
    commit = repository.commit(BOTH)
    (repository.path / "bulkhead.yaml").write_text("changed\n")
    (repository.path / "new.yaml").write_text("new\n")
    sources = read_commit(repository.path, "HEAD")
    assert sources.commit == commit
    assert [(file.path, file.content.decode()) for file in sources.files] == sorted(BOTH.items())


def test_an_older_commit_stays_readable_by_its_id_and_by_its_branch(repository):
    first = repository.commit(BOTH)
    repository.commit({"bulkhead.yaml": "second\n"})
    repository.git("branch", "old", first)
    for revision in (first, first[:10], "old", "main~1"):
        assert read_commit(repository.path, revision).commit == first


def test_a_bare_repository_is_read_alike(repository, tmp_path):
    commit = repository.commit(BOTH)
    repository.git("clone", "--quiet", "--bare", str(repository.path), str(tmp_path / "bare"))
    assert read_commit(tmp_path / "bare", "main").files == read_commit(repository.path, commit).files


def test_a_second_work_tree_is_read_alike(repository, tmp_path):
    commit = repository.commit(BOTH)
    repository.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "second"))
    assert read_commit(tmp_path / "second", "HEAD").commit == commit


def test_a_repository_may_be_named_relative_to_the_current_directory(repository, monkeypatch):
    commit = repository.commit(BOTH)
    monkeypatch.chdir(repository.path.parent)
    for path in (Path("repository"), Path("../" + repository.path.parent.name) / "repository"):
        assert read_commit(path, "HEAD").commit == commit
    monkeypatch.chdir(repository.path)
    assert read_commit(Path("."), "HEAD").commit == commit


def test_a_directory_gives_the_same_files_and_blob_ids_as_its_commit(repository):
    repository.commit(BOTH)
    directory = read_directory(repository.path)
    assert directory.commit == ""
    assert directory.files == read_commit(repository.path, "HEAD").files


def test_files_come_in_byte_order_of_their_paths(repository):
    names = ["b.yaml", "a/b.yaml", "a.yaml", "a-b.yaml", "Z.yaml", "\u00e9.yaml", "a0.yml"]
    repository.commit({name: name for name in names})
    expected = sorted(names, key=str.encode)
    assert [file.path for file in read_commit(repository.path, "HEAD").files] == expected
    assert [file.path for file in read_directory(repository.path).files] == expected


def test_other_files_are_ignored_whatever_they_hold(repository):
    repository.commit({"README.md": b"\xff" * (2 << 20), "policy.yaml.bak": "x", **BOTH})
    assert [file.path for file in read_commit(repository.path, "HEAD").files] == sorted(BOTH)


def test_an_empty_tree_gives_no_files(repository):
    assert read_commit(repository.path, repository.commit()).files == ()


@pytest.mark.parametrize(
    "revision", ["", "nothing", "0" * 40, "HEAD:bulkhead.yaml", "--help", "-h", "HEAD^{tree}", "a\nb"]
)
def test_unreachable_when_the_revision_names_no_commit(revision, repository):
    repository.commit(BOTH)
    with pytest.raises(UnreachableError, match="names no commit"):
        read_commit(repository.path, revision)


def test_unreachable_when_there_is_no_repository(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UnreachableError, match="is not a git repository"):
            read_commit(path, "HEAD")
    with pytest.raises(UnreachableError, match="is not a directory"):
        read_directory(tmp_path / "missing")


def test_a_directory_inside_a_repository_is_not_taken_for_it(repository):
    repository.commit(BOTH)
    with pytest.raises(UnreachableError, match="is not a git repository"):
        read_commit(repository.path / "team", "HEAD")


@pytest.mark.parametrize("name", ["shop.yaml", "README", "team"])
def test_refuse_a_symbolic_link(name, repository):
    repository.commit({"bulkhead.yaml": ""})
    (repository.path / name).symlink_to("/etc")
    repository.commit()
    assert refusal(read_commit, repository.path, "HEAD") == "BH0801"
    assert refusal(read_directory, repository.path) == "BH0801"


def test_refuse_a_submodule(repository):
    commit = repository.commit(BOTH)
    tree = repository.commit_tree(entry("160000", b"vendor", commit))
    assert refusal(read_commit, repository.path, tree) == "BH0801"


def test_refuse_a_yaml_file_that_is_not_regular(repository):
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"x")
    assert refusal(read_commit, repository.path, repository.commit_tree(entry("120000", b"a.yaml", blob))) == "BH0801"
    os.mkfifo(repository.path / "pipe.yaml")
    assert refusal(read_directory, repository.path) == "BH0801"


@pytest.mark.parametrize("name", [b"..", b".", b".git", b".GIT"])
def test_refuse_a_path_that_leaves_the_repository(name, repository):
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"x")
    inner = repository.git(
        "hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=entry("100644", b"a.yaml", blob)
    )
    assert refusal(read_commit, repository.path, repository.commit_tree(entry("40000", name, inner))) == "BH0802"


@pytest.mark.parametrize("names", [[b"a.yaml", b"a.yaml"], [b"a\n.yaml"], [b"\xff.yaml"], ["\u202e.yaml".encode()]])
def test_refuse_a_path_that_is_doubled_or_cannot_be_shown(names, repository):
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"x")
    commit = repository.commit_tree(b"".join(entry("100644", name, blob) for name in names))
    assert refusal(read_commit, repository.path, commit) == "BH0802"


def test_refuse_paths_that_differ_in_case_only(repository):
    repository.commit({"shop.yaml": "", "Shop.yaml": ""})
    assert refusal(read_commit, repository.path, "HEAD") == "BH0805"


def test_refuse_a_file_over_its_limit_before_it_is_read(repository):
    repository.commit({"a.yaml": b"#" * (source.FILE_BYTES_MAX + 1)})
    assert refusal(read_commit, repository.path, "HEAD") == "BH0803"
    assert refusal(read_directory, repository.path) == "BH0803"


def test_a_file_at_its_limit_is_read(repository):
    repository.commit({"a.yaml": b"#" * source.FILE_BYTES_MAX})
    assert len(read_commit(repository.path, "HEAD").files[0].content) == source.FILE_BYTES_MAX


def test_refuse_a_repository_over_its_limits(repository, monkeypatch):
    repository.commit({f"{number}.yaml": "#" * 10 for number in range(5)})
    with monkeypatch.context() as patch:
        patch.setattr(source, "FILES_MAX", 4)
        assert refusal(read_commit, repository.path, "HEAD") == "BH0804"
    with monkeypatch.context() as patch:
        patch.setattr(source, "REPOSITORY_BYTES_MAX", 49)
        assert refusal(read_commit, repository.path, "HEAD") == "BH0804"
    assert len(read_commit(repository.path, "HEAD").files) == 5


def test_replaced_objects_are_not_read_for_the_ones_of_the_commit(repository):
    commit = repository.commit({"a.yaml": "honest\n"})
    other = repository.git("hash-object", "-w", "--stdin", stdin=b"forged\n")
    repository.git("replace", repository.git("rev-parse", f"{commit}:a.yaml"), other)
    assert read_commit(repository.path, commit).files[0].content == b"honest\n"


def test_refuse_a_blob_whose_content_was_changed_in_the_store(repository):
    repository.commit({"a.yaml": "honest\n"})
    blob = repository.git("rev-parse", "HEAD:a.yaml")
    loose = repository.path / ".git" / "objects" / blob[:2] / blob[2:]
    loose.chmod(0o600)
    loose.write_bytes(zlib.compress(b"blob 7\0forged\n"))
    with pytest.raises((PolicyError, UnreachableError)):
        read_commit(repository.path, "HEAD")


def test_unreachable_when_a_blob_is_missing(repository):
    repository.commit({"a.yaml": "honest\n"})
    blob = repository.git("rev-parse", "HEAD:a.yaml")
    (repository.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(UnreachableError):
        read_commit(repository.path, "HEAD")


def test_nothing_of_the_repository_is_executed(repository, tmp_path):
    marker = tmp_path / "executed"
    commit = repository.commit({**BOTH, ".gitattributes": "*.yaml filter=evil diff=evil\n"})
    for key in ("core.fsmonitor", "core.pager", "core.sshCommand", "filter.evil.smudge", "diff.evil.textconv"):
        repository.git("config", key, f"touch {marker}; false")
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        path = repository.path / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {marker}\n")
        path.chmod(0o755)
    assert read_commit(repository.path, commit).files
    assert not marker.exists()


def test_a_promised_object_is_not_fetched(repository, tmp_path):
    marker = tmp_path / "fetched"
    commit = repository.commit(BOTH)
    blob = repository.git("rev-parse", f"{commit}:bulkhead.yaml")
    repository.git("config", "remote.origin.url", f"ext::sh -c touch% {marker}")
    repository.git("config", "remote.origin.promisor", "true")
    repository.git("config", "extensions.partialClone", "origin")
    repository.git("config", "core.repositoryFormatVersion", "1")
    repository.git("config", "protocol.ext.allow", "always")
    (repository.path / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(UnreachableError):
        read_commit(repository.path, commit)
    assert not marker.exists()


def test_variables_of_the_caller_do_not_redirect_git(repository, tmp_path, monkeypatch):
    commit = repository.commit(BOTH)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("GIT_NAMESPACE", "x")
    assert read_commit(repository.path, "HEAD").commit == commit


def test_sha256_repositories_are_read(tmp_path):
    path = tmp_path / "wide"
    subprocess.run(["git", "init", "--quiet", "--object-format=sha256", str(path)], check=True)
    (path / "a.yaml").write_text("a\n")
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@a"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "a"], check=True)
    (file,) = read_commit(path, "HEAD").files
    assert len(file.blob_id) == 64
