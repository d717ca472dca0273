"""Trains the classifier of the pipeline `digits` on the handwritten digits that come with scikit-learn.

    python -m pipelines.digits.train [--out DIR]      # or, in this folder, python train.py

Writes `digits.onnx`, `digits_test.parquet` (held-out images with their labels) and `metrics.json`. The same
versions of packages give the same files.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dataflow.core.errors import ModelError

if TYPE_CHECKING or __package__:
    from . import preprocess
else:  # a model's `build:` runs this file as a script, in its folder
    import preprocess

Column = np.ndarray[Any, np.dtype[Any]]

SEED = 8
SIDE = 8
HELD_OUT = 0.25
SHOWN_IMAGES = 200
OPSET = 17
ML_OPSET = 3
# Where the demo's route sends an image to the sure branch.
SURE = 0.9
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Digits:
    """Images uint8 [N, 8, 8] in 0..16 and the digits int64 [N] that they show."""

    images: Column
    labels: Column


def read_digits() -> tuple[Digits, Digits]:
    """(those to learn from, those held out): each digit with the same share in both."""
    loaded = load_digits()
    parts = train_test_split(
        loaded.images.astype(np.uint8),
        loaded.target.astype(np.int64),
        test_size=HELD_OUT,
        random_state=SEED,
        stratify=loaded.target,
    )
    learned_images, held_out_images, learned_labels, held_out_labels = parts
    return Digits(learned_images, learned_labels), Digits(held_out_images, held_out_labels)


def shifted(digits: Digits) -> Digits:
    """The images and their copies moved by one pixel left, right, up and down: where a digit sits tells nothing."""
    padded = np.pad(digits.images, ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (1, 0), (1, 2), (0, 1), (2, 1))
    moved = [padded[:, top : top + SIDE, left : left + SIDE] for top, left in corners]
    return Digits(np.concatenate(moved), np.tile(digits.labels, len(corners)))


def fit(digits: Digits) -> MLPClassifier:
    """One hidden layer, a fixed number of passes over the images.

    On one thread: the matrices are so small that two only wait for each other (ten times longer on a busy machine),
    and the order of the sums, and so the model, would depend on their number.
    """
    model = MLPClassifier(
        hidden_layer_sizes=(96,),
        alpha=1e-3,
        batch_size=128,
        max_iter=40,
        learning_rate_init=3e-3,
        random_state=SEED,
    )
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        # A fixed number of passes is meant; scikit-learn warns that its own test of convergence did not end it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(preprocess.scaled(digits.images), digits.labels)


def export(model: MLPClassifier) -> onnx.ModelProto:
    """Return a graph `pixels` float32 [-1, 64] -> `label` int64 [-1], `probabilities` float32 [-1, 10]."""
    made = convert_sklearn(
        model,
        name="digits",
        initial_types=[("pixels", FloatTensorType([None, SIDE * SIDE]))],
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        options={"zipmap": False},
    )
    # skl2onnx keeps them in a set: their order, and so the file, would change with the seed of Python's hashes.
    opsets = sorted(made.opset_import, key=lambda opset: opset.domain)
    del made.opset_import[:]
    made.opset_import.extend(opsets)
    return made


def run(exported: onnx.ModelProto, pixels: Column) -> tuple[Column, Column]:
    """(label [N], probabilities [N, 10]) by onnxruntime."""
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"pixels": pixels})
    return label, probabilities


def check_export(exported: onnx.ModelProto, model: MLPClassifier, pixels: Column) -> None:
    """Raise `ModelError` where the probabilities of ONNX are not those of scikit-learn."""
    _, probabilities = run(exported, pixels)
    difference = float(np.abs(probabilities - model.predict_proba(pixels)).max())
    if difference > TOLERANCE:
        raise ModelError(
            f"digits.onnx differs from scikit-learn by {difference:.6f} in probability on {len(pixels)} held-out "
            f"images, at most {TOLERANCE} is valid",
            hint="do the installed skl2onnx and scikit-learn fit together?",
        )


def sample_table(digits: Digits) -> pa.Table:
    """`image`, the 64 values row by row, and `label` of the first `SHOWN_IMAGES` held-out images."""
    images = digits.images[:SHOWN_IMAGES]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), SIDE * SIDE)
    schema = pa.schema(
        [
            pa.field("image", pa.list_(pa.uint8(), SIDE * SIDE), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
        ]
    )
    return pa.table([lists, pa.array(digits.labels[:SHOWN_IMAGES])], schema=schema)


def train(out: Path) -> dict[str, Any]:
    """Train, check, write the files, return the metrics."""
    learned, held_out = read_digits()
    model = fit(shifted(learned))
    exported = export(model)
    pixels = preprocess.scaled(held_out.images)
    check_export(exported, model, pixels)
    label, probabilities = run(exported, pixels)
    right = label == held_out.labels
    sure = probabilities.max(axis=1) >= SURE
    metrics = {
        "rows": {"trained": len(learned.labels), "held out": len(held_out.labels)},
        "accuracy": round(float(right.mean()), 4),
        f"at confidence {SURE}": {
            "share of images": round(float(sure.mean()), 4),
            "accuracy": round(float(right[sure].mean()), 4),
            "accuracy of the others": round(float(right[~sure].mean()), 4),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(exported, out / "digits.onnx")
    pq.write_table(sample_table(held_out), out / "digits_test.parquet")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).parent,
    help="Folder to write to.",
)
def main(out: Path) -> None:
    """Train, check and write the classifier of digits."""
    began = time.perf_counter()
    metrics = train(out)
    sure = metrics[f"at confidence {SURE}"]
    console = Console()
    console.print(
        f"accuracy {metrics['accuracy']:.4f} on {metrics['rows']['held out']} held-out images; "
        f"{sure['accuracy']:.4f} on the {sure['share of images']:.0%} at confidence {SURE} or more, "
        f"{sure['accuracy of the others']:.4f} on the others"
    )
    console.print(f"{time.perf_counter() - began:.1f} s; digits.onnx in {out}")


if __name__ == "__main__":
    main()
