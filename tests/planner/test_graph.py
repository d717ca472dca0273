from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataflow.planner.graph import edge_name, in_order


def test_edge_names() -> None:
    assert edge_name("a", "out", ("out", "rest")) == "a"
    assert edge_name("a", "rest", ("out", "rest")) == "a.rest"
    assert edge_name("a", "kept", ("kept",)) == "a"
    assert edge_name("a", "late", ("late", "on_time")) == "a.late"


def test_the_declared_order_is_kept_where_it_can_be() -> None:
    assert in_order({"c": ["a"], "a": [], "b": [], "d": ["c", "b"]}) == (["a", "c", "b", "d"], [])


def test_cycles_are_shown_along_the_records() -> None:
    order, cycles = in_order({"a": ["c"], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["e"]})
    assert cycles == [["a", "b", "c"], ["e"]]
    assert sorted(order) == ["a", "b", "c", "d", "e"]


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_every_node_once_and_after_its_feeders_unless_a_cycle_is_named(feeders: dict[str, list[str]]) -> None:
    order, cycles = in_order(feeders)
    assert sorted(order) == sorted(feeders)
    for cycle in cycles:
        for node, follower in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            assert node in feeders[follower]
    if not cycles:
        for node, feeds in feeders.items():
            assert all(order.index(feed) < order.index(node) for feed in feeds if feed in feeders)
