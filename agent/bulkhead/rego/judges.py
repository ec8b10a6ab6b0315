"""A few processes that evaluate Rego, of which each can be ended: who waits, whose turn it is, and for how long.

A package whose rules have taken too long is on probation: all packages on probation together get one process at a time,
after all others, so that rules that loop delay others by what one evaluation may take, and no more.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import OrderedDict, deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Final

from bulkhead.errors import UnreachableError
from bulkhead.policy.rego_modules import RegoModule
from bulkhead.rego import judge
from bulkhead.rego.outcome import Outcome

JUDGES: Final = 2
EVALUATION_S: Final = 0.1
"""How long evaluating one request may take; then the process is ended, and the request refused."""
WAITING_S: Final = 0.15
"""How long a request may wait for a process."""
WAITING_MAX: Final = 64
"""Requests that wait, of one package."""
_PROBATION_S: Final = 10.0
_READING_S: Final = 10.0
"""How long a process may take to read the modules."""
_AGAIN_S: Final = 1.0
"""Pause before a process is started again that could not be."""

Answered = tuple[Outcome, bytes]
"""An outcome, and the CheckResponse; that is empty where the process gave none."""


@dataclass(slots=True)
class _Question:
    package: str
    content: bytes
    answer: asyncio.Future[Answered]
    timer: asyncio.TimerHandle | None = None
    """While it waits."""


class _Judge:
    """One process, and what it is doing."""

    def __init__(self, modules: Sequence[RegoModule]) -> None:
        self.packages: frozenset[str] = frozenset()
        self.question: _Question | None = None
        self._channel, theirs = socket.socketpair()
        try:
            self.pid = os.fork()
        except OSError:
            self._channel.close()
            theirs.close()
            raise
        if self.pid == 0:
            judge.run(theirs, modules)
        theirs.close()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def read_modules(self) -> None:
        """Wait until it has read the modules. Raises UnreachableError when it cannot."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._channel)
        try:
            async with asyncio.timeout(_READING_S):
                said = json.loads(await self._receive())
        except TimeoutError:
            raise UnreachableError(f"reading the modules took longer than {_READING_S:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise UnreachableError("reading the modules ended the process") from None
        if "error" in said:
            raise UnreachableError(said["error"])
        self.packages = frozenset(said["packages"])

    async def ask(self, content: bytes) -> Answered:
        """What it says of a CheckRequest. It has to be ended when it says nothing."""
        assert self._writer is not None
        try:
            self._writer.write(judge.LENGTH.pack(len(content)) + content)
            async with asyncio.timeout(EVALUATION_S):
                outcome, _, answer = (await self._receive()).partition(b"\0")
            return Outcome(outcome.decode()), answer
        except TimeoutError:
            return Outcome.TIMEOUT, b""
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            return Outcome.CRASHED, b""

    async def _receive(self) -> bytes:
        assert self._reader is not None
        (size,) = judge.LENGTH.unpack(await self._reader.readexactly(judge.LENGTH.size))
        if size > judge.FRAME_BYTES_MAX:
            raise ValueError("a frame of that size")
        return await self._reader.readexactly(size)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if self._writer is not None:
            self._writer.close()
        else:
            self._channel.close()


@dataclass(slots=True)
class _Set:
    """The processes of one commit's modules."""

    modules: tuple[RegoModule, ...]
    idle: list[_Judge] = field(default_factory=list)
    packages: frozenset[str] = frozenset()
    is_over: bool = False
    """Another has taken its place: a process that is done with its question ends."""


class Judges:
    """Whoever may be asked about a request."""

    def __init__(self) -> None:
        self.error = "no modules have been given"
        """Why nothing can be judged; empty when it can."""
        self.trouble = ""
        """Why there are fewer processes than there should be; empty when there are not."""
        self.ended = 0
        """Processes that were ended or crashed over a question."""
        self._set = _Set(())
        self._waiting: OrderedDict[str, deque[_Question]] = OrderedDict()
        """By package, in the order in which they have their turn."""
        self._late: dict[str, float] = {}
        """Packages on probation, and until when."""
        self._late_running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()

    @property
    def packages(self) -> frozenset[str]:
        """Those that may be asked about."""
        return self._set.packages

    async def load(self, modules: Sequence[RegoModule]) -> None:
        """Judge by these from now on. Raises UnreachableError when they cannot be read; then nothing is judged."""
        async with self._loading:
            fresh = _Set(tuple(modules))
            try:
                for _ in range(JUDGES):
                    fresh.idle.append(await self._start(fresh))
            except UnreachableError as error:
                self._retire(fresh)
                fresh = _Set(())
                self.error = str(error)
                raise
            else:
                self.error = ""
            finally:
                self._retire(self._set)
                self._set = fresh
                self._late.clear()
        self._dispatch()

    async def ask(self, package: str, content: bytes) -> Answered:
        """What a package says of a CheckRequest, within EVALUATION_S and WAITING_S."""
        if self.error:
            return Outcome.UNREADY, b""
        if package not in self._set.packages:
            return Outcome.UNKNOWN, b""
        if len(content) > judge.FRAME_BYTES_MAX // 4:
            return Outcome.OVERSIZE, b""
        queue = self._waiting.setdefault(package, deque())
        if len(queue) >= WAITING_MAX:
            return Outcome.OVERLOADED, b""
        loop = asyncio.get_running_loop()
        question = _Question(package, content, loop.create_future())
        question.timer = loop.call_later(WAITING_S, self._expire, question)
        queue.append(question)
        self._dispatch()
        return await question.answer

    def close(self) -> None:
        """End all processes."""
        for task in self._tasks:
            task.cancel()
        self._retire(self._set)

    def _expire(self, question: _Question) -> None:
        queue = self._waiting.get(question.package)
        if queue is not None and question in queue:
            queue.remove(question)
        _resolve(question, (Outcome.OVERLOADED, b""))

    def _dispatch(self) -> None:
        """Give work to whoever has none, a package after the other."""
        while self._set.idle:
            question = self._next()
            if question is None:
                return
            is_late = self._is_late(question.package, asyncio.get_running_loop().time())
            self._late_running += is_late
            self._begin(self._work(self._set, self._set.idle.pop(), question, is_late=is_late))

    def _next(self) -> _Question | None:
        now = asyncio.get_running_loop().time()
        late = {package: self._is_late(package, now) for package in self._waiting}
        for package in sorted(late, key=late.__getitem__):
            if late[package] and self._late_running:
                return None
            queue = self._waiting[package]
            while queue:
                question = queue.popleft()
                if question.timer is not None:
                    question.timer.cancel()
                if not question.answer.done():
                    self._waiting.move_to_end(package)
                    return question
            del self._waiting[package]
        return None

    def _is_late(self, package: str, now: float) -> bool:
        return self._late.get(package, 0.0) > now

    async def _work(self, its_set: _Set, one: _Judge, question: _Question, *, is_late: bool) -> None:
        try:
            answered = await one.ask(question.content)
        except asyncio.CancelledError:
            one.end()
            raise
        if answered[0] in (Outcome.TIMEOUT, Outcome.CRASHED):
            self._late[question.package] = asyncio.get_running_loop().time() + _PROBATION_S
        _resolve(question, answered)
        if answered[1] and not its_set.is_over:
            its_set.idle.append(one)
        else:
            one.end()
            await self._replace(its_set)
        self._late_running -= is_late  # not before there is another process: the one that is left is for the others
        self._dispatch()

    async def _replace(self, its_set: _Set) -> None:
        if not its_set.is_over:
            self.ended += 1
        while not its_set.is_over:
            try:
                fresh = await self._start(its_set)
            except (UnreachableError, OSError) as error:
                self.trouble = f"a process that ended has no successor yet: {error}"
                await asyncio.sleep(_AGAIN_S)
                continue
            self.trouble = ""
            self._take(its_set, fresh)
            return

    def _take(self, its_set: _Set, fresh: _Judge) -> None:
        if its_set.is_over:
            fresh.end()
        else:
            its_set.idle.append(fresh)

    async def _start(self, its_set: _Set) -> _Judge:
        one = _Judge(its_set.modules)
        try:
            await one.read_modules()
        except BaseException:
            one.end()
            raise
        its_set.packages = one.packages
        return one

    def _retire(self, its_set: _Set) -> None:
        its_set.is_over = True
        while its_set.idle:
            its_set.idle.pop().end()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _resolve(question: _Question, answered: Answered) -> None:
    if not question.answer.done():
        question.answer.set_result(answered)
