"""What one rule of an AuthorizationPolicy asks of a request, as a condition.

A rule holds if one of its sources, one of its operations and every condition of `when` do; a source or operation if all
its fields do; a field if one of its values does, and of a `not` field none. What Istio holds against a certificate is
held against the SPIFFE ID here too: one without `/ns/` has no namespace.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_network
from typing import Final

from bulkhead.dataplane.requests import (
    All,
    Always,
    AnyOf,
    CalledAddress,
    Caller,
    CallerAddress,
    Claim,
    Condition,
    Header,
    Host,
    How,
    Method,
    Not,
    Path,
    Port,
    ServerName,
    Text,
)
from bulkhead.policy.istio import ANY_SEGMENTS, ONE_SEGMENT, IstioRule, Networks, Operation, Source, Texts, When

SCHEME: Final = "spiffe://"

SPACED: Final = (("scope",), ("permission",))
"""Claims that Istio reads as a list of words when they are one text."""

_PCHAR: Final = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]"
_PCHARS: Final = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]"

Reader = Callable[[str], Condition]


def rule_condition(rule: IstioRule, namespace: str) -> Condition:
    """The condition of a rule; `namespace` is its policy's, to which service accounts without one belong."""
    parts = [
        _any(_source(source, namespace) for source in rule.sources),
        _any(_operation(operation) for operation in rule.operations),
        *(_when(when, namespace) for when in rule.when),
    ]
    return _all(parts)


def _source(source: Source, namespace: str) -> Condition:
    return _all(
        [
            *_field(source.principals, source.not_principals, _principal),
            *_field(source.request_principals, source.not_request_principals, _request_principal),
            *_field(source.namespaces, source.not_namespaces, _namespace),
            *_field(source.service_accounts, source.not_service_accounts, _account_in(namespace)),
            *_field(source.trust_domains, source.not_trust_domains, _trust_domain),
            *_addresses(source.ip_blocks, source.not_ip_blocks, CallerAddress),
            *_addresses(source.remote_ip_blocks, source.not_remote_ip_blocks, _forwarded),
        ]
    )


def _operation(operation: Operation) -> Condition:
    return _all(
        [
            *_field(operation.hosts, operation.not_hosts, lambda text: Host(_text(text, ignore_case=True))),
            *_field(map(str, operation.ports), map(str, operation.not_ports), _port),
            *_field(operation.methods, operation.not_methods, lambda text: Method(_text(text))),
            *_field(operation.paths, operation.not_paths, _path),
        ]
    )


def _when(when: When, namespace: str) -> Condition:
    return _all(_field(when.values, when.not_values, _reader(when, namespace)))


def _reader(when: When, namespace: str) -> Reader:
    if when.key == "request.headers":
        return lambda text: Header(when.names[0], _text(text))
    if when.key == "request.auth.claims":
        return _claim_at(when.names)
    return _account_in(namespace) if when.key == "source.serviceAccount" else _READERS[when.key]


# Values and fields


def _all(parts: Iterable[Condition]) -> Condition:
    found = tuple(part for part in parts if part != Always())
    return found[0] if len(found) == 1 else All(found) if found else Always()


def _any(parts: Iterable[Condition]) -> Condition:
    """One of what is written; where nothing is, everything."""
    found = tuple(dict.fromkeys(parts))
    return found[0] if len(found) == 1 else AnyOf(found) if found else Always()


def _field(values: Iterable[str], excluded: Iterable[str], read: Reader) -> list[Condition]:
    wanted, unwanted = [read(value) for value in values], [read(value) for value in excluded]
    return [*([_any(wanted)] if wanted else []), *([Not(_any(unwanted))] if unwanted else [])]


def _addresses(blocks: Networks, excluded: Networks, read: Callable[[Networks], Condition]) -> list[Condition]:
    return [*([read(blocks)] if blocks else []), *([Not(read(excluded))] if excluded else [])]


def _text(text: str, *, ignore_case: bool = False) -> Text:
    """A text, its beginning or its end, or that there is one."""
    if text == "*":
        return Text(How.PRESENT)
    if text.startswith("*"):
        return Text(How.SUFFIX, text[1:], ignore_case)
    if text.endswith("*"):
        return Text(How.PREFIX, text[:-1], ignore_case)
    return Text(How.EXACT, text, ignore_case)


# Callers


def _principal(text: str) -> Condition:
    found = _text(text)
    if found.how is How.SUFFIX and found.value.startswith("/"):
        # the `/` stands behind a trust domain, and is not the last of the scheme
        bare = Text(How.EXACT, SCHEME[:-1] + found.value)
        return All((Caller(found), Not(Caller(bare))))
    if found.how in (How.SUFFIX, How.PRESENT):
        return Caller(found)
    return Caller(Text(found.how, SCHEME + found.value))


def _namespace(text: str) -> Condition:
    return Caller(Text(How.REGEX, f".*/ns/{re.escape(text).replace(re.escape('*'), '.*')}/.*"))


def _account_in(namespace: str) -> Reader:
    def read(text: str) -> Condition:
        own, _, name = text.rpartition("/")
        return Caller(
            Text(How.REGEX, rf"{SCHEME}.+/ns/{re.escape(own or namespace)}/(?:.+/|)sa/{re.escape(name)}(?:/.+)?")
        )

    return read


def _trust_domain(text: str) -> Condition:
    found = _text(text)
    if found.how is How.PRESENT:
        return Caller(found)
    before, behind = ("[^/]*" if found.how is how else "" for how in (How.SUFFIX, How.PREFIX))
    return Caller(Text(How.REGEX, f"{SCHEME}{before}{re.escape(found.value)}{behind}/.*"))


def _forwarded(networks: Networks) -> Condition:
    return CallerAddress(networks, forwarded=True)


# Tokens


def _request_principal(text: str) -> Condition:
    """Issuer and subject each by itself: put together, one text could be two pairs."""
    if text == "*":
        return _token(Text(How.PRESENT), Text(How.PRESENT))
    issuer, slash, subject = text.rpartition("/")
    if slash:
        return _token(_text(issuer), _text(subject))
    found = _text(text)
    present = Text(How.PRESENT)
    return _token(present, found) if found.how is How.SUFFIX else _token(found, present)


def _token(issuer: Text, subject: Text) -> Condition:
    return All((Claim(("iss",), issuer), Claim(("sub",), subject)))


def _claim_at(path: Texts) -> Reader:
    def read(text: str) -> Condition:
        found = _text(text)
        if path not in SPACED or found.how is How.PRESENT:
            return Claim(path, found)
        before, behind = ("[^ ]*" if found.how is how else "" for how in (How.SUFFIX, How.PREFIX))
        return Claim(path, Text(How.REGEX, f"(?:.* )?{before}{re.escape(found.value)}{behind}(?: .*)?"))

    return read


# Where to


def _port(text: str) -> Condition:
    return Port(int(text), int(text))


def _path(text: str) -> Condition:
    """A template is written out as the expression that Envoy makes of it: `{**}` may stand for nothing, too."""
    if "{" not in text:
        return Path(_text(text))
    parts = re.split(f"({re.escape(ANY_SEGMENTS)}|{re.escape(ONE_SEGMENT)})", text)
    stands_for = {ANY_SEGMENTS: f"{_PCHARS}*", ONE_SEGMENT: f"{_PCHAR}+"}
    return Path(Text(How.REGEX, "".join(stands_for.get(part) or re.escape(part) for part in parts)))


def _block(text: str) -> Networks:
    return (ip_network(text),)


_READERS: Final[Mapping[str, Reader]] = {
    "source.ip": lambda text: CallerAddress(_block(text)),
    "remote.ip": lambda text: _forwarded(_block(text)),
    "source.namespace": _namespace,
    "source.principal": _principal,
    "source.trustDomain": _trust_domain,
    "request.auth.principal": _request_principal,
    "request.auth.audiences": _claim_at(("aud",)),
    "request.auth.presenter": _claim_at(("azp",)),
    "destination.ip": lambda text: CalledAddress(_block(text)),
    "destination.port": _port,
    "connection.sni": lambda text: ServerName(_text(text)),
}
"""Attributes without brackets, but for service accounts."""
