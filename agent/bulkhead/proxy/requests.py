"""Where requests are judged: a listener inside Envoy for each workload with ports on which they are.

A tunnel to such a port ends there instead of at the workload. What comes out of it is HTTP, judged request by request,
or TLS, of which only the server name is seen.
"""

from __future__ import annotations

from typing import Final

from bulkhead.dataplane.mesh import Mesh
from bulkhead.dataplane.requests import Authorization
from bulkhead.observe.requests import CALLER_HEADER, Kind
from bulkhead.proxy.authorization import (
    HTTP_RBAC,
    JWT,
    JWT_AUTHN,
    JWT_FILE,
    NETWORK_RBAC,
    SERVER_NAMES,
    SERVER_NAMES_FILE,
    ask_prefix,
    asking,
    filters_of_route,
    packages,
)
from bulkhead.proxy.inbound import original_source, requests_name, router
from bulkhead.proxy.names import own_id
from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.terms import (
    ADDRESS,
    CALLED,
    CALLER,
    PAIR,
    PORT,
    PRINCIPAL,
    REFERENCE,
    SERVER_NAME,
    Message,
    access_log,
    discovered,
    early_headers,
    extension,
    file_source,
    filter_state,
    limits,
    overwritten,
    state,
    typed,
)

REFERENCE_HEADER: Final = "x-bulkhead-reference"
"""In a refusal: by what a person refers to it."""
_FORWARDED_HEADER: Final = "x-bulkhead-forwarded-for"
_PAIR_HEADER: Final = "x-bulkhead-pair"
"""The cluster that a request goes to; it never leaves Envoy."""
REQUESTS: Final = "requests"
REQUESTS_FILE: Final = f"{REQUESTS}.json"
_REGO_TIMEOUT: Final = "0.4s"
_RBAC: Final = "envoy.filters.http.rbac"


def requests_cluster(authorization: Authorization) -> Message:
    """The way from the end of a tunnel into the listener inside."""
    name = requests_name(authorization.destination)
    inside = extension(
        "envoy.transport_sockets.internal_upstream",
        "extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
        transport_socket=extension(
            "envoy.transport_sockets.raw_buffer", "extensions.transport_sockets.raw_buffer.v3.RawBuffer"
        ),
    )
    endpoint = {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": name}}}}
    return typed(
        "config.cluster.v3.Cluster",
        name=name,
        alt_stat_name="requests",
        type="STATIC",
        connect_timeout="5s",
        circuit_breakers=limits(),
        load_assignment={"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        transport_socket=inside,
    )


def requests_listener(authorization: Authorization, mesh: Mesh, node: ProxyNode) -> Message:
    """Judges what comes out of tunnels to that workload."""
    called = own_id(mesh.svids[authorization.destination], node)
    known = [
        state(PORT, "%DOWNSTREAM_LOCAL_PORT%", factory="envoy.string"),
        state(ADDRESS, "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", factory="envoy.network.ip"),
        state(CALLED, called, factory="envoy.string"),
    ]
    reference = state(REFERENCE, "%UNIQUE_ID%", factory="envoy.string")
    server_name = state(SERVER_NAME, "%REQUESTED_SERVER_NAME%", factory="envoy.string")
    inside = filter_state("network", {"on_new_connection": [*known, reference, server_name]})
    return typed(
        "config.listener.v3.Listener",
        name=requests_name(authorization.destination),
        stat_prefix="requests",
        internal_listener={},
        listener_filters=[
            _listener_filter("original_dst", "OriginalDst"),
            _listener_filter("tls_inspector", "TlsInspector"),
        ],
        listener_filters_timeout="15s",
        continue_on_listener_filters_timeout=True,
        filter_chains=[
            {
                "name": "tls",
                "filter_chain_match": {"transport_protocol": "tls"},
                "filters": [inside, *_by_server_name(node)],
            },
            {
                "name": "http",
                "filters": [filter_state("network", {"on_new_connection": known}), _http(authorization, node)],
            },
        ],
    )


def _listener_filter(name: str, kind: str) -> Message:
    return extension(f"envoy.filters.listener.{name}", f"extensions.filters.listener.{name}.v3.{kind}")


def _by_server_name(node: ProxyNode) -> list[Message]:
    onward = extension(
        "envoy.filters.network.tcp_proxy",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="requests",
        cluster="none",
        idle_timeout="0s",
        access_log=[access_log(node, Kind.REQUEST, by_server_name=True)],
    )
    return [discovered(SERVER_NAMES, NETWORK_RBAC, file_source(node, SERVER_NAMES_FILE)), onward]


def _http(authorization: Authorization, node: ProxyNode) -> Message:
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="requests",
        codec_type="AUTO",
        **_NORMALISATION,
        http_protocol_options={"accept_http_10": True},
        upgrade_configs=[{"upgrade_type": "websocket"}],
        request_headers_timeout="15s",
        stream_idle_timeout="0s",
        delayed_close_timeout="0.1s",
        original_ip_detection_extensions=[_NOBODY_FORWARDS],
        early_header_mutation_extensions=_CALLER_TOLD,
        generate_request_id=False,
        server_header_transformation="PASS_THROUGH",
        local_reply_config=_REFUSAL,
        rds={"route_config_name": REQUESTS, "config_source": file_source(node, REQUESTS_FILE)},
        http_filters=_filters(authorization, node),
        access_log=[access_log(node, Kind.REQUEST)],
    )


_NOBODY_FORWARDS: Final = extension(
    "envoy.http.original_ip_detection.custom_header",
    "extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig",
    header_name=_FORWARDED_HEADER,
)
"""The caller's address is that of its conversation, whatever headers say, and those of a proxy before it stay: the only
way to have both is to look for the address in a header that was taken out before."""

_CALLER_TOLD: Final = early_headers(
    {"remove": _FORWARDED_HEADER},
    overwritten(CALLER_HEADER, f"%FILTER_STATE({CALLER}:PLAIN)%"),
    overwritten(_PAIR_HEADER, f"%FILTER_STATE({PAIR}:PLAIN)%"),
)

_NORMALISATION: Final[Message] = {
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "REJECT_REQUEST",
    "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
}

_REFUSAL: Final[Message] = {
    "mappers": [
        {
            "filter": {
                "status_code_filter": {
                    "comparison": {"op": "EQ", "value": {"default_value": 403, "runtime_key": "bulkhead.refused"}}
                }
            },
            "headers_to_add": [
                {
                    "header": {"key": REFERENCE_HEADER, "value": f"%FILTER_STATE({REFERENCE}:PLAIN)%"},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
            ],
            "body_format_override": {
                "text_format_source": {
                    "inline_string": f"denied by policy: bulkhead why %FILTER_STATE({REFERENCE}:PLAIN)%\n"
                }
            },
        }
    ]
}


def _filters(authorization: Authorization, node: ProxyNode) -> list[Message]:
    """In the order in which a request meets them."""
    reference = state(REFERENCE, "%UNIQUE_ID%", factory="envoy.string")
    issuer, subject = (f"%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:jwt:{name})%" for name in ("iss", "sub"))
    who = state(PRINCIPAL, f"{issuer}/{subject}", factory="envoy.string")
    return [
        filter_state("http", {"on_request_headers": [reference]}) | {"name": "reference"},
        discovered(JWT, JWT_AUTHN, file_source(node, JWT_FILE)),
        filter_state("http", {"on_request_headers": [who]}) | {"name": "principal"},
        *(one for number, _ in enumerate(packages(authorization)) for one in _asking(number)),
        *(_unless_a_route_says_more(part) for part in ("audit", "deny", "allow")),
        original_source(),
        router(),
    ]


def _unless_a_route_says_more(name: str) -> Message:
    """An RBAC filter that refuses everything. How its counters are called is its own affair, and no route's."""
    prefix = f"{name}_"
    nothing = {"action": "ALLOW"}
    return extension(name, HTTP_RBAC, rules=nothing, rules_stat_prefix=prefix, shadow_rules_stat_prefix=prefix)


def _asking(number: int) -> list[Message]:
    """Finds out whether a rule asks Rego about the request, and if so asks; silence is a refusal."""
    matched = {
        "filter": _RBAC,
        "path": [{"key": f"{ask_prefix(number)}shadow_effective_policy_id"}],
        "value": {"present_match": True},
    }
    asked = extension(
        _rego(number),
        "extensions.filters.http.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        grpc_service={"envoy_grpc": {"cluster_name": "rego"}, "timeout": _REGO_TIMEOUT},
        failure_mode_allow=False,
        status_on_error={"code": "Forbidden"},
        include_peer_certificate=False,
        metadata_context_namespaces=["envoy.filters.http.jwt_authn"],
        filter_enabled_metadata=matched,
    )
    return [_unless_a_route_says_more(asking(number)), asked]


def _rego(number: int) -> str:
    return f"rego-{number}"


def requests_routes(mesh: Mesh, node: ProxyNode, now: float) -> Message:
    """What is asked of the requests to each workload, and from each caller to its own sockets to the workload."""
    routes = [_requests_route(one, mesh, node, now) for one in mesh.authorizations]
    return typed(
        "config.route.v3.RouteConfiguration",
        name=REQUESTS,
        validate_clusters=False,
        virtual_hosts=[{"name": REQUESTS, "domains": ["*"], "routes": [*routes, _NOBODY]}],
    )


def _requests_route(authorization: Authorization, mesh: Mesh, node: ProxyNode, now: float) -> Message:
    called = {"key": CALLED, "string_match": {"exact": own_id(mesh.svids[authorization.destination], node)}}
    packaged = {
        _rego(number): typed(
            "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
            check_settings={"context_extensions": {"package": name}},
        )
        for number, name in enumerate(packages(authorization))
    }
    return {
        "match": {"prefix": "/", "filter_state": [called]},
        "route": {"cluster_header": _PAIR_HEADER, "timeout": "0s"},
        "request_headers_to_remove": [_PAIR_HEADER],
        "typed_per_filter_config": filters_of_route(authorization, now) | packaged,
    }


_NOBODY: Final[Message] = {"match": {"prefix": "/"}, "direct_response": {"status": 403}}
