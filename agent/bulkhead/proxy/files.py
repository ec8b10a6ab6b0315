"""The configuration as files, and how a set of them comes into force at once."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bulkhead.dataplane.mesh import Mesh
from bulkhead.proxy.authorization import JWT_FILE, SERVER_NAMES_FILE, jwt_filter, server_names_filter
from bulkhead.proxy.inbound import CALLERS_FILE, caller_routes, inbound_listener, pair_cluster
from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.outbound import lane_cluster, lane_listener
from bulkhead.proxy.requests import REQUESTS_FILE, requests_cluster, requests_listener, requests_routes
from bulkhead.proxy.terms import Message

_CURRENT: Final = "current"


def render(mesh: Mesh, node: ProxyNode, listeners: Mapping[int, int], now: float) -> dict[str, bytes]:
    """Every file by its name.

    `listeners`: which identity listens on which TCP port of this node. `now`: Unix seconds, against the clauses'
    deadlines. Equal arguments give equal bytes.
    """
    listening = [lane_listener(lane, mesh, node) for lane in mesh.lanes]
    listening += [requests_listener(one, mesh, node) for one in mesh.authorizations]
    clusters = [lane_cluster(lane, mesh, node) for lane in mesh.lanes]
    clusters += [pair_cluster(call.source, call.destination) for call in mesh.calls]
    clusters += [requests_cluster(one) for one in mesh.authorizations]
    if mesh.calls:
        listening.append(inbound_listener(mesh, node, listeners))
    files = {
        "lds.json": listening,
        "cds.json": clusters,
        CALLERS_FILE: [caller_routes(mesh, node)],
        REQUESTS_FILE: [requests_routes(mesh, node, now)],
        JWT_FILE: [jwt_filter(mesh)],
        SERVER_NAMES_FILE: [server_names_filter(mesh, node, now)],
    }
    return {name: _response(resources) for name, resources in files.items()}


def _response(resources: list[Message]) -> bytes:
    return json.dumps({"resources": resources}, separators=(",", ":"), sort_keys=True).encode()


def publish(directory: Path, files: Mapping[str, bytes], gid: int = -1) -> bool:
    """Bring `files` into force, all at once, and remove what was before. False: they are in force already.

    `directory` is there; `gid` may read what is written. Raises OSError.
    """
    current = directory / _CURRENT
    if _read(current) == files:
        return False
    fresh = Path(tempfile.mkdtemp(dir=directory))
    for name, content in files.items():
        (fresh / name).write_bytes(content)
        os.chown(fresh / name, -1, gid)
        (fresh / name).chmod(0o640)
    os.chown(fresh, -1, gid)
    fresh.chmod(0o750)
    link = directory / f"{fresh.name}.link"
    link.symlink_to(fresh.name)
    link.replace(current)
    for one in directory.iterdir():
        if one.is_dir() and not one.is_symlink() and one != fresh:
            shutil.rmtree(one)
    return True


def write(path: Path, content: bytes, gid: int = -1) -> None:
    """Put a file in the place of another, at once, unless it says the same; `gid` may read it. Raises OSError."""
    if path.exists() and path.read_bytes() == content:
        return
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(content)
    os.chown(fresh, -1, gid)
    fresh.chmod(0o640)
    fresh.replace(path)


def _read(directory: Path) -> dict[str, bytes]:
    if not directory.is_dir():
        return {}
    return {one.name: one.read_bytes() for one in directory.iterdir()}
