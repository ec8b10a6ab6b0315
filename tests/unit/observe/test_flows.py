"""Recorded verdicts: what makes one record, what it says, what bounds it."""

from __future__ import annotations

import asyncio
import time

import pytest

from bulkhead.abi import Direction, DropReason, EventFlag, EventHook, Identity, Verdict, VerdictEvent
from bulkhead.errors import UsageError
from bulkhead.observe.filters import Filter, filter_from_json, filter_to_json, parse_age
from bulkhead.observe.flows import (
    EVENT,
    Context,
    FlowLog,
    Process,
    Sighting,
    address_text,
    record_from_json,
    record_to_json,
)
from unit.observe.build import COMMIT, OFFSET, T, context, event, identity, namer, record


def test_the_struct_has_the_fields_of_the_abi_in_their_places() -> None:
    fields = [name for name, _ in VerdictEvent._fields_]
    blocks = ("source", "destination", "comm", "commit", "via")
    unread = ("via", "via_port", "reserved_too")
    values = {name: index + 1 for index, name in enumerate(fields) if name not in (*blocks, *unread)}
    raw = bytes(VerdictEvent(**values, source=(1,) * 16, destination=(2,) * 16, comm=b"c", commit=(3,) * 8))
    unpacked = list(EVENT.unpack(raw))
    ports = fields.index("source_port")
    packed = values["source_port"].to_bytes(2, "big") + values["destination_port"].to_bytes(2, "big")
    assert unpacked[ports] == packed
    unpacked[ports : ports + 1] = [values["source_port"], values["destination_port"]]
    texts = {"source": b"\1" * 16, "destination": b"\2" * 16, "comm": b"c" + bytes(15), "commit": b"\3" * 8}
    texts["via"] = bytes(16)
    assert unpacked == [texts.get(name, values.get(name)) for name in fields if name not in unread[1:]]


def test_a_refusal_at_the_source_says_who_what_and_when() -> None:
    found = record()
    assert (found.verdict, found.reason, found.direction) == ("deny", "policy", "egress")
    assert (found.source, found.destination, found.port, found.protocol) == ("shop/web", "shop/db", 5432, "tcp")
    assert found.source_spiffe_id == "spiffe://example.org/shop/web"
    assert (found.pid, found.comm, found.uid, found.exe) == (8123, "nginx", 33, "/usr/sbin/nginx")
    assert (found.unit, found.cgroup) == ("nginx.service", "/system.slice/nginx.service")
    assert (found.source_address, found.source_port, found.destination_address) == ("10.0.0.1", 40000, "10.0.0.2")
    assert found.first_seen == found.last_seen == T - 100
    assert (found.commit, found.generation, found.rule, found.hook) == (COMMIT, 7, "", "tc")


def test_at_the_destination_the_remote_end_is_the_source() -> None:
    found = record(direction=Direction.INGRESS, local_identity=identity("db"), remote_identity=identity("web"))
    assert (found.source, found.destination, found.local) == ("shop/web", "shop/db", "shop/db")
    assert found.remote_address == "10.0.0.1"


def test_an_allow_names_its_rule_and_line() -> None:
    found = record(verdict=Verdict.ALLOW, reason=DropReason.NONE, rule_id=4, remote_identity=identity("db"))
    assert found.rule == "shop/api-db"
    assert found.rule_place == "shop.yaml:17@3f2c1ab"


def test_a_cut_answer_is_told_as_the_conversation_it_belongs_to() -> None:
    found = record(
        direction=Direction.INGRESS,
        local_identity=identity("db"),
        remote_identity=identity("web"),
        source="10.0.0.2",
        destination="10.0.0.1",
        source_port=5432,
        destination_port=40000,
        flags=EventFlag.CUT,
    )
    assert (found.source, found.destination, found.port) == ("shop/web", "shop/db", 5432)
    assert (found.source_address, found.source_port) == ("10.0.0.1", 40000)
    assert found.cut


def test_a_cut_seen_in_the_callers_packet_keeps_its_direction() -> None:
    found = record(
        direction=Direction.INGRESS,
        local_identity=identity("db"),
        remote_identity=identity("web"),
        flags=EventFlag.CUT | EventFlag.LOOPBACK,
    )
    assert (found.source, found.port, found.source_port) == ("shop/web", 5432, 40000)


def test_equal_events_are_one_record_with_a_count() -> None:
    log, told = FlowLog(), context()
    for second in (900, 905, 902):
        log.record(event(time_ns=second * 10**9), told)
    (found,) = log.records()
    assert (found.count, found.first_seen, found.last_seen) == (3, OFFSET + 900, OFFSET + 905)


@pytest.mark.parametrize(
    "changed",
    [
        {"destination_port": 5433},
        {"protocol": 17},
        {"verdict": Verdict.WOULD_DENY},
        {"reason": DropReason.EXPIRED},
        {"local_identity": identity("api")},
        {"remote_identity": identity("api")},
        {"exe_inode": 99},
        {"cgroup_id": 99},
    ],
)
def test_what_differs_in_kind_is_a_record_of_its_own(changed: dict[str, int]) -> None:
    log, told = FlowLog(), context()
    log.record(event(), told)
    log.record(event(**changed), told)
    assert len(log) == 2


def test_addresses_outside_tell_records_apart_only_in_what_leaves() -> None:
    log, told = FlowLog(), context()
    for address in ("192.0.2.1", "192.0.2.2"):
        log.record(event(remote_identity=Identity.WORLD, destination=address), told)
    assert len(log) == 2
    for address in ("192.0.2.1", "192.0.2.2"):
        log.record(event(remote_identity=Identity.WORLD, source=address, direction=Direction.INGRESS), told)
    assert len(log) == 3


def test_the_process_is_asked_for_once_for_each_record() -> None:
    asked: list[Sighting] = []

    def resolve(sighting: Sighting) -> Process:
        asked.append(sighting)
        return Process("/bin/x")

    log, told = FlowLog(), Context(namer(), resolve, OFFSET)
    for pid in (1, 1, 2):
        log.record(event(tgid=pid), told)
    assert asked == [Sighting(1, 11, 12, 13, 0)]
    assert log.records()[0].pid == 2


def test_a_process_that_could_not_be_told_is_asked_for_again_under_another_pid() -> None:
    asked: list[int] = []

    def resolve(sighting: Sighting) -> Process | None:
        asked.append(sighting.pid)
        return Process("/bin/x") if sighting.pid == 2 else None

    log, told = FlowLog(), Context(namer(), resolve, OFFSET)
    for pid in (1, 1, 2, 3):
        log.record(event(tgid=pid), told)
    assert asked == [1, 2]
    assert log.records()[0].exe == "/bin/x"


def test_a_new_generation_renames_the_rule() -> None:
    log, told = FlowLog(), context()
    log.record(event(verdict=Verdict.ALLOW, rule_id=2), told)
    log.record(event(verdict=Verdict.ALLOW, rule_id=3), told)
    assert log.records()[0].rule == "shop/web-api"


def test_the_record_that_was_quiet_longest_goes_first_and_is_counted() -> None:
    log, told = FlowLog(limit=2), context()
    for port in (1, 2, 1, 3):
        log.record(event(destination_port=port), told)
    assert {found.port for found in log.records()} == {1, 3}
    assert log.evicted == 1


def test_an_event_of_another_size_is_counted_and_nothing_else() -> None:
    log = FlowLog()
    log.record(event()[:-1], context())
    assert (len(log), log.malformed) == (0, 1)


def test_unknown_numbers_print_as_numbers() -> None:
    found = record(reason=77, local_identity=123456, protocol=47)
    assert (found.reason, found.source, found.protocol) == ("77", "identity 123456", "proto/47")


def test_a_name_that_is_no_text_is_kept_harmlessly() -> None:
    assert record(comm=b"a\n\x1b[31m\xff").comm == "a\n\x1b[31m�"


def test_addresses_print_in_their_family() -> None:
    assert address_text(bytes(10) + b"\xff\xff\x01\x02\x03\x04") == "1.2.3.4"
    assert address_text(bytes(15) + b"\x01") == "::1"


def test_a_log_survives_a_restart_and_goes_on_counting() -> None:
    first, told = FlowLog(), context()
    first.record(event(), told)
    first.record(event(destination_port=1), told)
    second = FlowLog()
    assert second.load(first.dump()) == 2
    assert second.records() == first.records()
    second.record(event(time_ns=950 * 10**9), told)
    found = {one.port: one for one in second.records()}
    assert (found[5432].count, found[5432].first_seen, found[5432].last_seen) == (2, OFFSET + 900, OFFSET + 950)
    assert found[1].count == 1


def test_what_was_loaded_makes_room_for_what_is_new() -> None:
    first, told = FlowLog(), context()
    for port in (1, 2):
        first.record(event(destination_port=port), told)
    second = FlowLog(limit=2)
    second.load(first.dump())
    second.record(event(destination_port=3), told)
    assert len(second) == 2
    assert 3 in {found.port for found in second.records()}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "records": []}', '{"version": 1}', '{"version": 1, "records": [{}]}', "[" * 9999],
)
def test_a_damaged_log_is_refused_whole(text: str) -> None:
    log = FlowLog()
    with pytest.raises(UsageError):
        log.load(text)
    assert len(log) == 0


def test_a_record_of_other_types_is_refused() -> None:
    value = record_to_json(record())
    assert record_from_json(value) == record()
    with pytest.raises(UsageError, match="`count`"):
        record_from_json(value | {"count": "3"})


def test_recording_takes_less_than_twenty_microseconds() -> None:
    log, told, raw = FlowLog(), context(), event()
    started = time.process_time()
    for _ in range(20_000):
        log.record(raw, told)
    assert (time.process_time() - started) / 20_000 < 20e-6


def test_followers_get_each_event_and_lose_the_oldest_when_slow() -> None:
    async def follow() -> None:
        log, told = FlowLog(), context()
        with log.subscriptions.subscribe(limit=2) as subscription:
            for _ in range(3):
                log.record(event(), told)
            counts = [(await subscription.get()).count, (await subscription.get()).count]
            assert counts == [2, 3]
            assert subscription.lost == 1
        assert not log.subscriptions

    asyncio.run(follow())


def test_a_refused_call_is_told_from_a_packet() -> None:
    assert record(hook=EventHook.CALL).hook == "call"


# Filters


@pytest.mark.parametrize(
    "args",
    [
        {"from": ["web"]},
        {"from": ["shop/web"], "to": ["db"]},
        {"from": ["api", "web"]},
        {"to": ["10.0.0.2"]},
        {"to": ["::ffff:10.0.0.2"]},
        {"verdict": ["deny"]},
        {"port": [5432], "protocol": ["tcp"]},
        {"since": T - 101},
        {},
    ],
)
def test_a_filter_lets_through_what_it_names(args: dict[str, object]) -> None:
    assert filter_from_json(args)(record())


@pytest.mark.parametrize(
    "args",
    [
        {"from": ["db"]},
        {"from": ["web"], "to": ["api"]},
        {"verdict": ["allow"]},
        {"port": [5431]},
        {"protocol": ["udp"]},
        {"since": T - 99},
    ],
)
def test_a_filter_holds_back_what_it_does_not_name(args: dict[str, object]) -> None:
    assert not filter_from_json(args)(record())


@pytest.mark.parametrize(
    "args",
    [{"verdict": ["denied"]}, {"port": ["5"]}, {"port": [70000]}, {"from": "web"}, {"since": "now"}, {"to": [1]}],
)
def test_a_filter_that_is_none_is_refused(args: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        filter_from_json(args)


def test_a_filter_tells_itself_back() -> None:
    wanted = Filter(("web",), (), ("deny", "would-deny"))
    assert str(wanted) == "from=web AND (verdict=deny OR would-deny)"
    assert filter_from_json(filter_to_json(wanted)) == wanted
    assert str(Filter()) == "none"


def test_one_external_of_a_class_finds_its_records() -> None:
    found = record(remote_identity=next(iter(namer().latest.classes())))  # type: ignore[union-attr]
    names = found.destination.split(" + ")
    assert all(Filter(destinations=(name,))(found) for name in names)


def test_ages_are_numbers_with_a_unit() -> None:
    assert [parse_age(text) for text in ("90s", "5m", "2h", "7d")] == [90, 300, 7200, 604800]
    for text in ("5", "m", "-1s", "1w", ""):
        with pytest.raises(UsageError):
            parse_age(text)


@pytest.mark.parametrize(
    ("changed", "end"),
    [
        ({}, "source"),
        ({"direction": Direction.INGRESS}, "destination"),
        ({"direction": Direction.INGRESS, "hook": EventHook.CALL}, "source"),
        ({"direction": Direction.INGRESS, "flags": EventFlag.LOOPBACK}, "source"),
        (
            {
                "direction": Direction.INGRESS,
                "flags": EventFlag.LOOPBACK | EventFlag.CUT,
                "source_port": 5432,
                "destination_port": 40000,
            },
            "destination",
        ),
    ],
)
def test_where_both_ends_are_judged_at_once_the_process_is_the_senders(changed: dict[str, int], end: str) -> None:
    assert record(**changed).process_end == end
