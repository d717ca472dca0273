"""A user's project, written as a user would from the README: seven pipelines of the sorts that people ask."""

from __future__ import annotations

from pathlib import Path

TOPICS = """
kind: Topic
name: plant.readings
doc: What the sensors of a plant say.
key: sensor
partitions: 2
fields:
  sensor:   {type: string, privacy: identifier}
  celsius:  {type: float64, unit: celsius}
  note:     {type: string, nullable: true}
  at:       {type: timestamp, event_time: true}
---
kind: Topic
name: plant.flowers
fields:
  sepal_length: float32
  sepal_width:  float32
  petal_length: float32
  petal_width:  float32
---
kind: Topic
name: plant.images
fields:
  image:  {type: uint8, shape: [2, 3]}
  signal: {type: float32, shape: [-1]}
  half:   {type: float16, shape: [2]}
---
kind: Topic
name: plant.waits
partitions: 4
fields:
  name: string
  gate: {type: string, doc: the record is done once this file exists}
---
kind: Topic
name: plant.shown
fields: {x: float64}
---
kind: Topic
name: plant.texts
partitions: 2
fields:
  words: {type: list, items: {type: record, fields: {word: string}}}
"""

SORT = """
kind: Pipeline
name: sort
doc: Measurements in, hot ones and normal ones out.
inputs: {reading: plant.readings}
answer: {from: [triage.hot, triage.normal]}
deadline: 20s
nodes:
  sane:   {use: filter.when, from: reading, with: {when: celsius > -60, reason: broken sensor}}
  score:  {use: transform.python, from: sane, with: {call: score.score}, keep: [sensor, celsius, note]}
  triage: {use: route.when, from: score, with: {hot: fahrenheit > 100, normal: otherwise}}
tests:
  - name: hot is hot
    given: {reading: [{sensor: a, celsius: 50, at: 2024-05-01T12:00:00Z}]}
    expect: {triage.hot: [{sensor: a, fahrenheit: 122}]}
"""
SCORE = '''
"""Fahrenheit; 13 brings bad luck."""

from typing import TypedDict


class Score(TypedDict):
    fahrenheit: float


def score(reading: dict) -> Score:
    if reading["celsius"] == 13:
        raise ValueError("thirteen is an unlucky number")
    return {"fahrenheit": reading["celsius"] * 9 / 5 + 32}
'''

IRIS = """
kind: Model
name: iris
file: iris.onnx
---
kind: Pipeline
name: iris
inputs: {flower: plant.flowers}
answer: {from: classify}
nodes:
  classify:
    use: model.onnx
    from: flower
    with:
      model: iris
      inputs: [sepal_length, sepal_width, petal_length, petal_width]
      outputs: {label: species, probabilities: probabilities}
"""

IMAGES = """
kind: Pipeline
name: images
inputs: {image: plant.images}
answer: {from: scale}
nodes:
  scale:
    use: transform.python
    from: image
    with: {call: scale.scale}
    out:
      scaled: {type: float32, shape: [2, 3]}
      peak:   float32
    keep: [signal, half]
"""
SCALE = """
import numpy as np

from dataflow.sdk import Batch


def scale(batch: Batch) -> dict:
    return {
        "scaled": batch["image"].astype(np.float32) / 255,
        "peak": np.array([signal.max() for signal in batch["signal"]], dtype=np.float32),
    }
"""

WAITS = """
kind: Pipeline
name: waits
inputs: {wait: plant.waits}
answer: {from: done}
deadline: 30s
nodes:
  done: {use: logic.python, from: wait, with: {call: done.done}, keep: [name]}
"""
DONE = """
import asyncio
from pathlib import Path
from typing import TypedDict


class Done(TypedDict):
    done: bool


async def done(wait: dict) -> Done:
    while not Path(wait["gate"]).exists():
        await asyncio.sleep(0.01)
    return {"done": True}
"""

SHOWN = """
kind: Pipeline
name: shown
inputs: {given: plant.shown}
answer: {from: times}
nodes:
  times: {use: transform.python, from: given, with: {call: times.times, arguments: {factor: 2}}}
"""
TIMES = """
from typing import TypedDict


class Product(TypedDict):
    y: float


def times(row: dict, factor: float) -> Product:
    return {"y": row["x"] * factor}
"""

WORDS = """
kind: Pipeline
name: words
doc: Many records of one, loud, in a stage of their own.
inputs: {text: plant.texts}
answer: {from: loud}
nodes:
  split: {use: each.split, from: text, with: {field: words}}
  loud: {use: transform.python, from: split, with: {call: loud.loud}, keep: [index, count], isolate: true}
"""
LOUD = """
from typing import TypedDict


class Loud(TypedDict):
    word: str


def loud(row: dict) -> Loud:
    if row["word"] == "bad":
        raise ValueError("a bad word")
    return {"word": row["word"].upper()}
"""

FILES = {
    "dataflow.yaml": "kind: Project\nname: plant\n",
    "topics/plant.yaml": TOPICS,
    "pipelines/sort/pipeline.yaml": SORT,
    "pipelines/sort/score.py": SCORE,
    "pipelines/iris/pipeline.yaml": IRIS,
    "pipelines/images/pipeline.yaml": IMAGES,
    "pipelines/images/scale.py": SCALE,
    "pipelines/waits/pipeline.yaml": WAITS,
    "pipelines/waits/done.py": DONE,
    "pipelines/shown/pipeline.yaml": SHOWN,
    "pipelines/shown/times.py": TIMES,
    "pipelines/words/pipeline.yaml": WORDS,
    "pipelines/words/loud.py": LOUD,
}
SMALL = {name: FILES[name] for name in FILES if "iris" not in name and "images" not in name}


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write `files` (relative path to text) below `folder` and give it back."""
    for name, text in files.items():
        save(folder / name, text)
    return folder


def save(path: Path, text: str) -> None:
    """As an editor saves: a whole new file takes the old one's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.swp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def train_iris(path: Path) -> None:
    """A small logistic regression: X float32 [N, 4] -> label int64 [N], probabilities float32 [N, 3]."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, species = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(rows, species)
    made = to_onnx(model, rows[:1].astype("float32"), options={"zipmap": False}, target_opset=17)
    path.write_bytes(made.SerializeToString())
