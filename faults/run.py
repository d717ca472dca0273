"""One run: the world, its faults in order, the end, the judgement."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from faults.case import TITLES, Case, Incident
from faults.evidence import gather
from faults.inject import inject
from faults.judge import Judgement, judge
from faults.schedule import FULL, QUICK, Fault, schedule
from faults.world import TOPICS, Sizes, World

Tell = Callable[[str], None]

# How long a fault may take until all is well again. Generous: a shared machine takes its time.
SETTLE_S: Final = 90.0
DRAIN_S: Final = 240.0
# Of a settling that takes longer it is told what it waited for.
_LONG_S: Final = 10.0
# Lines of what is wrong with one invariant.
_SHOWN: Final = 40


@dataclass(frozen=True)
class Settings:
    """What is run: how much, with which faults. `seed` decides the input and the faults."""

    seed: int
    sizes: Sizes
    faults: Mapping[tuple[str, str], int]
    budget_s: float
    """After so long no new fault begins: what is left of the time is for the judge."""


QUICK_SIZES: Final = Sizes(nodes=1, workers=2, gateways=1, callers=4, records=40_000)
FULL_SIZES: Final = Sizes(nodes=3, workers=3, gateways=2, callers=8, records=1_000_000)


def settings(seed: int, records: int, *, quick: bool) -> Settings:
    sizes = QUICK_SIZES if quick else FULL_SIZES
    if records:
        sizes = replace(sizes, records=records)
    return Settings(seed, sizes, QUICK if quick else FULL, 110.0 if quick else 960.0)


def run(
    chosen: Settings, tell: Tell, *, mutants: Mapping[str, str] | None = None, keep: bool = False
) -> Judgement:
    """Run it all; `mutants` break the workers of pipelines, see `faults.mutants`. The folder of everything is deleted unless something is wrong or `keep`."""
    folder = Path(tempfile.mkdtemp(prefix="dataflow-faults-"))
    tell(
        f"seed {chosen.seed}, {chosen.sizes.records:,} records, {sum(chosen.faults.values())} faults, in {folder}"
    )
    world = World(folder, chosen.sizes, chosen.seed, mutants or {})
    try:
        judged = _story(world, chosen, tell)
    except BaseException:
        keep = True
        raise
    finally:
        world.close()
        if not keep:
            shutil.rmtree(folder / "brokers", ignore_errors=True)
    if judged.sound and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        tell(f"logs are in {folder}")
    return judged


def _story(world: World, chosen: Settings, tell: Tell) -> Judgement:
    faults = schedule(chosen.seed, chosen.faults)
    world.feeder.allow(chosen.sizes.records // 50)
    if wrong := world.settle(SETTLE_S * 2):
        world.tell_state("start")
        time.sleep(1)
        raise RuntimeError(f"the pipelines never came up: {wrong}")
    began = time.monotonic()
    incidents = []
    for fault in faults:
        passed = time.monotonic() - began
        if passed > chosen.budget_s:
            tell(f"{passed:6.1f} s  no time for the last {len(faults) - fault.number} faults on this machine")
            break
        share = max((fault.number + 1) / len(faults), passed / chosen.budget_s)
        world.feeder.allow(int(chosen.sizes.records * share))
        incidents.append(_one(world, fault, began))
        happened = incidents[-1]
        tell(
            f"{happened.at_s:6.1f} s  {fault.number + 1}/{len(faults)} {happened.did}; "
            + (happened.wrong or f"all well after {happened.recovered_s:.1f} s")
            + (f" ({happened.waited})" if happened.waited else "")
        )
    world.feeder.allow(chosen.sizes.records)
    return _end(world, incidents, tell)


def _one(world: World, fault: Fault, began: float) -> Incident:
    at_s = time.monotonic() - began
    did = inject(world, fault)
    ended = time.monotonic()
    if wrong := world.settle(SETTLE_S):
        world.tell_state(f"{fault.number + 1}")
    recovered_s = time.monotonic() - ended
    return Incident(fault, did, at_s, recovered_s, wrong, str(world.waits) if recovered_s > _LONG_S else "")


def _end(world: World, incidents: list[Incident], tell: Tell) -> Judgement:
    began = time.monotonic()
    world.callers.close()
    handed = world.handed()
    tell(f"{handed} requests were handed over by the gateways that are left")
    if not handed:
        world.wrong.append("no request was handed over: nothing was tried of that")
    unfinished = world.drained(DRAIN_S)
    if unfinished:
        world.wrong.append(f"after all faults were over: {unfinished}")
    world.feeder.close()
    world.watch.look()
    world.watch.close()
    tell(f"drained in {time.monotonic() - began:.1f} s; reading everything")
    seen = world.reader.finish()
    evidence = gather(world.brokers.bootstrap, world.story)
    tell(f"judging {sum(len(f.code) for f in evidence.edges.values()):,} records of {len(TOPICS)} topics")
    for crew in world.crews.values():
        for agent, status in crew.left:
            world.wrong.append(f"a worker ended by itself with status {status}:\n{agent.output()[-800:]}")
    case = Case(
        world.story, world.feeder.written, world.feeder.poison, incidents, evidence, world.watch,
        world.callers.answers, seen, world.wrong, world.factors, world.brokers.bootstrap, world.feeder.refused, unfinished, world.holes,
        world.steps,
    )  # fmt: skip
    return judge(case)


def report(judged: Judgement, tell: Tell) -> None:
    """Per invariant what was tried and found."""
    for finding in judged.findings:
        state = "BROKEN" if finding.wrong else "held" if finding.tried else "not tried"
        tell(f"\n{finding.number:2} {TITLES[finding.number]}: {state}")
        for name, text in (("tried", finding.tried), ("found", finding.found)):
            if text:
                tell(f"     {name}: {text}")
        for wrong in finding.wrong[:_SHOWN]:
            tell(f"     WRONG: {wrong}")


def summary(judged: Judgement, seed: int) -> str:
    document: dict[str, Any] = {
        "records": judged.records, "faults": judged.faults, "lost": judged.lost, "duplicated": judged.duplicated,
        "reordered": judged.reordered, "invariants_held": judged.held, "seed": seed,
    }  # fmt: skip
    return json.dumps(document)
