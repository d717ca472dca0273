"""From a resolved pipeline to its plan: where to cut, which topics there are, who reads and writes them. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from dataflow.core import limits
from dataflow.core.errors import PlanError
from dataflow.planner import plan as plans
from dataflow.planner.apart import closed_by, control_edge, ways_of
from dataflow.planner.homes import homes_of
from dataflow.planner.plan import (
    AnswerPlan,
    EdgePlan,
    ModelPlan,
    NodePlan,
    Plan,
    Publication,
    RetryPolicy,
    StagePlan,
    TablePlan,
    TopicPlan,
)
from dataflow.planner.resolved import Resolved, ResolvedEdge, ResolvedNode
from dataflow.planner.serial import digest
from dataflow.planner.stages import Stages, cut_into_stages, stage_faults
from dataflow.planner.tables import ResolvedTable
from dataflow.spec import TopicSpec
from dataflow.spec.documents import EdgesSpec
from dataflow.spec.loader import Project


def build_plan(
    project: Project,
    resolved: Resolved,
    models: Mapping[str, ModelPlan],
    code_digest: str,
) -> Plan:
    """The plan of one pipeline without problems. `models` are those its nodes name.

    Raises PlanError for what cannot run: too many partitions, a cut at an edge that is not written.
    """
    spec = resolved.spec
    assert not resolved.failed, "a pipeline with problems is not planned"
    topics = {n: d.spec for n, d in project.topics.items()}
    tables = {n: _table(t, topics) for n, t in resolved.tables.items()}
    answer = _answer(resolved)
    edges = _edges(resolved, topics, answer)
    cut = _cut(resolved)
    edges |= {e: dataclasses.replace(edges[e], home=home) for e, home in homes_of(cut).items()}
    nodes = {n.name: _node(n, cut) for n in resolved.nodes.values()}
    stages = tuple(_stage(cut, edges, answer, name) for name in cut.names)
    control = control_edge(cut)
    made = Plan(
        pipeline=spec.name,
        version="",
        folder=_relative(project, resolved),
        delivery=spec.delivery,
        deadline_ms=spec.deadline_ms,
        inputs=resolved.inputs,
        edges=edges,
        nodes=nodes,
        stages=stages,
        topics={
            **_topics(resolved, edges, topics, answer, tables),
            **_changelogs(stages),
            **_control_topic(control, spec.edges),
        },
        tables=dict(tables),
        models=dict(models),
        answer=answer,
        code_digest=code_digest,
        control=control,
    )
    partitions = sum(t.partitions for t in made.topics.values())
    if partitions > limits.MAX_PLAN_PARTITIONS:
        raise PlanError(
            f"pipeline '{spec.name}' needs {partitions} partitions (limit {limits.MAX_PLAN_PARTITIONS})",
            hint="fewer partitions on its inputs, or `write: off` on edges nobody taps",
        )
    return dataclasses.replace(made, version=digest(made))


def _relative(project: Project, resolved: Resolved) -> str:
    folder = resolved.declared.folder
    return (
        folder.relative_to(project.folder).as_posix()
        if folder.is_relative_to(project.folder)
        else str(folder)
    )


def _answer(resolved: Resolved) -> AnswerPlan | None:
    spec = resolved.spec
    if spec.answer is None:
        return None
    answer_input = resolved.answer_input
    if answer_input is None:
        raise PlanError(
            f"pipeline '{spec.name}': the answer does not say where requests go in",
            hint="answer: {input: NAME}",
        )
    return AnswerPlan(answer_input, f"{spec.name}.requests", tuple(spec.answer.edges), spec.answer_when)


def _edges(
    resolved: Resolved, topics: Mapping[str, TopicSpec], answer: AnswerPlan | None
) -> dict[str, EdgePlan]:
    spec = resolved.spec
    published: dict[str, list[Publication]] = {}
    for topic, edge in spec.outputs.items():
        target = topics[topic]
        published.setdefault(edge, []).append(
            Publication(
                topic, target.schema(), target.codec, tuple(target.key), target.key_bytes, target.partitions,
                target.max_record_bytes, target.events,
            )
        )  # fmt: skip
    made: dict[str, EdgePlan] = {}
    for name, resolved_edge in resolved.edges.items():
        if resolved_edge.producer is None:
            requests = (answer.requests_topic,) if answer is not None and answer.input == name else ()
            made[name] = _input(resolved_edge, requests, topics)
            continue
        write = spec.nodes[resolved_edge.producer].write == "on"
        made[name] = EdgePlan(
            name,
            (f"{spec.name}.{name}",) if write else (),
            resolved_edge.schema,
            resolved_edge.codec,
            resolved_edge.partitions,
            resolved_edge.key,
            resolved_edge.key_encoding,
            node=resolved_edge.producer,
            write=write,
            open=resolved_edge.open,
            loop=resolved_edge.loop,
            publish=tuple(published.get(name, ())),
        )
    return made


def _input(edge: ResolvedEdge, requests: tuple[str, ...], topics: Mapping[str, TopicSpec]) -> EdgePlan:
    assert edge.topic is not None, "an input is a topic"
    upstream = edge.upstream
    return EdgePlan(
        edge.name,
        (edge.topic, *requests),
        edge.schema,
        edge.codec,
        edge.partitions,
        edge.key,
        edge.key_encoding,
        max_record_bytes=upstream.max_record_bytes if upstream else topics[edge.topic].max_record_bytes,
        open=upstream is not None and upstream.open,
        upstream=upstream.name if upstream else "",
    )


def _table(table: ResolvedTable, topics: Mapping[str, TopicSpec]) -> TablePlan:
    partitions = topics[table.topic].partitions if table.topic else 0
    return TablePlan(table.name, table.schema, table.key, table.topic, table.file, table.codec, partitions)


def _node(node: ResolvedNode, stages: Stages) -> NodePlan:
    retry = node.spec.retry
    policy = (
        RetryPolicy(retry.attempts, retry.backoff_ms, retry.backoff_max_ms, retry.jitter)
        if retry
        else RetryPolicy()
    )
    return NodePlan(
        name=node.name,
        kind=node.kind.name,
        settings=dict(node.raw_settings),
        inputs={port: tuple(edges) for port, edges in node.inputs.items()},
        outputs=dict(node.outputs),
        out=node.out,
        keep=node.keep,
        retry=policy,
        models=tuple(node.models),
        tables=tuple(node.tables),
        apart=ways_of(stages, node.name) if node.name in stages.apart else {},
        failed=node.spec.failed,
    )


# ---------------------------------------------------------------- stages


def _cut(resolved: Resolved) -> Stages:
    stages = cut_into_stages(resolved)
    for fault in stage_faults(stages):
        if fault.severity == "error":
            raise PlanError(fault.message, hint=fault.hint)
    return stages


def _stage(stages: Stages, edges: Mapping[str, EdgePlan], answer: AnswerPlan | None, name: str) -> StagePlan:
    resolved = stages.resolved
    members = stages.members(name)
    reads = stages.reads(name)
    own = [e for n in members for e in resolved.nodes[n].outputs.values()]
    path = name in stages.on_path
    leaves = [
        e
        for e in own
        if answer is not None
        and any(
            e in resolved.read_by(n) and stages.fetches(n, e) for n in resolved.nodes if n in stages.on_path
        )
    ]
    return StagePlan(
        name=name,
        group=f"dataflow.{resolved.spec.name}.{name}",
        reads=reads,
        nodes=members,
        reason=_reason(stages, name),
        partitions=max((edges[e].partitions for e in reads or own), default=1),
        answers=tuple(e for e in own if answer is not None and e in answer.edges),
        leaves=tuple(leaves),
        on_answer_path=path and answer is not None,
        source=resolved.nodes[members[0]].kind.source,
        outside=resolved.nodes[members[0]].kind.outside,
        changelog=f"{STATE_PREFIX}{resolved.spec.name}.{name}"
        if any(map(stages.keeps_state, members))
        else "",
        shares=_shares(stages, answer, name),
        closes=closed_by(stages, name),
        hears=not stages.apart.isdisjoint(members),
    )


def _shares(stages: Stages, answer: AnswerPlan | None, name: str) -> dict[str, tuple[int, int]]:
    """Of edges that several stages read for an answer, which of them this one is."""
    if answer is None or name not in stages.on_path:
        return {}
    on_path = [stage for stage in stages.names if stage in stages.on_path]
    found = {}
    for edge in stages.reads(name):
        readers = [stage for stage in on_path if edge in stages.reads(stage)]
        if len(readers) > 1:
            found[edge] = (readers.index(name), len(readers))
    return found


def _reason(stages: Stages, name: str) -> str:
    resolved = stages.resolved
    if resolved.nodes[name].kind.source:
        return "it feeds the pipeline from outside Kafka"
    if resolved.nodes[name].kind.outside:
        return "a process of its own does the work"
    if resolved.spec.nodes[name].isolate:
        return f"node '{name}' is declared `isolate: true`"
    if name not in stages.on_path:
        return "not on the path to an answer: it must never slow or fail a request"
    members = stages.members(name)
    torn = [node for node in members if node in stages.apart]
    if torn:
        return f"the sides of '{torn[0]}' come of different stages"
    for edge in stages.reads(name):
        found = resolved.edges[edge]
        if found.cut and found.producer not in members:
            return f"it reads '{edge}' from Kafka: {found.cut}"
    return "all that an answer waits for" if resolved.spec.answer else "connected nodes share one process"


# ---------------------------------------------------------------- topics

STATE_PREFIX: Final = "dataflow.state."
_CHANGELOG: Final = {
    "cleanup.policy": "compact",
    # What was deleted must still be said to be when a local file comes back that is as old as one may be.
    "delete.retention.ms": str(2 * limits.MAX_STATE_FILE_AGE_MS),
    "max.message.bytes": str(limits.MAX_STATE_RECORD_BYTES + limits.MAX_HEADER_BYTES),
    # The segment that is written is never compacted: with Kafka's 1 GB, a start without a local file might read as much
    # to find a handful of hot keys.
    "segment.bytes": str(64 * 1024 * 1024),
}


def _changelogs(stages: Sequence[StagePlan]) -> dict[str, TopicPlan]:
    """The topics that hold the state of stages: by partition what the stage reads there."""
    kept = [s for s in stages if s.changelog]
    return {s.changelog: TopicPlan(s.changelog, s.partitions, "changelog", _CHANGELOG) for s in kept}


def _control_topic(control: EdgePlan | None, spec: EdgesSpec) -> dict[str, TopicPlan]:
    """Where stages say to the joins of others which records will not come: of use for as long as those of the sides."""
    if control is None:
        return {}
    name = control.topics[0]
    made = edge_topic(name, control.partitions, spec, control.max_record_bytes)
    return {name: dataclasses.replace(made, role="control")}


def topic_of(spec: TopicSpec, role: str) -> TopicPlan:
    """The topic that a contract declares."""
    config = {
        "cleanup.policy": spec.cleanup,
        "retention.ms": str(spec.retention_ms),
        "max.message.bytes": str(spec.max_record_bytes + limits.MAX_HEADER_BYTES),
    }
    if spec.retention_bytes is not None:
        config["retention.bytes"] = str(spec.retention_bytes)
    return TopicPlan(spec.name, spec.partitions, role, config)


def system_topics() -> tuple[TopicPlan, ...]:
    """Topics that all pipelines of a cluster share."""
    compact = {"cleanup.policy": "compact"}
    letters = {
        "max.message.bytes": str(16 * limits.MAX_RECORD_BYTES + limits.DEAD_LETTER_ROOM_BYTES),
        "retention.ms": "-1",
    }
    return (
        TopicPlan(plans.PLANS, 1, "plans", compact),
        TopicPlan(plans.SCHEMAS, 1, "schemas", compact),
        TopicPlan(plans.DEAD_LETTERS, 1, "dead-letters", letters),
        # Replies are of use for as long as somebody waits; an answer may be as large as any record.
        TopicPlan(
            plans.REPLIES,
            8,
            "replies",
            {
                "retention.ms": "900000",
                "segment.ms": "600000",
                "max.message.bytes": letters["max.message.bytes"],
            },
        ),
        # One partition: of two requests with one idempotency key, the log's order says which was first.
        TopicPlan(plans.ACCEPTED, 1, "accepted", {"retention.ms": str(limits.REQUEST_RETENTION_MS)}),
        TopicPlan(
            plans.RESULTS,
            4,
            "results",
            {
                "retention.ms": str(limits.REQUEST_RETENTION_MS),
                "max.message.bytes": letters["max.message.bytes"],
            },
        ),
    )


def edge_topic(name: str, partitions: int, spec: EdgesSpec, max_record_bytes: int) -> TopicPlan:
    """The topic of an edge of a pipeline."""
    config = {
        "retention.ms": str(spec.retention_ms),
        "retention.bytes": str(spec.retention_bytes),
        "max.message.bytes": str(max_record_bytes + limits.MAX_HEADER_BYTES),
    }
    return TopicPlan(name, partitions, "edge", config)


def _topics(
    resolved: Resolved,
    edges: Mapping[str, EdgePlan],
    topics: Mapping[str, TopicSpec],
    answer: AnswerPlan | None,
    tables: Mapping[str, TablePlan],
) -> dict[str, TopicPlan]:
    spec = resolved.spec
    made = {t.name: t for t in system_topics()}
    for name, topic in resolved.inputs.items():
        upstream = resolved.edges[name].upstream
        made[topic] = (
            dataclasses.replace(upstream.topic, role="upstream")
            if upstream
            else topic_of(topics[topic], "input")
        )
    for name in spec.outputs:
        made[name] = topic_of(topics[name], "output")
    for table in tables.values():
        if table.topic:
            made[table.topic] = topic_of(topics[table.topic], "table")
    for edge in edges.values():
        if edge.node and edge.write:
            made[edge.topics[0]] = edge_topic(
                edge.topics[0], edge.partitions, spec.edges, edge.max_record_bytes
            )
    if answer is not None:
        source, name = edges[answer.input], answer.requests_topic
        requests = edge_topic(name, source.partitions, spec.edges, source.max_record_bytes)
        made[name] = dataclasses.replace(requests, role="requests")
    return made
