"""A pipeline's graph with every reference looked up and every contract known: what planning starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflow.core.schema import Schema
from dataflow.planner.tables import ResolvedTable
from dataflow.sdk import NodeKind, Settings
from dataflow.spec import Declared, NodeSpec, PipelineSpec, Problem


@dataclass(frozen=True)
class ResolvedEdge:
    """One stream: the records of a pipeline input (`topic`) or of a node's output port (`producer`, `port`).

    key    fields that make the record key; () keeps the parent record's
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

    def origins(self, edge: str) -> frozenset[str]:
        """The edges where the records of `edge` begin: inputs of the pipeline, and outputs of sources."""
        found = self.edges[edge]
        inputs = self.nodes[found.producer].inputs if found.producer is not None else {}
        before = [self.origins(fed) for edges in inputs.values() for fed in edges]
        return frozenset().union(*before) if before else frozenset({edge})
