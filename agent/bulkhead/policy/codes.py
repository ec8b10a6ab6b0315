"""Every finding about a policy: its code, its message, and why it is one. The only list of them.

Codes never change their meaning and are never used again. `python -m bulkhead.policy.codes` prints docs/errors.md.

    01xx  text and YAML         06xx  identity
    02xx  structure             07xx  capacity
    03xx  values                08xx  repository
    04xx  names                 09xx  bundles, the kernel
    05xx  meaning, invariants   10xx  lint
    11xx  signatures, source    12xx  Kubernetes dialects
    13xx  Istio dialects        14xx  Rego
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

VALUE_MAX = 80
"""Longest piece of an author's text, in characters, that a message repeats."""

GROUPS = {
    "01": "Text and YAML",
    "02": "Structure",
    "03": "Values",
    "04": "Names",
    "05": "Meaning and invariants",
    "06": "Identity",
    "07": "Capacity",
    "08": "Repository",
    "09": "Bundles and the kernel",
    "10": "Lint",
    "11": "Signatures and source",
    "12": "Kubernetes dialects",
    "13": "Istio dialects",
    "14": "Rego",
}


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding.

    `template` is the message, filled in by `message`. `example` is a file that gives the finding, or, where no single
    file can, what has to be done for it.
    """

    number: str
    template: str
    explanation: str
    example: str
    severity: str = "error"


def _warning(number: str, template: str, explanation: str, example: str) -> Code:
    return Code(number, template, explanation, example, "warning")


_HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\n"
_SHOP = _HEAD + "workloads:\n  web: {match: {unit: nginx.service}}\n  api: {match: {unit: api.service}}\n"
_REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\n"
_NODE = "apiVersion: bulkhead/v1alpha1\nkind: Node\nmetadata: {name: web-1}\naddresses: [192.0.2.1]\n"
_TRUST_BUNDLE = "apiVersion: bulkhead/v1alpha1\nkind: TrustBundle\nmetadata: {name: partner.example}\n"
_NETPOL = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\n"
_CNP = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: base}\n"
    "spec:\n  tier: Admin\n  priority: 10\n  subject: {namespaces: {}}\n"
)

_TEXT = (
    Code(
        "BH0100",
        "{count} further findings are not shown",
        "At most 20 findings are shown for a commit. Mend these first: the rest may follow from them.",
        "a commit with more than 20 findings",
    ),
    Code(
        "BH0101",
        "this is not YAML: {problem}",
        "The file cannot be read as YAML, so nothing behind this place was looked at.",
        _HEAD + "workloads: {web: {match: {unit: nginx.service}}\n",
    ),
    Code(
        "BH0102",
        "this is not UTF-8",
        "Policies are UTF-8 text, so that everybody reads the same characters.",
        "a byte such as 0xff in a file",
    ),
    Code(
        "BH0103",
        "`*` starts a YAML alias here",
        "Aliases repeat what was written elsewhere, out of sight of a reviewer, and can grow a small file without "
        "bound. A glob that begins with `*` needs quotes.",
        _HEAD + "workloads:\n  web: {match: {host: *.example.org, unit: nginx.service}}\n",
    ),
    Code(
        "BH0104",
        "`&` starts a YAML anchor here",
        "Anchors serve aliases, which policies do not have. Text that begins with `&` needs quotes.",
        _HEAD + "workloads:\n  web: &web {match: {unit: nginx.service}}\n",
    ),
    Code(
        "BH0105",
        "a YAML tag or directive has no place in a policy",
        "A tag (`!!str`) or directive (`%TAG`) changes what the text behind it means.",
        _HEAD + "workloads:\n  web: !!map {match: {unit: nginx.service}}\n",
    ),
    Code(
        "BH0106",
        "`<<` merges another mapping in here",
        "Merge keys bring in keys that are not written at the place where they count.",
        _HEAD + "workloads:\n  web:\n    <<: {}\n    match: {unit: nginx.service}\n",
    ),
    Code(
        "BH0107",
        "key `{key}` is written twice",
        "Many YAML readers keep the last of two equal keys without a word, so the first would be lost.",
        _HEAD + "metadata: {name: store}\n",
    ),
    Code(
        "BH0108",
        "a key must be plain text",
        "A list or mapping as a key means nothing in a policy.",
        _HEAD + "workloads:\n  ? [web]\n  : {match: {unit: nginx.service}}\n",
    ),
    Code(
        "BH0109",
        "nested deeper than {limit} levels",
        "No policy needs it, and readers that recurse would fail on it.",
        _HEAD + "workloads: " + "[" * 40 + "]" * 40 + "\n",
    ),
    Code(
        "BH0110",
        "character {character} is not allowed here",
        "Characters that cannot be seen, that end a line for some readers only, or that change the direction of text "
        "make a file look like something it is not.",
        _HEAD + 'never:\n  - {name: quiet, from: any, to: world, why: "see\\u202e"}\n',
    ),
    Code(
        "BH0111",
        "`{text}` is {meaning} to YAML, not text",
        "Some YAML readers turn this unquoted text into something else. Quotes make it text for all of them.",
        _REPOSITORY + "trustDomain: example.org\ndefaults: {mtls: off}\n",
    ),
)

_STRUCTURE = (
    Code(
        "BH0201",
        "the repository has no `kind: Repository` in `bulkhead.yaml`",
        "One `kind: Repository` document, in `bulkhead.yaml` at the root, names the trust domain.",
        "a repository without the file `bulkhead.yaml`",
    ),
    Code(
        "BH0202",
        "`kind: {kind}` does not belong here",
        "`bulkhead.yaml` at the root holds exactly one `kind: Repository` document; every other YAML file holds "
        "`kind: Policy` and `kind: Node` documents or Kubernetes policies.",
        _REPOSITORY + "trustDomain: example.org\n",
    ),
    Code(
        "BH0203",
        "`{version}` is not a version of the policy language",
        "The version says which meaning a file was written for: `bulkhead/v1alpha1`, or that of a Kubernetes policy.",
        "apiVersion: bulkhead/v2\nkind: Policy\nmetadata: {name: shop}\n",
    ),
    Code(
        "BH0204",
        "`{kind}` is not a kind of document",
        "Documents are `kind: Policy`, `kind: Node` or `kind: Repository`.",
        "apiVersion: bulkhead/v1alpha1\nkind: Polcy\nmetadata: {name: shop}\n",
    ),
    Code(
        "BH0205",
        "unknown key `{key}` in {what}",
        "A key that nobody reads is most likely a misspelt one that somebody relies on.",
        _HEAD + "workload: {}\n",
    ),
    Code(
        "BH0206",
        "{what} needs `{key}`",
        "A required key is missing.",
        _HEAD + "allow:\n  - {name: web-api, from: any, to: any}\n",
    ),
    Code(
        "BH0207",
        "{what} must be {wanted}, not {found}",
        "The value has another shape than the language gives it.",
        _HEAD + "allow:\n  - {name: web-api, from: any, to: any, ports: 443}\n",
    ),
    Code(
        "BH0209",
        "{what} must not be empty",
        "An empty list or mapping is more likely a slip than a wish. A selector of everything is written `all: true`.",
        _HEAD + "workloads:\n  web: {match: {}}\n",
    ),
    Code(
        "BH0210",
        "`{key}` does not go with `{other}`",
        "An external is known by its addresses (`cidr`, `except`) or by DNS names (`fqdn`); a workload is processes of "
        "hosts, or pods (`namespace`, `serviceAccount`, `labels`); `l7` is about `http` or about `sni`.",
        _HEAD + "workloads:\n  web: {match: {namespace: shop, unit: nginx.service}}\n",
    ),
)

_VALUES = (
    Code(
        "BH0301",
        "`{text}` is not a name",
        "Names are lower-case letters, digits and inner hyphens, at most 63: they become part of SPIFFE IDs.",
        _HEAD + "workloads:\n  Web: {match: {unit: nginx.service}}\n",
    ),
    Code(
        "BH0302",
        "`{text}` is not a port: {problem}",
        "Ports are `443`, `8000-8100`, `53/udp`, `any/tcp`, `icmp`, `icmp/echo`, `proto/47` or `any`.",
        _HEAD + "allow:\n  - {name: web-api, from: any, to: any, ports: [70000]}\n",
    ),
    Code(
        "BH0303",
        "`{text}` is not an address prefix",
        "Externals and nodes list IPv4 or IPv6 prefixes such as `10.0.0.0/8` or `2001:db8::/32`.",
        _HEAD + "externals:\n  users: {cidr: [10.0.0.300/8]}\n",
    ),
    Code(
        "BH0304",
        "`{text}` has bits set behind its prefix",
        "Either the address or the length is not what was meant.",
        _HEAD + "externals:\n  users: {cidr: [10.1.2.3/8]}\n",
    ),
    Code(
        "BH0305",
        "`{text}` is an IPv4-mapped prefix",
        "Such addresses never appear in packets: an IPv4 conversation is judged by IPv4 prefixes alone.",
        _HEAD + 'externals:\n  users: {cidr: ["::ffff:10.0.0.0/104"]}\n',
    ),
    Code(
        "BH0306",
        "`{text}` is not a value of {what}",
        "The key takes one of a few words.",
        _HEAD + "workloads:\n  web: {match: {unit: nginx.service}, mode: enforced}\n",
    ),
    Code(
        "BH0307",
        "`{text}` is not a point in time with its zone",
        "`expires` is RFC 3339 with a zone, such as `2027-01-31T18:00:00Z`: without one it is another on every host.",
        _HEAD
        + "exceptions:\n  - {name: a, from: any, to: any, ports: [22], expires: 2027-01-31, owner: a, ticket: b}\n",
    ),
    Code(
        "BH0308",
        "`{text}` cannot match: {problem}",
        "The selector can never be true, so the workload would have no endpoint and its rules no effect.",
        _HEAD + "workloads:\n  web: {match: {unit: nginx}}\n",
    ),
    Code(
        "BH0309",
        "`{text}` is not a path that can be matched: {problem}",
        "Paths are absolute and written as the kernel shows them.",
        _HEAD + "workloads:\n  web: {match: {exe: bin/nginx}}\n",
    ),
    Code(
        "BH0310",
        "`{text}` is not a {what}",
        "Users and groups are written as their name or as a decimal number below 4294967295.",
        _HEAD + "workloads:\n  web: {match: {user: www*}}\n",
    ),
    Code(
        "BH0311",
        "`{text}` is not a label",
        "Keys and values of labels are at most 63 letters, digits and inner `-`, `_`, `.` and `/`. In `match` they are "
        "those of pods: a value may be empty, and only a key has a `/`, behind a DNS name.",
        _HEAD + 'workloads:\n  web: {match: {unit: nginx.service}, labels: {tier: "web tier"}}\n',
    ),
    Code(
        "BH0312",
        "`all` selects everything: {problem}",
        "`all: true` stands alone, with `host` at most.",
        _HEAD + "workloads:\n  web: {match: {all: true, unit: nginx.service}}\n",
    ),
    Code(
        "BH0313",
        "`{text}` is not a trust domain",
        "A trust domain is at most 255 lower-case letters, digits, dots, hyphens and underscores, as in SPIFFE.",
        _REPOSITORY + "trustDomain: Example.org\n",
    ),
    Code(
        "BH0314",
        "`{text}` is not `PEER:PORT`",
        "A target is a peer and a port with a colon between.",
        _SHOP + "tests:\n  - {from: web, accept: [api]}\n",
    ),
    Code(
        "BH0315",
        "a lifeline rule ends at `host:PORT`",
        "Lifeline rules keep an operator's way into the machine itself open, and nothing else.",
        _REPOSITORY + 'trustDomain: example.org\nhosts: {lifeline: [{from: any, to: "any:22"}]}\n',
    ),
    Code(
        "BH0316",
        "`{text}` is not a DNS name that can be matched: {problem}",
        "Names are written whole, in ASCII; `*` may stand for the first label and is then exactly one label.",
        _HEAD + 'externals:\n  s3: {fqdn: ["*.*.example.com"]}\n',
    ),
    Code(
        "BH0317",
        "this is not a key that commits can be verified with: {problem}",
        "A signer has an OpenSSH public key, as in a file ending in `.pub`, or the whole fingerprint of an OpenPGP "
        "key: `openpgp:` and 40 or 64 hexadecimal digits.",
        _REPOSITORY + "trustDomain: example.org\nsigners:\n  - {name: ann, level: app, key: ssh-ed25519 AAAA}\n",
    ),
    Code(
        "BH0318",
        "`{text}` is not the name of a signer",
        "Letters, digits and `-`, `_`, `.`, `+` and `@`, beginning with a letter or digit, at most 255, such as "
        "`ann@example.org`.",
        _REPOSITORY + "trustDomain: example.org\nsigners:\n"
        f"  - {{name: Ann Other, level: app, key: 'openpgp:{'0123456789' * 4}'}}\n",
    ),
    Code(
        "BH0319",
        "`{text}` is not a digest",
        "A digest of an executable is `sha256:` and 64 hexadecimal digits in lower case.",
        _HEAD + "workloads:\n  web: {match: {unit: nginx.service}, posture: {digest: ['sha256:00']}}\n",
    ),
    Code(
        "BH0320",
        "`{text}` does not compare with a version",
        "One of `>=`, `>`, `=`, `<` and `<=`, and a version: of the kernel, numbers with dots between; of a package, "
        "as Debian writes them.",
        _HEAD + "workloads:\n  web: {match: {unit: nginx.service}, posture: {kernel: six}}\n",
    ),
    Code(
        "BH0321",
        "`{text}` is nothing that `{what}` can be required to be",
        "Only what the kernel itself attests of a process can be required: `NoNewPrivileges: true`, "
        "`Seccomp: filter`, and the capabilities beyond which the bounding set must not go.",
        _HEAD + "workloads:\n  web: {match: {unit: a.service}, posture: {hardening: {Seccomp: strict}}}\n",
    ),
    Code(
        "BH0322",
        "`{text}` is not the name of a package",
        "Debian's packages have two characters at least: lower case letters, digits, `+`, `-` and `.`, beginning with "
        "a letter or digit.",
        _HEAD + 'workloads:\n  web: {match: {unit: a.service}, posture: {package: {Nginx: ">= 1.22"}}}\n',
    ),
    Code(
        "BH0323",
        "`{text}` is not the name of a node",
        "A node is called as its agent's setting `host`: letters, digits, dots, hyphens and underscores, at most 253, "
        "beginning and ending with a letter or digit.",
        _NODE.replace("web-1", "web-*"),
    ),
    Code(
        "BH0324",
        "`{text}` is no address of a node: {what} is among it",
        "At the addresses of a node other machines reach it. Loopback, multicast, unspecified and IPv4-mapped "
        "addresses never appear between two machines.",
        _NODE.replace("192.0.2.1", "127.0.0.1"),
    ),
    Code(
        "BH0325",
        "this is not the public key of a node: {problem}",
        "A node's key is an X25519 public key: 32 bytes in base64. A node without `key` runs no agent.",
        _NODE + "key: c2hvcnQ=\n",
    ),
    Code(
        "BH0326",
        "`{text}` is not the number of a node",
        "What a node says on the wire names it by a number of 24 bits. Without `number` it is a hash of the name.",
        _NODE + "number: 16777216\n",
    ),
    Code(
        "BH0327",
        "this is not a certificate of a node's authority: {problem}",
        "`ca` lists the certificates that vouch for a node's workloads, as `bulkhead identity init` prints them: one, "
        "or two while the authority is replaced.",
        _NODE + "ca: [c2hvcnQ=]\n",
    ),
    Code(
        "BH0328",
        "this is not a trust bundle: {problem}",
        "A `kind: TrustBundle` has a SPIFFE bundle document, as the other trust domain publishes it, as text.",
        _TRUST_BUNDLE + "bundle: '{}'\n",
    ),
    Code(
        "BH0340",
        "`{text}` is not an HTTP method",
        "Methods are case-sensitive words (RFC 9110): `GET`, `POST`. `get` is another one, which nobody sends.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], l7: {http: [{methods: [get]}]}}\n",
    ),
    Code(
        "BH0341",
        "`{text}` is no path that a request can have: {problem}",
        "Proxies normalise the path of a request before it is judged. A pattern that is not in that form would match "
        "nothing, or less than it seems to.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], l7: {http: [{path: /v1//x}]}}\n",
    ),
    Code(
        "BH0342",
        "`{text}` is not {what}",
        "The name as it is in the request, or `*.` and a domain for every name below it.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], l7: {sni: ['*']}}\n",
    ),
    Code(
        "BH0343",
        "`{text}` is not the name of a header",
        "A token (RFC 9110). The host and what HTTP/2 writes as `:authority` or `:path` have keys of their own.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], l7: {http: [{headers: {Host: a}}]}}\n",
    ),
    Code(
        "BH0344",
        "`{text}` is no regular expression: {problem}",
        "The proxy matches by RE2, the whole text and in linear time; it knows no lookahead and no references back.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], "
        "l7: {http: [{headers: {x-a: {regex: '('}}}]}}\n",
    ),
    Code(
        "BH0345",
        "`{text}` is no path of a SPIFFE ID: {problem}",
        "By the SPIFFE standard: segments of letters, digits, `.`, `-` and `_`, none of them empty, `.` or `..`.",
        _HEAD + "workloads:\n  web: {match: {unit: nginx.service}, spiffe: /web/}\n",
    ),
    Code(
        "BH0346",
        "the key set is not sound: {problem}",
        "`jwks` is a JSON Web Key Set (RFC 7517) of public keys, as text.",
        "a `jwt` of the repository whose `jwks` is `{}`",
    ),
    Code(
        "BH0347",
        "`{text}` is not a Rego package",
        "Names joined by dots, without `data.` before them.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], authz: {rego: a-b}}\n",
    ),
    Code(
        "BH0348",
        "{count} {what} are more than {limit}",
        "The limit keeps what a proxy has to look at for one request within bounds.",
        "a rule with 65 entries under `l7.http`",
    ),
    Code(
        "BH0349",
        "a header is compared in one way",
        "Several that must all hold are one regular expression.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], "
        "l7: {http: [{headers: {x-a: {prefix: a, suffix: b}}}]}}\n",
    ),
    Code(
        "BH0350",
        "`{text}` has characters beyond ASCII",
        "In requests such characters are escaped; a pattern that has them would match nothing.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], l7: {http: [{path: /café}]}}\n",
    ),
)

_NAMES = (
    Code(
        "BH0401",
        "{what} `{name}` exists already",
        "A name stands for one thing: policies and nodes in a repository; workloads and externals together, rules, "
        "and invariants in a policy.",
        _SHOP + "externals:\n  web: {cidr: [192.0.2.0/24]}\n",
    ),
    Code(
        "BH0402",
        "`{name}` is a word of the language",
        "Entities (`any`, `host`, `world`, `legacy`, `unknown`) and the policy `hosts` of lifeline rules exist "
        "already.",
        _HEAD + "workloads:\n  world: {match: {unit: nginx.service}}\n",
    ),
    Code(
        "BH0403",
        "`unknown` cannot be a peer",
        "It stands for a peer without a proven identity, which matches nothing.",
        _SHOP + "allow:\n  - {name: open, from: unknown, to: web, ports: [443]}\n",
    ),
    Code(
        "BH0404",
        "`{name}` has the key of `{other}`",
        "A commit is signed with one key, and one key has one level.",
        _REPOSITORY + "trustDomain: example.org\nsigners:\n"
        f"  - {{name: ann, level: app, key: 'openpgp:{'0123456789' * 4}'}}\n"
        f"  - {{name: bob, level: platform, key: 'openpgp:{'0123456789' * 4}'}}\n",
    ),
    Code(
        "BH0405",
        "nodes `{name}` and `{other}` share the {trait} {held}",
        "Which of them a packet is from could not be told. A revoked node gives back what it had.",
        _NODE + "---\n" + _NODE.replace("web-1", "web-2"),
    ),
    Code(
        "BH0411",
        "`{name}` is the name of several peers",
        "A bare name in `bulkhead.yaml` is looked for in all policies.",
        "a lifeline rule from `admins`, and two policies with an external of that name",
    ),
    Code(
        "BH0412",
        "unknown {what} `{name}`",
        "Nothing of that name is there, so the rule would match nothing.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: ap1, ports: [443]}\n",
    ),
    Code(
        "BH0413",
        "`{name}` is the repository's own trust domain",
        "What vouches for the own workloads are the authorities of its nodes: `ca` in their records.",
        "a `kind: TrustBundle` named as `trustDomain` in `bulkhead.yaml`",
    ),
)

_MEANING = (
    Code(
        "BH0501",
        "rule `{rule}` lets {source} reach {destination}, which `{never}` forbids",
        "A `never` says what no rule may allow, exceptions included. The commit is refused.",
        "a rule that allows what a `never` forbids",
    ),
    Code(
        "BH0502",
        "test fails: {problem}",
        "The repository's own tests say otherwise than its rules. The commit is refused.",
        "a test that the rules do not fulfil",
    ),
    Code(
        "BH0503",
        "`{source}` and `{destination}` are both outside",
        "Bulkhead stands at neither end, so it cannot be enforced. One end at least is a workload, `any` or `host`.",
        _HEAD + "allow:\n  - {name: transit, from: world, to: world, ports: [443]}\n",
    ),
    Code(
        "BH0504",
        "`{peer}` cannot prove an identity, so `mtls: required` cannot hold",
        "Addresses outside the trust domain have no SVID.",
        _SHOP + "allow:\n  - {name: in, from: world, to: web, ports: [443], mtls: required}\n",
    ),
    _warning(
        "BH0505",
        "no workload carries the labels `{labels}`",
        "The selection is empty and matches nothing; most likely a label is misspelt.",
        _SHOP + "allow:\n  - {name: web-db, from: web, to: {tier: data}, ports: [5432]}\n",
    ),
    Code(
        "BH0506",
        "`{text}` is not `{namespace}`, the namespace of the scope",
        "The workloads of a policy are within its `scope`.",
        _HEAD + "scope: {cluster: prod, namespace: shop}\nworkloads:\n  web: {match: {namespace: billing}}\n",
    ),
    Code(
        "BH0507",
        "a selector of pods needs `namespace`",
        "Whoever may make pods in some namespace chooses their labels and service accounts. Without a namespace any "
        'of them could take this workload\'s name; `"*"` says that this is meant.',
        _HEAD + "workloads:\n  web: {match: {serviceAccount: web}}\n",
    ),
    Code(
        "BH0508",
        "`{key}` selects on hosts, and the scope is a cluster",
        "The workloads of a policy with a `scope` are pods.",
        _HEAD + "scope: {cluster: prod, namespace: shop}\nworkloads:\n  web: {match: {unit: nginx.service}}\n",
    ),
    _warning(
        "BH0509",
        "whether `{rule}` breaks `{never}` cannot be told from files: `{name}` may have addresses of `{network}`",
        "Which addresses a DNS name has is only known when it is looked up. Give both ends of the comparison "
        "addresses, or both DNS names, and it is exact.",
        _SHOP + "externals:\n  s3: {fqdn: [s3.example.com]}\n  office: {cidr: [192.0.2.0/24]}\n"
        "allow:\n  - {name: web-s3, from: web, to: s3, ports: [443]}\n"
        "never:\n  - {name: not-office, from: web, to: office}\n",
    ),
    Code(
        "BH0510",
        "the posture of a pod cannot be proven",
        "What `posture` requires is read on the host from the processes of the workload. Nothing there says which of "
        "them a pod has, and a requirement that nobody checks would only seem to be one.",
        _HEAD + "workloads:\n  web: {match: {namespace: shop}, posture: {node: [healthy]}}\n",
    ),
    Code(
        "BH0511",
        "`{key}` judges requests, and `{port}` is not TCP",
        "Requests are looked at in TCP conversations alone. Other protocols are for a rule of their own.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443, 53/udp], "
        "l7: {http: [{methods: [GET]}]}}\n",
    ),
    Code(
        "BH0512",
        "`{peer}` is no workload, and `{key}` needs one at both ends",
        "Between workloads there is a proxy at either end, and the caller has proven who it is. Elsewhere nothing "
        "could refuse a request.",
        _SHOP + "allow:\n  - {name: in, from: world, to: web, ports: [443], l7: {http: [{methods: [GET]}]}}\n",
    ),
    Code(
        "BH0513",
        "`{key}` needs mutual TLS, which the rule switches off",
        "Requests are judged for a caller who has proven who it is, by a proxy that plaintext goes past.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443], "
        "l7: {http: [{methods: [GET]}]}, mtls: 'off'}\n",
    ),
)

_IDENTITY = (
    Code(
        "BH0601",
        "workloads `{one}` and `{other}` can select the same endpoint with equal right",
        "An endpoint has one workload, the most specific. Here neither is: narrow one of them.",
        _HEAD + 'workloads:\n  web: {match: {unit: "nginx*.service"}}\n  proxy: {match: {unit: "*nginx.service"}}\n',
    ),
    Code(
        "BH0602",
        "`{one}` and `{other}` hash to the same identity",
        "The number of a workload is a hash of its SPIFFE ID. Two that collide, and one that falls on a number "
        "reserved for entities, are refused: rename the workload.",
        "two workloads whose SPIFFE IDs begin with the same 31 bits of SHA-256",
    ),
    Code(
        "BH0603",
        "`host` of `{one}` and of `{other}` hash to the same number",
        "Which nodes may host a workload is known in the kernel by a number, a hash of its `host` globs, and 0 is "
        "every node. Write one of them in another way.",
        "two lists of `host` globs that begin with the same 32 bits of SHA-256",
    ),
    Code(
        "BH0605",
        "workloads `{one}` and `{other}` can have one SPIFFE ID",
        "By their certificates they would be one: each could call, and be called, in place of the other.",
        _HEAD
        + "workloads:\n  web: {match: {unit: nginx.service}, spiffe: /shop/api}\n  api: {match: {unit: api.service}}\n",
    ),
)

_CAPACITY = (
    Code(
        "BH0701",
        "{problem}",
        "A policy that is larger than the kernel's maps is refused whole, before anything is written.",
        "a policy that compiles to more entries than the maps hold",
    ),
    Code(
        "BH0702",
        "{count} rules are more than {limit}",
        "The limit keeps the work that a commit can cause within bounds.",
        "a repository of more than 200,000 rules",
    ),
)

_LINT = (
    _warning(
        "BH1001",
        "`{rule}` adds nothing to `{other}`",
        "Another rule allows all of it already, for at least as long.",
        _SHOP + "allow:\n  - {name: wide, from: web, to: api, ports: [8000-9000]}\n"
        "  - {name: narrow, from: web, to: api, ports: [8443]}\n",
    ),
    _warning(
        "BH1002",
        "`{rule}` trusts all of `{network}`: whoever is on the network is let through",
        "A private network is a place, not an identity. Name the workloads, or the few addresses that cannot have one.",
        _SHOP + "externals:\n  office: {cidr: [10.0.0.0/8]}\nallow:\n"
        "  - {name: office-web, from: office, to: web, ports: [443]}\n",
    ),
    _warning(
        "BH1003",
        "`{rule}` opens every {protocol} port between workloads",
        "A service listens on a few ports; the others serve nobody but an intruder.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [any/tcp]}\n",
    ),
    Code(
        "BH1004",
        "exception `{rule}` expired at {expires}",
        "It allows nothing any more. Remove it, or renew it with a ticket that says why.",
        _SHOP + "exceptions:\n  - {name: debug, from: web, to: api, ports: [22], expires: 2020-01-31T18:00:00Z, "
        "owner: team, ticket: T-1}\n",
    ),
    _warning(
        "BH1005",
        "no rule names workload `{name}`",
        "In enforce mode it reaches nothing and is reached by nothing.",
        _HEAD + "workloads:\n  web: {match: {unit: nginx.service}}\n",
    ),
    _warning(
        "BH1006",
        "nothing uses external `{name}`",
        "No rule, invariant or test names it.",
        _HEAD + "externals:\n  users: {cidr: [192.0.2.0/24]}\n",
    ),
    _warning(
        "BH1007",
        "`hosts.mode` is enforce and there is no lifeline",
        "The machines themselves are enforced, and no lifeline rule keeps an operator's way in.",
        "hosts: {mode: enforce} without lifeline in `bulkhead.yaml`",
    ),
    _warning(
        "BH1008",
        "`{network}` in `except` takes nothing away from external `{name}`",
        "It overlaps no prefix of `cidr`.",
        _SHOP + "externals:\n  users: {cidr: [192.0.2.0/24], except: [10.0.0.0/8]}\nallow:\n"
        "  - {name: in, from: users, to: web, ports: [443]}\n",
    ),
    _warning(
        "BH1009",
        "`{rule}` adds nothing to {count} others, which together allow all of it",
        "Each of its openings is opened by another rule already, for at least as long.",
        _SHOP + "allow:\n  - {name: low, from: web, to: api, ports: [8000-8499]}\n"
        "  - {name: high, from: web, to: api, ports: [8500-8999]}\n"
        "  - {name: both, from: web, to: api, ports: [8400-8600]}\n",
    ),
    _warning(
        "BH1010",
        "`{rule}` lets every workload reach every other",
        "Whoever takes over one workload then reaches all of them, those of other teams and of tomorrow included.",
        _SHOP + "allow:\n  - {name: mesh, from: any, to: any, ports: [443]}\n",
    ),
    _warning(
        "BH1011",
        "`{rule}` opens every port between a workload and the whole world",
        "Nothing is left for it to refuse: as a way in it exposes whatever listens, as a way out it lets anything go.",
        _SHOP + "allow:\n  - {name: out, from: web, to: world, ports: [any]}\n",
    ),
    _warning(
        "BH1012",
        "`{rule}` opens {port} ({service}) to the whole world",
        "Ports through which machines are run are the first that strangers try.",
        _SHOP + "externals:\n  everybody: {cidr: [0.0.0.0/0]}\nallow:\n"
        "  - {name: ssh, from: everybody, to: web, ports: [22]}\n",
    ),
    _warning(
        "BH1013",
        "`{rule}` opens {count} {name} ports",
        "Nothing listens on that many; the others serve nobody but an intruder.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [1024-65535]}\n",
    ),
    _warning(
        "BH1014",
        "exception `{rule}` expires at {expires}",
        "It ends within a week, in the kernel, whatever is still using it then.",
        "an exception that ends in three days",
    ),
    _warning(
        "BH1015",
        "`{rule}` opts out of mutual TLS; its owner is {owner}",
        "Its peers need not prove who they are to each other. Every such rule is listed, so that none is forgotten.",
        _SHOP + 'allow:\n  - {name: web-api, from: web, to: api, ports: [443], mtls: "off"}\n',
    ),
    _warning(
        "BH1016",
        "policy `{policy}` is of level `{level}` and names no owner",
        "It binds other teams, who need to know whom to ask.",
        "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: base, level: platform}\n",
    ),
    _warning(
        "BH1017",
        "no test names workload `{name}`",
        "The policy has tests, and what this workload may do is not among them. A policy without any is left alone.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443]}\n"
        'tests:\n  - {from: web, deny: ["world:443"]}\n',
    ),
    _warning(
        "BH1018",
        "invariant `{never}` does not say why",
        "Whoever runs into it later cannot tell whether it still holds.",
        _SHOP + "never:\n  - {name: apart, from: web, to: api}\n",
    ),
    _warning(
        "BH1019",
        "`{rule}` permits plaintext where `{other}` asks for mutual TLS; its owner is {owner}",
        "Where two rules allow the same, one that says `mtls: off` suffices: between nodes, what the other asks for "
        "can be left out.",
        _SHOP + "allow:\n  - {name: web-api, from: web, to: api, ports: [443]}\n"
        "  - {name: plain, from: web, to: api, ports: [443], mtls: 'off'}\n",
    ),
    _warning(
        "BH1021",
        "a rule of `{policy}` says nothing: `policyTypes` leaves out its direction",
        "A cluster takes the rule and never looks at it; whoever reads it believes that it is in force.",
        _NETPOL + "spec: {podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 443}]}]}\n",
    ),
    _warning(
        "BH1022",
        "`{policy}` governs nobody: no pod can be what it asks of label `{key}`",
        "Two requirements on one label exclude each other, and all of them must hold.",
        _NETPOL + "spec: {podSelector: {matchLabels: {app: web}, "
        "matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}\n",
    ),
    _warning(
        "BH1023",
        "a peer of `{rule}` is nobody: nothing can be what it asks of label `{key}`",
        "Two requirements on one label exclude each other, and all of them must hold.",
        _NETPOL + "spec: {ingress: [{from: [{podSelector: {matchLabels: {app: web}, "
        "matchExpressions: [{key: app, operator: DoesNotExist}]}}], ports: [{port: 443}]}]}\n",
    ),
    _warning(
        "BH1024",
        "`{rule}` accepts everything from or to everybody before any namespace is asked",
        "It is of the Admin tier: no NetworkPolicy can take back what it opens.",
        _CNP + "  ingress: [{action: Accept, from: [{namespaces: {}}]}]\n",
    ),
)

_SOURCE = (
    Code(
        "BH0801",
        "`{path}` is a {what}",
        "Only regular files of the commit itself are read: what a symbolic link or submodule leads to is not in it.",
        "a symbolic link or submodule in the repository",
    ),
    Code(
        "BH0802",
        "`{path}` is not a path of a policy repository",
        "Paths stay inside the repository, name each file once, and are printable UTF-8.",
        "a tree entry called `..`",
    ),
    Code(
        "BH0803",
        "`{path}` has {size} bytes, more than {limit}",
        "The limit keeps the work that a commit can cause within bounds.",
        "a policy file of more than 1 MiB",
    ),
    Code(
        "BH0804",
        "the repository holds {amount} of policy, more than {limit}",
        "The limit keeps the work that a commit can cause within bounds.",
        "more than 10,000 policy files, or more than 64 MiB of them",
    ),
    Code(
        "BH0805",
        "`{path}` and `{other}` differ in case only",
        "On some file systems they are one file, so a reviewer may have seen only one of them.",
        "the files `shop.yaml` and `Shop.yaml` in one directory",
    ),
    Code(
        "BH0806",
        "blob {blob_id} of `{path}` does not have the content that its id stands for",
        "The object store is damaged or was tampered with.",
        "a changed object in `.git/objects`",
    ),
)

_SIGNING = (
    Code(
        "BH1101",
        "commit {commit} is not signed",
        "Signers are in force, so every commit since the accepted one is signed, merges included.",
        "a commit made without `git commit -S`",
    ),
    Code(
        "BH1102",
        "commit {commit} is signed with {signer}, which is the key of no signer in force",
        "Signers are those of the operator's file, and those that the repository named before this commit.",
        "a commit signed by somebody whom `signers` does not name, or named only by this very commit",
    ),
    Code(
        "BH1103",
        "commit {commit} is signed by {signer} with a key or signature that has expired or is not valid yet",
        "A key counts while it is valid at the commit's own date and now: dates of commits are the signer's word.",
        "a commit signed after `expires` or `valid_before`",
    ),
    Code(
        "BH1104",
        "commit {commit} is signed by {signer} with a key that is revoked",
        "Whoever holds a revoked key may not be the signer any more, whenever the commit says that it was made.",
        "a commit signed with a key of `revoked_keys`, or an OpenPGP key with a revocation",
    ),
    Code(
        "BH1105",
        "the signature of commit {commit} by {signer} is not good",
        "The commit is not what was signed, or the signature is for another purpose.",
        "a signature copied from another commit",
    ),
    Code(
        "BH1106",
        "commit {commit} changes {what}, which needs a signer of level `{needed}`: `{signer}` has `{level}`",
        "A signer may write at his level and below. `bulkhead.yaml`, keys of signers, policies of a whole Kubernetes "
        "cluster and invariants that are removed or changed need `guardrail`; a merge needs what differs from each of "
        "its parents.",
        "a policy of level `platform`, changed by a signer of level `app`",
    ),
    Code(
        "BH1107",
        "commit {commit} does not descend from {last}, which was accepted last",
        "History only goes forward: a branch that was forced back or rewritten could bring back what was mended. "
        "`bulkhead rollback` accepts such a commit, with a reason that is recorded.",
        "`git push --force` of an older commit",
    ),
    Code(
        "BH1108",
        "commit {commit} comes with {amount} since {last}",
        "The limit keeps the work that a push can cause within bounds. Move the reference in steps, or accept the "
        "commit with `bulkhead rollback`.",
        "a reference that moved on by more than 1,000 commits",
    ),
    Code(
        "BH1110",
        "cannot fetch from `{remote}`",
        "What is enforced stays in force, and the host looks again at every interval.",
        "a git host that is down, or has another host key",
    ),
    Code(
        "BH1111",
        "`{remote}` sent more than {limit} bytes",
        "The limit is for one answer, as it comes over the wire, and keeps a git host from filling the disk.",
        "a repository that somebody has added a disk image to",
    ),
    Code(
        "BH1112",
        "`{remote}` has no `{ref}`",
        "The reference does not exist, or the repository is empty.",
        "an empty repository",
    ),
    Code(
        "BH1113",
        "`{remote}` sent objects that git refuses",
        "Every object is checked as it arrives, so that none can mean different things to different readers.",
        "a tree with an entry called `..`",
    ),
)

_BUNDLE = (
    Code(
        "BH0901",
        "not a policy bundle: {problem}",
        "The compiled policy that was handed over is damaged, or was made by another version.",
        "a bundle file that was cut short",
    ),
    Code(
        "BH0911",
        "{one} and {other} disagree about {subject}: {one_says}, and {other_says}",
        "A policy is judged by its rules, by the tables made of them and by the programs in the kernel: all must come "
        "to the same. That they do not is a fault of Bulkhead: do not enforce this commit, and report it.",
        "rules, compiled tables and the kernel's programs that do not come to the same",
    ),
)

_KUBERNETES = (
    Code(
        "BH1201",
        "`kind: {kind}` of `{version}` is not a policy that is read here",
        "Kubernetes policies are `NetworkPolicy` of `networking.k8s.io/v1`, and of `policy.networking.k8s.io` "
        "`AdminNetworkPolicy` and `BaselineAdminNetworkPolicy` (`v1alpha1`) and `ClusterNetworkPolicy` (`v1alpha2` or "
        "`v1beta1`); those of Istio are `AuthorizationPolicy` and `PeerAuthentication` of `security.istio.io` (`v1` or "
        "`v1beta1`); or lists of them. Other objects do not belong in a policy repository.",
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web}\nspec: {}\n",
    ),
    Code(
        "BH1202",
        "`{text}` is not {what} in Kubernetes",
        "Names are lower-case letters, digits, inner hyphens and dots, at most 253; those of namespaces have no dots "
        "and at most 63.",
        _NETPOL.replace("web", "Web", 1) + "spec: {podSelector: {}}\n",
    ),
    Code(
        "BH1203",
        "{what} takes exactly one of {choice}, and has {found}",
        "The API allows one, and what several or none would mean is left open.",
        _NETPOL + "spec:\n  ingress:\n    - from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]\n",
    ),
    Code(
        "BH1204",
        "{what} has {count} items, and the API takes {limit}",
        "A cluster would refuse the object.",
        _CNP + "  egress:\n    - action: Deny\n      to:\n" + "        - namespaces: {}\n" * 26,
    ),
    Code(
        "BH1205",
        "{what} is a whole number from {low} to {high}, not `{text}`",
        "The API takes a number within these bounds, without quotes.",
        _NETPOL + "spec: {ingress: [{ports: [{port: 65536}]}]}\n",
    ),
    Code(
        "BH1206",
        "`{text}` is not the {what} of a label in Kubernetes",
        "Keys and values are at most 63 letters, digits and inner `-`, `_` and `.`; before a key may stand a domain "
        'and `/`. A value may be empty, written `""`.',
        _NETPOL + "spec: {podSelector: {matchLabels: {app: web/api}}}\n",
    ),
    Code(
        "BH1207",
        "`{operator}` {problem}",
        "`In` and `NotIn` hold a label against values; `Exists` and `DoesNotExist` ask for the label alone.",
        _NETPOL + "spec: {podSelector: {matchExpressions: [{key: app, operator: In, values: []}]}}\n",
    ),
    Code(
        "BH1208",
        "`{text}` is not the name of a port",
        "Pods name ports with at most 15 lower-case letters, digits and single inner hyphens, a letter among them. "
        "A number is written without quotes.",
        _NETPOL + 'spec: {ingress: [{ports: [{port: "80"}]}]}\n',
    ),
    Code(
        "BH1209",
        "{what} {last} is {comparison} {first}, where the range begins",
        "The range would be empty; `start` and `end` of one that has both must differ.",
        _NETPOL + "spec: {ingress: [{ports: [{port: 8100, endPort: 8000}]}]}\n",
    ),
    Code(
        "BH1210",
        "`{text}` is not a part of `{network}`",
        "`except` takes addresses away from its own `cidr`: longer prefixes within it.",
        _NETPOL + "spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [192.168.0.0/16]}}]}]}\n",
    ),
    Code(
        "BH1211",
        "`endPort` needs a number in `port`",
        "It ends a range that `port` begins; a name is no place to begin.",
        _NETPOL + "spec: {ingress: [{ports: [{port: http, endPort: 8000}]}]}\n",
    ),
    Code(
        "BH1212",
        "`kind: {kind}` is called `{name}`, not `{text}`",
        "A cluster has one of them, and the API knows it by this name.",
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: base}\n"
        "spec: {subject: {namespaces: {}}}\n",
    ),
    Code(
        "BH1213",
        "the name of the rule has {count} characters, and the API takes {limit}",
        "A cluster would refuse the object.",
        _CNP + "  ingress:\n    - {name: " + "a" * 101 + ", action: Deny, from: [{namespaces: {}}]}\n",
    ),
    Code(
        "BH1214",
        "`{key}` cannot be enforced in this version",
        "The API has it, Bulkhead does not enforce it yet, and what cannot be enforced is refused.",
        _CNP + "  egress:\n    - {action: Accept, to: [{domainNames: [www.example.org]}]}\n",
    ),
    Code(
        "BH1215",
        "port name `{name}` stands beside nodes or networks, which name no ports",
        "Only pods give names to ports, so the rule would match nothing there.",
        _CNP + "  egress:\n    - action: Accept\n      to: [{networks: [192.0.2.0/24]}]\n"
        "      protocols: [{destinationNamedPort: http}]\n",
    ),
    Code(
        "BH1216",
        "`kind: {kind}` is of the whole cluster and has no namespace",
        "A policy that is thought to stay within a namespace would bind all of them.",
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\n"
        "metadata: {name: base, namespace: shop}\nspec: {priority: 10, subject: {namespaces: {}}}\n",
    ),
)

_ISTIO_SHOP = (
    _SHOP.replace("service}}", "service}, labels: {app: web}}", 1) + "---\n"
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\n"
)
_PEER_AUTHENTICATION = (
    _SHOP + "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: mtls, namespace: shop}\n"
)

_ISTIO = (
    Code(
        "BH1301",
        "`{text}` cannot be meant in {what}: {problem}",
        "No request could ever be held against it as its author means it, so that a rule of it would silently never "
        "match, or match something else.",
        _ISTIO_SHOP + 'spec: {rules: [{to: [{operation: {paths: ["/api/*/admin"]}}]}]}\n',
    ),
    Code(
        "BH1302",
        "`{key}` cannot be enforced here: {problem}",
        "Istio has it, Bulkhead has nothing it could be held against, and what cannot be enforced is refused.",
        _ISTIO_SHOP + "spec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: web}]}\n",
    ),
    Code(
        "BH1303",
        "`{key}` is no attribute of a request",
        "Conditions ask for `source.*`, `remote.ip`, `request.headers[NAME]`, `request.auth.*`, `destination.ip`, "
        "`destination.port` or `connection.sni`.",
        _ISTIO_SHOP + 'spec: {rules: [{when: [{key: source.ipp, values: ["192.0.2.1"]}]}]}\n',
    ),
    Code(
        "BH1304",
        "`provider` and `action: CUSTOM` belong together",
        "A CUSTOM asks a provider, and nothing else does.",
        _ISTIO_SHOP + "spec: {action: CUSTOM, rules: [{}]}\n",
    ),
    Code(
        "BH1305",
        "provider `{name}` is not known here",
        "Istio looks it up in the configuration of its mesh. Here the repository's own Rego is asked: "
        "`rego/PACKAGE`, such as `rego/shop.orders`.",
        _ISTIO_SHOP + "spec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}\n",
    ),
    Code(
        "BH1306",
        "`{key}` {problem}",
        "Istio ignores it there, so that the file would say more than it does.",
        _PEER_AUTHENTICATION + 'spec: {portLevelMtls: {"8080": {mode: PERMISSIVE}}}\n',
    ),
    Code(
        "BH1307",
        "`{key}` does not go with `{other}` in one `source`",
        "The API takes service accounts by themselves. Several entries of `from` are alternatives.",
        _ISTIO_SHOP + "spec: {rules: [{from: [{source: {serviceAccounts: [shop/web], namespaces: [shop]}}]}]}\n",
    ),
    Code(
        "BH1308",
        "`{rule}` would have to look at requests of `{caller}`, who come through no proxy: `{other}` lets them in",
        "Requests are judged between workloads, by their nodes' proxies. Who is no workload (an address, the host "
        "itself, a node without agent) goes straight to the workload, and the rule would do nothing to him.",
        "a DENY or CUSTOM rule about requests to a workload that a native rule opens to `world`",
    ),
    Code(
        "BH1309",
        "{what} has {count} values, of which {limit} fit",
        "What a proxy is told of one rule is bounded.",
        _ISTIO_SHOP
        + "spec: {rules: [{to: [{operation: {ports: ["
        + ", ".join(f'"{port}"' for port in range(1, 2002))
        + "]}}]}]}\n",
    ),
    _warning(
        "BH1321",
        "`{policy}` selects no workload",
        "Its namespace is the name of a native policy, whose workloads it selects by their labels. Pods are judged by "
        "the Kubernetes dialects alone.",
        _ISTIO_SHOP.replace("namespace: shop", "namespace: shoop") + "spec: {}\n",
    ),
    _warning(
        "BH1322",
        "no workload can be a caller of `{rule}`",
        "Callers are known by the SPIFFE IDs of their SVIDs, `spiffe://TRUST-DOMAIN/POLICY/WORKLOAD` unless the "
        "workload has a `spiffe` path of its own; namespaces and service accounts are parts of `/ns/X/sa/Y`.",
        _ISTIO_SHOP + "spec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}\n",
    ),
    _warning(
        "BH1323",
        "`{policy}` selects {name}, which no rule opens to anybody",
        "In Istio a workload that no ALLOW policy selects is open to everybody; here to nobody.",
        _ISTIO_SHOP + 'spec: {action: DENY, rules: [{to: [{operation: {ports: ["22"]}}]}]}\n',
    ),
    _warning(
        "BH1324",
        "`{rule}` speaks of requests and names no ports, so that every port of {name} is taken for HTTP",
        "What is not HTTP is refused on a port where requests are judged.",
        _ISTIO_SHOP + "spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}\n",
    ),
    _warning(
        "BH1325",
        "`{rule}` is to be recorded, and requests to {name} are not looked at",
        "What changes no verdict does not send conversations through a proxy either. Conversations themselves are in "
        "the flow log, with the rule that allowed them.",
        _ISTIO_SHOP + 'spec: {action: AUDIT, rules: [{to: [{operation: {paths: ["/admin*"]}}]}]}\n',
    ),
    _warning(
        "BH1326",
        "`{policy}` lets callers of {name} leave out who they are; its owner is {owner}",
        "It is an exception from mutual TLS. Every one is listed, so that none is forgotten.",
        _PEER_AUTHENTICATION + "spec: {mtls: {mode: PERMISSIVE}}\n",
    ),
    _warning(
        "BH1327",
        "`{policy}` has no rules, so it does nothing",
        "Only an ALLOW without rules says something: nothing is allowed. To mean every request, write `rules: [{}]`.",
        _ISTIO_SHOP + "spec: {action: DENY}\n",
    ),
    _warning(
        "BH1328",
        "`{policy}` says nothing of {name}, for which `{other}` comes first",
        "Of several that are about a workload by its labels, of those about its namespace, and of those about the "
        "mesh, the first in the order of files is heard.",
        _PEER_AUTHENTICATION + "spec: {mtls: {mode: STRICT}}\n---\napiVersion: security.istio.io/v1\n"
        "kind: PeerAuthentication\nmetadata: {name: other, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n",
    ),
    _warning(
        "BH1329",
        "`{policy}` allows nothing, and `{rule}` opens `{name}` all the same",
        "In Istio it would close the workload. Here an ALLOW takes nothing away: what native rules and other policies "
        "allow stays allowed, and only a DENY refuses it.",
        _ISTIO_SHOP.replace("---\n", "allow:\n  - {name: web, from: api, to: web, ports: [443]}\n---\n") + "spec: {}\n",
    ),
)

_REGO = (
    Code(
        "BH1401",
        "the repository has Rego, and there is no engine for it here: install `bulkhead[rego]`",
        "Without the engine neither a request nor a guardrail can be judged, so nothing of the commit is taken.",
        "a file `.rego`, or a rule with `authz`, on a machine without the package `celine-regorus`",
    ),
    Code(
        "BH1402",
        "this is not Rego: {problem}",
        "The engine cannot read the module, or a name in it stands for nothing. Modules are written in Rego v1, with "
        "`if` and `contains`.",
        "a file `.rego` with `allow { input.x }`",
    ),
    Code(
        "BH1403",
        "there is no function `{name}`",
        "Neither the engine nor a module of the repository has it. Functions that reach out of the engine "
        "(`http.send`, `opa.runtime`) are not there either: what they are asked would be undefined, and `not` makes "
        "that true.",
        "a file `.rego` with `allow if io.jwt.decode_verify(input.token, {})`",
    ),
    Code(
        "BH1404",
        "no module of the repository has a rule `allow` in `package {name}`",
        "`authz` names the package that is asked about each request; without its `allow` every request would be "
        "refused.",
        "a rule with `authz: {rego: shop.orders}` in a repository without that package",
    ),
    Code(
        "BH1405",
        "{problem}",
        "A guardrail of the repository itself, `deny` in `package bulkhead.lint`, refuses the commit.",
        'a file `.rego` with `package bulkhead.lint` and `deny contains "no"`',
    ),
    _warning(
        "BH1406",
        "{problem}",
        "A guardrail of the repository itself, `warn` in `package bulkhead.lint`, says so.",
        'a file `.rego` with `package bulkhead.lint` and `warn contains "careful"`',
    ),
    Code(
        "BH1407",
        "the Rego of the repository cannot be judged: {problem}",
        "Reading the modules, or asking the guardrails, failed or took too long. What cannot be judged is not taken.",
        "a file `.rego` with a rule of `package bulkhead.lint` that divides by zero, or takes longer than 2 s",
    ),
)

CODES: dict[str, Code] = {
    entry.number: entry
    for group in (
        _TEXT,
        _STRUCTURE,
        _VALUES,
        _NAMES,
        _MEANING,
        _IDENTITY,
        _CAPACITY,
        _SOURCE,
        _SIGNING,
        _BUNDLE,
        _LINT,
        _KUBERNETES,
        _REGO,
        _ISTIO,
    )
    for entry in group
}


def code(number: str) -> Code:
    """The registered code. Raises KeyError for any other: a code is written here before it is used."""
    return CODES[number]


def message(number: str, **values: object) -> str:
    """The message of a code; `values` may be an author's text and are made fit for a terminal."""
    return CODES[number].template.format(**{name: presentable(str(value)) for name, value in values.items()})


def presentable(text: str) -> str:
    """An author's text, shortened, without a character that a terminal would obey."""
    shortened = text if len(text) <= VALUE_MAX else text[: VALUE_MAX - 1] + "…"
    return "".join(character if character.isprintable() else f"\\u{{{ord(character):x}}}" for character in shortened)


def document() -> str:
    """docs/errors.md."""
    introduction = (
        "# Findings\n\nEvery finding about a policy, by its code. A commit with an error is refused whole and the last "
        "good one stays in force; warnings refuse nothing.\n\nGenerated: `python -m bulkhead.policy.codes`.\n"
    )
    parts = [introduction]
    for prefix, title in GROUPS.items():
        parts.append(f"\n## {title}\n")
        parts.extend(_section(entry) for number, entry in sorted(CODES.items()) if number[2:4] == prefix)
    return "".join(parts)


def _section(entry: Code) -> str:
    example = f"```yaml\n{entry.example}```" if entry.example.endswith("\n") else f"When: {entry.example}."
    level = "" if entry.severity == "error" else f" ({entry.severity})"
    return f"\n### {entry.number}{level}\n\n> {entry.template}\n\n{entry.explanation}\n\n{example}\n"


if __name__ == "__main__":
    sys.stdout.write(document())
