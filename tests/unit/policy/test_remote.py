from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bulkhead.config import Settings, load, scheme_of
from bulkhead.errors import PolicyError, UsageError
from bulkhead.policy import remote as remotes
from bulkhead.policy.git import Limits
from bulkhead.policy.remote import Mirror, Remote, RemoteError
from lab.git_hosts import LOOPBACK, https_host, ssh_host
from lab.signing import SignedRepository, run


@pytest.fixture
def repository(tmp_path) -> SignedRepository:
    one = SignedRepository(tmp_path / "hosted" / "r")
    one.commit({"a.yaml": "a\n"})
    return one


@pytest.fixture
def mirror(tmp_path) -> Mirror:
    return Mirror(tmp_path / "mirror.git")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    with ssh_host(tmp_path_factory.mktemp("ssh") / "d") as host:
        yield host


def file_remote(repository: SignedRepository, ref: str = "main") -> Remote:
    return Remote(f"file://{repository.path}", ref)


def code_of(call, *arguments) -> tuple[str, str]:
    with pytest.raises((PolicyError, RemoteError)) as error:
        call(*arguments)
    found = error.value
    return (found.diagnostics[0].code if isinstance(found, PolicyError) else found.code), str(found)


# Where from


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("/etc/policy", ""),
        ("policy", ""),
        ("./a:b", ""),
        ("ssh://git@host/p", "ssh"),
        ("git@host:path/p.git", "ssh"),
        ("host:p", "ssh"),
        ("https://host/p", "https"),
        ("file:///srv/p", "file"),
        ("git://host/p", "git"),
        ("ext::sh -c x", "ssh"),
    ],
)
def test_what_a_repository_is_fetched_by(text, scheme):
    assert scheme_of(text) == scheme


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"repository": "http://host/p"}, "not http"),
        ({"repository": "git://host/p"}, "not git"),
        ({"repository": "ext::sh -c x"}, "belong in no URL"),
        ({"repository": "https://bot:secret@host/p"}, "https_credentials"),
        ({"repository": "git@host:p"}, "`ssh_known_hosts` is missing"),
        ({"repository": "file:///p", "ref": "--upload-pack=x"}, "`ref`"),
        ({"repository": "file:///p", "ref": "a:refs/heads/b"}, "`ref`"),
        ({"repository": "ssh://h/p", "ssh_known_hosts": "/a b"}, "without blanks"),
        ({"repository": "file:///p", "poll_s": 0}, "`poll_s`"),
        ({"repository": "file:///p", "poll_s": True}, "`poll_s`"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, settings, problem):
    empty = tmp_path / "agent.toml"
    empty.write_text("")
    with pytest.raises(UsageError, match=problem):
        load(empty, **settings)


# Fetching


@pytest.mark.parametrize("ref", ["main", "HEAD", "refs/heads/main", "v1"])
def test_a_reference_of_a_repository_on_this_machine_is_fetched(repository, mirror, ref):
    repository.git("tag", "-a", "-m", "one", "v1")
    mirror.fetch(file_remote(repository, ref))
    assert mirror.tip() == repository.head()


def test_one_reference_is_fetched_and_nothing_else(repository, mirror):
    repository.git("tag", "v1")
    repository.git("branch", "other")
    mirror.fetch(file_remote(repository))
    assert run("git", "-C", str(mirror.directory), "for-each-ref", "--format=%(refname)").decode().split() == [
        remotes.TIP
    ]
    assert not (mirror.directory / "hooks").exists()
    assert not (mirror.directory / "FETCH_HEAD").exists()


def test_a_push_is_fetched_forced_or_not(repository, mirror):
    mirror.fetch(file_remote(repository))
    first = mirror.tip()
    second = repository.commit({"a.yaml": "b\n"})
    mirror.fetch(file_remote(repository))
    assert mirror.tip() == second
    mirror.keep(second)
    repository.git("reset", "-q", "--hard", first)
    mirror.fetch(file_remote(repository))
    assert mirror.tip() == first
    assert run("git", "-C", str(mirror.directory), "cat-file", "-t", second) == b"commit\n"


def test_a_repository_is_fetched_over_ssh(repository, mirror, sshd):
    mirror.fetch(Remote(sshd.url(repository.path), "main", sshd.key, sshd.known_hosts))
    assert mirror.tip() == repository.head()


def test_another_host_key_or_user_key_is_not_taken(repository, mirror, sshd, tmp_path):
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other"))
    kind, key, *_ = (tmp_path / "other.pub").read_text().split()
    changed = tmp_path / "known"
    changed.write_text(f"[{LOOPBACK}]:{sshd.port} {kind} {key}\n")
    url = sshd.url(repository.path)
    assert code_of(mirror.fetch, Remote(url, "main", sshd.key, changed))[0] == "BH1110"
    assert "host key" in code_of(mirror.fetch, Remote(url, "main", sshd.key, changed))[1]
    changed.write_text("")
    assert "No ED25519 host key is known" in code_of(mirror.fetch, Remote(url, "main", sshd.key, changed))[1]
    denied = code_of(mirror.fetch, Remote(url, "main", tmp_path / "other", sshd.known_hosts))
    assert "Permission denied" in denied[1]
    assert code_of(mirror.fetch, Remote(url, "main", None, sshd.known_hosts))[0] == "BH1110"


def test_a_repository_is_fetched_over_https_with_a_token(repository, mirror, tmp_path):
    credentials = tmp_path / "token"
    credentials.write_text("bot:secret\n")
    credentials.chmod(0o600)
    with https_host(tmp_path / "h", repository.path.parent) as host:
        remote = Remote(host.url("r/.git"), "main", ca=host.ca, credentials=credentials)
        mirror.fetch(remote)
        assert mirror.tip() == repository.head()
        second = repository.commit({"a.yaml": "b\n"})
        mirror.fetch(remote)
        assert mirror.tip() == second
        wrong = tmp_path / "wrong"
        wrong.write_text("bot:guess\n")
        wrong.chmod(0o600)
        before = host.served
        for bad in (None, wrong):
            assert code_of(mirror.fetch, Remote(remote.url, "main", ca=host.ca, credentials=bad))[0] == "BH1110"
        assert host.served == before
        assert "certificate" in code_of(mirror.fetch, Remote(remote.url, "main", credentials=credentials))[1]
        moved = remote.url.replace("/r/", "/moved/r/")
        assert code_of(mirror.fetch, Remote(moved, "main", ca=host.ca, credentials=credentials))[0] == "BH1110"
        assert host.served == before


def test_credentials_that_others_may_read_are_not_used(repository, mirror, tmp_path):
    credentials = tmp_path / "token"
    credentials.write_text("bot:secret\n")
    credentials.chmod(0o644)
    remote = Remote("https://127.0.0.1:9/r", "main", credentials=credentials)
    assert "read by others" in code_of(mirror.fetch, remote)[1]
    credentials.chmod(0o600)
    credentials.write_text("secret\n")
    assert "USER:TOKEN" in code_of(mirror.fetch, remote)[1]
    credentials.unlink()
    assert "cannot read" in code_of(mirror.fetch, remote)[1]


# Answers that are none


def test_a_repository_or_host_that_is_not_there_is_unreachable(repository, mirror, tmp_path):
    assert code_of(mirror.fetch, Remote(f"file://{tmp_path}/nothing", "main"))[0] == "BH1110"
    with socket.socket() as closed:
        closed.bind((LOOPBACK, 0))
        url = f"https://{LOOPBACK}:{closed.getsockname()[1]}/r"
        assert code_of(mirror.fetch, Remote(url, "main"))[0] == "BH1110"


def test_a_reference_that_is_not_there_and_an_empty_repository_are_findings(repository, mirror, tmp_path):
    assert code_of(mirror.fetch, file_remote(repository, "nothing"))[0] == "BH1112"
    assert code_of(mirror.fetch, file_remote(SignedRepository(tmp_path / "empty"), "HEAD"))[0] == "BH1112"


def test_a_host_that_does_not_answer_is_given_up_with_everything_that_was_started(mirror):
    with socket.socket() as silent:
        silent.bind((LOOPBACK, 0))
        silent.listen()
        port = silent.getsockname()[1]
        started = time.monotonic()
        code, text = code_of(mirror.fetch, Remote(f"https://{LOOPBACK}:{port}/r", "main"), 0.5)
        assert (code, time.monotonic() - started < 5) == ("BH1110", True)
        assert "did not answer within 0.5 seconds" in text
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(5)
            while connection.recv(65536):
                continue  # until the other end is gone


def test_more_than_the_limit_is_refused_and_leaves_nothing(repository, mirror, monkeypatch):
    mirror.fetch(file_remote(repository))
    first = mirror.tip()
    repository.commit({"big.bin": os.urandom(1 << 20)})
    monkeypatch.setattr(remotes, "_LIMITS", Limits(256 << 10, 2 << 30, 60, 64))
    assert code_of(mirror.fetch, file_remote(repository))[0] == "BH1111"
    assert mirror.tip() == first
    assert not list((mirror.directory / "objects" / "pack").glob("tmp_*"))


def crafted(repository: SignedRepository, name: bytes) -> None:
    """A branch whose tree has one entry, bytes and all."""
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"x")
    inner = b"100644 a.yaml\0" + bytes.fromhex(blob)
    inner_id = repository.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=inner)
    listing = b"40000 " + name + b"\0" + bytes.fromhex(inner_id)
    tree = repository.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=listing)
    repository.git("update-ref", "refs/heads/main", repository.git("commit-tree", "-m", "crafted", tree))


@pytest.mark.parametrize("name", [b"..", b".git", b".GIT"])
def test_a_path_that_leads_out_is_refused_as_it_arrives(repository, mirror, name):
    crafted(repository, name)
    assert code_of(mirror.fetch, file_remote(repository))[0] == "BH1113"


def test_nothing_of_the_remote_is_executed_or_believed(repository, mirror, tmp_path):
    marker = tmp_path / "executed"
    repository.git("config", "uploadpack.packObjectsHook", f"touch {marker}; false")
    repository.git("config", "core.fsmonitor", f"touch {marker}")
    hook = repository.path / ".git" / "hooks" / "post-upload-pack"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    hook.chmod(0o755)
    mirror.fetch(file_remote(repository))
    assert mirror.tip() == repository.head()
    assert not marker.exists()


def test_variables_of_the_caller_reach_nothing(repository, mirror, monkeypatch, tmp_path):
    marker = tmp_path / "executed"
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {marker}")
    monkeypatch.setenv("GIT_ASKPASS", f"touch {marker}")
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'protocol.allow=never'")
    mirror.fetch(file_remote(repository))
    assert mirror.tip() == repository.head()
    assert not marker.exists()


def test_the_mirror_is_swept_before_it_fills_the_disk(repository, mirror, monkeypatch):
    monkeypatch.setattr(remotes, "PACKS_MAX", 2)
    for number in range(5):
        repository.commit({"a.yaml": f"{number}\n"})
        mirror.fetch(file_remote(repository))
        mirror.keep(mirror.tip())
    assert len(list((mirror.directory / "objects" / "pack").glob("*.pack"))) <= 2
    assert run("git", "-C", str(mirror.directory), "rev-list", "--count", remotes.TIP) == b"6\n"


# Confinement


_SHOW = """
import subprocess, sys
from bulkhead.policy.git import attempt
from bulkhead.policy import remote
from bulkhead.policyd import confine
from pathlib import Path
confine()
show = "!cat /proc/self/status /proc/self/limits"
print(attempt(Path("/"), ["-c", "alias.show=" + show, "show-it"], limits=remote._LIMITS).complaint, file=sys.stderr)
print(attempt(Path("/"), ["-c", "alias.look=" + show, "look"], limits=remote._LIMITS).output.decode())
"""


def test_git_runs_without_capabilities_and_within_limits():
    """What git starts is as confined as git: an alias shows it."""
    done = subprocess.run([sys.executable, "-c", _SHOW], capture_output=True, text=True, check=True, timeout=60)
    fields = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    limits = {line[:25].strip(): line[25:].split() for line in done.stdout.splitlines() if line.startswith("Max ")}
    assert limits["Max file size"][:2] == [str(remotes.FETCHED_BYTES_MAX)] * 2
    assert limits["Max address space"][:2] == [str(2 << 30)] * 2
    assert limits["Max cpu time"][:2] == ["60"] * 2
    assert limits["Max processes"][:2] == ["64"] * 2
    assert limits["Max core file size"][:2] == ["0"] * 2


def test_secrets_are_on_no_command_line(repository, mirror, tmp_path):
    """A host that keeps git waiting, while all its command lines are read."""
    credentials = tmp_path / "token"
    credentials.write_text("bot:very-secret\n")
    credentials.chmod(0o600)
    seen: list[str] = []
    with socket.socket() as silent:
        silent.bind((LOOPBACK, 0))
        silent.listen()
        url = f"https://{LOOPBACK}:{silent.getsockname()[1]}/r"

        def look() -> None:
            connection, _ = silent.accept()
            with connection:
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        seen.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                    except OSError:
                        continue

        watcher = threading.Thread(target=look)
        watcher.start()
        code_of(mirror.fetch, Remote(url, "main", credentials=credentials), 5.0)
        watcher.join(10)
    fetching = [line for line in seen if url in line]
    assert fetching
    assert not [line for line in fetching if "secret" in line or "Ym90O" in line]


def test_defaults_are_a_path_and_git_is_installed():
    assert scheme_of(Settings().repository) == ""
    assert shutil.which("git")


_WAIT = """
import sys
from bulkhead.confinement import confine
confine()
print(flush=True)
sys.stdin.read()
"""
_LOOK = """
import sys
from bulkhead.confinement import confine
confine()
try:
    open(f"/proc/{sys.argv[1]}/mem", "rb")
except PermissionError:
    print("closed")
"""


def test_another_process_of_the_same_user_without_capabilities_does_not_read_its_memory():
    """Whoever could trace a child of the agent would speak for it: a service of root in a sandbox, for one."""
    with subprocess.Popen([sys.executable, "-c", _WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        argv = [sys.executable, "-c", _LOOK, str(child.pid)]
        looked = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        child.stdin.close()
    assert looked.stdout == "closed\n"
