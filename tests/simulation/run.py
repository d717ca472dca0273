"""Seeds to runs: some seeds share a pipeline, so that its plan and its quiet run are made once."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from dataflow.planner.plan import Plan
from tests.simulation.checks import Decoder, Left, check, check_meaning, left_by
from tests.simulation.model import meaning_of
from tests.simulation.pipelines import Sketch, sketch_of
from tests.simulation.world import Failed, World, run_quietly, run_wildly

# So many seeds in a row have one pipeline and one input.
SEEDS_OF_PIPELINE: Final = 20
MOST_FAULTS: Final = 8


@dataclass
class Case:
    """A pipeline, and what it gives when all is quiet."""

    sketch: Sketch
    plan: Plan
    folder: Path
    quiet: Left
    decoder: Decoder


@dataclass
class Found:
    """What is wrong with a seed."""

    seed: int
    error: BaseException
    yaml: str
    trace: list[str]

    def __str__(self) -> str:
        steps = "\n".join(self.trace)
        if not isinstance(self.error, Failed):
            steps += "\n" + "".join(traceback.format_exception(self.error))
        return f"seed {self.seed}: {type(self.error).__name__}: {self.error}\n{self.yaml}\n{steps}"


@contextmanager
def case_of(number: int) -> Iterator[Case]:
    """The pipeline of so many seeds."""
    sketch = sketch_of(number)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fused = sketch.plan(folder, fused=True)
        decoder = Decoder(fused)
        world = World(sketch, fused, folder, Random(f"quiet {number}"))
        run_quietly(world)
        quiet = left_by(world, decoder)
        check_meaning(sketch, meaning_of(sketch), quiet, decoder)
        yield Case(sketch, sketch.plan(folder), folder, quiet, Decoder(sketch.plan(folder)))


def run_seed(case: Case, seed: int, most_faults: int = MOST_FAULTS) -> Found | None:
    """One run; what is wrong with it."""
    world = World(case.sketch, case.plan, case.folder, Random(f"run {seed}"))
    try:
        run_wildly(world, most_faults)
        check(case.sketch, case.plan, case.quiet, left_by(world, case.decoder), case.decoder)
    except Exception as error:  # noqa: BLE001  (whatever comes out of the engine is a finding)
        return Found(seed, error, case.sketch.yaml(), world.trace)
    return None


def run_seeds(first: int, last: int, most_faults: int = MOST_FAULTS) -> Iterator[Found | None]:
    """All seeds from `first` to before `last`."""
    seed = first
    while seed < last:
        number = seed // SEEDS_OF_PIPELINE
        try:
            with case_of(number) as case:
                for one in range(seed, min(last, (number + 1) * SEEDS_OF_PIPELINE)):
                    yield run_seed(case, one, most_faults)
        except Exception as error:  # noqa: BLE001  (a pipeline that is wrong without any fault)
            yield Found(seed, error, sketch_of(number).yaml(), [])
        seed = (number + 1) * SEEDS_OF_PIPELINE
