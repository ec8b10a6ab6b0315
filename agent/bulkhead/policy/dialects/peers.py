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


def peers_text(peers: tuple[ClusterPeer, ...] | None) -> str:
    """Peers in a few words, such as `pods app=web in namespaces team=a; 10.0.0.0/8 except 10.1.0.0/16`."""
    if peers is None:
        return "everybody"
    shown = [_peer_text(peer) for peer in peers[:PEERS_SHOWN]]
    rest = len(peers) - PEERS_SHOWN
    return "; ".join([*shown, f"{rest} more"] if rest > 0 else shown)


def _peer_text(peer: ClusterPeer) -> str:
    if isinstance(peer, NodePeer):
        return _selected("nodes", peer.nodes)
    if isinstance(peer, NetworkPeer):
        excluded = ", ".join(str(network) for network in peer.excluded[:PEERS_SHOWN])
        rest = len(peer.excluded) - PEERS_SHOWN
        excluded += f", {rest} more" if rest > 0 else ""
        return f"{peer.network} except {excluded}" if excluded else str(peer.network)
    return _pods_text(peer)


def _pods_text(peer: PodPeer) -> str:
    """Without a word on namespaces, the pods are of the policy's own."""
    if peer.namespaces is None:
        return _selected("pods", peer.pods)
    within = _selected("namespaces", peer.namespaces)
    return f"{_selected('pods', peer.pods)} in {within}"


def _selected(noun: str, selector: LabelSelector) -> str:
    text = selector_text(selector)
    return f"{noun} {text}" if text else f"all {noun}"
