"""Changing the mode of a workload in its file: the fewest characters at their place, all else as it was written."""

from __future__ import annotations

from typing import Final

import yaml

from bulkhead.errors import UsageError
from bulkhead.policy.model import Mode
from bulkhead.policy.yaml_nodes import Loader

_BOM: Final = "\ufeff"


def set_mode(content: bytes, policy: str, workload: str, mode: Mode, remark: str = "") -> bytes:
    """The file with the workload's `mode` replaced, or added behind its last key where it has none.

    Only for content that the reader has taken without a finding. `remark` becomes a comment on a line of its own above.
    Raises UsageError when the file does not hold the workload.
    """
    text = content.decode()
    bom, text = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    key, node = _find(text, policy, workload)
    written = _value(node, "mode")
    if written is not None:
        start, end = written.start_mark.index, written.end_mark.index
        changed, anchor = str(mode), start
    elif node.flow_style:
        start = end = _end(node.value[-1][1])
        changed, anchor = f", mode: {mode}", start
    else:
        first = node.value[0][0].start_mark.column
        start = end = _line_end(text, _end(node.value[-1][1]))
        changed, anchor = f"{_newline(text)}{' ' * first}mode: {mode}", start
        if remark:
            changed = f"{_newline(text)}{' ' * first}# {remark}{changed}"
            remark = ""
    text = text[:start] + changed + text[end:]
    if remark:
        # A comment inside braces would have to take the line apart.
        line = _line_start(text, key.start_mark.index if node.flow_style else anchor)
        indent = len(text[line:]) - len(text[line:].lstrip(" "))
        text = f"{text[:line]}{' ' * indent}# {remark}{_newline(text)}{text[line:]}"
    return (bom + text).encode()


def _find(text: str, policy: str, workload: str) -> tuple[yaml.ScalarNode, yaml.MappingNode]:
    """The key and the value of a workload."""
    for document in yaml.compose_all(text, Loader):
        metadata, workloads = (_value(document, key) for key in ("metadata", "workloads"))
        name = _value(metadata, "name")
        if not isinstance(name, yaml.ScalarNode) or name.value != policy or not isinstance(workloads, yaml.MappingNode):
            continue
        for key, value in workloads.value:
            if key.value == workload and isinstance(value, yaml.MappingNode):
                return key, value
    raise UsageError(f"`{policy}/{workload}` is not in this file")


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _end(node: yaml.Node) -> int:
    """Where a value ends. The mark of a block collection is where the next thing begins instead."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_start(text: str, offset: int) -> int:
    return text.rfind("\n", 0, offset) + 1


def _line_end(text: str, offset: int) -> int:
    found = text.find("\n", offset)
    end = len(text) if found < 0 else found
    return end - 1 if end > offset and text[end - 1] == "\r" else end
