"""A recorded stretch of a pipeline run again, through the same plan or a changed one, and compared with the recording.

It runs on topics of its own (see `replay_plan`), with the engine's own stages, and leaves nothing behind: nothing that
the pipeline itself reads or writes is touched, no caller is answered, nodes with effects are off.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dataflow.control.bounded import await_end
from dataflow.control.deploy import prepare_topics
from dataflow.control.replay_edges import Judge, behind, note_letters
from dataflow.control.replay_fabric import ShadowFabric
from dataflow.control.replay_ledger import Ledger
from dataflow.control.replay_plan import PREFIX, Shadow, shadow_plan, with_partitions
from dataflow.control.replay_report import ReplayReport
from dataflow.control.replay_stretch import Feeder, Stretch, find_stretch
from dataflow.control.starts import FROM_EARLIEST, FROM_LATEST, Start
from dataflow.core.errors import PlanError
from dataflow.planner.plan import NodePlan, Plan
from dataflow.registry import Registry
from dataflow.runtime.worker import Worker
from dataflow.runtime.workshop import Workshop
from dataflow.transport.api import Fabric

OnProgress = Callable[[str, int, int], None]  # what is done, how many, of how many (0: not known)


@dataclass(frozen=True)
class Replay:
    """What to replay.

    recorded   the plan whose records are there; `runs` is what they go through now: the same, or a changed one
    edge       where they are fed; "" for the inputs
    changed    what the report calls the change, "" if there is none
    keep       leave the topics of the replay, to be looked at
    """

    recorded: Plan
    runs: Plan
    edge: str = ""
    begin: Start = FROM_EARLIEST
    end: Start = FROM_LATEST
    tolerance: float = 1e-6
    changed: str = ""
    keep: bool = False
    show_private: bool = False


def replay(
    folder: Path,
    registry: Registry,
    fabric: Fabric,
    wanted: Replay,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> ReplayReport:
    """Do it. `folder` is the project's, with the code and the models of `wanted.runs`.

    Raises SpecError for an unknown edge and an empty stretch, OffsetOutOfRangeError for one that is not held any more,
    PlanError where nothing can be compared, DataflowError if a stage fails.
    """
    started = time.monotonic()
    prefix = f"{PREFIX}{uuid.uuid4().hex[:8]}."
    shadow = shadow_plan(wanted.recorded, wanted.runs, registry, wanted.edge, prefix)
    if not shadow.compared:
        raise PlanError(
            f"nothing of pipeline '{wanted.recorded.pipeline}' can be compared below "
            f"'{', '.join(shadow.fed) or 'its inputs'}': {_reasons(shadow)}"
        )
    stretches = [find_stretch(fabric, e, wanted.begin, wanted.end) for e in shadow.fed.values()]
    shadow = with_partitions(shadow, {s.edge: s.partitions for s in stretches})
    plan = shadow.plan
    report = ReplayReport(
        plan.pipeline, wanted.recorded.version, plan.version, wanted.changed, wanted.tolerance
    )
    report.not_compared, report.off = dict(shadow.not_compared), dict(shadow.off)
    report.notes += _notes(folder, wanted, shadow, registry)
    try:
        prepare_topics(fabric.admin(), plan.topics.values())
        with Ledger() as ledger:
            shadowed = ShadowFabric(fabric, prefix, shadow.renamed)
            shop = Workshop(folder, registry, shadowed, state_folder=ledger.folder)
            _run(shop, shadow, fabric, stretches, ledger, report, on_progress)
            report.notes += behind(fabric, wanted.recorded, stretches)
            _compare(fabric, shadow, wanted, ledger, report, on_progress)
    finally:
        if wanted.keep:
            report.kept = sorted(plan.topics)
        else:
            fabric.admin().delete([t for t in fabric.admin().topics() if t.startswith(prefix)])
    report.seconds = time.monotonic() - started
    _check_found(report)
    return report


def _run(
    shop: Workshop,
    shadow: Shadow,
    fabric: Fabric,
    stretches: list[Stretch],
    ledger: Ledger,
    report: ReplayReport,
    on_progress: OnProgress,
) -> None:
    """Feed the stretches through the stages, to the end."""
    plan = shadow.plan
    targets = {
        topic: plan.edges[name].topics[0] for name, edge in shadow.fed.items() for topic in edge.topics
    }
    worker = Worker(shop, [plan])
    worker.start()
    try:
        feeder = Feeder(fabric, shop.fabric, targets, ledger)
        report.fed = feeder.feed(stretches, partial(on_progress, "fed"))
        await_end(fabric, plan, worker, sum(f.records for f in report.fed), on_progress)
    finally:
        worker.stop()
    report.failed = note_letters(fabric, shadow, ledger)
    for (_, node), metrics in shop.metrics.nodes.items():
        for reason, count in metrics.dropped.counts.items():
            report.dropped[f"{node}: {reason}"] = count


def _compare(
    fabric: Fabric,
    shadow: Shadow,
    wanted: Replay,
    ledger: Ledger,
    report: ReplayReport,
    on_progress: OnProgress,
) -> None:
    judge = Judge(
        fabric,
        ledger,
        wanted.recorded,
        shadow,
        wanted.tolerance,
        wanted.show_private,
        min(f.first_ms for f in report.fed if f.records),
        max(f.last_ms for f in report.fed if f.records),
    )
    for number, name in enumerate(shadow.compared):
        on_progress(f"comparing {name}", number, len(shadow.compared))
        report.edges.append(judge.compare(name))


def _check_found(report: ReplayReport) -> None:
    """A recording that has none of the outputs cannot say anything."""
    replayed = sum(e.replayed for e in report.edges)
    if replayed and not any(e.recorded for e in report.edges):
        raise PlanError(
            f"nothing was recorded of that stretch on {', '.join(e.edge for e in report.edges)}: "
            f"{replayed} records were replayed and none can be compared",
            hint="did the pipeline run then? are its edges kept that long (edges: {retention})?",
        )


def _reasons(shadow: Shadow) -> str:
    found: Mapping[str, str] = {**shadow.not_compared, **{f"node {n}": r for n, r in shadow.off.items()}}
    return "; ".join(f"{name}: {why}" for name, why in found.items()) or "no node reads it"


def _notes(folder: Path, wanted: Replay, shadow: Shadow, registry: Registry) -> list[str]:
    """What a reader must know of how it was run."""
    notes = []
    stateful = [n.name for n in shadow.plan.nodes.values() if _remembers(folder, shadow.plan, n, registry)]
    if stateful:
        notes.append(
            f"{', '.join(stateful)} began with empty state, and gave at the end what was still open: "
            "what depends on records before or after the stretch differs"
        )
    tables = sorted({t for n in shadow.plan.nodes.values() for t in n.tables})
    if tables:
        notes.append(f"{', '.join(tables)}: looked up as they are now, not as they were then")
    opened = [n for n, e in wanted.recorded.edges.items() if e.open and n in shadow.compared]
    if opened:
        notes.append(
            f"{', '.join(opened)}: what others wrote there is not replayed; with --edge it is all that is there"
        )
    sides = [e for e in shadow.fed if wanted.edge and e != wanted.edge]
    if sides:
        notes.append(f"{', '.join(sides)}: fed too, for what reads them beside '{wanted.edge}'")
    return notes


def _remembers(folder: Path, plan: Plan, node: NodePlan, registry: Registry) -> bool:
    """Whether what a node gives depends on records before."""
    kind = registry.get(node.kind)
    settings = kind.settings.model_validate(dict(node.settings))
    in_memory = bool(getattr(kind.target, "remembers", False))
    return in_memory or kind.keyed_for(settings, folder / plan.folder)
