"""Which signer a change of policy files needs: documents are compared, not lines, and each has a level.

A policy is of the level that it says. The record of a node is platform. `bulkhead.yaml`, the keys of signers, Rego,
policies of a whole Kubernetes cluster or mesh, and every invariant that is removed or changed are guardrail. What is
moved from one level to another is of both. Files that are not read as policy are of the lowest level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import ROOT_NAMESPACE, level_of
from bulkhead.policy.model import Level
from bulkhead.policy.source import REPOSITORY_FILE, is_module, is_policy
from bulkhead.policy.yaml_nodes import Mapping as MappingNode
from bulkhead.policy.yaml_nodes import Node, Scalar, compose
from bulkhead.policy.yaml_nodes import Sequence as SequenceNode

KEYS_DIRECTORY: Final = ".signers/"
"""OpenPGP keys of the signers that `bulkhead.yaml` names, `FINGERPRINT.asc` each."""

RANK: Final = {Level.APP: 0, Level.PLATFORM: 1, Level.GUARDRAIL: 2}
"""A signer may write at his level and below."""

_GUARDRAIL_WORDS: Final = (
    *(b"guardrail", b"never", b"Repository", b"ClusterNetworkPolicy", b"AdminNetworkPolicy"),
    ROOT_NAMESPACE.encode(),
)

_OWN_KINDS: Final = ("Policy", "Node", "TrustBundle")
_PLATFORM_WORDS: Final = (b"platform", b"Node")


@dataclass(frozen=True, slots=True)
class Need:
    """The level that a change needs, and the document that makes it so."""

    level: Level
    what: str
    """Such as ``policy `shop` ``; empty when nothing that is policy changes."""
    path: str
    line: int


Contents = Mapping[str, bytes | None]
"""Files by path, as they are on one side of a change. None: there, and too large to be read."""


def needed(before: Contents, after: Contents) -> Need:
    """The highest level that a change needs. Holds only the files that differ."""
    found = [_of_path(path) for path in sorted({*before, *after}) if not is_policy(path) or path == REPOSITORY_FILE]
    found += _of_documents(_Side(before), _Side(after))
    return max(found, key=lambda need: RANK[need.level], default=Need(Level.APP, "", "", 0))


def _of_path(path: str) -> Need:
    if path == REPOSITORY_FILE:
        return Need(Level.GUARDRAIL, f"`{path}`", path, 1)
    if path.startswith(KEYS_DIRECTORY):
        return Need(Level.GUARDRAIL, f"the key `{path}`", path, 1)
    if is_module(path):
        return Need(Level.GUARDRAIL, f"the Rego of `{path}`", path, 1)
    return Need(Level.APP, "", path, 1)


@dataclass(frozen=True, slots=True)
class _Document:
    """One document, without the place of anything in it."""

    level: Level
    what: str
    path: str
    line: int
    body: object
    nevers: Counter[object]

    @property
    def need(self) -> Need:
        return Need(self.level, self.what, self.path, self.line)


class _Side:
    """The documents on one side of a change, by what they are called."""

    def __init__(self, contents: Contents) -> None:
        self.documents: dict[tuple[str, ...], list[_Document]] = {}
        self.broken: list[Need] = []
        for path, content in contents.items():
            if is_policy(path) and path != REPOSITORY_FILE:
                self._read(path, content)

    def _read(self, path: str, content: bytes | None) -> None:
        findings = Findings(path, content or b"")
        documents = compose(content, findings).documents if content is not None else ()
        if content is None or findings.count:
            self.broken.append(_of_broken(path, content))
            return
        for node in documents:
            if isinstance(node, MappingNode):
                key, document = _document(path, node)
                self.documents.setdefault(key, []).append(document)


def _of_documents(before: _Side, after: _Side) -> Iterator[Need]:
    yield from before.broken
    yield from after.broken
    for key in sorted({*before.documents, *after.documents}):
        old, new = before.documents.get(key, []), after.documents.get(key, [])
        if Counter(one.body for one in old) == Counter(one.body for one in new):
            continue
        yield from (one.need for one in (*new, *old))
        kept = sum((one.nevers for one in new), Counter[object]())
        if sum((one.nevers for one in old), Counter[object]()) - kept:
            place = (new or old)[0]
            yield Need(Level.GUARDRAIL, f"an invariant of {place.what}", place.path, place.line)


def _of_broken(path: str, content: bytes | None) -> Need:
    """By the words in it: it says nothing that can be enforced, and may have taken something away."""
    what = f"`{path}`, which cannot be read,"
    if content is None or any(word in content for word in _GUARDRAIL_WORDS):
        return Need(Level.GUARDRAIL, what, path, 1)
    is_platform = any(word in content for word in _PLATFORM_WORDS)
    return Need(Level.PLATFORM if is_platform else Level.APP, what, path, 1)


def _document(path: str, node: MappingNode) -> tuple[tuple[str, ...], _Document]:
    fields = _fields(node)
    kind, metadata = _text(fields.get("kind")), _fields(fields.get("metadata"))
    name, namespace = _text(metadata.get("name")), _text(metadata.get("namespace"))
    listed = fields.get("never")
    nevers = Counter(map(_bare, listed.items)) if isinstance(listed, SequenceNode) else Counter[object]()
    called = f"{namespace}/{name}" if namespace else name
    what = f"{kind.lower() if kind in _OWN_KINDS else kind or 'document'} `{called}`"
    level = _level(kind, fields, metadata)
    return (kind, namespace, name), _Document(level, what, path, node.line, _bare(node), nevers)


def _level(kind: str, fields: Mapping[str, Node], metadata: Mapping[str, Node]) -> Level:
    if kind == "Policy":
        written = metadata.get("level")
        return Level.APP if written is None else _level_of(_text(written))
    if kind == "Node":
        return Level.PLATFORM
    if kind in ("AuthorizationPolicy", "PeerAuthentication"):
        return level_of(_text(metadata.get("namespace")))
    if kind in ("NetworkPolicy", "NetworkPolicyList") or (kind == "List" and _is_list_of_apps(fields.get("items"))):
        return Level.APP
    return Level.GUARDRAIL


def _level_of(text: str) -> Level:
    return Level(text) if text in RANK else Level.GUARDRAIL


def _is_list_of_apps(items: Node | None) -> bool:
    return isinstance(items, SequenceNode) and all(
        _text(_fields(item).get("kind")) == "NetworkPolicy" for item in items.items
    )


def _fields(node: Node | None) -> dict[str, Node]:
    return {key.text: value for key, value in node.entries} if isinstance(node, MappingNode) else {}


def _text(node: Node | None) -> str:
    return node.text if isinstance(node, Scalar) else ""


def _bare(node: Any) -> object:
    """A node without places, in the order written; what YAML reads as another type is another value."""
    if isinstance(node, Scalar):
        return node.text, node.plain
    if isinstance(node, SequenceNode):
        return "[", *map(_bare, node.items)
    if isinstance(node, MappingNode):
        return "{", *((key.text, _bare(value)) for key, value in node.entries)
    return None
