"""One file to its draft: the shape of documents, every value checked, no name looked up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from bulkhead.policy.cluster import ClusterPolicy
from bulkhead.policy.dialects.documents import VERSIONS_HINT, ForeignPolicy, head_of, read_documents
from bulkhead.policy.draft import (
    Draft,
    DraftExternal,
    DraftNode,
    DraftPeer,
    DraftPolicy,
    DraftRepository,
    DraftRule,
    DraftSigner,
    DraftTarget,
    DraftTest,
    DraftTrustBundle,
    DraftWorkload,
)
from bulkhead.policy.fields import (
    Keys,
    did_you_mean,
    expect_items,
    expect_mapping,
    read_mapping,
    read_text,
    read_word,
    read_words,
    read_written,
)
from bulkhead.policy.findings import Findings
from bulkhead.policy.issuers import read_issuers
from bulkhead.policy.l7_documents import METHOD, path_problem, read_authz, read_l7
from bulkhead.policy.match import read_match
from bulkhead.policy.model import Level, Match, Mode, PortSpec, Scope
from bulkhead.policy.node_documents import read_node
from bulkhead.policy.ports import TCP
from bulkhead.policy.posture import read_posture
from bulkhead.policy.source import HOSTS, REPOSITORY_FILE
from bulkhead.policy.spiffe import read_spiffe
from bulkhead.policy.trust_documents import read_trust_bundle
from bulkhead.policy.values import (
    RESERVED,
    is_name,
    port_of,
    read_key,
    read_labels,
    read_name,
    read_names,
    read_networks,
    read_peer_name,
    read_ports,
    read_signer_name,
    read_time,
    read_trust_domain,
)
from bulkhead.policy.yaml_nodes import Broken, Mapping, Node, Scalar, Sequence, Spot, compose

API_VERSION = "bulkhead/v1alpha1"

VALUES_BEGIN = "BH03"
"""Findings of a lower code are about structure: a misspelt or doubled key may have taken names with it."""

KINDS = ("Policy", "Node", "TrustBundle", "Repository")
LEVELS = {level.value: level for level in Level}
MODES = {mode.value: mode for mode in Mode}
MTLS = {"required": True, "off": False}

_RULE = ("from", "to")
PROSE = ("owner", "ticket", "why")
BY_REQUEST = ("l7", "authz")
KEYS_REPOSITORY = Keys("the repository", ("apiVersion", "kind", "trustDomain"), ("defaults", "hosts", "signers", "jwt"))
KEYS_DEFAULTS = Keys("`defaults`", (), ("mode", "mtls"))
KEYS_HOSTS = Keys("`hosts`", (), ("mode", "lifeline"))
KEYS_LIFELINE = Keys("a lifeline rule", _RULE)
KEYS_SIGNER = Keys("a signer", ("name", "level", "key"), ("expires",))
KEYS_POLICY = Keys(
    "the policy",
    ("apiVersion", "kind", "metadata"),
    ("scope", "workloads", "externals", "allow", "never", "exceptions", "tests"),
)
KEYS_METADATA = Keys("`metadata`", ("name",), ("level", "owner"))
KEYS_SCOPE = Keys("`scope`", ("cluster",), ("namespace",))
KEYS_WORKLOAD = Keys("a workload", ("match",), ("labels", "mode", "posture", "spiffe"))
KEYS_EXTERNAL = Keys("an external", (), ("cidr", "except", "fqdn"))
KEYS_ALLOW = Keys("a rule", ("name", *_RULE, "ports"), (*PROSE, "mtls", *BY_REQUEST))
KEYS_EXCEPTION = Keys(
    "an exception", ("name", *_RULE, "ports", "expires", "owner", "ticket"), ("why", "mtls", *BY_REQUEST)
)
KEYS_NEVER = Keys("an invariant", ("name", *_RULE), ("ports", "why"))
KEYS_TEST = Keys("a test", ("from",), ("accept", "deny"))

T = TypeVar("T")


def read_file(path: str, content: bytes) -> Draft:
    """The draft of one file. Nothing is raised for what an author wrote."""
    findings = Findings(path, content)
    composition = compose(content, findings)
    policies: list[DraftPolicy] = []
    repositories: list[DraftRepository] = []
    nodes: list[DraftNode] = []
    trust_bundles: list[DraftTrustBundle] = []
    whole = composition.complete
    foreign: list[ForeignPolicy] = []
    for document in composition.documents:
        head = head_of(document)
        if head is None:
            whole &= _read_document(document, path, policies, repositories, nodes, trust_bundles, findings)
        elif path == REPOSITORY_FILE:
            findings.add("BH0202", head.kind, hint="move it to a file of its own", kind=head.kind.text)
        else:
            foreign += read_documents(document, head, findings)
    whole &= not any(each.code < VALUES_BEGIN for each in findings.diagnostics)
    return Draft(
        path=path,
        policies=tuple(policies),
        repository=repositories[0] if repositories else None,
        diagnostics=tuple(findings.diagnostics),
        dropped=findings.count - len(findings.diagnostics),
        complete=whole,
        cluster_policies=tuple(policy for policy in foreign if isinstance(policy, ClusterPolicy)),
        istio=tuple(policy for policy in foreign if not isinstance(policy, ClusterPolicy)),
        nodes=tuple(nodes),
        trust_bundles=tuple(trust_bundles),
    )


def _read_document(
    node: Node,
    path: str,
    policies: list[DraftPolicy],
    repositories: list[DraftRepository],
    nodes: list[DraftNode],
    trust_bundles: list[DraftTrustBundle],
    findings: Findings,
) -> bool:
    """Adds one document to its list. False when names that it may hold are lost."""
    if isinstance(node, Scalar) and node.plain and not node.text:
        return True
    kind = _read_kind(node, findings)
    if kind is None or not isinstance(node, Mapping):
        return False
    if (kind.text == "Repository") != (path == REPOSITORY_FILE) or (kind.text == "Repository" and repositories):
        findings.add("BH0202", kind, hint=_kind_hint(kind.text, path), kind=kind.text)
        return False
    if kind.text == "Repository":
        repository = _read_repository(node, findings)
        repositories.extend([repository] if repository else [])
        return True
    if kind.text == "Node":
        record = read_node(node, findings)
        nodes.extend([record] if record else [])
        return True
    if kind.text == "TrustBundle":
        trust_bundle = read_trust_bundle(node, findings)
        trust_bundles.extend([trust_bundle] if trust_bundle else [])
        return True
    policy = _read_policy(node, findings)
    policies.extend([policy] if policy else [])
    return policy is not None


def _kind_hint(kind: str, path: str) -> str:
    if kind != "Repository":
        return "move it to a file of its own"
    return "there is one already" if path == REPOSITORY_FILE else f"it belongs in `{REPOSITORY_FILE}` at the root"


def _read_kind(node: Node, findings: Findings) -> Scalar | None:
    """The kind of a document whose version is understood."""
    document = expect_mapping(node, "a document", findings)
    if document is None:
        return None
    head = {key.text: value for key, value in document.entries if key.text in ("apiVersion", "kind")}
    for key in ("apiVersion", "kind"):
        if key not in head:
            findings.add("BH0206", Spot(node.line, node.column), hint=_head_hint(key), what="a document", key=key)
    if len(head) < 2:
        return None
    version = read_text(head["apiVersion"], "`apiVersion`", findings)
    kind = read_text(head["kind"], "`kind`", findings)
    if version and version.text != API_VERSION:
        findings.add("BH0203", version, hint=f"write `{API_VERSION}`, or one of {VERSIONS_HINT}", version=version.text)
        return None
    if kind and kind.text not in KINDS:
        findings.add("BH0204", kind, hint=did_you_mean(kind.text, KINDS, findings), kind=kind.text)
        return None
    return kind if version else None


def _head_hint(key: str) -> str:
    return f"write `apiVersion: {API_VERSION}`" if key == "apiVersion" else "write `kind: Policy`"


def _read_repository(node: Mapping, findings: Findings) -> DraftRepository | None:
    fields = read_mapping(node, KEYS_REPOSITORY, findings) or {}
    trust_domain = read_trust_domain(fields["trustDomain"], findings) if "trustDomain" in fields else None
    defaults = read_mapping(fields["defaults"], KEYS_DEFAULTS, findings) if "defaults" in fields else None
    hosts = read_mapping(fields["hosts"], KEYS_HOSTS, findings) if "hosts" in fields else None
    mode = _optional(defaults, "mode", lambda each: read_word(each, "`mode`", MODES, findings))
    mtls = _optional(defaults, "mtls", lambda each: read_word(each, "`mtls`", MTLS, findings))
    host_mode = _optional(hosts, "mode", lambda each: read_word(each, "`mode`", MODES, findings))
    lifeline = _optional(hosts, "lifeline", lambda each: _read_lifeline(each, findings))
    signers = _optional(fields, "signers", lambda each: _read_signers(each, findings))
    issuers = _optional(fields, "jwt", lambda each: read_issuers(each, findings))
    return DraftRepository(
        trust_domain=trust_domain or "",
        mode=mode or Mode.OBSERVE,
        host_mode=host_mode or Mode.OBSERVE,
        lifeline=lifeline or (),
        signers=signers or (),
        mtls=mtls is not False,
        issuers=issuers or (),
    )


def _optional(fields: dict[str, Node] | None, key: str, read: Callable[[Node], T | None]) -> T | None:
    return read(fields[key]) if fields and key in fields else None


def _read_lifeline(node: Node, findings: Findings) -> tuple[DraftRule, ...]:
    items = expect_items(node, "`lifeline`", findings) or ()
    rules = [_read_lifeline_rule(item, number, findings) for number, item in enumerate(items, start=1)]
    return tuple(rule for rule in rules if rule)


def _read_lifeline_rule(node: Node, number: int, findings: Findings) -> DraftRule | None:
    fields = read_mapping(node, KEYS_LIFELINE, findings)
    if fields is None or len(fields) < len(KEYS_LIFELINE.required):
        return None
    source = _read_peer(fields["from"], "`from`", findings)
    target = _read_target(fields["to"], findings)
    if source is None or target is None:
        return None
    if target.peer.text != "host":
        findings.add("BH0315", target.spot, hint="write it as `host:22`")
        return None
    name = Scalar(f"lifeline-{number}", False, node.line, node.column, node.width)
    return DraftRule(name, source, target.peer, target.ports, _spot(node), kind="lifeline")


def _read_signers(node: Node, findings: Findings) -> tuple[DraftSigner, ...]:
    items = expect_items(node, "`signers`", findings, empty=False) or ()
    signers = [signer for item in items if (signer := _read_signer(item, findings))]
    owners: dict[str, DraftSigner] = {}
    for signer in signers:
        other = owners.setdefault(signer.key, signer)
        if other is not signer:
            related = ((findings.loc(other.spot), f"`{other.name}` is here"),)
            findings.add("BH0404", signer.spot, related=related, name=signer.name, other=other.name)
    return tuple(signers)


def _read_signer(node: Node, findings: Findings) -> DraftSigner | None:
    fields = read_mapping(node, KEYS_SIGNER, findings)
    name = _optional(fields, "name", lambda each: read_signer_name(each, findings))
    level = _optional(fields, "level", lambda each: read_word(each, "`level`", LEVELS, findings))
    key = _optional(fields, "key", lambda each: read_key(each, findings))
    expires = _optional(fields, "expires", lambda each: read_time(each, "`expires`", findings))
    return DraftSigner(name, level, key, _spot(node), expires) if name and level and key else None


def _read_policy(node: Mapping, findings: Findings) -> DraftPolicy | None:
    fields = read_mapping(node, KEYS_POLICY, findings) or {}
    draft = _read_metadata(fields["metadata"], node, findings) if "metadata" in fields else None
    scope = _optional(fields, "scope", lambda each: _read_scope(each, findings))
    read = _skip_workload if scope is None and "scope" in fields else partial(_read_workload, scope)
    workloads = _named(fields.get("workloads"), "`workloads`", read, findings)
    externals = _named(fields.get("externals"), "`externals`", _read_external, findings)
    rules = _listed(fields.get("allow"), "`allow`", _read_allow, findings)
    exceptions = _listed(fields.get("exceptions"), "`exceptions`", _read_exception, findings)
    nevers = _listed(fields.get("never"), "`never`", _read_never, findings)
    tests = _listed(fields.get("tests"), "`tests`", _read_test, findings)
    if draft is None:
        return None
    return draft._replace(
        workloads=workloads, externals=externals, rules=rules + exceptions, nevers=nevers, tests=tests, scope=scope
    )


def _read_metadata(node: Node, document: Mapping, findings: Findings) -> DraftPolicy | None:
    fields = read_mapping(node, KEYS_METADATA, findings)
    if fields is None or "name" not in fields:
        return None
    name = read_name(fields["name"], "`name`", findings)
    level = _optional(fields, "level", lambda each: read_word(each, "`level`", LEVELS, findings))
    owner = _optional(fields, "owner", lambda each: read_words(each, "`owner`", findings))
    if name is None:
        return None
    if name.text == HOSTS:
        findings.add("BH0402", name, name=name.text)
        return None
    return DraftPolicy(name, level or Level.APP, owner or "", _spot(document))


def _named(
    node: Node | None, what: str, read: Callable[[Scalar, Node, Findings], T], findings: Findings
) -> tuple[T, ...]:
    """The values of a mapping from names, each with its name."""
    mapping = expect_mapping(node, what, findings) if node else None
    entries = mapping.entries if mapping else ()
    names = [(_read_own_name(key, findings), value) for key, value in entries]
    return tuple(read(name, value, findings) for name, value in names if name)


def _read_own_name(key: Scalar, findings: Findings) -> Scalar | None:
    """The name of a new workload or external."""
    name = read_name(key, "a name", findings)
    if name is not None and name.text in RESERVED:
        findings.add("BH0402", name, name=name.text)
        return None
    return name


def _listed(
    node: Node | None, what: str, read: Callable[[Node, Findings], T | None], findings: Findings
) -> tuple[T, ...]:
    items = (expect_items(node, what, findings) or ()) if node else ()
    return tuple(value for value in (read(item, findings) for item in items) if value)


def _read_scope(node: Node, findings: Findings) -> Scope | None:
    fields = read_mapping(node, KEYS_SCOPE, findings)
    cluster = _optional(fields, "cluster", lambda each: read_name(each, "`cluster`", findings))
    namespace = _optional(fields, "namespace", lambda each: read_name(each, "`namespace`", findings))
    return Scope(cluster.text, namespace.text if namespace else "") if cluster else None


def _read_workload(scope: Scope | None, name: Scalar, node: Node, findings: Findings) -> DraftWorkload:
    fields = read_mapping(node, KEYS_WORKLOAD, findings)
    match: Match | None = _optional(fields, "match", lambda each: read_match(each, scope, findings))
    labels = _optional(fields, "labels", lambda each: read_labels(each, "`labels`", findings))
    mode = _optional(fields, "mode", lambda each: read_word(each, "`mode`", MODES, findings))
    posture = _optional(fields, "posture", lambda each: read_posture(each, findings))
    if match is not None and match.of_pods and fields is not None and "posture" in fields:
        findings.add("BH0510", _spot(fields["posture"]), hint="remove it")
    spiffe = _optional(fields, "spiffe", lambda each: read_spiffe(each, findings))
    return DraftWorkload(name, match, mode, labels or (), posture or (), spiffe or "")


def _skip_workload(name: Scalar, _node: Node, _findings: Findings) -> DraftWorkload:
    """Of a policy whose scope is not sound: its name is taken, and what it selects cannot be judged."""
    return DraftWorkload(name, None, None, ())


def _read_external(name: Scalar, node: Node, findings: Findings) -> DraftExternal:
    fields = read_mapping(node, KEYS_EXTERNAL, findings)
    if isinstance(node, Mapping):
        _check_known_by_one(node, findings)
    cidr = _optional(fields, "cidr", lambda each: read_networks(each, "`cidr`", findings, empty=False))
    excluded = _optional(fields, "except", lambda each: read_networks(each, "`except`", findings, empty=True))
    fqdn = _optional(fields, "fqdn", lambda each: read_names(each, "`fqdn`", findings))
    return DraftExternal(name, cidr or (), excluded or (), fqdn or ())


def _check_known_by_one(node: Mapping, findings: Findings) -> None:
    """An external is known by its addresses or by its names."""
    keys = {key.text: key for key, _ in node.entries}
    if "fqdn" in keys:
        for key in keys.keys() & {"cidr", "except"}:
            hint = "make two externals; a rule may name both" if key == "cidr" else "names have no exceptions"
            findings.add("BH0210", keys[key], hint=hint, key=key, other="fqdn")
    elif "cidr" not in keys:
        findings.add("BH0206", Spot(node.line, node.column), hint="or `fqdn`", what="an external", key="cidr")


def _read_allow(node: Node, findings: Findings) -> DraftRule | None:
    return _read_rule(node, KEYS_ALLOW, "allow", findings)


def _read_exception(node: Node, findings: Findings) -> DraftRule | None:
    return _read_rule(node, KEYS_EXCEPTION, "exception", findings)


def _read_never(node: Node, findings: Findings) -> DraftRule | None:
    return _read_rule(node, KEYS_NEVER, "never", findings)


def _read_rule(node: Node, keys: Keys, kind: str, findings: Findings) -> DraftRule | None:
    """A rule of any kind; what its kind does not have is not in `keys`."""
    fields = read_mapping(node, keys, findings)
    if fields is None:
        return None
    name = _optional(fields, "name", lambda each: read_name(each, "`name`", findings))
    source = _optional(fields, "from", lambda each: _read_peer(each, "`from`", findings))
    destination = _optional(fields, "to", lambda each: _read_peer(each, "`to`", findings))
    ports = _optional(fields, "ports", lambda each: read_ports(each, "`ports`", findings))
    owner, ticket, why = ((_optional(fields, key, partial(_read_prose, key, findings)) or "") for key in PROSE)
    expires = _optional(fields, "expires", lambda each: read_time(each, "`expires`", findings))
    mtls = _optional(fields, "mtls", lambda each: _read_mtls(each, findings))
    l7 = _optional(fields, "l7", lambda each: read_l7(each, findings))
    authz = _optional(fields, "authz", lambda each: read_authz(each, findings))
    _check_by_request(fields, ports or (), mtls, findings)
    if name is None or source is None or destination is None or (ports is None and kind != "never"):
        return None
    what = name, source, destination, ports or (), _spot(node), kind, expires
    return DraftRule(*what, owner, ticket, why, mtls, l7, authz)


def _read_prose(key: str, findings: Findings, node: Node) -> str | None:
    return read_words(node, f"`{key}`", findings)


def _check_by_request(
    fields: dict[str, Node], ports: tuple[PortSpec, ...], mtls: Scalar | None, findings: Findings
) -> None:
    """What a rule that is judged by request cannot be about."""
    key = next((key for key in BY_REQUEST if key in fields), None)
    if key is None:
        return
    odd = next((port for port in ports if port.protocol != TCP), None)
    if odd is not None:
        hint = "write `any/tcp`" if odd.text == "any" else ""
        findings.add("BH0511", _spot(fields["ports"]), hint=hint, key=key, port=odd.text)
    if mtls is not None and mtls.text == "off":
        findings.add("BH0513", mtls, hint="leave `mtls` out", key=key)


def _read_mtls(node: Node, findings: Findings) -> Scalar | None:
    """What is written, and where."""
    word = read_word(node, "`mtls`", MTLS, findings)
    return node if word is not None and isinstance(node, Scalar) else None


def _read_peer(node: Node, what: str, findings: Findings) -> DraftPeer | None:
    """A name, a list of names, or one mapping of labels."""
    if isinstance(node, Scalar):
        name = read_peer_name(node, what, findings)
        return DraftPeer((name,), (), name.text, _spot(node)) if name else None
    if isinstance(node, Mapping):
        labels = read_labels(node, what, findings)
        text = "{" + ", ".join(f"{key}: {value}" for key, value in labels or ()) + "}"
        return DraftPeer((), labels, text, _spot(node)) if labels else None
    if isinstance(node, Broken):
        return None
    return _read_peer_list(node, what, findings)


def _read_peer_list(node: Sequence, what: str, findings: Findings) -> DraftPeer | None:
    items = expect_items(node, what, findings, empty=False) or ()
    names = tuple(name for item in items if (name := read_peer_name(item, what, findings)))
    if not names or len(names) < len(items):
        return None
    return DraftPeer(names, (), ", ".join(name.text for name in names), _spot(node))


def _read_test(node: Node, findings: Findings) -> DraftTest | None:
    fields = read_mapping(node, KEYS_TEST, findings)
    if fields is None:
        return None
    if not {"accept", "deny"} & fields.keys():
        findings.add("BH0206", Spot(node.line, node.column), what="a test", key="accept", hint="or `deny`, or both")
    source = _optional(fields, "from", lambda each: _read_peer(each, "`from`", findings))
    accept = _listed(fields.get("accept"), "`accept`", _read_expectation, findings)
    deny = _listed(fields.get("deny"), "`deny`", _read_expectation, findings)
    return DraftTest(source, accept, deny, _spot(node)) if source else None


def _read_expectation(node: Node, findings: Findings) -> DraftTarget | None:
    """`PEER:PORT`, or `PEER:PORT METHOD PATH`."""
    text = read_written(node, "a target", findings)
    target, space, request = text.text.partition(" ") if text else ("", "", "")
    if text is None or not space:
        return _read_target(node, findings)
    found = _read_target(text._replace(text=target), findings)
    method, _, path = request.partition(" ")
    if found is None:
        return None
    port = found.ports[0]
    if not METHOD.fullmatch(method) or port.protocol != TCP or port.first != port.last:
        findings.add("BH0314", text, hint=f"write `{found.peer.text}:443 GET /v1/items`", text=text.text)
        return None
    problem, hint = ("it is a pattern, and one request is meant", "") if set(path) & set("*{}") else path_problem(path)
    if problem:
        findings.add("BH0341", text, hint=hint, text=path, problem=problem)
        return None
    return found._replace(text=text.text, method=method, path=path)


def _read_target(node: Node, findings: Findings) -> DraftTarget | None:
    """`PEER:PORT`."""
    text = read_written(node, "a target", findings)
    if text is None:
        return None
    name, colon, port = text.text.partition(":")
    if not colon or not name or not port:
        findings.add("BH0314", text, hint=f"write `{name or 'api'}:443`", text=text.text)
        return None
    if read_text(node, "a target", findings) is None:
        return None
    if not all(is_name(part) for part in name.split("/", 1)):
        findings.add("BH0301", text, text=name)
        return None
    ports = port_of(text, port, findings)
    peer = DraftPeer((text._replace(text=name),), (), name, _spot(text))
    return DraftTarget(peer, ports, text.text, _spot(text)) if ports else None


def _spot(node: Node) -> Spot:
    return Spot(node.line, node.column, node.width)
