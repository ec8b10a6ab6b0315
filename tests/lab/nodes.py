"""Nodes of a trust domain for tests: key files, and records as authors write them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from bulkhead import keyd
from bulkhead.svid import authority

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


@dataclass(frozen=True, slots=True)
class AuthorityFile:
    """A node's certificate authority on disk."""

    path: Path
    passphrase: Path
    certificate: bytes
    """DER."""

    @property
    def text(self) -> str:
        """As in the node's record."""
        return base64.b64encode(self.certificate).decode()

    @property
    def settings(self) -> dict[str, object]:
        """As in agent.toml."""
        return {"authority": str(self.path), "authority_passphrase": str(self.passphrase)}


def authority_file(directory: Path, node: str, trust_domain: str = "example.org") -> AuthorityFile:
    """A new authority in a directory."""
    path, passphrase = directory / "authority.pem", directory / "authority.passphrase"
    text, certificate = authority.generate(node, trust_domain, PASSPHRASE)
    for target, content in ((path, text), (passphrase, PASSPHRASE + b"\n")):
        target.touch(mode=0o600)
        target.write_bytes(content)
    return AuthorityFile(path, passphrase, certificate)


def record(name: str, *addresses: str, key: bytes | None = None, **more: object) -> str:
    """A document `kind: Node`."""
    lines = ["---", "apiVersion: bulkhead/v1alpha1", "kind: Node", f"metadata: {{name: {name}}}"]
    lines.append(f"addresses: [{', '.join(addresses)}]")
    if key is not None:
        lines.append(f"key: {base64.b64encode(key).decode()}")
    lines += [f"{name}: {value}" for name, value in more.items()]
    return "\n".join(lines) + "\n"
