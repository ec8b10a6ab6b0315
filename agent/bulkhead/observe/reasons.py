"""What every drop reason means to the one who meets it, and what to do about it. The only table of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bulkhead.abi import DropReason, name_of


@dataclass(frozen=True, slots=True)
class Reason:
    """`because` completes "it was refused because"; `advice` is what to do, a sentence each."""

    because: str
    advice: str


REASONS: Final[dict[DropReason, Reason]] = {
    DropReason.NONE: Reason("nothing was refused", "nothing needs to be done"),
    DropReason.POLICY: Reason(
        "default deny; no rule matched",
        "if it should be allowed, add a rule to the policy and commit it",
    ),
    DropReason.EXPIRED: Reason(
        "the exception that allowed it has expired",
        "write a rule if the need is permanent, or a new exception with a later `expires`",
    ),
    DropReason.UNATTESTED: Reason(
        "the process had no attested identity yet, and the unknown matches nothing",
        "try again; if it stays so, look at `bulkhead status` for events lost and at the agent's log",
    ),
    DropReason.AMBIGUOUS: Reason(
        "two workloads select the process with equal right, and a tie matches nothing",
        "`bulkhead workloads` names them: make one selector more specific",
    ),
    DropReason.QUARANTINE: Reason(
        "an operator has isolated the workload at one of the ends",
        "`bulkhead status` says which, since when and why; `bulkhead release` ends it",
    ),
    DropReason.POSTURE: Reason(
        "a workload at one of the ends is not as its posture requires, and its identity is withheld",
        "`bulkhead status` says which, since when, what is required and what was found",
    ),
    DropReason.NO_POLICY: Reason(
        "no policy has been switched into the kernel",
        "`bulkhead status` says why the last commit was not loaded",
    ),
    DropReason.NO_STATE: Reason(
        "the kernel could not make room for the socket's state",
        "look for memory pressure in the control group and on the machine",
    ),
    DropReason.MALFORMED: Reason(
        "a header is truncated, contradicts another or carries port 0",
        "look at what sent it: no working program does this",
    ),
    DropReason.FRAGMENT: Reason(
        "it is a later fragment whose first fragment was refused or never seen",
        "look for the refusal of the first fragment, or lower the sender's packet size",
    ),
    DropReason.EXTENSION_HEADER: Reason(
        "IPv6 extension headers could hide what it is",
        "send without routing, hop-by-hop or destination options",
    ),
    DropReason.MARTIAN: Reason(
        "its address cannot occur where it was seen: loopback, mapped or unspecified",
        "look for a forged source, or a route that points the wrong way",
    ),
    DropReason.LINK_PROTOCOL: Reason(
        "it is neither IPv4, IPv6 nor ARP, or it carries stacked VLAN tags",
        "nothing but these three protocols passes; take the device's other traffic elsewhere",
    ),
    DropReason.PACKET_SOCKET: Reason(
        "it was written to the device past the network stack, through a packet socket",
        "find the program with CAP_NET_RAW; what it sends has no identity",
    ),
    DropReason.RAW_SOCKET: Reason(
        "a transport segment was forged through a raw socket",
        "use an ordinary TCP or UDP socket, or take CAP_NET_RAW away from the program",
    ),
    DropReason.OWNERLESS: Reason(
        "no socket sent it, and it is no control packet of the kernel",
        "look for a tunnel, a kernel service or a packet generator: without a socket there is no identity",
    ),
    DropReason.FORWARDED: Reason(
        "it was routed or bridged through this machine, which neither sent nor receives it",
        "enforce at the machines that talk; this one does not forward",
    ),
    DropReason.CONTROL_RATE: Reason(
        "it is a control packet of the kernel beyond its rate limit",
        "look for a scan or a storm: `bulkhead_control_packets_total` shows the kind",
    ),
    DropReason.UNSOLICITED: Reason(
        "it answers something that was never asked",
        "expected after a restart of the peer or from a scan; look for a forged source if it goes on",
    ),
    DropReason.MULTICAST: Reason(
        "multicast or broadcast arrived for no identity",
        "expected noise of a network segment; allow it to a workload that listens for it",
    ),
    DropReason.LOOPBACK_BYPASS: Reason(
        "it arrived on the loopback device without having been judged when it left",
        "look for a packet injected by another program on the device",
    ),
    DropReason.NEIGHBOUR: Reason(
        "neighbour discovery came from off the link, or behind extension headers",
        "look for a forged router or neighbour advertisement on the segment",
    ),
    DropReason.WIRE_MISSING: Reason(
        "it came from the address of a registered node and does not say who is talking",
        "look at `bulkhead status` on that node, and for a device on the way that strips TCP options; "
        "`unknown: address` in the node's record judges it by its address while a roll-out is under way",
    ),
    DropReason.WIRE_MALFORMED: Reason(
        "its identity option has another length or place than the format has",
        "look for a device on the way that rewrites TCP options, or an agent of another version at the other end",
    ),
    DropReason.WIRE_NO_KEY: Reason(
        "no key is shared with the node that it names: it is not registered, is revoked, or is this one",
        "`bulkhead status` shows which nodes are registered and which records are refused, and why",
    ),
    DropReason.WIRE_FORGED: Reason(
        "the code that authenticates its identity is wrong",
        "compare the node's public key with the one in its record; if they agree, look for who forges on the way",
    ),
    DropReason.WIRE_REPLAYED: Reason(
        "this very opening has arrived before, in another conversation",
        "look for who records and sends again what passes between the two nodes",
    ),
    DropReason.WIRE_CLOCK: Reason(
        "it was said too long ago, or is not due yet: the clocks of the two nodes differ by too much",
        "set the clocks: they may be 32 seconds apart; `bulkhead status` says which node's was off",
    ),
    DropReason.WIRE_CLAIM: Reason(
        "policy does not let the node host the workload that it names",
        "if the workload belongs there, let its `host` globs match the node's name; if not, look into that node",
    ),
    DropReason.WIRE_NO_ROOM: Reason(
        "other TCP options leave no room to say who is talking",
        "use no MPTCP joins, TCP Fast Open or TCP MD5 signatures towards registered nodes",
    ),
    DropReason.WIRE_GUARD: Reason(
        "there were more openings at once than can be told from replays",
        "look for a flood of openings; it passes when there are fewer, and nothing that was open is cut",
    ),
    DropReason.MTLS: Reason(
        "the rule asks for mutual TLS, and the conversation did not go through the nodes' proxies",
        "the calling workload must be enforced on a node with an agent, so that it is steered; or write `mtls: off`",
    ),
    DropReason.PROXY: Reason(
        "the node's proxy is not at the other end, or named another workload than the one that receives",
        "`bulkhead status` says what is amiss with it; `systemctl status bulkhead-proxy`",
    ),
}
"""By reason, every one of them but the count `MAX`."""


def reason_of(number: int) -> Reason:
    """The reason of a number; one that says so when the kernel knows more reasons than this agent."""
    try:
        return REASONS[DropReason(number)]
    except (ValueError, KeyError):
        return Reason(f"reason {number}, which this version does not know", "upgrade the agent to the kernel programs'")


def reason_named(name: str) -> Reason:
    """The reason that `name_of` gives this name."""
    number = next((int(reason) for reason in REASONS if name_of(DropReason, reason) == name), int(DropReason.MAX))
    return reason_of(number)
