"""How fast the kernel is what git says: a push, a rule taken away, an isolation, tampering, a trial that ends."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from figures import Figure, at_most, context, median, spread
from hosts import wait_until

from bulkhead.kernel import libbpf
from lab.host import Host
from lab.policies import policy, repository
from lab.puppet import Puppet
from lab.signing import SignedRepository, SshSigner, roots_file, ssh_signer

_ROUNDS = 10
_TRIAL_S = 10
_LOCAL = "127.0.0.1"
_OPEN, _CLOSED = policy("api -> db 5432"), policy("api -> db 5433")


def measure() -> list[Figure]:
    """All figures of this part, on hosts of their own."""
    with Host("upkeep") as host:
        host.start_agent()
        db, api = host.puppet("db"), host.puppet("api")
        db.serve_tcp("0.0.0.0", 5432)
        return [_cut(host, api), *_quarantine(host, api), *_drift(host), _trial(host, api), _push()]


def _cut(host: Host, api: Puppet) -> Figure:
    took = []
    for number in range(_ROUNDS):
        host.enforce(_OPEN)
        if api.hold(f"c{number}", _LOCAL, 5432) != "ok":
            raise RuntimeError("the conversation to cut did not open")
        started = time.monotonic()
        host.commit({"bulkhead.yaml": repository(), "t.yaml": _CLOSED})
        wait_until(lambda: not _established(host))
        took.append(time.monotonic() - started)
    method = f"git commit to the end of a silent TCP socket that it refuses, {_ROUNDS} times: {spread(took, 's')}"
    return at_most("rule removed to open connection cut", median(took) * 1000, "ms", 300, f"median; {method}")


def _established(host: Host) -> bool:
    return ":5432" in host.run("tool", ["ss", "-Htn", "state", "established"]).stdout


def _quarantine(host: Host, api: Puppet) -> list[Figure]:
    host.enforce(_OPEN)
    asked, command = [], []
    for _ in range(_ROUNDS):
        started = time.monotonic()
        host.call("quarantine", workload="t/api", reason="bench")
        asked.append(time.monotonic() - started)
        _expect(api, "EPERM")
        host.call("release", workload="t/api")
        started = time.monotonic()
        host.bulkhead("quarantine", "t/api", "--reason", "bench")
        command.append(time.monotonic() - started)
        host.call("release", workload="t/api")
        _expect(api, "ok")
    method = f"nothing passes when it returns, {_ROUNDS} times: "
    name = "quarantine, request to last packet"
    return [
        at_most(name, median(asked) * 1000, "ms", 100, f"median, asked over the control socket; {method}"),
        context("quarantine, from the shell", median(command) * 1000, "ms", f"median, with Python's start; {method}"),
    ]


def _expect(api: Puppet, outcome: str) -> None:
    found = api.tcp(_LOCAL, 5432)
    if found != outcome:
        raise RuntimeError(f"expected {outcome}, not {found}")


def _drift(host: Host) -> list[Figure]:
    def detach() -> None:
        with libbpf.obj_get(host.pins / "links" / "tcx_1_egress") as link:
            libbpf.link_detach(link)

    def edit() -> None:
        with libbpf.map_open(host.pins / "maps" / "control") as word:
            word.update(bytes(4), bytes(8))

    kinds = (("hook detached", detach), ("map edited", edit))
    return [_repaired(host, f"drift found and repaired: {name}", tamper) for name, tamper in kinds]


def _repaired(host: Host, name: str, tamper: Callable[[], None]) -> Figure:
    took = []
    for _ in range(_ROUNDS):
        before = host.call("status")["drift"]["found"]
        started = time.monotonic()
        tamper()
        wait_until(lambda before=before: host.call("status")["drift"]["found"] > before)  # type: ignore[misc]
        took.append(time.monotonic() - started)
    return at_most(name, max(took), "s", 1.0, f"worst of {_ROUNDS}: {spread(took, 's')}; told by status")


def _trial(host: Host, api: Puppet) -> Figure:
    """With the agent killed: the kernel alone goes back."""
    host.enforce(_OPEN)
    clone = host.directory / "clone"
    subprocess.run(["git", "clone", "-q", str(host.repository), str(clone)], check=True)
    (clone / "t.yaml").write_text(_CLOSED)
    git = ["git", "-C", str(clone), "-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    subprocess.run([*git, "commit", "-qam", "closed"], check=True)
    subprocess.run([*git, "push", "-q", "origin", "HEAD:closed"], check=True)
    until = host.call("try", revision="closed", seconds=_TRIAL_S)["until"]
    host.stop_agent(9)
    _expect(api, "EPERM")
    wait_until(lambda: api.tcp(_LOCAL, 5432) == "ok")
    late = abs(time.time() - until)
    method = f"`try` of {_TRIAL_S} s, agent killed; how far from its end the old policy was back, to whole seconds"
    return at_most("trial not confirmed: reverted on time, off by", late, "s", 1.5, method)


def _push() -> Figure:
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-push-") as name:
        key = ssh_signer(Path(name), "guard")
        roots = roots_file(Path(name) / "signers.toml", (key, "guardrail"))
        with Host("push") as host:
            remote = {"repository": f"file://{host.repository}", "ref": "main", "signers": str(roots)}
            signed = SignedRepository(host.repository)
            signed.commit({"bulkhead.yaml": repository(), "t.yaml": _OPEN}, key)
            host.more_settings = remote
            host.start_agent()
            took = [_pushed(host, signed, key, number) for number in range(_ROUNDS)]
    method = f"signed commit pushed to a file:// remote, to its generation in the kernel, {_ROUNDS} times"
    return at_most("fetch, verify, compile, switch of one line", median(took), "s", 1.0, f"median; {method}")


def _pushed(host: Host, signed: SignedRepository, key: SshSigner, number: int) -> float:
    text = policy(f"api -> db {6000 + number}")
    started = time.monotonic()
    commit = signed.commit({"t.yaml": text}, key)
    wait_until(lambda: host.call("status")["commit"] == commit)
    return time.monotonic() - started
