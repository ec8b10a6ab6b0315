"""Devices of a private network namespace: listed, and watched."""

from __future__ import annotations

import select

import pytest

from bulkhead.kernel.devices import (
    Device,
    DeviceAdded,
    DeviceEvent,
    DeviceRemoved,
    DeviceRenamed,
    DeviceWatcher,
    Framing,
    Resync,
    list_devices,
)
from lab.bpf import can_attach
from lab.netns import Namespace, connect, network_namespace

pytestmark = pytest.mark.skipif(not can_attach(), reason="needs root")


def _device(name: str) -> Device:
    (found,) = [device for device in list_devices() if device.name == name]
    return found


def _said(events: list[DeviceEvent]) -> list[str]:
    words = []
    for event in events:
        match event:
            case DeviceAdded(device):
                words.append(f"+{device.name}")
            case DeviceRemoved(device):
                words.append(f"-{device.name}")
            case DeviceRenamed(device, old_name):
                words.append(f"{old_name}>{device.name}")
            case Resync():
                words.append("resync")
    return words


def test_loopback_ethernet_and_bare_devices_are_told_apart(namespace: Namespace) -> None:
    namespace.ip("link add left index 40 type veth peer name right index 41")
    namespace.ip("tuntap add mode tun name pipe")
    devices = {device.name: device for device in list_devices()}
    assert set(devices) == {"lo", "left", "right", "pipe"} | {d for d in devices if devices[d].kind in ("ifb", "sit")}
    assert devices["lo"].is_loopback
    assert [devices[name].framing for name in ("lo", "left", "pipe")] == [
        Framing.LOOPBACK,
        Framing.ETHERNET,
        Framing.BARE,
    ]
    assert (devices["left"].index, devices["left"].kind, devices["left"].operstate) == (40, "veth", "down")


def test_appearing_renamed_and_disappearing_devices_are_reported_in_order(namespace: Namespace) -> None:
    with DeviceWatcher() as watcher:
        watcher.devices()
        namespace.ip("link add left type veth peer name right")
        namespace.ip("link set left name port")
        namespace.ip("link set port up")
        namespace.ip("link del port")
        said = _said(watcher.read())
        assert sorted(said[:2]) == ["+left", "+right"]
        assert said[2] == "left>port"
        assert sorted(said[3:]) == ["-port", "-right"]
        assert watcher.read() == []


def test_watcher_becomes_readable_when_something_happens(namespace: Namespace) -> None:
    with DeviceWatcher() as watcher:
        watcher.devices()
        assert select.select([watcher], [], [], 0)[0] == []
        namespace.ip("link add left type veth peer name right")
        assert select.select([watcher], [], [], 5)[0] == [watcher]


def test_a_reused_index_is_one_device_gone_and_another_come(namespace: Namespace) -> None:
    namespace.ip("link add old index 77 type veth peer name old-peer index 78")
    with DeviceWatcher() as watcher:
        watcher.devices()
        namespace.ip("link del old")
        namespace.ip("link add new index 77 type veth peer name new-peer index 78")
        said = _said(watcher.read())
        assert said.index("-old") < said.index("+new")
        assert _device("new").index == 77


def test_a_device_that_leaves_for_another_namespace_is_gone(namespace: Namespace) -> None:
    namespace.ip("link add left type veth peer name right")
    with DeviceWatcher() as watcher, network_namespace() as other:
        watcher.devices()
        namespace.ip(f"link set right netns {other.path}")
        assert _said(watcher.read()) == ["-right"]


def test_a_port_that_leaves_its_bridge_is_still_there(namespace: Namespace) -> None:
    namespace.ip("link add span type bridge")
    namespace.ip("link add left type veth peer name right")
    namespace.ip("link set left master span")
    with DeviceWatcher() as watcher:
        watcher.devices()
        namespace.ip("link set left nomaster")
        assert _said(watcher.read()) == []


def test_lost_notifications_are_admitted(namespace: Namespace) -> None:
    namespace.ip("link add left type veth peer name right")
    with DeviceWatcher(queue_bytes=1) as watcher:
        watcher.devices()
        for _ in range(4):
            namespace.ip("link set left up")
            namespace.ip("link set left down")
        assert "resync" in _said(watcher.read())
        watcher.devices()
        namespace.ip("link set left name port")
        assert _said(watcher.read()) == ["left>port"]


def test_both_ends_of_a_wire_are_seen_in_their_own_namespace() -> None:
    with network_namespace() as left, network_namespace() as right:
        joined = connect(left, right)
        for end in (left, right):
            with end.entered():
                assert _device(joined.device).kind == "veth"
