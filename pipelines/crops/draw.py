"""Draws forms of handwritten digits for the pipeline `crops`, of images that its model has not seen.

    python -m pipelines.crops.draw --out DIR [--count N] [--seed S]

Writes PNG files and `numbers.csv`, which says what is on each.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from dataflow.core.errors import ModelError

Column = np.ndarray[Any, np.dtype[Any]]

HELD_OUT: Final = Path(__file__).parent.parent / "digits" / "digits_test.parquet"
SIDE: Final = 8
GREY: Final = 15
FRAME: Final = 255
MOST_DIGITS: Final = 8


def held_out() -> tuple[Column, Column]:
    """(images uint8 [N, 8, 8] in 0..16, the digits [N] they show): those that training put aside.

    Raises ModelError when the model `digits`, whose training writes them, is not built.
    """
    if not HELD_OUT.is_file():
        raise ModelError(f"no file at {HELD_OUT}", hint="build it: dataflow model build digits")
    table = pq.read_table(HELD_OUT)
    images = np.array(table["image"].to_pylist(), dtype=np.uint8).reshape(-1, SIDE, SIDE)
    return images, table["label"].to_numpy()


def form(images: Sequence[Column], random: np.random.Generator, dot: int = 3) -> Column:
    """One line of boxes, uint8 [height, width], with the digits `images`; a dot is `dot` pixels wide and high."""
    side = SIDE * dot + 2
    gaps = random.integers(2, 2 * dot + 3, size=len(images) + 1)
    falls = random.integers(0, side // 2 - 1, size=len(images))
    paper = np.zeros((2 * side, int(gaps.sum()) + side * len(images)), dtype=np.uint8)
    x = int(gaps[0])
    for image, gap, fall in zip(images, gaps[1:].tolist(), falls.tolist(), strict=True):
        box = np.full((side, side), FRAME, dtype=np.uint8)
        box[1:-1, 1:-1] = np.kron(image * np.uint8(GREY), np.ones((dot, dot), dtype=np.uint8))
        paper[1 + fall : 1 + fall + side, x : x + side] = box
        x += side + gap
    return paper


def png(pixels: Column) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def draw(count: int, seed: int) -> list[tuple[bytes, str]]:
    """(PNG file, number on it) of `count` forms with 0 to 8 digits each. Equal seeds give equal forms."""
    images, labels = held_out()
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        chosen = random.integers(0, len(images), size=int(random.integers(0, MOST_DIGITS + 1)))
        pixels = form([images[at] for at in chosen.tolist()], random, dot=int(random.integers(1, 5)))
        made.append((png(pixels), "".join(str(labels[at]) for at in chosen.tolist())))
    return made


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write to."
)
@click.option("--count", type=click.IntRange(1), default=20, show_default=True, help="Forms to draw.")
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed, other forms.")
def main(out: Path, count: int, seed: int) -> None:
    """Draw forms of handwritten digits."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "numbers.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "number"])
        for at, (data, number) in enumerate(draw(count, seed)):
            (out / f"form-{at:03}.png").write_bytes(data)
            rows.writerow([f"form-{at:03}", number])


if __name__ == "__main__":
    main()
