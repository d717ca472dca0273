"""Durations, sizes and rates as people write them: ``500ms``, ``1h30m``, ``7d``, ``1GB``, ``64KiB``, ``100/s``."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

from dataflow.core.durations import DURATION_PART, MS_BY_UNIT, Duration, Wait, positive_ms
from dataflow.core.durations import wait_ms as parse_duration_ms
from dataflow.spec.problems import wrong

__all__ = [
    "Duration", "Rate", "Retention", "Size", "Wait", "format_duration_ms", "parse_duration_ms", "parse_rate",
    "parse_retention_ms", "parse_size_bytes", "positive_ms",
]  # fmt: skip

FOREVER: Final = -1

_BYTES: Final = {
    "B": 1, "KB": 1_000, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)", re.IGNORECASE)
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)")

SIZE_HINT: Final = "e.g. 64KiB, 10MB, 1GB"


def parse_retention_ms(value: object) -> int:
    """A duration, or ``forever`` (-1, Kafka's own word for it)."""
    return FOREVER if value == "forever" else positive_ms(value)


def parse_size_bytes(value: object) -> int:
    """Bytes of ``1GB`` (10^9) or ``1GiB`` (2^30), or a whole number of bytes; more than none."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise wrong(f"a size is needed, not {value!r}", SIZE_HINT)
        size = round(float(match[1]) * _BYTES[match[2].upper()])
    if size <= 0:
        raise wrong(f"a size above zero is needed, not {value!r}", SIZE_HINT)
    return size


def parse_rate(value: object) -> float:
    """Records a second of ``100/s``, ``30/m``, ``1/h``."""
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or float(match[1]) == 0:
        raise wrong(f"a rate above zero is needed, not {value!r}", "e.g. 100/s, 30/m")
    return float(match[1]) / (MS_BY_UNIT[match[2]] / 1_000)


def format_duration_ms(value_ms: int) -> str:
    """The shortest text that `parse_duration_ms` reads back to the same number; ``forever`` for -1."""
    if value_ms == FOREVER:
        return "forever"
    unit = next((u for u in ("d", "h", "m", "s") if value_ms and value_ms % MS_BY_UNIT[u] == 0), "ms")
    return f"{value_ms // MS_BY_UNIT[unit]}{unit}"


Retention = Annotated[
    int,
    BeforeValidator(parse_retention_ms),
    WithJsonSchema({"type": "string", "pattern": rf"^(({DURATION_PART})+|forever)$", "examples": ["7d"]}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size_bytes),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["1GB"], "minimum": 1}),
]
Rate = Annotated[
    float,
    BeforeValidator(parse_rate),
    WithJsonSchema({"type": "string", "pattern": _RATE.pattern, "examples": ["100/s"]}),
]
