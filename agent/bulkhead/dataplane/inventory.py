"""The endpoints that a matrix is asked about, listed in a YAML file.

    endpoints:
      - {name: web, host: web-1, unit: nginx.service, exe: /usr/sbin/nginx, user: www-data, addresses: [10.0.0.5]}

`unit: x.service` stands for the control group `/system.slice/x.service`. Without either, an endpoint lives in the root.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from bulkhead.dataplane.addresses import Address
from bulkhead.errors import PolicyError, UnreachableError, UsageError
from bulkhead.identity.selectors import Endpoint
from bulkhead.policy.findings import Findings
from bulkhead.policy.yaml_nodes import Mapping, Node, Scalar, Sequence, compose

SIZE_LIMIT = 1 << 20
"""Bytes of the largest inventory."""

_TEXTS = ("name", "host", "cgroup", "unit", "exe", "user", "group")


@dataclass(frozen=True, slots=True)
class Listed:
    """One endpoint of the inventory."""

    name: str
    endpoint: Endpoint
    addresses: tuple[Address, ...] = ()
    """Where it can be reached; empty: not known, either family is possible."""

    @property
    def families(self) -> frozenset[int]:
        """The IP versions it can talk in."""
        return frozenset(address.version for address in self.addresses) or frozenset({4, 6})


def read_inventory(path: Path, default_host: str = "") -> tuple[Listed, ...]:
    """The inventory in a file. Raises UnreachableError when it cannot be read, else as `parse_inventory`."""
    return parse_inventory(read_content(path, SIZE_LIMIT), str(path), default_host)


def read_content(path: Path, limit: int) -> bytes:
    """The bytes of a file, and one more than `limit` of one that is larger. Raises UnreachableError."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise UnreachableError(f"cannot read the inventory `{path}`: {error.strerror}") from error


def parse_inventory(content: bytes, path: str, default_host: str = "") -> tuple[Listed, ...]:
    """The inventory in a text. `default_host` is the host of endpoints that name none.

    Raises PolicyError when it is not proper YAML, UsageError when it is not an inventory.
    """
    if len(content) > SIZE_LIMIT:
        raise UsageError(f"{path}: an inventory has at most {SIZE_LIMIT:,} bytes")
    findings = Findings(path, content)
    documents = compose(content, findings).documents
    if findings.diagnostics:
        raise PolicyError(findings.diagnostics)
    if len(documents) != 1:
        raise UsageError(f"{path}: an inventory is one document")
    reader = _Reader(path, default_host)
    return reader.endpoints(documents[0])


class _Reader:
    """Turns nodes into endpoints; knows the file for its messages."""

    def __init__(self, path: str, default_host: str) -> None:
        self._path = path
        self._default_host = default_host

    def endpoints(self, document: Node) -> tuple[Listed, ...]:
        entries = self._entries(document, "the inventory")
        node = entries.pop("endpoints", None)
        if node is None or entries:
            raise self._error(document, "an inventory has the one key `endpoints`")
        listed = tuple(self._endpoint(item) for item in self._items(node, "`endpoints`"))
        names = [endpoint.name for endpoint in listed]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self._error(node, f"endpoint `{twice}` is listed twice")
        return listed

    def _endpoint(self, node: Node) -> Listed:
        entries = self._entries(node, "an endpoint")
        addresses = tuple(self._address(item) for item in self._items(entries.pop("addresses", None), "`addresses`"))
        unknown = next((key for key in entries if key not in _TEXTS), None)
        if unknown is not None:
            raise self._error(node, f"unknown key `{unknown}` in an endpoint")
        texts = {key: self._text(value, key) for key, value in entries.items()}
        name = texts.get("name")
        if name is None:
            raise self._error(node, "an endpoint needs `name`")
        return Listed(name, self._facts(texts), addresses)

    def _facts(self, texts: dict[str, str]) -> Endpoint:
        cgroup = texts.get("cgroup", f"/system.slice/{texts['unit']}" if "unit" in texts else "/")
        uid, users = _number_or_name(texts.get("user"))
        gid, groups = _number_or_name(texts.get("group"))
        host = texts.get("host", self._default_host)
        return Endpoint(host, cgroup, texts.get("exe"), uid, users, gid, groups)

    def _entries(self, node: Node, what: str) -> dict[str, Node]:
        if not isinstance(node, Mapping):
            raise self._error(node, f"{what} is a mapping")
        return {key.text: value for key, value in node.entries}

    def _items(self, node: Node | None, what: str) -> tuple[Node, ...]:
        if node is None:
            return ()
        if not isinstance(node, Sequence):
            raise self._error(node, f"{what} is a list")
        return node.items

    def _text(self, node: Node, key: str) -> str:
        if not isinstance(node, Scalar) or not node.text:
            raise self._error(node, f"`{key}` is text")
        return node.text

    def _address(self, node: Node) -> Address:
        text = self._text(node, "addresses")
        try:
            return ip_address(text)
        except ValueError as error:
            raise self._error(node, f"`{text}` is not an address") from error

    def _error(self, node: Node, problem: str) -> UsageError:
        return UsageError(f"{self._path}:{node.line}:{node.column}: {problem}")


def _number_or_name(text: str | None) -> tuple[int | None, tuple[str, ...]]:
    if text is None:
        return None, ()
    return (int(text), ()) if text.isdecimal() else (None, (text,))
