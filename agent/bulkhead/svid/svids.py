"""What a workload proves who it is with: an X.509-SVID with its key, or a JWT-SVID."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Workload:
    """A local workload that is to have SVIDs."""

    spiffe_id: str
    name: str
    """As in policy: `POLICY/WORKLOAD`. The `hint` of its SVIDs."""
    pid: int = 0
    """A process that was attested as this workload when the state was published; 0: none runs, or none is known."""
    selectors: tuple[tuple[str, str], ...] = ()
    """What is true of every process of it, in the words of SPIRE: `("systemd", "id:web.service")`."""


@dataclass(frozen=True, slots=True)
class X509Svid:
    """A certificate chain and the key of its first certificate."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    """DER: the leaf first, then intermediates; never the anchor."""
    key: bytes = field(repr=False)
    """PKCS#8, DER, not encrypted."""
    issued_at: float
    """When the leaf was made, in Unix seconds."""
    expires_at: float
    """When the first certificate of the chain ends, in Unix seconds."""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A signed statement of who a workload is, for some audiences."""

    spiffe_id: str
    token: str = field(repr=False)
    """Compact JWS."""
    expires_at: float
    """Unix seconds."""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Attested:
    """Who a process is, as the agent attests it now."""

    workloads: tuple[str, ...] = ()
    """SPIFFE IDs of the workloads it is; empty: nobody."""
    proxy: bool = False
    """It is the node's own proxy, which presents the SVIDs of every local workload."""

    @property
    def is_nobody(self) -> bool:
        """Whether it may have nothing at all."""
        return not self.workloads and not self.proxy
