"""A fleet: lab hosts and the router between them, one policy repository for all, as one description says.

with Fleet.described({"hosts": {"web": {}, "db": {}, "mallory": {"agent": False}}}) as fleet:
    fleet.start_agents()
    fleet.enforce(policy("web -> db 5432"))
    client, server = fleet["web"].puppet("web"), fleet["db"].puppet("db")
    with fleet.router.fault("web", strip(), when("tcp", "S")) as stripped: ...
"""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from lab import description
from lab.description import Description, HostSpec
from lab.host import Host
from lab.nodes import AuthorityFile, KeyFile, authority_file, key_file
from lab.policies import repository
from lab.puppet import Puppet
from lab.router import Router

POLICY_FILE = "t.yaml"
"""Where `enforce` puts the one policy."""
NODES_FILE = "nodes.yaml"
_READY_S = 240.0
"""For all agents to be ready: each compiles, and they share the machine."""


class Fleet:
    """Use as a context manager. Everything it made is gone afterwards."""

    def __init__(self, given: Description) -> None:
        self.description = given
        self.hosts: dict[str, Host] = {}
        self.router = Router()
        self.directory = Path(tempfile.mkdtemp(prefix="bulkhead-lab-fleet-"))
        self.repository = self.directory / "policy"
        self.programs: dict[tuple[str, str], Puppet] = {}
        """Those that the description names, by host and control group."""
        self._keys: dict[str, KeyFile] = {}
        self._authorities: dict[str, AuthorityFile] = {}
        self._owned = ExitStack()

    @classmethod
    def described(cls, given: Mapping[str, Any] | Path) -> Self:
        """From a YAML file, or from what one would hold."""
        return cls(description.load(given) if isinstance(given, Path) else description.read(given))

    # Life

    def __enter__(self) -> Self:
        with ExitStack() as made:
            made.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.router = made.enter_context(self.router)
            made.callback(self._end_hosts)
            for spec in self.description.hosts:
                self._add(spec)
            if self.description.nat:
                self.router.translate(self.description.nat)
            self.commit(self.description.policy)
            for spec in self.description.hosts:
                for serving in spec.serve:
                    self._serve(spec.name, serving.group, serving.port)
            self._owned = made.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._owned.close()

    def _add(self, spec: HostSpec) -> None:
        host = Host(spec.name)
        host.repository = self.repository
        host.more_settings = {**self.description.settings, **spec.settings}
        if self.description.wire and spec.agent:
            self._keys[spec.name] = key_file(host.directory)
            host.more_settings |= self._keys[spec.name].settings
        if self.description.mesh and spec.agent:
            self._authorities[spec.name] = authority_file(host.directory, spec.name)
            host.more_settings |= self._authorities[spec.name].settings
        self.hosts[spec.name] = host.__enter__()
        self.router.connect(spec, Path("/run/netns", host.netns), self.description.offloads)

    def _end_hosts(self) -> None:
        """All at once: an agent's end, and its taking down, take seconds."""
        _at_once(lambda host: host.__exit__(None, None, None), self.hosts.values())

    def _serve(self, name: str, group: str, port: int) -> None:
        program = self.programs[name, group] = self[name].puppet(group)
        program.serve_tcp("::", port)
        program.serve_udp("::", port)

    # Hosts

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    @property
    def guarded(self) -> list[Host]:
        """The hosts that run an agent, or are to."""
        return [self[spec.name] for spec in self.description.hosts if spec.agent]

    def addresses(self, name: str) -> tuple[str, ...]:
        """A host's addresses, in the order of the description."""
        return tuple(str(one.ip) for one in self.router.links[name].addresses)

    def address(self, name: str, family: int = 4) -> str:
        """A host's first address of a family, 4 or 6."""
        return next(str(one.ip) for one in self.router.links[name].addresses if one.version == family)

    def readdress(self, name: str, *addresses: str) -> None:
        """Give a host other addresses in place of its own: `readdress("web", "10.78.9.2/24", "fd78:9::2/64")`.

        Its node record is not changed: `commit` does that.
        """
        self.router.readdress(name, addresses)

    def authority(self, name: str) -> AuthorityFile:
        """The certificate authority that a host's record says."""
        return self._authorities[name]

    def replace_authority(self, name: str, file: AuthorityFile) -> None:
        """From now on a host's record says this one, and the agent that is started next has it."""
        self._authorities[name] = file
        self[name].more_settings |= file.settings

    # Policy

    def commit(self, files: Mapping[str, str], message: str = "change") -> str:
        """Write files and commit them, for all hosts at once; the commit's id.

        With `wire`, the nodes' records are brought up to date, too, unless `files` has its own.
        """
        records = {NODES_FILE: self.records()} if self.description.wire else {}
        return next(iter(self)).commit({**records, **files}, message)

    def enforce(self, text: str, hosts: str = "observe", default: str = "enforce", timeout_s: float = 20.0) -> str:
        """Commit one policy and wait until every running agent has it in force; the commit's id.

        Where hosts have authorities, mutual TLS is required unless a rule says otherwise. Raises RuntimeError when one
        refuses it.
        """
        mtls = "required" if self.description.mesh else "off"
        commit = self.commit({"bulkhead.yaml": repository(hosts, default, mtls), POLICY_FILE: text})
        self.wait_for_commit(commit, timeout_s)
        return commit

    def wait_for_commit(self, commit: str, timeout_s: float = 20.0) -> None:
        """Block until every running agent enforces a commit. Raises RuntimeError when one refuses it."""
        for host in self.guarded:
            if host.agent is None:
                continue
            refused = host.wait_for_commit(commit, timeout_s)["policy"]["error"]
            if refused:
                raise RuntimeError(f"{host.name} refused the policy: {refused}")

    def start_agents(self, *names: str) -> None:
        """Start the agents of these hosts, or of all that have one, and wait until they are ready."""
        hosts = [self[name] for name in names] or self.guarded
        if self.description.mesh:
            for host in hosts:
                host.start_proxy()
        _at_once(lambda host: host.start_agent(_READY_S), hosts)

    def records(self, changed: Mapping[str, Mapping[str, object]] | None = None) -> str:
        """`nodes.yaml`: a record of each node that has a key.

        `changed` has keys of some hosts' records that are other than the truth, or left out (None), and brings in hosts
        without an agent: `{"db": {"revoked": True}, "mallory": {}}`.
        """
        given = changed or {}
        documents = [
            _without_none({**self.record(name), **given.get(name, {})})
            for name in self.hosts
            if name in self._keys or name in given
        ]
        return yaml.safe_dump_all(documents, sort_keys=False)

    def record(self, name: str) -> dict[str, object]:
        """One host's node as its record says, with the addresses that it has now, and those that stand for it alone."""
        shared = set[str]().union(*(self._stand_ins(other) for other in self.hosts if other != name))
        return {
            "apiVersion": "bulkhead/v1alpha1",
            "kind": "Node",
            "metadata": {"name": name},
            "addresses": [*self.addresses(name), *sorted(self._stand_ins(name) - shared)],
            "key": base64.b64encode(self._keys[name].public).decode() if name in self._keys else None,
            "ca": [self._authorities[name].text] if name in self._authorities else None,
        }

    def _stand_ins(self, name: str) -> set[str]:
        """What the router's rules make of a host's addresses."""
        addresses = set(self.addresses(name))
        networks = {str(one.network) for one in self.router.links[name].addresses}
        found: set[str] = set()
        for rule in self.router.nat:
            if rule.kind == "dnat" and addresses.intersection(rule.to):
                found.update(rule.of)
            elif rule.kind == "snat" and networks.intersection(rule.of):
                found.update(rule.to)
        return found


def _without_none(given: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in given.items() if value is not None}


def _at_once(do: Callable[[Host], None], hosts: Iterable[Host]) -> None:
    """To every host, in parallel. Raises what went wrong when all have been tried."""
    given = list(hosts)
    with ThreadPoolExecutor(max(len(given), 1)) as pool:
        outcomes = [pool.submit(do, host) for host in given]
    for outcome in outcomes:
        outcome.result()
