"""A fixed number of seeds; `python -m tests.simulation` runs as many as there is time for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from random import Random

import pytest

from tests.simulation.mutants import MUTANTS, broken
from tests.simulation.run import SEEDS_OF_PIPELINE, case_of, run_seed, run_seeds
from tests.simulation.world import World, run_wildly

SEEDS = 300
# Seeds that a broken engine is given.
ENOUGH = 500


def test_whatever_befalls_workers_all_is_as_the_model_says() -> None:
    for found in run_seeds(0, SEEDS):
        assert found is None, str(found)


@pytest.mark.parametrize(
    "seed",
    [
        45 * SEEDS_OF_PIPELINE,  # a pipeline that is split and gathered, in order for each key
        37 * SEEDS_OF_PIPELINE,  # ... across stages
        35 * SEEDS_OF_PIPELINE,  # ... and keyed anew in between
        105,  # a broken commit, and work in hand when the group is left
        1441,  # a retry among records made from state
        4869,  # a member that was put out alive
        4894,  # a delivery that fails before an earlier one is through
        8252,  # ... and one that is known to have failed when the next batch is there
    ],
)
def test_what_was_once_found(seed: int) -> None:
    with case_of(seed // SEEDS_OF_PIPELINE) as case:
        found = run_seed(case, seed)
        assert found is None, str(found)


def traces(seed: int) -> tuple[list[str], str]:
    """The steps of a seed, and all that it left."""
    with case_of(seed // SEEDS_OF_PIPELINE) as case:
        world = World(case.sketch, case.plan, case.folder, Random(f"run {seed}"))
        run_wildly(world, 8)
        left = [
            (topic, m.offset(), m.key(), m.value(), m.headers())
            for topic, stored in world.fabric.stored.items()
            if topic.startswith(("p.", "dataflow.state"))
            for partition in stored.partitions
            for m in partition.records
        ]
    return world.trace, repr(left)


@pytest.mark.parametrize("seed", [13, 27, 81])
def test_a_seed_replays_exactly(seed: int) -> None:
    assert traces(seed) == traces(seed)


def test_a_seed_is_the_same_in_another_process() -> None:
    text = "from tests.simulation.test_simulation import traces; import hashlib; print(hashlib.sha256(repr(traces(81)).encode()).hexdigest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", text], check=True, capture_output=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


# Where to begin to look, so that it does not take long: they are found within 20 seeds from there, as things are.
LOOK_FROM: dict[str, int] = {
    "commit_before_outputs": 0,
    "offsets_not_contiguous": 60,
    "lost_timer": 40,
    "state_kept_over_an_abort": 60,
    "no_fencing": 220,
    "state_not_whole": 20,
    "state_before_it_is_restored": 40,
    "a_key_forgets": 20,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_a_broken_engine_is_found(mutant: Callable[[ExitStack], None]) -> None:
    first = LOOK_FROM[mutant.__name__]
    for number in count(first // SEEDS_OF_PIPELINE):
        assert number * SEEDS_OF_PIPELINE < first + ENOUGH, "it is not found"
        with case_of(number) as case, broken(mutant):
            if any(run_seed(case, number * SEEDS_OF_PIPELINE + n) for n in range(SEEDS_OF_PIPELINE)):
                return
