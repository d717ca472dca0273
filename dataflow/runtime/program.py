"""What all tasks of a stage share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from dataflow.codecs import Codec
from dataflow.observe.metrics import StageMetrics
from dataflow.observe.traces import Tracing
from dataflow.planner.plan import AnswerWhen, StagePlan
from dataflow.runtime.execution import Program
from dataflow.runtime.intake import Intake
from dataflow.runtime.keeping import StatePlace
from dataflow.runtime.writer import EdgeWriter
from dataflow.transport.api import Position


@dataclass(frozen=True)
class StageProgram:
    """What all tasks of a stage share: the nodes, how to read each topic, how to write each edge."""

    plan: StagePlan
    origin: str
    program: Program
    intakes: Mapping[str, Intake]  # by topic
    writers: Mapping[str, EdgeWriter]  # by edge
    answer_when: AnswerWhen | None
    on_answer_path: bool
    seeds: Mapping[Position, int]
    metrics: StageMetrics
    tracing: Tracing | None = None
    exactly_once: bool = False
    state: StatePlace | None = None

    @property
    def outputs(self) -> dict[str, Collection[str]]:
        """The edges that each node writes."""
        runners, edges = self.program.runners, self.program.edges_of
        return {runner.plan.name: of.values() for runner, of in zip(runners, edges, strict=True)}

    @cached_property
    def codecs(self) -> dict[str, Codec]:
        """Those of all edges of the stage, by edge."""
        read = {intake.edge: intake.codec for intake in self.intakes.values()}
        return {**read, **{edge: writer.codec for edge, writer in self.writers.items()}}
