"""Families of metrics, made of values by labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Labels = tuple[str, ...]
K = TypeVar("K", bound=Labels)


def counter(name: str, text: str, labels: Labels, series: Mapping[K, float]) -> Metric:
    """A counter; Prometheus adds `_total` to the name."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in series.items():
        family.add_metric(values, value)
    return family


def gauge(name: str, text: str, labels: Labels, series: Mapping[K, float]) -> Metric:
    """A gauge."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in series.items():
        family.add_metric(values, value)
    return family
