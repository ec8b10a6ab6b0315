"""What a child of the agent gives up before it does anything."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_SIGTERM: Final = 15

_BPF_CALLS: Final = {
    "x86_64": (0xC000003E, 321),
    "aarch64": (0xC00000B7, 280),
    "riscv64": (0xC00000F3, 280),
    "ppc64le": (0xC0000015, 361),
    "s390x": (0x80000016, 351),
}
"""How seccomp calls an architecture, and the number of bpf() there."""
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_DATA_NUMBER, _DATA_ARCHITECTURE = 0, 4
_X32_BIT: Final = 0x40000000
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def end_with_parent() -> None:
    """Be ended when the process that started this one ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGTERM, 0, 0, 0)


def confine(memory_bytes: int = 4 << 30, files: int = 256) -> None:
    """Give up privileges for good: no new ones by exec, no capabilities, no bpf(), bounded memory and files.

    A child of the agent stays root, whose the pins are: without bpf() it cannot open them. Another process of root
    without capabilities, in a sandbox, could trace one that has none either: its memory is hidden from it.
    """
    hide_memory()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot set no_new_privs")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")
    _refuse_bpf(libc)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _refuse_bpf(libc: ctypes.CDLL) -> None:
    """Of this process and all that come of it: bpf(), and every system call by another architecture's numbers."""
    architecture, number = _BPF_CALLS[os.uname().machine]
    steps = [
        (_LOAD, 0, 0, _DATA_ARCHITECTURE),
        (_IF_EQUAL, 0, 4, architecture),
        (_LOAD, 0, 0, _DATA_NUMBER),
        (_IF_AT_LEAST, 2, 0, _X32_BIT),
        (_IF_EQUAL, 1, 0, number),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE | errno.EPERM),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = _FilterProgram(len(steps), ctypes.addressof(code))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot give up bpf()")


def hide_memory() -> None:
    """Let nobody without CAP_SYS_PTRACE read this process's memory, and write it to no core file."""
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot make the memory unreadable")


def lock_memory() -> bool:
    """Keep memory out of swap; False where that is not allowed without a limit.

    Under a limit the first allocation beyond it would fail, later, for a reason that nobody would find.
    """
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return False
    return bool(ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
