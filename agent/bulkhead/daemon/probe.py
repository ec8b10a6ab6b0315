"""Tracing a way, by the model or by a real probe.

The agent does not send the probe: it has no right to write to control groups, and shall have none. Root asks for one
(`probe`), is told which control group and which network the workload has, has a process enter them (`probe-entered`),
sends the probe from there (cli/probing.py) and asks what the kernel said of it (`probed`). One probe at a time, for
seconds.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.control.peers import Peer
from bulkhead.control.server import ChangeHandler
from bulkhead.daemon.enforcer import Enforcer
from bulkhead.daemon.records import Records
from bulkhead.errors import RefusedError, UsageError
from bulkhead.identity.selectors import Identified
from bulkhead.kernel.attestation import Plan
from bulkhead.observe import explain, logs, trace
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.question import Directory, Kind, Question, Subject, question_from_json
from bulkhead.observe.subscriptions import Subscription
from bulkhead.observe.tables import parse_address

log = logs.Log()

Json = dict[str, Any]

COMM: Final = "bulkhead-probe"
"""What a probe's process is called, and so its records say."""
TIMEOUT_MAX_S: Final = 5.0
_KEPT_S: Final = 5.0
"""Beside the probe's own timeout, for its process to enter and its report to come."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """One that is under way."""

    token: str
    question: Question
    heard: Subscription[FlowRecord]
    ending: ExitStack
    """Ends the subscription."""


class Prober:
    """Says who judges what is on its way."""

    def __init__(self, enforcer: Enforcer, records: Records) -> None:
        self._enforcer = enforcer
        self._records = records
        self._open: _Probe | None = None

    def reads(self) -> dict[str, Callable[[Json], Awaitable[Json]]]:
        """What anybody may ask, by operation."""
        return {"trace": self._trace}

    def changes(self) -> dict[str, ChangeHandler]:
        """What root alone may: a probe is real traffic of a workload."""
        return {"probe": self._begin, "probe-entered": self._entered, "probed": self._end}

    # By the model

    async def _trace(self, args: Json) -> Json:
        question = question_from_json(args)
        answer = self._records.model(question)
        return self._told(question, answer.verdict, self._expected(question, answer))

    def _expected(self, question: Question, answer: explain.Answer) -> list[trace.Step]:
        directory = Directory(self._records.tables())
        ends = directory.subject(question.source), directory.subject(question.destination)
        wire = self._enforcer.wire
        view = trace.Wire(self._records.answers.vicinity(), wire.mute, lambda node: node.number in wire.until)
        return trace.model(answer, *ends, view)

    def _told(self, question: Question, verdict: str, steps: list[trace.Step]) -> Json:
        return {
            "host": self._enforcer.settings.host,
            "from": question.source,
            "to": question.destination,
            "port": question.port,
            "protocol": question.protocol,
            "verdict": verdict,
            "steps": trace.steps_to_json(steps),
            "commit": self._enforcer.bundle.commit if self._enforcer.bundle is not None else "",
            "generation": self._enforcer.generation,
            "lost": self._records.answers.lost(),
        }

    # By a probe

    async def _begin(self, args: Json, peer: Peer) -> Json:
        """Where to send a probe from. Raises UsageError where none can stand for the workload."""
        question, timeout_s = question_from_json(args), _seconds(args.get("timeout_s"))
        _check_target(question)
        source = Directory(self._records.tables()).subject(question.source)
        path, pid = self._place(source)
        self._records.model(question)  # raises for what it cannot judge, before anything is sent
        if self._open is not None:
            raise RefusedError("another probe is under way: try again in a moment")
        ending = ExitStack()
        heard = ending.enter_context(self._records.flows.subscriptions.subscribe(wanted=lambda one: one.comm == COMM))
        probe = self._open = _Probe(secrets.token_hex(8), question, heard, ending)
        asyncio.get_running_loop().call_later(timeout_s + _KEPT_S, self._close, probe)
        to = f"{question.destination} {question.port_text}"
        log.warning("a probe is sent", workload=source.name, cgroup=path, to=to, uid=peer.uid, asked_by=peer.pid)
        cgroup = str(self._enforcer.tree.directory(path))
        return {"token": probe.token, "cgroup": cgroup, "netns": f"/proc/{pid}/ns/net", "comm": COMM}

    def _place(self, source: Subject) -> tuple[str, int]:
        """A control group that makes whoever is in it the workload, and a process in it."""
        plan, tree = self._enforcer.attestation.plan, self._enforcer.tree
        if source.workload is None or source.kind is not Kind.WORKLOAD or plan is None:
            raise UsageError(f"`{source.name}` is no workload: a probe needs the control group of one")
        held = [(path, pids) for path in _paths_of(plan, source.name) if (pids := tree.members(path))]
        alone = [(path, pids[0]) for path, pids in held if not plan.narrower.view(path).needs]
        if alone:
            return alone[0]
        if held:
            raise UsageError(
                f"`{source.name}` is told apart by executable, user or group as well: a probe in its control group "
                "would not be taken for it"
            )
        raise UsageError(f"no process of `{source.name}` runs on this host: there is nowhere to send a probe from")

    async def _entered(self, args: Json, _: Peer) -> Json:
        """The probe's process is in the control group: have it heard of now, not when the probe is on its way.

        A process that has moved has its sockets judged anew, and a conversation that is being opened begins again.
        """
        self._under_way(args)
        self._enforcer.read_lifecycle()
        return {}

    def _under_way(self, args: Json) -> _Probe:
        if self._open is None or args.get("token") != self._open.token:
            raise UsageError("no such probe is under way")
        return self._open

    async def _end(self, args: Json, peer: Peer) -> Json:
        """What became of a probe that was sent."""
        probe, outcome, ms, pid = self._under_way(args), args.get("outcome"), args.get("ms"), args.get("pid")
        self._enforcer.read_verdicts()
        self._close(probe)
        if not isinstance(outcome, str) or not isinstance(ms, int | float) or type(pid) is not int:
            raise UsageError("a probe's report has a text `outcome` and the numbers `ms` and `pid`")
        record = _decisive(probe, pid)
        answer = self._records.model(probe.question)
        probed = trace.Probed(outcome, float(ms), record, self._records.explained(record) if record else None)
        steps = trace.probe(self._expected(probe.question, answer), probed)
        log.info("a probe is back", outcome=outcome, pid=pid, uid=peer.uid)
        found = self._told(probe.question, trace.verdict(probed), steps)
        return found | {"probe": {"outcome": outcome, "ms": ms, "pid": pid, "comm": COMM}}

    def _close(self, probe: _Probe) -> None:
        probe.ending.close()
        if self._open is probe:
            self._open = None


def _paths_of(plan: Plan, name: str) -> list[str]:
    """The control groups in which some process can be the workload."""
    return [
        path
        for path in plan.paths.values()
        if any(
            isinstance(outcome, Identified) and outcome.workload.qualified == name
            for outcome in plan.narrower.view(path).table.values()
        )
    ]


def _decisive(probe: _Probe, pid: int) -> FlowRecord | None:
    """What was said of the probe last. In a process namespace of its own the agent is told other numbers than ours."""
    heard = [one for one in probe.heard.drain() if one.port == probe.question.port]
    own = [one for one in heard if one.pid == pid] or heard
    return max(own, key=lambda one: one.last_seen, default=None)


def _check_target(question: Question) -> None:
    address = parse_address(question.destination)
    if question.protocol not in ("tcp", "udp") or question.port == 0:
        raise UsageError("a probe goes to a TCP or UDP port")
    if address is None:
        raise UsageError(f"a probe goes to an address: `{question.destination}` is none")
    if address.is_multicast or address.is_unspecified or address.is_loopback or str(address) == "255.255.255.255":
        raise UsageError(f"a probe goes to one other host, which `{address}` is not")


def _seconds(given: object) -> float:
    if not isinstance(given, int | float) or not 0 < given <= TIMEOUT_MAX_S:
        raise UsageError(f"a probe waits for at most {TIMEOUT_MAX_S:g} seconds")
    return float(given)
