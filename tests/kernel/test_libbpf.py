"""Maps, programs and rings on the real kernel."""

from __future__ import annotations

import errno
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.errors import KernelError
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import BPF_F_NO_PREALLOC, Map, MapType, map_create
from bulkhead.kernel.ringbuf import RingBuffer
from lab.bpf import TC_ACT_UNSPEC, can_attach, device_program, ring_discarder, ring_writer

pytestmark = pytest.mark.skipif(not can_attach(), reason="needs root")


def _entries(count: int) -> tuple[bytes, bytes]:
    keys = b"".join(struct.pack("=II", 32, n) for n in range(count))
    values = b"".join(struct.pack("=Q", n * 3) for n in range(count))
    return keys, values


def _as_dict(keys: bytes, values: bytes, key_size: int = 8, value_size: int = 8) -> dict[bytes, bytes]:
    assert len(keys) // key_size == len(values) // value_size
    chunks = zip(range(0, len(keys), key_size), range(0, len(values), value_size), strict=True)
    return {keys[k : k + key_size]: values[v : v + value_size] for k, v in chunks}


def test_entries_are_written_read_walked_and_deleted() -> None:
    with map_create(MapType.HASH, "one", 4, 8, 8) as one:
        one.update(b"aaaa", b"12345678")
        one.update(b"bbbb", b"abcdefgh")
        assert one.lookup(b"aaaa") == b"12345678"
        assert one.lookup(b"cccc") is None
        first = one.next_key(None)
        assert first is not None
        second = one.next_key(first)
        assert {first, second} == {b"aaaa", b"bbbb"}
        assert second is not None
        assert one.next_key(second) is None
        assert one.delete(b"aaaa")
        assert not one.delete(b"aaaa")


@pytest.mark.parametrize("map_type", [MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_batches_write_read_and_delete_every_entry(map_type: MapType, count: int) -> None:
    flags = BPF_F_NO_PREALLOC if map_type is MapType.LPM_TRIE else 0
    keys, values = _entries(count)
    with map_create(map_type, "many", 8, 8, 20_000, flags) as many:
        many.update_batch(keys, values, count)
        assert _as_dict(*many.lookup_batch()) == _as_dict(keys, values)
        many.delete_batch(keys, count)
        assert many.lookup_batch() == (b"", b"")


def test_reading_grows_its_buffer_when_one_bucket_holds_more() -> None:
    keys, values = _entries(3000)
    with map_create(MapType.HASH, "buckets", 8, 8, 3000) as buckets:
        buckets.update_batch(keys, values, 3000)
        assert _as_dict(*buckets.lookup_batch(chunk=1)) == _as_dict(keys, values)


def test_deleting_a_batch_passes_over_keys_that_are_not_there() -> None:
    keys, values = _entries(10)
    with map_create(MapType.HASH, "gaps", 8, 8, 16) as gaps:
        gaps.update_batch(keys[:40] + keys[48:], values[:40] + values[48:], 9)
        gaps.delete_batch(keys, 10)
        assert gaps.lookup_batch() == (b"", b"")


def test_a_batch_that_does_not_fit_is_an_error_that_names_map_and_cause() -> None:
    keys, values = _entries(8)
    with map_create(MapType.HASH, "small", 8, 8, 4) as small, pytest.raises(KernelError) as failure:
        small.update_batch(keys, values, 8)
    assert failure.value.errno == errno.E2BIG
    assert "`small`" in str(failure.value)


def test_buffers_of_the_wrong_size_never_reach_the_kernel() -> None:
    with map_create(MapType.ARRAY, "sized", 4, 8, 1) as sized:
        with pytest.raises(ValueError, match="key of the map `sized` take 4 bytes, not 3"):
            sized.lookup(bytes(3))
        with pytest.raises(ValueError, match="take 8 bytes, not 4"):
            sized.update(bytes(4), bytes(4))


@pytest.mark.parametrize("map_type", [MapType.PERCPU_ARRAY, MapType.PERCPU_HASH])
def test_per_cpu_words_are_summed_over_the_cpus(map_type: MapType) -> None:
    cpus = libbpf.possible_cpus()
    with map_create(map_type, "counters", 4, 16, 4) as counters:
        value = b"".join(struct.pack("=QQ", cpu + 1, 10) for cpu in range(cpus))
        counters.update(bytes(4), value)
        found = counters.lookup(bytes(4))
        assert found is not None
        assert counters.sum_words(found) == (cpus * (cpus + 1) // 2, 10 * cpus)
        keys, values = counters.lookup_batch()
        at = keys.index(bytes(4))
        assert values[at // 4 * 16 * cpus :][: 16 * cpus] == value


def test_a_pinned_map_is_opened_again_and_other_objects_are_not_taken_for_one(pins: Path) -> None:
    with map_create(MapType.HASH, "kept", 4, 4, 4) as kept:
        kept.update(b"kkkk", b"vvvv")
        kept.pin(pins / "kept")
    with libbpf.map_open(pins / "kept") as again:
        assert (again.info.name, again.lookup(b"kkkk")) == ("kept", b"vvvv")
    with device_program(TC_ACT_UNSPEC) as program:
        libbpf.obj_pin(program, pins / "program")
    with pytest.raises(KernelError, match="expected a map, found `bpf-prog`"):
        libbpf.map_open(pins / "program").close()


def test_a_missing_pin_is_named() -> None:
    with pytest.raises(KernelError, match="cannot open the pin `/sys/fs/bpf/nothing-here`") as failure:
        libbpf.obj_get(Path("/sys/fs/bpf/nothing-here"))
    assert failure.value.errno == errno.ENOENT


def test_running_a_program_gives_its_signed_answer_the_packet_and_a_duration() -> None:
    with device_program(TC_ACT_UNSPEC, "answer") as program:
        run = libbpf.prog_test_run(program, bytes(64), context=bytes(192), repeat=100)
        assert (run.retval, run.data, len(run.context)) == (-1, bytes(64), 192)
        assert libbpf.prog_info(program).name == "answer"


@pytest.fixture
def ring() -> Iterator[Map]:
    with map_create(MapType.RINGBUF, "ring", 0, 0, 4096) as made:
        yield made


def _write(program: libbpf.Fd, length: int) -> None:
    libbpf.prog_test_run(program, bytes(length))


def _numbers(reader: RingBuffer) -> list[int]:
    return [struct.unpack("=Q", record)[0] for record in reader.drain()]


def test_ring_gives_every_record_once_in_order_also_across_its_end(ring: Map) -> None:
    with RingBuffer(ring) as reader, ring_writer(ring) as writer:
        for start in (100, 300, 500):
            for length in range(start, start + 200):
                _write(writer, length)
            assert _numbers(reader) == list(range(start, start + 200))
        assert _numbers(reader) == []
        assert reader.pending_bytes() == 0


def test_ring_passes_over_discarded_records(ring: Map) -> None:
    with RingBuffer(ring) as reader, ring_writer(ring) as writer, ring_discarder(ring) as discarder:
        for program in (discarder, writer, discarder, discarder, writer, discarder):
            _write(program, 64)
        assert _numbers(reader) == [64, 64]
        assert reader.pending_bytes() == 0


def test_records_not_asked_for_stay_for_the_next_drain(ring: Map) -> None:
    with RingBuffer(ring) as reader, ring_writer(ring) as writer, ring_discarder(ring) as discarder:
        for length in range(60, 65):
            _write(discarder, length)
            _write(writer, length)
        drain = reader.drain()
        assert [bytes(r)[0] for r in itertools.islice(drain, 2)] == [60, 61]
        drain.close()
        assert _numbers(reader) == [62, 63, 64]


def test_a_full_ring_refuses_and_takes_records_again_once_drained(ring: Map) -> None:
    with RingBuffer(ring) as reader, ring_writer(ring) as writer:
        for _ in range(300):
            _write(writer, 64)
        assert len(_numbers(reader)) == 4096 // 16 - 1
        _write(writer, 70)
        assert _numbers(reader) == [70]
