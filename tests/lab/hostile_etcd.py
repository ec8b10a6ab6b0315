"""What no etcd does by itself: an attacker on loopback, with the server's own certificate, in etcd's place."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from bulkhead.config import Etcd
from lab.authority import Authority

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def hostile_etcd(authority: Authority, etcd: Etcd, answers: dict[str, Answer]) -> AsyncIterator[Etcd]:
    """Settings for one that answers each kind of request (`kv/range`, `watch`) as given."""
    pair = authority.issue("hostile")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    app = web.Application()
    for path, answer in answers.items():
        app.router.add_post(f"/v3/{path}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield etcd._replace(endpoints=(f"https://127.0.0.1:{runner.addresses[0][1]}",))
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(authority: Authority, etcd: Etcd, said: bytes) -> AsyncIterator[Etcd]:
    """Settings for one that says these bytes, and no more, to whoever asks anything."""
    pair = authority.issue("hostile")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield etcd._replace(endpoints=(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}",))


async def still_heard(request: web.Request) -> bool:
    """Is anybody there? Others get their turn: the one who is flooded lives in the same loop."""
    await asyncio.sleep(0)
    return request.transport is not None and not request.transport.is_closing()


def says(body: Any, status: int = 200, **headers: str) -> Answer:
    """The same each time: bytes, or what JSON is made of."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body if isinstance(body, bytes) else json.dumps(body), status=status, headers=headers)

    return answer


def streams(*chunks: bytes, again: bytes = b"") -> Answer:
    """One after the other, then `again` until nobody listens."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        while again and await still_heard(request):
            await response.write(again)
        return response

    return answer


def page(*entries: tuple[str, bytes], revision: int = 5, **others: Any) -> dict[str, Any]:
    """What a list says."""
    kvs = [{"key": b64(key.encode()), "value": b64(value), "mod_revision": "3"} for key, value in entries]
    return {"header": {"cluster_id": "7", "revision": str(revision)}, "kvs": kvs} | others


def b64(value: bytes) -> str:
    """As in JSON."""
    return base64.b64encode(value).decode()
