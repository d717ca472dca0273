"""Which inputs of a task's nodes may have records that the nodes were not given: in Kafka, or waiting in the task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from dataflow.runtime.execution import Program
from dataflow.runtime.intake import Intake
from dataflow.state.task_state import TaskState
from dataflow.transport.api import Position


class Unread:
    """Follows the ends of a task's partitions.

    Nothing lies unread where the end was reached and all before it was processed. That is as the consumer knows it: a
    record that the broker has and did not send yet is not seen, nor one that a stage before has not written.
    """

    def __init__(
        self, program: Program, intakes: Mapping[str, Intake], positions: Iterable[Position]
    ) -> None:
        """`intakes` by topic; `positions` are all partitions of the task."""
        reach = {topic: _reach(program, intake.edge) for topic, intake in intakes.items()}
        self._ports = {position: reach[position[0]] for position in positions}
        self._reached: set[Position] = set()
        self._told: frozenset[Position] | None = None

    def read(self, position: Position, *, end: bool) -> None:
        """Records of a partition came; or (`end`) there are no more."""
        if end:
            self._reached.add(position)
        else:
            self._reached.discard(position)

    def lose_sight(self) -> None:
        """The partitions are paused: what comes to them is not known until their ends are reached again."""
        self._reached.clear()

    def tell(self, state: TaskState, waiting: Collection[Position]) -> None:
        """Say it to the nodes; `waiting` are the partitions of which something waits in the task."""
        behind = frozenset(p for p in self._ports if p not in self._reached or p in waiting)
        if behind != self._told:
            self._told = behind
            state.unread(frozenset().union(*(self._ports[p] for p in behind)))


def _reach(program: Program, edge: str) -> frozenset[tuple[str, str]]:
    """The (node, input port) that records of a fetched edge come to within the stage, themselves or what is made of them."""
    found: set[tuple[str, str]] = set()
    edges, seen = [edge], {edge}
    while edges:
        for index, port in program.feeds.get(edges.pop(), ()):
            found.add((program.runners[index].plan.name, port))
            ahead = set(program.edges_of[index].values()) - seen - program.fetched
            seen |= ahead
            edges += ahead
    return frozenset(found)
