"""The cluster of `--inventory`, for commands that judge a policy by its pods."""

from __future__ import annotations

from pathlib import Path

from bulkhead.dataplane.cluster_inventory import SIZE_LIMIT, Cluster, is_cluster, parse_cluster
from bulkhead.dataplane.inventory import read_content
from bulkhead.errors import UsageError


def read_cluster(path: Path) -> Cluster:
    """The cluster in a file.

    Raises UnreachableError when it cannot be read, UsageError when it lists no Kubernetes objects.
    """
    content = read_content(path, SIZE_LIMIT)
    if not is_cluster(content):
        raise UsageError(f"{path}: lists no Kubernetes objects: `kubectl get ns,pods,services,nodes -A -o yaml`")
    return parse_cluster(content, str(path))
