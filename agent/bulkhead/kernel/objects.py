"""Compiled kernel programs, kept so that a machine compiles them once.

What LLVM makes of the same sources for the same kernel is the same every time, and it is most of what a cold start
costs. A `Store` keeps it in a directory that root alone can write, under a name that changes with every source, with
the layout and with where the running kernel keeps its fields: the specification of each map, and each program's
instructions with the maps they use by name. The verifier sees them anew at every load.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bulkhead.errors import KernelError
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import Fd, Map
from bulkhead.kernel.programs import Program

_KEPT: Final = 4
"""Builds that are kept, the latest used: an upgrade that is taken back compiles nothing."""
_INSTRUCTION: Final = 8
_LOAD_IMMEDIATE: Final = 0x18
"""The one instruction of two words: a 64-bit immediate, such as a map."""
_PSEUDO_MAP: Final = 1
_OF_MAPS: Final = re.compile(r'PINNED\("array_of_maps\$(\w+)", "(\w+)"\)')


@dataclass(frozen=True, slots=True)
class MapSpec:
    """How a map is made. Sizes in bytes."""

    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    inner: MapSpec | None = None
    """The template of a map of maps."""

    def make(self, name: str) -> Map:
        """A new map, not pinned."""
        sizes = (self.key_size, self.value_size, self.max_entries, self.flags)
        if self.inner is None:
            return libbpf.map_create(self.map_type, name[:15], *sizes)
        with self.inner.make(f"{name[:9]}_inner") as template:
            return libbpf.map_create(self.map_type, name[:15], *sizes, inner=template)


@dataclass(frozen=True, slots=True)
class Object:
    """A compiled program that fits no kernel yet: its maps are names."""

    function: str
    instructions: bytes
    maps: tuple[tuple[int, str], ...]
    """Which instruction, counted in words of eight bytes, takes which map."""


@dataclass(frozen=True, slots=True)
class Part:
    """The programs that were compiled together, and the maps that only they share."""

    own_maps: Mapping[str, MapSpec]
    objects: Mapping[str, Object]
    """By function."""

    def load(self, programs: Sequence[Program], maps: Path) -> Iterator[tuple[Program, Fd]]:
        """Load the programs of this part; `maps` has the pins. Raises KernelError when one is rejected."""
        with ExitStack() as opened:
            fds: dict[str, Map] = {name: opened.enter_context(spec.make(name)) for name, spec in self.own_maps.items()}
            for program in programs:
                found = self.objects[program.function]
                for _, name in found.maps:
                    if name not in fds:
                        fds[name] = opened.enter_context(libbpf.map_open(maps / name))
                yield program, _load(program, found, fds)


def _load(program: Program, found: Object, maps: Mapping[str, Map]) -> Fd:
    code = bytearray(found.instructions)
    for word, name in found.maps:
        struct.pack_into("=i", code, word * _INSTRUCTION + 4, maps[name].fd.fileno())
    attach_type = max(program.attach_type, 0)
    try:
        return libbpf.prog_load(int(program.program_type), program.function[:15], bytes(code), attach_type)
    except KernelError as error:
        raise KernelError(f"the kernel rejects the program `{program.name}`: {error}", error.errno) from error


class Store:
    """The objects of one build, below a directory of root's. A store that is not whole, or not private, is empty."""

    def __init__(self, directory: Path, build: str) -> None:
        self._root = directory
        self._directory = directory / build

    def maps(self) -> dict[str, MapSpec] | None:
        """Specifications of the pinned maps; None: nothing is kept."""
        kept = self._read("maps")
        return None if kept is None else {name: _spec(value) for name, value in kept.items()}

    def part(self, number: int) -> Part | None:
        """The programs of a part; None: nothing is kept."""
        kept = self._read(f"part-{number}")
        if kept is None:
            return None
        objects = {name: _object(name, value) for name, value in kept["objects"].items()}
        return Part({name: _spec(value) for name, value in kept["own_maps"].items()}, objects)

    def keep_maps(self, specs: Mapping[str, MapSpec]) -> None:
        """Keep the specifications of the pinned maps."""
        self._write("maps", {name: asdict(spec) for name, spec in specs.items()})

    def keep_part(self, number: int, part: Part) -> None:
        """Keep the programs of a part."""
        objects = {
            name: {"instructions": base64.b64encode(one.instructions).decode(), "maps": one.maps}
            for name, one in part.objects.items()
        }
        own_maps = {name: asdict(spec) for name, spec in part.own_maps.items()}
        self._write(f"part-{number}", {"objects": objects, "own_maps": own_maps})

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._directory / f"{name}.json"
        try:
            if not all(_is_private(one) for one in (self._root, self._directory, path)):
                return None
            kept = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None  # not there, or not whole: it is compiled again
        os.utime(self._directory)
        return kept if isinstance(kept, dict) else None

    def _write(self, name: str, value: object) -> None:
        for directory in (self._root, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(self._root):
            return
        fresh = self._directory / f"{name}.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file)
        fresh.rename(self._directory / f"{name}.json")
        self._forget_old()

    def _forget_old(self) -> None:
        builds = sorted((one for one in self._root.iterdir() if one.is_dir()), key=lambda one: -one.stat().st_mtime_ns)
        for build in builds[_KEPT:]:
            if build != self._directory:
                shutil.rmtree(build, ignore_errors=True)


def _is_private(path: Path) -> bool:
    """Whether nobody but root can have written it."""
    found = path.lstat()
    return found.st_uid == 0 and not found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode)


def _spec(value: Any) -> MapSpec:
    inner = value.pop("inner")
    return MapSpec(**value, inner=None if inner is None else _spec(inner))


def _object(function: str, value: Any) -> Object:
    try:
        instructions = base64.b64decode(value["instructions"], validate=True)
    except binascii.Error as error:
        raise KernelError(f"the kept program `{function}` is no base64") from error
    return Object(function, instructions, tuple((int(word), str(name)) for word, name in value["maps"]))


# From what bcc has made


def map_specs(module: Any, maps: Path, text: str) -> dict[str, MapSpec]:
    """Of every pinned map below `maps`, that `module`, compiled from `text`, has made or found."""
    templates = {match[2]: match[1] for match in _OF_MAPS.finditer(text)}
    found: dict[str, MapSpec] = {}
    for path in maps.iterdir():
        inner = templates.get(path.name)
        with libbpf.map_open(path) as opened:
            found[path.name] = _spec_of(opened.fd, _template(module, inner) if inner else None)
    return found


def _template(module: Any, name: str) -> MapSpec:
    with Fd(os.dup(module[name.encode()].map_fd)) as fd:
        return _spec_of(fd)


def _spec_of(fd: Fd, inner: MapSpec | None = None) -> MapSpec:
    info = libbpf.map_info(fd)
    return MapSpec(info.map_type, info.key_size, info.value_size, info.max_entries, info.flags, inner)


def part_of(module: Any, functions: Sequence[str], maps: Path) -> Part:
    """The functions of a module, with the maps they use by name."""
    pinned: dict[int, str] = {}
    for path in maps.iterdir():
        with libbpf.map_open(path) as opened:
            pinned[libbpf.map_info(opened.fd).map_id] = path.name
    own: dict[str, MapSpec] = {}
    names: dict[int, str] = {}
    objects: dict[str, Object] = {}
    for function in functions:
        instructions = bytes(module.dump_func(function.encode()))
        used = tuple(_maps_used(instructions))
        for _, number in used:
            if number not in names:
                names[number] = _name(number, pinned, own)
        objects[function] = Object(function, instructions, tuple((word, names[number]) for word, number in used))
    return Part(own, objects)


def _name(number: int, pinned: Mapping[int, str], own: dict[str, MapSpec]) -> str:
    with Fd(os.dup(number)) as fd:
        info = libbpf.map_info(fd)
        if info.map_id in pinned:
            return pinned[info.map_id]
        name = f"{info.name}.{info.map_id}"
        own[name] = _spec_of(fd)
        return name


def _maps_used(instructions: bytes) -> Iterator[tuple[int, int]]:
    """(word, map's descriptor) of every instruction that takes a map."""
    word, count = 0, len(instructions) // _INSTRUCTION
    while word < count:
        code, registers, _, immediate = struct.unpack_from("=BBhi", instructions, word * _INSTRUCTION)
        if code == _LOAD_IMMEDIATE:
            if registers >> 4 == _PSEUDO_MAP:
                yield word, immediate
            word += 1
        word += 1
