"""Durations, sizes and rates as people write them: ``500ms``, ``1h30m``, ``7d``, ``1GB``, ``64KiB``, ``100/s``."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema

from dataflow.spec.problems import wrong

FOREVER: Final = -1

_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES: Final = {
    "B": 1, "KB": 1_000, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_PART: Final = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"
_DURATION: Final = re.compile(rf"(?:{_PART})+")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)", re.IGNORECASE)
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)")

DURATION_HINT: Final = "e.g. 500ms, 2s, 1h30m, 7d"
SIZE_HINT: Final = "e.g. 64KiB, 10MB, 1GB"


def parse_duration_ms(value: object) -> int:
    """Milliseconds of ``1h30m``; a number without a unit is refused because nobody agrees on what it means."""
    text = value.strip() if isinstance(value, str) else ""
    if not _DURATION.fullmatch(text):
        raise wrong(f"a duration is needed, not {value!r}", DURATION_HINT)
    return round(sum(float(number) * _MS[unit] for number, unit in re.findall(_PART, text)))


def parse_retention_ms(value: object) -> int:
    """A duration, or ``forever`` (-1, Kafka's own word for it)."""
    return FOREVER if value == "forever" else positive_ms(value)


def positive_ms(value: object) -> int:
    duration_ms = parse_duration_ms(value)
    if duration_ms == 0:
        raise wrong(f"a duration of zero is not possible here, not {value!r}", DURATION_HINT)
    return duration_ms


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
    return float(match[1]) / (_MS[match[2]] / 1_000)


def format_duration_ms(duration_ms: int) -> str:
    """The shortest text that `parse_duration_ms` reads back to the same number; ``forever`` for -1."""
    if duration_ms == FOREVER:
        return "forever"
    unit = next((u for u in ("d", "h", "m", "s") if duration_ms and duration_ms % _MS[u] == 0), "ms")
    return f"{duration_ms // _MS[unit]}{unit}"


def _text(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


Wait = Annotated[int, BeforeValidator(parse_duration_ms), _text(rf"^({_PART})+$", "500ms")]
Duration = Annotated[int, BeforeValidator(positive_ms), _text(rf"^({_PART})+$", "2s")]
Retention = Annotated[int, BeforeValidator(parse_retention_ms), _text(rf"^(({_PART})+|forever)$", "7d")]
Size = Annotated[
    int,
    BeforeValidator(parse_size_bytes),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["1GB"], "minimum": 1}),
]
Rate = Annotated[float, BeforeValidator(parse_rate), _text(_RATE.pattern, "100/s")]
