"""The two functions of the three pipelines."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from dataflow.sdk import Batch, Column


class Confidence(TypedDict):
    confidence: float


def scale(batch: Batch) -> dict[str, Column]:
    """Dots of 0 to 16 as the model knows them."""
    return {"pixels": batch["image"].reshape(len(batch), 64).astype(np.float32) / np.float32(16)}


def confidence(row: dict[str, list[float]]) -> Confidence:
    return {"confidence": float(max(row["probabilities"]))}
