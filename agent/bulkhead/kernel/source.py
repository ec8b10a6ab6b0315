"""The C sources as one text: what bcc is given to compile.

bcc resolves quoted includes against the working directory and does not rewrite map access inside included headers, so
the files are flattened here, in order, with `#line` directives that make the compiler's errors name the real file.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from bulkhead import abi
from bulkhead.errors import RefusedError
from bulkhead.kernel.btf import bit_offset, field_offsets

MAPS = ("abi.h", "maps.h")
"""Enough to make every map."""

HEADERS = (
    *MAPS,
    "packet.h",
    "account.h",
    "trial.h",
    "identity.h",
    "policy.h",
    "endpoint.h",
    "wire.h",
    "verdict.h",
    "steering.h",
    "wire_datagram.h",
    "dns.h",
    "egress.h",
    "ingress.h",
)
"""Everything that programs are made of, dependencies first."""

PARTS = (
    ("stage_egress.c", "stage_trailer.c", "stage_steered.c", "stage_dns.c", "tc.c", "wire.c", "lifecycle.c"),
    ("stage_ingress.c", "stage_datagram.c", "stage_wire.c", "cgroup.c", "proxy.c"),
)
"""Files with programs, in parts of about equal work: a compiler each, side by side."""

ORDER = (*HEADERS, *(name for part in PARTS for name in part))
"""All files as one text."""

KERNEL_FIELDS = {
    "OFFSET_TASK_MM": ("task_struct", "mm"),
    "OFFSET_TASK_TGID": ("task_struct", "tgid"),
    "OFFSET_TASK_CRED": ("task_struct", "cred"),
    "OFFSET_CRED_EUID": ("cred", "euid"),
    "OFFSET_CRED_EGID": ("cred", "egid"),
    "OFFSET_MM_EXE_FILE": ("mm_struct", "exe_file"),
    "OFFSET_FILE_INODE": ("file", "f_inode"),
    "OFFSET_INODE_SB": ("inode", "i_sb"),
    "OFFSET_INODE_INO": ("inode", "i_ino"),
    "OFFSET_INODE_GENERATION": ("inode", "i_generation"),
    "OFFSET_SB_DEV": ("super_block", "s_dev"),
    "OFFSET_CGROUP_ROOT": ("cgroup", "root"),
    "OFFSET_CGROUP_KN": ("cgroup", "kn"),
    "OFFSET_CGROUP_ROOT_HIERARCHY": ("cgroup_root", "hierarchy_id"),
    "OFFSET_KERNFS_ID": ("kernfs_node", "id"),
    "OFFSET_SOCK_REUSEPORT": ("sock", "sk_reuseport_cb"),
    "OFFSET_REUSEPORT_COUNT": ("sock_reuseport", "num_socks"),
}
"""Fields of kernel structures that the programs read; their places come from the running kernel's BTF."""


def directory() -> Path:
    """Where the C sources are: beside the package when installed, at the top of the tree in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "bpf", package.parent.parent / "bpf"):
        if (candidate / "abi.h").is_file():
            return candidate
    raise RefusedError(f"the C sources are missing: no bpf/abi.h beside `{package}`")


def flatten(sources: Path, names: tuple[str, ...] = ORDER) -> str:
    """The files joined in order, each under a `#line` that names it."""
    return "\n".join(f'#line 1 "bpf/{name}"\n{(sources / name).read_text()}' for name in names)


def prelude(pins: Path) -> str:
    """Macros that every file relies on: where maps are pinned, and where the kernel keeps its fields."""
    offsets = field_offsets(KERNEL_FIELDS)
    lines = ["#define INLINE inline __attribute__((always_inline))", f'#define PIN_PATH "{pins}"']
    lines += [f"#define {name} {value}" for name, value in sorted(offsets.items())]
    lines.append(f"#define BIT_SOCK_IPV6ONLY {bit_offset('sock_common', 'skc_ipv6only')}")
    lines.append(f"#define BIT_SKB_IP_SUMMED {bit_offset('sk_buff', 'ip_summed')}")
    return "\n".join(lines) + "\n"


def compose(pins: Path, sources: Path | None = None, names: tuple[str, ...] = ORDER) -> str:
    """Everything bcc compiles, with assertions that C and `abi.py` agree on every offset, width and value."""
    text = flatten(sources or directory(), names)
    return f'{prelude(pins)}{text}\n#line 1 "abi.py"\n{abi.static_assertions()}'


def build_id(sources: Path | None = None) -> str:
    """32 hex digits that change when any source, or the shared layout, does."""
    text = flatten(sources or directory()) + abi.LAYOUT
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def object_id() -> str:
    """32 hex digits that change when what the compiler makes of the sources does: with them, and with the kernel."""
    return hashlib.sha256((prelude(Path()) + build_id() + platform.machine()).encode()).hexdigest()[:32]
