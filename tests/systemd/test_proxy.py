"""The proxy under its shipped unit: sandboxed, and good for what a commit asks of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envoy
import pytest

from lab.policies import policy, repository

ENVOY = Path(envoy.__file__).parent / "_bin" / "envoy"
L7 = """  - name: read
    from: asking
    to: answering
    ports: [8090]
    l7: {http: [{methods: [GET], path: "/*"}]}
"""
POLICY = policy(
    "answering -> asking 1",
    workloads={
        "answering": "{match: {unit: answering.service}, mode: enforce}",
        "asking": '{match: {unit: "asking-*.service"}, mode: enforce}',
    },
    more=L7,
)


@pytest.fixture
def proxied(installed: Any) -> Iterator[Any]:
    box = installed.box
    shutil.copy(ENVOY, box.root / "opt/bulkhead/bin/envoy")
    settings = box.root / "etc/bulkhead/agent.toml"
    settings.write_text(settings.read_text() + '\nenvoy = "/opt/bulkhead/bin/envoy"\n')
    installed.commit({"bulkhead.yaml": repository(), "t.yaml": POLICY})
    box.start_unit("answering.service", "[Service]\nExecStart=/usr/bin/python3 -m http.server 8090 --bind 127.0.0.1\n")
    installed.start()
    installed.start("bulkhead-proxy.service")
    installed.until(lambda: bool(installed.ask("status")["mesh"]["proxy"]["pid"]), 40)
    yield installed
    installed.systemctl("stop", "bulkhead-proxy.service")


def status_of(installed: Any, number: int, *options: str) -> str:
    """What a request of a unit that may ask comes to."""
    name, url = f"asking-{number}.service", "http://127.0.0.1:8090/"
    command = f"/usr/bin/curl -s -m 5 -o /dev/null -w %%{{http_code}} {' '.join(options)} {url}"
    unit = f"[Service]\nType=oneshot\nStandardOutput=truncate:/run/{name}\nExecStart=-{command}\n"
    installed.box.start_unit(name, unit)
    return str((installed.box.root / f"run/{name}").read_text())


def test_requests_on_one_host_are_judged_by_the_proxy_in_its_sandbox(proxied: Any) -> None:
    proxied.until(lambda: not proxied.ask("status")["mesh"]["problem"])
    assert status_of(proxied, 1) == "200"
    assert status_of(proxied, 2, "-X", "DELETE") == "403"
    pid = proxied.ask("status")["mesh"]["proxy"]["pid"]
    proxied.systemctl("restart", "bulkhead.service")
    proxied.until(lambda: not proxied.ask("status")["mesh"]["problem"])
    assert proxied.ask("status")["mesh"]["proxy"]["pid"] == pid, "the agent's restart is none of Envoy's"
    numbers = iter(
        range(3, 40)
    )  # the authority of a run ends with it: SVIDs are new, and Envoy hears of it in a moment
    proxied.until(lambda: status_of(proxied, next(numbers)) == "200")
    assert status_of(proxied, 50) == "200"
