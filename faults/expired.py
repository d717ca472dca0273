"""Requests that ended at their deadline because a clock was set forward past it.

A deadline is a time of day (docs/explanation/guarantees.md): what one gateway accepts by a clock that is an hour back is
over for a process whose clock is right. That is the one way in which a request to `handed` may come to nothing, as no
fault lasts as long as its deadline; and its caller must have been told so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from faults.callers import Answer

# Processes look at their clock's file twice a second; a frozen or busy one later.
SLACK_S: Final = 3.0


@dataclass(frozen=True)
class Request:
    """One request in the log; `deadline_s` is Unix time by the clock of who accepted it, 0 where it has none."""

    record_id: str
    n: int
    deadline_s: float


@dataclass(frozen=True)
class Step:
    """From `at_s` on, by the right clock, the clocks of all processes are `offset_s` off."""

    at_s: float
    offset_s: float


def overtaken(request: Request, steps: Sequence[Step], lasts_s: float) -> bool:
    """Whether a step of the clocks went past its deadline, `lasts_s` after it was accepted, while it was under way."""
    accepted_s = request.deadline_s - lasts_s
    for before, after in pairwise([Step(0.0, 0.0), *steps]):
        was, became = after.at_s + before.offset_s, after.at_s + after.offset_s
        if was - lasts_s <= accepted_s <= was + SLACK_S and became + SLACK_S >= request.deadline_s:
            return True
    return False


def unexplained(
    missing: Iterable[Request], answers: Iterable[Answer], steps: Sequence[Step], lasts_s: float
) -> list[str]:
    """Of the requests that nothing came of those that were not overtaken by a clock, or whose caller was not told."""
    told = {answer.n: answer for answer in answers}
    found = []
    for request in missing:
        answer = told.get(request.n)
        said = "nobody asked" if answer is None else f"caller told {answer.status}"
        early = answer is not None and answer.status in (0, 504) and answer.took_s < lasts_s
        if not early or not overtaken(request, steps, lasts_s):
            found.append(f"{request.record_id} (n {request.n}, {said}, deadline {request.deadline_s:.1f})")
    return found
