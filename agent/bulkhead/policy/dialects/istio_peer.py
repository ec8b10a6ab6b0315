"""`security.istio.io` PeerAuthentication: whether callers must prove who they are."""

from __future__ import annotations

from typing import Final

from bulkhead.policy.dialects.istio_objects import key_of, read_selected
from bulkhead.policy.dialects.istio_texts import port_problem
from bulkhead.policy.dialects.objects import read_object
from bulkhead.policy.fields import Keys, expect_mapping, read_mapping, read_word
from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import ROOT_NAMESPACE, Mode, PeerAuthentication
from bulkhead.policy.yaml_nodes import Mapping, Node

KIND: Final = "PeerAuthentication"
SPEC = Keys("`spec`", (), ("selector", "mtls", "portLevelMtls"))
MTLS = Keys("`mtls`", (), ("mode",))
PORT = Keys("a port", ("mode",))
MODES = {mode.value: mode for mode in Mode}


def read_peer_authentication(node: Mapping, findings: Findings) -> PeerAuthentication | None:
    """The policy that the object says; None, with findings, when it is none."""
    found = read_object(node, KIND, findings, namespaced=True)
    fields = read_mapping(found.spec, SPEC, findings) if found else None
    if found is None or fields is None:
        return None
    labels = read_selected(fields, findings)
    if labels and found.namespace == ROOT_NAMESPACE:
        problem = f"has no effect in `{ROOT_NAMESPACE}`, where a PeerAuthentication is about the whole mesh"
        findings.add("BH1306", key_of(found.spec, "selector"), key="selector", problem=problem)
    if "portLevelMtls" in fields and not labels:
        problem = "is about single workloads, and needs a `selector`"
        findings.add("BH1306", key_of(found.spec, "portLevelMtls"), key="portLevelMtls", problem=problem)
    return PeerAuthentication(
        name=found.name.text,
        namespace=found.namespace,
        labels=labels,
        mode=_read_mode(fields["mtls"], MTLS, findings) if "mtls" in fields else Mode.UNSET,
        ports=_read_ports(fields["portLevelMtls"], findings) if "portLevelMtls" in fields else (),
        loc=findings.loc(found.name),
    )


def _read_mode(node: Node, keys: Keys, findings: Findings) -> Mode:
    fields = read_mapping(node, keys, findings)
    mode = read_word(fields["mode"], "`mode`", MODES, findings) if fields and "mode" in fields else None
    return mode or Mode.UNSET


def _read_ports(node: Node, findings: Findings) -> tuple[tuple[int, Mode], ...]:
    mapping = expect_mapping(node, "`portLevelMtls`", findings, empty=False)
    ports: dict[int, Mode] = {}
    for key, value in mapping.entries if mapping else ():
        problem = port_problem(key.text)
        if problem:
            findings.add("BH1301", key, text=key.text, what="`portLevelMtls`", problem=problem)
        else:
            ports[int(key.text)] = _read_mode(value, PORT, findings)
    return tuple(ports.items())
