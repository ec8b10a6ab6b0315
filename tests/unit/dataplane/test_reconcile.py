"""The delta turns what is there into what should be there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bulkhead.dataplane.reconcile import MapDelta, reconcile

MAPS = st.dictionaries(st.binary(max_size=1), st.binary(max_size=1), max_size=8)


@given(MAPS, MAPS)
def test_applied_delta_gives_the_desired_map(desired: dict[bytes, bytes], actual: dict[bytes, bytes]) -> None:
    delta = reconcile(desired, actual)
    result = {key: value for key, value in actual.items() if key not in delta.remove}
    assert not delta.add.keys() & actual.keys()
    assert delta.change.keys() <= actual.keys()
    assert result | delta.add | delta.change == desired
    assert bool(delta) is (desired != actual)


def test_equal_maps_need_nothing() -> None:
    delta = reconcile({b"a": b"1"}, {b"a": b"1"})
    assert delta == MapDelta({}, {}, ())
    assert delta.size == 0
