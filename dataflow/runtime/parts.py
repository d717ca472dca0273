"""A stage as the workshop builds it, before anything of it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dataflow.core import limits
from dataflow.core.inprocess import Desk, Handover
from dataflow.runtime.program import StageProgram
from dataflow.sdk import Node


class TableFeed(Protocol):
    """Broadcast tables of a stage: loaded to their ends before the first record, kept current after."""

    def load(self) -> None: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class StageParts:
    """A stage built and not yet running. `program` may be shared by all its tasks; nodes are opened by the loop.

    `desk` takes replies to callers in this process, `handover` brings their requests where this stage can take any.
    """

    program: StageProgram
    nodes: Sequence[Node]
    tables: TableFeed
    commit_every_ms: int = limits.COMMIT_INTERVAL_MS
    desk: Desk = field(default_factory=Desk)
    handover: Handover | None = None
