"""Git hosts on loopback: the real sshd, and git's own HTTP backend behind TLS with a throw-away authority."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from lab.authority import Authority
from lab.signing import run

LOOPBACK = "127.0.0.1"


# SSH


@dataclass(frozen=True, slots=True)
class SshHost:
    """An sshd that lets one key in."""

    port: int
    key: Path
    known_hosts: Path

    def url(self, repository: Path) -> str:
        """Of a repository on this machine."""
        return f"ssh://root@{LOOPBACK}:{self.port}{repository}"


@contextlib.contextmanager
def ssh_host(directory: Path) -> Iterator[SshHost]:
    """A private sshd with its own host key, ended by its id."""
    directory.mkdir(mode=0o700)
    for name in ("host", "client"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name))
    (directory / "authorized").write_text((directory / "client.pub").read_text())
    port = _free_port()
    config = directory / "sshd_config"
    config.write_text(
        f"ListenAddress {LOOPBACK}\nPort {port}\nHostKey {directory}/host\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {directory}/authorized\nStrictModes no\nPermitRootLogin yes\nPrintMotd no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel ERROR\n"
    )
    host = (directory / "host.pub").read_text().split()
    known = directory / "known_hosts"
    known.write_text(f"[{LOOPBACK}]:{port} {host[0]} {host[1]}\n")
    separated = Path("/run/sshd")  # where sshd keeps its unprivileged half, as its package has it
    made = not separated.exists()
    separated.mkdir(mode=0o755, exist_ok=True)
    with subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE) as daemon:
        try:
            _wait_for(port, daemon)
            yield SshHost(port, directory / "client", known)
        finally:
            daemon.terminate()
            if made:
                separated.rmdir()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, daemon: subprocess.Popen[bytes]) -> None:
    while daemon.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((LOOPBACK, port), 5):
            return
    assert daemon.stderr is not None
    raise RuntimeError(f"sshd did not start: {daemon.stderr.read().decode()}")


# HTTPS


@dataclass(slots=True)
class HttpsHost:
    """Serves the repositories below a directory to whoever has the token."""

    port: int
    ca: Path
    token: str
    served: int = 0
    """Requests that were let in."""

    def url(self, name: str) -> str:
        return f"https://{LOOPBACK}:{self.port}/{name}"


@contextlib.contextmanager
def https_host(directory: Path, repositories: Path, token: str = "bot:secret") -> Iterator[HttpsHost]:
    """`git http-backend` behind TLS."""
    directory.mkdir()
    authority = Authority(directory)
    pair = authority.issue("leaf", LOOPBACK)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    host = HttpsHost(0, authority.certificate, token)
    loop = asyncio.new_event_loop()
    started = threading.Event()
    thread = threading.Thread(target=_serve, args=(loop, host, repositories, context, started), daemon=True)
    thread.start()
    started.wait(20)
    try:
        yield host
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


def _serve(
    loop: asyncio.AbstractEventLoop,
    host: HttpsHost,
    repositories: Path,
    context: ssl.SSLContext,
    started: threading.Event,
) -> None:
    asyncio.set_event_loop(loop)

    async def answer(request: web.Request) -> web.Response:
        if request.path.startswith("/moved/"):
            raise web.HTTPFound(f"https://{LOOPBACK}:{host.port}/" + request.path_qs.removeprefix("/moved/"))
        expected = "Basic " + base64.b64encode(host.token.encode()).decode()
        if host.token and request.headers.get("Authorization") != expected:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        host.served += 1
        return await _backend(request, repositories)

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, 0, ssl_context=context)
        await site.start()
        host.port = int(runner.addresses[0][1])
        return runner

    runner = loop.run_until_complete(start())
    started.set()
    loop.run_forever()
    loop.run_until_complete(runner.cleanup())
    loop.close()


async def _backend(request: web.Request, repositories: Path) -> web.Response:
    """One request by CGI."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(repositories),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query_string,
        "REQUEST_METHOD": request.method,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "REMOTE_USER": "bot",
    }
    body = await request.read()
    process = await asyncio.create_subprocess_exec(
        "git", "http-backend", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
    )
    output, _ = await process.communicate(body)
    head, _, content = output.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    status = int(headers.pop("Status", "200").split()[0])
    return web.Response(status=status, headers=headers, body=content)
