"""`make lab`: the lab by hand. Brings up what a YAML file describes, says how to enter it, and takes it down again.

Run as `python -m lab`, with tests/ on the path. Two of its options serve real machines instead (vagrant/).
"""

from __future__ import annotations

import argparse
import cmd
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lab import description, wiring
from lab.description import Description

if TYPE_CHECKING:
    from lab.faults import Action
    from lab.fleet import Fleet
    from lab.host import Host

THREE_TIER = Path(__file__).with_name("three-tier.yaml")
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(Exception):
    """Somebody ended it."""


def main() -> int:
    """Exit code: 0, 1 when something failed, 2 without root or with a description of no lab."""
    parser = argparse.ArgumentParser(prog="lab", description="Bulkhead's lab of several hosts, by hand.")
    parser.add_argument("file", type=Path, nargs="?", default=THREE_TIER, help="what it consists of")
    parser.add_argument("--no-agents", action="store_true", help="hosts and router only, up within a second")
    parser.add_argument(
        "--wire", nargs="+", metavar=("MACHINE", "DEVICE"), help="print what sets up a host, or `router`, for `sh`"
    )
    parser.add_argument("--policy", type=Path, metavar="DIRECTORY", help="write its policy there")
    given = parser.parse_args()
    try:
        described = description.load(given.file)
        if given.wire or given.policy:
            _serve_machine(described, given.wire, given.policy)
            return 0
    except (OSError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("lab: needs root: it makes network namespaces and control groups, and loads BPF", file=sys.stderr)
        return 2
    return _by_hand(described, not given.no_agents)


def _serve_machine(described: Description, wire: list[str] | None, policy: Path | None) -> None:
    if wire:
        print("\n".join(setup(described, wire[0], wire[1:])))
    if policy:
        for name, text in described.policy.items():
            (policy / name).parent.mkdir(parents=True, exist_ok=True)
            (policy / name).write_text(text, encoding="utf-8")


def setup(described: Description, machine: str, devices: list[str]) -> Iterator[str]:
    """A shell script for a machine that is a host, or the router: of the router, a device for each host in order."""
    expected = len(described.hosts) if machine == "router" else 1
    if len(devices) != expected:
        raise ValueError(f"`{machine}` has {expected} devices in this lab, not {len(devices)}: {' '.join(devices)}")
    if machine != "router":
        commands = wiring.up(devices[0], 2) + wiring.host_addresses(described.host(machine).addresses, devices[0])
    else:
        yield from (f"sysctl -q -w {name}={value}" for name, value in wiring.SYSCTLS.items())
        yield from ("nft --file - <<'END'", wiring.ruleset(described.nat) + "END")
        commands = []
        for host, device in zip(described.hosts, devices, strict=True):
            commands += wiring.up(device, 1) + wiring.router_addresses(host.addresses, device)
    yield from ("ip -batch - <<'END'", *commands, "END")


def _by_hand(described: Description, has_agents: bool) -> int:
    from lab.fleet import Fleet

    _ignore_endings()
    try:
        with Fleet(described) as fleet, _endings_heard():
            if has_agents:
                print(f"starting {len(fleet.guarded)} agents …", flush=True)
                fleet.start_agents()
            _tell(fleet)
            _attend(fleet)
    except StoppedError:
        print()
    except RuntimeError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    print("The lab is gone: processes, hooks, control groups, namespaces.")
    return 0


@contextmanager
def _endings_heard() -> Iterator[None]:
    """Only within: what is half made or half gone cannot be taken down. Programs started outside inherit deafness,
    since a terminal sends its Ctrl-C to all of them."""
    for number in ENDINGS:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        _ignore_endings()


def _ignore_endings() -> None:
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: object) -> None:
    _ignore_endings()
    raise StoppedError


# What is there


def _tell(fleet: Fleet) -> None:
    """How to enter each host, and what to try."""
    print(f"The lab is up. Each host is a script in {fleet.directory}:\n")
    for spec in fleet.description.hosts:
        _write_door(fleet.directory / spec.name, fleet[spec.name])
        serves = "".join(f", /{one.group} echoes on {one.port}" for one in spec.serve)
        print(f"  {spec.name:12} {' '.join(fleet.addresses(spec.name))}{serves}{'' if spec.agent else ', no agent'}")
    pid, fd = os.getpid(), fleet.router.namespace.fd
    print(f"\n  the router   nsenter --net=/proc/{pid}/fd/{fd}")
    print(f"  the policy   {fleet.repository}: a commit there is every host's\n")
    serving = [(spec, one) for spec in fleet.description.hosts for one in spec.serve]
    if len(serving) > 1:
        (client, one), (server, other) = serving[:2]
        call = f"curl -sm 1 telnet://{fleet.address(server.name)}:{other.port}"
        doors = fleet.directory / client.name, fleet.directory / server.name
        print("Try, from another terminal:\n")
        print(f"  echo hello | {doors[0]} {one.group} {call}")
        print(f"  {doors[0]}   # a shell")
        print(f"  {doors[1]} bulkhead status\n")
    print("Here: `help` lists what the router can do to packets; Ctrl-C takes everything down.")


def _write_door(path: Path, host: Host) -> None:
    """A script that runs a program on a host: in a control group that is its first argument, `shell` without one."""
    path.write_text(
        f"""#!/bin/sh
if [ "$1" = bulkhead ]; then
    shift
    exec {sys.executable} -m bulkhead.cli.main "$@" --run-dir {host.run_dir}
fi
group={host.cgroup}/${{1:-shell}}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- "${{SHELL:-/bin/sh}}"
mkdir -p "$group" && echo $$ >"$group/cgroup.procs" && exec nsenter --net=/run/netns/{host.netns} "$@"
"""
    )
    path.chmod(0o755)


# What can be done to packets


def _attend(fleet: Fleet) -> None:
    """Until Ctrl-C, or the end of a terminal's input."""
    with ExitStack() as faults:
        if sys.stdin.isatty():
            Console(fleet, faults).cmdloop()
        else:
            while True:
                signal.pause()


class Console(cmd.Cmd):
    """Faults by hand."""

    prompt = "lab> "

    def __init__(self, fleet: Fleet, faults: ExitStack) -> None:
        super().__init__()
        self._fleet = fleet
        self._faults = faults

    def onecmd(self, line: str) -> bool:
        """What is wrong with a line is said, and the lab goes on."""
        try:
            return line == "EOF" or bool(super().onecmd(line))
        except (ValueError, RuntimeError, OSError) as error:
            print(f"lab: {error}")
            return False

    def emptyline(self) -> bool:
        """Nothing, rather than the last line again."""
        return False

    def do_strip(self, line: str) -> None:
        """strip HOST: take option 253 out of the SYNs and answers that come from a host"""
        from lab import faults

        self._fault(line, faults.strip)

    def do_normalise(self, line: str) -> None:
        """normalise HOST: write the TCP options that come from a host in another order, 253 first"""
        from lab import faults

        self._fault(line, faults.normalise)

    def do_lose(self, line: str) -> None:
        """lose HOST [N]: lose every Nth packet that comes from a host (1: all)"""
        from lab import faults

        host, _, every = line.strip().partition(" ")
        self._fault(host, lambda: faults.lose(int(every or "1")))

    def do_swap(self, line: str) -> None:
        """swap HOST: let each two packets that come from a host change places"""
        from lab import faults

        self._fault(line, faults.Swap)

    def do_repeat(self, line: str) -> None:
        """repeat HOST: let every packet that comes from a host arrive twice"""
        from lab import faults

        self._fault(line, faults.duplicate)

    def do_clear(self, line: str) -> None:
        """clear: no faults any more"""
        self._faults.close()

    def do_move(self, line: str) -> None:
        """move HOST ADDRESS/PREFIX…: give a host other addresses, and commit its node's record"""
        host, *addresses = line.split() or [""]
        self._fleet.readdress(self._known(host), *addresses)
        self._fleet.commit({}, f"{host} has moved")

    def do_watch(self, line: str) -> None:
        """watch HOST [SECONDS]: print the packets on a host's wire, for 10 seconds if not told"""
        host, _, seconds = line.strip().partition(" ")
        until, shown = time.monotonic() + float(seconds or "10"), 0
        with self._fleet.router.capture(self._known(host)) as wire:
            while (left := until - time.monotonic()) > 0:
                seen = wire.packets()
                for one in seen[shown:]:
                    print(f"{'->' if one.is_arriving else '<-'} {host} {one.packet}")
                shown = len(seen)
                wire.wait_for_more(left)

    def do_quit(self, line: str) -> bool:
        """quit: take everything down, as Ctrl-C does"""
        return True

    def default(self, line: str) -> None:
        """What is not known is said."""
        print(f"lab: there is no `{line.split()[0]}`: `help` lists what there is")

    def do_help(self, line: str) -> None:
        """help: this list"""
        for name in self.get_names():
            if name.startswith("do_"):
                print(f"  {getattr(self, name).__doc__}")

    def _fault(self, line: str, action: Callable[[], Action]) -> None:
        self._faults.enter_context(self._fleet.router.fault(self._known(line.strip()), action()))

    def _known(self, host: str) -> str:
        return self._fleet.description.host(host).name


if __name__ == "__main__":
    sys.exit(main())
