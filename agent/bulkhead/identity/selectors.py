"""Which workload an endpoint is.

`classify` is the meaning of the language, `Narrower` the same answer split in two for the agent: what the host and the
control group path settle once, and a small table over executable, user and group for the rest, which the kernel can
look up without asking anybody. `classify_pod` is the same for pods of a cluster, whose API server attests them: no
selector of processes selects a pod, nor the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple, TypeVar

from bulkhead.abi import Capacity, Need
from bulkhead.identity.globs import Closeness, Glob, PrefixIndex, closest, compile_glob, normal_path
from bulkhead.policy.model import Match, Workload

OTHER: Final = None
"""In a decision table: any value that the table does not name, or a dimension that does not matter."""

UNIT_ENDINGS: Final = (".service", ".scope", ".socket", ".mount", ".swap")

Resolver = Callable[[str], int | None]
"""The number of a user or group of this host by name; None when there is no such name."""

Facts = tuple[str | None, int | None, int | None]
"""Executable, uid and gid; `OTHER` where the value is none that matters."""

_VIEWS_LIMIT: Final = 65536


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the kernel attests about a process at the time it opened its socket."""

    host: str
    cgroup: str
    """Control group path, absolute from the agent's root: `/system.slice/nginx.service`."""
    exe: str | None = None
    """Absolute path with all symlinks resolved; None: could not be told, matches no `exe`."""
    uid: int | None = None
    users: tuple[str, ...] = ()
    """Names that the uid goes by."""
    gid: int | None = None
    groups: tuple[str, ...] = ()
    """Names that the gid goes by."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What the API server of a cluster attests about a pod."""

    name: str
    namespace: str
    service_account: str
    labels: Mapping[str, str]
    cluster: str | None = None
    """None stands for every cluster at once, as for a question that is asked of files; an agent knows its own."""


class Specificity(NamedTuple):
    """How closely a selector describes an endpoint. Compares as the language orders selectors; greater wins."""

    keys: int
    """Keys beside `host`; `all` counts as none."""
    exe: bool
    unit: bool
    cgroup: bool
    user: bool
    group: bool
    exact: int
    """Keys whose matching pattern has no wildcard."""
    literals: int
    """Literal characters in the matching patterns."""


class PodSpecificity(NamedTuple):
    """How closely a selector describes a pod. Compares as the language orders selectors; greater wins."""

    keys: int
    """Keys beside `namespace`."""
    service_account: bool
    labels: int
    """How many labels it asks for."""
    scoped: bool
    """Whether the policy's scope names the cluster."""
    exact: int
    """Keys with patterns whose matching one has no wildcard."""
    literals: int
    """Literal characters in the matching patterns."""


Score = TypeVar("Score", Specificity, PodSpecificity)


@dataclass(frozen=True, slots=True)
class Identified:
    """Exactly one workload selects the endpoint best."""

    workload: Workload


@dataclass(frozen=True, slots=True)
class Host:
    """No workload selects the endpoint: it belongs to the entity `host`; a pod belongs to nobody."""


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Several workloads select the endpoint with equal right: it matches nothing."""

    workloads: tuple[Workload, ...]


Outcome = Identified | Host | Ambiguous


def unit_of(cgroup_path: str) -> str | None:
    """The systemd unit of a control group path; None when there is none.

    What comes first after the slices is a unit, or the path has none: a directory made deeper down by somebody who may
    make directories there cannot pose as a unit.
    """
    for component in cgroup_path.split("/"):
        if component and not component.endswith(".slice"):
            return component if component.endswith(UNIT_ENDINGS) else None
    return None


def matches(match: Match, endpoint: Endpoint) -> Specificity | None:
    """How closely a selector describes an endpoint; None when it does not select it."""
    selector = compile_match(match)
    path = normal_path(endpoint.cgroup)
    placed = selector.placed(endpoint.host, path, unit_of(path))
    if placed is None:
        return None
    attested = selector.attested(endpoint)
    return None if attested is None else selector.specificity(placed, attested)


def classify(workloads: Iterable[Workload], endpoint: Endpoint) -> Outcome:
    """The one workload of an endpoint, or why it has none."""
    scored = ((matches(workload.match, endpoint), workload) for workload in workloads)
    return _best([(score, workload) for score, workload in scored if score is not None])


def matches_pod(match: Match, pod: Pod) -> PodSpecificity | None:
    """How closely a selector describes a pod; None when it does not select it."""
    if not match.of_pods or (match.cluster and pod.cluster not in (None, match.cluster)):
        return None
    if any(pod.labels.get(key) != value for key, value in match.labels):
        return None
    exact = literals = 0
    for patterns, text in ((match.namespace, pod.namespace), (match.service_account, pod.service_account)):
        if patterns:
            close = closest(map(compile_glob, patterns), text)
            if close is None:
                return None
            exact, literals = exact + close.exact, literals + close.literals
    return PodSpecificity(*pod_shape(match), exact, literals)


def pod_shape(match: Match) -> tuple[int, bool, int, bool]:
    """The part of the specificity that is the same for every pod."""
    keys = bool(match.service_account) + bool(match.labels)
    return keys, bool(match.service_account), len(match.labels), bool(match.cluster)


def classify_pod(workloads: Iterable[Workload], pod: Pod) -> Outcome:
    """The one workload of a pod, or why it has none. `Host` stands for nobody: a pod is never the host."""
    scored = ((matches_pod(workload.match, pod), workload) for workload in workloads)
    return _best([(score, workload) for score, workload in scored if score is not None])


def _best(candidates: Sequence[tuple[Score, Workload]]) -> Outcome:
    if not candidates:
        return Host()
    best = max(score for score, _ in candidates)
    winners = tuple(workload for score, workload in candidates if score == best)
    return Identified(winners[0]) if len(winners) == 1 else Ambiguous(winners)


@dataclass(frozen=True, slots=True)
class Selector:
    """A match, ready to be asked."""

    match: Match
    host: tuple[Glob, ...]
    unit: tuple[Glob, ...]
    cgroup: tuple[Glob, ...]
    shape: tuple[int, bool, bool, bool, bool, bool]
    """The part of the specificity that is the same for every endpoint."""

    @property
    def needs(self) -> Need:
        """The attributes beyond host and control group that it asks for."""
        match = self.match
        needs = Need(0)
        needs |= Need.EXECUTABLE if match.exe else Need(0)
        needs |= Need.USER if match.user else Need(0)
        return needs | (Need.GROUP if match.group else Need(0))

    def placed(self, host: str, path: str, unit: str | None) -> Closeness | None:
        """What host and control group contribute; None when they rule the endpoint out. `path` is normal."""
        if self.match == _NOTHING or self.match.of_pods:
            return None
        exact = literals = 0
        for globs, text in ((self.host, host), (self.unit, unit), (self.cgroup, path)):
            if not globs:
                continue
            close = None if text is None else closest(globs, text)
            if close is None:
                return None
            exact, literals = exact + close.exact, literals + close.literals
        return Closeness(exact, literals)

    def attested(self, endpoint: Endpoint) -> Closeness | None:
        """What executable, user and group contribute; None when they rule the endpoint out."""
        match = self.match
        exact = literals = 0
        for written, length in (
            (match.exe, len(endpoint.exe) if endpoint.exe in match.exe and endpoint.exe else 0),
            (match.user, _longest_name(match.user, endpoint.uid, endpoint.users)),
            (match.group, _longest_name(match.group, endpoint.gid, endpoint.groups)),
        ):
            if written and not length:
                return None
            exact, literals = exact + bool(length), literals + length
        return Closeness(exact, literals)

    def specificity(self, placed: Closeness, attested: Closeness) -> Specificity:
        """Both contributions together."""
        return Specificity(*self.shape, placed.exact + attested.exact, placed.literals + attested.literals)


_NOTHING = Match()


@lru_cache(maxsize=32768)
def compile_match(match: Match) -> Selector:
    """A selector of a match; kept, since the same matches are asked over and over."""
    has = (bool(match.exe), bool(match.unit), bool(match.cgroup), bool(match.user), bool(match.group))
    return Selector(
        match,
        tuple(compile_glob(pattern) for pattern in match.host),
        tuple(compile_glob(pattern) for pattern in match.unit),
        tuple(compile_glob(pattern, subtree=True) for pattern in match.cgroup),
        (sum(has), *has),
    )


def _longest_name(written: tuple[str, ...], number: int | None, names: tuple[str, ...]) -> int:
    return max((len(text) for text in written if _is_called(text, number, names)), default=0)


def _is_called(text: str, number: int | None, names: tuple[str, ...]) -> bool:
    # A number never means a name, or an account called `0` would be root.
    return text == str(number) if text.isdecimal() else text in names


# The agent's view: settled by the control group, or by a table


@dataclass(frozen=True, slots=True, eq=False)
class CgroupView:
    """What one control group path settles about the endpoints in it. Paths with the same view share the object."""

    candidates: tuple[Workload, ...]
    """Workloads that can still win, in file order."""
    needs: Need
    """The attributes that decide between them; none: the answer is `table[OTHER, OTHER, OTHER]`."""
    executables: tuple[str, ...]
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    table: Mapping[Facts, Outcome]
    """An answer for every combination of the values above, `OTHER` included."""

    def decide(self, exe: str | None, uid: int | None, gid: int | None) -> Outcome:
        """The answer for one endpoint; as the kernel finds it."""
        return self.table[
            exe if exe in self.executables else OTHER,
            uid if uid in self.uids else OTHER,
            gid if gid in self.gids else OTHER,
        ]


class _Candidate(NamedTuple):
    """A workload that host and control group leave standing."""

    order: int
    placed: Closeness


class Narrower:
    """Narrows workloads to those that a control group of one host can hold.

    Views are shared, so that ten thousand control groups of one kind cost one table. A view whose table would be larger
    than the kernel's holds is ambiguous as a whole: it matches nothing, and is reported.
    """

    def __init__(self, workloads: Iterable[Workload], host: str, user_id: Resolver, group_id: Resolver) -> None:
        self._host = host
        here = [w for w in workloads if not w.match.of_pods and _can_be_on(w.match, host)]
        self._workloads = here
        self._selectors = [compile_match(workload.match) for workload in here]
        self._users = _numbers((name for w in here for name in w.match.user), user_id)
        self._groups = _numbers((name for w in here for name in w.match.group), group_id)
        self._users_called = _names_by_number(self._users)
        self._groups_called = _names_by_number(self._groups)
        self._anywhere: list[int] = []
        self._by_unit: PrefixIndex[int] = PrefixIndex()
        self._by_path: PrefixIndex[int] = PrefixIndex()
        self._views: dict[tuple[_Candidate, ...], CgroupView] = {}
        for order, selector in enumerate(self._selectors):
            self._file(order, selector)

    def _file(self, order: int, selector: Selector) -> None:
        for glob in selector.unit:
            self._by_unit.add(glob.prefix, order)
        for glob in () if selector.unit else selector.cgroup:
            self._by_path.add(glob.prefix, order)
        if not selector.unit and not selector.cgroup:
            self._anywhere.append(order)

    def view(self, cgroup_path: str) -> CgroupView:
        """What a control group path settles."""
        path = normal_path(cgroup_path)
        unit = unit_of(path)
        orders = {*self._anywhere, *self._by_path.find(path), *(self._by_unit.find(unit) if unit else ())}
        placed = ((order, self._selectors[order].placed(self._host, path, unit)) for order in sorted(orders))
        candidates = tuple(_Candidate(order, close) for order, close in placed if close is not None)
        view = self._views.get(candidates)
        if view is None:
            if len(self._views) >= _VIEWS_LIMIT:
                self._views.clear()
            view = self._views[candidates] = self._build(candidates)
        return view

    def _build(self, candidates: tuple[_Candidate, ...]) -> CgroupView:
        standing = self._standing(candidates)
        needs = Need(0)
        for candidate in standing:
            needs |= self._selectors[candidate.order].needs
        matched = [self._selectors[candidate.order].match for candidate in standing]
        executables = tuple(sorted({exe for match in matched for exe in match.exe}))
        uids = _named_numbers((name for match in matched for name in match.user), self._users)
        gids = _named_numbers((name for match in matched for name in match.group), self._groups)
        workloads = tuple(self._workloads[candidate.order] for candidate in standing)
        if (len(executables) + 1) * (len(uids) + 1) * (len(gids) + 1) > Capacity.SUBJECTS:
            return CgroupView(workloads, Need(0), (), (), (), {(OTHER, OTHER, OTHER): Ambiguous(workloads)})
        combinations = product((OTHER, *executables), (OTHER, *uids), (OTHER, *gids))
        table = {facts: self._decide(standing, facts) for facts in combinations}
        return CgroupView(workloads, needs, executables, uids, gids, table)

    def _standing(self, candidates: tuple[_Candidate, ...]) -> list[_Candidate]:
        """The candidates that can win at all against those that need nothing more to match."""
        settled = [c for c in candidates if not self._selectors[c.order].needs]
        floor = max((self._ceiling(candidate) for candidate in settled), default=None)
        possible = [c for c in candidates if self._possible(self._selectors[c.order].match)]
        return [c for c in possible if floor is None or self._ceiling(c) >= floor]

    def _possible(self, match: Match) -> bool:
        users = not match.user or any(name in self._users for name in match.user)
        return users and (not match.group or any(name in self._groups for name in match.group))

    def _ceiling(self, candidate: _Candidate) -> Specificity:
        selector = self._selectors[candidate.order]
        longest = [max(map(len, written)) for written in _attested_keys(selector.match) if written]
        return selector.specificity(candidate.placed, Closeness(len(longest), sum(longest)))

    def _decide(self, standing: list[_Candidate], facts: Facts) -> Outcome:
        exe, uid, gid = facts
        users = () if uid is None else self._users_called[uid]
        groups = () if gid is None else self._groups_called[gid]
        endpoint = Endpoint(self._host, "/", exe, uid, users, gid, groups)
        scored: list[tuple[Specificity, Workload]] = []
        for order, placed in standing:
            attested = self._selectors[order].attested(endpoint)
            if attested is not None:
                scored.append((self._selectors[order].specificity(placed, attested), self._workloads[order]))
        return _best(scored)


def narrow(
    workloads: Iterable[Workload], host: str, cgroup_path: str, user_id: Resolver, group_id: Resolver
) -> CgroupView:
    """What one control group path of a host settles. For many paths, keep a `Narrower`."""
    return Narrower(workloads, host, user_id, group_id).view(cgroup_path)


def can_be_on(match: Match, host: str | None) -> bool:
    """Whether the `host` key lets a workload be attested on a host; None stands for every host at once.

    Pods can be anywhere: which node a cluster puts them on is not in the files.
    """
    return host is None or _can_be_on(match, host)


def _can_be_on(match: Match, host: str) -> bool:
    return not match.host or closest((compile_glob(pattern) for pattern in match.host), host) is not None


def _attested_keys(match: Match) -> tuple[tuple[str, ...], ...]:
    return match.exe, match.user, match.group


def _numbers(names: Iterable[str], resolve: Resolver) -> dict[str, int]:
    numbers = {name: int(name) if name.isdecimal() else resolve(name) for name in dict.fromkeys(names)}
    return {name: number for name, number in numbers.items() if number is not None}


def _named_numbers(names: Iterable[str], numbers: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sorted({numbers[name] for name in names if name in numbers}))


def _names_by_number(numbers: Mapping[str, int]) -> dict[int, tuple[str, ...]]:
    names: dict[int, tuple[str, ...]] = {}
    for name, number in numbers.items():
        names[number] = (*names.get(number, ()), name)
    return names
