"""A fleet whose nodes speak mutual TLS with each other: proxies, programs that serve, and what became of requests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from lab.fleet import Fleet
from lab.host import PYTHON, Host
from lab.policies import policy, repository
from lab.wired import until

HOSTS = ("web", "app", "db")
WORKLOADS = {
    "web": "{match: {cgroup: /web}, mode: enforce}",
    "app": "{match: {cgroup: /app}, mode: enforce}",
    "db": "{match: {cgroup: /db}, mode: enforce}",
    "ops": "{match: {cgroup: /ops}, mode: enforce}",
}
API = """  - name: api
    from: web
    to: app
    ports: [8090]
    l7: {http: [{methods: [GET], path: "/v1/*"}, {methods: [GET, POST], path: /health}]}
"""
PLAIN = '  - {name: plain, from: ops, to: db, ports: [22], mtls: "off"}\n'
RULES = ("web -> app 8080", "app -> db 5432", "ops -> app 8080")


def shop(*rules: str, more: str = API + PLAIN) -> str:
    """The fleet's policy: these rules, or the usual ones, and `more` of them."""
    return policy(*(rules or RULES), workloads=WORKLOADS, externals={"mallory": "{cidr: [10.78.4.0/24]}"}, more=more)


def described(**changed: object) -> Fleet:
    """Three hosts with agents, one without, and their router."""
    files = {"bulkhead.yaml": repository(mtls="required"), "t.yaml": shop()}
    hosts: dict[str, object] = {name: {} for name in HOSTS} | {"mallory": {"agent": False}}
    return Fleet.described({"hosts": hosts, "mesh": True, "settings": {"metrics_port": 0}, "policy": files} | changed)


def proxies_serve(fleet: Fleet) -> None:
    """Block until every host's proxy has what the commit in force asks for."""
    for host in fleet.guarded:
        until(lambda host=host: is_served(host), f"the proxy of {host.name} serves: {mesh(host)}", 30.0)


def mesh(host: Host) -> dict[str, Any]:
    """What the agent says of its proxy."""
    return dict(host.call("status")["mesh"])


def is_served(host: Host) -> bool:
    """Whether the proxy runs, and nothing is amiss."""
    said = mesh(host)
    return bool(said["proxy"]["pid"]) and not said["problem"]


def requests(host: Host, wanted: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[dict[str, Any]]:
    """The records of the host's proxy, the latest first."""
    return [one for one in host.call("requests", limit=1000)["requests"] if wanted(one)]


def curl(host: Host, group: str, url: str, *options: str) -> tuple[int, str]:
    """Status and body of a request; status 0 when there was none."""
    argv = ["curl", "-sS", "-m", "5", "--path-as-is", "-o", "-", "-w", "\\n%{http_code}", *options, url]
    done = host.run(group, argv)
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body or done.stderr


HTTP_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import socket

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{self.command} {self.path} from {self.client_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_PUT = do_DELETE = do_GET
    def log_message(self, *args):
        pass

class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

with Server(("::", int(sys.argv[1])), Handler) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


def serve_http(host: Host, group: str, port: int) -> subprocess.Popen[str]:
    """Start an HTTP server that says what it was asked and by whom."""
    program = host.start(group, [PYTHON, "-uc", HTTP_SERVER, str(port)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    if not program.stdout.readline():
        raise RuntimeError("the server did not start")
    return program


PEERS = """
import socket, threading
seen = []
def serve_and_tell(port):
    one = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    _held[f"telling {port}"] = one
    def accept():
        while True:
            conversation, address = one.accept()
            seen.append([address[0], conversation.getpeername()[0], conversation.getsockname()[:2]])
            conversation.sendall(conversation.recv(9))
            _held[f"told {len(seen)}"] = conversation
    threading.Thread(target=accept, daemon=True).start()
"""
"""For a puppet: a server that keeps whom it was shown."""
