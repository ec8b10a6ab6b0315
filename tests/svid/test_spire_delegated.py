"""SPIRE as upstream over its Delegated Identity API: what comes, what is taken back, what breaks, what is refused."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status

from bulkhead.svid.spire import WORKLOADS_MAX, Spire
from bulkhead.svid.spire_calls import MESSAGE_BYTES_MAX, Failure
from bulkhead.svid.spire_delegated import Delegated
from bulkhead.svid.svids import Workload
from bulkhead.svid.upstream import UpstreamError
from lab.spire import Authority, SpireAgent, following, in_loop

UNIT = ("systemd", "id:web.service")
WEB = Workload("spiffe://example.org/web", "shop/web", selectors=(UNIT,))
API = Workload("spiffe://example.org/api", "shop/api", selectors=(("unix", "uid:33"),))
PAUSE_S = (0.01, 0.05)
SVIDS = "SubscribeToX509SVIDs"


def upstream(agent: SpireAgent, *workloads: Workload, orphaned_s: float = 10.0) -> Spire:
    """The admin socket of that agent, asked for these."""
    made = Spire([Delegated(agent.admin)], PAUSE_S, orphaned_s)
    made.want(workloads)
    return made


@pytest.fixture
def agent(tmp_path: Path) -> SpireAgent:
    """With entries of both workloads."""
    made = SpireAgent(tmp_path)
    made.register(WEB.spiffe_id, UNIT)
    made.register(API.spiffe_id, ("unix", "uid:33"))
    return made


@in_loop
async def test_each_workload_gets_its_svid_and_the_node_all_bundles(agent: SpireAgent) -> None:
    agent.federated.append(Authority("partner.net"))
    async with agent.delegating(), following(upstream(agent, WEB, API)) as heard:
        await heard.until_svid(WEB)
        await heard.until_svid(API)
        await heard.until(lambda: len(heard.upstream.bundles().get("partner.net", agent.authority.bundle).jwt) == 1)
        found = heard.upstream.svids()
        assert {one: (svid.chain, svid.key) for one, svid in found.items()} == {
            one.spiffe_id: agent.issued(one.spiffe_id) for one in (WEB, API)
        }
        assert heard.upstream.bundles() == {
            one.trust_domain: one.bundle for one in (agent.authority, agent.federated[0])
        }
        assert heard.upstream.name == "spire-delegated"
        assert not heard.upstream.failures


@in_loop
async def test_a_renewed_svid_takes_the_place_of_the_old_one(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until_svid(WEB)
        before = heard.upstream.svids()[WEB.spiffe_id]
        agent.renew()
        await agent.update()
        await heard.until(lambda: heard.upstream.svids()[WEB.spiffe_id] != before)
        assert heard.upstream.svids()[WEB.spiffe_id].key == agent.issued(WEB.spiffe_id)[1]


@in_loop
async def test_the_same_svid_again_is_no_news(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until_svid(WEB)
        await heard.until(lambda: heard.upstream.bundles()["example.org"].jwt)
        told = heard.told
        await agent.update()
        agent.renew()
        await agent.update()
        await heard.until(lambda: heard.upstream.svids()[WEB.spiffe_id].key == agent.issued(WEB.spiffe_id)[1])
        assert heard.told == told + 1


@in_loop
async def test_what_spire_no_longer_hands_out_is_no_longer_held(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB, API)) as heard:
        await heard.until_svid(WEB)
        await heard.until_svid(API)
        del agent.entries[0]
        await agent.update()
        await heard.until(lambda: set(heard.upstream.svids()) == {API.spiffe_id})
        assert heard.upstream.error == "SPIRE has no SVID for `shop/web`: no entry of it matches"
        assert heard.upstream.failures == {Failure.WITHHELD: 1}
        agent.register(WEB.spiffe_id, UNIT)
        await agent.update()
        await heard.until_svid(WEB)


@in_loop
async def test_a_broken_stream_is_resumed_and_nothing_is_lost_meanwhile(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until_svid(WEB)
        await agent.cut()
        await heard.until(lambda: "the agent is going away" in heard.upstream.error)
        assert set(heard.upstream.svids()) == {WEB.spiffe_id}
        assert heard.upstream.bundles()
        await agent.until_asked(SVIDS, 2)
        await heard.until_svid(WEB)


@in_loop
async def test_an_agent_that_is_away_is_waited_for_and_told_once(agent: SpireAgent) -> None:
    made = upstream(agent, WEB)
    async with following(made) as heard:
        async with agent.delegating():
            await heard.until_svid(WEB)
        await heard.until(lambda: made.failures[Failure.ABSENT] >= 3)
        assert made.error == f"there is no socket `{agent.admin}`"
        assert heard.errors.count(made.error) == 1
        assert set(made.svids()) == {WEB.spiffe_id}
        agent.renew()
        async with agent.delegating():
            await heard.until(lambda: made.svids()[WEB.spiffe_id].key == agent.issued(WEB.spiffe_id)[1])


@in_loop
async def test_a_socket_that_nobody_answers_at_is_away(agent: SpireAgent) -> None:
    agent.admin.touch()
    async with following(upstream(agent, WEB)) as heard:
        await heard.until(lambda: heard.upstream.failures[Failure.AWAY])
        assert heard.upstream.error.startswith(f"cannot connect to `{agent.admin}`")


@in_loop
async def test_another_spiffe_id_than_policy_says_is_refused_and_drops_what_was_held(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until_svid(WEB)
        agent.entries.clear()
        agent.register("spiffe://example.org/admin", UNIT)
        await agent.update()
        await heard.until(lambda: heard.upstream.failures[Failure.WRONG_ID])
        assert not heard.upstream.svids()
        assert "the SPIFFE ID `spiffe://example.org/admin`, and policy says `spiffe://example.org/web`" in (
            heard.upstream.error
        )


@in_loop
async def test_a_delegate_that_is_not_authorized_holds_nothing(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until_svid(WEB)
        agent.refuses["*"] = (Status.PERMISSION_DENIED, "caller not configured as an authorized delegate")
        await agent.cut()
        await heard.until(lambda: not heard.upstream.svids() and not heard.upstream.bundles())
        await heard.until(lambda: heard.upstream.failures[Failure.REFUSED] >= 3)
        assert "PERMISSION_DENIED: caller not configured as an authorized delegate" in heard.upstream.error
        agent.refuses.clear()
        await heard.until_svid(WEB)


@in_loop
async def test_what_has_expired_is_not_held(agent: SpireAgent) -> None:
    agent.lifetime_s = 1.0
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until_svid(WEB)
        ends = heard.upstream.svids()[WEB.spiffe_id].expires_at
        await heard.until(lambda: not heard.upstream.svids())
        assert time.time() >= ends


def garbage(answer: Any) -> None:
    answer.x509_svids[0].x509_svid.cert_chain[0] = b"\x30\x03abc"


def no_chain(answer: Any) -> None:
    del answer.x509_svids[0].x509_svid.cert_chain[:]


def too_many(answer: Any) -> None:
    answer.x509_svids.extend([answer.x509_svids[0]] * 64)


def too_large(answer: Any) -> None:
    answer.x509_svids[0].x509_svid_key = bytes(MESSAGE_BYTES_MAX)


@pytest.mark.parametrize(
    ("edit", "failure"),
    [
        (garbage, Failure.MALFORMED),
        (no_chain, Failure.MALFORMED),
        (too_many, Failure.TOO_LARGE),
        (too_large, Failure.TOO_LARGE),
    ],
)
def test_an_answer_that_makes_no_sense_is_discarded(
    agent: SpireAgent, edit: Callable[[Any], None], failure: Failure
) -> None:
    @in_loop
    async def run() -> None:
        async with agent.delegating(), following(upstream(agent, WEB)) as heard:
            await heard.until_svid(WEB)
            before = heard.upstream.svids()
            agent.edit = lambda method, answer: edit(answer) if method == SVIDS else None
            await agent.update()
            await heard.until(lambda: heard.upstream.failures[failure])
            assert heard.upstream.svids() == before
            agent.edit = lambda method, answer: None
            await heard.until_svid(WEB)

    run()


@pytest.mark.parametrize(
    ("raw", "failure"),
    [
        (struct.pack(">BI", 0, 0xFFFFFFFF), Failure.TOO_LARGE),
        (struct.pack(">BI", 1, 3) + b"abc", Failure.MALFORMED),
        (struct.pack(">BI", 0, 3) + b"\xff\xff\xff", Failure.MALFORMED),
    ],
)
def test_bytes_that_are_no_message_are_refused_before_they_are_taken_in(
    agent: SpireAgent, raw: bytes, failure: Failure
) -> None:
    @in_loop
    async def run() -> None:
        agent.raw[SVIDS] = raw
        async with agent.delegating(), following(upstream(agent, WEB)) as heard:
            await heard.until(lambda: heard.upstream.failures[failure])
            assert not heard.upstream.svids()
            agent.raw.clear()
            await heard.until_svid(WEB)

    run()


@in_loop
async def test_a_bundle_that_makes_no_sense_changes_nothing(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until_svid(WEB)
        await heard.until(lambda: heard.upstream.bundles()["example.org"].jwt)
        before = heard.upstream.bundles()

        def spoil(method: str, answer: Any) -> None:
            if method == "SubscribeToX509Bundles":
                answer.ca_certificates["spiffe://example.org"] = b"\x30\x03abc"

        agent.edit = spoil
        await agent.update()
        await heard.until(lambda: heard.upstream.failures[Failure.MALFORMED])
        assert "SPIRE's bundle of `example.org` is refused" in heard.upstream.error
        assert heard.upstream.bundles() == before


@in_loop
async def test_an_agent_without_jwt_still_gives_certificates(agent: SpireAgent) -> None:
    agent.refuses["SubscribeToJWTBundles"] = (Status.UNIMPLEMENTED, "disabled")
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until(lambda: heard.upstream.svids() and heard.upstream.failures[Failure.UNOFFERED])
        assert "UNIMPLEMENTED: disabled" in heard.upstream.error
        assert heard.upstream.bundles()["example.org"].x509


# Tokens


@in_loop
async def test_a_token_is_asked_for_when_it_is_wanted(agent: SpireAgent) -> None:
    async with agent.delegating(), following(upstream(agent, WEB)) as heard:
        await heard.until(lambda: heard.upstream.bundles() and heard.upstream.bundles()["example.org"].jwt)
        svid = await heard.upstream.jwt(WEB, ["db", "cache"])
        assert svid.spiffe_id == WEB.spiffe_id
        assert 200 < svid.expires_at - time.time() < 400
        (asked,) = await agent.until_asked("FetchJWTSVIDs")
        assert list(asked.question.audience) == ["db", "cache"]
        with pytest.raises(UpstreamError, match="PERMISSION_DENIED: no identity issued"):
            await heard.upstream.jwt(Workload("spiffe://example.org/x", "x", selectors=(("unix", "uid:0"),)), ["db"])


@in_loop
async def test_a_token_cannot_be_had_of_nobody(agent: SpireAgent) -> None:
    made = upstream(agent, WEB)
    with pytest.raises(UpstreamError, match="SPIRE has not answered yet"):
        await made.jwt(WEB, ["db"])
    async with agent.delegating(), following(made) as heard:
        await heard.until_svid(WEB)
        with pytest.raises(UpstreamError, match="no process of `shop/new` is known"):
            await made.jwt(Workload("spiffe://example.org/new", "shop/new"), ["db"])


# Who is asked for, and how


@in_loop
async def test_workloads_come_and_go(agent: SpireAgent) -> None:
    made = upstream(agent, WEB)
    async with agent.delegating(), following(made) as heard:
        await heard.until_svid(WEB)
        made.want([API])
        assert not made.svids()
        await heard.until_svid(API)
        assert set(made.svids()) == {API.spiffe_id}


@in_loop
async def test_more_workloads_than_one_connection_carries_are_followed_on_several(agent: SpireAgent) -> None:
    units = [("systemd", f"id:{number}.service") for number in range(110)]
    many = [Workload(f"spiffe://example.org/{unit[1][3:]}", unit[1], selectors=(unit,)) for unit in units]
    for workload in many:
        agent.register(workload.spiffe_id, *workload.selectors)
    async with agent.delegating(), following(upstream(agent, *many)) as heard:
        await heard.until(lambda: len(heard.upstream.svids()) == len(many))
        assert not heard.upstream.failures


@in_loop
async def test_more_workloads_than_can_be_followed_are_told(agent: SpireAgent) -> None:
    many = [Workload(f"spiffe://example.org/w{number}", f"w{number}") for number in range(WORKLOADS_MAX)]
    made = upstream(agent, WEB, *many)
    assert "1025 workloads want SVIDs, and 1024 at most get them" in made._problems["limit"]
    async with agent.delegating(), following(made) as heard:
        await heard.until(lambda: WEB.spiffe_id in made.svids())
        assert heard.upstream.error == "1025 workloads want SVIDs, and 1024 at most get them"
        made.want([WEB])
        await heard.until_svid(WEB)


@in_loop
async def test_processes_of_a_workload_that_has_selectors_come_and_go_unnoticed(agent: SpireAgent) -> None:
    made = upstream(agent, WEB)
    async with agent.delegating(), following(made) as heard:
        await heard.until_svid(WEB)
        made.want([replace(WEB, pid=1), API])
        await heard.until_svid(API)
        assert [one.question.selectors[0].value for one in agent.asked if one.method == SVIDS] == [
            "id:web.service",
            "uid:33",
        ]


@pytest.fixture
def process() -> Any:
    """One that only waits."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as one:
        yield one
        one.kill()


def by_pid(pid: int) -> Workload:
    """A workload that SPIRE has no words for."""
    return Workload("spiffe://example.org/job", "jobs/job", pid=pid)


@in_loop
async def test_a_workload_without_selectors_is_asked_for_by_process(agent: SpireAgent, process: Any) -> None:
    job = by_pid(process.pid)
    agent.register(job.spiffe_id, pid=job.pid)
    async with agent.delegating(), following(upstream(agent, WEB, job)) as heard:
        await heard.until_svid(WEB)
        await heard.until_svid(job)
        asked = await agent.until_asked(SVIDS, 2)
        assert sorted((one.question.pid, len(one.question.selectors)) for one in asked) == [(0, 1), (job.pid, 0)]
        await heard.until(lambda: heard.upstream.bundles()["example.org"].jwt)
        assert (await heard.upstream.jwt(job, ["db"])).spiffe_id == job.spiffe_id


@in_loop
async def test_the_subscription_ends_with_the_process_and_the_svid_a_little_later(
    agent: SpireAgent, process: Any
) -> None:
    job = by_pid(process.pid)
    agent.register(job.spiffe_id, pid=job.pid)
    async with agent.delegating(), following(upstream(agent, job, orphaned_s=0.05)) as heard:
        await heard.until_svid(job)
        process.kill()
        await heard.until(lambda: heard.upstream.failures[Failure.GONE])
        assert "the process of `jobs/job` that SPIRE was asked for has ended" in heard.upstream.error
        await heard.until(lambda: not heard.upstream.svids())
        process.wait()
        with pytest.raises(UpstreamError, match="there is no process"):
            await heard.upstream.jwt(job, ["db"])


@in_loop
async def test_another_process_takes_the_place_of_one_that_ended(agent: SpireAgent, process: Any) -> None:
    job = by_pid(process.pid)
    agent.register(job.spiffe_id, pid=job.pid)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        agent.register(job.spiffe_id, pid=other.pid)
        async with agent.delegating(), following(upstream(agent, job, orphaned_s=0.5)) as heard:
            await heard.until_svid(job)
            process.kill()
            await heard.until(lambda: heard.upstream.failures[Failure.GONE])
            heard.upstream.want([by_pid(other.pid)])
            await heard.until_svid(by_pid(other.pid))
            await asyncio.get_running_loop().run_in_executor(None, process.wait)
            assert not heard.upstream._timers
        other.kill()


@in_loop
async def test_a_workload_of_which_nothing_runs_is_not_asked_for(agent: SpireAgent) -> None:
    made = upstream(agent, by_pid(0), WEB, orphaned_s=0.05)
    async with agent.delegating(), following(made) as heard:
        await heard.until_svid(WEB)
        assert len(await agent.until_asked(SVIDS)) == 1
        made.want([Workload(WEB.spiffe_id, WEB.name)])
        assert set(made.svids()) == {WEB.spiffe_id}
        await heard.until(lambda: not made.svids())
        assert not made.failures
