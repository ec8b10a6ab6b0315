"""What Istio's documents say of a request, by the shortest way: objects as they were written, requests as they come.

It shares nothing with the compiler: no patterns, no conditions, no expressions over SPIFFE IDs. Where Bulkhead means
less than Istio (who is no workload is let in by native rules alone, and nobody by the absence of an ALLOW), that is
said here too, in `allows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

ROOT = "istio-system"

Written = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request of one workload to another. A token of None: it carries none that was verified."""

    svid: str
    port: int
    method: str
    path: str
    host: str
    headers: Mapping[str, str]
    token: Mapping[str, Any] | None
    address: str
    forwarded: str
    called: str
    sni: str


@dataclass(frozen=True, slots=True)
class Target:
    """The workload that is called."""

    namespace: str
    labels: Mapping[str, str]


def allows(policies: Iterable[Written], target: Target, request: Request, natively: bool) -> bool:
    """The verdict; `natively`: a rule of the repository lets the caller reach that port. Providers refuse whatever
    they are asked."""
    selected = [one for one in policies if _selects(one, target) and not _is_dry_run(one)]
    matched = {one["spec"].get("action", "ALLOW") for one in selected if _matches(one, request)}
    return not matched & {"CUSTOM", "DENY"} and ("ALLOW" in matched or natively)


def _selects(policy: Written, target: Target) -> bool:
    labels = policy["spec"].get("selector", {}).get("matchLabels", {})
    within = policy["metadata"]["namespace"] in (ROOT, target.namespace)
    return within and all(target.labels.get(key) == value for key, value in labels.items())


def _is_dry_run(policy: Written) -> bool:
    return bool(policy["metadata"].get("annotations", {}).get("istio.io/dry-run") == "true")


def _matches(policy: Written, request: Request) -> bool:
    namespace = policy["metadata"]["namespace"]
    return any(rule_matches(rule, request, namespace) for rule in policy["spec"].get("rules", []))


def rule_matches(rule: Written, request: Request, namespace: str) -> bool:
    """Whether one rule of a policy of that namespace matches."""
    sources = [entry["source"] for entry in rule.get("from", [])]
    operations = [entry["operation"] for entry in rule.get("to", [])]
    return (
        (not sources or any(_fields_hold(source, request, namespace) for source in sources))
        and (not operations or any(_fields_hold(operation, request, namespace) for operation in operations))
        and all(_when_holds(when, request, namespace) for when in rule.get("when", []))
    )


_ATTRIBUTES = {
    "principals": "source.principal",
    "requestPrincipals": "request.auth.principal",
    "namespaces": "source.namespace",
    "serviceAccounts": "source.serviceAccount",
    "trustDomains": "source.trustDomain",
    "ipBlocks": "source.ip",
    "remoteIpBlocks": "remote.ip",
    "ports": "destination.port",
}


def _fields_hold(fields: Written, request: Request, namespace: str) -> bool:
    for name, values in fields.items():
        positive = name[3:4].lower() + name[4:] if name.startswith("not") else name
        key = _ATTRIBUTES.get(positive, positive)
        if any(_is(key, value, request, namespace) for value in values) is name.startswith("not"):
            return False
    return True


def _when_holds(when: Written, request: Request, namespace: str) -> bool:
    key = when["key"]
    wanted = when.get("values")
    if wanted is not None and not any(_is(key, value, request, namespace) for value in wanted):
        return False
    return not any(_is(key, value, request, namespace) for value in when.get("notValues", []))


def _is(key: str, value: str, request: Request, namespace: str) -> bool:
    domain, *segments = request.svid.removeprefix("spiffe://").split("/")
    match key:
        case "source.principal":
            return _text(value, "/".join([domain, *segments]))
        case "source.trustDomain":
            return _text(value, domain)
        case "source.namespace":
            return any(
                _glob(value, "/".join(segments[place + 1 : end]))
                for place, segment in enumerate(segments)
                for end in range(place + 2, len(segments))
                if segment == "ns"
            )
        case "source.serviceAccount":
            own, _, name = value.rpartition("/")
            return any(
                segments[place : place + 2] == ["ns", own or namespace] and segments[other : other + 2] == ["sa", name]
                for place in range(len(segments))
                for other in range(place + 2, len(segments))
            )
        case "source.ip":
            return ip_address(request.address) in ip_network(value)
        case "remote.ip":
            return ip_address(request.forwarded) in ip_network(value)
        case "destination.ip":
            return ip_address(request.called) in ip_network(value)
        case "destination.port":
            return int(value) == request.port
        case "connection.sni":
            return _text(value, request.sni)
        case "hosts":
            return _text(value.lower(), request.host.lower())
        case "methods":
            return _text(value, request.method)
        case "paths":
            return _template(value, request.path) if "{" in value else _text(value, request.path)
        case "request.auth.principal":
            return _request_principal(value, request.token)
        case "request.auth.audiences":
            return _claim(value, request.token, ["aud"])
        case "request.auth.presenter":
            return _claim(value, request.token, ["azp"])
    name, _, rest = key.partition("[")
    inner = rest.removesuffix("]").split("][")
    if name == "request.headers":
        return _text(value, request.headers.get(inner[0].lower(), ""))
    return _claim(value, request.token, inner)


def _text(value: str, text: str) -> bool:
    if value == "*":
        return text != ""
    if value.startswith("*"):
        return text.endswith(value[1:])
    return text.startswith(value[:-1]) if value.endswith("*") else text == value


def _glob(value: str, text: str) -> bool:
    """`*` anywhere, for any run."""
    first, *others = value.split("*")
    if not others:
        return text == value
    if not text.startswith(first):
        return False
    text = text[len(first) :]
    for part in others[:-1]:
        before, found, text = text.partition(part)
        if not found and part:
            return False
        del before
    return text.endswith(others[-1])


def _template(value: str, path: str) -> bool:
    """By segments, from both ends: of `{**}` there is one at most, which takes what is left, be it nothing."""
    wanted, found = value.split("/"), path.split("/")
    if "{**}" not in wanted:
        return len(wanted) == len(found) and all(map(_segment, wanted, found))
    place = wanted.index("{**}")
    behind = len(wanted) - place - 1
    return (
        len(found) > place + behind
        and all(map(_segment, wanted[:place], found))
        and all(map(_segment, wanted[place + 1 :], found[len(found) - behind :]))
    )


def _segment(wanted: str, found: str) -> bool:
    return found != "" if wanted == "{*}" else wanted == found


def _request_principal(value: str, token: Written | None) -> bool:
    if token is None:
        return False
    issuer, subject = token["iss"], token["sub"]
    if "/" not in value:
        held = subject if value.startswith("*") else issuer
        return bool(issuer and subject) and _text(value, held)
    wanted = value.rsplit("/", 1)
    return _text(wanted[0], issuer) and _text(wanted[1], subject)


def _claim(value: str, token: Written | None, path: list[str]) -> bool:
    held: Any = token
    for name in path:
        held = held.get(name) if isinstance(held, Mapping) else None
    if isinstance(held, str):
        held = held.split(" ") if path in (["scope"], ["permission"]) else [held]
    return isinstance(held, list) and any(_text(value, one) for one in held)
