"""A stage as the workshop builds it, before anything of it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dataflow.core import limits
from dataflow.runtime.program import StageProgram
from dataflow.sdk import Node


class TableFeed(Protocol):
    """Broadcast tables of a stage: loaded to their ends before the first record, kept current after."""

    def load(self) -> None: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class StageParts:
    """A stage built and not yet running. `program` may be shared by all its tasks; nodes are opened by the loop."""

    program: StageProgram
    nodes: Sequence[Node]
    tables: TableFeed
    commit_every_ms: int = limits.COMMIT_INTERVAL_MS
