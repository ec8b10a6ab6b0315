"""Any condition means to the real Envoy what it means to the oracle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bulkhead.dataplane.mesh import Lane
from bulkhead.dataplane.requests import (
    All,
    Always,
    AnyOf,
    CalledAddress,
    Caller,
    CallerAddress,
    Clause,
    Condition,
    Effect,
    Header,
    Host,
    How,
    Method,
    Not,
    Path,
    PathTemplate,
    Port,
    Text,
)
from bulkhead.dataplane.requests_reference import Request, holds
from lab.proxies import Http1
from lab.two_nodes import (
    BATCH_ID,
    BATCH_LANE,
    FROM,
    HTTP_PORT,
    OTHER_HTTP_PORT,
    TWO,
    WEB_ID,
    WEB_LANE,
    World,
    two_nodes,
)

LANES = {WEB_ID: WEB_LANE, BATCH_ID: BATCH_LANE}


WORDS = ("a", "b", "ab", "v1", "A.b", "x-y")
words = st.sampled_from(WORDS)
paths = st.lists(words, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
hosts = st.lists(st.sampled_from(("a", "b", "A", "shop")), min_size=1, max_size=3).map(".".join)
methods = st.sampled_from(("GET", "PUT", "DELETE", "PATCH"))
requests = st.builds(
    Request,
    st.sampled_from((WEB_ID, BATCH_ID)),
    st.sampled_from((HTTP_PORT, OTHER_HTTP_PORT)),
    methods,
    st.builds(lambda path, query: path + query, paths, st.sampled_from(("", "?", "?a=/b"))),
    hosts,
    st.lists(st.tuples(st.sampled_from(("x-one", "x-two")), st.sampled_from(("", *WORDS))), max_size=3).map(tuple),
    st.just(ip_address(FROM)),
    st.none(),
    st.just(ip_address(TWO)),
)


def texts(values: st.SearchStrategy[str]) -> st.SearchStrategy[Text]:
    """Patterns near those values."""
    cut = st.builds(lambda value, at: (value[:at], value[at:]), values, st.integers(0, 6))
    plain = st.booleans()
    return st.one_of(
        st.builds(Text, st.just(How.EXACT), values, plain),
        st.builds(lambda parts, ignore: Text(How.PREFIX, parts[0], ignore), cut, plain),
        st.builds(lambda parts, ignore: Text(How.SUFFIX, parts[1], ignore), cut, plain),
        st.just(Text(How.PRESENT)),
        st.builds(lambda parts, ignore: Text(How.REGEX, re.escape(parts[0]) + ".*", ignore), cut, plain),
    )


networks = st.sampled_from(("10.77.0.0/24", "10.77.0.2/32", "10.77.0.0/31", "127.0.0.0/8", "::/0")).map(ip_network)
templates = st.lists(st.one_of(words, st.sampled_from(("*", "{*}", "**", "{**}"))), min_size=1, max_size=4)
conditions = st.recursive(
    st.one_of(
        st.just(Always()),
        st.builds(Caller, texts(st.sampled_from((WEB_ID, BATCH_ID)))),
        st.builds(CallerAddress, st.lists(networks, max_size=2).map(tuple)),
        st.builds(CalledAddress, st.lists(networks, max_size=2).map(tuple)),
        st.builds(lambda first, more: Port(first, first + more), st.integers(8070, 8090), st.integers(0, 900)),
        st.builds(Method, texts(methods)),
        st.builds(Path, texts(paths)),
        st.builds(lambda parts: PathTemplate("/" + "/".join(parts)), templates),
        st.builds(Host, texts(hosts)),
        st.builds(Header, st.sampled_from(("x-one", "x-two")), texts(words)),
    ),
    lambda inner: st.one_of(
        st.builds(All, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with two_nodes() as made:
        yield made


class Judge:
    """Asks Envoy of many conditions at once: a header says which of them a request is about."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rounds = count(1)
        self._clients: dict[tuple[Lane, int], Http1] = {}

    def allows(self, conditions: list[Condition], asked: list[Request]) -> list[list[bool]]:
        """For each condition, of each request."""
        round_ = str(next(self._rounds))
        clauses = [
            Clause(number, Effect.ALLOW, All((Header("x-case", Text(How.EXACT, f"{round_}-{number}")), one)))
            for number, one in enumerate(conditions)
        ]
        known = Header("x-case", Text(How.EXACT, f"{round_}-known"))
        self._world.judge(*clauses, Clause(len(clauses), Effect.ALLOW, known))
        probe = Request(WEB_ID, HTTP_PORT, "GET", "/", "probe", ())
        self._world.called.wait_for(lambda: self._status(probe, f"{round_}-known") == 200)
        return [[self._status(one, f"{round_}-{number}") == 200 for one in asked] for number in range(len(conditions))]

    def _status(self, request: Request, case: str) -> int:
        key = LANES[request.caller], request.port
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = self._world.http(*key)
        headers = (("Host", request.host), ("X-Case", case), *request.headers)
        status = client.request(request.method, request.path, headers).status
        assert status in (200, 403), (status, request)
        return status

    def close(self) -> None:
        """End the conversations."""
        for client in self._clients.values():
            client.socket.close()


@pytest.fixture(scope="module")
def judge(world: World) -> Iterator[Judge]:
    made = Judge(world)
    yield made
    made.close()


# To shrink an example is to ask Envoy some thousand times more, and a batch is short enough to read.
@settings(
    phases=(Phase.explicit, Phase.generate),
    max_examples=14,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    conditions=st.lists(conditions, min_size=10, max_size=16),
    asked=st.lists(requests, min_size=8, max_size=12),
)
def test_envoy_allows_what_the_condition_says(judge: Judge, conditions: list[Condition], asked: list[Request]) -> None:
    for condition, allowed in zip(conditions, judge.allows(conditions, asked), strict=True):
        for request, passed in zip(asked, allowed, strict=True):
            assert passed == holds(condition, request), (condition, request)
