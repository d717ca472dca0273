"""Trains the two classifiers of the pipeline `diamond` on the handwritten digits that come with scikit-learn.

    python -m pipelines.diamond.train [--out DIR]      # or, in this folder, python train.py

Writes `linear.onnx`, `forest.onnx` and `metrics.json`. The images held out are those of the pipeline `digits`. The same
versions of packages give the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, TypeAlias

import click
import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dataflow.core.errors import ModelError

Column = np.ndarray[Any, np.dtype[Any]]
Model: TypeAlias = Any  # a classifier of scikit-learn, which has no types

# As in pipelines/digits/train.py: its held-out images are ours too.
SEED: Final = 8
HELD_OUT: Final = 0.25
DOTS: Final = 64
BRIGHTEST: Final = 16
TOLERANCE: Final = 1e-4


def read_digits() -> tuple[Column, Column, Column, Column]:
    """(pixels to learn from, those held out, labels to learn from, those held out); pixels float32 [N, 64] in 0..1."""
    loaded = load_digits()
    pixels = loaded.images.reshape(-1, DOTS).astype(np.float32) / np.float32(BRIGHTEST)
    labels = loaded.target.astype(np.int64)
    parts = train_test_split(pixels, labels, test_size=HELD_OUT, random_state=SEED, stratify=labels)
    learned, held_out, learned_labels, held_out_labels = parts
    return learned, held_out, learned_labels, held_out_labels


def fit(pixels: Column, labels: Column) -> dict[str, Model]:
    """The models by name. On one thread: the order of the sums, and so the models, would depend on their number."""
    linear = LogisticRegression(C=1.0, max_iter=1_000)
    forest = ExtraTreesClassifier(n_estimators=60, max_depth=14, random_state=SEED)
    with threadpool_limits(limits=1):
        return {"linear": linear.fit(pixels, labels), "forest": forest.fit(pixels, labels)}


def export(name: str, model: Model) -> onnx.ModelProto:
    """Return a graph `pixels` float32 [-1, 64] -> `label` int64 [-1], `probabilities` float32 [-1, 10]."""
    made = convert_sklearn(
        model,
        name=name,
        initial_types=[("pixels", FloatTensorType([None, DOTS]))],
        target_opset={"": 17, "ai.onnx.ml": 3},
        options={"zipmap": False},
    )
    # skl2onnx keeps them in a set: their order, and so the file, would change with the seed of Python's hashes.
    opsets = sorted(made.opset_import, key=lambda opset: opset.domain)
    del made.opset_import[:]
    made.opset_import.extend(opsets)
    return made


def run(exported: onnx.ModelProto, pixels: Column) -> Column:
    """Probabilities [N, 10] by onnxruntime."""
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"pixels": pixels})
    return np.asarray(probabilities)


def train(out: Path) -> dict[str, Any]:
    """Train, check, write the files, return the metrics. Raises ModelError where ONNX differs from scikit-learn."""
    learned, held_out, learned_labels, labels = read_digits()
    out.mkdir(parents=True, exist_ok=True)
    opinions = {}
    for name, model in fit(learned, learned_labels).items():
        exported = export(name, model)
        opinions[name] = run(exported, held_out)
        difference = float(np.abs(opinions[name] - model.predict_proba(held_out)).max())
        if difference > TOLERANCE:
            raise ModelError(f"{name}.onnx differs from scikit-learn by {difference:.6f} in probability")
        onnx.save(exported, out / f"{name}.onnx")
    opinions["vote"] = (opinions["linear"] + opinions["forest"]) / 2
    linear, forest = (opinions[name].argmax(axis=1) for name in ("linear", "forest"))
    agree = linear == forest
    metrics = {
        "held out": len(labels),
        "faintest learned": round(float(learned.mean(axis=1).min()), 3),
        "accuracy": {
            name: round(float((opinion.argmax(axis=1) == labels).mean()), 4)
            for name, opinion in opinions.items()
        },
        "where both agree": {
            "share of images": round(float(agree.mean()), 4),
            "accuracy": round(float((linear[agree] == labels[agree]).mean()), 4),
        },
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(__file__).parent)
def main(out: Path) -> None:
    """Train, check and write both classifiers."""
    Console().print(train(out))


if __name__ == "__main__":
    main()
