"""Nodes and callers that mean harm: each is refused, counted by a reason, and found where one would ask."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bulkhead.proxy.statistics import STATISTICS_PATH, statistics
from lab.fleet import POLICY_FILE, Fleet
from lab.hbone import Answer, StolenAuthority, StolenNode, administration
from lab.meshed import PLAIN, RULES, WORKLOADS, curl, mesh, policy, proxies_serve, requests
from lab.policies import repository
from lab.proxies import SpiffeAuthority
from lab.puppet import Puppet, PuppetError
from lab.wired import until

WEB, APP, OPS = (f"spiffe://example.org/t/{name}" for name in ("web", "app", "ops"))
PORT, JUDGED_PORT = 8080, 8090
L7 = f"""  - name: api
    from: web
    to: app
    ports: [{JUDGED_PORT}]
    l7: {{http: [{{methods: [GET, POST], path: "/v1/*"}}]}}
  - name: health
    from: ops
    to: app
    ports: [{JUDGED_PORT}]
    l7: {{http: [{{methods: [GET], path: /health}}]}}
"""
POLICY = policy(*RULES[:2], workloads=WORKLOADS, externals={"mallory": "{cidr: [10.78.4.0/24]}"}, more=L7 + PLAIN)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.fixture(scope="module")
def stolen(started: Fleet, directory: Path) -> Iterator[StolenNode]:
    """Somebody on the host web who may open tunnels."""
    node = StolenNode(started["web"], directory)
    yield node
    node.end()


@pytest.fixture(scope="module")
def anchor(started: Fleet) -> StolenAuthority:
    """The authority of that host."""
    return StolenAuthority(started.authority("web"))


@pytest.fixture(scope="module")
def application(started: Fleet) -> Iterator[Puppet]:
    """On the host app, which keeps every request that it got."""
    one = started["app"].puppet("app")
    one.do(f"import sys; sys.path[:] = {sys.path!r}")
    one.do("from lab import recorder")
    one.do(f"recorder.serve({PORT})")
    one.do(f"recorder.serve({JUDGED_PORT})")
    yield one
    one.end()


@pytest.fixture(autouse=True)
def nothing_before(fleet: Fleet, application: Puppet) -> None:
    application.do("recorder.requests()")


GET = b"GET /v1/items HTTP/1.1\r\nHost: app\r\n\r\n"


def connect(authority: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [(":method", "CONNECT"), (":authority", authority), *more]


# Who may open a tunnel


@dataclass(frozen=True, slots=True)
class Case:
    """A certificate that opens nothing, and what is told of it."""

    uris: tuple[str, ...] = (WEB,)
    failure: str = ""
    """Part of why the handshake failed; empty: it succeeds, and the CONNECT gets 403."""
    options: dict[str, object] = field(default_factory=dict)
    """Of the certificate."""
    authority: str = "stolen"
    client: dict[str, object] = field(default_factory=dict)
    server_name: str = f"{PORT}.hbone.bulkhead"


CERTIFICATES = {
    "no-certificate": Case(failure="PEER_DID_NOT_RETURN_A_CERTIFICATE", authority="none"),
    "foreign-authority": Case(failure="unable_to_get_local_issuer", authority="foreign"),
    "right-path-in-the-wrong-trust-domain": Case(("spiffe://evil.org/t/web",), "no_trust_bundle_store"),
    "expired": Case(failure="certificate_has_expired", options={"begins": -7200, "lasts": -60}),
    "not-yet-valid": Case(failure="certificate_is_not_yet_valid", options={"begins": 600, "lasts": 3600}),
    "leaf-that-is-an-authority": Case(failure="cert_precheck", options={"ca": True}),
    "no-name": Case((), "no_trust_bundle_store"),
    "two-names": Case(("spiffe://example.org/t/x", WEB)),
    "two-names-of-two-trust-domains": Case(("spiffe://evil.org/t/web", WEB), "no_trust_bundle_store"),
    "nul-in-the-name": Case((f"{WEB}\0.evil.org",)),
    "comma-in-the-name": Case((f"{WEB},{WEB}",)),
    "longer-name": Case((f"{WEB}/x",)),
    "of-a-workload-that-no-rule-allows": Case((OPS,)),
    "of-the-called-workload": Case((APP,)),
    "tls-1.2": Case(failure="UNSUPPORTED_PROTOCOL", client={"newest": "TLSv1_2"}),
    "no-alpn": Case(failure="NR", client={"alpn": ()}),
    "http-1.1": Case(failure="NR", client={"alpn": ("http/1.1",)}),
    "a-port-on-which-nobody-is-called": Case(failure="NR", server_name="9999.hbone.bulkhead"),
    "a-name-of-no-tunnel": Case(failure="NR", server_name="app.example.org"),
}


@pytest.mark.parametrize("case", CERTIFICATES.values(), ids=CERTIFICATES)
def test_who_is_not_the_named_caller_opens_no_tunnel(
    fleet: Fleet, stolen: StolenNode, anchor: StolenAuthority, application: Puppet, case: Case
) -> None:
    authorities = {"stolen": anchor, "foreign": SpiffeAuthority("example.org")}
    issuer = authorities.get(case.authority)
    svid = issuer.issue(*case.uris, **case.options) if issuer is not None else None  # type: ignore[arg-type]
    headers = connect(f"{fleet.address('app')}:{PORT}")
    got = stolen.attempt(fleet.address("app"), svid, headers, GET, case.server_name, **case.client)
    assert got.status == (0 if case.failure else 403), got
    assert application.do("recorder.requests()") == []
    told = record(fleet, got)
    if case.failure:
        why = f"{told['record']['failure']} {told['record']['flags']}"
        assert (told["verdict"], case.failure in why) == ("fail", True), told
    else:
        assert (told["verdict"], told["record"]["status"]) == ("deny", 403)
        assert told["record"]["caller"] == ",".join(case.uris)


def test_failed_handshakes_are_counted_by_reason(fleet: Fleet, stolen: StolenNode, anchor: StolenAuthority) -> None:
    there, before = fleet.address("app"), failures_by_now(fleet)
    headers, svid = connect(f"{there}:{PORT}"), anchor.issue(WEB)
    for given, client in (
        (None, {}),
        (anchor.issue("spiffe://evil.org/t/web"), {}),
        (anchor.issue(WEB, lasts=-60), {}),
        (svid, {"newest": "TLSv1_2"}),
        (svid, {"alpn": ()}),
    ):
        assert stolen.attempt(there, given, headers, GET, **client).status == 0
    wanted = Counter({"no-certificate": 1, "untrusted": 2, "protocol": 1, "no-workload": 1})
    until(lambda: failures(fleet) - before == wanted, f"{wanted} in the status")


def failures(fleet: Fleet) -> Counter[str]:
    """Handshakes that failed at app's proxy, by reason, as its agent says, which is a second behind."""
    return Counter(mesh(fleet["app"])["proxy"]["failures"])


def failures_by_now(fleet: Fleet) -> Counter[str]:
    """As the proxy itself says."""
    return statistics(administration(fleet["app"], STATISTICS_PATH)).failures


def record(fleet: Fleet, got: Answer) -> dict[str, Any]:
    """What app's agent tells of a conversation; of those with a tunnel in it, of the tunnel."""
    found: list[dict[str, Any]] = []

    def is_told() -> bool:
        latest = fleet["app"].call("requests", limit=20)["requests"]
        found[:] = [one for one in latest if one["record"]["remote"] == got.source]
        return bool(found)

    until(is_told, f"a record of {got}")
    return next((one for one in found if one["record"]["kind"] == "inbound"), found[0])


# What may be asked for


TARGET = "{app}:8080"
ASKED: dict[str, tuple[list[tuple[str, str]], tuple[int, ...]]] = {
    "redis-on-loopback": (connect("127.0.0.1:6379"), (403,)),
    "the-application-on-loopback": (connect(f"127.0.0.1:{PORT}"), (403,)),
    "a-host-s-name": (connect(f"localhost:{PORT}"), (403,)),
    "another-host": (connect("{db}:5432"), (403,)),
    "cloud-metadata": (connect("169.254.169.254:80"), (403,)),
    "a-port-that-no-rule-names": (connect("{app}:22"), (403,)),
    "a-port-of-another-caller": (connect("{app}:5432"), (403,)),
    "the-tunnel-s-own-port": (connect("{app}:15008"), (403,)),
    "an-address-in-another-spelling": (connect(f"010.78.2.2:{PORT}"), (403,)),
    "a-number-as-address": (connect(f"172884482:{PORT}"), (403,)),
    "a-mapped-address": (connect(f"[::ffff:10.78.2.2]:{PORT}"), (403,)),
    "no-port": (connect("{app}"), (403,)),
    "user-information": (connect("x@{app}:8080"), (400, 403, 0)),
    "get-in-place-of-connect": (
        [(":method", "GET"), (":scheme", "https"), (":path", "/v1/items"), (":authority", TARGET)],
        (403,),
    ),
    "extended-connect": (
        [*connect(TARGET), (":protocol", "websocket"), (":scheme", "https"), (":path", "/")],
        (0, 403),
    ),
    "two-authorities": ([*connect(TARGET), (":authority", "127.0.0.1:6379")], (0, 400)),
    "huge-header": (connect(TARGET, ("x", "y" * 12_000)), (0, 431)),
    "many-headers": (connect(TARGET, *((f"x-{number}", "y") for number in range(100))), (0, 431)),
    "line-break-in-a-header": (connect(TARGET, ("x", "y\r\nz: w")), (0, 400)),
    "nul-in-a-header": (connect(TARGET, ("x", "y\0z")), (0, 400)),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_stolen_node_gets_nothing_but_what_policy_names(
    fleet: Fleet, stolen: StolenNode, anchor: StolenAuthority, application: Puppet, name: str
) -> None:
    headers, statuses = ASKED[name]
    given = [(key, text.format(app=fleet.address("app"), db=fleet.address("db"))) for key, text in headers]
    got = stolen.attempt(fleet.address("app"), anchor.issue(WEB), given, GET)
    assert got.status in statuses, got
    told = record(fleet, got)
    assert b"ok" not in got.body
    assert told["verdict"] == ("deny" if told["record"]["status"] == 403 else "fail"), told
    assert application.do("recorder.requests()") == []


def test_what_is_no_tunnel_at_all_is_closed(fleet: Fleet, stolen: StolenNode, anchor: StolenAuthority) -> None:
    svid, there = anchor.issue(WEB), fleet.address("app")
    got = stolen.attempt(there, svid, [], raw=GET)
    assert (got.status, b"HTTP" in got.body, got.ended) == (0, False, "closed"), "HTTP/1.1 in TLS"
    got = stolen.attempt(there, None, [], raw=GET, plain=True)
    assert (got.body, got.ended != "silence") == (b"", True), "plaintext"


def test_a_stolen_authority_speaks_for_any_workload_of_the_trust_domain_and_for_no_longer_than_its_record_counts(
    fleet: Fleet, stolen: StolenNode, directory: Path, anchor: StolenAuthority, application: Puppet, puppets
) -> None:
    """Used at home, and from another node: neither its packets nor its certificates are believed any more."""
    thief, there = StolenNode(fleet["db"], directory), fleet.address("app")
    headers = connect(f"{there}:{PORT}")

    def ask(node: StolenNode, **more: str) -> int:
        return node.attempt(there, anchor.issue(WEB), headers, GET, **more).status

    assert ask(stolen, keep="kept") == ask(thief) == 200
    assert application.do("recorder.requests()") == ["GET /v1/items"] * 2
    before = failures_by_now(fleet)
    fleet.wait_for_commit(fleet.commit({"nodes.yaml": fleet.records({"web": {"revoked": True}})}))
    begun = time.monotonic()
    until(lambda: ask(stolen) == ask(thief) == 0, "nobody believes it")
    assert time.monotonic() - begun < 5
    assert stolen.again("kept", headers, GET).status == 0
    until(lambda: (failures(fleet) - before)["untrusted"] > 0, "counted")
    assert puppets("web").tcp(there, PORT) != "ok"
    fleet.wait_for_commit(fleet.commit({}))
    proxies_serve(fleet)
    until(lambda: ask(thief) == 200, "it is believed again")
    thief.end()


# Requests


def test_a_valid_svid_without_a_rule_for_the_request_gets_403_and_why_names_the_line(
    fleet: Fleet, application: Puppet
) -> None:
    status, body = curl(fleet["web"], "ops", f"http://{fleet.address('app')}:{JUDGED_PORT}/v1/items")
    reference = re.search(r"bulkhead why (\S+)", body)
    assert status == 403
    assert reference is not None, body
    until(
        lambda: bool(requests(fleet["app"], lambda one: one["record"]["reference"] == reference[1])),
        "the record of the request",
    )
    said = fleet["app"].bulkhead("why", reference[1]).stdout
    line = next(number for number, text in enumerate(POLICY.splitlines(), start=1) if "name: health" in text)
    assert (f"t.yaml:{line}" in said, OPS in said) == (True, True), said
    assert application.do("recorder.requests()") == []


HEAD = b"POST /v1/items HTTP/1.1\r\nHost: app\r\n"
SECRET = b"GET /secret HTTP/1.1\r\nHost: app\r\n\r\n"
CHUNKED = b"0\r\n\r\n" + SECRET
SMUGGLED = {
    "length-and-chunks": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks-and-length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n" + CHUNKED,
    "two-equal-lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n" + SECRET,
    "two-lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + SECRET,
    "a-list-of-lengths": HEAD + b"Content-Length: 0, 40\r\n\r\n" + SECRET,
    "signed-length": HEAD + b"Content-Length: +0\r\n\r\n" + SECRET,
    "negative-length": HEAD + b"Content-Length: -1\r\n\r\n" + SECRET,
    "hexadecimal-length": HEAD + b"Content-Length: 0x28\r\n\r\n" + SECRET,
    "length-beyond-64-bits": HEAD + b"Content-Length: 18446744073709551616\r\n\r\n" + SECRET,
    "blank-before-the-colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "tab-in-the-encoding": HEAD + b"Content-Length: 5\r\nTransfer-Encoding:\tchunked\r\n\r\n" + CHUNKED,
    "unknown-encoding": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "chunks-twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKED,
    "chunks-and-then-not": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "two-encodings": HEAD + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "encoding-behind-a-vertical-tab": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED,
    "folded-encoding": HEAD + b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKED,
    "chunk-size-beyond-64-bits": HEAD + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + SECRET,
    "chunk-extension": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0;a=\nb\r\n\r\n" + SECRET,
    "chunk-without-its-end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxGET /secret HTTP/1.1\r\n\r\n",
    "trailer-that-frames": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 9\r\n\r\n" + SECRET,
    "line-feeds-alone": b"GET /v1/items HTTP/1.1\nHost: app\n\n" + SECRET.replace(b"\r\n", b"\n"),
    "line-feed-in-a-header": b"GET /v1/items HTTP/1.1\r\nHost: app\nX: y\r\n\r\n" + SECRET,
    "carriage-return-in-a-header": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nX: y\rGET /secret HTTP/1.1\r\n\r\n",
    "nul-in-a-header": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nX: y\0z\r\n\r\n" + SECRET,
    "absolute-form": b"GET http://app/secret HTTP/1.1\r\nHost: app\r\n\r\n",
    "absolute-form-that-differs": b"GET http://app/secret HTTP/1.1\r\nHost: app/v1/items\r\n\r\n",
    "two-targets": b"GET /v1/items /secret HTTP/1.1\r\nHost: app\r\n\r\n",
    "two-versions": b"GET /v1/items HTTP/1.1 HTTP/1.1\r\nHost: app\r\n\r\n" + SECRET,
    "no-version": b"GET /secret\r\n\r\n",
    "no-host": b"GET /v1/items HTTP/1.1\r\n\r\n" + SECRET,
    "two-hosts": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n" + SECRET,
    "one-after-the-other": GET + SECRET,
    "empty-lines-before": b"\r\n\r\n" + GET + SECRET,
    "unknown-method": b"GETT /v1/items HTTP/1.1\r\nHost: app\r\n\r\n" + SECRET,
    "connect": b"CONNECT app:80 HTTP/1.1\r\nHost: app\r\n\r\n" + SECRET,
    "upgrade-to-http-2": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + SECRET,
    "upgrade-that-is-not-answered": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\n\r\n" + SECRET,
    "upgrade-to-tls": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n"
    + SECRET,
    "http-2-after-http-1": GET + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + SECRET,
    "body-of-a-get": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nContent-Length: 40\r\n\r\n" + SECRET.ljust(40),
    "expected-continue": HEAD + b"Expect: 100-continue\r\nContent-Length: 0\r\n\r\n" + SECRET,
    "connection-names-a-header": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nConnection: x-bulkhead-caller\r\n\r\n",
    "many-headers": b"GET /v1/items HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(300)) + b"\r\n" + SECRET,
    "huge-header": b"GET /v1/items HTTP/1.1\r\nHost: app\r\nX: " + b"y" * 70_000 + b"\r\n\r\n" + SECRET,
    "huge-target": b"GET /v1/" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: app\r\n\r\n" + SECRET,
}
ALLOWED = {"GET /v1/items", "POST /v1/items"}
SPEAK = """
def speak(address, port, data):
    import socket
    found = b''
    with socket.create_connection((address, port), timeout=5) as one:
        one.sendall(data)
        one.settimeout(0.3)
        try:
            while chunk := one.recv(65536):
                found += chunk
        except OSError:
            pass
    return found.decode('latin-1')
"""


@pytest.fixture(scope="module")
def caller(started: Fleet) -> Iterator[Puppet]:
    """The workload web, which says what it likes."""
    one = started["web"].puppet("web")
    one.do(SPEAK)
    yield one
    one.end()


@pytest.mark.parametrize("shape", SMUGGLED)
def test_no_shape_of_a_request_brings_another_one_past_the_policy(
    fleet: Fleet, application: Puppet, caller: Puppet, shape: str
) -> None:
    said = caller.speak(fleet.address("app"), JUDGED_PORT, SMUGGLED[shape])
    seen = application.do("recorder.requests()")
    assert set(seen) <= ALLOWED, said
    assert said.count("200 OK") == len(seen), said


def test_a_tunnel_that_a_stolen_node_opens_itself_leads_to_the_same_judgement(
    fleet: Fleet, stolen: StolenNode, anchor: StolenAuthority, application: Puppet
) -> None:
    there = fleet.address("app")
    headers, name = connect(f"{there}:{JUDGED_PORT}"), f"{JUDGED_PORT}.hbone.bulkhead"
    got = stolen.attempt(there, anchor.issue(WEB), headers, GET + SECRET, name, expect=b"403 Forbidden")
    assert (got.status, b"403 Forbidden" in got.body) == (200, True), got
    assert application.do("recorder.requests()") == ["GET /v1/items"]


# Rego that does not end

LOOP = """package bad.loop
allow if {
    some i in numbers.range(1, 30000)
    some j in numbers.range(1, 30000)
    i * j < 0
}
"""


@pytest.fixture
def with_a_loop(fleet: Fleet) -> Iterator[None]:
    text = POLICY.replace("path: /health}]}\n", "path: /health}]}\n    authz: {rego: bad.loop}\n")
    assert text != POLICY
    settings = {"bulkhead.yaml": repository(mtls="required")}
    fleet.wait_for_commit(fleet.commit({**settings, POLICY_FILE: text, "loop.rego": LOOP}))
    proxies_serve(fleet)
    until(lambda: mesh(fleet["app"])["rego"]["commit"] == fleet["app"].call("status")["commit"], "Rego is read")
    yield
    (fleet.repository / "loop.rego").unlink()
    fleet.wait_for_commit(fleet.commit({POLICY_FILE: POLICY}))


@pytest.mark.usefixtures("with_a_loop")
def test_a_rego_rule_that_loops_refuses_its_requests_in_time_and_no_others(fleet: Fleet, application: Puppet) -> None:
    url = f"http://{fleet.address('app')}:{JUDGED_PORT}"
    begun = time.monotonic()
    assert curl(fleet["web"], "ops", f"{url}/health")[0] == 403
    assert time.monotonic() - begun < 2
    assert curl(fleet["web"], "web", f"{url}/v1/items")[0] == 200
    assert application.do("recorder.requests()") == ["GET /v1/items"]
    until(lambda: ["bad.loop", "timeout", 1] in mesh(fleet["app"])["rego"]["decisions"], "counted")


# Identities of others

WORKLOAD_API = """
import sys
sys.modules.setdefault("OpenSSL", None)
import grpc
from spiffe import WorkloadApiClient

def mine(socket):
    with WorkloadApiClient(f"unix:{socket}") as api:
        return [str(one.spiffe_id) for one in api.fetch_x509_svids()]

def secret(socket, name):
    question = bytes([0x1a, len(name)]) + name.encode()
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        ask = channel.unary_unary("/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets", None, None)
        try:
            return len(ask(question, timeout=5))
        except grpc.RpcError as error:
            return error.code().name
"""


def test_a_process_gets_the_svid_of_its_own_workload_and_no_other_s(fleet: Fleet, puppets) -> None:
    socket = str(fleet["web"].run_dir / "workload.sock")
    web, nobody = puppets("web"), puppets("web", "nobody")
    for one in (web, nobody):
        one.do(f"import sys; sys.path[:] = {sys.path!r}")
        one.do(WORKLOAD_API)
    assert web.mine(socket) == [WEB]
    assert web.secret(socket, WEB) > 0
    assert web.secret(socket, APP) == web.secret(socket, OPS) == "PERMISSION_DENIED"
    with pytest.raises(PuppetError, match=r"PERMISSION_DENIED|[Pp]ermission"):
        nobody.mine(socket)
    assert nobody.secret(socket, WEB) == "PERMISSION_DENIED"
    until(lambda: "not-own" in fleet["web"].call("status")["svids"]["refusals"], "counted")
