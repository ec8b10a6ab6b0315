"""Rules may speak of requests: who may ask what is decided for each, and a refusal leads to its rule."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from lab.fleet import Fleet
from lab.meshed import API, PLAIN, curl, requests, serve_http, shop
from lab.wired import until

NARROWED = API.replace('path: "/v1/*"', 'path: "/v1/items"')


@pytest.fixture
def url(fleet: Fleet) -> Iterator[str]:
    program = serve_http(fleet["app"], "app", 8090)
    yield f"http://{fleet.address('app')}:8090"
    program.kill()
    program.wait()


@pytest.mark.parametrize(
    "method, path, status",
    (
        ("GET", "/v1/items", 200),
        ("GET", "/v1/items?q=1", 200),
        ("POST", "/health", 200),
        ("POST", "/v1/items", 403),
        ("GET", "/v2/items", 403),
        ("GET", "/v1", 403),
        ("GET", "/V1/items", 403),
        ("GET", "/v1/../secret", 403),
        ("GET", "//v1/items", 200),
        ("GET", "/v1/%2e%2e/secret", 403),
        ("GET", "/v1%2fitems", 400),
        ("GET", "/v1/..%2fsecret", 400),
        ("GET", "/v1/items;admin=1", 403),
    ),
)
def test_a_request_is_judged_as_it_is_after_normalisation(
    fleet: Fleet, url: str, method: str, path: str, status: int
) -> None:
    assert curl(fleet["web"], "web", f"{url}{path}", "-X", method)[0] == status


def test_the_program_sees_who_asked(fleet: Fleet, url: str) -> None:
    status, body = curl(fleet["web"], "web", f"{url}/v1/items")
    assert (status, body) == (200, f"GET /v1/items from ::ffff:{fleet.address('web')}")


def test_a_refusal_leads_to_the_rule_that_comes_closest(fleet: Fleet, url: str) -> None:
    status, body = curl(fleet["web"], "web", f"{url}/v1/items", "-X", "DELETE")
    assert status == 403
    reference = re.search(r"bulkhead why (\S+)", body)
    assert reference is not None, body

    def is_told() -> bool:
        return bool(requests(fleet["app"], lambda one: one["record"]["reference"] == reference[1]))

    until(is_told, "the record of the request")
    said = fleet["app"].bulkhead("why", reference[1]).stdout
    assert "DELETE /v1/items" in said
    assert "spiffe://example.org/t/web" in said
    assert re.search(r"t\.yaml:\d+", said)


def test_on_one_host_requests_are_judged_too(fleet: Fleet, url: str) -> None:
    for address in (fleet.address("app"), "127.0.0.1"):
        there = f"http://{address}:8090"
        assert curl(fleet["app"], "web", f"{there}/v1/items")[0] == 200
        assert curl(fleet["app"], "web", f"{there}/v1/items", "-X", "POST")[0] == 403


def test_a_change_of_policy_reaches_the_next_request_of_a_live_connection(fleet: Fleet, url: str) -> None:
    client = fleet["web"].puppet("web")
    address = fleet.address("app")
    client.do(f"import http.client; one = http.client.HTTPConnection({address!r}, 8090, timeout=5)")
    client.do("def ask():\n one.request('GET', '/v1/other')\n got = one.getresponse()\n got.read()\n return got.status")
    assert client.do("ask()") == 200
    fleet.enforce(shop(more=NARROWED + PLAIN))
    begun = time.monotonic()
    until(lambda: client.do("ask()") == 403, "the next request is refused")
    assert time.monotonic() - begun < 1
    fleet.enforce(shop())
    client.end()
