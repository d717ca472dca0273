"""Keyed state as plain dicts: what a TaskState must look like from outside, and a rule machine that compares the two."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dataflow.core import limits
from dataflow.state.api import BEFORE_ALL_MS, KeyedState, Timer, TimerClock
from dataflow.state.store import Store, open_store
from dataflow.state.task_state import TaskState

NODES = ("a", "ab")
KEYS = (b"k", b"k\x00")
NAMES = ("", "x", "xé")
VALUES: tuple[Any, ...] = (0, "text", {"a": [1.5, b"\x00", None]}, None)

nodes = st.sampled_from(NODES)
keys = st.sampled_from(KEYS)
names = st.sampled_from(NAMES)
clocks: st.SearchStrategy[TimerClock] = st.sampled_from(("processing", "event"))
times = st.integers(0, 60).map(lambda n: n * 500)

# Reading is work, too: to read everything after each step would leave nothing unread in the file.
Operation = tuple[str, tuple[Any, ...]]
work: st.SearchStrategy[list[Operation]] = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"),
            st.tuples(keys, names, st.sampled_from(VALUES), st.sampled_from((0, 0, 700, 3_000))),
        ),
        st.tuples(st.just("delete"), st.tuples(keys, names)),
        st.tuples(st.just("set_timer"), st.tuples(keys, names, times, clocks)),
        st.tuples(st.just("clear_timer"), st.tuples(keys, names)),
        st.tuples(st.just("advance"), st.tuples(times)),
        st.tuples(st.just("pop"), st.tuples()),
        st.tuples(st.just("get"), st.tuples(keys, names)),
        st.tuples(st.just("items"), st.tuples(keys, names)),
    ),
    min_size=1,
    max_size=6,
)

Id = tuple[str, bytes, str]


@dataclass
class Model:
    """Values with the time from which they read as absent, timers, watermarks."""

    values: dict[Id, tuple[Any, int]] = field(default_factory=dict)
    timers: dict[Id, tuple[TimerClock, int]] = field(default_factory=dict)
    watermarks: dict[str, int] = field(default_factory=dict)

    def value(self, entry: Id, now_ms: int) -> Any:
        value, expires_ms = self.values.get(entry, ("absent", 0))
        return "absent" if expires_ms and expires_ms <= now_ms else value

    def waiting(self, clock: TimerClock, node: str = "") -> list[tuple[str, Timer]]:
        """In the order in which they fire."""
        found = [
            (n, Timer(at_ms, key, name, clock))
            for (n, key, name), (by, at_ms) in self.timers.items()
            if by == clock and n.startswith(node) and (not node or n == node)
        ]
        return sorted(found, key=lambda item: (item[1], item[0]))


class StateMachine(RuleBasedStateMachine):
    """One task's life: batches, timers, commits, crashes at any point, and a log that is compacted meanwhile."""

    make: ClassVar[type[TaskState]] = TaskState
    in_file: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        # So small that a few entries meet every bound.
        for name, value in (
            ("STATE_SAVE_ENTRIES", 4), ("STATE_TIMERS_AHEAD", 2), ("MAX_STATE_TIMERS_HELD", 3),
            ("MAX_STATE_CACHE_BYTES", 1_500), ("MAX_STATE_EXPIRED", 2), ("STATE_SAVE_INTERVAL_MS", 2_000), ("STATE_RESTORE_RECORDS", 2),
        ):  # fmt: skip
            self.patch.setattr(limits, name, value)
        self.folder = tempfile.TemporaryDirectory()
        self.now_ms = 1_000
        self.log: list[tuple[int, bytes, bytes | None]] = []
        self.end = 0
        self.running, self.settled, self.committed = Model(), Model(), Model()

    @initialize()
    def start(self) -> None:
        self.state = self.make(self.open(), "changelog", 0)
        assert self.state.checkpoint <= self.end
        self.read()
        self.state.begin(self.now_ms)
        for node in NODES:
            self.of(node)

    def open(self) -> Store:
        path = Path(self.folder.name) / "0.sqlite" if self.in_file else None
        return open_store(path, "topic", self.now_ms)

    def read(self, parts: int = -1) -> None:
        """The changelog from the checkpoint on, or so many parts of it."""
        records = [r for r in self.log if r[0] >= self.state.checkpoint]
        for at in range(0, len(records), 3)[: parts if parts >= 0 else None]:
            part = records[at : at + 3]
            self.state.restore(part, part[-1][0] + 1)

    def of(self, node: str) -> KeyedState:
        return self.state.node_state(node)

    # What nodes do.

    @rule(node=nodes, work=work)
    def a_row(self, node: str, work: list[Operation]) -> None:
        for name, values in work:
            getattr(self, f"do_{name}")(node, *values)

    @rule(node=nodes, work=work)
    def a_row_that_fails(self, node: str, work: list[Operation]) -> None:
        before = copy.deepcopy(self.running)
        savepoint = self.of(node).savepoint()
        self.a_row(node, work)
        before.watermarks = self.running.watermarks
        self.of(node).rollback(savepoint)
        self.running = before

    def do_put(self, node: str, key: bytes, name: str, value: Any, ttl_ms: int) -> None:
        self.of(node).put(key, name, value, ttl_ms)
        self.running.values[node, key, name] = (value, self.now_ms + ttl_ms if ttl_ms else 0)

    def do_delete(self, node: str, key: bytes, name: str) -> None:
        self.of(node).delete(key, name)
        self.running.values.pop((node, key, name), None)

    def do_set_timer(self, node: str, key: bytes, name: str, at_ms: int, clock: TimerClock) -> None:
        self.of(node).set_timer(key, name, at_ms, clock)
        self.running.timers[node, key, name] = (clock, at_ms)

    def do_clear_timer(self, node: str, key: bytes, name: str) -> None:
        self.of(node).clear_timer(key, name)
        self.running.timers.pop((node, key, name), None)

    def do_advance(self, node: str, watermark_ms: int) -> None:
        self.of(node).advance(watermark_ms)
        before = self.running.watermarks.get(node, BEFORE_ALL_MS)
        self.running.watermarks[node] = max(before, watermark_ms)

    def do_pop(self, node: str) -> None:
        waiting = self.running.waiting("event", node)
        due = [t for _, t in waiting if t.at_ms <= self.running.watermarks.get(node, BEFORE_ALL_MS)]
        assert self.of(node).pop_event_timer() == (due[0] if due else None)
        if due:
            del self.running.timers[node, due[0].key, due[0].name]

    def do_get(self, node: str, key: bytes, name: str) -> None:
        expected = self.running.value((node, key, name), self.now_ms)
        assert self.of(node).get(key, name, "absent") == expected

    def do_items(self, node: str, key: bytes, prefix: str) -> None:
        found = [(n, self.running.value((node, key, n), self.now_ms)) for n in NAMES if n.startswith(prefix)]
        assert self.of(node).items(key, prefix) == [(n, value) for n, value in found if value != "absent"]

    # What the engine does.

    @rule(passed_ms=st.integers(0, 2_500))
    def next_batch(self, passed_ms: int) -> None:
        self.state.settle()
        self.settled = copy.deepcopy(self.running)
        self.now_ms += passed_ms
        self.state.begin(self.now_ms)

    @rule(limit=st.integers(1, 3))
    def fire(self, limit: int) -> None:
        due = [(n, t) for n, t in self.running.waiting("processing") if t.at_ms <= self.now_ms]
        assert self.state.pop_due(self.now_ms, limit) == due[:limit]
        for node, timer in due[:limit]:
            del self.running.timers[node, timer.key, timer.name]

    @rule(between=st.booleans())
    def commit(self, between: bool) -> None:
        if between:
            self.next_batch(0)
        if self.write():
            self.state.committed(self.end)

    def write(self) -> bool:
        changes = self.state.changes()
        for key, value in changes:
            self.log.append((self.end, key, value))
            self.end += 1
        self.committed = copy.deepcopy(self.settled)
        return bool(changes)

    @rule(
        how=st.sampled_from(("stop", "crash", "after_changelog", "lost_file", "while_restoring", "discard"))
    )
    def restart(self, how: str) -> None:
        """The end of a process that never comes to a commit, or comes half way; or of its work alone."""
        if how == "after_changelog":
            self.write()
        if how == "discard":
            self.state.discard()
        elif how == "stop":
            self.state.close()
        else:
            self.state._store.close()
        if how == "lost_file":
            for file in Path(self.folder.name).iterdir():
                file.unlink()
        if how == "while_restoring":
            self.state = self.make(self.open(), "changelog", 0)
            self.read(1)
            self.state.close()
        self.settled = copy.deepcopy(self.committed)
        self.running = copy.deepcopy(self.committed)
        if how != "discard":
            self.start()

    @rule()
    def compact(self) -> None:
        newest = {key: offset for offset, key, _ in self.log}
        self.log = [r for r in self.log if newest[r[1]] == r[0]]

    @rule(node=nodes)
    def look_ahead(self, node: str) -> None:
        events = self.running.waiting("event", node)
        assert self.of(node).next_event_ms() == (events[0][1].at_ms if events else None)
        waiting = self.running.waiting("processing")
        due_ms = self.state.due_ms()
        assert not waiting or (due_ms is not None and due_ms <= waiting[0][1].at_ms)

    @invariant()
    def watermarks_are_alike(self) -> None:
        for node in NODES:
            assert self.of(node).watermark_ms == self.running.watermarks.get(node, BEFORE_ALL_MS)

    def teardown(self) -> None:
        try:
            for node in NODES:
                for key in KEYS:
                    for name in NAMES:
                        self.do_get(node, key, name)
                    self.do_items(node, key, "")
                self.look_ahead(node)
        finally:
            self.state._store.close()
            self.folder.cleanup()
            self.patch.undo()
