"""The plan: everything a worker, a gateway or a tap needs to run or read one pipeline. Plain, frozen, JSON-able data.

Vocabulary: an *edge* is named ``node`` (its port is the only one or called ``out``), ``node.port``, or by the name of a
pipeline input; `Plan.edges` holds them all. Inside a stage batches are handed on in memory, and every edge's records
are still written to the edge's topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from dataflow.core.limits import MAX_ATTEMPTS, MAX_RECORD_BYTES, RETRY_BACKOFF_MAX_MS, RETRY_BACKOFF_MS
from dataflow.core.schema import Schema

# The edge on which stages say of records that they will not come: no node's, and nobody's to name.
CONTROL: Final = "~control"
DEAD_LETTERS: Final = "dataflow.dead-letters"
PLANS: Final = "dataflow.plans"
SCHEMAS: Final = "dataflow.schemas"
REPLIES: Final = "dataflow.replies"
# Requests whose callers do not wait: what was accepted, and what became of it.
ACCEPTED: Final = "dataflow.accepted"
RESULTS: Final = "dataflow.results"

# The port on which a node that declares `failed: true` gives records that failed for good, and the fields it adds.
FAILED_PORT: Final = "failed"
FAILED_FIELDS: Final = ("error", "reason")

# Why a record of `source` will not come on `edge`, and the node where it ended; both "" where it was sent another way.
CONTROL_SCHEMA: Final = Schema.of(
    source="string", edge="string", reason="string", error="string", node="string"
)

AnswerWhen = Literal["committed", "durable", "eager"]
Delivery = Literal["at_least_once", "exactly_once"]


@dataclass(frozen=True)
class TopicPlan:
    """A topic as it should be. `config` holds Kafka's own topic settings; `role` says why it exists.

    role: input | upstream (another pipeline's, never changed by this one) | edge | requests | output | table | changelog | control | dead-letters | plans | schemas | replies
    """

    name: str
    partitions: int
    role: str
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Publication:
    """A copy of an edge's records in a topic that others own, under that topic's contract.

    event_type  of the CloudEvents that its records are there; "" where they are none
    """

    topic: str
    schema: Schema
    codec: str
    key: tuple[str, ...]
    key_encoding: str
    partitions: int
    max_record_bytes: int
    event_type: str = ""


@dataclass(frozen=True)
class EdgePlan:
    """One stream. `topics` are what a tap reads; the first is where the engine writes (inputs: nobody of ours does).

    key    fields that make the record key; () keeps the parent record's key. An edge of a node that has one is keyed
           anew: its records are placed by it, not on the partition of the task that writes them
    node   the node that makes it; "" for an input
    open   others may write to its topic too
    loop   earlier nodes that it leads back to; () for an edge that closes no loop
    upstream  ``pipeline.edge`` of the other pipeline whose edge this input is; "" for any other edge
    write  False when the pipeline declares the edge `write: off`: then `topics` is empty
    home   edges (``pipeline.edge``) that key records anew: what came by one is written back to its partition before that
    """

    name: str
    topics: tuple[str, ...]
    schema: Schema
    codec: str
    partitions: int
    key: tuple[str, ...] = ()
    key_encoding: str = ""
    node: str = ""
    write: bool = True
    max_record_bytes: int = MAX_RECORD_BYTES
    publish: tuple[Publication, ...] = ()
    open: bool = False
    upstream: str = ""
    loop: tuple[str, ...] = ()
    home: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetryPolicy:
    """Attempts at a record that failed in a retryable way, first included; waits double from backoff_ms to backoff_max_ms.

    jitter   share by which a wait may be shorter, 0 to 1: records that failed together then do not come back together
    """

    attempts: int = MAX_ATTEMPTS
    backoff_ms: int = RETRY_BACKOFF_MS
    backoff_max_ms: int = RETRY_BACKOFF_MAX_MS
    jitter: float = 0.0


@dataclass(frozen=True)
class NodePlan:
    """One node. `inputs` maps each input port to the edges that feed it, `outputs` each output port to its edge.

    failed   records that failed for good go out on the port of that name, which is among `outputs`
    apart    for a join whose sides come of different stages: by edge on the ways to it, its sides included, what the
             records come from there (see `ClosePlan.source`); () where they begin. {} for any other node
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, str]
    out: Schema | None = None
    keep: tuple[str, ...] | None = None
    retry: RetryPolicy = RetryPolicy()
    models: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    failed: bool = False
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class ClosePlan:
    """Of a record that a stage takes from `source` and does not write on `edge`, it says so on the control topic.

    source   an edge that it fetches or on which it makes children, or `join_source` of a join whose sides come of
             different stages
    edge     an edge of the stage; the source itself for one that a join here reads: a record may not reach the join
    through  the nodes on the way
    home     as `EdgePlan.home`: where it is said of a record that was keyed anew on the way
    """

    source: str
    edge: str
    through: tuple[str, ...] = ()
    home: tuple[str, ...] = ()


@dataclass(frozen=True)
class StagePlan:
    """A connected part of the graph that one worker runs in one process: one consumer group.

    reads    edges it fetches from Kafka
    nodes    names in an order in which every node comes after those that feed it
    reason   why the cut before this stage was made
    answers  edges of this stage whose records answer a caller
    leaves   edges read by other stages on the path to an answer: a request that went there is not over here
    source   its only node feeds the stage from outside Kafka and reads nothing
    outside  its only node is a process of its own, the member of the group; the stage starts it and looks after it
    changelog  the topic that holds the state of its keyed nodes; "" for a stage without
    shares   which share of the callers of an edge is its own, and of how many: where several stages read it for an answer
    closes   what it says to joins of other stages, and to its own
    hears    it reads what stages say so, beside what it `reads`
    """

    name: str
    group: str
    reads: tuple[str, ...]
    nodes: tuple[str, ...]
    reason: str
    partitions: int
    answers: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    on_answer_path: bool = False
    source: bool = False
    changelog: str = ""
    outside: bool = False
    shares: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    closes: tuple[ClosePlan, ...] = ()
    hears: bool = False


@dataclass(frozen=True)
class TablePlan:
    """A broadcast lookup table: a compacted topic or a file (exactly one of the two)."""

    name: str
    schema: Schema
    key: tuple[str, ...]
    topic: str = ""
    file: str = ""
    codec: str = ""
    partitions: int = 0


@dataclass(frozen=True)
class ModelPlan:
    """A model as planned: path relative to the project, and the digest the worker must find there."""

    name: str
    file: str
    digest: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerPlan:
    """Where requests go in and where their answer comes from."""

    input: str
    requests_topic: str
    edges: tuple[str, ...]
    when: AnswerWhen


@dataclass(frozen=True)
class Plan:
    """One pipeline, planned. `version` is the digest of all the rest: equal version, equal behaviour."""

    pipeline: str
    version: str
    folder: str
    delivery: Delivery
    deadline_ms: int
    inputs: Mapping[str, str]
    edges: Mapping[str, EdgePlan]
    nodes: Mapping[str, NodePlan]
    stages: tuple[StagePlan, ...]
    topics: Mapping[str, TopicPlan]
    tables: Mapping[str, TablePlan]
    models: Mapping[str, ModelPlan]
    answer: AnswerPlan | None
    code_digest: str = ""
    control: EdgePlan | None = None

    @property
    def origin(self) -> str:
        """The part of header df-origin before the node."""
        return f"{self.pipeline}@{self.version}"

    @property
    def streams(self) -> tuple[EdgePlan, ...]:
        """All edges, that on which stages speak to joins included."""
        return (*self.edges.values(), *((self.control,) if self.control is not None else ()))

    def fetched(self, stage: StagePlan) -> tuple[EdgePlan, ...]:
        """The edges that a stage has from Kafka, what stages say to its joins included."""
        heard = (self.control,) if stage.hears and self.control is not None else ()
        return (*(self.edges[name] for name in stage.reads), *heard)


def join_source(node: str) -> str:
    """How a join whose sides come of different stages is named among the sources of records."""
    return f"~{node}"


def transactional_id(stage: StagePlan, partition: int) -> str:
    """Name of the transactional producer of one task: equal in every process, so that a new owner fences the old."""
    return f"{stage.group}.{partition}"
