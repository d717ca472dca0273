"""What V2 tools ask of a model besides inference: its configuration, its statistics, the repository's index.

Pure. Protocol: Triton's `extension_model_configuration.md`, `extension_statistics.md`, `extension_model_repository.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from dataflow.core.limits import MAX_REQUEST_ROWS
from dataflow.core.schema import Schema
from dataflow.gateway.v2_types import datatype_of
from dataflow.planner.plan import Plan

PLATFORM: Final = "dataflow_pipeline"
# What a server says it can do, in the names of the protocol's extensions.
EXTENSIONS: Final = (
    "binary_tensor_data",
    "generate",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
READY: Final = "READY"
UNAVAILABLE: Final = "UNAVAILABLE"


@dataclass(slots=True)
class ModelCounts:
    """What became of one pipeline's requests at this gateway since it started, or since the pipeline changed.

    `rows` and `requests` are of good answers; times are of whole requests, from their headers to their answer, in ns.
    """

    version: str
    last_ms: int = 0
    rows: int = 0
    requests: int = 0
    good_ns: int = 0
    failed: int = 0
    failed_ns: int = 0


class Statistics:
    """Counts per pipeline, for any door. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, ModelCounts] = {}

    def count(self, name: str, version: str, rows: int, took_ns: int, now_ms: int, *, good: bool) -> None:
        """Take note of one request of `rows` rows that is over. The name must be that of a pipeline."""
        counts = self._counts.get(name)
        if counts is None or counts.version != version:
            counts = self._counts[name] = ModelCounts(version)
        if good:
            counts.last_ms = now_ms
            counts.rows += rows
            counts.requests += 1
            counts.good_ns += took_ns
        else:
            counts.failed += 1
            counts.failed_ns += took_ns

    def of(self, name: str, version: str) -> ModelCounts:
        counts = self._counts.get(name)
        return counts if counts is not None and counts.version == version else ModelCounts(version)


def statistics_of(name: str, counts: ModelCounts) -> dict[str, Any]:
    """One entry of ``model_stats``.

    ``execution_count`` counts requests: how workers batch their rows is told by `/metrics`. The parts of the time that
    a gateway does not see (queue, compute) are there with a count of 0.
    """
    unseen = ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    return {
        "name": name,
        "version": counts.version,
        "last_inference": counts.last_ms,
        "inference_count": counts.rows,
        "execution_count": counts.requests,
        "inference_stats": {
            "success": {"count": counts.requests, "ns": counts.good_ns},
            "fail": {"count": counts.failed, "ns": counts.failed_ns},
            **{part: {"count": 0, "ns": 0} for part in unseen},
        },
        "batch_stats": [],
        "memory_usage": [],
    }


def config_of(name: str, request: Schema, answer: Schema) -> dict[str, Any]:
    """A pipeline's configuration in Triton's words; the batch dimension is left out of ``dims``, as there."""

    def tensors(schema: Schema) -> list[dict[str, Any]]:
        return [
            {
                "name": declared.name,
                "data_type": data_type_of(datatype_of(declared.type)),
                "dims": list(declared.type.shape),
            }
            for declared in schema
        ]

    optional = {declared.name for declared in request if declared.type.nullable}
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "dataflow",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": MAX_REQUEST_ROWS,
        "input": [{**tensor, "optional": tensor["name"] in optional} for tensor in tensors(request)],
        "output": tensors(answer),
        "model_transaction_policy": {"decoupled": False},
    }


def data_type_of(datatype: str) -> str:
    """V2's datatype as configurations spell it: FP32 is TYPE_FP32, BYTES is TYPE_STRING."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def repository_index(
    plans: Mapping[str, Plan], working: Callable[[str], bool], *, ready_only: bool = False
) -> list[dict[str, str]]:
    """The pipelines that answer, by name; `working` says whether one can now."""
    made = []
    for name, plan in sorted(plans.items()):
        if plan.answer is None:
            continue
        good = working(name)
        if good or not ready_only:
            reason = "" if good else "not all of its stages run"
            state = READY if good else UNAVAILABLE
            made.append({"name": name, "version": plan.version, "state": state, "reason": reason})
    return made
