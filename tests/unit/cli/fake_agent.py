"""An agent that says what a test wants, through the real control socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bulkhead.control.peers import Peer
from bulkhead.control.server import Server

Json = dict[str, Any]
Ran = Callable[..., tuple[int, str, str]]
"""A command line that was run against an agent; see conftest.py."""
CHANGES = ("reload", "quarantine", "release", "rollback")


class FakeAgent:
    """Answers from `answers`, streams `watched`, and keeps what it was asked."""

    def __init__(self, answers: Mapping[str, Any], watched: tuple[Json, ...] = ()) -> None:
        self.answers = answers
        self.watched = watched
        self.asked: list[tuple[str, Json]] = []

    def handler(self, op: str) -> Callable[[Json], Any]:
        async def handle(args: Json) -> Any:
            self.asked.append((op, args))
            return self.answers[op]

        return handle

    def change_handler(self, op: str) -> Callable[[Json, Peer], Any]:
        handle = self.handler(op)
        return lambda args, _: handle(args)

    async def watch(self, args: Json) -> AsyncGenerator[Any, None]:
        self.asked.append(("watch", args))
        for one in self.watched:
            yield one

    @contextmanager
    def running(self, run_dir: Path) -> Iterator[None]:
        """Serves from a thread of its own."""
        loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
        handlers = {op: self.handler(op) for op in self.answers if op not in CHANGES}
        changes = {op: self.change_handler(op) for op in self.answers if op in CHANGES}

        async def main() -> None:
            async with Server(run_dir / "control.sock", handlers, changes, {"watch": self.watch}):
                started.set()
                await stop.wait()

        def run() -> None:
            loop.run_until_complete(main())
            loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(5)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(5)


LOST = {"event-ring": 0, "event-rate": 0, "edge": 0, "lifecycle": 0}


def record(now: float, **changed: Any) -> Json:
    values: Json = {
        "verdict": "deny",
        "reason": "policy",
        "direction": "egress",
        "source": "shop/web",
        "destination": "shop/db",
        "source_identity": 300,
        "destination_identity": 301,
        "source_spiffe_id": "spiffe://example.org/shop/web",
        "destination_spiffe_id": "spiffe://example.org/shop/db",
        "protocol": "tcp",
        "port": 5432,
        "count": 41,
        "first_seen": now - 5 * 86400 - 60,
        "last_seen": now - 3 * 3600 - 60,
        "source_address": "10.0.0.1",
        "source_port": 40000,
        "destination_address": "10.0.0.2",
        "pid": 8123,
        "comm": "nginx",
        "exe": "/usr/sbin/nginx",
        "uid": 33,
        "unit": "nginx.service",
        "cgroup": "/system.slice/nginx.service",
        "peer_pid": 0,
        "rule_id": 0,
        "rule": "",
        "rule_place": "",
        "generation": 7,
        "commit": "3f2c1ab",
        "hook": "tc",
        "cut": False,
    }
    return values | changed


def outside(now: float, **changed: Any) -> Json:
    """To an address that is no workload's."""
    more = {"destination": "world", "destination_spiffe_id": "", "destination_address": "10.0.2.7", "port": 8443}
    return record(now, **more, verdict="would-deny", count=212, **changed)


def status(now: float, **changed: Any) -> Json:
    values: Json = {
        "version": "0.1.0",
        "host": "web-1",
        "pid": 812,
        "started": now - 3 * 86400 - 60,
        "repository": "/etc/bulkhead/policy",
        "ref": "HEAD",
        "commit": "3f2c1ab" + "0" * 33,
        "generation": 7,
        "policy": {"ok": True, "error": None, "error_since": None, "loaded": now - 2 * 3600 - 60},
        "host_mode": "observe",
        "workloads": {"observe": 1, "enforce": 3},
        "kernel": {
            "mechanism": "tcx",
            "devices": [
                {"name": "lo", "ingress": True, "egress": True},
                {"name": "eth0", "ingress": True, "egress": True},
            ],
            "cgroup": "/sys/fs/cgroup",
            "pins": "/sys/fs/bpf/bulkhead",
        },
        "attested": {"cgroups": 62, "executables": 4, "ambiguous": []},
        "totals": {"deny": 23, "would-deny": 7, "allow": 1201},
        "lost": LOST,
        "maps": {"policy": {"entries": 10, "max": 100}, "edges": {"entries": 4, "max": 4096}},
        "adoption": "31 sockets adopted",
        "git_equals_kernel": True,
    }
    return values | changed


def rules(now: float, **changed: Any) -> Json:
    def rule(number: int, name: str, hits: int, last: float | None, expires: float | None = None) -> Json:
        return {
            "rule_id": number,
            "name": name,
            "kind": "exception" if expires else "allow",
            "from": "web",
            "to": "api",
            "ports": "8443",
            "hits": hits,
            "last_hit": last,
            "source": f"shop.yaml:{20 + number}@3f2c1ab",
            "entries": 2,
            "expires": expires,
        }

    values: Json = {
        "commit": "3f2c1ab" + "0" * 33,
        "generation": 7,
        "read_back": {"kernel": 12, "expected": 12, "match": True},
        "rules": [
            rule(1, "shop/web-api", 91234, now - 3 * 86400 - 60),
            rule(2, "shop/backup", 0, None),
            rule(3, "shop/debug", 4, None, now - 60),
        ],
    }
    return values | changed


def answer(word: str = "deny") -> Json:
    rule = {
        "rule_id": 2,
        "name": "shop/api-db",
        "kind": "allow",
        "from": "api",
        "to": "db",
        "ports": "5432",
        "source": "shop.yaml:22@3f2c1ab",
        "expires": None,
        "owner": "",
        "ticket": "",
        "why": "",
    }
    refused = word != "allow"
    end = {
        "judged": True,
        "mode": "enforce",
        "verdict": word,
        "reason": "policy" if refused else "none",
        "because": "default deny; no rule matched" if refused else "allowed by shop/api-db",
        "advice": "add a rule" if refused else "",
        "rule": None if refused else rule,
        "nearest": {"rule": rule, "failed": ["from: api, not web"]} if refused else None,
        "note": "",
    }
    return {
        "from": "shop/web",
        "to": "shop/db",
        "port": 5432,
        "protocol": "tcp",
        "verdict": word,
        "because": end["because"],
        "ends": [
            {**end, "direction": "egress", "name": "shop/web"},
            {**end, "direction": "ingress", "name": "shop/db"},
        ],
        "commit": "3f2c1ab" + "0" * 33,
        "host": "web-1",
    }


def why(now: float, **changed: Any) -> Json:
    explanation = {
        "verdict": "deny",
        "count": 41,
        "first_seen": now - 5 * 86400 - 60,
        "last_seen": now - 3 * 3600 - 60,
        "source": "web  spiffe://example.org/shop/web  pid 8123  /usr/sbin/nginx  nginx.service  uid 33",
        "destination": "db:5432  spiffe://example.org/shop/db",
        "where": "egress at web on web-1; db never saw it",
        "because": "default deny; no rule matched",
        "rule": "",
        "nearest": "shop/api-db  shop.yaml:22@3f2c1ab  from: api, not web",
        "since": "3f2c1ab  generation 7",
        "advice": "if it should be allowed, add a rule to the policy and commit it",
        "data": "complete: 0 events lost",
        "complete": True,
    }
    values = {
        "answer": answer(),
        "records": [record(now)],
        "explanation": explanation,
        "complete": True,
        "data": "complete: 0 events lost",
        "mismatch": "",
    }
    return values | changed


WORKLOADS: Json = {
    "workloads": [
        {
            "name": "shop/web",
            "identity": 300,
            "spiffe_id": "spiffe://example.org/shop/web",
            "mode": "enforce",
            "labels": {"tier": "web"},
            "source": "shop.yaml:7@3f2c1ab",
            "endpoints": [{"cgroup": "/system.slice/nginx.service", "unit": "nginx.service", "processes": 5}],
        },
        {
            "name": "shop/batch",
            "identity": 301,
            "spiffe_id": "spiffe://example.org/shop/batch",
            "mode": "observe",
            "labels": {},
            "source": "shop.yaml:9@3f2c1ab",
            "endpoints": [],
        },
    ],
    "host": {"endpoints": 61},
    "ambiguous": [{"cgroup": "/x", "workloads": ["shop/a", "shop/b"]}],
}
