"""Builds the stages of a plan in this process: nodes with their models and tables, readers and writers of edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import cast

from dataflow.codecs import Codec, codec_for
from dataflow.codecs.events import Events
from dataflow.core import headers, ids, limits
from dataflow.core.errors import ModelError, NodeError, PlanError
from dataflow.core.inprocess import Handover, InProcess
from dataflow.observe.metrics import Metrics
from dataflow.observe.traces import Tracing
from dataflow.planner.plan import FAILED_PORT, EdgePlan, NodePlan, Plan, StagePlan, TablePlan
from dataflow.registry import Registry
from dataflow.runtime.across import Across, Side, by_way
from dataflow.runtime.execution import Program
from dataflow.runtime.families import Families
from dataflow.runtime.intake import Intake
from dataflow.runtime.keeping import StatePlace
from dataflow.runtime.nodes import NodeRunner
from dataflow.runtime.parts import StageParts
from dataflow.runtime.program import StageProgram
from dataflow.runtime.schemas import SchemaStore, reader_codecs
from dataflow.runtime.table_feed import TopicTables
from dataflow.runtime.writer import EdgeWriter, Target
from dataflow.sdk import ModelInfo, Node, NodeContext, Table
from dataflow.serving import ModelStore, model_info
from dataflow.serving.build import digest_of
from dataflow.transport.api import Fabric, Header, Position


@dataclass
class Workshop:
    """What stages are built from in this process: one of it, shared by all its stages.

    `state_folder` is where local files of state are; None keeps them in memory: a start then reads the whole changelog.
    """

    project: Path
    registry: Registry
    fabric: Fabric
    metrics: Metrics = field(default_factory=Metrics)
    models: ModelStore = field(default_factory=ModelStore)
    tracing: Tracing | None = None
    state_folder: Path | None = None
    inside: InProcess = field(default_factory=InProcess)
    schemas: SchemaStore = field(init=False)

    def __post_init__(self) -> None:
        self.schemas = SchemaStore(self.fabric)

    def build(self, plan: Plan, stage: StagePlan) -> StageParts:
        """The stage, ready to open and run. Raises ModelError, PlanError where this machine has not what was planned."""
        tables = TopicTables(self.fabric, self._tables(plan, stage), self.project / plan.folder)
        nodes = {name: self._node(plan, plan.nodes[name], tables.get) for name in stage.nodes}
        writers = self._writers(plan, stage)
        program = StageProgram(
            plan=stage,
            origin=plan.origin,
            program=self._program(plan, stage, nodes, writers),
            intakes=self._intakes(plan, stage),
            writers=writers,
            answer_when=plan.answer.when if plan.answer is not None and stage.on_answer_path else None,
            on_answer_path=stage.on_answer_path,
            seeds=self._seeds(plan, stage),
            metrics=self.metrics.stage(plan.pipeline, stage.name),
            tracing=self.tracing,
            exactly_once=plan.delivery == "exactly_once",
            state=self._state(stage, nodes),
        )
        commit_ms = max(
            [limits.COMMIT_INTERVAL_MS, *(getattr(n, "commit_every_ms", 0) for n in nodes.values())]
        )
        handover = self._handover(plan, stage)
        return StageParts(program, list(nodes.values()), tables, commit_ms, self.inside.desk, handover)

    def rehearse(self, plan: Plan) -> None:
        """Build and open every node once, and close it: raises NodeError where a stage of this plan could not start.

        Tables are empty meanwhile. User code is imported, models are loaded.
        """
        for stage in plan.stages:
            parts = self.build(plan, stage)
            with ExitStack() as stack:
                stack.callback(parts.tables.close)
                for name, node in zip(stage.nodes, parts.nodes, strict=True):
                    stack.callback(getattr(node, "close", _nothing))
                    try:
                        getattr(node, "open", _nothing)()
                    except Exception as error:
                        reason = str(error) or type(error).__name__
                        raise NodeError(
                            f"node '{name}' of pipeline '{plan.pipeline}' does not start: {reason}"
                        ) from error

    def _state(self, stage: StagePlan, nodes: Mapping[str, Node]) -> StatePlace | None:
        """Where the state of the stage's keyed nodes is kept, None if there are none."""
        keyed = tuple(name for name, node in nodes.items() if is_keyed(node))
        if not stage.changelog:
            if keyed:
                raise PlanError(
                    f"node '{keyed[0]}' keeps state, and its stage '{stage.name}' was planned without any",
                    hint="did its code change? plan anew",
                )
            return None
        admin = self.fabric.admin()
        info = admin.describe([stage.changelog]).get(stage.changelog)
        if info is None:
            raise PlanError(
                f"stage '{stage.name}': the topic of its state, '{stage.changelog}', is not there",
                hint="deploy the plan (dataflow up) first",
            )
        folder = self.state_folder
        if folder is not None:
            folder = folder / admin.cluster_id() / stage.group
        return StatePlace(stage.changelog, info.topic_id, folder, keyed)

    def _handover(self, plan: Plan, stage: StagePlan) -> Handover | None:
        """Where a gateway of this process gives requests to this stage; None where it takes none but from Kafka.

        Handed records come to any partition: nothing for state by key, nor for two inputs that are one task.
        """
        answer, inside = plan.answer, self.inside
        if answer is None or not (inside.handing and stage.on_answer_path) or stage.changelog:
            return None
        fetched = list(plan.fetched(stage))
        shared = any(answer.input in s.shares for s in plan.stages)
        if shared or [edge.name for edge in fetched] != [answer.input] or fetched[0].key:
            return None
        return inside.made_for(plan.pipeline, plan.version, answer.requests_topic)

    def _tables(self, plan: Plan, stage: StagePlan) -> dict[str, TablePlan]:
        return {t: plan.tables[t] for n in stage.nodes for t in plan.nodes[n].tables}

    def _node(self, plan: Plan, node: NodePlan, table: Callable[[str], Table]) -> Node:
        kind = self.registry.get(node.kind)
        context = NodeContext(
            pipeline=plan.pipeline,
            node=node.name,
            folder=self.project / plan.folder,
            inputs={port: plan.edges[edges[0]].schema for port, edges in node.inputs.items()},
            outputs={
                port: plan.edges[edge].schema
                for port, edge in node.outputs.items()
                if not (node.failed and port == FAILED_PORT)
            },
            model=lambda name: self._model(plan, name),
            table=table,
            out=node.out,
            keep=node.keep,
        )
        settings = kind.settings.model_validate(dict(node.settings))
        made = kind.build(settings, context)
        if not node.apart:
            return made
        sides = {port: plan.edges[edges[0]] for port, edges in node.inputs.items()}
        read = {
            port: Side(codec_for(e.codec, e.schema), reader_codecs(self.schemas, e.codec, e.schema))
            for port, e in sides.items()
        }
        wait_ms = getattr(settings, "wait", None)
        if not kind.family:
            return cast("Node", Across(made, node, read, wait_ms))
        late = getattr(settings, "late", "drop")
        return cast("Node", Families(made, node, read, wait_ms, children=kind.family, late=late))

    def _model(self, plan: Plan, name: str) -> ModelInfo:
        model = plan.models[name]
        path = self.project / model.file
        if not path.is_file():
            raise ModelError(f"model '{name}': no file '{path}'", hint=f"dataflow model build {name}")
        found = digest_of(path)
        if found != model.digest:
            raise ModelError(
                f"model '{name}': the file '{path}' is not the one that was planned ({found[:12]}, planned {model.digest[:12]})",
                hint="plan anew, or copy the planned artifact here",
            )
        return model_info(
            name, path, options=model.options, digest=found, share=self.models.sharer(name, found)
        )

    def _program(
        self, plan: Plan, stage: StagePlan, nodes: Mapping[str, Node], writers: Mapping[str, EdgeWriter]
    ) -> Program:
        numbers = count()
        planned = {n: plan.nodes[n] for n in stage.nodes}
        planned = {n: by_way(node) if node.apart else node for n, node in planned.items()}
        runners = tuple(
            NodeRunner(
                planned[name],
                nodes[name],
                {port: plan.edges[edge].schema for port, edge in planned[name].outputs.items()},
                self.metrics.node(plan.pipeline, name, planned[name].kind),
                plan.pipeline,
                self.tracing,
                keyed=is_keyed(nodes[name]),
                numbers=numbers,
                loop=next((p for p, e in planned[name].outputs.items() if plan.edges[e].loop), ""),
            )
            for name in stage.nodes
        )
        feeds: dict[str, list[tuple[int, str]]] = {}
        for index, name in enumerate(stage.nodes):
            for port, edges in planned[name].inputs.items():
                for edge in edges:
                    # What another node of this stage wrote and what was fetched come by the same name.
                    feeds.setdefault(edge, []).append((index, port))
        return Program(
            runners,
            {e: tuple(f) for e, f in feeds.items()},
            tuple(planned[n].outputs for n in stage.nodes),
            {edge: writer.seal for edge, writer in writers.items()},
            frozenset(
                i
                for i, n in enumerate(stage.nodes)
                if self.registry.get(planned[n].kind).gathers and not planned[n].apart
            ),
            frozenset(stage.reads),
        )

    def _intakes(self, plan: Plan, stage: StagePlan) -> dict[str, Intake]:
        made: dict[str, Intake] = {}
        readers: dict[str, list[bool]] = {}  # by edge: whether each of its readers asks for tombstones
        for name in stage.nodes:
            asked = getattr(self.registry.get(plan.nodes[name].kind).target, "tombstones", ())
            for port, edges in plan.nodes[name].inputs.items():
                for read in edges:
                    readers.setdefault(read, []).append(port in asked)
        for edge in plan.fetched(stage):
            intake = Intake(
                edge.name,
                codec_for(edge.codec, edge.schema),
                reader_codecs(self.schemas, edge.codec, edge.schema),
                stage.shares.get(edge.name, (0, 1)),
                all(readers.get(edge.name, (False,))),
            )
            for topic in edge.topics:
                if topic in made:
                    raise PlanError(
                        f"stage '{stage.name}': topic '{topic}' feeds both '{made[topic].edge}' and '{edge.name}'"
                    )
                made[topic] = intake
        return made

    def _writers(self, plan: Plan, stage: StagePlan) -> dict[str, EdgeWriter]:
        edges = [plan.edges[e] for n in stage.nodes for e in plan.nodes[n].outputs.values()]
        if stage.closes and plan.control is not None:
            edges.append(plan.control)
        topics = [t for e in edges for t in (*e.topics, *(copy.topic for copy in e.publish))]
        # A topic may be older than the plan and take less; the broker would refuse the record again and again.
        takes = {
            name: int(info.config.get("max.message.bytes", limits.BROKER_RECORD_BYTES))
            for name, info in self.fabric.admin().describe(topics).items()
        }
        return {e.name: self._writer(plan, stage, e, takes) for e in edges}

    def _writer(self, plan: Plan, stage: StagePlan, edge: EdgePlan, takes: Mapping[str, int]) -> EdgeWriter:
        codec = codec_for(edge.codec, edge.schema)
        origin = f"{plan.origin}/{edge.node}".encode()

        def room(topic: str) -> int:
            return takes.get(topic, limits.BROKER_RECORD_BYTES) - limits.OWN_HEADER_BYTES

        name = f"{plan.pipeline}.{edge.name}"
        leaves = name if any(name in e.home for e in plan.streams) else ""
        targets = [
            Target(
                t, codec, edge.partitions, edge.max_record_bytes, room(t), _constant(codec, origin),
                edge.key, edge.key_encoding, home=edge.home, leaves=leaves,
            )
            for t in edge.topics
        ]  # fmt: skip
        for copy in edge.publish:
            own = codec_for(copy.codec, copy.schema)
            events = None
            constant = _constant(own, origin)
            if copy.event_type:
                events = Events(copy.event_type, f"/pipelines/{plan.pipeline}/{edge.node}", copy.codec)
                constant += events.headers()
            targets.append(
                Target(
                    copy.topic, own, copy.partitions, copy.max_record_bytes, room(copy.topic), constant,
                    copy.key, copy.key_encoding, copy.schema, events=events,
                )
            )  # fmt: skip
        metrics = self.metrics.edge(plan.pipeline, edge.name)
        return EdgeWriter(edge.name, edge.node, codec, targets, metrics, requests=edge.name in stage.leaves)

    def _seeds(self, plan: Plan, stage: StagePlan) -> dict[Position, int]:
        """Seeds of the ids of records that arrive without one."""
        admin = self.fabric.admin()
        topics = admin.describe([t for e in plan.fetched(stage) for t in e.topics])
        cluster = admin.cluster_id()
        return {
            (name, partition): ids.seed_of(cluster, info.topic_id, partition)
            for name, info in topics.items()
            for partition in range(info.partitions)
        }


def is_keyed(node: Node) -> bool:
    """Whether a node, as it was built, has state by record key."""
    return bool(getattr(node, "keyed", False))


def _nothing() -> None:
    """What a node without open or close does."""


def _constant(codec: Codec, origin: bytes) -> tuple[Header, ...]:
    """Headers that all records of an edge share."""
    schema: tuple[Header, ...] = ((headers.SCHEMA, codec.fingerprint),) if codec.fingerprint else ()
    return (*schema, (headers.ORIGIN, origin))
