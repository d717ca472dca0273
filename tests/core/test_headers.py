"""The one place that spells headers."""

from __future__ import annotations

from dataflow.core import headers

NAMES = {
    name: value
    for name, value in vars(headers).items()
    if name.isupper() and isinstance(value, str) and not name.startswith("STATUS_")
}


def test_ours_are_marked_as_ours_and_none_is_spelt_twice() -> None:
    foreign = {"TRACEPARENT", "TRACESTATE"}
    assert all(value.startswith("df-") == (name not in foreign) for name, value in NAMES.items())
    assert len(set(NAMES.values())) == len(NAMES)
    assert all(value.isascii() and value == value.lower() for value in NAMES.values())


def test_sets_hold_known_names() -> None:
    for known in (headers.PER_HOP, headers.REQUEST, headers.ON_DEAD_LETTER):
        assert known <= set(NAMES.values())
    assert not headers.PER_HOP & headers.REQUEST
    # A redriven record is told from its earlier deaths by what is shed.
    assert all(value.startswith("df-error") for value in headers.ON_DEAD_LETTER)
