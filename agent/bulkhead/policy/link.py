"""All files together: names looked up, rules numbered. The only step that a change of one file repeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.cluster import ClusterPolicy
from bulkhead.policy.dialects.istio import assemble_istio
from bulkhead.policy.dialects.rules import assemble, rule_count
from bulkhead.policy.draft import (
    Draft,
    DraftNode,
    DraftPeer,
    DraftPolicy,
    DraftRule,
    DraftTarget,
    DraftTest,
    DraftWorkload,
)
from bulkhead.policy.fields import did_you_mean
from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import IstioPolicy
from bulkhead.policy.l7 import L7, Issuer
from bulkhead.policy.l7_documents import DraftL7
from bulkhead.policy.model import (
    Entity,
    Expectation,
    External,
    Match,
    Mode,
    Never,
    Peer,
    Policy,
    PolicySet,
    PolicyTest,
    QualifiedName,
    Rule,
    RuleId,
    Signer,
    TrustBundle,
    Workload,
)
from bulkhead.policy.nodes import Clash, Node, clashes, default_number
from bulkhead.policy.source import HOSTS, Sources
from bulkhead.policy.yaml_nodes import Scalar

ENTITIES = {entity.value: entity for entity in Entity}


class Linked(NamedTuple):
    """A PolicySet that holds only when there are no findings."""

    policy_set: PolicySet
    diagnostics: tuple[Diagnostic, ...]
    dropped: int


class _Declared(NamedTuple):
    """A workload or external that a name stands for."""

    qualified: QualifiedName
    external: bool
    loc: Loc


def link(sources: Sources, drafts: Iterable[Draft]) -> Linked:
    """The PolicySet of all drafts, which are those of `sources` in their order."""
    return _Linker(sources, tuple(drafts)).run()


class _Linker:
    """The tables that names are looked up in, filled before the first is."""

    def __init__(self, sources: Sources, drafts: tuple[Draft, ...]) -> None:
        self._sources = sources
        self._drafts = drafts
        self._complete = all(draft.complete for draft in drafts)
        self._contents = {file.path: file.content for file in sources.files}
        self._findings: dict[str, Findings] = {}
        self._policies: dict[str, Policy] = {}
        self._scopes: dict[str, dict[str, _Declared]] = {}
        self._labelled: dict[tuple[str, str], dict[QualifiedName, None]] = {}
        self._peers: dict[tuple[str, str, int], Peer | None] = {}
        self._workloads: list[Workload] = []
        self._externals: list[External] = []
        self._rules: list[Rule] = []
        self._nevers: list[Never] = []
        self._tests: list[PolicyTest] = []
        self._mtls = True
        self._issuers: dict[str, Issuer] = {}

    def run(self) -> Linked:
        repository = next((draft.repository for draft in self._drafts if draft.repository), None)
        default_mode = repository.mode if repository else Mode.OBSERVE
        self._mtls = repository.mtls if repository else True
        self._issuers = {issuer.name: issuer for issuer in (repository.issuers if repository else ())}
        for draft in self._drafts:
            for policy in draft.policies:
                self._declare(policy, draft.path, default_mode)
        for draft in self._drafts:
            self._link_file(draft)
        policy_set = PolicySet(
            commit=self._sources.commit,
            trust_domain=repository.trust_domain if repository else "",
            host_mode=repository.host_mode if repository else Mode.OBSERVE,
            policies=tuple(self._policies.values()),
            workloads=tuple(self._workloads),
            externals=tuple(self._externals),
            rules=tuple(self._rules),
            nevers=tuple(self._nevers),
            tests=tuple(self._tests),
            cluster_policies=self._cluster_policies(),
            istio=self._istio(),
            signers=self._signers(),
            mtls=self._mtls,
            issuers=tuple(replace(one, loc=self._at(one.loc)) for one in self._issuers.values()),
            nodes=self._nodes(),
            trust_bundles=self._trust_bundles(repository.trust_domain if repository else ""),
            files=tuple(file.path for file in self._sources.files),
            sources=self._sources,
        )
        found = list(self._findings.values())
        return Linked(
            policy_set,
            tuple(diagnostic for each in found for diagnostic in each.diagnostics),
            sum(each.count - len(each.diagnostics) for each in found),
        )

    def _cluster_policies(self) -> tuple[ClusterPolicy, ...]:
        policies = (policy for draft in self._drafts for policy in draft.cluster_policies)
        return assemble(policies, len(self._rules), self._in)

    def _istio(self) -> tuple[IstioPolicy, ...]:
        last = len(self._rules) + sum(rule_count(draft.cluster_policies) for draft in self._drafts)
        return assemble_istio((policy for draft in self._drafts for policy in draft.istio), last, self._in)

    def _signers(self) -> tuple[Signer, ...]:
        return tuple(
            Signer(signer.name, signer.level, signer.key, self._in(draft.path).loc(signer.spot), signer.expires)
            for draft in self._drafts
            for signer in (draft.repository.signers if draft.repository else ())
        )

    def _nodes(self) -> tuple[Node, ...]:
        drafts = [(node, draft.path) for draft in self._drafts for node in draft.nodes]
        nodes = [_node(draft, path) for draft, path in drafts]
        places = {id(node): place for node, place in zip(nodes, drafts, strict=True)}
        for clash in clashes([node for node in nodes if not node.revoked]):
            self._report_clash(clash, places[id(clash.node)], places[id(clash.other)])
        return tuple(nodes)

    def _trust_bundles(self, own: str) -> tuple[TrustBundle, ...]:
        found: dict[str, TrustBundle] = {}
        for draft in self._drafts:
            for one in draft.trust_bundles:
                name, findings = one.name.text, self._in(draft.path)
                bundle = TrustBundle(name, one.document, findings.loc(one.spot))
                if name == own:
                    findings.add("BH0413", one.name, name=name)
                elif found.setdefault(name, bundle) is not bundle:
                    self._report_taken(one.name, "trust bundle", draft.path, found[name].loc)
        return tuple(found.values())

    def _report_clash(self, clash: Clash, place: tuple[DraftNode, str], other: tuple[DraftNode, str]) -> None:
        """Once for two that clash, at the later of them."""
        (draft, path), (rival, rival_path) = place, other
        if (path, draft.spot) < (rival_path, rival.spot):
            return
        loc = self._in(rival_path).loc(rival.spots.get(clash.held, rival.name))
        related = ((loc, f"`{clash.other.name}` is here"),)
        if clash.trait == "name":
            self._in(path).add("BH0401", draft.name, related=related, what="node", name=clash.node.name)
            return
        is_default = clash.trait == "number" and draft.number is None
        self._in(path).add(
            "BH0405",
            draft.spots.get(clash.held, draft.name),
            hint="its number is a hash of its name: give it another with `number`" if is_default else "",
            related=related,
            name=clash.node.name,
            other=clash.other.name,
            trait=clash.trait,
            held=clash.shown,
        )

    def _in(self, path: str) -> Findings:
        """The findings of a file."""
        findings = self._findings.get(path)
        if findings is None:
            content = self._contents.get(path, b"")
            findings = self._findings[path] = Findings(path, content, self._sources.abbreviated)
        return findings

    # --- declarations

    def _declare(self, draft: DraftPolicy, path: str, default_mode: Mode) -> None:
        name = draft.name.text
        if name in self._policies:
            self._report_taken(draft.name, "policy", path, self._policies[name].loc)
            return
        loc = self._in(path).loc(draft.spot)
        self._policies[name] = Policy(name, draft.level, draft.owner, loc, draft.scope)
        scope = self._scopes[name] = {}
        for workload in draft.workloads:
            self._declare_workload(name, workload, default_mode, scope, path)
        for external in draft.externals:
            declared = _Declared(QualifiedName(f"{name}/{external.name.text}"), True, self._in(path).loc(external.name))
            other = scope.setdefault(external.name.text, declared)
            if other is not declared:
                self._report_taken(external.name, _noun(other), path, other.loc)
            addresses = external.cidr, external.excluded
            self._externals.append(External(name, external.name.text, *addresses, declared.loc, external.fqdn))

    def _declare_workload(
        self, policy: str, draft: DraftWorkload, default_mode: Mode, scope: dict[str, _Declared], path: str
    ) -> None:
        loc = self._in(path).loc(draft.name)
        mode = draft.mode or default_mode
        what = draft.match or Match(), mode, loc, draft.labels, draft.posture, draft.spiffe
        workload = Workload(policy, draft.name.text, *what)
        scope[draft.name.text] = _Declared(workload.qualified, False, loc)
        self._workloads.append(workload)
        for pair in draft.labels:
            self._labelled.setdefault(pair, {})[workload.qualified] = None

    def _report_taken(self, name: Scalar, what: str, path: str, first: Loc) -> None:
        related = ((first, f"`{name.text}` is here"),)
        self._in(path).add("BH0401", name, related=related, what=what, name=name.text)

    # --- uses

    def _link_file(self, draft: Draft) -> None:
        if draft.repository:
            for rule in draft.repository.lifeline:
                self._link_rule(rule, HOSTS, draft.path)
        for policy in draft.policies:
            rules: dict[str, Scalar] = {}
            nevers: dict[str, Scalar] = {}
            for rule in policy.rules:
                self._check_unique(rule, "rule", rules, draft.path)
                self._link_rule(rule, policy.name.text, draft.path)
            for never in policy.nevers:
                self._check_unique(never, "invariant", nevers, draft.path)
                self._link_never(never, policy.name.text, draft.path)
            for test in policy.tests:
                self._link_test(test, policy.name.text, draft.path)

    def _check_unique(self, rule: DraftRule, what: str, seen: dict[str, Scalar], path: str) -> None:
        first = seen.setdefault(rule.name.text, rule.name)
        if first is not rule.name:
            self._report_taken(rule.name, what, path, self._in(path).loc(first))

    def _link_rule(self, draft: DraftRule, policy: str, path: str) -> None:
        ends = self._link_ends(draft, policy, path)
        if ends is None:
            return
        self._check_mtls(draft, ends, path)
        self._check_by_request(draft, ends, path)
        self._rules.append(
            Rule(
                rule_id=RuleId(len(self._rules) + 1),
                policy=policy,
                name=draft.name.text,
                source=ends[0],
                destination=ends[1],
                ports=draft.ports,
                loc=self._in(path).loc(draft.spot),
                expires=draft.expires,
                owner=draft.owner,
                ticket=draft.ticket,
                why=draft.why,
                kind=draft.kind,
                mtls_off=draft.mtls is not None and draft.mtls.text == "off",
                mtls=self._needs_mtls(draft),
                l7=self._l7(draft.l7),
                authz=draft.authz.text if draft.authz else "",
            )
        )

    def _link_never(self, draft: DraftRule, policy: str, path: str) -> None:
        ends = self._link_ends(draft, policy, path)
        if ends is not None:
            loc = self._in(path).loc(draft.spot)
            self._nevers.append(Never(policy, draft.name.text, *ends, draft.ports, draft.why, loc))

    def _link_ends(self, draft: DraftRule, policy: str, path: str) -> tuple[Peer, Peer] | None:
        source = self._peer(draft.source, policy, path)
        destination = self._peer(draft.destination, policy, path)
        if source is None or destination is None:
            return None
        self._check_ends(source, destination, draft.destination, path)
        return source, destination

    def _check_ends(self, source: Peer, destination: Peer, written: DraftPeer, path: str) -> None:
        one, other = outside(source), outside(destination)
        if one and other:
            self._in(path).add("BH0503", written.spot, source=one, destination=other)

    def _check_mtls(self, draft: DraftRule, ends: tuple[Peer, Peer], path: str) -> None:
        """Only where it is written: as the default it asks for what the ends can do."""
        if draft.mtls is not None and draft.mtls.text == "required":
            for peer in filter(None, map(outside, ends)):
                self._in(path).add("BH0504", draft.mtls, hint="leave it out", peer=peer)

    def _needs_mtls(self, draft: DraftRule) -> bool:
        """What the rule says, or else the repository; requests are judged for a caller who has proven himself."""
        if draft.l7 is not None or draft.authz is not None:
            return True
        return self._mtls if draft.mtls is None else draft.mtls.text == "required"

    def _check_by_request(self, draft: DraftRule, ends: tuple[Peer, Peer], path: str) -> None:
        written = (("l7", draft.l7.key if draft.l7 else None), ("authz", draft.authz))
        for key, spot in written:
            if spot is not None:
                for peer in filter(None, map(_no_workload, ends)):
                    self._in(path).add("BH0512", spot, key=key, peer=peer)
        for name in draft.l7.issuers if draft.l7 else ():
            if name.text not in self._issuers:
                hint = did_you_mean(name.text, self._issuers, self._in(path)) or "`bulkhead.yaml` lists them in `jwt`"
                self._in(path).add("BH0412", name, hint=hint, what="issuer of JWTs", name=name.text)

    def _l7(self, draft: DraftL7 | None) -> L7 | None:
        """The value of a draft, its places at this commit."""
        if draft is None:
            return None
        entries = tuple(replace(entry, loc=self._at(entry.loc)) for entry in draft.value.http)
        return replace(draft.value, loc=self._at(draft.value.loc), http=entries)

    def _at(self, loc: Loc) -> Loc:
        return replace(loc, commit=self._sources.abbreviated)

    def _link_test(self, draft: DraftTest, policy: str, path: str) -> None:
        source = self._peer(draft.source, policy, path)
        accept = self._link_targets(draft.accept, source, policy, path)
        deny = self._link_targets(draft.deny, source, policy, path)
        if source is not None:
            self._tests.append(PolicyTest(policy, source, accept, deny, self._in(path).loc(draft.spot)))

    def _link_targets(
        self, drafts: tuple[DraftTarget, ...], source: Peer | None, policy: str, path: str
    ) -> tuple[Expectation, ...]:
        """One expectation for each protocol of each target: a target such as `web:icmp` spans two."""
        expectations: list[Expectation] = []
        for draft in drafts:
            peer = self._peer(draft.peer, policy, path)
            if peer is None:
                continue
            if source is not None:
                self._check_ends(source, peer, draft.peer, path)
            loc = self._in(path).loc(draft.spot)
            expectations.extend(
                Expectation(peer, port, draft.text, loc, draft.method, draft.path) for port in draft.ports
            )
        return tuple(expectations)

    # --- peers

    def _peer(self, draft: DraftPeer, policy: str, path: str) -> Peer | None:
        """The peer that is meant; None when a name in it is unknown, which is recorded. Most are asked for often."""
        key = (policy, draft.text, len(draft.names))
        known = self._peers.get(key)
        if known is not None:
            return known
        peer = self._select(draft) if draft.labels else self._join(draft, policy, path)
        if peer is not None:
            self._peers[key] = peer
        return peer

    def _select(self, draft: DraftPeer) -> Peer:
        """Every workload that carries all the labels, in the order of their declaration."""
        first, *others = (self._labelled.get(pair, {}) for pair in draft.labels)
        members = tuple(name for name in first if all(name in other for other in others))
        return Peer(workloads=members, text=draft.text)

    def _join(self, draft: DraftPeer, policy: str, path: str) -> Peer | None:
        found = [self._find(name, policy, path) for name in draft.names]
        if None in found:
            return None
        unique = dict.fromkeys(found)
        return Peer(
            workloads=tuple(each.qualified for each in unique if isinstance(each, _Declared) and not each.external),
            externals=tuple(each.qualified for each in unique if isinstance(each, _Declared) and each.external),
            entities=tuple(each for each in unique if isinstance(each, Entity)),
            text=draft.text,
        )

    def _find(self, name: Scalar, policy: str, path: str) -> _Declared | Entity | None:
        entity = ENTITIES.get(name.text)
        if entity is Entity.UNKNOWN:
            self._in(path).add("BH0403", name)
            return None
        if entity is not None:
            return entity
        scope, _, rest = name.text.rpartition("/")
        if policy == HOSTS and not scope:
            return self._find_anywhere(name, path)
        declared = self._scopes.get(scope or policy, {}).get(rest)
        if declared is None:
            self._report_unknown(name, policy, path)
        return declared

    def _find_anywhere(self, name: Scalar, path: str) -> _Declared | None:
        """A bare name of `bulkhead.yaml`."""
        found = [scope[name.text] for scope in self._scopes.values() if name.text in scope]
        if len(found) == 1:
            return found[0]
        if found:
            related = tuple((each.loc, f"`{each.qualified}`") for each in found)
            self._in(path).add("BH0411", name, hint=f"write `{found[0].qualified}`", related=related, name=name.text)
        else:
            self._report_unknown(name, HOSTS, path)
        return None

    def _report_unknown(self, name: Scalar, policy: str, path: str) -> None:
        """Nothing, while a file that may hold the name could not be read: it would only mislead."""
        if not self._complete:
            return
        findings = self._in(path)
        scope, _, rest = name.text.rpartition("/")
        if scope and scope not in self._scopes:
            hint = did_you_mean(scope, self._scopes, findings)
            findings.add("BH0412", name, hint=hint, what="policy", name=scope)
            return
        names = _visible_from(scope or policy, self._scopes)
        hint = did_you_mean(rest, names, findings) or self._elsewhere(rest, bool(scope))
        findings.add("BH0412", name, hint=_located(hint, names, path), what="workload or external", name=name.text)

    def _elsewhere(self, name: str, qualified: bool) -> str:
        """A hint at another policy that has the name."""
        owners = (scope[name].qualified for scope in self._scopes.values() if name in scope)
        owner = None if qualified else next(owners, None)
        return f"did you mean `{owner}`?" if owner else ""


def _visible_from(policy: str, scopes: Mapping[str, Mapping[str, _Declared]]) -> dict[str, _Declared | None]:
    """What a bare name can mean in a policy. In `hosts`, everything."""
    visible: dict[str, _Declared | None] = {entity: None for entity in ENTITIES if entity != Entity.UNKNOWN}
    for scope in scopes.values() if policy == HOSTS else [scopes.get(policy, {})]:
        visible.update(scope)
    return visible


def _located(hint: str, names: Mapping[str, _Declared | None], path: str) -> str:
    """A hint at a name, with the line that the name is on."""
    suggested = hint.removeprefix("did you mean `").removesuffix("`?")
    declared = names.get(suggested)
    if not hint or declared is None:
        return hint
    place = f"line {declared.loc.line}" if declared.loc.file == path else f"{declared.loc.file}:{declared.loc.line}"
    return f"{hint} ({place})"


def _node(draft: DraftNode, path: str) -> Node:
    name = draft.name.text
    number = default_number(name) if draft.number is None else draft.number
    origin = f"{path}:{draft.spot.line}"
    return Node(name, number, draft.addresses, draft.key, draft.unknown, draft.revoked, origin, draft.ca)


def _noun(declared: _Declared) -> str:
    return "external" if declared.external else "workload"


def _no_workload(peer: Peer) -> str:
    """The first member of a peer that is no workload; empty when there is none."""
    return outside(peer) or ("host" if Entity.HOST in peer.entities else "")


def outside(peer: Peer) -> str:
    """The first member of a peer that is no end Bulkhead stands at; empty when there is none."""
    if peer.externals:
        return peer.externals[0]
    return next((str(entity) for entity in (Entity.WORLD, Entity.LEGACY) if entity in peer.entities), "")
