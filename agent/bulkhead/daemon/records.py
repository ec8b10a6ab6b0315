"""What was judged: the log of flows, with names for what the kernel only numbers, and the questions it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from bulkhead.abi import DropReason, EventFlag, Identity, Verdict, VerdictEvent, name_of
from bulkhead.config import Settings
from bulkhead.daemon.answers import Answers
from bulkhead.daemon.conversations import conversations
from bulkhead.daemon.enforcer import Enforcer
from bulkhead.daemon.learned import learned_names
from bulkhead.daemon.requests import RECORDS_MAX
from bulkhead.daemon.switches import switches
from bulkhead.errors import BulkheadError, KernelError, UsageError
from bulkhead.identity import processes
from bulkhead.identity.selectors import unit_of
from bulkhead.kernel.generation import boot_offset_s
from bulkhead.observe import by_address, explain, flows, logs
from bulkhead.observe.filters import Filter, filter_from_json
from bulkhead.observe.names import GenerationNamer
from bulkhead.observe.question import Question, question_from_json
from bulkhead.observe.requests_explain import explain_request
from bulkhead.observe.tables import Tables, tables_of

log = logs.Log()

Json = dict[str, Any]

_TCP: Final = 6
_CLASS_BIT: Final = 1 << 31


class Records:
    """Keeps the log, and answers from it."""

    def __init__(self, settings: Settings, namer: GenerationNamer) -> None:
        self.settings = settings
        self.namer = namer
        self.flows = flows.FlowLog()

    def serve(self, enforcer: Enforcer, answers: Answers) -> None:
        """Say who hears events, and who tells of totals."""
        self.enforcer, self.answers = enforcer, answers

    def reads(self) -> dict[str, Callable[[Json], Awaitable[Json]]]:
        """The questions that anybody may ask, by operation."""
        answers = self.answers
        return {
            "status": _answer(lambda _: answers.status()),
            "rules": _answer(lambda _: answers.rules()),
            "workloads": _answer(lambda args: answers.inventory() if args.get("inventory") else answers.workloads()),
            "drops": _answer(partial(self._records, verdicts=("deny", "would-deny"))),
            "flows": _answer(partial(self._records, verdicts=("allow", "deny", "would-deny"))),
            "minutes": _answer(self._minutes),
            "conversations": self._conversations,
            "names": _answer(lambda _: learned_names(self.enforcer, self.namer)),
            "nodes": _answer(lambda _: self.enforcer.wire.nodes()),
            "by-address": _answer(self._by_address),
            "requests": _answer(self._requests),
            "identities": _answer(lambda _: self.enforcer.mesh.svids()),
            "bundles": self._bundles,
            "why": _answer(self._why),
            "can": _answer(self._can),
        }

    def _records(self, args: Json, verdicts: tuple[str, ...]) -> Json:
        self.enforcer.read_verdicts()
        wanted = _wanted(args, verdicts)
        records = [flows.record_to_json(record) for record in self.flows.records(wanted)]
        totals, lost = self.answers.totals(), self.answers.lost()
        return {"records": records, "totals": totals, "lost": lost, "log": self.answers.flow_log(wanted)}

    def _minutes(self, _: Json) -> Json:
        self.enforcer.read_verdicts()
        return {
            "host": self.settings.host,
            "at": time.time(),
            "absent_s": self.flows.absent_s,
            "totals": self.answers.totals(),
            "lost": self.answers.lost(),
            "switches": switches(self.settings.generations),
            "minutes": self.flows.minutes.to_json(),
        }

    async def _conversations(self, _: Json) -> Json:
        # A machine can have a hundred thousand of them: events are heard meanwhile.
        return await asyncio.to_thread(conversations, self.enforcer, self.namer)

    def tables(self) -> Tables:
        """Those of the policy in force. Raises UsageError when there is none."""
        if self.enforcer.bundle is None:
            raise UsageError("no policy is in force")
        return tables_of(self.enforcer.bundle)

    def _can(self, args: Json) -> Json:
        question = question_from_json(args)
        return explain.answer_to_json(self.model(question))

    def model(self, question: Question) -> explain.Answer:
        """What the policy in force says to a question. Raises UsageError as `can` does, and without a policy."""
        nodes, observe_only = self.answers.vicinity(), self.settings.observe_only
        return explain.can(self.tables(), question, time.time(), observe_only=observe_only, nodes=nodes)

    def explained(self, record: flows.FlowRecord) -> explain.Explanation:
        """Why it was judged so."""
        tables = self.namer.of_commit(record.commit) if record.told_by else self.tables()
        return explain.explain(record, tables, self.answers.lost(), self.settings.host)

    def _why(self, args: Json) -> Json:
        self.enforcer.read_verdicts()
        tables, question = self.tables(), question_from_json(args)
        answer = self.model(question)
        records = self.flows.records(explain.asked_about(tables, question))
        why = explain.why(records, answer, tables, self.answers.lost(), self.settings.host, self.namer.of_commit)
        ends = (answer.source, answer.destination)
        return why | {"withheld": [asdict(one) for one in self.enforcer.posture.standing if one.workload in ends]}

    def _by_address(self, args: Json) -> Json:
        self.enforcer.read_verdicts()
        since = args.get("since", time.time() - by_address.WINDOW_S)
        if type(since) not in (int, float):
            raise UsageError("`since` is a time in Unix seconds")
        return self.answers.by_address(float(since)) | {"lost": self.answers.lost()}

    async def _bundles(self, _: Json) -> Json:
        return dict(await self.enforcer.mesh.bundles())

    def _requests(self, args: Json) -> Json:
        self.enforcer.read_verdicts()
        log, reference = self.enforcer.mesh.requests, args.get("reference")
        if reference is None:
            limit = args.get("limit", 100)
            if type(limit) is not int or not 1 <= limit <= RECORDS_MAX:
                raise UsageError(f"`limit` is 1..{RECORDS_MAX}")
            return {"requests": [one.to_json() for one in log.latest(limit)], "counts": log.counts()}
        found = log.find(str(reference))
        if found is None:
            raise UsageError(f"no request `{reference}` is known on this host: it keeps the latest {RECORDS_MAX:,}")
        bundle = self.enforcer.bundle
        decided = log.decided(found)
        said = explain_request(found.record, found.verdict, decided, bundle) if bundle is not None else None
        return {"requests": [found.to_json()], "explanation": asdict(said) if said is not None else None}

    async def watch(self, args: Json) -> AsyncGenerator[Json, None]:
        """What is refused from now on, as it comes."""
        wanted = _wanted(args, ("deny", "would-deny"))
        with self.flows.subscriptions.subscribe() as subscription:
            while True:
                record = await subscription.get()
                if wanted(record):
                    yield flows.record_to_json(record)

    # Events

    def on_verdict(self, raw: bytes) -> None:
        """Take in a verdict event of the kernel."""
        raw = self._with_withheld_named(raw)
        record = self.flows.record(raw, self._context())
        self._note_transport(VerdictEvent.from_buffer_copy(raw), raw, record)
        if record is not None and record.verdict == "deny":
            log.warning("refused", **_refusal_fields(record))

    def _note_transport(self, event: VerdictEvent, raw: bytes, record: flows.FlowRecord | None) -> None:
        """For the share of mutual TLS, and so that the proxy's records find their process."""
        requests, verdict = self.enforcer.mesh.requests, name_of(Verdict, event.verdict)
        if event.flags & EventFlag.STEERED:
            requests.saw(event, record or self.flows.known(raw, self._context()))
            requests.heard("mtls", verdict)
        elif event.node and event.protocol == _TCP and Identity.RESERVED_MAX < event.remote_identity < _CLASS_BIT:
            requests.heard("plaintext", verdict)

    def _with_withheld_named(self, raw: bytes) -> bytes:
        """A refusal for posture, of the workload that would be the one: the kernel only knows that it is withheld."""
        event, plan = VerdictEvent.from_buffer_copy(raw), self.enforcer.attestation.plan
        if event.reason != DropReason.POSTURE or plan is None:
            return raw
        executable = event.exe_inode, event.exe_device, event.exe_generation
        process = self._process(flows.Sighting(event.tgid, event.cgroup_id, *executable))
        peer = self._peer(event.peer_tgid) if event.peer_tgid else None
        ends = [(one.cgroup, one.exe, uid) for one, uid in ((process, event.uid), (peer, None)) if one and one.cgroup]
        if event.local_identity == Identity.WITHHELD:  # of a call, or on lo, the process may be the other end's
            event.local_identity = plan.withheld_identity(ends)
        if event.remote_identity == Identity.WITHHELD:
            event.remote_identity = plan.withheld_identity(ends[::-1])
        return bytes(event)

    def _context(self) -> flows.Context:
        return flows.Context(self.namer, self._process, boot_offset_s(), self._peer, self.answers.vicinity())

    def _process(self, sighting: flows.Sighting) -> flows.Process | None:
        """What can still be told of an event's process; its control group is known even when it is gone."""
        path = self.enforcer.attestation.path_of(sighting.cgroup_id) or ""
        exe = self.enforcer.attestation.executable_path(
            sighting.exe_inode, sighting.exe_device, sighting.exe_generation
        )
        return flows.Process(exe, unit_of(path) or "" if path else "", path)

    def _peer(self, pid: int) -> flows.Process | None:
        """What a process of this machine is now; None when it is gone."""
        try:
            found = processes.read(pid)
        except KernelError:
            return None
        if found is None or found.cgroup_path is None:
            return None
        path = self.enforcer.tree.relative_of_namespace(found.cgroup_path)
        exe = found.executable.path if found.executable is not None else ""
        return None if path is None else flows.Process(exe, unit_of(path) or "", path)

    def save(self) -> None:
        """Keep the log over a restart."""
        path = self.settings.saved_flows
        fresh = path.with_suffix(".new")
        fresh.write_text(self.flows.dump())
        fresh.replace(path)

    def load(self) -> None:
        """Take up the log of the agent before."""
        if not self.settings.saved_flows.exists():
            return
        try:
            self.flows.load(self.settings.saved_flows.read_text())
        except (BulkheadError, OSError, UnicodeDecodeError) as error:
            log.warning("the saved flow log cannot be used", cause=str(error))


def _refusal_fields(record: flows.FlowRecord) -> dict[str, object]:
    """The first refusal of a kind, for the journal."""
    return {
        "source": record.source,
        "destination": record.destination,
        "port": f"{record.port}/{record.protocol}",
        "address": record.remote_address,
        "direction": record.direction,
        "reason": record.reason,
        "comm": record.comm,
        "exe": record.exe,
        "unit": record.unit,
        "object_pid": record.pid,
        "commit": record.commit[:7],
        "generation": record.generation,
        "node": record.node,
        "told_by": record.told_by,
    }


def _wanted(args: Json, verdicts: tuple[str, ...]) -> Filter:
    """The filter that was asked for, within `verdicts`."""
    return filter_from_json({**args, "verdict": args.get("verdict") or list(verdicts)})


def _answer(function: Callable[[Json], Json]) -> Callable[[Json], Awaitable[Json]]:
    async def handler(args: Json) -> Json:
        return function(args)

    return handler
