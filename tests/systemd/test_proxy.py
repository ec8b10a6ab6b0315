"""The proxy under its shipped unit: sandboxed, and good for what a commit asks of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import envoy
import pytest

from lab.installed import Installed
from lab.nodes import authority_file
from lab.policies import policy, repository
from lab.systemd_box import SystemdBox

SERVER = "/usr/bin/python3 -m http.server 8090 --bind 127.0.0.1"
ENVOY = Path(envoy.__file__).parent / "_bin" / "envoy"
SETTINGS = """
envoy = "/opt/bulkhead/bin/envoy"
authority = "/etc/bulkhead/authority.pem"
authority_passphrase = "/etc/bulkhead/authority.passphrase"
"""
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
def proxied() -> Iterator[Installed]:
    """Agent and proxy running in a box of their own."""
    with SystemdBox("proxied") as box:
        installed = Installed(box)
        installed.install()
        shutil.copy(ENVOY, box.root / "opt/bulkhead/bin/envoy")
        authority_file(box.root / "etc/bulkhead", "units")
        settings = box.root / "etc/bulkhead/agent.toml"
        settings.write_text(f"{settings.read_text()}\n{SETTINGS}")
        installed.commit({"bulkhead.yaml": repository(), "t.yaml": POLICY})
        box.start_unit("answering.service", f"[Service]\nExecStart={SERVER}\n")
        installed.start()
        installed.start("bulkhead-proxy.service")
        installed.until(lambda: bool(installed.ask("status")["mesh"]["proxy"]["pid"]), 40)
        yield installed


def status_of(installed: Installed, number: int, *options: str) -> str:
    """What a request of a unit that may ask comes to. Whoever connects before the agent has heard of its control group
    is nobody yet, and is refused: it tries again."""
    name, url = f"asking-{number}.service", "http://127.0.0.1:8090/"
    patience = "--retry 5 --retry-all-errors --retry-delay 1 --connect-timeout 1"
    command = f"/usr/bin/curl -s {patience} -o /dev/null -w %%{{http_code}} {' '.join(options)} {url}"
    unit = f"[Service]\nType=oneshot\nStandardOutput=truncate:/run/{name}\nExecStart=-{command}\n"
    installed.box.start_unit(name, unit)
    return str((installed.box.root / f"run/{name}").read_text())


def test_requests_on_one_host_are_judged_by_the_proxy_in_its_sandbox(proxied: Installed) -> None:
    proxied.until(lambda: not proxied.ask("status")["mesh"]["problem"])
    assert status_of(proxied, 1) == "200"
    assert status_of(proxied, 2, "-X", "DELETE") == "403"
    pid = proxied.ask("status")["mesh"]["proxy"]["pid"]
    proxied.systemctl("restart", "bulkhead.service")
    proxied.until(lambda: not proxied.ask("status")["mesh"]["problem"])
    assert proxied.ask("status")["mesh"]["proxy"]["pid"] == pid, "the agent's restart is none of Envoy's"
    assert status_of(proxied, 3) == "200"
