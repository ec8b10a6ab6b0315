"""Aggregated discovery: one stream for all secrets."""

from __future__ import annotations

from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from bulkhead.svid import ads
from bulkhead.svid.svids import Attested
from svid.discovery import PROXY, RESPONSE, request, secrets, with_line
from svid.serving import DB, WEB, Line, Node, Shared, spiffe, workload

STREAM = f"{ads.SERVICE}StreamAggregatedResources"
BOTH = (WEB.spiffe_id, DB.spiffe_id)


async def heard(stream: Any) -> tuple[set[str], str]:
    """Names of the secrets that come next, and the nonce with them."""
    response = await stream.recv_message()
    return set(secrets(response)), response.nonce


def test_each_request_has_the_whole_list_and_a_response_what_is_new_of_it(shared: Shared) -> None:
    third = workload("shop/ads-third")

    async def work(node: Node, one: Line) -> None:
        async with one.call(STREAM, request(*BOTH, third.spiffe_id), RESPONSE, end=False) as stream:
            names, nonce = await heard(stream)
            assert names == {*BOTH}
            await stream.send_message(request(*BOTH, third.spiffe_id, nonce=nonce))
            node.publish(WEB, DB, third)
            names, second = await heard(stream)
            assert names == {third.spiffe_id}
            await stream.send_message(request("ALL", nonce=nonce))  # too late: of no account
            await stream.send_message(request(*BOTH, nonce=second))
            await stream.send_message(request(*BOTH, third.spiffe_id, "ROOTCA", nonce=second))
            names, third_nonce = await heard(stream)
            assert names == {third.spiffe_id, "ROOTCA"}, "what was given up and is wanted again is new"
            await stream.send_message(request(*BOTH, nonce=third_nonce))
            await stream.send_message(request(*BOTH, nonce=third_nonce))
            assert (await heard(stream))[0] == {*BOTH}, "the same list once more is a new wish for all of it"
            await stream.cancel()

    with_line(shared, PROXY, work)


def test_nothing_is_sent_before_the_last_response_is_answered(shared: Shared) -> None:
    async def work(_: Node, one: Line) -> None:
        async with one.call(STREAM, request(DB.spiffe_id), RESPONSE, end=False) as stream:
            await stream.send_message(request(*BOTH))
            names, nonce = await heard(stream)
            assert names == {DB.spiffe_id}
            await stream.send_message(request(*BOTH, "ALL"))
            await stream.send_message(request(*BOTH, "ALL", "ROOTCA", nonce=nonce))
            assert (await heard(stream))[0] == {WEB.spiffe_id, "ALL", "ROOTCA"}
            await stream.cancel()

    with_line(shared, PROXY, work)


def test_a_refused_response_is_sent_again_in_halves_until_what_cannot_be_used_stands_alone(shared: Shared) -> None:
    wanted = (*BOTH, "ALL", "ROOTCA")

    async def work(node: Node, one: Line) -> None:
        before = (await node.status(lambda _: True))["refusals"].get("nack", 0)
        used: set[str] = set()
        async with one.call(STREAM, request(*wanted), RESPONSE, end=False) as stream:
            while used != {*wanted} - {"ALL"}:
                names, nonce = await heard(stream)
                is_bad = "ALL" in names
                used |= set() if is_bad else names
                await stream.send_message(request(*wanted, nonce=nonce, error="bad" if is_bad else ""))
            await node.status(lambda status: status["refusals"].get("nack", 0) == before + 3)
            await stream.cancel()

    with_line(shared, PROXY, work)


def test_a_name_that_is_anothers_is_left_out_and_counted(shared: Shared) -> None:
    async def work(node: Node, one: Line) -> None:
        before = (await node.status(lambda _: True))["refusals"].get("not-own", 0)
        async with one.call(STREAM, request(*BOTH, spiffe("x"), "default"), RESPONSE, end=False) as stream:
            assert (await heard(stream))[0] == {WEB.spiffe_id, "default"}
            await node.status(lambda status: status["refusals"].get("not-own", 0) == before + 2)
            await stream.cancel()

    with_line(shared, Attested((WEB.spiffe_id,)), work)


@pytest.mark.parametrize(
    ("who", "question", "status"),
    [
        (Attested(), request("ALL"), Status.PERMISSION_DENIED),
        (PROXY, request("ALL", type_url="type.googleapis.com/x"), Status.INVALID_ARGUMENT),
        (PROXY, request("ALL", type_url=""), Status.INVALID_ARGUMENT),
        (Attested((WEB.spiffe_id,)), request("a" * (300 << 10)), Status.RESOURCE_EXHAUSTED),
        (PROXY, request("a" * (9 << 20)), Status.RESOURCE_EXHAUSTED),
    ],
    ids=["nobody", "another type", "no type", "a workload's too long list", "a proxy's too long list"],
)
def test_what_cannot_be_answered_ends_the_stream(shared: Shared, who: Attested, question: Any, status: Status) -> None:
    async def work(_: Node, one: Line) -> None:
        with pytest.raises(GRPCError) as error:
            await one.first(STREAM, question, RESPONSE)
        assert error.value.status is status

    with_line(shared, who, work)


def test_the_proxy_may_name_as_many_as_a_node_has(shared: Shared) -> None:
    names = [spiffe(f"{'a' * 200}/{number}") for number in range(4000)]

    async def work(_: Node, one: Line) -> None:
        found = await one.first(STREAM, request(*names, "ALL"), RESPONSE)
        assert secrets(found).keys() == {"ALL"}

    with_line(shared, PROXY, work)
