"""Before and after the two classifiers of handwritten digits: what they get, and how they are brought together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dataflow.sdk import Fail

if TYPE_CHECKING:
    from dataflow.sdk import Batch

Column = np.ndarray[Any, np.dtype[Any]]

# The data set counts the dark dots of each 4 x 4 block.
BRIGHTEST: Final = 16
# The faintest of the images that the forest learnt from has a mean of 0.181 (metrics.json).
FAINTEST: Final = 0.18


def scale(batch: Batch) -> dict[str, Column]:
    """Return `pixels`, float32 [N, 64] in 0..1, of the field `image`, uint8 [N, 8, 8] in 0..16."""
    return {"pixels": batch["image"].reshape(len(batch), -1).astype(np.float32) / np.float32(BRIGHTEST)}


def known(row: dict[str, Any]) -> dict[str, Any]:
    """`pixels` as they are. Raises Fail for an image fainter than all that the forest learnt from.

    A forest asks dot by dot whether it is darker than a threshold: on a faint image it answers with confidence, and
    wrongly. The linear model only becomes less sure.
    """
    darkness = float(row["pixels"].mean())
    if darkness < FAINTEST:
        raise Fail(
            f"an image of darkness {darkness:.2f} is fainter than all the forest learnt from ({FAINTEST})"
        )
    return {"pixels": row["pixels"]}


def vote(batch: Batch) -> dict[str, Column]:
    """Return `digit` int64 [N], `confidence` float32 [N] and `agree` of the opinions `linear` and `forest`.

    Both float32 [N, 10], and a row of `forest` may be null: then the linear model decides alone, and `agree` is null.
    """
    linear, forest = batch["linear"], batch["forest"]
    both = np.array([opinion is not None for opinion in forest], dtype=np.bool_)
    together = linear.copy()
    agree = np.full(len(batch), None, dtype=object)
    if both.any():
        second = np.stack(forest[both].tolist())
        together[both] = (linear[both] + second) / 2
        agree[both] = (linear[both].argmax(axis=1) == second.argmax(axis=1)).tolist()
    return {"digit": together.argmax(axis=1), "confidence": together.max(axis=1), "agree": agree}
