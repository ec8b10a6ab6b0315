"""Which of the kernel's privileges this process has, asked before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bulkhead.errors import RefusedError

_NUMBERS: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}
_NEEDED: Final = ("CAP_BPF", "CAP_NET_ADMIN")
"""Not CAP_PERFMON: loading takes it, and the loader has it; holding and attaching what is pinned does not."""
_CONTAINED: Final = ("CAP_BPF",)
"""What CAP_SYS_ADMIN has in it."""


def effective() -> frozenset[str]:
    """The capabilities in force that matter here."""
    status = Path("/proc/self/status").read_text()
    bits = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    return frozenset(name for name, number in _NUMBERS.items() if bits >> number & 1)


def require_capabilities() -> None:
    """Raises RefusedError that names every missing capability."""
    held = effective()
    if "CAP_SYS_ADMIN" in held:
        held |= {"CAP_BPF"}
    missing = [name for name in _NEEDED if name not in held]
    if missing:
        raise RefusedError(f"the agent lacks {', '.join(missing)}: without, it can hook nothing")
