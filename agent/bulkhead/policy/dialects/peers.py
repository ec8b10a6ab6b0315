"""Who stands at the other end of a rule: pods, nodes, addresses."""

from __future__ import annotations

from bulkhead.policy.cluster import ClusterPeer, LabelSelector, NetworkPeer, NodePeer, PodPeer
from bulkhead.policy.dialects.selectors import selector_text
from bulkhead.policy.fields import read_written
from bulkhead.policy.findings import Findings
from bulkhead.policy.model import Network
from bulkhead.policy.values import read_network
from bulkhead.policy.yaml_nodes import Node

PEERS_SHOWN = 3


def read_cidr(node: Node, findings: Findings) -> Network | None:
    """An address prefix, with its length: a bare address is none to the API."""
    network = read_network(node, findings)
    if network is None:
        return None
    text = read_written(node, "a prefix", findings)
    if text and "/" not in text.text:
        findings.add("BH0303", text, hint=f"write `{network}`", text=text.text)
        return None
    return network


def peers_text(peers: tuple[ClusterPeer, ...] | None, most: int = PEERS_SHOWN) -> str:
    """Peers in a few words, such as `pods app=web in namespaces team=a; 10.0.0.0/8 except 10.1.0.0/16`.

    `most` are the peers, and the parts of each, that are written out.
    """
    if peers is None:
        return "everybody"
    shown = [peer_text(peer, most) for peer in peers[:most]]
    rest = len(peers) - most
    return "; ".join([*shown, f"{rest} more"] if rest > 0 else shown)


def peer_text(peer: ClusterPeer, most: int = PEERS_SHOWN) -> str:
    """One of them."""
    if isinstance(peer, NodePeer):
        return _selected("nodes", peer.nodes, most)
    if isinstance(peer, NetworkPeer):
        excluded = ", ".join(str(network) for network in peer.excluded[:most])
        rest = len(peer.excluded) - most
        excluded += f", {rest} more" if rest > 0 else ""
        return f"{peer.network} except {excluded}" if excluded else str(peer.network)
    return _pods_text(peer, most)


def _pods_text(peer: PodPeer, most: int) -> str:
    """Without a word on namespaces, the pods are of the policy's own."""
    if peer.namespaces is None:
        return _selected("pods", peer.pods, most)
    within = _selected("namespaces", peer.namespaces, most)
    return f"{_selected('pods', peer.pods, most)} in {within}"


def _selected(noun: str, selector: LabelSelector, most: int) -> str:
    text = selector_text(selector, most)
    return f"{noun} {text}" if text else f"all {noun}"
