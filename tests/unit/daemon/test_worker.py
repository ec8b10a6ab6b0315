"""The policy process, as the agent has it: real child, real git, no kernel."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bulkhead.config import Settings
from bulkhead.daemon import accepted as acceptance
from bulkhead.daemon.accepted import Accepted, Rollback
from bulkhead.daemon.worker import PolicyWorker, Report, SourceReport
from bulkhead.dataplane.bundle import read
from lab.policies import policy, repository
from lab.signing import SignedRepository, SshSigner, roots_file, ssh_signer

TIMEOUT_S = 30
PUSH_S = 2.0
"""For fetch, verify and compile, on a machine that does other things too."""


class Desk:
    """A worker with what it reports, in order."""

    def __init__(self, settings: Settings, accepted: Accepted = Accepted()) -> None:  # noqa: B008  frozen
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self.sources: list[SourceReport] = []
        self._looked = asyncio.Condition()
        self.worker = PolicyWorker(settings, self.reports.put, self._source, accepted)

    def _source(self, report: SourceReport) -> None:
        self.sources.append(report)

    async def report(self) -> Report:
        """The next one."""
        return await asyncio.wait_for(self.reports.get(), TIMEOUT_S)

    async def good(self, commit: str) -> Report:
        """The next one, which is a bundle of that commit; it is accepted."""
        found = await self.report()
        assert (found.error, found.commit) == ("", commit)
        assert read(found.bundle).commit == commit
        self.worker.accept(Accepted(commit))
        return found

    async def bad(self, code: str) -> Report:
        """The next one, which is a refusal for that reason."""
        found = await self.report()
        assert found.code == code, found
        return found


def with_desk(settings: Settings, work: Callable[[Desk], Awaitable[None]], accepted: Accepted | None = None) -> None:
    """Runs a worker while `work` does."""

    async def main() -> None:
        desk = Desk(settings, accepted or Accepted())
        desk.worker.start()
        try:
            await work(desk)
        finally:
            await desk.worker.stop()

    asyncio.run(main())


@pytest.fixture
def ann(tmp_path) -> SshSigner:
    return ssh_signer(tmp_path, "ann")


@pytest.fixture
def remote(tmp_path, ann) -> SignedRepository:
    one = SignedRepository(tmp_path / "r")
    one.commit({"bulkhead.yaml": repository(), "t.yaml": policy("api -> db 1")}, ann)
    return one


@pytest.fixture
def settings(tmp_path, remote, ann) -> Settings:
    """Signers in force, the repository fetched."""
    (tmp_path / "state").mkdir()
    return Settings(
        host="web-1",
        repository=f"file://{remote.path}",
        ref="main",
        state_dir=tmp_path / "state",
        signers=roots_file(tmp_path / "signers.toml", (ann, "guardrail")),
    )


def local(settings: Settings, path: Path) -> Settings:
    return Settings(host="web-1", repository=str(path), state_dir=settings.state_dir)


@pytest.mark.parametrize("kind", ["file", "path"])
def test_a_push_is_reported_and_a_forced_one_refused(settings, remote, ann, kind):
    async def work(desk: Desk) -> None:
        first = remote.head()
        await desk.good(first)
        await desk.good(remote.commit({"t.yaml": policy("api -> db 2")}, ann))
        remote.git("reset", "-q", "--hard", first)
        assert (await desk.bad("BH1107")).commit == first
        remote.git("reset", "-q", "--hard", "HEAD@{1}")
        assert not (await desk.report()).error

    with_desk(settings if kind == "file" else local(settings, remote.path), work)


def test_what_was_accepted_holds_over_a_restart(settings, remote, ann):
    first = remote.head()
    second = remote.commit({"README.md": "x"}, ann)
    remote.git("reset", "-q", "--hard", first)

    async def work(desk: Desk) -> None:
        await desk.bad("BH1107")

    remote.git("branch", "kept", second)
    with_desk(local(settings, remote.path), work, Accepted(second))


def test_a_refused_commit_is_reported_once_and_again_when_asked(settings, remote):
    async def work(desk: Desk) -> None:
        await desk.good(remote.head())
        unsigned = remote.commit({"README.md": "x"})
        assert (await desk.bad("BH1101")).commit == unsigned
        desk.worker.reload()
        await desk.bad("BH1101")
        assert desk.reports.empty()

    with_desk(settings, work)


def test_a_commit_that_is_not_put_into_force_is_not_what_the_next_one_has_to_follow(settings, remote, ann):
    async def work(desk: Desk) -> None:
        first = remote.head()
        await desk.good(first)
        remote.commit({"t.yaml": policy("api -> db 2")}, ann)
        assert not (await desk.report()).error  # and the agent cannot use it
        remote.git("reset", "-q", "--hard", first)
        other = remote.commit({"t.yaml": policy("api -> db 3")}, ann)
        found = await desk.report()
        while found.commit != other:
            found = await desk.report()
        assert not found.error

    with_desk(settings, work)


def test_a_rollback_is_answered_and_its_tip_held_off(settings, remote, ann):
    async def work(desk: Desk) -> None:
        first = remote.head()
        await desk.good(first)
        second = remote.commit({"t.yaml": policy("api -> db 2")}, ann)
        await desk.good(second)
        answer = await desk.worker.rollback(first[:10])
        assert (answer.commit, answer.tip, answer.error) == (first, second, "")
        desk.worker.accept(Accepted(first, second))
        desk.worker.reload()
        assert (await desk.report()).commit == first
        third = remote.commit({"t.yaml": policy("api -> db 3")}, ann)
        await desk.good(third)
        refused = await desk.worker.rollback("nothing")
        assert "names no commit" in refused.error

    with_desk(settings, work)


def test_a_worker_that_starts_with_a_tip_held_off_compiles_what_was_accepted(settings, remote, ann):
    first = remote.head()
    second = remote.commit({"t.yaml": policy("api -> db 2")}, ann)

    async def work(desk: Desk) -> None:
        assert (await desk.report()).commit == first

    with_desk(settings, work, Accepted(first, second))


def test_a_silent_remote_is_reported_as_such_and_not_as_a_refusal(settings, remote, tmp_path):
    aside = tmp_path / "aside"

    async def work(desk: Desk) -> None:
        await desk.good(remote.head())
        assert desk.sources[-1].error == ""
        remote.path.rename(aside)
        desk.worker.reload()
        async with asyncio.timeout(TIMEOUT_S):
            while not desk.sources[-1].error:
                await asyncio.sleep(0)
        assert desk.sources[-1].code == "BH1110"
        aside.rename(remote.path)
        desk.worker.reload()
        assert not (await desk.report()).error
        assert desk.sources[-1].error == ""

    with_desk(settings, work)


def test_a_signers_file_that_cannot_be_read_refuses_every_commit(settings, remote, ann):
    async def work(desk: Desk) -> None:
        await desk.good(remote.head())
        good = settings.signers.read_text()
        settings.signers.write_text("nonsense")
        remote.commit({"README.md": "x"}, ann)
        assert "not valid TOML" in (await desk.report()).error
        settings.signers.write_text(good)
        desk.worker.reload()
        assert not (await desk.report()).error

    with_desk(settings, work)


def test_a_signed_push_of_one_line_takes_no_longer_than_it_should(settings, remote, ann):
    """From the moment that the branch moves to the bundle: fetch, verify, compile."""

    async def work(desk: Desk) -> None:
        await desk.good(remote.head())
        took = []
        for number in range(2, 12):
            remote.write({"t.yaml": policy(f"api -> db {number}")})
            remote.git("add", "--all")
            tree = remote.git("write-tree")
            commit = remote.git("commit-tree", "-S", "-p", "HEAD", "-m", "change", tree, signer=ann)
            reference = remote.path / ".git" / "refs" / "heads" / "main"
            fresh = reference.with_suffix(".new")
            fresh.write_text(commit + "\n")
            started = time.monotonic()
            fresh.rename(reference)
            await desk.good(commit)
            took.append(time.monotonic() - started)
        print(f"median {statistics.median(took) * 1000:.0f} ms, worst {max(took) * 1000:.0f} ms")
        assert statistics.median(took) < PUSH_S

    with_desk(settings, work)


# What the agent keeps


@pytest.mark.parametrize("kept", [Accepted("a" * 40, "b" * 40), Accepted("c" * 64), Accepted(lost="unreadable")])
def test_what_is_kept_is_what_was_accepted_or_that_it_was_lost(tmp_path, kept):
    path = tmp_path / "accepted.json"
    assert acceptance.load(path) == Accepted()
    acceptance.save(path, kept)
    assert acceptance.load(path) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00" * 80,
        "[]",
        "{}",
        "[" * 100_000,
        '{"commit": "' + "a" * 40 + '"}',
        '{"commit": "aaaa", "held_off": ""}',
        '{"commit": null, "held_off": ""}',
        '{"commit": "", "held_off": "main"}',
        '{"commit": "", "held_off": "", "other": ""}',
    ],
    ids=lambda text: text[:30],
)
def test_a_file_that_does_not_say_what_was_accepted_is_not_taken_for_none(tmp_path, text):
    path = tmp_path / "accepted.json"
    path.write_text(text)
    accepted = acceptance.load(path)
    assert accepted.commit == accepted.held_off == ""
    assert f"`{path}` does not say which commit was accepted last" in accepted.lost
    assert "\n" not in accepted.lost


def test_rollbacks_are_recorded_line_by_line(tmp_path):
    path = tmp_path / "rollbacks.jsonl"
    for reason in ("one", "two\nlines"):
        acceptance.record(path, Rollback(1.0, "b", "a", reason, 0))
    first, second = path.read_text().splitlines()
    assert first == '{"time": 1.0, "from": "b", "to": "a", "reason": "one", "uid": 0}'
    assert "two\\nlines" in second
