"""What the agent says of itself: the data behind the command line and the metrics."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any, Final

from bulkhead.abi import Mode, PolicyEntry, PolicyKey
from bulkhead.daemon.counters import Counters
from bulkhead.daemon.enforcer import Enforcer
from bulkhead.daemon.plaintext import Plaintext
from bulkhead.daemon.readiness import readiness
from bulkhead.daemon.trial import Trial
from bulkhead.daemon.upkeep import Upkeep
from bulkhead.daemon.vicinity import Vicinity
from bulkhead.dataplane.compile import WorkloadInfo
from bulkhead.identity import processes
from bulkhead.identity.selectors import Identified, unit_of
from bulkhead.kernel.devices import list_devices
from bulkhead.observe import by_address
from bulkhead.observe.filters import VERDICTS, Filter
from bulkhead.observe.flows import FlowLog
from bulkhead.policy import model

Json = dict[str, Any]

_KEY_BYTES: Final = len(bytes(PolicyKey()))
_VALUE_BYTES: Final = len(bytes(PolicyEntry()))
_RULE_BYTES: Final = 4
"""Of an entry, the part that says which rule: counters and deadlines are the kernel's own numbers."""


class SourceState:
    """How the policy repository answers. Times are Unix seconds; 0: never."""

    def __init__(self) -> None:
        self.error = ""
        """Empty: it answered when it was asked last."""
        self.code = ""
        self.error_since = 0.0
        self.last_success = 0.0
        self.commit = ""
        """What the reference named then."""
        self.held_off = ""
        """The tip that an operator rolled back."""

    def looked(self, at: float, error: str, code: str, commit: str) -> None:
        """It was asked."""
        if error:
            self.error_since = self.error_since or at
        else:
            self.error_since, self.last_success = 0.0, at
        self.error, self.code, self.commit = error, code, commit or self.commit

    def to_json(self) -> Json:
        """For `status`."""
        return {
            "ok": not self.error,
            "error": self.error or None,
            "code": self.code or None,
            "error_since": self.error_since or None,
            "last_success": self.last_success or None,
            "commit": self.commit or None,
            "held_off": self.held_off or None,
        }


class PolicyState:
    """How the last attempts to load policy went."""

    def __init__(self) -> None:
        self.source = SourceState()
        self.refusals: Counter[str] = Counter()
        """Commits refused since the agent started, by the code of the first finding."""
        self.loaded = 0.0
        self.error = ""
        self.error_since = 0.0
        self.refused_commit = ""

    def accepted(self) -> None:
        """The newest commit is in force."""
        self.loaded = time.time()
        self.error = self.refused_commit = ""
        self.error_since = 0.0

    def refused(self, commit: str, error: str, code: str = "other") -> None:
        """The newest commit is not in force."""
        if error != self.error:
            self.error_since = time.time()
            self.refusals[code] += 1
        self.error = error
        self.refused_commit = commit


class Answers:
    """Answers from the enforcer's state, read when asked."""

    def __init__(self, enforcer: Enforcer, policy: PolicyState, flows: FlowLog, upkeep: Upkeep) -> None:
        self.upkeep = upkeep
        self.trial: Trial | None = None
        self._enforcer = enforcer
        self._flows = flows
        self._policy = policy
        self._started = time.time()
        self._plaintext = Plaintext()
        self.counters = Counters(enforcer.maps)
        self.vicinity = Vicinity(enforcer.wire, enforcer.settings.host)

    def lost(self) -> dict[str, int]:
        """Losses of events, by source."""
        return self.counters.losses()

    def totals(self) -> dict[str, int]:
        """Judgements by verdict."""
        sums: Counter[str] = Counter({"deny": 0, "would-deny": 0})
        for refusal in self.counters.refusals():
            sums[refusal.verdict] += refusal.total
        sums["allow"] = sum(self.counters.hits(dict(self._enforcer.hits.items())).values())
        return dict(sums)

    def last_hits(self) -> dict[str, float]:
        """When each rule was last seen to allow something, in Unix seconds. From events, which are samples."""
        latest: dict[str, float] = {}
        for record in self._flows.records(lambda record: record.verdict == "allow" and bool(record.rule)):
            latest[record.rule] = max(latest.get(record.rule, 0.0), record.last_seen)
        return latest

    def flow_log(self, wanted: Filter) -> Json:
        """What part of what happened the records that `wanted` chooses tell. Times are Unix seconds."""
        every = replace(wanted, verdicts=()) if set(wanted.verdicts) == set(VERDICTS) else wanted
        return {
            "host": self._enforcer.settings.host,
            "at": time.time(),
            "since": max(self._flows.since, wanted.since),
            "absent_s": self._flows.absent_s,
            "filter": str(every),
        }

    def by_address(self, since: float) -> Json:
        """What has passed since then, in Unix seconds, and rests on the other end's address."""
        records = self._flows.records(lambda record: record.last_seen >= since, by_address.rests_on_address)
        found = by_address.paths(records, self.vicinity(), since)
        return {
            "host": self._enforcer.settings.host,
            "at": time.time(),
            "since": max(self._flows.since, since),
            "speaking": self.vicinity().speaks,
            "kinds": by_address.summary(found),
            "paths": [by_address.path_to_json(one) for one in found],
        }

    def modes(self) -> dict[str, int]:
        """How many workloads of this host are in each mode."""
        bundle = self._enforcer.bundle
        found = Counter(str(info.mode) for info in bundle.workloads() if info.local) if bundle else Counter()
        return {str(mode): found[str(mode)] for mode in model.Mode}

    def read_back(self) -> Json:
        """Does the kernel hold exactly the policy entries of the commit in force, and by the same rules?"""
        bundle = self._enforcer.bundle
        held = {key: value[:_RULE_BYTES] for key, value in self._enforcer.maps.entries("policy")}
        wanted: dict[bytes, bytes] = {}
        if bundle is not None:
            keys, rules = bundle.policy_keys, bundle.policy_entries
            for index in range(len(keys) // _KEY_BYTES):
                at = index * _VALUE_BYTES
                wanted[keys[index * _KEY_BYTES : (index + 1) * _KEY_BYTES]] = rules[at : at + _RULE_BYTES]
        return {"kernel": len(held), "expected": len(wanted), "match": held == wanted}

    def differences(self) -> list[str]:
        """How the kernel differs from what git says, as far as it could not be put right."""
        found = [one.what + (f": {one.problem}" if one.problem else "") for one in self.upkeep.standing]
        if self._enforcer.quarantine.problem:
            found.append(self._enforcer.quarantine.problem)
        if not self.read_back()["match"]:
            found.append("the policy entries in the kernel are not those of the commit")
        return found

    def status(self) -> Json:
        """One screen's worth."""
        enforcer, settings = self._enforcer, self._enforcer.settings
        bundle, plan = enforcer.bundle, enforcer.attestation.plan
        differences = self.differences()
        return {
            "version": metadata.version("bulkhead"),
            "host": settings.host,
            "pid": os.getpid(),
            "started": self._started,
            "repository": settings.repository,
            "ref": settings.ref,
            "commit": bundle.commit if bundle else "",
            "generation": enforcer.generation,
            "policy": {
                "ok": not self._policy.error,
                "error": self._policy.error or None,
                "error_since": self._policy.error_since or None,
                "refused_commit": self._policy.refused_commit or None,
                "loaded": self._policy.loaded,
            },
            "source": self._policy.source.to_json(),
            "host_mode": _mode_name(plan.answers.host_mode) if plan else "observe",
            "observe_only": settings.observe_only,
            "workloads": self.modes(),
            "kernel": self._kernel(),
            "attested": {
                "cgroups": len(plan.paths) if plan else 0,
                "executables": enforcer.executables,
                "ambiguous": [
                    {"cgroup": path, "workloads": list(names)} for path, names in (plan.ambiguous() if plan else [])
                ],
            },
            "totals": self.totals(),
            "lost": self.lost(),
            "dns": self.counters.dns_answers(),
            "wire": enforcer.wire.status(),
            "mesh": enforcer.mesh.status(),
            "svids": enforcer.mesh.svids(),
            "plaintext": self._plaintext.rules(bundle) if enforcer.settings.speaks else [],
            "by_address": self.by_address(time.time() - by_address.WINDOW_S)["kinds"],
            "maps": {name: {"entries": n, "max": top} for name, (n, top) in self.counters.sizes().items()},
            "adoption": str(enforcer.adoption),
            "git_equals_kernel": not differences,
            "differences": differences,
            "drift": self.upkeep.report(),
            "quarantine": [asdict(one) for one in enforcer.quarantine],
            "withheld": [asdict(one) for one in enforcer.posture.standing],
            "trial": asdict(self.trial) if self.trial else None,
        }

    def _kernel(self) -> Json:
        enforcer = self._enforcer
        hooked: dict[str, Json] = {}
        devices = list_devices()  # not the watcher's list: a device it counts as known is never announced again
        for device in devices:
            hooked[device.name] = {"name": device.name, "ingress": False, "egress": False}
        for attachment in enforcer.attachments.report(devices):
            if attachment.target in hooked:
                hooked[attachment.target][attachment.hook.removeprefix("tcx_")] = True
        return {
            "mechanism": enforcer.attachments.mechanism,
            "devices": list(hooked.values()),
            "errors": dict(enforcer.hook_errors),
            "cgroup": str(enforcer.tree.root),
            "pins": str(enforcer.settings.pins),
        }

    def rules(self) -> Json:
        """The rules as the kernel holds them."""
        enforcer, bundle = self._enforcer, self._enforcer.bundle
        in_kernel = Counter(PolicyEntry.from_buffer_copy(value).rule_id for _, value in enforcer.maps.entries("policy"))
        hits, last_hits = self.counters.hits(dict(enforcer.hits.items())), self.last_hits()
        rules = [
            {
                "rule_id": int(info.rule_id),
                "name": info.name,
                "kind": info.kind,
                "from": info.source,
                "to": info.destination,
                "ports": info.ports,
                "hits": hits.get(info.name, 0),
                "last_hit": last_hits.get(info.name),
                "source": info.loc.short,
                "entries": in_kernel[info.rule_id],
                "expires": info.expires,
            }
            for info in (bundle.rules() if bundle else ())
        ]
        commit = bundle.commit if bundle else ""
        return {"commit": commit, "generation": enforcer.generation, "read_back": self.read_back(), "rules": rules}

    def workloads(self) -> Json:
        """Workloads of this host with the control groups that hold them now."""
        enforcer, bundle, plan = self._enforcer, self._enforcer.bundle, self._enforcer.attestation.plan
        endpoints: dict[str, list[Json]] = {}
        host = 0
        for path in plan.paths.values() if plan else ():
            count = len(enforcer.tree.members(path))
            outcomes = plan.narrower.view(path).table.values() if plan else ()
            named = {o.workload.qualified for o in outcomes if isinstance(o, Identified)}
            host += 1 if count and not named else 0
            for name in named:
                endpoints.setdefault(name, []).append({"cgroup": path, "unit": unit_of(path), "processes": count})
        enforcer.read_verdicts()  # what is counted has then been heard of
        pin = enforcer.settings.pins / "maps" / "edges"
        ready = readiness(self.counters.edges(), self._flows, self.lost(), pin)
        workloads = [
            {
                "name": info.qualified,
                "identity": info.identity,
                "spiffe_id": info.spiffe_id,
                "mode": str(info.mode),
                "labels": dict(info.labels),
                "source": info.loc.short,
                "posture": self._posture(info),
                "endpoints": endpoints.get(info.qualified, []),
                "verdicts": asdict(ready[info.identity]),
            }
            for info in (bundle.workloads() if bundle else ())
            if info.local
        ]
        ambiguous = [{"cgroup": path, "workloads": list(names)} for path, names in (plan.ambiguous() if plan else [])]
        return {"workloads": workloads, "host": {"endpoints": host}, "ambiguous": ambiguous}

    def _posture(self, info: WorkloadInfo) -> Json | None:
        """What is required of a workload, and how it fails; None when nothing is required."""
        if not info.posture:
            return None
        failing = {one.workload: one for one in self._enforcer.posture.standing}.get(info.qualified)
        return {
            "required": [asdict(one) for one in info.posture],
            "ok": failing is None,
            "since": failing.since if failing else None,
            "failures": [asdict(one) for one in failing.failures] if failing else [],
        }

    def inventory(self) -> Json:
        """The running processes as endpoints, for judging this host offline."""
        enforcer = self._enforcer
        seen: dict[str, Json] = {}
        for process in processes.scan().processes:
            if process.cgroup_path is None or process.executable is None:
                continue
            path = enforcer.tree.relative_of_namespace(process.cgroup_path)
            if path is None:
                continue
            exe = process.executable.path
            facts = {"host": enforcer.settings.host, "cgroup": path, "exe": exe, "user": str(process.uid)}
            facts["group"] = str(process.gid)
            seen.setdefault(json.dumps(facts), facts | {"name": f"{process.comm}-{process.pid}"})
        return {"endpoints": list(seen.values())}


def _mode_name(mode: Mode) -> str:
    return mode.name.lower()
