"""Reading a BPF ring buffer straight from its memory.

The kernel maps a ring as one page that the reader owns (its position), one page that the kernel owns (its position),
and the data, mapped twice in a row so that no record is ever split. Each record starts with a header of 8 bytes: its
length, with two flag bits, then a word of no use here.

Rejected: libbpf's `ring_buffer__poll`, which calls back into Python per record (five times slower) and loses exceptions
there.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Generator
from types import TracebackType
from typing import Final, Self

from bulkhead.errors import KernelError
from bulkhead.kernel.libbpf import Map, MapType

_BUSY: Final = 1 << 31
"""Reserved, not submitted yet: nothing behind it may be read before it is."""
_DISCARDED: Final = 1 << 30
_HEADER_BYTES: Final = 8


class RingBuffer:
    """The one reader of a ring. Borrows the map, whose descriptor becomes readable when the kernel wakes readers."""

    def __init__(self, ring: Map) -> None:
        if ring.info.map_type != MapType.RINGBUF:
            raise KernelError(f"the map `{ring.info.name}` is no ring buffer")
        self._ring = ring
        self._size = ring.info.max_entries
        page = mmap.PAGESIZE
        number = ring.fd.fileno()
        self._own = mmap.mmap(number, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._kernel = mmap.mmap(number, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # Positions are read and written through casts, as one machine word; struct would go byte by byte.
        self._consumer = memoryview(self._own)[:8].cast("Q")
        self._producer = memoryview(self._kernel)[:8].cast("Q")
        self._data = memoryview(self._kernel)[page:]
        self._headers = self._data.cast("I")
        self._fence = threading.Lock()

    def fileno(self) -> int:
        """For epoll; readable while unread records are there and the kernel was asked to wake readers."""
        return self._ring.fd.fileno()

    def pending_bytes(self) -> int:
        """Bytes that wait to be read, headers and unfinished records included; how close the ring is to overflowing."""
        return self._producer[0] - self._consumer[0]

    def drain(self) -> Generator[memoryview, None, None]:
        """Every record submitted so far. A record is valid until the next one is asked for: copy what you keep.

        Space is given back when the batch ends, or when the iteration is closed: then for the records handed out.
        """
        records, end = self._submitted()
        position = self._consumer[0]
        try:
            for start, length, behind in records:
                position = behind
                yield self._data[start : start + length]
            position = end
        finally:
            if not self._own.closed:
                self._consumer[0] = position

    def close(self) -> None:
        """Unmap the ring. Records handed out must be gone by then."""
        for view in (self._consumer, self._producer, self._headers, self._data):
            view.release()
        self._own.close()
        self._kernel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _submitted(self) -> tuple[list[tuple[int, int, int]], int]:
        """(offset, length, position behind) of each record before the first unfinished one, and where that one is."""
        records: list[tuple[int, int, int]] = []
        position, produced = self._consumer[0], self._producer[0]
        self._order_reads()
        while position < produced:
            offset = position % self._size
            header = self._headers[offset // 4]
            if header & _BUSY:
                break
            length = header & ~_DISCARDED
            position += _rounded(length)
            if not header & _DISCARDED:
                records.append((offset + _HEADER_BYTES, length, position))
        self._order_reads()
        return records, position

    def _order_reads(self) -> None:
        """INVARIANT: data is read after the word that says it is there. Taking a lock is Python's only load barrier."""
        with self._fence:
            pass


def _rounded(length: int) -> int:
    """Bytes that a record occupies: header included, rounded up to 8."""
    return (length + _HEADER_BYTES + 7) & ~7
