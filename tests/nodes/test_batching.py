"""`batch.window`: by size, by time, in order, and everyone with the identity it came with."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.schema import Schema
from nodes.batching import BatchWindow
from tests.nodes.keyed import KeyedRun

SCHEMA = Schema.of(n="int64")


def run(size: int = 4, wait: str = "50ms") -> KeyedRun:
    return KeyedRun(BatchWindow, SCHEMA, {"size": size, "wait": wait})


def give(node: KeyedRun, numbers: range, step_ms: int = 0) -> None:
    node.give([(None, {"n": n}) for n in numbers], step_ms=step_ms)


def out(node: KeyedRun) -> list[int]:
    return [made["n"] for made in node.out]


def test_records_go_when_enough_are_there() -> None:
    with run() as node:
        give(node, range(3))
        assert out(node) == []
        give(node, range(3, 6))
        assert out(node) == [0, 1, 2, 3]
        give(node, range(6, 20))
        assert out(node) == list(range(20))
        node.until(1_000_000)
        assert out(node) == list(range(20))


def test_and_when_the_oldest_has_waited_long_enough() -> None:
    with run() as node:
        give(node, range(1))
        give(node, range(1, 2), step_ms=49)
        node.until(49)
        assert out(node) == []
        node.until(50)
        assert out(node) == [0, 1]
        give(node, range(2, 3), step_ms=10)  # a wait of its own begins
        node.until(109)
        assert out(node) == [0, 1]
        node.until(110)
        assert out(node) == [0, 1, 2]


def test_the_wait_is_the_oldest_ones_also_after_some_went() -> None:
    with run() as node:
        give(node, range(6))
        assert out(node) == [0, 1, 2, 3]
        node.until(50)
        assert out(node) == list(range(6))


def test_records_keep_their_identity() -> None:
    with run() as node:
        node.give([(b"a", {"n": 0}), (None, {"n": 1})])
        node.give([(b"b", {"n": 2}), (b"c", {"n": 3})])
        assert [(m.key, m.id[:8]) for m in node.made] == [
            (b"a", b"00000000"), (None, b"00000001"), (b"b", b"00000002"), (b"c", b"00000003"),
        ]  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(
    st.integers(2, 9),
    st.lists(st.tuples(st.integers(1, 25), st.integers(0, 80), st.booleans()), max_size=12),
)
def test_any_history_loses_and_reorders_nothing(size: int, batches: list[tuple[int, int, bool]]) -> None:
    with run(size) as node:
        total = 0
        for count, pause_ms, restart in batches:
            node.until(node.now_ms + pause_ms)
            give(node, range(total, total + count))
            total += count
            assert total - len(out(node)) < size
            if restart:
                node.restart()
        node.drain()
        assert out(node) == list(range(total))
        assert node.entries(b"") == []
        assert node.task.due_ms() is None


@pytest.mark.parametrize("said", [{"size": 1, "wait": "1s"}, {"size": 2, "wait": "0s"}, {"size": 2}])
def test_what_makes_no_batch_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KeyedRun(BatchWindow, SCHEMA, said)
