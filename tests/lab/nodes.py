"""Nodes of a trust domain for tests: key files, and records as authors write them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from bulkhead import keyd

PASSPHRASE = b"correct horse battery staple"


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A node's private key on disk."""

    path: Path
    passphrase: Path
    public: bytes

    @property
    def settings(self) -> dict[str, object]:
        """As in agent.toml."""
        return {"node_key": str(self.path), "node_key_passphrase": str(self.passphrase)}


def key_file(directory: Path) -> KeyFile:
    """A new key in a directory."""
    path, passphrase = directory / "node.key", directory / "passphrase"
    text, public = keyd.generate(PASSPHRASE)
    for target, content in ((path, text), (passphrase, PASSPHRASE + b"\n")):
        target.touch(mode=0o600)
        target.write_bytes(content)
    return KeyFile(path, passphrase, public)


def record(name: str, *addresses: str, key: bytes | None = None, **more: object) -> str:
    """A document `kind: Node`."""
    lines = ["---", "apiVersion: bulkhead/v1alpha1", "kind: Node", f"metadata: {{name: {name}}}"]
    lines.append(f"addresses: [{', '.join(addresses)}]")
    if key is not None:
        lines.append(f"key: {base64.b64encode(key).decode()}")
    lines += [f"{name}: {value}" for name, value in more.items()]
    return "\n".join(lines) + "\n"
