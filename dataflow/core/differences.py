"""Where two values, as JSON says them, differ: the one rule for inline tests and for replays. Pure.

Floating-point numbers may differ by a tolerance, relative or absolute, whichever is larger; whole numbers by the
tolerance itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final

Path = tuple[str | int, ...]

_MAX_SHOWN: Final = 80
_SPECIAL: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _Absent:
    """What stands where a record has no such field."""


ABSENT: Final = _Absent()


def differences(
    expected: Any, found: Any, tolerance: float, path: Path = (), *, partial: bool = False
) -> Iterator[tuple[Path, Any, Any]]:
    """Every place where the two differ: the path to it, and both values there (ABSENT where one has no such field).

    `partial`: only the fields that `expected` names are compared, at any depth.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name, value in expected.items():
            yield from differences(value, found.get(name, ABSENT), tolerance, (*path, name), partial=partial)
        if not partial:
            for name, value in found.items():
                if name not in expected:
                    yield (*path, name), ABSENT, value
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            yield path, expected, found
            return
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, tolerance, (*path, index), partial=partial)
    elif not same(expected, found, tolerance):
        yield path, expected, found


def same(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether two scalars are equal, or numbers within the tolerance. NaN is NaN."""
    one, other = number_of(expected), number_of(found)
    if one is None or other is None:
        return bool(expected == found) and isinstance(expected, bool) == isinstance(found, bool)
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    if isinstance(expected, int) and isinstance(found, int):
        return abs(expected - found) <= tolerance  # never relative: an id is not nearly another one
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def number_of(value: Any) -> float | None:
    """The number that a value is, NaN and the infinities as JSON says them included; None for what is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return _SPECIAL.get(value) if isinstance(value, str) else None


def shown(value: Any) -> str:
    """A value in a line, cut where it is long."""
    if value is ABSENT:
        return "no such field"
    text = _text(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else str(value)


def path_text(path: Sequence[str | int]) -> str:
    """``offers[0].price``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
