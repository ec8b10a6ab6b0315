"""The agent's files, bulkhead-proxy as a process of its own, and a real Envoy: start, end, replacement."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead import config
from bulkhead.config import Settings
from bulkhead.daemon.proxy import Proxy, take_down
from bulkhead.dataplane.mesh import HBONE_PORT, LANE_PORT, Call, Lane, Mesh
from bulkhead.observe.requests import Kind, RequestRecord
from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.running import find_envoy
from lab.netns import network_namespace

MESH = Mesh(
    lanes=(Lane(5, 1001, (1002,)),),
    calls=(Call(1002, 1001, ((80, 80),)),),
    svids={1001: "spiffe://example.org/a", 1002: "spiffe://example.org/b"},
)
WITHIN_S = 20.0


@pytest.fixture
def settings() -> Iterator[Settings]:
    with (
        tempfile.TemporaryDirectory() as directory,
        network_namespace() as namespace,
        namespace.entered(),
    ):
        Path(directory).chmod(0o755)
        yield Settings(run_dir=Path(directory))


def node(settings: Settings) -> ProxyNode:
    return ProxyNode("one", "example.org", ("10.0.0.1",), settings.run_dir, binds=("127.0.1.1",))


@contextmanager
def keeper(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """bulkhead-proxy, ended with the block."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = (sys.executable, "-m", "bulkhead.proxyd", config.dump(settings))
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(WITHIN_S)


@contextmanager
def agent(settings: Settings, records: list[RequestRecord]) -> Iterator[Proxy]:
    """What the agent has to do with the proxy, until it ends."""
    made = Proxy(settings, records.append)
    try:
        yield made
    finally:
        made.stop()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    last = time.monotonic() + WITHIN_S
    while not await holds():
        assert time.monotonic() < last, "it does not come true"
        await asyncio.sleep(0.01)


async def accepts(address: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def another(proxy: Proxy, pid: int) -> int:
    """The process id of an Envoy that serves and is not `pid`."""

    async def is_other() -> bool:
        return proxy.pid not in (0, pid)

    await until(is_other)
    return proxy.pid


def test_envoy_runs_with_one_capability_and_outlives_the_agent_and_not_its_keeper(settings: Settings) -> None:
    records: list[RequestRecord] = []

    async def main() -> None:
        with keeper(settings):
            with agent(settings, records) as proxy:
                proxy.publish(MESH, node(settings), {})
                pid = await another(proxy, 0)
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                assert status["CapEff"] == status["CapBnd"] == f"{1 << 13:016x}"
                assert (status["NoNewPrivs"], status["Groups"].strip()) == ("1", "")
                assert set(status["Uid"].split()) != {"0"}
                assert await accepts(MESH.lanes[0].address, LANE_PORT)
            assert await accepts("127.0.1.1", HBONE_PORT)
            with agent(settings, records) as proxy:
                proxy.publish(MESH, node(settings), {})
                assert (proxy.pid, proxy.error) == (pid, "")
                assert await accepts("127.0.1.1", HBONE_PORT)

                async def told() -> bool:
                    return any(one.kind is Kind.CONNECTION for one in records)

                await until(told)
                assert proxy.statistics().rejected == 0

        async def is_closed() -> bool:
            return not await accepts("127.0.1.1", HBONE_PORT)

        await until(is_closed)

    asyncio.run(main())


def test_an_envoy_that_dies_is_started_again_and_another_start_configuration_replaces_it(settings: Settings) -> None:
    async def main() -> None:
        with keeper(settings), agent(settings, []) as proxy:
            proxy.publish(MESH, node(settings), {})
            first = await another(proxy, 0)
            os.kill(first, signal.SIGKILL)
            second = await another(proxy, first)
            assert proxy.running.restarts == 1
            proxy.publish(MESH, replace(node(settings), host="renamed"), {})
            third = await another(proxy, second)
            assert third != second
            assert proxy.running.epoch == 1
            assert await accepts("127.0.1.1", HBONE_PORT)

    asyncio.run(main())


def test_an_envoy_ends_when_its_files_are_taken_away(settings: Settings) -> None:
    async def main() -> None:
        with keeper(settings):
            with agent(settings, []) as proxy:
                proxy.publish(MESH, node(settings), {})
                pid = await another(proxy, 0)
            take_down(settings)

            async def has_ended() -> bool:
                return not Path(f"/proc/{pid}").exists()

            await until(has_ended)

    asyncio.run(main())


def test_an_envoy_that_does_not_start_is_told_of_in_its_own_words(settings: Settings) -> None:
    binary = settings.run_dir / "broken"
    binary.write_text("#!/bin/sh\necho it has no legs >&2\nexit 1\n")
    binary.chmod(0o755)
    broken = replace(settings, envoy=binary)

    async def main() -> None:
        with keeper(broken), agent(broken, []) as proxy:
            proxy.publish(MESH, node(broken), {})

            async def has_said() -> bool:
                return "it has no legs" in proxy.error

            await until(has_said)
            assert proxy.pid == 0

    asyncio.run(main())


def test_the_binary_of_the_package_is_found_unless_another_is_set() -> None:
    assert find_envoy(Settings(envoy=Path("/opt/envoy"))) == Path("/opt/envoy")
    found = find_envoy(Settings())
    assert found is not None
    assert found.name == "envoy"
