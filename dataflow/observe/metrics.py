"""Counters that the hot path bumps and a scrape reads.

Plain numbers, one writer thread each: a batch costs a few additions; Prometheus objects are made only when asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

# Seconds; from one small model call to a slow deadline.
SECONDS_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
RECORDS_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Reasons become label values: a reason with a changing number in it must not fill the monitoring system.
MAX_REASONS: Final = 50


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        counted, rows = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            counted += count
            rows.append(("+Inf" if bound == float("inf") else str(bound), float(counted)))
        return rows


@dataclass(slots=True)
class Reasons:
    """Counts by reason; beyond MAX_REASONS distinct ones they are counted as "other"."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, count: int = 1) -> None:
        if reason not in self.counts and len(self.counts) >= MAX_REASONS:
            reason = "other"
        self.counts[reason] = self.counts.get(reason, 0) + count

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass(slots=True)
class NodeMetrics:
    """One node of one pipeline in this process. Failures are counted by error class, drops by reason."""

    pipeline: str
    node: str
    kind: str
    records: int = 0
    retries: int = 0
    dropped: Reasons = field(default_factory=Reasons)
    failed: Reasons = field(default_factory=Reasons)
    batch_records: Histogram = field(default_factory=lambda: Histogram(RECORDS_BUCKETS))
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BUCKETS))


@dataclass(slots=True)
class EdgeMetrics:
    """One edge: records and bytes written by this process; lag is set by whoever measures it."""

    pipeline: str
    edge: str
    records: int = 0
    bytes: int = 0


@dataclass(slots=True)
class StageMetrics:
    """One stage in this process. `lag` is records between the committed offsets and the ends; -1 unknown."""

    pipeline: str
    stage: str
    records: int = 0
    handed: int = 0  # of these, requests of a gateway in this process that were not fetched back
    dead_letters: int = 0
    expired: int = 0  # requests fetched after their deadline, and not run
    replies: int = 0
    commits: int = 0
    lag: int = -1
    state: str = "starting"
    error: str = ""
    age_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BUCKETS))


@dataclass(slots=True)
class GatewayMetrics:
    """Requests at one gateway, by pipeline."""

    pipeline: str
    pending: int = 0
    by_status: Reasons = field(default_factory=Reasons)
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS_BUCKETS))


class Metrics:
    """All that this process counts. Get-or-create by name; safe to read while others count."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[str, str], NodeMetrics] = {}
        self.edges: dict[tuple[str, str], EdgeMetrics] = {}
        self.stages: dict[tuple[str, str], StageMetrics] = {}
        self.gateways: dict[str, GatewayMetrics] = {}

    def node(self, pipeline: str, node: str, kind: str) -> NodeMetrics:
        return self.nodes.setdefault((pipeline, node), NodeMetrics(pipeline, node, kind))

    def edge(self, pipeline: str, edge: str) -> EdgeMetrics:
        return self.edges.setdefault((pipeline, edge), EdgeMetrics(pipeline, edge))

    def stage(self, pipeline: str, stage: str) -> StageMetrics:
        return self.stages.setdefault((pipeline, stage), StageMetrics(pipeline, stage))

    def gateway(self, pipeline: str) -> GatewayMetrics:
        return self.gateways.setdefault(pipeline, GatewayMetrics(pipeline))

    def prometheus(self) -> bytes:
        """The text exposition of everything, for ``GET /metrics``."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Exposition(self))
        return generate_latest(registry)


class _Exposition(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        yield from _nodes(list(self._metrics.nodes.values()))
        yield from _edges(list(self._metrics.edges.values()))
        yield from _stages(list(self._metrics.stages.values()))
        yield from _gateways(list(self._metrics.gateways.values()))


def _nodes(nodes: list[NodeMetrics]) -> Iterator[Metric]:
    labels = ["pipeline", "node", "kind"]
    records = CounterMetricFamily("dataflow_node_records", "Records given to the node.", labels=labels)
    retries = CounterMetricFamily("dataflow_node_retries", "Records tried again.", labels=labels)
    dropped = CounterMetricFamily("dataflow_node_dropped", "Records dropped.", labels=[*labels, "reason"])
    failed = CounterMetricFamily("dataflow_node_failed", "Records failed.", labels=[*labels, "error"])
    sizes = HistogramMetricFamily("dataflow_node_batch_records", "Records in a batch.", labels=labels)
    seconds = HistogramMetricFamily("dataflow_node_seconds", "Time of one batch in the node.", labels=labels)
    for node in nodes:
        values = [node.pipeline, node.node, node.kind]
        records.add_metric(values, node.records)
        retries.add_metric(values, node.retries)
        for reason, count in list(node.dropped.counts.items()):
            dropped.add_metric([*values, reason], count)
        for error, count in list(node.failed.counts.items()):
            failed.add_metric([*values, error], count)
        sizes.add_metric(values, node.batch_records.cumulative(), node.batch_records.total)
        seconds.add_metric(values, node.seconds.cumulative(), node.seconds.total)
    yield from (records, retries, dropped, failed, sizes, seconds)


def _edges(edges: list[EdgeMetrics]) -> Iterator[Metric]:
    labels = ["pipeline", "edge"]
    records = CounterMetricFamily("dataflow_edge_records", "Records written to the edge.", labels=labels)
    size = CounterMetricFamily("dataflow_edge_bytes", "Bytes of values written to the edge.", labels=labels)
    for edge in edges:
        records.add_metric([edge.pipeline, edge.edge], edge.records)
        size.add_metric([edge.pipeline, edge.edge], edge.bytes)
    yield from (records, size)


def _stages(stages: list[StageMetrics]) -> Iterator[Metric]:
    labels = ["pipeline", "stage"]
    records = CounterMetricFamily("dataflow_stage_records", "Records taken in by the stage.", labels=labels)
    handed = CounterMetricFamily(
        "dataflow_stage_handed", "Requests of a gateway in its process, of these records.", labels=labels
    )
    letters = CounterMetricFamily(
        "dataflow_stage_dead_letters", "Records sent to the dead letters.", labels=labels
    )
    expired = CounterMetricFamily(
        "dataflow_stage_expired", "Requests fetched after their deadline, and not run.", labels=labels
    )
    replies = CounterMetricFamily("dataflow_stage_replies", "Replies sent to gateways.", labels=labels)
    commits = CounterMetricFamily("dataflow_stage_commits", "Offset commits.", labels=labels)
    lag = GaugeMetricFamily("dataflow_stage_lag_records", "Records not yet processed.", labels=labels)
    up = GaugeMetricFamily("dataflow_stage_up", "1 while the stage runs.", labels=labels)
    age = HistogramMetricFamily(
        "dataflow_stage_age_seconds", "Age of a batch's oldest record when its work was done.", labels=labels
    )
    for stage in stages:
        values = [stage.pipeline, stage.stage]
        records.add_metric(values, stage.records)
        handed.add_metric(values, stage.handed)
        letters.add_metric(values, stage.dead_letters)
        expired.add_metric(values, stage.expired)
        replies.add_metric(values, stage.replies)
        commits.add_metric(values, stage.commits)
        if stage.lag >= 0:
            lag.add_metric(values, stage.lag)
        up.add_metric(values, float(stage.state == "running"))
        age.add_metric(values, stage.age_seconds.cumulative(), stage.age_seconds.total)
    yield from (records, handed, letters, expired, replies, commits, lag, up, age)


def _gateways(gateways: list[GatewayMetrics]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "dataflow_gateway_requests", "Requests answered.", labels=["pipeline", "status"]
    )
    pending = GaugeMetricFamily(
        "dataflow_gateway_pending_requests", "Requests not yet answered.", labels=["pipeline"]
    )
    seconds = HistogramMetricFamily(
        "dataflow_gateway_request_seconds", "Time to the answer.", labels=["pipeline"]
    )
    for gateway in gateways:
        for status, count in list(gateway.by_status.counts.items()):
            requests.add_metric([gateway.pipeline, status], count)
        pending.add_metric([gateway.pipeline], gateway.pending)
        seconds.add_metric([gateway.pipeline], gateway.seconds.cumulative(), gateway.seconds.total)
    yield from (requests, pending, seconds)
