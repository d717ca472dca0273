"""Before and after the classifier: the boxes of a scanned form, and the number that its digits make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dataflow.sdk import Fail

if TYPE_CHECKING:
    from dataflow.sdk import Batch

Column = np.ndarray[Any, np.dtype[Any]]

# A digit is 8 x 8 dots, each 0 to 16 dark; on a form a dot of n has the grey value 15 n, so that frames stand out.
SIDE: Final = 8
GREY: Final = 15
BRIGHTEST: Final = 16
FRAME: Final = 255


def cut(row: dict[str, Any]) -> dict[str, Any]:
    """Return `crops`, uint8 [n, 8, 8] in 0..16: what is in the boxes of `pixels`, uint8 [height, width], as one reads.

    A form may have no box at all. Raises Fail for a frame that is no square of 8 x 8 dots.
    """
    pixels: Column = row["pixels"]
    boxes = in_reading_order([(y, x, side_of(pixels, y, x)) for y, x in corners(pixels)])
    crops = [dots(pixels[y + 1 : y + side - 1, x + 1 : x + side - 1]) for y, x, side in boxes]
    return {"crops": np.array(crops, dtype=np.uint8).reshape(-1, SIDE, SIDE)}


def corners(pixels: Column) -> list[tuple[int, int]]:
    """Where the upper left corners of frames are."""
    frame = np.pad(pixels == FRAME, 1)
    here = frame[1:-1, 1:-1]
    above, left, right, below = frame[:-2, 1:-1], frame[1:-1, :-2], frame[1:-1, 2:], frame[2:, 1:-1]
    return [(int(y), int(x)) for y, x in np.argwhere(here & ~above & ~left & right & below)]


def side_of(pixels: Column, y: int, x: int) -> int:
    """How many pixels the frame is wide and high."""
    width, height = run(pixels[y, x:]), run(pixels[y:, x])
    if width != height or width <= 2 or (width - 2) % SIDE:
        raise Fail(
            f"the box at row {y}, column {x} is {width} x {height} pixels, not a square of {SIDE} x {SIDE} dots"
        )
    return width


def run(line: Column) -> int:
    """How far the frame goes along a line."""
    gaps = np.flatnonzero(line != FRAME)
    return int(gaps[0]) if len(gaps) else len(line)


def in_reading_order(boxes: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Boxes (y, x, side) line by line; those that begin above the middle of a line's first box are on that line."""
    lines: list[list[tuple[int, int, int]]] = []
    for box in sorted(boxes):
        if lines and box[0] < lines[-1][0][0] + lines[-1][0][2] / 2:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda found: found[1])]


def dots(inside: Column) -> Column:
    """The 8 x 8 dots of what is in a box, 0 to 16: the mean of the pixels of each dot."""
    size = len(inside) // SIDE
    means: Column = inside.reshape(SIDE, size, SIDE, size).mean(axis=(1, 3)) / GREY
    made: Column = np.minimum(np.round(means), BRIGHTEST).astype(np.uint8)
    return made


def scale(batch: Batch) -> dict[str, Column]:
    """Return `pixels`, float32 [N, 64] in 0..1, of the field `crop`, uint8 [N, 8, 8] in 0..16."""
    return {"pixels": batch["crop"].reshape(len(batch), -1).astype(np.float32) / np.float32(BRIGHTEST)}


def confidence(batch: Batch) -> dict[str, Column]:
    """Return `confidence`, float32 [N]: the largest of `probabilities`, float32 [N, 10]."""
    return {"confidence": batch["probabilities"].max(axis=1)}


def number(row: dict[str, Any]) -> dict[str, Any]:
    """Return `number`, the digits as text, and `confidence`, that of the least sure of them, null where there is none."""
    return {
        "number": "".join(map(str, row["digits"])),
        "confidence": min(row["confidences"], default=None),
    }
