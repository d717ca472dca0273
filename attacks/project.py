"""The project that is attacked: every sort of field at the door, and nodes that do no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FILES: Final = {
    "dataflow.yaml": "kind: Project\nname: attacked\n",
    "topics/rows.yaml": """kind: Topic
name: rows
partitions: 2
fields:
  x: float32[3]
  name: string
  n: int64?
  small: uint8?
  at: timestamp?
  day: date?
  price: decimal(8,2)?
  colour: enum<red|green>?
  blob: bytes?
  half: float16[-1]?
  tags: list<string>?
  place: {type: record, nullable: true, fields: {lat: float64, tag: string}}
""",
    "topics/blobs.yaml": "kind: Topic\nname: blobs\nfields: {blob: bytes}\n",
    "topics/texts.yaml": (
        "kind: Topic\nname: texts\nfields:\n"
        "  words: {type: list, items: {type: record, fields: {word: string}}}\n"
    ),
    "pipelines/sums/pipeline.yaml": """kind: Pipeline
name: sums
deadline: 5s
inputs: {row: rows}
answer: {from: sum}
nodes:
  sum: {use: filter.when, from: row, with: {when: name != 'drop'}}
""",
    "pipelines/raw/pipeline.yaml": """kind: Pipeline
name: raw
deadline: 5s
inputs: {blob: blobs}
answer: {from: same}
nodes:
  same: {use: filter.when, from: blob, with: {when: true}}
""",
    "pipelines/words/pipeline.yaml": """kind: Pipeline
name: words
deadline: 5s
inputs: {text: texts}
answer: {from: word}
nodes:
  word: {use: each.split, from: text, with: {field: words}}
""",
}


def write(folder: Path) -> None:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
