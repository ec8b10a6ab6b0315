"""The kernel programs: name in C, type, and the hook each is made for."""

from __future__ import annotations

from dataclasses import dataclass

from bulkhead.kernel.libbpf import ProgramType


@dataclass(frozen=True, slots=True)
class Program:
    """One loaded program: an entry point of bpf/*.c made for one hook.

    `function` is its name in C, in `file` below bpf/; several programs can come from one function. `attach_type` is
    what the verifier must know at load, -1 for none.
    """

    name: str
    function: str
    file: str
    program_type: ProgramType
    attach_type: int = -1


DNS_STAGES = ("stage_dns_question", "stage_dns_answer", "stage_dns_record", "stage_dns_learn")
"""What reads DNS datagrams."""

WIRE_STAGES = ("stage_wire_tell", "stage_wire_hear")
"""What explains a refusal to another node, and hears such explanations."""

STEERED_STAGES = ("stage_steered",)
"""What judges a workload's conversation with the node's proxy."""

DATAGRAM_STAGES = {
    "stage_trailer": "stage_trailer.c",
    "stage_carrier": "stage_trailer.c",
    "stage_datagram": "stage_datagram.c",
}
"""What says, and reads, who sends a datagram; with the file of each."""

PROGRAMS = (
    *(Program(name, name, f"{name}.c", ProgramType.SCHED_CLS) for name in ("stage_egress", "stage_ingress")),
    *(Program(name, name, "stage_dns.c", ProgramType.SCHED_CLS) for name in DNS_STAGES),
    *(Program(name, name, "stage_wire.c", ProgramType.SCHED_CLS) for name in WIRE_STAGES),
    *(Program(name, name, file, ProgramType.SCHED_CLS) for name, file in DATAGRAM_STAGES.items()),
    *(Program(name, name, f"{name}.c", ProgramType.SCHED_CLS) for name in STEERED_STAGES),
    *(
        Program(f"tc_{direction}{framing}", f"tc_{direction}{framing}", "tc.c", ProgramType.SCHED_CLS)
        for framing in ("", "_bare", "_loopback")
        for direction in ("egress", "ingress")
    ),
    Program("cgroup_sock_create", "cgroup_sock", "cgroup.c", ProgramType.CGROUP_SOCK, 2),
    Program("cgroup_post_bind4", "cgroup_bound", "cgroup.c", ProgramType.CGROUP_SOCK, 12),
    Program("cgroup_post_bind6", "cgroup_bound", "cgroup.c", ProgramType.CGROUP_SOCK, 13),
    Program("cgroup_connect4", "cgroup_address4", "cgroup.c", ProgramType.CGROUP_SOCK_ADDR, 10),
    Program("cgroup_connect6", "cgroup_address6", "cgroup.c", ProgramType.CGROUP_SOCK_ADDR, 11),
    Program("cgroup_sendmsg4", "cgroup_address4", "cgroup.c", ProgramType.CGROUP_SOCK_ADDR, 14),
    Program("cgroup_sendmsg6", "cgroup_address6", "cgroup.c", ProgramType.CGROUP_SOCK_ADDR, 15),
    Program("cgroup_getpeername4", "cgroup_peer4", "cgroup.c", ProgramType.CGROUP_SOCK_ADDR, 29),
    Program("cgroup_getpeername6", "cgroup_peer6", "cgroup.c", ProgramType.CGROUP_SOCK_ADDR, 30),
    Program("proxy_bind4", "proxy_bind4", "proxy.c", ProgramType.CGROUP_SOCK_ADDR, 8),
    Program("proxy_bind6", "proxy_bind6", "proxy.c", ProgramType.CGROUP_SOCK_ADDR, 9),
    Program("proxy_getsockopt", "proxy_getsockopt", "proxy.c", ProgramType.CGROUP_SOCKOPT, 21),
    Program("proxy_lookup", "proxy_lookup", "proxy.c", ProgramType.SK_LOOKUP, 36),
    Program("wire_sock_ops", "wire_sock_ops", "wire.c", ProgramType.SOCK_OPS, 3),
    *(
        Program(name, name, "lifecycle.c", ProgramType.RAW_TRACEPOINT)
        for name in ("lifecycle_cgroup_mkdir", "lifecycle_cgroup_rmdir", "lifecycle_attach_task", "lifecycle_exec")
    ),
)

STAGES = ("stage_egress", "stage_ingress", *DNS_STAGES, *WIRE_STAGES, *DATAGRAM_STAGES, *STEERED_STAGES)
"""Programs reached by tail call, in the order of `enum stage`."""

PROXY_HOOKS = ("proxy_bind4", "proxy_bind6", "proxy_getsockopt")
"""Programs for the control group of the node's proxy alone."""

LOOKUP = "proxy_lookup"
"""The program that gives the proxy what comes for it from other nodes, for its network namespace."""

TRACEPOINTS = {
    "lifecycle_cgroup_mkdir": "cgroup_mkdir",
    "lifecycle_cgroup_rmdir": "cgroup_rmdir",
    "lifecycle_attach_task": "cgroup_attach_task",
    "lifecycle_exec": "sched_process_exec",
}
"""Program to raw tracepoint."""
