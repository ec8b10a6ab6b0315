"""Who may wait for a decision, and what is refused without one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import pytest

from bulkhead.errors import Loc, UnreachableError
from bulkhead.policy.rego_modules import RegoModule
from bulkhead.rego.judges import JUDGES, WAITING_MAX, Judges
from bulkhead.rego.messages import message
from bulkhead.rego.outcome import Outcome

LOOP = "package loop\nallow if { some i in numbers.range(1, 30000)\n some j in numbers.range(1, 30000)\n i * j < 0 }\n"
OPEN = "package open\nallow := true\n"


def request(package: str, body: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    made = message("CheckRequest")()
    made.attributes.context_extensions["package"] = package
    made.attributes.request.http.body = body
    made.attributes.request.http.headers.update(headers or {})
    return bytes(made.SerializeToString())


def judged(work: Callable[[Judges], Awaitable[None]], *texts: str) -> None:
    """Do `work` with judges that have read these modules."""

    async def run() -> None:
        judges = Judges()
        try:
            if texts:
                await judges.load([RegoModule(f"{n}.rego", text, Loc("m", 1)) for n, text in enumerate(texts)])
            await work(judges)
        finally:
            judges.close()

    asyncio.run(run())


def test_nothing_is_judged_before_there_are_modules() -> None:
    async def work(judges: Judges) -> None:
        assert await judges.ask("open", request("open")) == (Outcome.UNREADY, b"")

    judged(work)


def test_modules_that_cannot_be_read_refuse_what_was_allowed_before() -> None:
    async def work(judges: Judges) -> None:
        assert (await judges.ask("open", request("open")))[0] is Outcome.ALLOWED
        with pytest.raises(UnreachableError, match="expecting"):
            await judges.load([RegoModule("x.rego", "package x\nallow if {", Loc("x", 1))])
        assert await judges.ask("open", request("open")) == (Outcome.UNREADY, b"")
        await judges.load([RegoModule("x.rego", OPEN, Loc("x", 1))])
        assert (await judges.ask("open", request("open")))[0] is Outcome.ALLOWED

    judged(work, OPEN)


def test_refuse_a_request_that_is_too_large_or_asks_a_package_that_nobody_has() -> None:
    async def work(judges: Judges) -> None:
        assert await judges.ask("open", request("open", "x" * (1 << 20))) == (Outcome.OVERSIZE, b"")
        assert await judges.ask("opener", request("opener")) == (Outcome.UNKNOWN, b"")

    judged(work, OPEN)


@pytest.mark.parametrize("depth", [100, 300, 700, 990, 5000])
def test_a_body_that_is_nested_deep_is_refused_or_read_and_ends_no_process(depth: int) -> None:
    async def work(judges: Judges) -> None:
        content = request("deep", "[" * depth + "]" * depth, {"content-type": "application/json"})
        expected = {Outcome.ALLOWED} if depth < 120 else {Outcome.ERROR, Outcome.INPUT}
        outcomes = [(await judges.ask("deep", content))[0]]
        while outcomes[-1] is Outcome.TIMEOUT and len(outcomes) < 5:  # a busy machine: ask again
            outcomes.append((await judges.ask("deep", content))[0])
        assert outcomes[-1] in expected
        assert judges.ended <= outcomes.count(Outcome.TIMEOUT)

    judged(work, "package deep\nallow if count(input.parsed_body) == 1\n")


def test_no_more_may_wait_than_there_is_room_for_and_another_package_has_room() -> None:
    async def work(judges: Judges) -> None:
        many = [judges.ask("loop", request("loop")) for _ in range(WAITING_MAX + JUDGES + 10)]
        asked = asyncio.gather(*many)
        await judges.ask("loop", request("loop"))
        outcomes = [(await judges.ask("open", request("open")))[0] for _ in range(3)]
        assert Outcome.ALLOWED in outcomes  # on a busy machine one may wait too long for a judge
        found = Counter(outcome for outcome, _ in await asked)
        assert found.keys() == {Outcome.TIMEOUT, Outcome.OVERLOADED}
        assert 1 <= found[Outcome.TIMEOUT] <= JUDGES + 2

    judged(work, LOOP, OPEN)
