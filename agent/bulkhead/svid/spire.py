"""SPIRE as upstream: one subscription for each workload of the node, and one for each kind of bundle.

What SPIRE says is taken as a whole each time: an SVID that it no longer hands out is no longer held. What it does not
say, because it is away, changes nothing until what is held expires. A workload that is asked for by process is held
open by a pidfd: when the process ends, so does the subscription, and what it gave goes a little later, unless another
process of the workload has taken its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from bulkhead import config
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.spire_broker import Broker
from bulkhead.svid.spire_calls import Call, CallError, Failure
from bulkhead.svid.spire_delegated import Delegated
from bulkhead.svid.spire_offers import Offer, jwt_authorities, take, take_token, x509_authorities
from bulkhead.svid.spire_source import Connection, Source
from bulkhead.svid.svids import JwtSvid, Workload, X509Svid
from bulkhead.svid.upstream import UpstreamError

T = TypeVar("T")

WORKLOADS_MAX: Final = 1024
"""Of one node. For those beyond there is nothing, and that is told."""
PAUSE_S: Final = (0.5, 60.0)
"""Between two attempts: at first, and at most."""
ORPHANED_S: Final = 10.0
"""For how long an SVID outlasts the process that it was asked for by."""

_NOT_THERE: Final = (Failure.ABSENT, Failure.UNOFFERED)
"""What says to look for another source."""
_ENDS_ALL: Final = (*_NOT_THERE, Failure.AWAY, Failure.IMPOSTOR)
"""What is not about one subscription: the connection has to be made anew."""
_TAKES_BACK: Final = (Failure.WRONG_ID, Failure.WITHHELD, Failure.REFUSED, Failure.UNKNOWN)
"""What says that there is no SVID for a workload, rather than nothing."""
_SOURCE, _LIMIT, _X509, _JWT = "", "limit", "X.509 bundles", "JWT bundles"
"""What problems there are beside those of workloads."""
_UNHEARD: Final = "SPIRE has not answered yet"


class Spire:
    """The upstream. Of several sources the first that is there is used."""

    def __init__(
        self, sources: Sequence[Source], pause_s: tuple[float, float] = PAUSE_S, orphaned_s: float = ORPHANED_S
    ) -> None:
        self._sources = sources
        self._pause_s = pause_s
        self._orphaned_s = orphaned_s
        self.name = sources[0].name
        self.error = _UNHEARD
        self.failures: Counter[Failure] = Counter()
        """How often what went wrong, since the start."""
        self._changed: Callable[[], None] = _nobody
        self._wanted: dict[str, Workload] = {}
        self._wants = asyncio.Event()
        self._svids: dict[str, X509Svid] = {}
        self._x509: Mapping[str, tuple[bytes, ...]] | None = None
        self._jwt: Mapping[str, Mapping[str, bytes]] = {}
        self._vouched = asyncio.Event()
        """The bundles by which SVIDs are checked are known."""
        self._problems: dict[str, str] = {_SOURCE: self.error}
        """By SPIFFE ID, or one of the constants above."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """When the SVIDs of ended processes go."""
        self._expiry: asyncio.TimerHandle | None = None
        self._connection: tuple[Source, Connection] | None = None
        self._is_told = True

    # The interface

    def want(self, workloads: Sequence[Workload]) -> None:
        """From now on these are the node's workloads."""
        self._wanted = {workload.spiffe_id: workload for workload in workloads[:WORKLOADS_MAX]}
        self._problems.pop(_LIMIT, None)
        if len(workloads) > WORKLOADS_MAX:
            self._problems[_LIMIT] = f"{len(workloads)} workloads want SVIDs, and {WORKLOADS_MAX} at most get them"
            self.failures[Failure.TOO_LARGE] += 1
        known = {_SOURCE, _LIMIT, _X509, _JWT, *self._wanted}
        for key in self._problems.keys() - known:
            del self._problems[key]
        for spiffe_id in self._svids.keys() - known:
            self._drop(spiffe_id)
        self._wants.set()
        self._tell()

    def svids(self) -> Mapping[str, X509Svid]:
        """The current X.509-SVIDs by SPIFFE ID."""
        now = time.time()
        return {spiffe_id: svid for spiffe_id, svid in self._svids.items() if svid.expires_at > now}

    def bundles(self) -> Mapping[str, Bundle]:
        """The current bundles by trust domain."""
        if self._x509 is None:
            return {}
        domains = self._x509.keys() | self._jwt.keys()
        return {one: Bundle(one, self._x509.get(one, ()), self._jwt.get(one, {})) for one in domains}

    async def jwt(self, workload: Workload, audiences: Sequence[str]) -> JwtSvid:
        """A JWT-SVID of that workload for those audiences. Raises UpstreamError."""
        if self._connection is None:
            raise UpstreamError(self._problems.get(_SOURCE) or "SPIRE is not connected")
        source, connection = self._connection
        if not source.can_ask(workload):
            raise UpstreamError(f"no process of `{workload.name}` is known to ask SPIRE by")
        try:
            with _held(source.process_of(workload)) as process:
                tokens = await connection.caller.ask(source.tokens(workload, audiences))
                if process is not None and process.is_over:
                    raise CallError(Failure.GONE, f"the process of `{workload.name}` ended while SPIRE was asked")
                return take_token(workload, audiences, tokens, self.bundles())
        except CallError as error:
            self.failures[error.failure] += 1
            raise UpstreamError(str(error)) from None

    async def run(self, changed: Callable[[], None]) -> None:
        """Obtain and renew until cancelled."""
        self._changed = changed
        self._tell()
        attempts = 0
        try:
            while True:
                began = time.monotonic()
                renewed = await self._try_sources()
                attempts = 0 if renewed or time.monotonic() - began > self._pause_s[1] else attempts + 1
                await asyncio.sleep(self._pause(attempts))
        finally:
            for timer in (*self._timers.values(), *((self._expiry,) if self._expiry else ())):
                timer.cancel()

    # A connection

    async def _try_sources(self) -> bool:
        """Work with the first source that is there until it fails; whether only to be connected anew at once."""
        for source in self._sources:
            failure = await self._work_with(source)
            if failure not in _NOT_THERE:
                return failure is Failure.RENEWED
        return False

    async def _work_with(self, source: Source) -> Failure:
        try:
            async with source.connected() as connection:
                self.name, self._connection = source.name, (source, connection)
                await self._attend(source, connection)
            raise AssertionError("subscriptions do not end without an error")
        except CallError as error:
            if error.failure is not Failure.RENEWED:
                # What subscriptions miss without a connection is not worth a word; what else they miss, they will.
                self._problems = {key: self._problems[key] for key in (_LIMIT,) if key in self._problems}
                self._failed(_SOURCE, error)
            return error.failure
        finally:
            self._connection = None

    async def _attend(self, source: Source, connection: Connection) -> None:
        """Every subscription on one connection. Raises the CallError that ends them all."""
        self._vouched.clear()
        end: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(connection.watch())
                tasks.create_task(self._follow(_X509, connection, source.x509_bundles(), self._take_x509))
                tasks.create_task(self._follow(_JWT, connection, source.jwt_bundles(), self._take_jwt))
                await self._supervise(source, connection, tasks)
        except* CallError as group:
            end = group.exceptions[0]
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError  # which a group forgets when it fails at the same time
        assert end is not None, "nothing of a connection ends without an error"
        raise end

    async def _supervise(self, source: Source, connection: Connection, tasks: asyncio.TaskGroup) -> None:
        """A task for each wanted workload that can be asked for, and for no other."""
        running: dict[Workload, asyncio.Task[None]] = {}
        while True:
            self._wants.clear()
            # By what is asked: of a workload that is asked for by selectors, processes may come and go.
            wanted = {replace(one, pid=source.process_of(one)) for one in self._wanted.values()}
            for workload in running.keys() - wanted:
                running.pop(workload).cancel()
            for workload in wanted:
                if not source.can_ask(workload):
                    self._orphan(workload.spiffe_id)
                elif workload not in running or running[workload].done():
                    running[workload] = tasks.create_task(self._obtain(source, connection, workload))
            await self._wants.wait()

    async def _obtain(self, source: Source, connection: Connection, workload: Workload) -> None:
        """The SVID of one workload, until the process ends that it is asked for by."""
        await self._vouched.wait()
        key, ends = workload.spiffe_id, f"the process of `{workload.name}` that SPIRE was asked for has ended"
        while True:
            try:
                with _held(source.process_of(workload)) as process:
                    follow = self._follow(key, connection, source.svids(workload), partial(self._take_svid, workload))
                    await (follow if process is None else process.outlive(follow, ends))
            except CallError as error:
                if error.failure in _ENDS_ALL:
                    raise
                self._failed(key, error)
                if error.failure is Failure.GONE:
                    return self._orphan(key)
            await asyncio.sleep(self._pause_s[1])

    async def _follow(self, key: str, connection: Connection, call: Call[T], taken: Callable[[T], None]) -> None:
        """One subscription, over and over. Raises the CallError that is not about this subscription alone."""
        attempts = 0
        while True:
            try:
                async with contextlib.aclosing(connection.caller.follow(call)) as answers:
                    async for answer in answers:
                        taken(answer)
                        attempts = 0
                        self._succeeded(key)
            except CallError as error:
                may_lack = key == _JWT and error.failure is Failure.UNOFFERED  # a profile may be switched off
                if error.failure in _ENDS_ALL and not may_lack:
                    raise
                self._failed(key, error)
            attempts += 1
            await asyncio.sleep(self._pause(attempts))

    def _pause(self, attempts: int) -> float:
        if not attempts:
            return 0.0
        shortest, longest = self._pause_s
        return random.uniform(0.5, 1.0) * min(longest, shortest * 2.0 ** min(attempts - 1, 16))

    # What comes

    def _take_svid(self, workload: Workload, offers: Sequence[Offer]) -> None:
        svid = take(workload, offers, self.bundles())
        spiffe_id = workload.spiffe_id
        if spiffe_id not in self._wanted:
            return
        self._keep_no_longer(spiffe_id, None)
        if self._svids.get(spiffe_id) != svid:
            self._svids[spiffe_id] = svid
            self._svids_changed()

    def _take_x509(self, ders: Mapping[str, bytes]) -> None:
        found = x509_authorities(ders)
        self._is_told = self._is_told and found == self._x509
        self._x509 = found
        self._vouched.set()

    def _take_jwt(self, documents: Mapping[str, bytes]) -> None:
        found = jwt_authorities(documents)
        self._is_told = self._is_told and found == self._jwt
        self._jwt = found

    def _take_back(self, key: str) -> None:
        """What a subscription gave is not to be used any longer."""
        if key == _X509:
            self._is_told = self._is_told and self._x509 is None
            self._x509 = None
            self._vouched.clear()
        elif key == _JWT:
            self._is_told = self._is_told and not self._jwt
            self._jwt = {}
        elif key != _SOURCE:
            self._drop(key)

    def _drop(self, spiffe_id: str) -> None:
        self._keep_no_longer(spiffe_id, None)
        if self._svids.pop(spiffe_id, None) is not None:
            self._svids_changed()

    def _orphan(self, spiffe_id: str) -> None:
        """No process stands for the SVID: it goes in a while, unless it is obtained anew."""
        if spiffe_id in self._svids and spiffe_id not in self._timers:
            loop = asyncio.get_running_loop()
            self._keep_no_longer(spiffe_id, loop.call_later(self._orphaned_s, self._end_orphan, spiffe_id))

    def _end_orphan(self, spiffe_id: str) -> None:
        self._drop(spiffe_id)
        self._tell()

    def _keep_no_longer(self, spiffe_id: str, timer: asyncio.TimerHandle | None) -> None:
        """At that time, in place of any other."""
        if before := self._timers.pop(spiffe_id, None):
            before.cancel()
        if timer is not None:
            self._timers[spiffe_id] = timer

    def _svids_changed(self) -> None:
        self._is_told = False
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._svids:
            first = min(svid.expires_at for svid in self._svids.values()) - time.time()
            self._expiry = asyncio.get_running_loop().call_later(max(0.0, first), self._expire)

    def _expire(self) -> None:
        now = time.time()
        for spiffe_id in [one for one, svid in self._svids.items() if svid.expires_at <= now]:
            del self._svids[spiffe_id]
        self._svids_changed()
        self._tell()

    # What is told

    def _succeeded(self, key: str) -> None:
        self._problems.pop(key, None)
        self._problems.pop(_SOURCE, None)
        self._tell()

    def _failed(self, key: str, error: CallError) -> None:
        self.failures[error.failure] += 1
        if self._problems.get(_SOURCE) == _UNHEARD:
            del self._problems[_SOURCE]
        self._problems[key] = str(error)
        if error.failure in _TAKES_BACK:
            self._take_back(key)
        self._tell()

    def _tell(self) -> None:
        """Once for each change."""
        error = next(iter(self._problems.values()), "")
        if len(self._problems) > 1:
            error += f" (and {len(self._problems) - 1} more)"
        if error != self.error:
            self.error, self._is_told = error, False
        if not self._is_told:
            self._is_told = True
            self._changed()


def upstream(settings: config.Spire) -> Spire:
    """SPIRE as the settings say."""
    if settings.kind == "delegated":
        return Spire([Delegated(Path(settings.socket))])
    sources: list[Source] = [Broker(Path(settings.socket), Path(settings.workload_socket), settings.agent_id)]
    if settings.delegated_socket:
        sources.append(Delegated(Path(settings.delegated_socket)))
    return Spire(sources)


def _nobody() -> None:
    """To whom changes are told before `run`."""


class _Process:
    """A process that is held open: its number is nobody else's for as long as it is not over."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    async def outlive(self, work: Coroutine[None, None, None], message: str) -> None:
        """Do `work` as long as the process lives. Raises CallError, `gone`, when it has ended."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        task, end = loop.create_task(work), loop.create_task(ended.wait())
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if ended.is_set():
                raise CallError(Failure.GONE, message)
            await task
        finally:
            loop.remove_reader(self._fd)
            task.cancel()
            end.cancel()
            await asyncio.gather(task, end, return_exceptions=True)


@contextlib.contextmanager
def _held(pid: int) -> Iterator[_Process | None]:
    """The process of that number; None for 0. Raises CallError when there is none."""
    if not pid:
        yield None
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise CallError(Failure.GONE, f"there is no process {pid} any longer to ask SPIRE by") from None
    except OSError as error:
        raise CallError(Failure.FAILED, f"cannot hold process {pid}: {error.strerror}") from None
    try:
        yield _Process(fd)
    finally:
        os.close(fd)
