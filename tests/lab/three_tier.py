"""The shop on three hosts: nginx, an HTTP API and Redis, configured as anybody would who never heard of Bulkhead."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from lab import shop_api
from lab.fleet import Fleet
from lab.host import PYTHON, Host

FRONT_PORT, API_PORT, REDIS_PORT = 8000, 9000, shop_api.PORT
FRONT, API, CACHE = "front", "api", "cache"
"""Control groups: on the hosts web, app and db."""


@contextmanager
def three_tiers(fleet: Fleet) -> Iterator[None]:
    """All three running. A request that reaches nginx over IPv4 goes on over IPv4, and likewise IPv6."""
    with ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        options = ["--port", str(REDIS_PORT), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
        argv = ["redis-server", "--bind", "*", "-::*", *options, "--dir", str(directory)]
        redis = _start(running, fleet["db"], CACHE, argv, stdout=subprocess.PIPE)
        argv = [PYTHON, shop_api.__file__, str(API_PORT), fleet.address("db"), fleet.address("db", 6)]
        api = _start(running, fleet["app"], API, argv, stdout=subprocess.PIPE)
        configuration = directory / "nginx.conf"
        configuration.write_text(_nginx(fleet.address("app"), fleet.address("app", 6)))
        argv = ["nginx", "-e", "stderr", "-p", f"{directory}/", "-c", str(configuration)]
        nginx = _start(running, fleet["web"], FRONT, argv, stderr=subprocess.PIPE)
        _await(redis.stdout, "Ready to accept connections")
        _await(api.stdout, "ready")
        _await(nginx.stderr, "start worker process ")
        yield


def _start(running: ExitStack, host: Host, group: str, argv: list[str], **options: Any) -> subprocess.Popen[str]:
    program: subprocess.Popen[str] = host.start(group, argv, text=True, **options)

    def end() -> None:
        program.terminate()
        program.communicate(timeout=10)

    running.callback(end)
    return program


def _await(output: IO[str] | None, part: str) -> None:
    assert output is not None
    said = []
    for line in output:
        said.append(line)
        if part in line:
            return
    raise RuntimeError(f"it ended and did not say `{part}`: {''.join(said)}")


def _nginx(*apis: str) -> str:
    server = """
    server {{
        listen {listen};
        location / {{ proxy_pass http://{api}; }}
    }}
"""
    four, six = apis
    return f"""
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {server.format(listen=FRONT_PORT, api=f"{four}:{API_PORT}")}
    {server.format(listen=f"[::]:{FRONT_PORT} ipv6only=on", api=f"[{six}]:{API_PORT}")}
}}
"""
