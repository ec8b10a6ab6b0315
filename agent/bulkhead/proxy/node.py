"""What the proxy's configuration has to know of the node it is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

INBOUND_BINDS: Final = ("127.127.255.255", "::1")
"""Where Envoy listens for other nodes: out of everybody's way, since the kernel hands it what is for port 15008."""


BOOTSTRAP: Final = "bootstrap.json"
PRIVATE: Final = "own"
"""Names below the proxy's directory, for its keeper, which knows nothing else of the node."""


@dataclass(frozen=True, slots=True)
class ProxyNode:
    """One node, as its proxy sees it."""

    host: str
    """Its name, which replaces `{host}` in the SPIFFE IDs of its own workloads."""
    trust_domain: str
    addresses: tuple[str, ...]
    """Single addresses of this node at which its workloads may be called. A tunnel to any other is refused, and so is
    one to loopback unless it comes from this node: what listens there alone is for its own processes."""
    run_dir: Path
    """Where the agent keeps its sockets; the proxy's files are below `proxy` in it."""
    binds: tuple[str, ...] = INBOUND_BINDS
    """Addresses on which the listener for other nodes is bound, one at least."""
    svid_minutes: int = 60
    """Life of an SVID; a tunnel takes no new conversation after half of it."""

    @property
    def directory(self) -> Path:
        """Of the proxy's files. Root writes it; the proxy may read it."""
        return self.run_dir / "proxy"

    @property
    def configuration(self) -> Path:
        """Directory in which `current` points to the files that are in force."""
        return self.directory / "config"

    @property
    def private(self) -> Path:
        """Directory that the proxy itself may write: its sockets and its log."""
        return self.directory / PRIVATE

    @property
    def admin(self) -> Path:
        """Unix socket of Envoy's administration."""
        return self.private / "admin.sock"

    @property
    def access(self) -> Path:
        """FIFO that Envoy writes its access records to."""
        return self.directory / "access"

    @property
    def sds_socket(self) -> Path:
        """Unix socket that gives the SVIDs."""
        return self.run_dir / "workload.sock"

    @property
    def rego_socket(self) -> Path:
        """Unix socket that answers for Rego."""
        return self.run_dir / "rego.sock"
