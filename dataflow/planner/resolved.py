"""A pipeline's graph with every reference looked up and every contract known: what planning starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflow.core.schema import Schema
from dataflow.planner.plan import Delivery, TopicPlan
from dataflow.planner.tables import ResolvedTable
from dataflow.sdk import NodeKind, Settings
from dataflow.spec import Declared, NodeSpec, PipelineSpec, Problem


@dataclass(frozen=True)
class Upstream:
    """An edge of another pipeline, as that pipeline's plan has it. `topic` is made and set by the other pipeline."""

    pipeline: str
    edge: str
    delivery: Delivery
    topic: TopicPlan
    max_record_bytes: int
    open: bool

    @property
    def name(self) -> str:
        return f"{self.pipeline}.{self.edge}"


@dataclass(frozen=True)
class ResolvedEdge:
    """One stream: the records of a pipeline input (`topic`) or of a node's output port (`producer`, `port`).

    key    fields that make the record key; () keeps the parent record's
    upstream  the edge of another pipeline that it is, None for one of this pipeline's own
    cut    why it is always read from Kafka, even by its own stage; "" for an edge whose records may stay in memory
    loop   nodes before its producer that it leads back to; () for an edge that closes no loop
    open   outsiders may write to its topic
    """

    name: str
    schema: Schema
    codec: str
    partitions: int
    key: tuple[str, ...] = ()
    key_encoding: str = ""
    producer: str | None = None
    port: str = ""
    topic: str | None = None
    cut: str = ""
    open: bool = False
    upstream: Upstream | None = None
    loop: tuple[str, ...] = ()

    @property
    def places(self) -> bool:
        """Whether it decides where a record lies: an input, and an edge that is keyed anew."""
        return self.producer is None or bool(self.key)


@dataclass(frozen=True)
class ResolvedNode:
    """One node whose every reference is known to be good. `contracts` are its outputs' by port."""

    name: str
    spec: NodeSpec
    kind: NodeKind
    settings: Settings
    raw_settings: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, str]
    contracts: Mapping[str, Schema]
    out: Schema | None
    keep: tuple[str, ...] | None
    models: tuple[str, ...]
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Resolved:
    """A pipeline's graph. Nodes come in an order in which each is after those that feed it.

    failed   edges, and nodes whose ports are not known, that have a fault in or before them: no contract is known
    """

    spec: PipelineSpec
    declared: Declared[PipelineSpec]
    nodes: Mapping[str, ResolvedNode]
    edges: Mapping[str, ResolvedEdge]
    tables: Mapping[str, ResolvedTable]
    problems: tuple[Problem, ...]
    failed: frozenset[str] = frozenset()

    @property
    def edge_names(self) -> tuple[str, ...]:
        """Every edge that may be named, those with faults included."""
        return (*self.edges, *sorted(self.failed))

    def is_known(self, edge: str) -> bool:
        """Whether an edge exists, or belongs to a node so faulty that its ports are not known."""
        return edge in self.edges or edge in self.failed or edge.partition(".")[0] in self.failed

    @property
    def inputs(self) -> dict[str, str]:
        """Topic by input: those declared, and edges of other pipelines that nodes read without declaring them."""
        return {e.name: e.topic for e in self.edges.values() if e.topic is not None}

    @property
    def answer_input(self) -> str | None:
        """Where requests go in: as declared, else the only input, else None."""
        answer = self.spec.answer
        if answer is not None and answer.input is not None:
            return answer.input
        known = self.spec.inputs or self.inputs
        return next(iter(known)) if len(known) == 1 else None

    def read_by(self, node: str) -> tuple[str, ...]:
        """The edges that feed a node, over all its input ports."""
        return tuple(edge for edges in self.nodes[node].inputs.values() for edge in edges)

    def keeps_state(self, node: str) -> bool:
        """Whether a node has state by record key, as it is declared. Its user code is read, not run."""
        found = self.nodes[node]
        return found.kind.keyed_for(found.settings, self.declared.folder)

    def origins(self, edge: str) -> frozenset[str]:
        """The edges where the records of `edge` begin: inputs of the pipeline, and outputs of sources."""
        return self._before(edge, stop_at_places=False)

    def placed_by(self, edge: str) -> frozenset[str]:
        """The edges that decide on which partition, and by which key, the records of `edge` lie."""
        return self._before(edge, stop_at_places=True)

    def _before(self, edge: str, *, stop_at_places: bool) -> frozenset[str]:
        found, seen, waiting = set(), {edge}, [edge]
        while waiting:
            name = waiting.pop()
            one = self.edges[name]
            feeding = () if one.producer is None else self.read_by(one.producer)
            if not feeding or (stop_at_places and one.places):
                found.add(name)
                continue
            waiting += [e for e in feeding if e not in seen]
            seen.update(feeding)
        return frozenset(found)
