"""Models as artifacts: signature, build and what a process has loaded of them."""

from __future__ import annotations

from dataflow.serving.build import BuiltModel, ensure_built
from dataflow.serving.signature import Signature, model_info, read_signature
from dataflow.serving.store import ModelStore

__all__ = ["BuiltModel", "ModelStore", "Signature", "ensure_built", "model_info", "read_signature"]
