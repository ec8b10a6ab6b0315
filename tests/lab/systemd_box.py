"""A lab host: a real systemd as PID 1 of namespaces and a control group of its own.

    with SystemdBox("web-1") as box:
        unit = box.start_unit("nap.service", "[Service]\\nExecStart=/usr/bin/sleep 60\\n")
        box.run(["systemctl", "is-active", "nap.service"], check=True)

Its root is the running system's `/` with a tmpfs laid over: programs and libraries are those of the machine, and
nothing that the box writes reaches it. Only file systems mounted at `/` itself are seen inside. /sys and /proc/sys are
read-only (but for /proc/sys/net, which belongs to the network namespace), because systemd raises machine-wide limits
at boot. Units of the machine's own /etc/systemd/system are hidden and everything that would touch hardware is masked,
which is also what makes it boot in a fraction of a second.

Rejected: a debootstrapped root (half a minute and 234 MB, and not the programs under test), a container manager (one
more thing to install, and it would choose the control group), a virtual machine (seconds per boot without KVM).

The box dies with the thread that made it, also when that is killed; only then do its empty control group and a
temporary directory stay.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
"""What commands in a box find, instead of the environment of the test run."""

_UNSHARE = "unshare --mount --propagation private --pid --fork --kill-child --cgroup --uts --ipc --net"

# The cgroup namespace takes the caller's group as its root, so the move comes first.
_ENTER_GROUP = f'echo 0 >"$1/cgroup.procs"; exec {_UNSHARE} -- sh -ec "$2" box "$3" "$4"'

_BOOT = r"""
stage=$1
hostname "$2"
mkdir "$stage/disk"
mount -t tmpfs -o mode=755 tmpfs "$stage/disk"
cd "$stage/disk"
mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=$stage/disk/upper,workdir=$stage/disk/work" overlay root
cd root
hostname >etc/hostname

mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind /proc/sys/net proc/sys/net
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

mount -t tmpfs -o mode=755 tmpfs etc/systemd/system
mount -t tmpfs -o mode=755 tmpfs lib/systemd/system-generators
for target in sysinit local-fs basic sockets timers; do
    for unit in lib/systemd/system/$target.target.wants/*; do
        case ${unit##*/} in
            systemd-journald.service | systemd-journald.socket | systemd-journald-dev-log.socket | *.target) ;;
            *) ln -sf /dev/null "etc/systemd/system/${unit##*/}" ;;
        esac
    done
done
cat >etc/systemd/system/box.target <<END
[Unit]
Description=Lab host
Requires=basic.target
After=basic.target
END

mkdir run/stage machine
mount --bind "$stage" run/stage
pivot_root . machine
cd /
umount -l /machine
rmdir /machine
exec env -i container=bulkhead-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin NOTIFY_SOCKET=/run/stage/notify \
    /lib/systemd/systemd --unit=box.target --show-status=0
"""


class BoxError(Exception):
    """A box did not boot, or a unit in it did not start. Carries what was printed about it."""


class SystemdBox:
    """A context manager: boots on entry, leaves nothing behind on exit. Needs root and overlayfs.

    `name` becomes the host name inside and part of the control group's name outside.
    """

    def __init__(self, name: str, *, boot_timeout_s: float = 30.0) -> None:
        self.name = name
        self.cgroup = cgroup2_mount() / f"bulkhead-lab-{os.getpid()}-{name}"
        """The box's root control group, as the machine sees it."""
        self.boot_s = 0.0
        """Seconds from the first fork to systemd's own word that it is up."""
        self._boot_timeout_s = boot_timeout_s
        self._stack = ExitStack()
        self._pid = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._boot(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._pid = 0

    @property
    def pid(self) -> int:
        """The box's PID 1, by the machine's count. Raises BoxError when the box is not running."""
        if not self._pid:
            raise BoxError(f"box `{self.name}` is not running")
        return self._pid

    @property
    def netns(self) -> Path:
        """Its network namespace, with only `lo` in it at first. `ip link set DEVICE netns PID` takes `pid`."""
        return Path(f"/proc/{self.pid}/ns/net")

    @property
    def root(self) -> Path:
        """Its file tree, as seen from the machine. Do not follow absolute symlinks through it."""
        return Path(f"/proc/{self.pid}/root")

    def argv(self, argv: Sequence[str]) -> list[str]:
        """`argv` wrapped so that it runs in the box: all its namespaces, and the group `lab`, which is no unit."""
        target = str(self.pid)
        lab = self.cgroup / "lab"
        lab.mkdir(exist_ok=True)
        enter = 'echo 0 >"$1/cgroup.procs"; shift; exec nsenter "$@"'
        spaces = ["--target", target, "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd"]
        return ["sh", "-ec", enter, "enter", str(lab), *spaces, "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = False,
        timeout_s: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, output captured as text. `check`: raise BoxError unless its status is 0."""
        done = subprocess.run(
            self.argv(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=ENVIRONMENT | dict(env or {}),
            check=False,
        )
        if check and done.returncode:
            raise BoxError(f"`{' '.join(argv)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def start_unit(self, name: str, text: str) -> Path:
        """Write a unit file, start it, and return its control group as the machine sees it.

        Waits as `systemctl start` does: `Type=exec` and `Type=notify` say when the program really runs. Raises
        BoxError with the unit's journal when it does not start.
        """
        (self.root / "run/systemd/system" / name).write_text(text)
        self.run(["systemctl", "daemon-reload"], check=True)
        if self.run(["systemctl", "start", name]).returncode:
            raise BoxError(f"unit `{name}` did not start:\n{self.journal(name)}")
        return self.unit_cgroup(name)

    def unit_cgroup(self, name: str) -> Path:
        """The control group of a running unit, as the machine sees it."""
        return self.cgroup / self.show(name, "ControlGroup").lstrip("/")

    def show(self, name: str, unit_property: str) -> str:
        """One property of a unit, as `systemctl show` prints it."""
        return self.run(["systemctl", "show", "--value", "-p", unit_property, name], check=True).stdout.strip()

    def journal(self, name: str) -> str:
        """What a unit logged, and what systemd logged about it."""
        self.run(["journalctl", "--sync"], check=True)
        return self.run(["journalctl", "--no-pager", "-o", "cat", "-u", name], check=True).stdout

    def _boot(self, stack: ExitStack) -> None:
        started = time.monotonic()
        stage = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bulkhead-lab-")))
        self.cgroup.mkdir()
        stack.callback(remove_cgroup, self.cgroup)
        # Closed once it has booted: systemd goes on telling, and would wait for ever for somebody to read it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(stage / "notify"))
            process = self._start(stage)
            # Before anything can be asked of it, so that a box that fails to boot is ended too.
            stack.callback(self._end, process)
            self._await_ready(process, ready, stage)
        self._pid = _only_child(process.pid)
        self.boot_s = time.monotonic() - started

    def _start(self, stage: Path) -> subprocess.Popen[bytes]:
        arguments = [str(self.cgroup), _BOOT, str(stage), self.name]
        with (stage / "log").open("wb") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "sh", "-ec", _ENTER_GROUP, "enter", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
            )

    def _await_ready(self, process: subprocess.Popen[bytes], ready: socket.socket, stage: Path) -> None:
        deadline = time.monotonic() + self._boot_timeout_s
        with ExitStack() as stack:
            pidfd = os.pidfd_open(process.pid)
            stack.callback(os.close, pidfd)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(ready, select.POLLIN)
            while events := poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                if any(fd == pidfd for fd, _ in events):
                    break
                if b"READY=1" in ready.recv(4096):
                    return
        raise BoxError(f"box `{self.name}` did not boot: {(stage / 'log').read_text()}")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill by process id. The kernel ends a PID namespace with its PID 1, and a parent is told after that."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def cgroup2_mount() -> Path:
    """Where cgroup2 is mounted: not the same place on a hybrid machine. Raises BoxError when it is nowhere."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        if right.split()[0] == "cgroup2":
            return Path(left.split()[4])
    raise BoxError("cgroup2 is not mounted")


def remove_cgroup(cgroup: Path, timeout_s: float = 10.0) -> None:
    """Kill what is left in a control group, wait until it is empty, and remove its subtree."""
    (cgroup / "cgroup.kill").write_text("1")
    with (cgroup / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        deadline = time.monotonic() + timeout_s
        while "populated 1" in events.read():
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise BoxError(f"`{cgroup}` still has processes after {timeout_s} s")
            events.seek(0)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        Path(directory).rmdir()


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
