"""A rule that asks Rego: the real Envoy, the real process, and a package that looks at who calls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bulkhead.daemon.rego import RegoProcess
from bulkhead.dataplane.requests import Clause, Effect, How, Path, Text
from bulkhead.errors import Loc
from bulkhead.observe.requests import Kind
from bulkhead.policy.rego_modules import RegoModule
from lab.two_nodes import BATCH_LANE, WEB_ID, WEB_LANE, World, two_nodes

MODULE = f"""package shop.authz

default allow := false

allow if {{
    input.source_principal == "{WEB_ID}"
    input.parsed_path == ["asked", "good"]
}}
"""
ASKED = Path(Text(How.PREFIX, "/asked"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    clauses = (
        Clause(1, Effect.ALLOW, Path(Text(How.PREFIX, "/"))),
        Clause(2, Effect.CUSTOM, ASKED, provider="rego:shop.authz"),
        Clause(3, Effect.CUSTOM, Path(Text(How.PREFIX, "/missing")), provider="rego:shop.missing"),
    )
    with two_nodes(*clauses) as made:
        yield made


def test_rego_is_asked_about_what_a_rule_says_and_knows_the_caller(world: World) -> None:
    async def main() -> None:
        rego = RegoProcess(world.called.node.rego_socket, 0)
        loaded = asyncio.Event()
        rego.on_change = lambda: loaded.set() if rego.commit == "c" else None
        rego.publish("c", (RegoModule("a.rego", MODULE, Loc("a.rego", 1)),))
        await asyncio.wait_for(loaded.wait(), 20)
        try:
            await asyncio.to_thread(judged)
        finally:
            await rego.stop()
        await asyncio.to_thread(refused)

    def judged() -> None:
        with world.http(WEB_LANE) as web, world.http(BATCH_LANE) as batch:
            # Envoy takes its time before it tries again to reach a process that was not there.
            world.called.wait_for(lambda: web.request("GET", "/asked/good").status == 200)
            assert web.request("GET", "/asked/bad").status == 403
            assert web.request("GET", "/free").status == 200
            assert web.request("GET", "/missing").status == 403
            assert batch.request("GET", "/asked/good", (("X-Bulkhead-Caller", WEB_ID),)).status == 403

    def refused() -> None:
        with world.http() as web:
            answer = web.request("GET", "/asked/good")
            assert answer.status == 403
            assert b"bulkhead why" in answer.body
            assert web.request("GET", "/free").status == 200

    asyncio.run(main())


def test_what_rego_refused_is_on_record_as_that(world: World) -> None:
    with world.http() as web:
        reference = web.request("GET", "/asked/good").headers["x-bulkhead-reference"]
    details: list[str] = []

    def arrived() -> bool:
        records = (one for one in world.called.records() if one.kind is Kind.REQUEST and one.reference == reference)
        details.extend(one.details for one in records)
        return bool(details)

    world.called.wait_for(arrived)
    assert details == ["ext_authz_error"]
