"""The running graph as JSON: what `GET /graph`, `dataflow status` and the live table show."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from dataflow.observe.metrics import Histogram, Metrics
from dataflow.planner.plan import Plan


class GraphView:
    """Plans and this process's counters as one document; rates are over the time since the last sample.

    `sample` is called about once a second by whoever runs the process; `document` by whoever asks. Thread-safe.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._before: dict[tuple[str, str, str], int] = {}
        self._rates: dict[tuple[str, str, str], float] = {}
        self._sampled_at = time.monotonic()

    def sample(self) -> None:
        """Take the counters' values; rates are from here to the next sample."""
        now = time.monotonic()
        counts = self._counts()
        with self._lock:
            seconds = max(now - self._sampled_at, 1e-3)
            self._rates = {k: (v - self._before.get(k, 0)) / seconds for k, v in counts.items()}
            self._before, self._sampled_at = counts, now

    def _counts(self) -> dict[tuple[str, str, str], int]:
        metrics = self._metrics
        made = {("node", n.pipeline, n.node): n.records for n in list(metrics.nodes.values())}
        made |= {("edge", e.pipeline, e.edge): e.records for e in list(metrics.edges.values())}
        made |= {("stage", s.pipeline, s.stage): s.records for s in list(metrics.stages.values())}
        return made | {
            ("gateway", g.pipeline, ""): g.by_status.total for g in list(metrics.gateways.values())
        }

    def document(self, plans: Iterable[Plan]) -> dict[str, Any]:
        """``{"pipelines": [{name, version, stages, nodes, edges, models, requests}]}``."""
        with self._lock:
            rates = dict(self._rates)
        return {"pipelines": [self._pipeline(plan, rates) for plan in plans]}

    def _pipeline(self, plan: Plan, rates: dict[tuple[str, str, str], float]) -> dict[str, Any]:
        name = plan.pipeline
        metrics = self._metrics
        gateway = metrics.gateways.get(name)
        return {
            "name": name,
            "version": plan.version,
            "delivery": plan.delivery,
            "answer": list(plan.answer.edges) if plan.answer else [],
            "inputs": dict(plan.inputs),
            "stages": [
                {
                    "name": stage.name,
                    "group": stage.group,
                    "reads": list(stage.reads),
                    "nodes": list(stage.nodes),
                    "reason": stage.reason,
                    "state": found.state if found else "elsewhere",
                    "error": found.error if found else "",
                    "lag": found.lag if found else -1,
                    "records": found.records if found else 0,
                    "handed": found.handed if found else 0,
                    "dead_letters": found.dead_letters if found else 0,
                    "rate": round(rates.get(("stage", name, stage.name), 0.0), 1),
                }
                for stage in plan.stages
                for found in [metrics.stages.get((name, stage.name))]
            ],
            "nodes": [self._node(plan, node, rates) for node in plan.nodes],
            "edges": [self._edge(plan, edge, rates) for edge in plan.edges],
            "models": [{"name": m.name, "digest": m.digest[:12]} for m in plan.models.values()],
            "requests": {
                "answered": dict(gateway.by_status.counts) if gateway else {},
                "pending": gateway.pending if gateway else 0,
                "rate": round(rates.get(("gateway", name, ""), 0.0), 1),
                "seconds_mean": mean(gateway.seconds) if gateway else 0.0,
            },
        }

    def _node(self, plan: Plan, node: str, rates: dict[tuple[str, str, str], float]) -> dict[str, Any]:
        found = self._metrics.nodes.get((plan.pipeline, node))
        declared = plan.nodes[node]
        made: dict[str, Any] = {
            "name": node,
            "kind": declared.kind,
            "inputs": {p: list(e) for p, e in declared.inputs.items()},
            "outputs": dict(declared.outputs),
            "rate": round(rates.get(("node", plan.pipeline, node), 0.0), 1),
        }
        if found is not None:
            made |= {
                "records": found.records,
                "retries": found.retries,
                "dropped": dict(found.dropped.counts),
                "failed": dict(found.failed.counts),
                "batch_mean": mean(found.batch_records),
                "seconds_mean": mean(found.seconds),
            }
        return made

    def _edge(self, plan: Plan, edge: str, rates: dict[tuple[str, str, str], float]) -> dict[str, Any]:
        found = self._metrics.edges.get((plan.pipeline, edge))
        declared = plan.edges[edge]
        return {
            "name": edge,
            "node": declared.node,
            "topics": list(declared.topics),
            "fields": {f.name: f.type.describe() for f in declared.schema},
            "partitions": declared.partitions,
            "records": found.records if found else 0,
            "bytes": found.bytes if found else 0,
            "rate": round(rates.get(("edge", plan.pipeline, edge), 0.0), 1),
        }


def mean(histogram: Histogram) -> float:
    """Mean of all observations, 0 before the first."""
    count = sum(histogram.counts)
    return histogram.total / count if count else 0.0
