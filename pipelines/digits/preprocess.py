"""Before and after the classifier of handwritten digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dataflow.sdk import Batch

Column = np.ndarray[Any, np.dtype[Any]]

# The data set counts the dark dots of each 4 x 4 block.
BRIGHTEST = 16


def scale(batch: Batch) -> dict[str, Column]:
    """Return `pixels`, float32 [N, 64] in 0..1, of the field `image`, uint8 [N, 8, 8] in 0..16."""
    return {"pixels": scaled(batch["image"])}


def confidence(batch: Batch) -> dict[str, Column]:
    """Return `confidence`, float32 [N]: the largest of `probabilities`, float32 [N, 10]."""
    return {"confidence": batch["probabilities"].max(axis=1)}


def scaled(images: Column) -> Column:
    """uint8 [N, 8, 8] or [N, 64] in 0..16 -> float32 [N, 64] in 0..1. Values above 16 go above 1."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(BRIGHTEST)
