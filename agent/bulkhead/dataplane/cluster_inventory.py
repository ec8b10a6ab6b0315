"""The cluster that a matrix is asked about: pods, nodes and namespaces as `kubectl get -o yaml` shows them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeVar

from bulkhead.dataplane.addresses import Address
from bulkhead.errors import UsageError
from bulkhead.policy.documents import Value, load_documents
from bulkhead.policy.ports import SCTP, TCP, UDP

SIZE_LIMIT: Final = 64 << 20
"""Bytes of the largest inventory of a cluster."""

NAME_LABEL: Final = "kubernetes.io/metadata.name"
"""The label that every namespace has, with its name."""

_PROTOCOLS: Final = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
_KINDS: Final = ("Namespace", "Pod", "Node", "Service")
_ENDED: Final = ("Succeeded", "Failed")
_NATIVE: Final = re.compile(rb"^(?:\{\s*)?[\"']?endpoints[\"']?\s*:", re.MULTILINE)

_Fields = Mapping[str, Value]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port of a container under its name."""

    name: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class ListedPod:
    """A pod that can talk: one that has not ended."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    service_account: str = "default"
    node: str = ""
    """Empty: not scheduled yet."""
    host_network: bool = False
    """It uses its node's network, and is the node to every policy."""
    addresses: tuple[Address, ...] = ()
    ports: tuple[NamedPort, ...] = ()

    @property
    def qualified(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def families(self) -> frozenset[int]:
        """The IP versions it can talk in; both when no address is known."""
        return _families(self.addresses)


@dataclass(frozen=True, slots=True)
class ListedNode:
    """A machine of the cluster."""

    name: str
    labels: Mapping[str, str]
    addresses: tuple[Address, ...] = ()
    """The one inside the cluster first."""

    @property
    def families(self) -> frozenset[int]:
        return _families(self.addresses)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is, each in the order of the file."""

    namespaces: Mapping[str, Mapping[str, str]]
    """Labels by name: of every namespace that is listed or has a pod."""
    pods: tuple[ListedPod, ...]
    nodes: tuple[ListedNode, ...]
    ignored: Mapping[str, int]
    """How many objects of other kinds there were."""


def _families(addresses: tuple[Address, ...]) -> frozenset[int]:
    return frozenset(address.version for address in addresses) or frozenset({4, 6})


def is_cluster(content: bytes) -> bool:
    """Whether an inventory lists Kubernetes objects rather than `endpoints`."""
    return b"kind" in content and _NATIVE.search(content) is None


def parse_cluster(content: bytes, path: str) -> Cluster:
    """The cluster in a `List`, or in documents of one object each. Services are read over: policies judge pods.

    Raises UsageError when it is not YAML or JSON, too large, or an object lacks what it must have.
    """
    if len(content) > SIZE_LIMIT:
        raise UsageError(f"{path}: an inventory of a cluster has at most {SIZE_LIMIT:,} bytes")
    reader = _Reader(path)
    for document in load_documents(content, path):
        for item in reader.objects(document):
            reader.take(item)
    return reader.cluster()


class _Reader:
    """Gathers objects; knows the file for its messages."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._pods: dict[str, ListedPod | None] = {}
        """None: one that has ended."""
        self._nodes: dict[str, ListedNode] = {}
        self._ignored: Counter[str] = Counter()

    def objects(self, document: Value, kind: str = "") -> Iterator[_Fields]:
        """The objects of a document, lists opened up. `kind` is that of the items of a typed list."""
        pending: list[tuple[Value, str]] = [(document, kind)]
        while pending:
            value, implied = pending.pop()
            fields = self._mapping(value, "an object")
            found = fields.get("kind", implied)
            if not isinstance(found, str) or not found:
                raise UsageError(f"{self._path}: an object has no `kind`")
            if found.endswith("List"):
                items = self._items(fields.get("items"), f"`items` of a {found}")
                pending.extend((item, found.removesuffix("List")) for item in reversed(items))
            else:
                yield {**fields, "kind": found}

    def take(self, fields: _Fields) -> None:
        """Works one object in."""
        kind = str(fields["kind"])
        if kind not in _KINDS:
            self._ignored[kind] += 1
            return
        metadata = self._mapping(fields.get("metadata"), f"`metadata` of a {kind}")
        name = self._text(metadata.get("name"), f"`metadata.name` of a {kind}")
        if kind == "Namespace":
            self._once(self._namespaces, kind, name, {**self._labels(metadata, f"namespace {name}"), NAME_LABEL: name})
        elif kind == "Node":
            self._once(self._nodes, kind, name, self._node(name, metadata, fields))
        elif kind == "Pod":
            namespace = self._text(metadata.get("namespace") or "default", "`metadata.namespace` of a Pod")
            self._once(self._pods, kind, f"{namespace}/{name}", self._pod(namespace, name, metadata, fields))

    def cluster(self) -> Cluster:
        """Everything taken, with what pods imply: their namespaces, and nodes whose network they use."""
        pods = tuple(pod for pod in self._pods.values() if pod is not None)
        for pod in pods:
            self._namespaces.setdefault(pod.namespace, {NAME_LABEL: pod.namespace})
            if pod.host_network and pod.node not in self._nodes:
                self._nodes[pod.node] = ListedNode(pod.node, {}, pod.addresses)
        return Cluster(self._namespaces, pods, tuple(self._nodes.values()), dict(sorted(self._ignored.items())))

    def _once(self, known: dict[str, T], kind: str, name: str, value: T) -> None:
        if known.setdefault(name, value) != value:
            raise UsageError(f"{self._path}: {kind} {name} is listed twice, in different words")

    def _pod(self, namespace: str, name: str, metadata: _Fields, fields: _Fields) -> ListedPod | None:
        what = f"pod {namespace}/{name}"
        spec = self._mapping(fields.get("spec") or {}, f"{what}: `spec`")
        status = self._mapping(fields.get("status") or {}, f"{what}: `status`")
        if status.get("phase") in _ENDED:
            return None
        return ListedPod(
            namespace,
            name,
            self._labels(metadata, what),
            self._text(spec.get("serviceAccountName") or "default", f"{what}: `serviceAccountName`"),
            self._text(spec.get("nodeName") or "", f"{what}: `nodeName`", may_be_empty=True),
            spec.get("hostNetwork") is True,
            tuple(self._pod_addresses(status, what)),
            tuple(self._ports(spec, what)),
        )

    def _pod_addresses(self, status: _Fields, what: str) -> Iterator[Address]:
        listed = [
            self._mapping(item, f"{what}: an entry of `podIPs`").get("ip")
            for item in self._items(status.get("podIPs"), f"{what}: `podIPs`")
        ]
        for text in [one for one in listed if one] or [status.get("podIP")]:
            if text:
                yield self._address(text, what)

    def _ports(self, spec: _Fields, what: str) -> Iterator[NamedPort]:
        sidecars = (
            self._mapping(one, f"{what}: a container")
            for one in self._items(spec.get("initContainers"), f"{what}: `initContainers`")
        )
        containers = self._items(spec.get("containers"), f"{what}: `containers`")
        for container in (*containers, *(one for one in sidecars if one.get("restartPolicy") == "Always")):
            ports = self._mapping(container, f"{what}: a container").get("ports")
            for item in self._items(ports, f"{what}: `ports`"):
                port = self._mapping(item, f"{what}: a port")
                if port.get("name"):
                    yield self._port(port, what)

    def _port(self, port: _Fields, what: str) -> NamedPort:
        name, protocol, number = port.get("name"), port.get("protocol") or "TCP", port.get("containerPort")
        if not isinstance(name, str) or protocol not in _PROTOCOLS:
            raise self._error(what, "a port has a text `name`, and `protocol` TCP, UDP or SCTP")
        if type(number) is not int or not 1 <= number <= 65535:
            raise self._error(what, f"`containerPort` of `{name}` is a number from 1 to 65535")
        return NamedPort(name, _PROTOCOLS[str(protocol)], number)

    def _node(self, name: str, metadata: _Fields, fields: _Fields) -> ListedNode:
        what = f"node {name}"
        status = self._mapping(fields.get("status") or {}, f"{what}: `status`")
        listed = [
            self._mapping(item, f"{what}: an address")
            for item in self._items(status.get("addresses"), f"{what}: `addresses`")
        ]
        found = [
            self._address(entry.get("address"), what)
            for kind in ("InternalIP", "ExternalIP")
            for entry in listed
            if entry.get("type") == kind
        ]
        return ListedNode(name, self._labels(metadata, what), tuple(found))

    def _labels(self, metadata: _Fields, what: str) -> dict[str, str]:
        labels = self._mapping(metadata.get("labels") or {}, f"{what}: `labels`")
        found: dict[str, str] = {}
        for key, value in labels.items():
            if not isinstance(value, str | None):
                raise self._error(what, f"the label `{key}` is text: `{value}` needs quotes")
            found[key] = value or ""
        return found

    def _address(self, text: Value, what: str) -> Address:
        try:
            return ip_address(str(text))
        except ValueError as error:
            raise self._error(what, f"`{text}` is not an address") from error

    def _mapping(self, value: Value, what: str) -> _Fields:
        if not isinstance(value, dict):
            raise UsageError(f"{self._path}: {what} is a mapping")
        return value

    def _items(self, value: Value, what: str) -> list[Value]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise UsageError(f"{self._path}: {what} is a list")
        return value

    def _text(self, value: Value, what: str, may_be_empty: bool = False) -> str:
        if not isinstance(value, str) or not (value or may_be_empty):
            raise UsageError(f"{self._path}: {what} is text")
        return value

    def _error(self, what: str, problem: str) -> UsageError:
        return UsageError(f"{self._path}: {what}: {problem}")
