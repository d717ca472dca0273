"""Durations as people write them: ``500ms``, ``2s``, ``1h30m``, ``7d``."""

from __future__ import annotations

import re
from typing import Final

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
