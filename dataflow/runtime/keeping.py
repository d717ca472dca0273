"""The state of a stage's tasks: where it is kept, how it comes back, and how its changes get into the changelog.

The changelog is the truth, a local file only saves reading it from the start. A task's changes are written there once
the outputs they belong to are (at least once), or in their transaction (exactly once), and offsets are committed after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dataflow.core import limits
from dataflow.core.errors import TransportError
from dataflow.runtime.writer import Barrier
from dataflow.transport.api import Message, Producer

if TYPE_CHECKING:
    from dataflow.state.task_state import TaskState


def state_folder(project: Path, environ: Mapping[str, str]) -> Path:
    """Where this machine keeps the local files of state: $DATAFLOW_STATE_DIR, else in the project."""
    named = environ.get("DATAFLOW_STATE_DIR", "")
    return Path(named).expanduser() if named else project / ".dataflow" / "state"


@dataclass(frozen=True)
class StatePlace:
    """Where a stage keeps state: its changelog topic, with the id that it has now, and a folder (None: in memory)."""

    changelog: str
    topic_id: str
    folder: Path | None
    nodes: tuple[str, ...]

    def open(self, partition: int, now_ms: int) -> Keeper:
        """The state of one task as the local file has it; the changelog from its checkpoint on is to be read yet."""
        # 4 MB that a worker without state does without.
        from dataflow.state.store import open_store
        from dataflow.state.task_state import TaskState

        path = None if self.folder is None else self.folder / f"{partition}.sqlite"
        state = TaskState(open_store(path, self.topic_id, now_ms), self.changelog, partition)
        return Keeper(state, self.changelog, partition, self.nodes)


class _Written(Barrier):
    """Acknowledgements of changelog records, and where the last of them is."""

    __slots__ = ("next_offset",)

    def __init__(self, next_offset: int) -> None:
        super().__init__()
        self.next_offset = next_offset

    def acknowledged(self, error: object | None, message: object) -> None:
        super().acknowledged(error, message)
        # A log in memory does not tell before the commit; an earlier checkpoint only means to read more again.
        delivered = cast("Message | None", message)
        offset = delivered.offset() if delivered is not None and error is None else None
        if offset is not None:
            self.next_offset = max(self.next_offset, offset + 1)


class Keeper:
    """The state of one task, and its writing. `state` is driven by the task; see `TaskState` for the order of calls."""

    def __init__(self, state: TaskState, changelog: str, partition: int, nodes: Sequence[str]) -> None:
        self.state = state
        self._changelog = changelog
        self._partition = partition
        self._nodes = nodes
        self._written: _Written | None = None

    def ready(self) -> None:
        """All is restored: timers may fire from here on."""
        for name in self._nodes:
            self.state.node_state(name)

    @property
    def full(self) -> bool:
        """So much is changed that it is to be committed before its time."""
        return self.state.pending_bytes >= limits.MAX_STATE_PENDING_BYTES

    def write(self, producer: Producer) -> None:
        """Send all settled changes to the changelog. Once for each commit: `confirm` or `committed` is next."""
        written = _Written(self.state.checkpoint)
        for key, value in self.state.changes():
            # Counted before the call: a full queue serves callbacks from within it.
            written.left += 1
            producer.send(self._changelog, value, key, None, self._partition, written.acknowledged)
            self._written = written

    def confirm(self) -> None:
        """Raises TransportError unless all that was written is acknowledged."""
        written = self._written
        if written is not None and (written.open or written.error):
            cause = written.error or "not acknowledged in time"
            raise TransportError(f"writing state to topic '{self._changelog}': {cause}")

    def committed(self) -> None:
        """The offsets that belong to what was written are committed: it is what the state goes back to from now on."""
        written, self._written = self._written, None
        if written is not None:
            self.state.committed(written.next_offset)

    def close(self) -> None:
        """Let go of it; what was not committed is lost."""
        self.state.close()
