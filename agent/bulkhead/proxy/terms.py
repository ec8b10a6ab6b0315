"""Words of Envoy's API that several of its resources are made of."""

from __future__ import annotations

from typing import Any, Final

from bulkhead.observe.requests import Kind, log_fields
from bulkhead.proxy.node import ProxyNode

Message = dict[str, Any]
"""One message of Envoy's API, as JSON."""

CALLER: Final = "bulkhead.caller"
"""Filter state: the URI names of the caller's certificate, joined by commas, so that one name has none."""
PORT: Final = "bulkhead.port"
"""Filter state: the port that was called."""
ADDRESS: Final = "bulkhead.address"
"""Filter state: the address that was called."""
SERVER_NAME: Final = "bulkhead.server_name"
"""Filter state: the name in the client hello of the conversation inside."""
CALLED: Final = "bulkhead.called"
"""Filter state: SPIFFE ID of the workload that was called."""
PAIR: Final = "bulkhead.pair"
"""Filter state: the cluster of the caller and the called workload."""
PRINCIPAL: Final = "bulkhead.principal"
"""Filter state: `ISSUER/SUBJECT` of a verified JWT."""
REFERENCE: Final = "bulkhead.reference"
"""Filter state: by what a person refers to a refused request."""

STREAMS_MAX: Final = 65536
"""Conversations at once, to one peer or from one caller to one workload."""
_API: Final = "type.googleapis.com/envoy."
_SECONDS_PER_MINUTE: Final = 60


def typed(kind: str, **fields: Any) -> Message:
    """A message that says what it is; `kind` is its name after `envoy.`."""
    return {"@type": _API + kind, **fields}


def extension(name: str, kind: str, **fields: Any) -> Message:
    """A filter, matcher or other extension."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def discovered(name: str, kind: str, source: Message) -> Message:
    """A filter whose configuration is a resource of its own, so that it changes without a drain of connections."""
    return {"name": name, "config_discovery": {"config_source": source, "type_urls": [_API + kind]}}


def file_source(node: ProxyNode, name: str) -> Message:
    """A file of the configuration that is in force, read again whenever another one comes into force.

    Envoy takes an inotify instance for each, of which a user has 128: files are few, however many workloads there are.
    """
    return {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "2s",
        "path_config_source": {
            "path": str(node.configuration / "current" / name),
            "watched_directory": {"path": str(node.configuration)},
        },
    }


def socket_address(address: str, port: int) -> Message:
    """A TCP address."""
    return {"socket_address": {"address": address, "port_value": port}}


def pipe(path: object) -> Message:
    """A Unix socket."""
    return {"pipe": {"path": str(path)}}


def filter_state(kind: str, moments: dict[str, list[Message]]) -> Message:
    """The filter that sets filter state: `kind` is `http` or `network`."""
    name = f"envoy.filters.{kind}.set_filter_state"
    return extension(name, f"extensions.filters.{kind}.set_filter_state.v3.Config", **moments)


def state(key: str, text: str, *, factory: str = "", shared: bool = False) -> Message:
    """One value of filter state from a format; a well-known key is its own factory. `shared`: with the next hop."""
    value: Message = {
        "object_key": key,
        "format_string": {"text_format_source": {"inline_string": text}, "omit_empty_values": True},
        "read_only": False,
    }
    if factory:
        value["factory_key"] = factory
    if shared:
        value["shared_with_upstream"] = "ONCE"
    return value


def early_headers(*mutations: Message) -> list[Message]:
    """Changes of a request's headers before anything looks at them."""
    kind = "http.early_header_mutation.header_mutation"
    return [extension(f"envoy.{kind}", f"extensions.{kind}.v3.HeaderMutation", mutations=list(mutations))]


def overwritten(name: str, value: str) -> Message:
    """The header gets that value, whatever was sent."""
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def limits() -> Message:
    """Circuit breakers that only a runaway meets: the kernel bounds conversations, not a default of 1024."""
    names = ("max_connections", "max_pending_requests", "max_requests")
    return {"thresholds": [dict.fromkeys(names, STREAMS_MAX)]}


def connection_life(node: ProxyNode) -> str:
    """How long a tunnel takes new conversations: half an SVID's life, so that no handshake stands for longer."""
    return f"{node.svid_minutes * _SECONDS_PER_MINUTE // 2}s"


def http2(**more: Any) -> Message:
    """HTTP/2 between two proxies."""
    return {
        "allow_connect": True,
        "max_concurrent_streams": 1024,
        "initial_stream_window_size": 1 << 20,
        "initial_connection_window_size": 1 << 24,
        "connection_keepalive": {"interval": "15s", "timeout": "5s"},
        **more,
    }


def svid(spiffe_id: str) -> list[Message]:
    """Where the certificate of that name comes from."""
    return [_secret(spiffe_id)]


def _secret(name: str) -> Message:
    """By the one stream of all secrets. A listener that waits for one takes others' conversations after the timeout."""
    source = {"resource_api_version": "V3", "initial_fetch_timeout": "0.5s", "ads": {}}
    return {"name": name, "sds_config": source}


def validation(bundle: str, names: list[Message] | None = None) -> Message:
    """How a peer's certificate is judged: by the SPIFFE bundle of that name, and, if any are given, by its URI name."""
    matchers = [{"san_type": "URI", "matcher": name} for name in names or ()]
    context = {"match_typed_subject_alt_names": matchers} if matchers else {}
    return {
        "combined_validation_context": {
            "default_validation_context": context,
            "validation_context_sds_secret_config": _secret(bundle),
        }
    }


TLS_1_3: Final = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}


def access_log(node: ProxyNode, kind: Kind, *, by_server_name: bool = False) -> Message:
    """Records of that kind, a JSON line each, into the agent's FIFO."""
    fields = log_fields(kind, by_server_name=by_server_name)
    return extension(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(node.access),
        log_format={"json_format": fields, "omit_empty_values": True},
    )
