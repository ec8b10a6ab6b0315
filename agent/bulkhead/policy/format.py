"""The canonical form of policy files: the same values are always written the same way.

Form follows from values and comments alone, never from how they were written before; docs/ci.md has the rules. What an
author ordered stays in order, but for the keys of a mapping whose keys the language knows.

The result is read again before it is given out: it must say the same, and hold the same comments.
"""

from __future__ import annotations

from collections import Counter

from bulkhead.errors import BulkheadError, PolicyError
from bulkhead.policy import yaml_nodes
from bulkhead.policy.codes import presentable
from bulkhead.policy.findings import Findings
from bulkhead.policy.layout import lay_out
from bulkhead.policy.read import API_VERSION
from bulkhead.policy.scalars import meaning
from bulkhead.policy.written import Document, Group, read_comments, read_documents


def format_file(path: str, content: bytes) -> bytes:
    """The canonical form of a file; documents that are not Bulkhead's stay as they are.

    Raises PolicyError for what is not YAML as policies are written in, BulkheadError when the result is not sound.
    """
    if API_VERSION.encode() not in content:
        return content
    findings = Findings(path, content)
    written = yaml_nodes.compose(content, findings)
    if findings.diagnostics:
        raise PolicyError(findings.diagnostics)
    text = content.decode("utf-8-sig").replace("\r\n", "\n")
    documents = read_documents(text)
    if not any(_is_policy(document) for document in documents):
        return content
    formatted = _join(documents)
    _check(path, written, documents, formatted)
    return formatted.encode()


def _is_policy(document: Document) -> bool:
    items = document.root.items if isinstance(document.root, Group) else ()
    return any(
        item.key is not None
        and item.key.text == "apiVersion"
        and not isinstance(item.value, Group)
        and item.value.text == API_VERSION
        for item in items
    )


def _check(path: str, written: yaml_nodes.Composition, documents: list[Document], formatted: str) -> None:
    """Raises BulkheadError unless the result says the same as what was written, with the same comments."""
    findings = Findings(path, formatted.encode())
    found = yaml_nodes.compose(formatted.encode(), findings)
    before, after = ([_meaning(node) for node in each.documents] for each in (written, found))
    if findings.diagnostics or before != after:
        raise BulkheadError(f"{presentable(path)}: formatting would change what it says; this is a fault of bulkhead's")
    if Counter(one for document in documents for one in document.comments) != Counter(read_comments(formatted)):
        raise BulkheadError(f"{presentable(path)}: formatting would lose a comment; this is a fault of bulkhead's")


def _meaning(node: yaml_nodes.Node) -> object:
    """A node without its place and its form."""
    if isinstance(node, yaml_nodes.Scalar):
        seen_as = meaning(node.text) if node.plain else ""
        return (node.text, seen_as) if seen_as else node.text
    if isinstance(node, yaml_nodes.Mapping):
        return {_meaning(key): _meaning(value) for key, value in node.entries}
    if isinstance(node, yaml_nodes.Sequence):
        return [_meaning(item) for item in node.items]
    return None


def _join(documents: list[Document]) -> str:
    parts: list[str] = []
    for document in documents:
        text = document.source
        if isinstance(document.root, Group) and _is_policy(document):
            text = "\n".join(lay_out(document.header, document.root))
        text = text if text.endswith("\n") else f"{text}\n"
        parts.append(f"---\n{text}" if parts and not text.startswith("---") else text)
    return "".join(parts)
