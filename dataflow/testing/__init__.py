"""Public test tools: run a kind or a whole pipeline in this process, without a broker."""

from __future__ import annotations

from dataflow.testing.nodes import NodeResult, build_node, contract_of, run_node

__all__ = ["NodeResult", "build_node", "contract_of", "run_node"]
