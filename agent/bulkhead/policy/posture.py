"""What a workload must be found to be before it counts as itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from bulkhead.policy.fields import (
    Keys,
    did_you_mean,
    expect_items,
    expect_mapping,
    read_mapping,
    read_text,
    read_written,
)
from bulkhead.policy.findings import Findings
from bulkhead.policy.model import Requirement
from bulkhead.policy.values import read_name
from bulkhead.policy.yaml_nodes import Node, Scalar

KEYS_POSTURE = Keys("`posture`", (), ("digest", "hardening", "package", "kernel", "node"))
KEYS_HARDENING = Keys("`hardening`", (), ("NoNewPrivileges", "Seccomp", "CapabilityBoundingSet"))

RELATIONS: Final = (">=", ">", "=", "<", "<=")

CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
"""By number."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
PACKAGE = re.compile(r"[a-z0-9][-a-z0-9+.]{1,127}")
_RELATION: Final = "(>=|>|=|<=|<)"
KERNEL_VERSION = re.compile(_RELATION + r" *([0-9]{1,9}(?:\.[0-9]{1,9}){0,3})")
PACKAGE_VERSION = re.compile(_RELATION + r" *((?:[0-9]{1,9}:)?[0-9][A-Za-z0-9.+~]{0,63}(?:-[A-Za-z0-9.+~-]{1,63})?)")


def read_posture(node: Node, findings: Findings) -> tuple[Requirement, ...] | None:
    """What `posture` requires, in the order of its keys; None when any of it is not sound."""
    mapping = expect_mapping(node, KEYS_POSTURE.what, findings, empty=False)
    if mapping is None:
        return None
    before = findings.count
    fields = read_mapping(mapping, KEYS_POSTURE, findings) or {}
    readers = {
        "digest": _read_digests,
        "hardening": _read_hardening,
        "package": _read_packages,
        "kernel": _read_kernel,
        "node": _read_node,
    }
    found = [one for key in KEYS_POSTURE.known() if key in fields for one in readers[key](fields[key], findings)]
    return tuple(found) if findings.count == before else None


def _read_digests(node: Node, findings: Findings) -> Iterable[Requirement]:
    texts = _texts(node, "`digest`", findings)
    for text in texts:
        if not DIGEST.fullmatch(text.text):
            findings.add("BH0319", text, hint="as `sha256sum` prints it, behind `sha256:`", text=text.text)
    yield Requirement("digest", tuple(dict.fromkeys(text.text for text in texts)))


def _read_hardening(node: Node, findings: Findings) -> Iterable[Requirement]:
    mapping = expect_mapping(node, "`hardening`", findings, empty=False)
    fields = (read_mapping(mapping, KEYS_HARDENING, findings) if mapping else None) or {}
    for key, word in (("NoNewPrivileges", "true"), ("Seccomp", "filter")):
        if key in fields:
            text = read_written(fields[key], f"`{key}`", findings)
            if text is not None and text.text != word:
                findings.add("BH0321", text, hint=f"write `{key}: {word}` or leave it out", text=text.text, what=key)
            yield Requirement(f"hardening.{key}", (word,))
    if "CapabilityBoundingSet" in fields:
        texts = _texts(fields["CapabilityBoundingSet"], "`CapabilityBoundingSet`", findings, empty=True)
        for text in texts:
            if text.text not in CAPABILITIES:
                hint = did_you_mean(text.text, CAPABILITIES, findings)
                findings.add("BH0321", text, hint=hint, text=text.text, what="CapabilityBoundingSet")
        yield Requirement("hardening.CapabilityBoundingSet", tuple(dict.fromkeys(text.text for text in texts)))


def _read_packages(node: Node, findings: Findings) -> Iterable[Requirement]:
    mapping = expect_mapping(node, "`package`", findings, empty=False)
    for key, value in mapping.entries if mapping else ():
        if not PACKAGE.fullmatch(key.text):
            findings.add("BH0322", key, text=key.text)
        for version in _version(value, PACKAGE_VERSION, ">= 1.22", findings):
            yield Requirement(f"package.{key.text}", (version,))


def _read_kernel(node: Node, findings: Findings) -> Iterable[Requirement]:
    for version in _version(node, KERNEL_VERSION, ">= 6.1", findings):
        yield Requirement("kernel", (version,))


def _version(node: Node, pattern: re.Pattern[str], example: str, findings: Findings) -> Iterable[str]:
    """One relation and a version, as `>= 6.1`."""
    text = read_text(node, "a version", findings)
    if text is None:
        return
    found = pattern.fullmatch(text.text)
    if found is None:
        findings.add("BH0320", text, hint=f'such as `"{example}"`', text=text.text)
    else:
        yield f"{found[1]} {found[2]}"


def _read_node(node: Node, findings: Findings) -> Iterable[Requirement]:
    items = expect_items(node, "`node`", findings, empty=False) or ()
    names = [name for item in items if (name := read_name(item, "`node`", findings))]
    for text in dict.fromkeys(name.text for name in names):
        yield Requirement(f"node.{text}", ("ok",))


def _texts(node: Node, what: str, findings: Findings, *, empty: bool = False) -> list[Scalar]:
    items = expect_items(node, what, findings, empty=empty) or ()
    return [text for item in items if (text := read_text(item, what, findings))]
