"""One member of etcd, asked through its JSON gateway: few kinds of requests, each bounded in bytes and in time.

Keys and values are bytes in base64, 64-bit numbers are text, a stream is one JSON object a line. An answer is believed
only as far as its form: whatever is not of the form that was asked for is an error, as no answer is.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from bulkhead.config import Etcd

ANSWER_BYTES_MAX: Final = 4 << 20
TIMEOUT_S: Final = 5.0
"""For one request, from the first byte out to the last byte in."""
SILENCE_S: Final = 60.0
"""A watch that says nothing for so long is asked for anew: the member may be gone without a word."""

_PROBLEM_MAX: Final = 200
_UNAUTHENTICATED: Final = 16
"""gRPC's code for a token that has run out."""

Json = dict[str, Any]


class GatewayError(Exception):
    """The member gave no answer that can be used; one sentence."""


class TooLargeError(GatewayError):
    """The answer has more bytes than ANSWER_BYTES_MAX."""


class CompactedError(GatewayError):
    """The history that was asked for is no longer kept."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key, its value, and since which revision it is so."""

    key: bytes
    value: bytes
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Page:
    """Keys of one range, at one revision of one cluster."""

    cluster: int
    revision: int
    entries: tuple[Entry, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Event:
    """What became of a key; without an entry's value it was deleted."""

    entry: Entry
    deleted: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One message of a watch."""

    revision: int
    events: tuple[Event, ...]
    whole: bool
    """The revision's last part: what comes next is of a later one."""


class Gateway:
    """A connection to one member, as an asynchronous context manager."""

    def __init__(self, endpoint: str, etcd: Etcd) -> None:
        self._endpoint = endpoint
        self._etcd = etcd
        self._token = ""

    async def __aenter__(self) -> Self:
        # The files are read each time, so that a renewed certificate is used from the next connection on.
        connector = aiohttp.TCPConnector(ssl=self._context(), limit=8)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._session.close()

    # What is asked

    async def range(
        self, start: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0, keys_only: bool = False
    ) -> Page:
        """The keys from `start` up to before `end`, or `start` alone; the answer of a majority of the members."""
        asked = {"key": _b64(start), "range_end": _b64(end), "limit": str(limit), "revision": str(revision)}
        return self._page(await self.call("kv/range", asked | {"keys_only": keys_only}))

    async def revision(self, key: bytes) -> tuple[int, int]:
        """The cluster and its revision now; the answer of a majority of the members."""
        page = self._page(await self.call("kv/range", {"key": _b64(key), "count_only": True}))
        return page.cluster, page.revision

    async def put_if(self, unchanged: dict[bytes, int], writes: dict[bytes, bytes], lease: int) -> int | None:
        """Write in one step, if each of `unchanged` still has its revision, 0 for a key that is not there.

        The revision that this made; None when something had changed.
        """
        asked = {
            "compare": [
                {"key": _b64(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
                for key, revision in unchanged.items()
            ],
            "success": [
                {"request_put": {"key": _b64(key), "value": _b64(value), "lease": str(lease)}}
                for key, value in writes.items()
            ],
        }
        answer = await self.call("kv/txn", asked)
        return self._number(self._object(answer, "header"), "revision") if answer.get("succeeded") is True else None

    async def grant(self, ttl_s: int) -> int:
        """A new lease."""
        lease = self._number(await self.call("lease/grant", {"TTL": str(ttl_s)}), "ID")
        if not lease:
            raise self._garbled("a lease without a number")
        return lease

    async def keep_alive(self, lease: int) -> bool:
        """Does the lease go on? False: it has ended."""
        answer = await self.call("lease/keepalive", {"ID": str(lease)})
        return self._number(self._object(answer, "result"), "TTL") > 0

    async def revoke(self, lease: int) -> None:
        """End a lease, and what hangs on it."""
        await self.call("lease/revoke", {"ID": str(lease)})

    async def watch(self, start: bytes, end: bytes, revision: int) -> AsyncGenerator[Change, None]:
        """What changes from `revision` on. Begins with an empty change; ends when nothing was heard for SILENCE_S.

        Raises CompactedError when that revision is no longer kept, GatewayError for anything else.
        """
        asked = {"key": _b64(start), "range_end": _b64(end), "start_revision": str(revision), "fragment": True}
        timeout = aiohttp.ClientTimeout(total=None, connect=TIMEOUT_S, sock_connect=TIMEOUT_S, sock_read=SILENCE_S)
        headers = self._headers() | {"Grpc-Metadata-hasleader": "true"}
        watch, heard = {"create_request": asked}, False
        try:
            async with self._session.post(
                self._url("watch"), json=watch, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise self._refusal(self._complaint(await _read(response)))
                async for line in _lines(response):
                    heard = True
                    yield self._change(self._json(line))
        except aiohttp.ServerTimeoutError as error:
            if heard:
                return
            raise self._lost(error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from error
        raise GatewayError(f"{self._endpoint} ended the watch")

    async def call(self, what: str, asked: Json) -> Json:
        """One question, one answer; with a new token where the one there was has run out."""
        if self._etcd.user and not self._token:
            await self._authenticate()
        status, answer = await self._post(what, asked)
        if status != 200 and self._etcd.user and answer.get("code") == _UNAUTHENTICATED:
            await self._authenticate()
            status, answer = await self._post(what, asked)
        if status != 200:
            raise self._refusal(answer)
        return answer

    # How

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._etcd.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self._etcd.cert, self._etcd.key, password=_no_passphrase)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            where = f"`{self._etcd.ca}`, `{self._etcd.cert}` and `{self._etcd.key}`"
            raise GatewayError(f"{where} do not make a TLS client: {_short(error)}") from error
        return context

    async def _authenticate(self) -> None:
        self._token = ""
        status, answer = await self._post(
            "auth/authenticate", {"name": self._etcd.user, "password": _password(Path(self._etcd.password))}
        )
        token = answer.get("token")
        if status != 200:
            raise self._refusal(answer)
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise self._garbled("no token")
        self._token = token

    async def _post(self, what: str, asked: Json) -> tuple[int, Json]:
        try:
            async with self._session.post(
                self._url(what), json=asked, headers=self._headers(), allow_redirects=False
            ) as response:
                body = await _read(response)
                return response.status, self._json(body) if response.status == 200 else self._complaint(body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from error

    def _url(self, what: str) -> str:
        return f"{self._endpoint}/v3/{what}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}

    def _lost(self, error: Exception) -> GatewayError:
        if isinstance(error, TimeoutError):
            return GatewayError(f"{self._endpoint} did not answer within {TIMEOUT_S:g} s")
        return GatewayError(f"{self._endpoint} cannot be asked: {_short(error)}")

    def _garbled(self, what: str) -> GatewayError:
        return GatewayError(f"{self._endpoint} answers as no etcd does: {what}")

    def _refusal(self, answer: Json) -> GatewayError:
        said = answer.get("message") or answer.get("error")
        if not isinstance(said, str):
            return self._garbled("an error without a word")
        if "compacted" in said:
            return CompactedError(f"{self._endpoint} no longer has that revision")
        return GatewayError(f"{self._endpoint} refuses: {_short(said)}")

    # What an answer says

    def _complaint(self, body: bytes) -> Json:
        """An error as etcd words it, in JSON or, where its front end speaks, as plain text."""
        try:
            return self._json(body)
        except GatewayError:
            return {"message": body[:_PROBLEM_MAX].decode("ascii", "backslashreplace")}

    def _json(self, body: bytes) -> Json:
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise self._garbled("not JSON") from None
        if not isinstance(answer, dict):
            raise self._garbled("no JSON object")
        return answer

    def _object(self, answer: Json, key: str) -> Json:
        value = answer.get(key)
        if not isinstance(value, dict):
            raise self._garbled(f"no `{key}`")
        return value

    def _number(self, answer: Json, key: str) -> int:
        """A 64-bit number; one that is 0 is left out."""
        value = answer.get(key, "0")
        if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 20:
            raise self._garbled(f"`{key}` is no number")
        return int(value)

    def _bytes(self, answer: Json, key: str) -> bytes:
        value = answer.get(key, "")
        try:
            return base64.b64decode(value, validate=True)
        except (ValueError, TypeError):
            raise self._garbled(f"`{key}` is not base64") from None

    def _list(self, answer: Json, key: str) -> list[Json]:
        value = answer.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._garbled(f"`{key}` is no list")
        return value

    def _page(self, answer: Json) -> Page:
        header = self._object(answer, "header")
        cluster, revision = self._number(header, "cluster_id"), self._number(header, "revision")
        if not cluster or not revision:
            raise self._garbled("no revision")
        entries = tuple(self._entry(one) for one in self._list(answer, "kvs"))
        return Page(cluster, revision, entries, answer.get("more") is True)

    def _entry(self, one: Json) -> Entry:
        key, value = self._bytes(one, "key"), self._bytes(one, "value")
        return Entry(key, value, self._number(one, "mod_revision"), self._number(one, "lease"))

    def _change(self, line: Json) -> Change:
        if "error" in line:
            raise self._refusal(self._object(line, "error"))
        result = self._object(line, "result")
        if self._number(result, "compact_revision"):
            raise CompactedError(f"{self._endpoint} no longer has that revision")
        if result.get("canceled") is True:
            raise GatewayError(f"{self._endpoint} ended the watch: {_short(result.get('cancel_reason', ''))}")
        events = tuple(
            Event(self._entry(self._object(one, "kv")), one.get("type") == "DELETE")
            for one in self._list(result, "events")
        )
        revision = max((event.entry.mod_revision for event in events), default=0)
        return Change(revision, events, result.get("fragment") is not True)


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _short(error: object) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split()) or type(error).__name__
    return text if len(text) <= _PROBLEM_MAX else f"{text[:_PROBLEM_MAX]}…"


def _no_passphrase() -> str:
    raise ValueError("the private key has a passphrase, and nobody to ask for it")


def _password(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise GatewayError(f"`{path}` is readable by others than its owner: chmod 600")
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise GatewayError(f"cannot read `{path}`: {_short(error)}") from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, as long as it is bounded."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise TooLargeError(f"{response.url.origin()} answers with more than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    pending = bytearray()
    async for chunk in response.content.iter_any():
        pending += chunk
        if b"\n" in chunk:
            *lines, pending = pending.split(b"\n")
            for line in filter(None, lines):
                yield bytes(line)
        if len(pending) > ANSWER_BYTES_MAX:
            raise TooLargeError(f"{response.url.origin()} says more than {ANSWER_BYTES_MAX} bytes in one breath")
