"""Limits that are set for a process: environment variable ``DATAFLOW_LIMIT_`` and the limit's name, a whole number from 1 on."""

from __future__ import annotations

import os
from typing import Final

PREFIX: Final = "DATAFLOW_LIMIT_"
SETTABLE: Final[set[str]] = set()
"""Names of the limits that may be set."""
REFUSED: Final[list[tuple[str, str]]] = []
"""Variable and value of those that were set to what is no such number: the default holds, and commands refuse to run."""


def setting(name: str, default: int) -> int:
    """The limit `name`: as the environment says, else `default`. Asked once, when the limits are imported."""
    SETTABLE.add(name)
    given = os.environ.get(PREFIX + name, "").strip()
    if not given:
        return default
    if not given.isdecimal() or not int(given):
        REFUSED.append((PREFIX + name, given))
        return default
    return int(given)
