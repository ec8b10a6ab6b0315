"""What numbers are called: identities and rules, in the generation they were judged in."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

from bulkhead.abi import Identity
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.observe.tables import Tables

GENERATIONS_KEPT: Final = 8
"""Verdicts outlive the policy they were given by, but not for long: events are read within milliseconds."""

_BUILT_IN: Final = {
    int(Identity.UNKNOWN): "unknown",
    int(Identity.HOST): "host",
    int(Identity.AMBIGUOUS): "ambiguous",
    int(Identity.WORLD): "world",
    int(Identity.WITHHELD): "withheld",
    int(Identity.PEER): "peer",
    int(Identity.LEGACY): "legacy",
}


class Namer(Protocol):
    """Gives names to the numbers of a generation."""

    def identity(self, identity: int, generation: int = 0) -> str:
        """`shop/web`, `host`, `world`, `users + admins`, `unknown`; the number itself when nothing is known of it."""

    def spiffe_id(self, identity: int, generation: int = 0) -> str:
        """The SPIFFE ID of a workload; empty for everything else."""

    def rule(self, rule_id: int, generation: int) -> RuleInfo | None:
        """The rule of that number; None for 0, and when the generation is no longer known."""

    def commit(self, generation: int) -> str:
        """The commit of a generation; empty when it is no longer known."""

    @property
    def generation(self) -> int:
        """The latest generation; 0: none yet."""


class GenerationNamer:
    """Names from the tables of the latest generations. Generation 0 stands for the latest."""

    def __init__(self, keep: int = GENERATIONS_KEPT) -> None:
        self._keep = keep
        self._tables: OrderedDict[int, Tables] = OrderedDict()

    def add(self, generation: int, tables: Tables) -> None:
        """Makes a generation the latest; the oldest beyond `keep` is forgotten."""
        self._tables.pop(generation, None)
        self._tables[generation] = tables
        while len(self._tables) > self._keep:
            self._tables.popitem(last=False)

    @property
    def generation(self) -> int:
        return next(reversed(self._tables), 0)

    def of_commit(self, prefix: str) -> Tables | None:
        """The tables of a commit by its first digits, the latest that are still known; None for no digits."""
        known = reversed(self._tables.values())
        return next((tables for tables in known if prefix and tables.commit.startswith(prefix)), None)

    @property
    def latest(self) -> Tables | None:
        """The tables added last."""
        return self._tables[next(reversed(self._tables))] if self._tables else None

    def tables(self, generation: int) -> Tables | None:
        """The tables of a generation, while they are known; of the latest for 0."""
        return self._tables.get(generation) if generation else self.latest

    def identity(self, identity: int, generation: int = 0) -> str:
        built_in = _BUILT_IN.get(identity)
        if built_in is not None:
            return built_in
        for tables in self._candidates(generation):
            name = tables.identity_name(identity)
            if name is not None:
                return name
        return f"identity {identity}"

    def spiffe_id(self, identity: int, generation: int = 0) -> str:
        for tables in self._candidates(generation):
            workload = tables.workload(identity)
            if workload is not None:
                return workload.spiffe_id
        return ""

    def rule(self, rule_id: int, generation: int) -> RuleInfo | None:
        tables = self.tables(generation)
        return tables.rule(rule_id) if tables is not None and rule_id else None

    def commit(self, generation: int) -> str:
        tables = self.tables(generation)
        return tables.commit if tables is not None else ""

    def _candidates(self, generation: int) -> list[Tables]:
        """Where an identity may be known: numbers mean the same in every generation, so any of them will do."""
        first = self._tables.get(generation)
        others = [tables for tables in reversed(self._tables.values()) if tables is not first]
        return [first, *others] if first is not None else others


def short(name: str) -> str:
    """A qualified name without its policy: `shop/web` is `web`."""
    return " + ".join(part.rpartition("/")[2] for part in name.split(" + "))
