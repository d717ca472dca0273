"""Public test tools: run a kind or a whole pipeline in this process, without a broker."""

from __future__ import annotations

from dataflow.testing.nodes import NodeResult, build_node, contract_of, run_node
from dataflow.testing.pipelines import DeadLetter, HandClock, PipelineRun, RunResult, run_pipeline

__all__ = [
    "DeadLetter", "HandClock", "NodeResult", "PipelineRun", "RunResult", "build_node", "contract_of", "run_node",
    "run_pipeline",
]  # fmt: skip
