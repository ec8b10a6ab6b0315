"""Repositories that mean harm, made with git's plumbing where its porcelain would refuse."""

from __future__ import annotations

import os
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = b"apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
HEAD: Final = b"apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: t}\n"
WORKLOADS: Final = HEAD + b"workloads:\n  web: {match: {unit: web.service}}\n  api: {match: {unit: api.service}}\n"
HONEST: Final = WORKLOADS + b"allow:\n  - {name: honest, from: web, to: api, ports: [443]}\n"
FORGED: Final = WORKLOADS + b"allow:\n  - {name: forged, from: api, to: web, ports: [443]}\n"
MEGABYTE: Final = 1 << 20

_ENVIRONMENT: Final = {
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{role}_{key}": "a@a" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
}


class Store:
    """A git repository that is written object by object. `branch` is where commits go, each upon the head of `main`."""

    def __init__(self, path: Path, branch: str = "main") -> None:
        self.path = path
        self.branch = branch
        if not (path / ".git").exists():
            path.mkdir(exist_ok=True)
            self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run git there; what it prints."""
        environment = {**_ENVIRONMENT, "PATH": os.environ["PATH"]}
        command = ["git", "-C", str(self.path), *arguments]
        return (
            subprocess.run(command, input=stdin, capture_output=True, env=environment, check=True)
            .stdout.decode()
            .strip()
        )

    def blob(self, content: bytes) -> str:
        """The id of a blob that is there from now on."""
        return self.git("hash-object", "-w", "--stdin", stdin=content)

    def tree(self, *entries: tuple[str, bytes, str]) -> str:
        """A tree of modes, names and ids, bytes and all."""
        listing = b"".join(
            mode.encode() + b" " + name + b"\0" + bytes.fromhex(number) for mode, name, number in entries
        )
        return self.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=listing)

    def commit(self, *entries: tuple[str, bytes, str]) -> str:
        """Make a tree the head of the branch; the commit's id."""
        parent = self.git("for-each-ref", "--format=%(objectname)", "refs/heads/main")
        more = ("-p", parent) if parent else ()
        commit = self.git("commit-tree", "-m", "crafted", *more, self.tree(*entries))
        self.git("update-ref", f"refs/heads/{self.branch}", commit)
        return commit

    def files(self, files: Mapping[bytes, bytes]) -> str:
        """Commit files of the top directory, with a plain `bulkhead.yaml` unless one is among them."""
        contents = {b"bulkhead.yaml": REPOSITORY, **files}
        return self.commit(*(("100644", name, self.blob(content)) for name, content in sorted(contents.items())))

    def beside(self, *entries: tuple[str, bytes, str]) -> str:
        """Commit entries beside a policy that would be good without them."""
        good = ((b"bulkhead.yaml", REPOSITORY), (b"t.yaml", HONEST))
        return self.commit(*(("100644", name, self.blob(content)) for name, content in good), *entries)

    def loose(self, number: str) -> Path:
        """Where an object is stored."""
        return self.path / ".git" / "objects" / number[:2] / number[2:]


@dataclass(frozen=True, slots=True)
class Hostile:
    """A repository that must be refused."""

    build: Callable[[Store], object]
    """Makes the branch of a repository the hostile commit."""
    says: str
    """The code of the refusal, or words of it where there is no policy to find fault with."""
    cpu_s: float = 5.0
    """Most processor time that refusing may take."""
    memory_bytes: int = 1 << 30


def _text(content: bytes, says: str) -> Hostile:
    return Hostile(lambda store: store.files({b"t.yaml": content}), says)


def _listed(key: bytes, items: bytes) -> bytes:
    return WORKLOADS + b"allow:\n  - {name: r, from: web, to: api, " + key + b": [" + items + b"]}\n"


def _alias_bomb() -> bytes:
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)]
    return HEAD + b"\n".join(lines) + b"\n"


def _outside(store: Store, mode: str, name: bytes, content: bytes = b"/etc/passwd") -> str:
    return store.beside((mode, name, store.blob(content)))


def _climbing(store: Store, name: bytes) -> str:
    inner = store.tree(("100644", b"t.yaml", store.blob(HONEST)))
    return store.beside(("40000", name, inner))


def _submodule(store: Store) -> str:
    return store.beside(("160000", b"vendor", "0123456789" * 4))


def _many_files(store: Store) -> str:
    number = store.blob(HEAD)
    return store.beside(*(("100644", b"z%05d.yaml" % n, number) for n in range(10_001)))


def _many_bytes(store: Store) -> str:
    number = store.blob(b"#" * MEGABYTE)
    return store.beside(*(("100644", b"z%02d.yaml" % n, number) for n in range(65)))


def _many_rules(store: Store) -> str:
    files = {}
    for number in range(13):
        rules = b"".join(b"- {name: r%d, from: any, to: any, ports: [1]}\n" % n for n in range(15_500))
        files[b"z%02d.yaml" % number] = HEAD.replace(b"name: t", b"name: z%d" % number) + b"allow:\n" + rules
    return store.files(files)


def _many_entries() -> bytes:
    peers = b"".join(b"  w%d: {match: {unit: w%d.service}}\n" % (n, n) for n in range(2000))
    rule = b"allow:\n  - {name: r, from: any, to: any, ports: [any]}\n"
    return HEAD + b"workloads:\n" + peers + rule


def _many_prefixes(store: Store) -> str:
    files = {}
    for part in range(5):
        cidr = b", ".join(b"10.%d.%d.%d/32" % (part, n >> 8 & 255, n & 255) for n in range(40_100))
        head = HEAD.replace(b"name: t", b"name: z%d" % part)
        files[b"z%d.yaml" % part] = head + b"externals:\n  net: {cidr: [" + cidr + b"]}\n"
    return store.files(files)


def _without(store: Store, which: str) -> None:
    """A commit of which one object is missing."""
    commit = store.files({b"t.yaml": HONEST})
    store.loose(store.git("rev-parse", f"{commit}{which}")).unlink()


def _changed(store: Store, content: bytes) -> None:
    """A blob whose stored bytes are others than its id stands for."""
    commit = store.files({b"t.yaml": HONEST})
    loose = store.loose(store.git("rev-parse", f"{commit}:t.yaml"))
    loose.chmod(0o600)
    loose.write_bytes(content)


def _unborn(store: Store) -> None:
    """No commit at all."""


_CLUSTER_POLICY = b"""\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: net}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{"""

HOSTILE: Final[dict[str, Hostile]] = {
    # Text
    "an alias bomb": _text(_alias_bomb(), "BH0104"),
    "aliases without end": _text(HEAD + b"workloads:\n  web: {match: {unit: *" + b"a" * 1000 + b"}}\n", "BH0103"),
    "an alias to itself": _text(HEAD + b"workloads: &a {web: *a}\n", "BH0104"),
    "a merge": _text(HEAD + b"workloads:\n  web:\n    <<: {}\n    match: {unit: a.service}\n", "BH0106"),
    "deep flow": _text(HEAD + b"workloads: " + b"[" * 500_000, "BH0109"),
    "deep braces": _text(HEAD + b"workloads: " + b"{" * 500_000, "BH0109"),
    "deep blocks": _text(HEAD + b"allow:\n" + b"- " * 250_000 + b"a\n", "BH0109"),
    "deep mappings": _text(HEAD + b"".join(b" " * n + b"a:\n" for n in range(1000)), "BH0109"),
    "deep keys": _text(HEAD + b"? " * 250_000 + b"a\n", "BH0109"),
    "an object tag": _text(HEAD + b'tests: !!python/object/apply:os.system ["touch /tmp/owned"]\n', "BH0105"),
    "a local tag": _text(HEAD + b"tests: !include /etc/passwd\n", "BH0105"),
    "a tag directive": _text(b"%TAG ! tag:example.org,2000:\n---\n" + HEAD, "BH0105"),
    "bytes that are no text": _text(HEAD + b"# \xff\xfe\n", "BH0102"),
    "UTF-16": _text(HONEST.decode().encode("utf-16"), "BH0102"),
    "surrogates": _text(HEAD + b"# \xed\xa0\x80\n", "BH0102"),
    "a NUL": _text(HEAD + b"# a\0b\n", "BH0110"),
    "an escape sequence": _text(HEAD + b"# \x1b[2J\n", "BH0110"),
    "text that turns around": _text(HEAD + "# \u202e\n".encode(), "BH0110"),
    "a byte order mark within": _text(HEAD + "# \ufeff\n".encode(), "BH0110"),
    "a carriage return alone": _text(HEAD + b"# allow:\rallow: []\n", "BH0110"),
    "a line separator": _text(HEAD + "# a\u2028b\n".encode(), "BH0110"),
    "a duplicate key": _text(HONEST + b"allow: []\n", "BH0107"),
    "many duplicate keys": _text(HEAD + b"workloads:\n" + b"  web: {}\n" * 90_000, "BH0107"),
    "a huge scalar": _text(HEAD.replace(b"name: t", b"name: " + b"t" * 1_000_000), "BH0301"),
    "a huge key": _text(HEAD + b'"' + b"k" * 900_000 + b'": 1\n', "BH0101"),
    "a long line of nothing": _text(HEAD + b"allow: [" + b"1," * 400_000 + b"]\n", "BH0207"),
    "many unknown keys": _text(HEAD + b"".join(b"k%d: 1\n" % n for n in range(90_000)), "BH0205"),
    "a list as a key": _text(HEAD + b"? [web]\n: {}\n", "BH0108"),
    "an unclosed quote": _text(HEAD + b'tests: "' + b"a\n" * 400_000, "BH0101"),
    # Values
    "a number beyond bounds": _text(_listed(b"ports", b"1e999"), "BH0111"),
    "an infinite port": _text(_listed(b"ports", b".inf"), "BH0111"),
    "an endless port": _text(_listed(b"ports", b"9" * 900_000), "BH0302"),
    "a hexadecimal port": _text(_listed(b"ports", b"0x1bb"), "BH0111"),
    "a port in other digits": _text(_listed(b"ports", "\uff14\uff14\uff13".encode()), "BH0302"),
    "a name that looks like another": _text(
        HEAD + "workloads:\n  w\u0435b: {match: {unit: a.service}}\n".encode(), "BH0301"
    ),
    "a peer that looks like another": _text(HONEST.replace(b"to: api", "to: \u0430pi".encode()), "BH0301"),
    "a year that does not exist": _text(
        WORKLOADS + b"exceptions:\n  - {name: e, from: web, to: api, ports: [1], "
        b"expires: 9999-99-99T99:99:99Z, owner: a, ticket: b}\n",
        "BH0307",
    ),
    "a field that cannot be enforced": _text(
        HEAD + b"allow:\n  - {name: r, from: any, to: any, ports: [1/udp], l7: {sni: [a.example]}}\n", "BH0511"
    ),
    "a dialect field that cannot be enforced": _text(_CLUSTER_POLICY + b"domainNames: [example.com]}]}]}\n", "BH1214"),
    "a dialect field that nobody knows": _text(_CLUSTER_POLICY + b"domains: [example.com]}]}]}\n", "BH0205"),
    # Size
    "a file of 100 MB": Hostile(
        lambda store: store.beside(("100644", b"z.yaml", store.blob(bytes(100 << 20)))), "BH0803"
    ),
    "too many files": Hostile(_many_files, "BH0804"),
    "too many bytes": Hostile(_many_bytes, "BH0804"),
    "too many rules": Hostile(_many_rules, "BH0702", cpu_s=40.0, memory_bytes=2 << 30),
    "more entries than the maps hold": _text(_many_entries(), "BH0701"),
    "more prefixes than the maps hold": Hostile(_many_prefixes, "BH0701", cpu_s=15.0),
    # Trees
    "a symbolic link": Hostile(lambda store: _outside(store, "120000", b"z.yaml"), "BH0801"),
    "a link to a directory": Hostile(lambda store: _outside(store, "120000", b"more", b"../../etc"), "BH0801"),
    "a link of another name": Hostile(lambda store: _outside(store, "120000", b"README"), "BH0801"),
    "a submodule": Hostile(_submodule, "BH0801"),
    "a climbing path": Hostile(lambda store: _climbing(store, b".."), "BH0802"),
    "a path to itself": Hostile(lambda store: _climbing(store, b"."), "BH0802"),
    "an absolute path": Hostile(lambda store: _outside(store, "100644", b"/etc/z.yaml"), "BH0802"),
    "a path with a slash": Hostile(lambda store: _outside(store, "100644", b"a/../../z.yaml"), "BH0802"),
    "a directory called .git": Hostile(lambda store: _climbing(store, b".git"), "BH0802"),
    "a directory called .GIT": Hostile(lambda store: _climbing(store, b".GIT"), "BH0802"),
    "a name that is no text": Hostile(lambda store: _outside(store, "100644", b"\xff.yaml"), "BH0802"),
    "a name with a line end": Hostile(lambda store: _outside(store, "100644", b"z\n.yaml"), "BH0802"),
    "a name that turns around": Hostile(lambda store: _outside(store, "100644", "\u202ez.yaml".encode()), "BH0802"),
    "a file twice": Hostile(lambda store: _outside(store, "100644", b"t.yaml", FORGED), "BH0802"),
    "a file in another case": Hostile(lambda store: _outside(store, "100644", b"T.yaml", FORGED), "BH0805"),
    "an empty commit": Hostile(lambda store: store.commit(), "BH0201"),
    "no repository file": Hostile(lambda store: store.commit(("100644", b"t.yaml", store.blob(HONEST))), "BH0201"),
    # Objects
    "no commit at all": Hostile(_unborn, "names no commit"),
    "a missing blob": Hostile(lambda store: _without(store, ":t.yaml"), "missing"),
    "a missing tree": Hostile(lambda store: _without(store, "^{tree}"), "ls-tree failed"),
    "a missing commit": Hostile(lambda store: _without(store, ""), "names no commit"),
    "a corrupt blob": Hostile(lambda store: _changed(store, b"\0" * 100), "missing"),
    "a forged blob": Hostile(
        lambda store: _changed(store, zlib.compress(b"blob %d\0" % len(FORGED) + FORGED)), "BH0806"
    ),
    "a blob that unpacks to a gigabyte": Hostile(
        lambda store: _changed(store, zlib.compress(b"blob 1073741824\0" + bytes(256 << 20))), "BH0803"
    ),
}
"""What must be refused, by what it is."""
