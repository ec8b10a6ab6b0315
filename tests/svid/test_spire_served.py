"""The identity process with SPIRE behind it: what SPIRE issues is what the public client of the Workload API gets."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import WorkloadApiClient

from bulkhead import config
from lab.spire import SpireAgent, in_loop
from svid.serving import WEB, Node, running

UNIT = ("systemd", "id:web.service")
SPOKEN = replace(WEB, pid=os.getpid(), selectors=(UNIT,))


@pytest.fixture
def agent(tmp_path: Path) -> SpireAgent:
    """With an entry of the workload, by selector and by process."""
    made = SpireAgent(tmp_path)
    made.register(WEB.spiffe_id, UNIT)
    made.register(WEB.spiffe_id, pid=os.getpid())
    return made


async def served(node: Node) -> None:
    """Until there is an SVID."""
    await node.until(lambda: bool(node.process.status().get("svids")))


async def check(node: Node, agent: SpireAgent) -> None:
    """Fetch as any workload does."""

    def fetch() -> None:
        with WorkloadApiClient(node.address) as client:
            context = client.fetch_x509_context()
            svid = context.default_svid
            assert str(svid.spiffe_id) == WEB.spiffe_id
            assert tuple(one.public_bytes(Encoding.DER) for one in svid.cert_chain) == agent.issued(WEB.spiffe_id)[0]
            token = client.fetch_jwt_svid({"db"})
            assert client.validate_jwt_svid(token.token, "db").spiffe_id == svid.spiffe_id

    await asyncio.to_thread(fetch)


@in_loop
async def test_what_a_delegate_gets_is_what_is_served(agent: SpireAgent, tmp_path: Path) -> None:
    async with agent.delegating(), running(tmp_path, spire=config.Spire("delegated", str(agent.admin))) as node:
        node.publish(SPOKEN)
        await served(node)
        await check(node, agent)
        assert node.process.status()["source"] == "spire-delegated"


@in_loop
async def test_what_a_broker_gets_is_what_is_served(agent: SpireAgent, tmp_path: Path) -> None:
    settings = config.Spire("broker", str(agent.broker), str(agent.workload))
    async with agent.brokering(), running(tmp_path, spire=settings) as node:
        node.publish(SPOKEN)
        await served(node)
        await check(node, agent)
        assert node.process.status()["source"] == "spire-broker"
