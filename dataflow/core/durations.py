"""Durations as people write them: ``500ms``, ``2s``, ``1h30m``, ``7d``."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MS_BY_UNIT: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DURATION_PART: Final = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"
DURATION_HINT: Final = "e.g. 500ms, 2s, 1h30m, 7d"
_DURATION: Final = re.compile(rf"(?:{DURATION_PART})+")


def duration_ms(value: object) -> int:
    """Milliseconds of ``1h30m``. Raises ValueError, for a number without a unit too: nobody agrees on what it means."""
    text = value.strip() if isinstance(value, str) else ""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"a duration is needed, not {value!r}")
    return round(sum(float(number) * MS_BY_UNIT[unit] for number, unit in re.findall(DURATION_PART, text)))


def wait_ms(value: object) -> int:
    """`duration_ms` for a declaration: its error is shown with a hint."""
    try:
        return duration_ms(value)
    except ValueError as error:
        raise _wrong(str(error)) from None


def positive_ms(value: object) -> int:
    """As `wait_ms`, and more than nothing."""
    found_ms = wait_ms(value)
    if found_ms == 0:
        raise _wrong(f"a duration of zero is not possible here, not {value!r}")
    return found_ms


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("dataflow", "{message}", {"message": message, "hint": DURATION_HINT})


def _text(example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": rf"^({DURATION_PART})+$", "examples": [example]})


# In a declaration a text like ``1h30m``, in Python milliseconds. A wait may be 0.
Wait = Annotated[int, BeforeValidator(wait_ms), _text("500ms")]
Duration = Annotated[int, BeforeValidator(positive_ms), _text("2s")]
