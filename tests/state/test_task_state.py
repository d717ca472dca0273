from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dataflow.core import limits
from dataflow.core.errors import NodeError, StateError
from dataflow.state.api import BEFORE_ALL_MS, Timer, TimerClock
from dataflow.state.changelog import VALUE, Entry, decode_key, encode_key
from dataflow.state.store import open_store
from dataflow.state.task_state import TaskState

KEY = b"k"


def task(path: Path | None = None, now_ms: int = 1_000) -> TaskState:
    state = TaskState(open_store(path, "topic", now_ms), "changelog", 0)
    state.begin(now_ms)
    return state


def commit(state: TaskState, next_offset: int = 1) -> int:
    """How many records the changelog gets."""
    state.settle()
    changes = state.changes()
    if changes:
        state.committed(next_offset)
    return len(changes)


@pytest.mark.parametrize("value", [
    None, True, 0, -(1 << 63), (1 << 64) - 1, 1.5, float("inf"), "", "é", b"\0", [], [1, [None]], {"a": {"b": [b""]}},
    {1: 2}, datetime(2024, 5, 1, 12, tzinfo=UTC),
])  # fmt: skip
def test_a_value_comes_back_as_a_copy_that_may_be_changed(value: Any) -> None:
    node = task().node_state("n")
    node.put(KEY, "a", value)
    given_back = node.get(KEY, "a")
    assert given_back == value
    assert type(given_back) is type(value)
    if isinstance(given_back, list | dict):
        given_back.clear()
        assert node.get(KEY, "a") == value


@pytest.mark.parametrize(("value", "said"), [
    (object(), "cannot hold object: a builtins.object"), (1 << 64, "cannot hold int"), ("\ud800", "cannot hold str"),
    ([1, {2: object}], "cannot hold list"), (bytes(limits.MAX_STATE_RECORD_BYTES), "limit 1000000"),
])  # fmt: skip
def test_a_value_that_cannot_be_carried_is_refused_and_the_old_one_stays(value: Any, said: str) -> None:
    node = task().node_state("n")
    node.put(KEY, "a", 1)
    with pytest.raises(NodeError, match=said):
        node.put(KEY, "a", value)
    assert node.get(KEY, "a") == 1


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NodeError, match="cannot hold list"):
        task().node_state("n").put(KEY, "a", loop)


def test_refusals_of_timers_names_and_times_to_live() -> None:
    node = task().node_state("n")
    with pytest.raises(NodeError, match="did you mean 'event'"):
        node.set_timer(KEY, "a", 1, "evnt")  # type: ignore[arg-type]
    with pytest.raises(NodeError, match="whole milliseconds"):
        node.set_timer(KEY, "a", 1.5)  # type: ignore[arg-type]
    with pytest.raises(NodeError, match="whole milliseconds"):
        node.set_timer(KEY, "a", 1 << 63)
    with pytest.raises(NodeError, match="names no state"):
        node.get(KEY, "\ud800")
    with pytest.raises(NodeError, match="0 is forever"):
        node.put(KEY, "a", 1, -1)


def test_too_many_items_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STATE_ITEMS", 3)
    node = task().node_state("n")
    for name in ("a1", "a2", "a3"):
        node.put(KEY, name, 0)
    assert len(node.items(KEY)) == 3
    node.put(KEY, "b", 0)
    assert len(node.items(KEY, "a")) == 3
    with pytest.raises(NodeError, match="more than 3 entries of one key"):
        node.items(KEY)


def test_a_commit_writes_each_changed_entry_once_and_none_that_came_and_went() -> None:
    state = task()
    node = state.node_state("n")
    for number in range(10):
        node.put(KEY, "count", number)
        node.put(b"passing", "a", number)
        node.delete(b"passing", "a")
        node.set_timer(b"passing", "t", 5)
        node.clear_timer(b"passing", "t")
        state.settle()
    ((key, _),) = state.changes()
    assert decode_key(key) == Entry(VALUE, "n", KEY, "count")
    state.committed(1)
    node.put(KEY, "count", 9)
    assert commit(state) == 0, "it was 9"
    node.delete(KEY, "count")
    state.settle()
    assert state.changes() == [(key, None)]


def test_what_settles_while_a_commit_is_on_its_way_goes_with_the_next() -> None:
    state = task()
    node = state.node_state("n")
    node.put(KEY, "a", 1)
    state.settle()
    state.begin(1_000)
    node.put(KEY, "b", 1)
    assert len(state.changes()) == 1
    state.settle()
    assert state.wants_commit
    state.committed(1)
    assert [decode_key(key).name for key, _ in state.changes()] == ["b"]


def test_pending_bytes_grow_with_what_settled_and_end_with_the_commit() -> None:
    state = task()
    state.node_state("n").put(KEY, "a", bytes(1_000))
    assert state.pending_bytes == 0
    state.settle()
    assert 1_000 < state.pending_bytes < 1_100
    state.changes()
    assert state.pending_bytes == 0


def test_the_watermark_only_moves_on_is_one_record_a_commit_and_comes_back(tmp_path: Path) -> None:
    state = task(tmp_path / "0.sqlite")
    node = state.node_state("n")
    assert node.watermark_ms == BEFORE_ALL_MS
    for watermark_ms in (5, 9, 7):
        node.advance(watermark_ms)
        state.settle()
    assert node.watermark_ms == 9
    assert commit(state) == 1
    assert commit(state) == 0
    state.close()
    again = task(tmp_path / "0.sqlite")
    assert again.node_state("n").watermark_ms == 9
    again.close()


def test_time_to_live_ends_for_readers_at_once_and_is_removed_soon_after() -> None:
    state = task(now_ms=1_000)
    node = state.node_state("n")
    node.put(KEY, "a", 1, ttl_ms=500)
    node.put(KEY, "b", 1)
    commit(state)
    state.begin(1_499)
    assert node.get(KEY, "a") == 1
    state.begin(1_500)
    assert node.get(KEY, "a") is None
    assert node.items(KEY) == [("b", 1)]
    due_ms = state.due_ms()
    assert due_ms == 2_000
    state.begin(due_ms)
    assert state.pop_due(due_ms, 10) == [], "nodes see none of it"
    state.settle()
    assert state.changes() == [(encode_key(Entry(VALUE, "n", KEY, "a")), None)]
    state.committed(2)
    state.begin(due_ms + limits.STATE_SAVE_INTERVAL_MS)
    state.pop_due(due_ms + limits.STATE_SAVE_INTERVAL_MS, 10)
    assert state.due_ms() is None


def test_a_time_to_live_that_was_prolonged_is_kept() -> None:
    state = task(now_ms=1_000)
    node = state.node_state("n")
    node.put(KEY, "a", 1, ttl_ms=500)
    commit(state)
    node.put(KEY, "a", 2, ttl_ms=10_000)
    state.settle()
    state.begin(2_000)
    state.pop_due(2_000, 10)
    assert node.get(KEY, "a") == 2
    assert commit(state) == 1


def test_housekeeping_never_asks_for_the_same_time_again() -> None:
    """What is due is done when it is due: an engine that waits for `due_ms` would spin otherwise."""
    state = task(now_ms=1_000)
    node = state.node_state("n")
    for number in range(3 * limits.MAX_STATE_EXPIRED):
        node.put(KEY, str(number), 1, ttl_ms=number % 7 + 1)
    node.set_timer(KEY, "t", 1_500)
    offset = 0
    rounds = 0
    while True:
        state.settle()
        offset += len(state.changes())
        state.committed(offset)
        due_ms = state.due_ms()
        if due_ms is None:
            break
        state.begin(due_ms)
        state.pop_due(due_ms, 1)
        rounds += 1
        assert rounds < 20
    assert node.items(KEY) == []


def test_processing_timers_of_all_nodes_fire_in_one_order() -> None:
    state = task()
    a, b = state.node_state("a"), state.node_state("b")
    b.set_timer(b"1", "x", 10)
    a.set_timer(b"2", "x", 10)
    a.set_timer(b"1", "x", 10)
    b.set_timer(b"9", "x", 5)
    a.set_timer(b"0", "x", 2_000)
    a.set_timer(b"0", "e", 1, "event")
    assert state.due_ms() == 5
    assert state.pop_due(1_000, 3) == [
        ("b", Timer(5, b"9", "x")), ("a", Timer(10, b"1", "x")), ("b", Timer(10, b"1", "x")),
    ]  # fmt: skip
    assert state.pop_due(1_000, 3) == [("a", Timer(10, b"2", "x"))]
    assert state.due_ms() == 2_000


def test_a_timer_moves_between_clocks_by_its_name() -> None:
    state = task()
    node = state.node_state("n")
    node.set_timer(KEY, "t", 10, "event")
    commit(state)
    node.set_timer(KEY, "t", 20)
    node.advance(100)
    assert node.pop_event_timer() is None
    assert state.pop_due(1_000, 9) == [("n", Timer(20, KEY, "t"))]


def test_nodes_do_not_see_each_other() -> None:
    state = task()
    state.node_state("n").put(KEY, "a", 1)
    assert state.node_state("n") is state.node_state("n")
    assert state.node_state("m").get(KEY, "a", "none") == "none"
    assert state.node_state("n\0").items(KEY) == []


def test_timers_of_a_node_that_is_no_longer_there_do_not_fire(tmp_path: Path) -> None:
    state = task(tmp_path / "0.sqlite")
    state.node_state("gone").set_timer(KEY, "t", 5)
    commit(state)
    state.close()
    again = task(tmp_path / "0.sqlite")
    again.node_state("n")
    assert again.due_ms() is None
    assert again.pop_due(1_000, 9) == []
    again.close()


def test_restoring_names_the_record_that_is_none_of_ours() -> None:
    state = TaskState(open_store(None, "topic", 0), "dataflow.state.shop", 3)
    key = encode_key(Entry(VALUE, "n", KEY, "a"))
    with pytest.raises(StateError, match=r"dataflow\.state\.shop \[3\] offset 8 is not"):
        state.restore([(7, key, b"\0\x01"), (8, b"?", b"")], 9)
    assert state.checkpoint == 0


def test_restoring_takes_the_newest_of_a_key() -> None:
    state = TaskState(open_store(None, "topic", 0), "changelog", 0)
    key = encode_key(Entry(VALUE, "n", KEY, "a"))
    state.restore([(0, key, b"\0\x01"), (1, key, None), (2, key, b"\0\x03")], 3)
    assert state.checkpoint == 3
    assert state.node_state("n").get(KEY, "a") == 3
    state.forget()
    assert state.checkpoint == 0
    assert state.node_state("n").get(KEY, "a") is None


def test_a_value_that_is_no_msgpack_is_told() -> None:
    state = TaskState(open_store(None, "topic", 0), "changelog", 0)
    state.restore([(0, encode_key(Entry(VALUE, "n", KEY, "a")), b"\0\xc1")], 1)
    with pytest.raises(StateError, match="state 'a' does not decode"):
        state.node_state("n").get(KEY, "a")


def test_memory_does_not_grow_with_the_keys_that_were_seen() -> None:
    state = task()
    node = state.node_state("n")
    value = bytes(10_000)
    for number in range(2_000):
        state.begin(1_000)
        node.put(b"%d" % number, "a", value)
        commit(state, number + 1)
    held = sum(len(v or b"") for v in state._layers.live.values())
    assert held < 2 * limits.MAX_STATE_CACHE_BYTES + limits.STATE_SAVE_ENTRIES * len(value)
    assert node.get(b"7", "a") == value


@given(
    st.lists(
        st.tuples(st.sampled_from((b"a", b"b", b"c")), st.sampled_from(("x", "y")), st.integers(0, 8)),
        max_size=30,
    ),
    st.data(),
)
def test_timers_fire_in_the_same_order_however_often_it_is_committed(
    sets: list[tuple[bytes, str, int]], data: st.DataObject
) -> None:
    clock: TimerClock = "event"

    def fired(often: bool) -> list[Timer]:
        state = task()
        node = state.node_state("n")
        found: list[Timer] = []
        for offset, (key, name, at_ms) in enumerate(sets):
            node.set_timer(key, name, at_ms, clock)
            node.advance(at_ms - 2)
            while timer := node.pop_event_timer():
                found.append(timer)
            if often and data.draw(st.booleans()):
                commit(state, offset + 1)
                state.begin(1_000 + offset * 1_000)
        return found

    assert fired(often=True) == fired(often=False)


def test_a_hot_key_does_not_drive_the_others_out_of_memory() -> None:
    state = task()
    node = state.node_state("n")
    for number in range(2_000):
        state.begin(1_000)
        node.put(b"%d" % number, "a", 1)
        commit(state, number + 1)
    remembered = set(state._layers.live)
    for number in range(30_000):
        state.begin(1_000)
        node.put(b"hot", "a", number)
        before = node.savepoint()
        node.put(b"hot", "a", bytes(1_000))
        node.rollback(before)
        state.settle()
    assert remembered < set(state._layers.live)


def test_what_was_undone_is_not_counted_as_held() -> None:
    state = task()
    node = state.node_state("n")
    value = bytes(100_000)
    node.put(b"1", "a", value)
    for _ in range(200):
        before = node.savepoint()
        node.put(b"1", "a", b"")
        node.put(b"2", "a", value)
        node.rollback(before)
    assert state._layers._held_bytes == pytest.approx(len(value), rel=0.01)
