"""The JSON Schema of the language, for editors that complete and check while one writes.

Made from the same tables of keys that the parser reads by, so that neither can know a key that the other does not. It
judges form alone: names that do not resolve, globs, invariants and tests are for `bulkhead lint` and `bulkhead test`.
`python -m bulkhead.policy.schema` prints docs/schema/v1alpha1.json.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from bulkhead.policy import (
    issuers,
    keys,
    l7_documents,
    match,
    node_documents,
    nodes,
    posture,
    read,
    spiffe,
    trust_documents,
    values,
)
from bulkhead.policy.fields import Keys
from bulkhead.policy.ports import ICMP_TYPES, PORT_MAX
from bulkhead.policy.source import HOSTS

Schema = dict[str, Any]

DIALECT: Final = "http://json-schema.org/draft-07/schema#"
"""The newest that every editor's language server reads."""

_NAME: Final = values._NAME.pattern
_NUMBER: Final = "[1-9][0-9]{0,4}"
_ICMP: Final = f"icmp(/({'|'.join(ICMP_TYPES)}))?"
_PORT: Final = f"any|{_ICMP}|proto/[0-9]{{1,3}}|(any|{_NUMBER}(-{_NUMBER})?)(/(tcp|udp))?"
_DNS_LABEL: Final = "[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?"
_FQDN: Final = rf"(\*\.)?{_DNS_LABEL}(\.{_DNS_LABEL})+\.?"
_PEER_NAME: Final = f"{_NAME}(/{_NAME})?"


def _matching(pattern: str, what: str) -> Schema:
    return {"type": "string", "pattern": f"^({pattern})$", "description": what}


def _word(words: dict[str, Any], what: str) -> Schema:
    return {"enum": list(words), "description": what}


def _prose(what: str) -> Schema:
    return {"type": "string", "minLength": 1, "description": what}


def _list(items: Schema, what: str, *, empty: bool = True) -> Schema:
    return {"type": "array", "items": items, "description": what, **({} if empty else {"minItems": 1})}


def _one_or_many(item: Schema, what: str) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}], "description": what}


def _see(name: str, what: str = "") -> Schema:
    # Beside a reference draft 7 ignores everything, so the description needs a level of its own.
    return {"allOf": [{"$ref": f"#/definitions/{name}"}], "description": what} if what else _ref(name)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _object(keys: Keys, fields: dict[str, Schema], what: str, **more: Any) -> Schema:
    """A mapping of these keys and no others. Raises KeyError when a key has no schema."""
    return {
        "type": "object",
        "description": what,
        "properties": {key: fields[key] for key in keys.known()},
        "required": list(keys.required),
        "additionalProperties": False,
        **more,
    }


def _named(definition: str, what: str) -> Schema:
    """A mapping from new names."""
    names = {"pattern": f"^({_NAME})$", "not": {"enum": sorted(values.RESERVED)}}
    return {"type": "object", "propertyNames": names, "additionalProperties": _ref(definition), "description": what}


_ACCOUNT: Final = {
    "anyOf": [
        {"type": "string", "pattern": f"^({match._USER.pattern}|0|[1-9][0-9]{{0,9}})$"},
        {"type": "integer", "minimum": 0, "maximum": match.UID_MAX},
    ]
}
_PATH: Final = {"type": "string", "pattern": "^/"}

_MATCH: Final[dict[str, Schema]] = {
    "host": _one_or_many(
        {"type": "string", "pattern": f"^({match._HOST.pattern})$"},
        "Glob over the host's name: limits where the workload can be.",
    ),
    "unit": _one_or_many(
        {"type": "string", "pattern": "^[^/]+$"}, "Glob over the systemd unit, such as `nginx.service`."
    ),
    "cgroup": _one_or_many(
        _PATH, "Glob over the control group path; covers the subtree. `*` and `?` stay within a component."
    ),
    "exe": _one_or_many(_PATH, "Path of the executable with all symbolic links resolved; no globs."),
    "user": _one_or_many(_ACCOUNT, "Effective user when the socket was opened: name or number."),
    "group": _one_or_many(_ACCOUNT, "Primary group when the socket was opened: name or number."),
    "all": {"const": True, "description": "Every attested endpoint; stands alone, with `host` at most."},
    "namespace": _one_or_many(
        {"type": "string", "pattern": f"^({match._POD_PATTERNS['namespace'].pattern})$"},
        "Glob over the pod's namespace. Left out where the policy's scope has one.",
    ),
    "serviceAccount": _one_or_many(
        {"type": "string", "pattern": f"^({match._POD_PATTERNS['serviceAccount'].pattern})$"},
        "Glob over the pod's service account.",
    ),
    "labels": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^({match._POD_LABEL_KEY.pattern})$"},
        "additionalProperties": {"type": "string", "pattern": f"^({match._POD_LABEL_VALUE.pattern})$"},
        "description": "Labels that the pod carries, all of them, exactly.",
    },
}

_POSTURE: Final[dict[str, Schema]] = {
    "digest": _list(
        {"type": "string", "pattern": f"^{posture.DIGEST.pattern}$"},
        "SHA-256 of the executable: any of these.",
        empty=False,
    ),
    "hardening": _ref("hardening"),
    "package": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^({posture.PACKAGE.pattern})$"},
        "additionalProperties": _matching(posture.PACKAGE_VERSION.pattern, "Such as >= 1.22."),
        "description": "Versions of installed Debian packages.",
    },
    "kernel": _matching(posture.KERNEL_VERSION.pattern, "Version of the running kernel, such as >= 6.1."),
    "node": _list(_see("name"), "Health files that the operator's own checks keep fresh.", empty=False),
}

_HARDENING: Final[dict[str, Schema]] = {
    "NoNewPrivileges": {"const": True, "description": "No exec can gain privileges."},
    "Seccomp": {"const": "filter", "description": "A filter of system calls is in force."},
    "CapabilityBoundingSet": _list(
        {"enum": list(posture.CAPABILITIES)}, "Capabilities that the bounding set may have, and no others."
    ),
}

_RULE: Final[dict[str, Schema]] = {
    "name": _see("name", "Unique among the rules of the policy."),
    "from": _see("peer", "Who opens the conversation."),
    "to": _see("peer", "Who is connected to; the ports are its."),
    "ports": _list(_ref("port"), "What may be connected to.", empty=False),
    "owner": _prose("Who answers for it."),
    "ticket": _prose("Where it was agreed."),
    "why": _prose("The reason, shown with verdicts."),
    "mtls": _word(read.MTLS, "Whether both ends must prove who they are; `required` unless written."),
    "expires": _matching(values._TIME.pattern, "When it lapses, such as 2027-01-31T18:00:00Z; kept by the kernel."),
    "l7": _see("l7", "What requests, or server names, it is limited to; needs TCP and workloads at both ends."),
    "authz": _see("authz", "Who else is asked about each request."),
}

_VALUE: Final = {"type": "string", "minLength": 1, "maxLength": l7_documents.TEXT_MAX}
_REQUEST_PATH: Final = {**_VALUE, "pattern": "^/[^?#;]*$"}
_SCALAR_VALUE: Final = {"anyOf": [_VALUE, {"type": "number"}]}


def _some(items: Schema, what: str) -> Schema:
    return {**_list(items, what, empty=False), "maxItems": l7_documents.VALUES_MAX}


_L7: Final[dict[str, Schema]] = {
    "http": {
        **_list(_ref("http"), "Requests: any of these.", empty=False),
        "maxItems": l7_documents.ENTRIES_MAX,
    },
    "sni": _some(
        {"type": "string", "pattern": f"^({l7_documents.SERVER_NAME.pattern})$"},
        "Server names of TLS that the workloads speak themselves.",
    ),
}

_HTTP: Final[dict[str, Schema]] = {
    "methods": _some({"type": "string", "pattern": f"^({l7_documents.METHOD.pattern})$"}, "Any of these methods."),
    "path": {**_REQUEST_PATH, "description": "Exact, `/*` behind it for all below it, or with {*} and {**} segments."},
    "paths": _some(_REQUEST_PATH, "Any of these paths."),
    "hosts": _some({"type": "string", "pattern": f"^({l7_documents.HOST.pattern})$"}, "Any of these hosts."),
    "headers": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^({l7_documents.HEADER.pattern})$"},
        "additionalProperties": {"anyOf": [_SCALAR_VALUE, _ref("header")]},
        "description": "All of these headers.",
    },
    "jwt": _see("jwtMatch", "A JWT that the request carries."),
}

_HEADER_KINDS: Final[dict[str, Schema]] = {
    "exact": {**_SCALAR_VALUE, "description": "The whole value."},
    "prefix": {**_SCALAR_VALUE, "description": "What it begins with."},
    "suffix": {**_SCALAR_VALUE, "description": "What it ends in."},
    "regex": {**_SCALAR_VALUE, "description": "An expression of RE2 for the whole value."},
    "present": {"const": True, "description": "The header is there, whatever its value."},
}

_JWT: Final[dict[str, Schema]] = {
    "issuer": _see("name", "As `jwt` of the repository calls it."),
    "subjects": _some(_SCALAR_VALUE, "Any of these subjects."),
    "audiences": _some(_SCALAR_VALUE, "Any of these audiences."),
    "claims": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [_SCALAR_VALUE, _some(_SCALAR_VALUE, "Any of these.")]},
        "description": "All of these claims, of a list one; realm.roles is a claim in a claim.",
    },
}

_ISSUER: Final[dict[str, Schema]] = {
    "issuer": {**_VALUE, "description": "What `iss` says."},
    "audiences": _list(_SCALAR_VALUE, "Of which `aud` must hold one; left out: any.", empty=False),
    "jwks": {"type": "string", "minLength": 1, "description": "JSON Web Key Set, as text."},
}

_API_VERSION: Final[Schema] = {"const": read.API_VERSION, "description": "The version of the language."}

_POLICY: Final[dict[str, Schema]] = {
    "apiVersion": _API_VERSION,
    "kind": {"const": "Policy", "description": "A policy; a file may hold several."},
    "metadata": _ref("metadata"),
    "scope": _ref("scope"),
    "workloads": _named("workload", "Named sets of endpoints. Each has one identity."),
    "externals": _named("external", "Named sets of addresses outside."),
    "allow": _list(_ref("allow"), "What may talk to what. What no rule allows is refused; order never matters."),
    "never": _list(_ref("never"), "Invariants: a commit with a rule that breaks one is refused."),
    "exceptions": _list(_ref("exception"), "Allows that end."),
    "tests": _list(_ref("test"), "What must reach and what must not. A commit that fails one is refused."),
}

_REPOSITORY: Final[dict[str, Schema]] = {
    "apiVersion": _API_VERSION,
    "kind": {"const": "Repository", "description": "The repository itself, in `bulkhead.yaml` at its root."},
    "trustDomain": _matching(values._TRUST_DOMAIN.pattern, "First part of every SPIFFE ID."),
    "defaults": _ref("defaults"),
    "hosts": _ref("hosts"),
    "signers": _list(
        _ref("signer"),
        "Who may write policies, from the next commit on. Without it commits need no signature.",
        empty=False,
    ),
    "jwt": {
        **_named("issuer", "Who may sign the JWTs that rules ask for."),
        "minProperties": 1,
        "maxProperties": issuers.ISSUERS_MAX,
    },
}

_SIGNER: Final[dict[str, Schema]] = {
    "name": _matching(values._SIGNER.pattern, "Who it is, such as ann@example.org."),
    "level": _word(read.LEVELS, "The highest level of policy that the key may sign."),
    "key": _matching(
        f"({'|'.join(keys.KEY_TYPES).replace('.', '[.]')}) +[A-Za-z0-9+/]+=*( .*)?"
        f"|{keys.OPENPGP}{keys._FINGERPRINT.pattern.replace('|', f'|{keys.OPENPGP}')}",
        "An OpenSSH public key, or `openpgp:` and the whole fingerprint of an OpenPGP key.",
    ),
    "expires": _matching(values._TIME.pattern, "When the key stops counting, such as 2027-01-31T18:00:00Z."),
}

_NODE: Final[dict[str, Schema]] = {
    "apiVersion": _API_VERSION,
    "kind": {"const": "Node", "description": "A machine of the trust domain; a file may hold several."},
    "metadata": _ref("nodeMetadata"),
    "addresses": _list(
        _ref("prefix"), "Where it is reached, translated addresses and networks that it routes included.", empty=False
    ),
    "key": _matching("[A-Za-z0-9+/]{43}=", "The X25519 public key of its agent, in base64. Left out: it runs none."),
    "number": {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": nodes.NUMBER_MAX},
            {"type": "string", "pattern": f"^{node_documents.NUMBER.pattern}$"},
        ],
        "description": "What its packets carry. Left out: a hash of its name.",
    },
    "unknown": _word(
        node_documents.UNKNOWNS,
        "What comes from it and does not say who is talking: refused (`deny`, unless written), or judged by `address`.",
    ),
    "revoked": {"type": "boolean", "description": "Its key proves nothing any more."},
    "ca": {
        **_list(
            {"type": "string", "pattern": "[A-Za-z0-9+/]"},
            "Certificates of its authority, in base64 or PEM; two while it is replaced.",
            empty=False,
        ),
        "maxItems": nodes.AUTHORITIES_MAX,
    },
}

_TRUST_BUNDLE: Final[dict[str, Schema]] = {
    "apiVersion": _API_VERSION,
    "kind": {"const": "TrustBundle", "description": "What vouches for the workloads of another trust domain."},
    "metadata": _ref("trustBundleMetadata"),
    "bundle": {"type": "string", "description": "A SPIFFE bundle document, as text.", "pattern": "[{]"},
}

_TRUST_BUNDLE_METADATA: Final[dict[str, Schema]] = {
    "name": _matching(values._TRUST_DOMAIN.pattern, "The trust domain."),
}

_NODE_METADATA: Final[dict[str, Schema]] = {
    "name": _matching(nodes.NAME.pattern, "As its agent's setting `host`; unique in the repository."),
}

_SCOPE: Final[dict[str, Schema]] = {
    "cluster": _see("name", "The cluster's name, as its agents are told it."),
    "namespace": _see("name", "The one namespace that the workloads are in; left out: `match` says."),
}

_OTHERS: Final[dict[str, Schema]] = {
    "mode": _word(read.MODES, "Whether refusals are only counted (`observe`) or drop packets (`enforce`)."),
    "mtls": _RULE["mtls"],
    "lifeline": _list(_ref("lifeline"), "Rules that keep you in."),
    "level": _word(read.LEVELS, "Who may write it; not a precedence."),
    "owner": _prose("The team that answers for the policy."),
    "name": {**_matching(_NAME, "Unique in the repository."), "not": {"const": HOSTS}},
    "match": _ref("match"),
    "labels": _see("labels", "What rules may select the workload by."),
    "posture": _ref("posture"),
    "spiffe": _matching(spiffe.TEMPLATE.pattern, "Path of its SPIFFE ID; {host} is the name of the node."),
    "cidr": _list(_ref("prefix"), "Its addresses.", empty=False),
    "except": _list(_ref("prefix"), "Addresses that are not among them."),
    "fqdn": _list(_ref("fqdn"), "DNS names, instead of addresses.", empty=False),
    "from": _RULE["from"],
    "accept": _list(_ref("target"), "Every member of `from` reaches every member of these."),
    "deny": _list(_ref("target"), "No member of `from` reaches any member of these."),
}


def schema() -> Schema:
    """The schema of one document of a policy repository."""
    return {
        "$schema": DIALECT,
        "title": read.API_VERSION,
        "description": "One document of a Bulkhead policy repository.",
        "oneOf": [_ref("repository"), _ref("policy"), _ref("node"), _ref("trustBundle")],
        "definitions": {**_scalars(), **_mappings()},
    }


def _scalars() -> dict[str, Schema]:
    label = f"^({values._LABEL.pattern})$"
    peer = _matching(_PEER_NAME, "A name of this policy, `policy/name` of another, `any`, `host`, `world` or `legacy`.")
    return {
        "name": {"type": "string", "pattern": f"^({_NAME})$"},
        "labels": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": label},
            "additionalProperties": {"type": "string", "pattern": label},
        },
        "peer": {"anyOf": [peer, _list(peer, "Any of these.", empty=False), _see("labels", "All that carry these.")]},
        "port": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": PORT_MAX},
                _matching(_PORT, "Such as 8000-8100, 53/udp, icmp/echo, proto/47 or any; numbers alone are TCP."),
            ]
        },
        "target": _matching(
            f"{_PEER_NAME}:({_PORT}|{_NUMBER} {l7_documents.METHOD.pattern} /[^?#;*{{}}]*)",
            "PEER:PORT, or PEER:PORT METHOD PATH for one request.",
        ),
        "prefix": _matching(values._PREFIX.pattern, "An address or a prefix without host bits."),
        "fqdn": _matching(_FQDN, "A whole name, such as s3.example.com; `*` may stand for the first label."),
    }


def _mappings() -> dict[str, Schema]:
    pods = {"anyOf": [{"required": [key]} for key in match.OF_PODS]}
    alone = [
        {"if": {"required": ["all"]}, "then": {"propertyNames": {"enum": ["all", "host"]}}},
        {"if": pods, "then": {"propertyNames": {"enum": list(match.OF_PODS)}}},
    ]
    known = {
        "oneOf": [{"required": ["cidr"]}, {"required": ["fqdn"]}],
        "dependencies": {"except": ["cidr"]},
    }
    either = {"anyOf": [{"required": ["accept"]}, {"required": ["deny"]}]}
    lifeline = {**_RULE, "to": _matching(f"host:({_PORT})", "host:PORT")}
    return {
        "repository": _object(read.KEYS_REPOSITORY, _REPOSITORY, "The repository: once, in bulkhead.yaml."),
        "defaults": _object(read.KEYS_DEFAULTS, _OTHERS, "What holds where a workload or a rule says nothing."),
        "hosts": _object(read.KEYS_HOSTS, _OTHERS, "The machines themselves."),
        "lifeline": _object(read.KEYS_LIFELINE, lifeline, "A rule to the host."),
        "policy": _object(read.KEYS_POLICY, _POLICY, "Workloads, and what may talk to what."),
        "metadata": _object(read.KEYS_METADATA, _OTHERS, "Whose policy it is."),
        "node": _object(node_documents.KEYS_NODE, _NODE, "A machine of the trust domain."),
        "nodeMetadata": _object(node_documents.KEYS_NODE_METADATA, _NODE_METADATA, "Which machine it is."),
        "trustBundle": _object(
            trust_documents.KEYS_TRUST_BUNDLE, _TRUST_BUNDLE, "What vouches for another trust domain."
        ),
        "trustBundleMetadata": _object(
            trust_documents.KEYS_TRUST_BUNDLE_METADATA, _TRUST_BUNDLE_METADATA, "Which trust domain it is."
        ),
        "signer": _object(read.KEYS_SIGNER, _SIGNER, "A key that commits may be signed with."),
        "scope": _object(read.KEYS_SCOPE, _SCOPE, "The part of a Kubernetes cluster that the workloads are pods of."),
        "workload": _object(read.KEYS_WORKLOAD, _OTHERS, "A set of endpoints."),
        "posture": _object(
            posture.KEYS_POSTURE, _POSTURE, "What it must be found to be; else it matches nothing.", minProperties=1
        ),
        "hardening": _object(
            posture.KEYS_HARDENING, _HARDENING, "What the kernel attests of each process.", minProperties=1
        ),
        "match": _object(match.MATCH, _MATCH, "Keys AND, a list ORs.", minProperties=1, allOf=alone),
        "external": _object(read.KEYS_EXTERNAL, _OTHERS, "`cidr` less `except`, or `fqdn`.", **known),
        "allow": _object(read.KEYS_ALLOW, _RULE, "A rule. It opens both ends."),
        "exception": _object(read.KEYS_EXCEPTION, _RULE, "A rule that ends."),
        "l7": _object(l7_documents.KEYS_L7, _L7, "Requests or server names.", minProperties=1, maxProperties=1),
        "http": _object(l7_documents.KEYS_HTTP, _HTTP, "Keys AND, a list ORs.", minProperties=1),
        "header": _object(
            l7_documents.KEYS_HEADER, _HEADER_KINDS, "How a header compares.", minProperties=1, maxProperties=1
        ),
        "jwtMatch": _object(l7_documents.KEYS_JWT, _JWT, "A JWT; keys AND, a list ORs."),
        "authz": _object(
            l7_documents.KEYS_AUTHZ,
            {"rego": _matching(l7_documents.PACKAGE.pattern, "Package of the repository's Rego, such as shop.orders.")},
            "Who else is asked about each request.",
        ),
        "issuer": _object(issuers.KEYS_ISSUER, _ISSUER, "Who may sign JWTs."),
        "never": _object(read.KEYS_NEVER, _RULE, "An invariant; without `ports` about all of them."),
        "test": _object(read.KEYS_TEST, _OTHERS, "Expectations, judged as if all modes were enforce.", **either),
    }


def document() -> str:
    """docs/schema/v1alpha1.json."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
