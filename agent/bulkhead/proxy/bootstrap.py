"""What Envoy is started with, and what a change of needs a new process of it."""

from __future__ import annotations

from typing import Final

from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.terms import Message, extension, file_source, pipe, typed

_STATS: Final = (
    *("cluster.lane.", "cluster.pair.", "cluster.svids.", "cluster.rego.", "listener.lane.", "listener.inbound."),
    *("listener_manager.", "cluster_manager.", "http.tunnels.", "tcp.", "server."),
    "http.requests",
)
"""A prefix with a dot at its end finds no counters of single rules, whose names are made as they are counted."""
_STATS_ENDING: Final = (".update_rejected",)
_SVIDS: Final = "svids"
_REGEX_SIZE_MAX: Final = 20000
_CONNECTIONS_MAX: Final = 100_000


def bootstrap(node: ProxyNode) -> Message:
    """Where everything else is found: listeners and clusters in files, SVIDs behind a Unix socket."""
    return {
        "node": {"id": node.host, "cluster": "bulkhead"},
        "admin": {"address": {"pipe": {"path": str(node.admin), "mode": 0o660}}},
        "dynamic_resources": {
            "lds_config": file_source(node, "lds.json"),
            "cds_config": file_source(node, "cds.json"),
            "ads_config": _secrets(),
        },
        "static_resources": {"clusters": [_local(_SVIDS, node.sds_socket), _local("rego", node.rego_socket)]},
        "bootstrap_extensions": [
            extension(
                "envoy.bootstrap.internal_listener",
                "extensions.bootstrap.internal_listener.v3.InternalListener",
            )
        ],
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _stats()}}},
        "layered_runtime": {
            "layers": [
                {
                    "name": "bulkhead",
                    "static_layer": {
                        "re2.max_program_size.error_level": _REGEX_SIZE_MAX,
                        "envoy.reloadable_features.rbac_match_headers_individually": False,
                    },
                }
            ]
        },
        "overload_manager": {
            "resource_monitors": [
                extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=_CONNECTIONS_MAX,
                )
            ]
        },
    }


def _secrets() -> Message:
    """One stream for all secrets: one of its own for each takes three times the memory."""
    again = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "2s"}}
    return {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": _SVIDS, "retry_policy": again}}],
    }


def _local(name: str, path: object) -> Message:
    """A gRPC service behind a Unix socket."""
    options = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={
            "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "10s"}}
        },
    )
    endpoint = {"endpoint": {"address": pipe(path)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


def _stats() -> list[Message]:
    """Only what is asked for is counted: memory grows with workloads otherwise."""
    return [{"prefix": one} for one in _STATS] + [{"suffix": one} for one in _STATS_ENDING]
