"""How processes and groups fared: the invariants that are not about records."""

from __future__ import annotations

from typing import Final

import numpy as np

from faults.case import Case, Finding, some, tally
from faults.watch import Measures

MAX_WORKER_BYTES: Final = 700 * 1024 * 1024


def backpressure(case: Case, finding: Finding) -> None:
    finding.tried = tally(case, "slow node", "kill broker", "cut network", "full disk")
    most = max((row[1] for m in _workers(case) for row in m.rows), default=0)
    finding.found = f"the largest worker had {most / 1e6:.0f} MB"
    if most > MAX_WORKER_BYTES:
        finding.wrong.append(f"{finding.found}, more than {MAX_WORKER_BYTES / 1e6:.0f} MB")
    finding.wrong += [w for w in case.wrong if "slow" in w]


def _workers(case: Case) -> list[Measures]:
    return [m for m in case.watch.measures.values() if m.name != "gateway"]


def rebalance(case: Case, finding: Finding) -> None:
    moved = [i for i in case.incidents if i.fault.kind not in {"poison", "step clock", "slow node"}]
    if not moved:
        return
    times = sorted(i.recovered_s for i in moved if not i.wrong)
    finding.tried = tally(case)
    if times:
        finding.found = (
            f"all well again after {times[len(times) // 2]:.1f} s (median), {times[-1]:.1f} s (longest)"
        )
    finding.wrong += [f"{i.fault} at {i.at_s:.0f} s: {i.wrong}" for i in case.incidents if i.wrong]
    finding.wrong += some(sorted(set(case.watch.doubles)), "owned twice")
    finding.wrong += [w for w in case.wrong if "slow" not in w and not w.startswith(_HOLES)]


def versions(case: Case, finding: Finding) -> None:
    origins = {t: f.origins for t, f in case.evidence.edges.items()}
    for topic, found in origins.items():
        pipeline = topic.partition(".")[0]
        unsaid = sum(n for origin, n in found.items() if not origin.startswith(f"{pipeline}@".encode()))
        if unsaid:
            finding.wrong.append(f"{unsaid} records of {topic} do not say their version")
    factors = case.evidence.edges["flow.score"].factors
    mixed = {origin.decode(): sorted(f) for origin, f in factors.items() if len(f) > 1}
    if mixed:
        finding.wrong.append(f"one version, several models: {mixed}")
    used = sorted({x for f in factors.values() for x in f})
    if set(used) - set(case.factors):
        finding.wrong.append(f"models that were never deployed: {used}")
    changes = tally(case, "change model")
    if changes and len(used) > 1:
        finding.tried = f"{changes} under load"
        finding.found = f"{len(factors)} versions wrote, their models multiply by {used}"


def holes(case: Case, finding: Finding) -> None:
    """Control records: the second stage of `flow` reads what transactions wrote, and came to the end of it."""
    if case.unfinished:
        finding.wrong.append(case.unfinished)
        return
    finding.tried = f"control and aborted records between two stages; {case.holes or 'others: not tried'}"
    finding.wrong += [w for w in case.wrong if w.startswith(_HOLES)]


# How the findings of `faults.holes` begin.
_HOLES: Final = ("holes", "doomed")


# A process younger than this has not come to rest.
_SETTLED_S: Final = 60.0
# What clients keep of brokers that come and go: bytes, threads, descriptors.
_GROWTH: Final = (96 * 1024 * 1024, 80, 120)


def flat(case: Case, finding: Finding) -> None:
    """Of processes that lived long enough: what they had after a while, and at the end. `make soak` has the figures."""
    grown = []
    for pid, measures in case.watch.measures.items():
        rows = [row for row in measures.rows if row[0] - measures.rows[0][0] > _SETTLED_S]
        if len(rows) < 2 or rows[-1][0] - rows[0][0] < _SETTLED_S:
            continue
        third = max(len(rows) // 3, 1)
        early, late = (np.median(np.array(part)[:, 1:], axis=0) for part in (rows[:third], rows[-third:]))
        growth = late - early
        grown.append(growth)
        if (growth > np.array(_GROWTH)).any():
            what = dict(zip(("bytes", "threads", "descriptors"), growth.astype(int).tolist(), strict=True))
            finding.wrong.append(f"{measures.name} {pid} grew by {what} in {rows[-1][0] - rows[0][0]:.0f} s")
    if grown:
        most = np.max(np.array(grown), axis=0)
        finding.tried = f"{len(grown)} processes that lived through {_SETTLED_S * 2:.0f} s or more of faults"
        finding.found = (
            f"grown by {most[0] / 1e6:.0f} MB, {most[1]:.0f} threads, {most[2]:.0f} descriptors at most"
        )
    if case.unfinished:
        finding.wrong.append(f"lag stays: {case.unfinished}")
