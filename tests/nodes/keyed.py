"""Run a keyed node over a task's state in memory, as the engine does: batches, timers, the end of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dataflow.core.batch import Batch, Row, read_order, to_list
from dataflow.core.outcomes import Ending, Out
from dataflow.core.schema import Schema
from dataflow.runtime.intake import with_deleted
from dataflow.state.api import KeyedState
from dataflow.state.store import open_store
from dataflow.state.task_state import TaskState
from dataflow.testing import build_node
from dataflow.testing.nodes import kind_of


@dataclass(frozen=True)
class Made:
    """One record that the node emitted."""

    port: str
    key: bytes | None
    id: bytes
    fields: dict[str, Any]
    reply: bytes = b""
    deadline_ms: int = 0


@dataclass
class Ends:
    """How rows ended, by their number over all batches."""

    dropped: list[tuple[int, str]] = field(default_factory=list)
    failed: list[tuple[int, str, str]] = field(default_factory=list)  # row, error, reason
    retryable: list[int] = field(default_factory=list)
    ended: list[Ending] = field(default_factory=list)


class KeyedRun:
    """One node in one task. `made` are its records in order, `ends` what became of rows that did not go on."""

    def __init__(
        self,
        target: Callable[..., Any],
        inputs: Schema | Mapping[str, Schema],
        settings: Mapping[str, Any] | None = None,
        *,
        now_ms: int = 0,
        folder: Path = Path(),
        out: Schema | None = None,
        keep: Sequence[str] | None = None,
    ) -> None:
        self.inputs = {"in": inputs} if isinstance(inputs, Schema) else dict(inputs)
        kind = kind_of(target)
        node: Any = build_node(kind, self.inputs, settings, out=out, keep=keep, folder=folder)
        assert node.keyed
        self.node = node
        self.ports = kind.ports(kind.settings.model_validate(dict(settings or {})))
        self.task = TaskState(open_store(None, "topic", now_ms))
        self.state: KeyedState = self.task.node_state("node")
        self.now_ms = now_ms
        self.made: list[Made] = []
        self.ends = Ends()
        self._rows = 0
        self._offset = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        closer = getattr(self.node, "close", None)
        if closer is not None:
            closer()
        self.task.close()

    @property
    def out(self) -> list[dict[str, Any]]:
        """Fields of what went out on port `out`."""
        return [made.fields for made in self.made if made.port == "out"]

    def give(
        self,
        records: Sequence[tuple[bytes | None, Mapping[str, Any] | None]],
        port: str = "in",
        step_ms: int = 0,
        *,
        reply: bytes = b"",
        deadline_ms: int = 0,
    ) -> Out:
        """A batch of (key, fields), None for a tombstone, of one caller; the clock moves `step_ms` before it."""
        self.now_ms += step_ms
        rows = [
            Row(f"{self._rows + i:08x}-0000-7000-8000-000000000000".encode(), key, i, (), reply, deadline_ms)
            for i, (key, _) in enumerate(records)
        ]
        there = [(fields, row) for (_, fields), row in zip(records, rows, strict=True) if fields is not None]
        gone = [row for (_, fields), row in zip(records, rows, strict=True) if fields is None]
        batch = Batch.of(self.inputs[port], [fields for fields, _ in there], [row for _, row in there])
        if gone:
            batch = with_deleted(batch, gone)
        out = Out(batch, self.ports)
        self.task.begin(self.now_ms)
        self.node.process(batch, out, port, self.state)
        out.settle()
        self._take(batch, out)
        self._rows += len(records)
        return out

    def until(self, now_ms: int) -> None:
        """Move the clock on, from one timer that is due to the next."""
        while (due_ms := self.task.due_ms()) is not None and due_ms <= now_ms:
            self.now_ms = max(self.now_ms, due_ms)
            self._at_once(lambda out, timers: self.node.fire(timers, out, self.state))
        self.now_ms = now_ms

    def fire_late(self, now_ms: int) -> None:
        """The engine did not run until `now_ms`: all that is due fires then."""
        self.now_ms = now_ms
        self._at_once(lambda out, timers: self.node.fire(timers, out, self.state))

    def drain(self) -> None:
        """The inputs have ended."""
        self._at_once(lambda out, _: self.node.drain(out, self.state))

    def restart(self) -> None:
        """Commit, and go on with a task that has nothing but what was committed."""
        records = self.task.changes()
        made = [(self._offset + i, key, value) for i, (key, value) in enumerate(records)]
        self._offset += len(records)
        self.task.committed(self._offset)
        store = open_store(None, "topic", self.now_ms)
        self._log = [*getattr(self, "_log", []), *made]
        self.task.close()
        self.task = TaskState(store)
        self.task.restore(self._log, self._offset)
        self.state = self.task.node_state("node")

    def entries(self, key: bytes) -> list[str]:
        """Names of what is stored for a key."""
        return [name for name, _ in self.state.items(key)]

    def _at_once(self, call: Callable[[Out, list[Any]], None]) -> None:
        batch = Batch(Schema(()), {}, [])
        out = Out(batch, self.ports)
        self.task.begin(self.now_ms)
        timers = [timer for _, timer in self.task.pop_due(self.now_ms, 1000)]
        call(out, timers)
        self._take(batch, out)

    def _take(self, batch: Batch, out: Out) -> None:
        self.task.settle()
        found: list[tuple[int, Made]] = []
        for emission in out.emissions:
            cells = [to_list(column) for column in emission.columns.values()]
            records = [dict(zip(emission.columns, v, strict=True)) for v in zip(*cells, strict=True)]
            causes = emission.parents.tolist()
            rows = emission.made if emission.made is not None else [batch.rows[i] for i in causes]
            for fields, row, cause in zip(records, rows, causes, strict=True):
                made = Made(emission.port, row.key, row.id, fields, row.reply, row.deadline_ms)
                found.append((cause, made))
        order = np.argsort(read_order(np.array([cause for cause, _ in found], dtype=np.intp)), kind="stable")
        self.made += [found[i][1] for i in order.tolist()]
        self.ends.dropped += [(loss.row + self._rows, loss.reason) for loss in out.dropped]
        self.ends.failed += [(loss.row + self._rows, loss.error, loss.reason) for loss in out.failed]
        self.ends.retryable += [loss.row + self._rows for loss in out.failed if loss.retryable]
        self.ends.ended += out.endings
