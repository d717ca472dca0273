"""Which faults come, in which order: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from faults.agent import PLAIN_POINTS, POINTS


@dataclass(frozen=True)
class Fault:
    """One fault to come. `kind` names it in `faults.inject`, `choice` is what it is about; `seed` decides the rest."""

    number: int
    kind: str
    choice: str
    seed: int

    @property
    def random(self) -> random.Random:
        return random.Random(self.seed)

    def __str__(self) -> str:
        return f"{self.kind} ({self.choice})" if self.choice else self.kind


# How often each comes in a full run.
FULL: Final[Mapping[tuple[str, str], int]] = {
    ("kill worker", "flow"): 4,
    ("kill worker", "plain"): 2,
    **{("kill worker at", point): 2 for point in POINTS},
    **{("kill plain worker at", point): 1 for point in PLAIN_POINTS},
    ("lose state files", ""): 2,
    ("holes in the log", ""): 1,
    ("freeze worker", "past its session"): 4,
    ("freeze worker", "past its transaction"): 2,
    ("freeze worker", "within its session"): 2,
    ("storm", ""): 4,
    ("stop worker", ""): 2,
    ("kill broker", "any"): 4,
    ("kill broker", "controller"): 3,
    ("kill broker", "group coordinator"): 2,
    ("kill broker", "transaction coordinator"): 2,
    ("cut network", "silence"): 3,
    ("cut network", "deaf"): 3,
    ("cut network", "reset"): 2,
    ("full disk", ""): 2,
    ("slow node", ""): 2,
    ("kill gateway", ""): 4,
    ("freeze gateway", ""): 3,
    ("foreign writer", ""): 3,
    ("step clock", ""): 3,
    ("poison", ""): 2,
    ("change model", ""): 3,
}
QUICK: Final[Mapping[tuple[str, str], int]] = {
    ("kill worker", "flow"): 1,
    ("kill worker at", "after output, before its offsets"): 1,
    ("kill worker at", "in the commit"): 1,
    ("kill plain worker at", "after the offsets"): 1,
    ("freeze worker", "past its session"): 1,
    ("storm", ""): 1,
    ("kill broker", "any"): 1,
    ("cut network", "deaf"): 1,
    ("kill gateway", ""): 1,
    ("freeze gateway", ""): 1,
    ("foreign writer", ""): 1,
    ("lose state files", ""): 1,
    ("poison", ""): 1,
}


def schedule(seed: int, wanted: Mapping[tuple[str, str], int]) -> list[Fault]:
    """Every fault of `wanted` as often as it says, in an order that the seed chooses: one of each, then the others."""
    once = [kind for kind, count in wanted.items() if count]
    again = [kind for kind, count in wanted.items() for _ in range(count - 1)]
    order = random.Random(seed)
    order.shuffle(once)
    order.shuffle(again)
    chosen = once + again
    return [
        Fault(number, kind, choice, order.randrange(1 << 32)) for number, (kind, choice) in enumerate(chosen)
    ]
