"""What all kinds that send records one way or another share."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from dataflow.sdk import Batch, Out

_PORT: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)


def check_port(name: str) -> str:
    """The name; raises ValueError if no port can be called so."""
    if not _PORT.fullmatch(name):
        raise ValueError(f"'{name}' is no port name: lower-case letters, digits, _ and -, a letter first")
    return name


def emit_where(batch: Batch, out: Out, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], port: str) -> None:
    """Emit the chosen rows with the bytes they came in, and the batch as it is where all are."""
    rows = np.flatnonzero(chosen)
    if len(rows) == len(batch):
        out.emit(batch, port=port)
    elif len(rows):
        out.emit(batch.take(rows), rows=rows, port=port)
