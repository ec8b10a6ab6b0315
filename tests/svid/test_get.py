"""`bulkhead identity get`, as the workload that the shell is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from bulkhead.cli.main import run
from bulkhead.svid import jwt
from bulkhead.svid.bundle import read
from svid.serving import DOMAIN, WEB, Node, Shared


def test_the_caller_gets_its_own_svids(shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB)
        words = ["identity", "get", "--endpoint", str(node.settings.workload_socket)]
        assert await asyncio.to_thread(run, [*words, "--out", str(tmp_path / "own")]) == 0
        assert WEB.spiffe_id in capsys.readouterr().out
        own = tmp_path / "own"
        assert {one.name: one.stat().st_mode & 0o777 for one in own.iterdir()} == dict.fromkeys(
            ("key.pem", "svid.pem", "bundle.pem"), 0o600
        )
        check = ["identity", "verify", str(own / "svid.pem"), "--bundle", str(own / "bundle.pem")]
        assert await asyncio.to_thread(run, [*check, "--trust-domain", DOMAIN]) == 0
        capsys.readouterr()
        assert await asyncio.to_thread(run, [*words, "--audience", "api", "-o", "json"]) == 0
        (token,) = json.loads(capsys.readouterr().out)["data"]
        bundles = {name: read(name, text.encode()) for name, text in (await node.process.bundles()).items()}
        assert str(jwt.validate(token["token"], "api", bundles)[0]) == WEB.spiffe_id == token["spiffe_id"]

    shared.run(work)


def test_a_caller_that_is_no_workload_is_told_so(shared: Shared, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB)
        node.people.clear()
        words = ["identity", "get", "--endpoint", str(node.settings.workload_socket)]
        assert await asyncio.to_thread(run, words) == 3
        assert "is no workload of this node's policy" in capsys.readouterr().err

    shared.run(work)
