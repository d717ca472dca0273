"""What is judged, and what a finding is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from faults.callers import Answer
from faults.evidence import Evidence
from faults.expired import Step
from faults.schedule import Fault
from faults.story import Story
from faults.watch import Watch

TITLES: Final = {
    1: "no loss: every input ends in exactly one of output, dead letter, declared filter",
    2: "no duplicate committed output; at least once: duplicates have the same id",
    3: "order per key",
    4: "committed offset is never beyond unfinished work",
    5: "fencing: a paused worker that comes back changes nothing",
    6: "offsets, outputs and state move together",
    7: "aborted records are invisible; an open transaction stalls readers no longer than its timeout",
    8: "poison goes to the dead letters as it was, with its cause, and the partition moves on",
    9: "backpressure: bounded memory, membership kept",
    10: "rebalance: settles in time, one owner for each partition",
    11: "change of version: nothing lost or doubled, every output says its version",
    12: "control records, compaction, retention: recovery ends or fails loudly",
    13: "a key lives in the same partition everywhere",
    14: "memory, threads, descriptors and lag stay flat",
}


@dataclass
class Finding:
    """One invariant: `tried` says by what it was put to the test ("" if by nothing), `wrong` what breaks it."""

    number: int
    tried: str = ""
    found: str = ""
    wrong: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        return bool(self.tried) and not self.wrong


@dataclass(frozen=True)
class Incident:
    """A fault that was: what it did, when, and how long until all was well; `wrong` if it was not."""

    fault: Fault
    did: str
    at_s: float
    recovered_s: float
    wrong: str
    waited: str = ""
    """For what, where that took long."""


@dataclass(frozen=True)
class Case:
    """All that is judged."""

    story: Story
    written: Mapping[str, int]
    poison: Mapping[str, Sequence[tuple[bytes, bytes]]]
    incidents: Sequence[Incident]
    evidence: Evidence
    watch: Watch
    answers: Sequence[Answer]
    seen: Mapping[str, npt.NDArray[np.int64]]
    wrong: Sequence[str]
    factors: Sequence[float]
    bootstrap: str
    refused: Sequence[str] = ()
    unfinished: str = ""
    holes: str = ""
    steps: Sequence[Step] = ()


def tally(case: Case, *kinds: str) -> str:
    """What of these kinds of faults was tried, "" if none."""
    counts = Counter(i.fault.kind for i in case.incidents if not kinds or i.fault.kind in kinds)
    return ", ".join(f"{n} x {kind}" for kind, n in counts.items())


def some(values: Sequence[object], what: str) -> list[str]:
    return [f"{len(values)} {what}, e.g. {', '.join(map(str, values[:3]))}"] if values else []
