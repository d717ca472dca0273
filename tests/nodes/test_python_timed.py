"""Plain functions with a limit of time. No test waits for a clock but for the limit itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflow.core.batch import Batch
from dataflow.core.errors import NodeBrokenError
from dataflow.core.outcomes import Out
from dataflow.core.schema import Schema
from dataflow.testing.nodes import build_node
from nodes._python_rows import Lost
from nodes._python_timed import MAX_LEFT_BEHIND, TimedCalls
from nodes.python import TransformPython
from tests.conftest import wait_for

LIMIT_MS = 250  # also what a call that does nothing may take on a busy machine
TOO_LONG = Lost(f"took longer than {LIMIT_MS} ms", "TimeoutError", retryable=True)


class Place:
    """A name that no other test has, and a gate at which calls hang until the test is over."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gate = threading.Event()
        self.open: list[TimedCalls] = []

    def calls(
        self, function: Callable[..., Any], concurrency: int = 1, limit_ms: int = LIMIT_MS
    ) -> TimedCalls:
        made = TimedCalls(self.name, function, limit_ms, concurrency, Path())
        self.open.append(made)
        return made

    def hang(self, row: str) -> str:
        """What a row named "hang" does."""
        if row == "hang":
            self.gate.wait()
        return row.upper()


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(f"p/{request.node.name}")
    yield made
    made.gate.set()
    for calls in made.open:
        calls.close()
    wait_for(
        lambda: not [t for t in threading.enumerate() if t.name.startswith(made.name)],
        "the end of all threads",
    )


def rows(*names: str) -> list[tuple[str]]:
    return [(name,) for name in names]


def test_a_row_beyond_its_time_fails_and_its_call_goes_on(place: Place) -> None:
    calls = place.calls(place.hang)
    assert calls.results(rows("a", "hang", "b")) == ["A", TOO_LONG, "B"]
    assert calls.left_behind == 1
    place.gate.set()
    wait_for(lambda: calls.left_behind == 0, "the end of the call")
    assert calls.results(rows("c", "d")) == ["C", "D"], "what came too late is nobody's result"


def test_so_many_calls_run_at_once_and_keep_their_order(place: Place) -> None:
    barrier = threading.Barrier(3)

    def meet(row: str) -> str:
        barrier.wait()  # passes only when three calls are inside
        return row

    assert place.calls(meet, 3, 60_000).results(rows(*"abcdef")) == list("abcdef")


def test_what_is_over_its_time_does_not_hold_back_the_others(place: Place) -> None:
    calls = place.calls(place.hang, 2)
    assert calls.results(rows("hang", "a", "hang", "b")) == [TOO_LONG, "A", TOO_LONG, "B"]
    assert calls.left_behind == 2


def test_threads_are_used_again(place: Place) -> None:
    calls = place.calls(lambda row: threading.get_ident(), limit_ms=60_000)
    assert len(set(calls.results(rows("a", "b")) + calls.results(rows("c")))) == 1


def test_a_generator_does_its_work_within_the_time(place: Place) -> None:
    def children(row: str) -> Iterator[str]:
        yield row
        place.gate.wait()

    assert place.calls(children).results(rows("a")) == [TOO_LONG]
    assert place.calls(lambda row: iter([row, row]), limit_ms=60_000).results(rows("b")) == [["b", "b"]]


def test_whatever_is_raised_ends_one_row(place: Place) -> None:
    def leave(row: str) -> str:
        if row == "exit":
            raise SystemExit("enough")
        return row

    results = place.calls(leave, limit_ms=60_000).results(rows("exit", "a"))
    assert results[0] == Lost("enough", "SystemExit")
    assert results[1] == "a"


def test_too_many_calls_left_behind_break_the_node_until_they_are_over(place: Place) -> None:
    calls = place.calls(place.hang, MAX_LEFT_BEHIND)
    assert calls.results(rows(*["hang"] * MAX_LEFT_BEHIND)) == [TOO_LONG] * MAX_LEFT_BEHIND
    message = (
        rf"{place.name}: 9 calls that took longer than 250 ms are still running, at most 8 may "
        r"\(give the client that it calls a timeout, or write `async def`; a restart of the process ends them\)"
    )
    with pytest.raises(NodeBrokenError, match=message.replace("[", r"\[").replace("]", r"\]")):
        calls.results(rows("hang", "never called"))
    calls.close()
    with pytest.raises(NodeBrokenError):  # the stage that begins anew still sees them
        place.calls(place.hang)
    place.gate.set()
    wait_for(lambda: calls.left_behind == 0, "the end of the calls")
    assert place.calls(place.hang).results(rows("a")) == ["A"]


def test_a_function_with_a_timeout_in_a_node(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "import threading\n"
        "from typing import TypedDict\n"
        "gate = threading.Event()\n"
        "class Row(TypedDict):\n    y: float\n"
        "def f(row: dict) -> Row:\n"
        "    if row['x'] == 1: gate.wait()\n"
        "    if row['x'] == 2: raise ValueError('two')\n"
        "    return {'y': row['x']}\n"
    )
    schema = Schema.of(x="float64")
    node: Any = build_node(
        TransformPython, schema, {"call": "code.f", "timeout_ms": LIMIT_MS}, folder=tmp_path
    )
    batch = Batch.of(schema, [{"x": float(x)} for x in range(4)])
    out = Out(batch, ("out",))
    node.process(batch, out)
    node._call.__globals__["gate"].set()
    node.close()
    assert out.emissions[0].columns["y"].tolist() == [0.0, 3.0]
    assert [(loss.row, loss.reason, loss.error, loss.retryable) for loss in out.failed] == [
        (1, "took longer than 250 ms", "TimeoutError", True),
        (2, "two (code.py:8)", "ValueError", False),
    ]
