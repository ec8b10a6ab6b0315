"""The rules by which workloads may talk to each other in plaintext, of the commit in force, by what the kernel has."""

from __future__ import annotations

from typing import Any, Final

from bulkhead.abi import Identity, PolicyFlag
from bulkhead.dataplane.bundle import Bundle

Json = dict[str, Any]

_TCP: Final = 6
_CLASS_BIT: Final = 1 << 31


class Plaintext:
    """Finds them once for each bundle."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._found: list[Json] = []

    def rules(self, bundle: Bundle | None) -> list[Json]:
        """For `status`: name, place and owner of each, in file order."""
        if bundle is not self._bundle:
            self._bundle, self._found = bundle, _rules(bundle) if bundle is not None else []
        return self._found


def _rules(bundle: Bundle) -> list[Json]:
    numbers = {
        entry.rule_id
        for key, entry in bundle.policy()
        if key.protocol == _TCP
        and _is_workload(key.local_identity)
        and _is_workload(key.remote_identity)
        and not entry.flags & (PolicyFlag.MTLS | PolicyFlag.REQUESTS)
    }
    infos = [info for number in sorted(numbers) if (info := bundle.rule(number)) is not None]
    return [{"name": info.name, "source": info.loc.short, "owner": info.owner} for info in infos]


def _is_workload(identity: int) -> bool:
    return Identity.RESERVED_MAX < identity < _CLASS_BIT
