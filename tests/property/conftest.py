"""How hard the property tests try: `HYPOTHESIS_PROFILE=deep` for a night of fresh examples, `quick` for every run."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")

_CALM = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

# The quick profile tries the same examples on every run, so that it turns red only for the change under test.
settings.register_profile(
    "quick", max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=_CALM
)
settings.register_profile("deep", max_examples=50_000, deadline=None, print_blob=True, suppress_health_check=_CALM)
settings.load_profile(PROFILE)


def pytest_itemcollected(item: pytest.Item) -> None:
    if PROFILE == "deep":
        item.add_marker(pytest.mark.timeout(0))
