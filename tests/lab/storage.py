"""A socket storage map for tests of what the agent does with one: no compiler, no programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bulkhead.kernel import storage
from bulkhead.kernel.libbpf import Map


@contextmanager
def sk_storage_map(value_bytes: int) -> Iterator[Map]:
    """An empty map of that value size, whose values listeners hand down."""
    with storage.make("sockets", value_bytes, handed_down=True) as made:
        yield made
