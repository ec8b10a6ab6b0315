"""The loader: compiles with bcc what this machine has not compiled before, loads, pins, and exits.

Short-lived on purpose: bcc and LLVM cost 130 MB that a resident agent should not hold, and loading needs capabilities
that enforcing does not. What it leaves are pins below one directory, mode 0700:

    maps/NAME       created once; a reload finds and keeps them, so state and counters go on
    slots/NAME_N    inner maps of the two generations, see kernel.maps
    programs/NAME   replaced one by one through a rename, never absent
"""

from __future__ import annotations

import ctypes
import os
import secrets
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bulkhead.abi import Abi, Setting, SockState, Steering
from bulkhead.errors import BulkheadError, KernelError, RefusedError
from bulkhead.kernel import libbpf, source, storage
from bulkhead.kernel.objects import Store, map_specs, part_of
from bulkhead.kernel.programs import PROGRAMS, STAGES, Program

_BPFFS_MAGIC = 0xCAFE4A11
_COMPILER_FLAGS = [
    "-Wno-macro-redefined",
    "-Wno-unused-function",
    "-fno-strict-aliasing",  # structures are hashed and copied as words, as in the kernel: a store is never too late
    "-g0",  # nothing needs type information but one map, see kernel.storage
    "-Xclang",
    "-disable-llvm-passes",  # bcc optimises what clang hands it; once is enough
]


def pinned_setting(pins: Path) -> Setting | None:
    """What the pinned maps say of themselves, None when there are none."""
    path = pins / "maps" / "setting"
    if not path.exists():
        return None
    with libbpf.map_open(path) as setting:
        raw = setting.lookup(bytes(4))
    return Setting.from_buffer_copy(raw) if raw else None


def is_current(pins: Path) -> bool:
    """Are all programs pinned, from these very sources? Raises RefusedError when the pins are of a newer layout."""
    setting = pinned_setting(pins)
    if setting is None:
        return False
    _refuse_other_layout(setting, pins)
    if bytes(setting.build).decode(errors="replace").rstrip("\0") != source.build_id():
        return False
    return all((pins / "programs" / program.name).exists() for program in PROGRAMS)


def load(pins: Path, cache: Path) -> None:
    """Load and pin everything below `pins`, keeping maps that are there; compiled only if `cache` does not have it.

    Raises RefusedError when this machine or its pins cannot be used, KernelError when the kernel rejects a program.
    """
    prepare_directory(pins)
    setting = pinned_setting(pins)
    if setting is not None:
        _refuse_other_layout(setting, pins)
    store = Store(cache, source.object_id())
    if not _make_maps(pins, store):
        text = source.compose(pins / "maps", names=source.MAPS)
        store.keep_maps(map_specs(compile_text(text), pins / "maps", text))
    _in_parallel([partial(_load_part, pins, store, number) for number in range(len(source.PARTS))])
    _write_setting(pins, setting)


def _make_maps(pins: Path, store: Store) -> bool:
    """Make the maps that are not there, as they are kept; False when they are not."""
    specs = store.maps()
    if specs is None:
        return False
    for name, spec in specs.items():
        if not (pins / "maps" / name).exists():
            with spec.make(name) as made:
                made.pin(pins / "maps" / name)
    return True


def _load_part(pins: Path, store: Store, number: int) -> None:
    """Pin the programs of some of the files; the maps are there."""
    programs = [program for program in PROGRAMS if program.file in source.PARTS[number]]
    part = store.part(number)
    if part is None:
        text = source.compose(pins / "maps", names=(*source.HEADERS, *source.PARTS[number]))
        module = compile_text(text)
        part = part_of(module, [program.function for program in programs], pins / "maps")
        store.keep_part(number, part)
    for program, fd in part.load(programs, pins / "maps"):
        with fd:
            _pin_program(program, fd, pins / "programs")


def _in_parallel(jobs: list[Callable[[], None]]) -> None:
    """Run each job in a process of its own: LLVM uses one processor, and a start waits for it.

    Raises RefusedError when one fails; what it had to say it has said on stderr.
    """
    children = [_fork(job) for job in jobs]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(statuses):
        raise RefusedError("the kernel programs could not be loaded; see the lines above")


def _fork(job: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        job()
        status = 0
    except BulkheadError as error:
        sys.stderr.write(f"{error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def compile_text(text: str) -> Any:
    """bcc's module for `text`: maps are created or found by their pins, programs not loaded yet.

    Raises RefusedError with the compiler's complaint, which names the source file and line.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(source.directory())
    try:
        from bcc import BPF
    except ImportError as error:
        raise RefusedError("bcc is not installed (Debian: python3-bpfcc)") from error
    try:
        return BPF(text=text.encode(), cflags=_COMPILER_FLAGS)
    except Exception as error:  # bcc raises the base class; the compiler has written its complaint to stderr
        raise RefusedError(
            "the kernel programs do not compile or their maps cannot be made; see the lines above"
        ) from error


def prepare_directory(pins: Path) -> None:
    """Make `pins` and its rooms, private to root. Raises RefusedError when it is not on a BPF file system."""
    parent = pins if pins.exists() else pins.parent
    if not parent.exists() or _file_system(parent) != _BPFFS_MAGIC:
        raise RefusedError(f"`{parent}` is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`")
    for directory in (pins, pins / "maps", pins / "programs", pins / "slots", pins / "links"):
        directory.mkdir(mode=0o700, exist_ok=True)
    os.chmod(pins, 0o700)
    for name, kind, handed_down in (("sockets", SockState, True), ("steerings", Steering, False)):
        if not (pins / "maps" / name).exists():
            with storage.make(name, ctypes.sizeof(kind), handed_down=handed_down) as made:
                made.pin(pins / "maps" / name)


def _file_system(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"cannot examine `{path}`: {os.strerror(number)}", number)
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF


def _refuse_other_layout(setting: Setting, pins: Path) -> None:
    if setting.layout > Abi.LAYOUT:
        raise RefusedError(
            f"`{pins}` was made by a newer version (layout {setting.layout}, this one knows {Abi.LAYOUT.value}): "
            "what it enforces stays in force; upgrade, or remove it with its own `bulkhead detach`"
        )
    if 0 < setting.layout < Abi.LAYOUT:
        raise RefusedError(f"`{pins}` has the older layout {setting.layout}; run `bulkhead detach` first")


def _pin_program(program: Program, fd: libbpf.Fd, directory: Path) -> None:
    fresh = directory / f"{program.name}_new"
    fresh.unlink(missing_ok=True)
    libbpf.obj_pin(fd, fresh)
    fresh.rename(directory / program.name)
    if program.name in STAGES:
        with libbpf.map_open(directory.parent / "maps" / "stages") as stages:
            stages.update(STAGES.index(program.name).to_bytes(4, "little"), fd.fileno().to_bytes(4, "little"))


def _write_setting(pins: Path, known: Setting | None) -> None:
    setting = Setting()
    setting.hash_seed = known.hash_seed if known is not None and known.hash_seed else secrets.randbits(64)
    setting.layout = int(Abi.LAYOUT)
    setting.build = source.build_id().encode()
    with libbpf.map_open(pins / "maps" / "setting") as target:
        target.update(bytes(4), bytes(setting))


def main() -> None:
    """Entry point of the one-shot loader: `python -m bulkhead.kernel.load PINS CACHE`."""
    try:
        load(Path(sys.argv[1]), Path(sys.argv[2]))
    except BulkheadError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(int(error.exit_code))


if __name__ == "__main__":
    main()
