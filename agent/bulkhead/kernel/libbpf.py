"""The bpf() system call, through libbpf.so.1 and ctypes.

Every failing call raises KernelError, which names what was attempted and carries errno. File descriptors are owned by
`Fd`, links and maps included; a map's sizes are asked from the kernel once, when it is opened.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import warnings
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bulkhead.errors import KernelError, RefusedError

ENOTSUPP: Final = 524
"""What the kernel answers for a map operation that a map type lacks; not in the C library's errno table."""

_UNSUPPORTED: Final = (ENOTSUPP, errno.EOPNOTSUPP, errno.EINVAL)
_READ_ATTEMPTS: Final = 5


class MapType(IntEnum):
    """Map types that Bulkhead uses."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    SOCKMAP = 15
    SK_STORAGE = 24
    RINGBUF = 27


class ProgramType(IntEnum):
    """Program types that Bulkhead uses."""

    SCHED_CLS = 3
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    SOCK_OPS = 13
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    SK_LOOKUP = 30


class AttachType(IntEnum):
    """Where a program can be attached by a link."""

    CGROUP_INET_INGRESS = 0
    CGROUP_INET_EGRESS = 1
    CGROUP_SOCK_CREATE = 2
    CGROUP_SOCK_OPS = 3
    CGROUP_BIND4 = 8
    CGROUP_BIND6 = 9
    CGROUP_CONNECT4 = 10
    CGROUP_CONNECT6 = 11
    CGROUP_POST_BIND4 = 12
    CGROUP_POST_BIND6 = 13
    CGROUP_SENDMSG4 = 14
    CGROUP_SENDMSG6 = 15
    CGROUP_GETSOCKOPT = 21
    CGROUP_GETPEERNAME4 = 29
    CGROUP_GETPEERNAME6 = 30
    SK_LOOKUP = 36
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class LinkType(IntEnum):
    """Link types that Bulkhead creates."""

    RAW_TRACEPOINT = 1
    CGROUP = 3
    NETNS = 5
    TCX = 11


PERCPU_MAP_TYPES: Final = (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)

BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
BPF_EXIST: Final = 2

BPF_F_NO_PREALLOC: Final = 1
BPF_F_BEFORE: Final = 1 << 3
"""Placed ahead of every program that is there already."""

ATTACH_FLAG_OVERRIDE: Final = 1
ATTACH_FLAG_MULTI: Final = 2


class _MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
    )


class _ProgLoadOpts(ctypes.Structure):
    _fields_ = (("sz", c_size_t), ("attempts", c_int), ("expected_attach_type", c_uint32))


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    )


class _BatchOpts(ctypes.Structure):
    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class _TestRunOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
    )


class _ProgInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
    )


class _LinkInfo(ctypes.Structure):
    """`detail` is a union in C: tcx (ifindex, attach type), cgroup (id as two words, attach type), netns."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("hole", c_uint32),
        ("detail", c_uint32 * 8),
    )


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says about a map. Sizes in bytes; `value_size` is that of one CPU's value."""

    map_id: int
    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says about a program. `tag` is the hash of its instructions, in hex."""

    program_id: int
    program_type: int
    tag: str
    name: str


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says about a link.

    `ifindex` is set for tcx, `cgroup_id` for control groups, `netns_inode` for network namespaces; 0 there means that
    the target is gone and the link dead.
    """

    link_id: int
    link_type: int
    program_id: int
    ifindex: int
    cgroup_id: int
    netns_inode: int = 0


@dataclass(frozen=True, slots=True)
class TestRun:
    """Result of one BPF_PROG_TEST_RUN. `retval` is signed: TC_ACT_UNSPEC is -1. `duration_ns` is the mean per run."""

    __test__ = False  # a name that pytest would otherwise collect

    retval: int
    data: bytes
    context: bytes
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Attached:
    """Programs at one hook, first to run first. `flags` 0 means that the hook is held exclusively."""

    program_ids: tuple[int, ...]
    flags: int


class Fd:
    """Owns a file descriptor; closes it once."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """The number. Raises ValueError once closed."""
        if self._number < 0:
            raise ValueError("the file descriptor is closed")
        return self._number

    def close(self) -> None:
        """Give the descriptor back; harmless when repeated."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if self._number >= 0:
            warnings.warn(f"file descriptor {self._number} was never closed", ResourceWarning, stacklevel=1)
            self.close()

    def __repr__(self) -> str:
        return f"Fd({self._number})"


@functools.cache
def library() -> Any:
    """The library, loaded at first use so that pure code imports this module without it."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise RefusedError(f"libbpf 1.x is not installed: {error}") from error
    lib.libbpf_set_print(None)  # the verifier's text would go to stderr; KernelError says what failed
    lib.bpf_map_create.argtypes = [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]
    lib.bpf_map_update_elem.argtypes = [c_int, c_void_p, c_void_p, c_uint64]
    lib.bpf_map_lookup_elem.argtypes = [c_int, c_void_p, c_void_p]
    lib.bpf_map_delete_elem.argtypes = [c_int, c_void_p]
    lib.bpf_map_get_next_key.argtypes = [c_int, c_void_p, c_void_p]
    lib.bpf_map_update_batch.argtypes = [c_int, c_void_p, c_void_p, POINTER(c_uint32), c_void_p]
    lib.bpf_map_delete_batch.argtypes = [c_int, c_void_p, POINTER(c_uint32), c_void_p]
    lib.bpf_map_lookup_batch.argtypes = [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p]
    lib.bpf_prog_load.argtypes = [c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p]
    lib.bpf_link_create.argtypes = [c_int, c_int, c_int, c_void_p]
    lib.bpf_link_update.argtypes = [c_int, c_int, c_void_p]
    lib.bpf_prog_query.argtypes = [c_int, c_int, c_uint32, POINTER(c_uint32), c_void_p, POINTER(c_uint32)]
    return lib


def _failure(code: int, what: str) -> KernelError:
    number = -code
    reason = "the kernel does not support it here" if number == ENOTSUPP else os.strerror(number)
    return KernelError(f"cannot {what}: {reason}", number)


def _checked(code: int, what: str) -> int:
    """libbpf's result, or KernelError when it is a negated errno."""
    if code < 0:
        raise _failure(code, what)
    return code


def obj_get(path: Path) -> Fd:
    """Open the map, program or link that is pinned at `path`."""
    return Fd(_checked(library().bpf_obj_get(os.fsencode(path)), f"open the pin `{path}`"))


def is_link(fd: Fd) -> bool:
    """Is it a link, rather than a map or a program?"""
    return _object_kind(fd) in ("bpf_link", "bpf-link", "bpf-raw-tracepoint")


def is_same(one: Fd, other: Fd) -> bool:
    """Do both stand for one map, or one program?"""
    if _object_kind(one) != _object_kind(other):
        return False
    if _object_kind(one) == "bpf-map":
        return map_info(one).map_id == map_info(other).map_id
    return prog_info(one).program_id == prog_info(other).program_id


def _object_kind(fd: Fd) -> str:
    """The kernel describes any object when asked for another kind, so ask the descriptor what it is."""
    return os.readlink(f"/proc/self/fd/{fd.fileno()}").removeprefix("anon_inode:").strip("[]")


def obj_pin(fd: Fd, path: Path) -> None:
    """Pin a map, program or link at `path`, which must not exist; its directory must."""
    _checked(library().bpf_obj_pin(fd.fileno(), os.fsencode(path)), f"pin to `{path}`")


def prog_load(
    program_type: int, name: str, instructions: bytes, expected_attach_type: int = 0, license_name: str = "GPL"
) -> Fd:
    """Load raw instructions of 8 bytes each; compiled programs come from `load`."""
    opts = _ProgLoadOpts(sz=ctypes.sizeof(_ProgLoadOpts), expected_attach_type=expected_attach_type)
    count = len(instructions) // 8
    fd = library().bpf_prog_load(program_type, name.encode(), license_name.encode(), instructions, count, byref(opts))
    return Fd(_checked(fd, f"load the program `{name}`"))


def prog_info(fd: Fd) -> ProgramInfo:
    """Id, type, tag and name of a program."""
    info = _ProgInfo()
    _info_by_fd(fd, info, "describe a program")
    return ProgramInfo(info.id, info.type, bytes(info.tag).hex(), info.name.decode(errors="replace"))


def prog_get_by_id(program_id: int) -> Fd:
    """Open a program by id; needs CAP_SYS_ADMIN (EPERM otherwise)."""
    return Fd(_checked(library().bpf_prog_get_fd_by_id(c_uint32(program_id)), f"open program {program_id}"))


def prog_test_run(
    program: Fd, data: bytes, *, context: bytes = b"", repeat: int = 1, data_out_size: int | None = None
) -> TestRun:
    """Run a program on `data` (from the Ethernet header on) and, if given, a `context` such as a `struct __sk_buff`.

    `data_out_size` bounds the data that comes back, by default what went in and 256 bytes more.
    """
    data_out = ctypes.create_string_buffer(len(data) + 256 if data_out_size is None else data_out_size)
    context_out = ctypes.create_string_buffer(max(1, len(context)))
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.cast(c_char_p(data), c_void_p) if data else None,
        data_size_in=len(data),
        data_out=ctypes.addressof(data_out) if data else None,
        data_size_out=len(data_out) if data else 0,
        repeat=repeat,
    )
    if context:
        opts.ctx_in, opts.ctx_size_in = ctypes.cast(c_char_p(context), c_void_p), len(context)
        opts.ctx_out, opts.ctx_size_out = ctypes.addressof(context_out), len(context)
    _checked(library().bpf_prog_test_run_opts(program.fileno(), byref(opts)), "test-run a program")
    return TestRun(
        retval=ctypes.c_int32(opts.retval).value,
        data=data_out.raw[: opts.data_size_out],
        context=context_out.raw[: opts.ctx_size_out],
        duration_ns=opts.duration,
    )


def prog_query(target: int, attach_type: int) -> Attached:
    """Programs attached at `target`: a control group's file descriptor, or an interface index for tcx."""
    capacity = 64
    while True:
        ids, count, flags = (c_uint32 * capacity)(), c_uint32(capacity), c_uint32(0)
        code = library().bpf_prog_query(target, attach_type, 0, byref(flags), ids, byref(count))
        if code != -errno.ENOSPC:
            break
        capacity *= 4
    _checked(code, f"list the programs at hook {_hook_name(attach_type)}")
    return Attached(tuple(ids[: count.value]), flags.value)


def _hook_name(attach_type: int) -> str:
    known = [member.name.lower() for member in AttachType if member == attach_type]
    return known[0] if known else str(attach_type)


def link_create(program: Fd, target: int, attach_type: int, flags: int = 0) -> Fd:
    """Attach by a link.

    `target` is the file descriptor of a control group or network namespace, or for tcx an interface index in this one.
    """
    opts = _LinkCreateOpts(sz=ctypes.sizeof(_LinkCreateOpts), flags=flags)
    code = library().bpf_link_create(program.fileno(), target, attach_type, byref(opts))
    return Fd(_checked(code, f"attach a program at hook {_hook_name(attach_type)}"))


def link_update(link: Fd, program: Fd) -> None:
    """Replace the link's program in one step: no packet passes between the old one and the new."""
    code = library().bpf_link_update(link.fileno(), program.fileno(), None)
    _checked(code, "replace the program of a link")


def link_detach(link: Fd) -> None:
    """Take the program off its hook, whoever else holds the link. Not for tracepoints, whose links only close."""
    _checked(library().bpf_link_detach(link.fileno()), "detach a link")


def link_info(link: Fd) -> LinkInfo:
    """What a link attaches where."""
    info = _LinkInfo()
    _info_by_fd(link, info, "describe a link")
    is_tcx, is_cgroup, is_netns = (info.type == one for one in (LinkType.TCX, LinkType.CGROUP, LinkType.NETNS))
    return LinkInfo(
        link_id=info.id,
        link_type=info.type,
        program_id=info.prog_id,
        ifindex=info.detail[0] if is_tcx else 0,
        cgroup_id=struct.unpack_from("=Q", bytes(info.detail))[0] if is_cgroup else 0,
        netns_inode=info.detail[0] if is_netns else 0,
    )


def raw_tracepoint_open(name: str, program: Fd) -> Fd:
    """Attach to a raw tracepoint such as `cgroup_mkdir`; the result is a link."""
    code = library().bpf_raw_tracepoint_open(name.encode(), program.fileno())
    return Fd(_checked(code, f"attach to the tracepoint `{name}`"))


@functools.cache
def possible_cpus() -> int:
    """CPUs for which per-CPU maps hold a value."""
    return _checked(library().libbpf_num_possible_cpus(), "count the possible CPUs")


def _info_by_fd(fd: Fd, info: ctypes.Structure, what: str) -> None:
    size = c_uint32(ctypes.sizeof(info))
    _checked(library().bpf_obj_get_info_by_fd(fd.fileno(), byref(info), byref(size)), what)


def map_create(
    map_type: int,
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    inner: Map | None = None,
    types: tuple[Fd, int, int] | None = None,
) -> Map:
    """Create an unpinned map; `inner` is the template of a map of maps. Sizes in bytes.

    `types` is loaded type information with the ids of the key's and the value's type in it.
    """
    opts = _MapCreateOpts(
        sz=ctypes.sizeof(_MapCreateOpts), map_flags=flags, inner_map_fd=inner.fd.fileno() if inner else 0
    )
    if types is not None:
        opts.btf_fd, opts.btf_key_type_id, opts.btf_value_type_id = types[0].fileno(), types[1], types[2]
    code = library().bpf_map_create(map_type, name.encode(), key_size, value_size, max_entries, byref(opts))
    return Map(Fd(_checked(code, f"create the map `{name}`")))


def btf_load(data: bytes) -> Fd:
    """Load type information."""
    return Fd(_checked(library().bpf_btf_load(data, c_size_t(len(data)), None), "load type information"))


def map_open(path: Path) -> Map:
    """Open the map that is pinned at `path`."""
    return Map(obj_get(path))


def map_info(fd: Fd) -> MapInfo:
    """Id, type and sizes of a map. Raises KernelError for any other object."""
    if _object_kind(fd) != "bpf-map":
        raise KernelError(f"expected a map, found `{_object_kind(fd)}`", errno.EINVAL)
    info = _MapInfo()
    _info_by_fd(fd, info, "describe a map")
    name = info.name.decode(errors="replace")
    return MapInfo(info.id, info.type, info.key_size, info.value_size, info.max_entries, info.map_flags, name)


class Map:
    """A map, opened; owns its file descriptor. Keys and values are the bytes that the kernel holds.

    Values of per-CPU maps are all CPUs' values one after the other, each padded to `stride` bytes; see `sum_words`.
    Values of maps of maps are a file descriptor when written and a map id when read, 4 bytes.
    """

    __slots__ = ("_value_bytes", "fd", "info", "stride")

    def __init__(self, fd: Fd) -> None:
        self.fd = fd
        try:
            self.info = map_info(fd)
        except KernelError:
            fd.close()
            raise
        per_cpu = self.info.map_type in PERCPU_MAP_TYPES
        self.stride = (self.info.value_size + 7) // 8 * 8 if per_cpu else self.info.value_size
        """Bytes from one CPU's value to the next."""
        self._value_bytes = self.stride * possible_cpus() if per_cpu else self.stride

    def close(self) -> None:
        """Close the descriptor; a pinned map lives on."""
        self.fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def pin(self, path: Path) -> None:
        """Pin at `path`, which must not exist."""
        obj_pin(self.fd, path)

    def freeze(self) -> None:
        """Let no process write entries from now on, this one included; programs are not concerned (Linux 5.2)."""
        _checked(library().bpf_map_freeze(self.fd.fileno()), self._attempt("freeze"))

    def lookup(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        self._require(key, self.info.key_size, "key")
        value = ctypes.create_string_buffer(self._value_bytes)
        code = library().bpf_map_lookup_elem(self.fd.fileno(), key, value)
        if code == -errno.ENOENT:
            return None
        _checked(code, self._attempt("look up a key in"))
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write one entry."""
        self._require(key, self.info.key_size, "key")
        self._require(value, self._value_bytes, "value")
        code = library().bpf_map_update_elem(self.fd.fileno(), key, value, flags)
        _checked(code, self._attempt("write an entry of"))

    def delete(self, key: bytes) -> bool:
        """Delete one entry; False when there was none."""
        self._require(key, self.info.key_size, "key")
        code = library().bpf_map_delete_elem(self.fd.fileno(), key)
        if code == -errno.ENOENT:
            return False
        _checked(code, self._attempt("delete an entry of"))
        return True

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after `key` in the kernel's order, the first for None; None at the end."""
        following = ctypes.create_string_buffer(self.info.key_size)
        code = library().bpf_map_get_next_key(self.fd.fileno(), key, following)
        if code == -errno.ENOENT:
            return None
        _checked(code, self._attempt("walk"))
        return following.raw

    def update_batch(self, keys: bytes, values: bytes, count: int, flags: int = BPF_ANY) -> None:
        """Write `count` entries, packed one after the other. On KernelError a leading part may have been written."""
        self._require(keys, self.info.key_size * count, "keys")
        self._require(values, self._value_bytes * count, "values")
        if not count:
            return
        opts, done = _BatchOpts(sz=ctypes.sizeof(_BatchOpts), elem_flags=flags), c_uint32(count)
        code = library().bpf_map_update_batch(self.fd.fileno(), keys, values, byref(done), byref(opts))
        if code == -ENOTSUPP:
            self._update_each(keys, values, count, flags)
            return
        _checked(code, self._attempt(f"write {count} entries ({done.value} were written) to"))

    def delete_batch(self, keys: bytes, count: int) -> None:
        """Delete `count` entries; keys that are not there are passed over."""
        size = self.info.key_size
        self._require(keys, size * count, "keys")
        position = 0
        while position < count:
            done = c_uint32(count - position)
            rest = keys[position * size :]
            code = library().bpf_map_delete_batch(self.fd.fileno(), rest, byref(done), None)
            if code not in (0, -errno.ENOENT, -ENOTSUPP):
                raise _failure(code, self._attempt(f"delete {count} entries of"))
            if code == 0:
                return
            position += 0 if code == -ENOTSUPP else done.value
            self.delete(keys[position * size : (position + 1) * size])
            position += 1

    def lookup_batch(self, chunk: int = 4096) -> tuple[bytes, bytes]:
        """Every entry as (keys, values), packed alike, read `chunk` entries per call into the kernel.

        Entries written meanwhile may be missing or appear twice.
        """
        for _ in range(_READ_ATTEMPTS):
            try:
                return self._read_in_batches(chunk)
            except KernelError as error:
                if error.errno in _UNSUPPORTED:
                    break
                if error.errno != errno.EINTR:
                    raise
        return self._read_one_by_one()

    def as_dict(self) -> dict[bytes, bytes]:
        """Every entry, value by key."""
        keys, values = self.lookup_batch()
        key_size, value_size = self.info.key_size, self._value_bytes
        return {
            keys[index * key_size : (index + 1) * key_size]: values[index * value_size : (index + 1) * value_size]
            for index in range(len(keys) // key_size)
        }

    def sum_words(self, value: bytes) -> tuple[int, ...]:
        """A per-CPU value of unsigned 64-bit words, each summed over the CPUs."""
        words = memoryview(value).cast("Q")
        width = self.stride // 8
        return tuple(sum(words[index::width]) for index in range(width))

    def _read_in_batches(self, chunk: int) -> tuple[bytes, bytes]:
        size, chunk = self.info.key_size, min(max(self.info.max_entries, 1), chunk)
        keys, values = bytearray(), bytearray()
        # The cursor is a bucket number (4 bytes) for hashes and a key for the generic walk.
        cursor: ctypes.Array[c_char] | None = None
        while len(keys) <= 2 * size * self.info.max_entries:
            following = ctypes.create_string_buffer(max(size, 4))
            key_part = ctypes.create_string_buffer(size * chunk)
            value_part = ctypes.create_string_buffer(self._value_bytes * chunk)
            count = c_uint32(chunk)
            code = library().bpf_map_lookup_batch(
                self.fd.fileno(), cursor, following, key_part, value_part, byref(count), None
            )
            if code == -errno.ENOSPC:
                chunk *= 2  # one bucket holds more than the buffer
                continue
            if code not in (0, -errno.ENOENT):
                raise _failure(code, self._attempt("read"))
            keys += memoryview(key_part)[: size * count.value]
            values += memoryview(value_part)[: self._value_bytes * count.value]
            if code:
                return bytes(keys), bytes(values)
            cursor = following
        raise _failure(-errno.EINTR, self._attempt("read a changing"))

    def _read_one_by_one(self) -> tuple[bytes, bytes]:
        keys, values = bytearray(), bytearray()
        seen: set[bytes] = set()
        key = self.next_key(None)
        while key is not None and key not in seen:
            seen.add(key)
            value = self.lookup(key)
            if value is not None:
                keys += key
                values += value
            key = self.next_key(key)
        return bytes(keys), bytes(values)

    def _update_each(self, keys: bytes, values: bytes, count: int, flags: int) -> None:
        size = self.info.key_size
        for index in range(count):
            value = values[index * self._value_bytes : (index + 1) * self._value_bytes]
            self.update(keys[index * size : (index + 1) * size], value, flags)

    def _attempt(self, verb: str) -> str:
        return f"{verb} the map `{self.info.name}`"

    def _require(self, given: bytes, size: int, what: str) -> None:
        """ctypes would hand a short buffer to the kernel, which reads past its end."""
        if len(given) != size:
            raise ValueError(f"{what} of the map `{self.info.name}` take {size} bytes, not {len(given)}")
