"""Lanes: the ways out of a node, each with the SVID of one caller and the names of those who may answer it."""

from __future__ import annotations

from bulkhead.dataplane.mesh import HBONE_PORT, LANE_PORT, Lane, Mesh
from bulkhead.observe.requests import Kind
from bulkhead.proxy.names import id_pattern, own_id
from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.terms import (
    CALLER,
    TLS_1_3,
    Message,
    access_log,
    connection_life,
    extension,
    filter_state,
    http2,
    limits,
    socket_address,
    state,
    svid,
    typed,
    validation,
)

SERVER_NAMES = "hbone.bulkhead"
"""What the server name of every tunnel ends in; before it stands the port that is called."""


def lane_listener(lane: Lane, mesh: Mesh, node: ProxyNode) -> Message:
    """Takes the conversations that the kernel steers into the lane, and asks it where each was to go."""
    server_name = state("envoy.network.upstream_server_name", f"%DOWNSTREAM_LOCAL_PORT%.{SERVER_NAMES}", shared=True)
    caller = state(CALLER, own_id(mesh.svids[lane.source], node), factory="envoy.string")
    tunnel = extension(
        "envoy.filters.network.tcp_proxy",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="lane",
        cluster=_name(lane),
        tunneling_config={"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"},
        idle_timeout="0s",
        access_log=[access_log(node, Kind.LANE)],
    )
    original_dst = extension(
        "envoy.filters.listener.original_dst", "extensions.filters.listener.original_dst.v3.OriginalDst"
    )
    return typed(
        "config.listener.v3.Listener",
        name=_name(lane),
        stat_prefix="lane",
        address=socket_address(lane.address, LANE_PORT),
        listener_filters=[original_dst],
        filter_chains=[{"filters": [filter_state("network", {"on_new_connection": [server_name, caller]}), tunnel]}],
    )


def lane_cluster(lane: Lane, mesh: Mesh, node: ProxyNode) -> Message:
    """Tunnels of the lane: to whichever node the caller called, as the caller, and to nobody else than its peers."""
    tls = extension(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        max_session_keys=0,
        common_tls_context={
            "tls_params": TLS_1_3,
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": svid(own_id(mesh.svids[lane.source], node)),
            **validation(f"spiffe://{node.trust_domain}", [id_pattern(mesh.svids[peer], node) for peer in lane.peers]),
        },
    )
    options = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        common_http_protocol_options={"idle_timeout": "60s", "max_connection_duration": connection_life(node)},
        explicit_http_config={"http2_protocol_options": http2()},
    )
    return typed(
        "config.cluster.v3.Cluster",
        name=_name(lane),
        alt_stat_name="lane",
        type="ORIGINAL_DST",
        lb_policy="CLUSTER_PROVIDED",
        original_dst_lb_config={"upstream_port_override": HBONE_PORT},
        connect_timeout="5s",
        circuit_breakers=limits(),
        transport_socket=tls,
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )


def _name(lane: Lane) -> str:
    return f"lane-{lane.number}"
