"""Requests through a real Envoy, each judged by the real process: decisions, loops, crashes, and nobody there."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import envoy
import pytest

from bulkhead.daemon.rego import RegoProcess
from bulkhead.errors import Loc
from bulkhead.policy.rego_modules import RegoModule

ENVOY = Path(envoy.__file__).parent / "_bin" / "envoy"
WAIT_S = 20.0
T = TypeVar("T")

ORDERS = """package shop.orders
import rego.v1

default allow := false

allow if {
    input.attributes.request.http.method == "GET"
    input.parsed_path == ["v1", "orders"]
}
"""
USERS = """package shop.users

allow := {"allowed": true, "headers": {"x-user": "ann"}, "response_headers_to_add": {"x-judged": "yes"},
    "query_parameters_to_set": {"as": "ann"}, "query_parameters_to_remove": ["as_admin"]} if
    input.attributes.request.http.headers.token == "good"

allow := {"allowed": false, "http_status": 302, "headers": {"location": "/login"}, "body": "who are you"} if
    not input.attributes.request.http.headers.token == "good"
"""
LOOP = """package bad.loop
allow if {
    some i in numbers.range(1, 30000)
    some j in numbers.range(1, 30000)
    i * j < 0
}
"""
BAD = {
    "bad.missing": ("allow if not nope.f(1)", "error"),
    "bad.divide": ("allow if 1 / 0 == 1", "error"),
    "bad.deep": ("allow if f(1)\nf(x) := f(x)", "crashed"),
    "bad.memory": ("allow if count(numbers.range(1, 1000000000)) > 1", "crashed"),
    "bad.silent": ("allow if false", "undefined"),
    "bad.nothing": ("permit := true", "undefined"),
    "bad.text": ('allow := "true"', "decision"),
    "bad.header": ('allow := {"allowed": true, "headers": {":path": "/admin"}}', "decision"),
}


def module(path: str, text: str) -> RegoModule:
    return RegoModule(path, text, Loc(path, 1))


MODULES = (
    module("orders.rego", ORDERS),
    module("users.rego", USERS),
    module("loop.rego", LOOP),
    *(module(f"{name}.rego", f"package {name}\n{text}\n") for name, (text, _) in BAD.items()),
)


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: str


class Site:
    """A node's Envoy that asks the Rego process about each request: the virtual host is the package."""

    def __init__(self, directory: Path, packages: tuple[str, ...]) -> None:
        self.rego = RegoProcess(directory / "rego.sock", os.getuid())
        self.changed = threading.Condition()
        self.rego.on_change = self._change
        self._socket = directory / "envoy.sock"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        config = directory / "envoy.json"
        config.write_text(json.dumps(bootstrap(self._socket, directory / "rego.sock", packages)))
        command = [str(ENVOY), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "info"]
        self._envoy = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._envoy.stderr is not None
        assert any(b"starting main dispatch loop" in line for line in self._envoy.stderr)

    def _change(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait(self, commit: str) -> None:
        """Until the modules of a commit are in force; an empty one: until none are."""
        self.wait_for(lambda: self.rego.commit == commit)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the process has said what makes it true."""
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S), self.rego.status()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the agent's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def publish(self, commit: str, *modules: RegoModule) -> None:
        """As a commit comes into force."""
        self._loop.call_soon_threadsafe(self.rego.publish, commit, modules)
        self.wait(commit)

    def ask(self, package: str, path: str = "/v1/orders", method: str = "GET", **headers: str) -> Reply:
        """One request."""
        connection = http.client.HTTPConnection(package)
        connection.sock = socket.socket(socket.AF_UNIX)
        with connection.sock:
            connection.sock.settimeout(WAIT_S)
            connection.sock.connect(str(self._socket))
            connection.request(method, path, headers=headers)
            reply = connection.getresponse()
            return Reply(reply.status, dict(reply.getheaders()), reply.read().decode())

    def outcomes(self, package: str) -> Counter[str]:
        """What came of a package's requests so far, as the process says; it says so within a second."""
        return Counter({outcome: count for name, outcome, count in self.rego.status()["decisions"] if name == package})

    def close(self) -> None:
        self._envoy.kill()
        self._envoy.wait()
        assert self._envoy.stderr is not None
        self._envoy.stderr.close()
        self.run(self.rego.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def bootstrap(listening: Path, rego: Path, packages: tuple[str, ...]) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions"
    pipe = {"endpoint": {"address": {"pipe": {"path": str(rego)}}}}
    http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    cluster = {
        "name": "rego",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{kind}.upstreams.http.v3.HttpProtocolOptions",
                **http2,
            }
        },
        "load_assignment": {"cluster_name": "rego", "endpoints": [{"lb_endpoints": [pipe]}]},
    }
    hosts = [
        {
            "name": package,
            "domains": [package],
            "routes": [
                {
                    "match": {"prefix": "/"},
                    "direct_response": {"status": 200, "body": {"inline_string": "served"}},
                    "response_headers_to_add": [
                        {"header": {"key": "saw-user", "value": "%REQ(x-user)%"}},
                        {"header": {"key": "saw-path", "value": "%REQ(:path)%"}},
                    ],
                }
            ],
            "typed_per_filter_config": {
                "rego": {
                    "@type": f"{kind}.filters.http.ext_authz.v3.ExtAuthzPerRoute",
                    "check_settings": {"context_extensions": {"package": package}},
                }
            },
        }
        for package in packages
    ]
    ask = {
        "@type": f"{kind}.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "rego"}, "timeout": "5s"},
        "status_on_error": {"code": "Forbidden"},
        "with_request_body": {"max_request_bytes": 8192, "allow_partial_message": True},
    }
    manager = {
        "@type": f"{kind}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "t",
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [
            {"name": "rego", "typed_config": ask},
            {"name": "router", "typed_config": {"@type": f"{kind}.filters.http.router.v3.Router"}},
        ],
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "l", "address": {"pipe": {"path": str(listening)}}, "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("rego"), ("shop.orders", "shop.users", "bad.loop", "bad.nowhere", *BAD))
    try:
        made.publish("c1", *MODULES)
        yield made
    finally:
        made.close()


@pytest.fixture
def judged(site: Site) -> Site:
    """With the modules above in force, whatever a test did before."""
    if site.rego.commit != "c1":
        site.publish("c1", *MODULES)
    return site


@pytest.mark.parametrize(
    "path, method, status",
    [
        ("/v1/orders", "GET", 200),
        ("/v1/orders?x=1", "GET", 200),
        ("/v1/orders", "POST", 403),
        ("/v1/orders/", "GET", 403),
        ("/v1%2Forders", "GET", 200),
        ("/v1/orders%zz", "GET", 403),
    ],
)
def test_rules_decide_by_method_and_path(judged: Site, path: str, method: str, status: int) -> None:
    assert judged.ask("shop.orders", path, method).status == status


def test_an_object_sets_headers_and_parameters_over_what_the_client_sent(judged: Site) -> None:
    headers = {"token": "good", "x-user": "root"}
    reply = judged.ask("shop.users", "/a?as_admin=1&b=2", **headers)
    assert (reply.status, reply.body) == (200, "served")
    assert (reply.headers["saw-user"], reply.headers["x-judged"]) == ("ann", "yes")
    assert reply.headers["saw-path"] == "/a?as=ann&b=2"


def test_an_object_may_refuse_with_a_status_a_header_and_a_body(judged: Site) -> None:
    reply = judged.ask("shop.users")
    assert (reply.status, reply.headers["location"], reply.body) == (302, "/login", "who are you")


@pytest.mark.parametrize("package", [*BAD, "bad.loop", "bad.nowhere"])
def test_what_comes_to_no_decision_is_refused(judged: Site, package: str) -> None:
    assert judged.ask(package).status == 403
    assert judged.ask("shop.orders").status == 200


def test_rules_that_loop_delay_others_by_no_more_than_their_turn(judged: Site) -> None:
    """Without turns, each request for orders would wait for all requests of the loop before it."""
    stop = threading.Event()

    def insist() -> set[int]:
        found = set()
        while not stop.is_set():
            found.add(judged.ask("bad.loop").status)
        return found

    with ThreadPoolExecutor(6) as pool:
        looping = [pool.submit(insist) for _ in range(6)]
        served = Counter(judged.ask("shop.orders").status for _ in range(40))
        stop.set()
        assert set().union(*(one.result() for one in looping)) == {403}
    assert served == {200: 40}


def test_nothing_is_allowed_while_the_process_is_gone_and_it_comes_back(judged: Site) -> None:
    gone = judged.rego.pid
    os.kill(gone, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(judged.ask, "shop.orders")
        os.kill(gone, signal.SIGKILL)
        judged.wait("")
        assert asked.result().status == 403
    judged.wait("c1")
    assert judged.rego.pid != gone
    assert judged.ask("shop.orders").status == 200


def test_modules_of_another_commit_take_the_place_of_all_before(judged: Site) -> None:
    judged.publish("c2", module("o.rego", "package shop.orders\nallow := true\n"))
    assert judged.rego.packages == ("shop.orders",)
    assert judged.ask("shop.orders", method="POST").status == 200
    assert judged.ask("shop.users", token="good").status == 403
    judged.publish("c3")
    assert judged.ask("shop.orders").status == 403


def test_modules_that_cannot_be_read_leave_nothing_in_force(judged: Site) -> None:
    judged._loop.call_soon_threadsafe(judged.rego.publish, "c4", [module("x.rego", "package x\nallow if {")])
    judged.wait("")
    assert "x.rego:2:11: expecting expression" in judged.rego.error
    assert judged.ask("shop.orders").status == 403


def test_a_socket_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    rego = RegoProcess(tmp_path / "missing" / "rego.sock", os.getuid())
    rego.publish("c1", MODULES)
    assert (rego.pid, rego.error) == (
        0,
        f"no socket for Envoy at `{tmp_path}/missing/rego.sock`: No such file or directory",
    )


def test_status_tells_what_came_of_requests_by_package_and_reason(judged: Site) -> None:
    os.kill(judged.rego.pid, signal.SIGKILL)
    judged.wait("")
    judged.wait("c1")
    for package, _ in BAD.items():
        judged.ask(package)
    judged.ask("bad.loop")
    judged.ask("shop.orders")
    wanted = {name: {outcome: 1} for name, (_, outcome) in BAD.items()}
    wanted |= {"bad.loop": {"timeout": 1}, "shop.orders": {"allowed": 1}}
    judged.wait_for(lambda: {name: dict(judged.outcomes(name)) for name in wanted} == wanted)
    status = judged.rego.status()
    assert (status["running"], status["commit"], status["error"]) == (True, "c1", "")
    assert status["latency"]["bad.loop"]["p50_ms"] >= 100
    assert status["ended"] == 3
