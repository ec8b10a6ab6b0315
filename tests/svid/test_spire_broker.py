"""SPIRE as upstream over the SPIFFE Broker API: who both ends are, what is referred to, and what is done without it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status

from bulkhead import config
from bulkhead.svid.spire import Spire, upstream
from bulkhead.svid.spire_broker import Broker
from bulkhead.svid.spire_calls import Failure
from bulkhead.svid.spire_delegated import Delegated
from bulkhead.svid.svids import Workload
from lab.spire import AGENT, BROKER, Authority, SpireAgent, following, in_loop

PAUSE_S = (0.01, 0.05)
SVID = "SubscribeToX509SVID"


@pytest.fixture
def process() -> Iterator[Any]:
    """One that only waits."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as one:
        yield one
        one.kill()


@pytest.fixture
def web(process: Any) -> Workload:
    """A workload that runs."""
    return Workload("spiffe://example.org/web", "shop/web", process.pid, (("systemd", "id:web.service"),))


@pytest.fixture
def agent(tmp_path: Path, web: Workload) -> SpireAgent:
    """With entries of the workload and of who asks."""
    made = SpireAgent(tmp_path)
    made.register(web.spiffe_id, pid=web.pid)
    made.register(BROKER, pid=os.getpid())
    return made


def broker(agent: SpireAgent, *workloads: Workload, agent_id: str = "", fallback: bool = False) -> Spire:
    """The broker's socket of that agent, asked for these."""
    sources = [Broker(agent.broker, agent.workload, agent_id), *([Delegated(agent.admin)] if fallback else [])]
    made = Spire(sources, PAUSE_S)
    made.want(workloads)
    return made


@in_loop
async def test_a_workload_is_referred_to_by_its_process(agent: SpireAgent, web: Workload) -> None:
    agent.federated.append(Authority("partner.net"))
    async with agent.brokering(), following(broker(agent, web)) as heard:
        await heard.until_svid(web)
        await heard.until(lambda: len(heard.upstream.bundles().get("partner.net", agent.authority.bundle).jwt) == 1)
        svid = heard.upstream.svids()[web.spiffe_id]
        assert (svid.chain, svid.key) == agent.issued(web.spiffe_id)
        assert set(heard.upstream.bundles()) == {"example.org", "partner.net"}
        assert heard.upstream.name == "spire-broker"
        (asked,) = await agent.until_asked(SVID)
        assert asked.metadata["broker.spiffe.io"] == "true"
        assert asked.question.reference.reference.type_url == "type.googleapis.com/spiffe.broker.WorkloadPIDReference"
        token = await heard.upstream.jwt(web, ["db"])
        assert token.spiffe_id == web.spiffe_id
        assert not heard.upstream.failures


@in_loop
async def test_pods_of_a_service_account_are_referred_to_by_it(agent: SpireAgent) -> None:
    words = (("k8s", "ns:shop"), ("k8s", "sa:checkout"))
    pods = Workload("spiffe://example.org/ns/shop/sa/checkout", "shop/checkout", selectors=words)
    agent.register(pods.spiffe_id, *words)
    async with agent.brokering(), following(broker(agent, pods)) as heard:
        await heard.until_svid(pods)
        (asked,) = await agent.until_asked(SVID)
        assert asked.question.reference.reference.type_url.endswith("spiffe.broker.KubernetesObjectReference")


@in_loop
async def test_words_that_are_no_reference_wait_for_a_process(agent: SpireAgent, web: Workload) -> None:
    waiting = Workload(web.spiffe_id, web.name, 0, web.selectors)
    async with agent.brokering(), following(broker(agent, waiting)) as heard:
        await heard.until(lambda: heard.upstream.bundles())
        heard.upstream.want([web])
        await heard.until_svid(web)
        assert not heard.upstream.failures


@in_loop
async def test_a_renewed_svid_of_our_own_makes_the_connection_anew(agent: SpireAgent, web: Workload) -> None:
    async with agent.brokering(), following(broker(agent, web)) as heard:
        await heard.until_svid(web)
        before = heard.upstream.svids()
        agent.renew()
        await agent.update()
        await agent.until_asked(SVID, 2)
        await heard.until(lambda: heard.upstream.svids() != before)
        assert not heard.upstream.failures
        assert set(heard.errors) <= {"", "SPIRE has not answered yet"}


@pytest.mark.parametrize(
    "identity",
    [
        "spiffe://example.org/web",
        "spiffe://example.org/spire/server",
        "spiffe://other.org/spire/agent/lab",
    ],
)
def test_whoever_is_no_agent_of_spire_is_asked_nothing(agent: SpireAgent, web: Workload, identity: str) -> None:
    @in_loop
    async def run() -> None:
        async with agent.brokering(identity), following(broker(agent, web)) as heard:
            await heard.until(lambda: heard.upstream.failures[Failure.IMPOSTOR])
            assert (
                f"`{identity}` answers at `{agent.broker}`, not a SPIRE agent of `example.org`" in heard.upstream.error
            )
            assert {one.method for one in agent.asked} == {"FetchX509SVID"}

    run()


@in_loop
async def test_an_agent_of_another_authority_is_asked_nothing(agent: SpireAgent, web: Workload) -> None:
    agent.issuer = Authority()
    async with agent.brokering(), following(broker(agent, web)) as heard:
        await heard.until(lambda: heard.upstream.failures[Failure.IMPOSTOR])
        assert "no TLS with" in heard.upstream.error
        assert {one.method for one in agent.asked} == {"FetchX509SVID"}


@in_loop
async def test_the_agent_that_the_settings_name_has_to_answer(agent: SpireAgent, web: Workload) -> None:
    async with agent.brokering(), following(broker(agent, web, agent_id=AGENT)) as heard:
        await heard.until_svid(web)
    async with agent.brokering(), following(broker(agent, web, agent_id=AGENT + "-2")) as heard:
        await heard.until(lambda: heard.upstream.failures[Failure.IMPOSTOR])
        assert f"`{AGENT}` answers at `{agent.broker}`, not `{AGENT}-2`" in heard.upstream.error


@in_loop
async def test_a_broker_that_spire_does_not_list_is_told_so(agent: SpireAgent, web: Workload) -> None:
    agent.trusted = Authority()
    async with agent.brokering(), following(broker(agent, web)) as heard:
        await heard.until(lambda: heard.upstream.failures.total() >= 3)
        assert not heard.upstream.svids()
        assert f"ended the call: Connection lost; is `{BROKER}` among SPIRE's `brokers`?" in heard.upstream.error


@in_loop
async def test_a_denied_workload_loses_its_svid_and_no_other(agent: SpireAgent, web: Workload) -> None:
    async with agent.brokering(), following(broker(agent, web)) as heard:
        await heard.until_svid(web)
        agent.refuses[SVID] = (Status.PERMISSION_DENIED, "not entitled")
        await agent.cut()
        await heard.until(lambda: not heard.upstream.svids())
        assert heard.upstream.bundles()


@in_loop
async def test_a_workload_that_spire_cannot_find_has_no_svid(agent: SpireAgent, web: Workload) -> None:
    agent.refuses[SVID] = (Status.NOT_FOUND, "no such process")
    async with agent.brokering(), following(broker(agent, web)) as heard:
        await heard.until(lambda: heard.upstream.failures[Failure.UNKNOWN] >= 2)
        assert "NOT_FOUND: no such process" in heard.upstream.error
        agent.refuses.clear()
        await heard.until_svid(web)


@in_loop
async def test_garbage_in_place_of_certificates_is_refused(agent: SpireAgent, web: Workload) -> None:
    def spoil(method: str, answer: Any) -> None:
        if method == SVID:
            answer.svids[0].x509_svid = b"\x30\x82\xff\xff"

    agent.edit = spoil
    async with agent.brokering(), following(broker(agent, web)) as heard:
        await heard.until(lambda: heard.upstream.failures[Failure.MALFORMED])
        assert not heard.upstream.svids()


# Without it


@in_loop
async def test_without_a_broker_the_admin_socket_is_used_where_the_settings_say_so(
    agent: SpireAgent, web: Workload
) -> None:
    agent.register(web.spiffe_id, *web.selectors)
    async with agent.delegating(), following(broker(agent, web, fallback=True)) as heard:
        await heard.until_svid(web)
        assert heard.upstream.name == "spire-delegated"
    async with agent.delegating(), following(broker(agent, web)) as heard:
        await heard.until(lambda: heard.upstream.failures[Failure.ABSENT] >= 3)
        assert heard.upstream.error == f"there is no socket `{agent.broker}`"
        assert not heard.upstream.svids()


@in_loop
async def test_a_broker_that_does_not_offer_the_api_is_not_used(agent: SpireAgent, web: Workload) -> None:
    agent.register(web.spiffe_id, *web.selectors)
    for method in (SVID, "SubscribeToX509Bundles", "SubscribeToJWTBundles"):
        agent.refuses[method] = (Status.UNIMPLEMENTED, "unknown service spiffe.broker.API")
    made = broker(agent, web, fallback=True)
    async with agent.brokering(), following(made) as heard:
        await heard.until(lambda: made.failures[Failure.UNOFFERED] and made.failures[Failure.ABSENT])
        assert made.error == f"there is no socket `{agent.admin}`"
        agent.refuses.clear()
        await heard.until_svid(web)
        assert made.name == "spire-broker"


@pytest.mark.parametrize(
    ("settings", "sources"),
    [
        (config.Spire("delegated", "/a"), ["spire-delegated"]),
        (config.Spire("broker", "/b", "/w"), ["spire-broker"]),
        (config.Spire("broker", "/b", "/w", "/a"), ["spire-broker", "spire-delegated"]),
    ],
)
def test_the_settings_say_what_is_asked_in_which_order(settings: config.Spire, sources: list[str]) -> None:
    assert [source.name for source in upstream(settings)._sources] == sources


CONFINED = """
import sys, time
from bulkhead.confinement import confine
from bulkhead.svid.spiffe_id import parse
from bulkhead.svid.spire_broker import Identity, _context
from bulkhead.svid.x509 import make_anchor, make_leaf, private_bytes
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
confine()
anchor = make_anchor("a", "example.org", time.time(), 600)
leaf = make_leaf(anchor, "spiffe://example.org/bulkhead", time.time(), 600)
_context(Identity(parse("spiffe://example.org/bulkhead"), (leaf.der,), private_bytes(leaf.key), (anchor.der,)))
"""


def test_the_own_key_reaches_tls_in_a_process_that_may_write_no_file() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
