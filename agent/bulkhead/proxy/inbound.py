"""The ways in: one listener for all tunnels, a chain for each workload that is called, and who may call it on what.

What the chains accept stands in a route configuration beside them, so that a change of policy drains no tunnel. The
kernel judges the last leg again, by the identities that its socket carries; what is refused here it would refuse too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from bulkhead.dataplane.mesh import HBONE_PORT, Call, Mesh
from bulkhead.dataplane.requests import Authorization
from bulkhead.observe.requests import Kind
from bulkhead.proxy.names import authority_pattern, id_pattern, own_id
from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.outbound import SERVER_NAMES
from bulkhead.proxy.terms import (
    CALLER,
    PAIR,
    TLS_1_3,
    Message,
    access_log,
    connection_life,
    early_headers,
    extension,
    file_source,
    filter_state,
    http2,
    limits,
    overwritten,
    socket_address,
    state,
    svid,
    typed,
    validation,
)

NARROW: Final = 64
"""An interval of more ports is wide: it gets names only for the ports on which somebody listens."""

_SET_STATE: Final = "envoy.filters.http.set_filter_state"
_SO_MARK: Final = (1, 36)
_SO_PRIORITY: Final = (1, 12)
_ANY: Final = "*"
_CALLED_HEADER: Final = "x-bulkhead-called"
"""Which chain a request came by, for its routes; it never leaves Envoy."""
CALLERS: Final = "callers"
CALLERS_FILE: Final = f"{CALLERS}.json"


def pair_name(source: int, destination: int) -> str:
    """The cluster of that caller and that called workload."""
    return f"pair-{source}-{destination}"


def requests_name(destination: int) -> str:
    """The internal listener of a workload whose requests are judged, and the cluster that leads to it."""
    return f"requests-{destination}"


def server_names(mesh: Mesh, listeners: Mapping[int, int]) -> dict[str, int]:
    """Which workload answers for each server name of a tunnel.

    A port at which only one workload may be called is that one's; of several, the one's that listens there now. `*`
    stands for every other name, and for none (ztunnel sends none), where only one workload could be meant.
    """
    wanted: dict[int, set[int]] = defaultdict(set)
    wide = {call.destination for call in mesh.calls if any(last - first >= NARROW for first, last in call.ports)}
    for call in mesh.calls:
        for port in _named_ports(call, listeners):
            wanted[port].add(call.destination)
    chosen: dict[str, int] = {}
    for port, candidates in sorted(wanted.items()):
        listening = listeners.get(port)
        if listening in candidates:
            chosen[f"{port}.{SERVER_NAMES}"] = listening
        elif len(candidates) == 1:
            chosen[f"{port}.{SERVER_NAMES}"] = min(candidates)
    called = {call.destination for call in mesh.calls}
    if len(called) == 1:
        return {_ANY: min(called)}
    if len(wide) == 1:
        chosen[f"*.{SERVER_NAMES}"] = min(wide)
    return chosen


def _named_ports(call: Call, listeners: Mapping[int, int]) -> Iterator[int]:
    for first, last in call.ports:
        if last - first < NARROW:
            yield from range(first, last + 1)
        else:
            yield from (port for port in listeners if first <= port <= last)


def inbound_listener(mesh: Mesh, node: ProxyNode, listeners: Mapping[int, int]) -> Message:
    """Takes every tunnel that other nodes, and this one, open to this one's workloads."""
    chains = [_chain(name, identity, mesh, node) for name, identity in server_names(mesh, listeners).items()]
    first, *others = (socket_address(address, HBONE_PORT) for address in node.binds)
    return typed(
        "config.listener.v3.Listener",
        name="inbound",
        stat_prefix="inbound",
        address=first,
        additional_addresses=[{"address": one} for one in others],
        listener_filters=[
            extension(
                "envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector"
            )
        ],
        listener_filters_timeout="5s",
        filter_chains=chains,
        access_log=[access_log(node, Kind.CONNECTION)],
    )


def _chain(name: str, identity: int, mesh: Mesh, node: ProxyNode) -> Message:
    """One name, one chain: those of other names keep their connections when this one comes or goes."""
    tls = extension(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
        common_tls_context={
            "tls_params": TLS_1_3,
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": svid(own_id(mesh.svids[identity], node)),
            **validation("ALL"),
        },
    )
    match: Message = {"transport_protocol": "tls", "application_protocols": ["h2"]}
    if name != _ANY:
        match["server_names"] = [name]
    caller = state(CALLER, "%DOWNSTREAM_PEER_URI_SAN%", factory="envoy.string", shared=True)
    return {
        "name": f"{identity} {name}",
        "filter_chain_match": match,
        "filters": [
            filter_state("network", {"on_downstream_tls_handshake": [caller, _FROM]}),
            _tunnels(identity, node),
        ],
        "transport_socket": tls,
        "transport_socket_connect_timeout": "10s",
    }


_FROM_KEY: Final = "bulkhead.from"
_FROM: Final = state(_FROM_KEY, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", factory="envoy.string")
"""Whence a tunnel comes. No other node's can come from loopback: the kernel lets no such packet in."""
_FROM_HERE: Final = {"key": _FROM_KEY, "string_match": {"safe_regex": {"regex": "127\\.0\\.0\\.1|::1"}}}


def _tunnels(identity: int, node: ProxyNode) -> Message:
    """Ends tunnels: CONNECT over HTTP/2 and nothing else."""
    called = state("envoy.network.transport_socket.original_dst_address", "%REQ(:AUTHORITY)%")
    inside_called = state("envoy.filters.listener.original_dst.local_ip", "%REQ(:AUTHORITY)%", shared=True)
    inside_caller = state("envoy.filters.listener.original_dst.remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS%", shared=True)
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="tunnels",
        codec_type="HTTP2",
        http2_protocol_options=http2(),
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        common_http_protocol_options={"max_connection_duration": connection_life(node), "max_headers_count": 32},
        max_request_headers_kb=8,
        request_headers_timeout="5s",
        stream_idle_timeout="0s",
        use_remote_address=True,
        skip_xff_append=True,
        generate_request_id=False,
        early_header_mutation_extensions=early_headers(overwritten(_CALLED_HEADER, str(identity))),
        rds={"route_config_name": CALLERS, "config_source": file_source(node, CALLERS_FILE)},
        http_filters=[
            filter_state("http", {"on_request_headers": [called, inside_called, inside_caller]}),
            original_source(),
            router(),
        ],
        access_log=[access_log(node, Kind.INBOUND)],
    )


def original_source() -> Message:
    """Makes the last leg come from the caller's address; the kernel sees to it that the answer finds its way."""
    return extension("envoy.filters.http.original_src", "extensions.filters.http.original_src.v3.OriginalSrc")


def router() -> Message:
    """The last filter of every chain of them."""
    return extension(
        "envoy.filters.http.router", "extensions.filters.http.router.v3.Router", suppress_envoy_headers=True
    )


def caller_routes(mesh: Mesh, node: ProxyNode) -> Message:
    """Who may call whom on what. A request that is no CONNECT, or that nobody named here makes, gets 403."""
    judged = {one.destination: one for one in mesh.authorizations}
    by_request = [call for call in mesh.calls if call.destination in judged]
    routes = []
    for is_here in (False, True):
        routes += [_requests_route(call, judged[call.destination], mesh, node, is_here) for call in by_request]
    routes += [_route(call, pair_name(call.source, call.destination), mesh, node) for call in mesh.calls]
    refusal = {"direct_response": {"status": 403}}
    routes += [{"match": {"connect_matcher": {}}, **refusal}, {"match": {"prefix": "/"}, **refusal}]
    return typed(
        "config.route.v3.RouteConfiguration",
        name=CALLERS,
        validate_clusters=False,
        virtual_hosts=[{"name": CALLERS, "domains": ["*"], "routes": routes}],
    )


def _requests_route(call: Call, judged: Authorization, mesh: Mesh, node: ProxyNode, is_here: bool) -> Message:
    """To where requests are judged; matched before the route to the workload itself.

    `is_here`: for what this node's own workloads call on loopback, where no other node may reach.
    """
    route = _route(call, requests_name(call.destination), mesh, node, is_here)
    route["match"]["headers"].append(_authority(node, judged.ports, is_here))
    pair = pair_name(call.source, call.destination)
    onward = [
        state("envoy.tcp_proxy.cluster", pair, shared=True),
        state(PAIR, pair, factory="envoy.string", shared=True),
    ]
    per_route = typed("extensions.filters.http.set_filter_state.v3.Config", on_request_headers=onward)
    return route | {"typed_per_filter_config": {_SET_STATE: per_route}}


def _route(call: Call, cluster: str, mesh: Mesh, node: ProxyNode, is_here: bool = False) -> Message:
    caller = {"key": CALLER, "string_match": id_pattern(mesh.svids[call.source], node)}
    called = {"name": _CALLED_HEADER, "string_match": {"exact": str(call.destination)}}
    return {
        "match": {
            "connect_matcher": {},
            "headers": [called, _authority(node, call.ports, is_here)],
            "filter_state": [caller, *([_FROM_HERE] if is_here else [])],
        },
        "route": {
            "cluster": cluster,
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }


def _authority(node: ProxyNode, ports: tuple[tuple[int, int], ...], is_here: bool = False) -> Message:
    pattern = authority_pattern([one for one in node.addresses if ip_address(one).is_loopback is is_here], ports)
    return {"name": ":authority", "string_match": {"safe_regex": {"regex": pattern}}}


def pair_cluster(source: int, destination: int) -> Message:
    """Last legs of one caller to one workload: their sockets tell the kernel of both.

    A leg is never shared by two conversations of callers, so that to cut one cuts no other.
    """
    options = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        common_http_protocol_options={"idle_timeout": "0s"},
        use_downstream_protocol_config={"http_protocol_options": {}, "http2_protocol_options": {"allow_connect": True}},
    )
    return typed(
        "config.cluster.v3.Cluster",
        name=pair_name(source, destination),
        alt_stat_name="pair",
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        connect_timeout="5s",
        circuit_breakers=limits(),
        connection_pool_per_downstream_connection=True,
        upstream_bind_config={"socket_options": [_option(_SO_MARK, source), _option(_SO_PRIORITY, destination)]},
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )


def _option(option: tuple[int, int], value: int) -> Message:
    level, name = option
    return {"level": level, "name": name, "int_value": value, "state": "STATE_PREBIND"}
