"""Joins whose sides come of different stages: the ways on which their records come, and who says that one will not.

Such a join reads its sides from Kafka, and hears on the control topic of records that will not come: of each record
that a stage took from a *source*, and did not write on an *edge* that it leads to. A source is an edge that the stage
fetches, or another such join in it (written `~NODE`), for what a join holds is neither written nor lost. The pairs that
concern a join are its ways, from its sides back to where the record began.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dataflow.planner.plan import CONTROL, CONTROL_SCHEMA, ClosePlan, EdgePlan, join_source
from dataflow.spec import Fault
from dataflow.spec.problems import YamlPath

if TYPE_CHECKING:
    from dataflow.planner.stages import Stages


def ways_of(stages: Stages, join: str) -> dict[str, tuple[str, ...]]:
    """By edge on the way to a join, its sides included: the sources of its records. () for where they begin."""
    resolved = stages.resolved
    sides = resolved.read_by(join)
    roots = {root for side in sides for root in resolved.placed_by(side)}
    ways: dict[str, tuple[str, ...]] = {}
    waiting = list(sides)
    while waiting:
        edge = waiting.pop()
        producer = resolved.edges[edge].producer
        if edge in ways:
            continue
        ways[edge] = () if edge in roots or producer is None else _sources(stages, producer)
        waiting += [source for source in ways[edge] if source in resolved.edges]
    return ways


def _sources(stages: Stages, producer: str) -> tuple[str, ...]:
    """What the records that a node makes come from within its stage."""
    return tuple(sorted(_before(stages, producer)[0]))


def _before(stages: Stages, producer: str) -> tuple[set[str], set[str]]:
    """The sources of a node's records within its stage, and the nodes on the ways from them to it, itself included."""
    sources: set[str] = set()
    seen: set[str] = set()
    waiting = [producer]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        if node in stages.apart:
            sources.add(join_source(node))
            continue
        seen.add(node)
        for edge in stages.resolved.read_by(node):
            maker = stages.resolved.edges[edge].producer
            if maker is None or stages.fetches(node, edge):
                sources.add(edge)
            else:
                waiting.append(maker)
    return sources, seen


def _through(stages: Stages, source: str, producer: str) -> tuple[str, ...]:
    """The nodes by which records of one source come to be a node's."""
    nodes = _before(stages, producer)[1]
    return tuple(sorted(node for node in nodes if source in _before(stages, node)[0]))


def closed_by(stages: Stages, stage: str) -> tuple[ClosePlan, ...]:
    """What a stage says of records that do not go on: of its own, and of sides that reach no join of it."""
    found: set[ClosePlan] = set()
    for join in stages.apart:
        for edge, sources in ways_of(stages, join).items():
            producer = stages.resolved.edges[edge].producer
            if producer is not None and stages.stage_of[producer] == stage:
                found.update(ClosePlan(s, edge, _through(stages, s, producer)) for s in sources)
        if stages.stage_of[join] == stage:
            found.update(ClosePlan(side, side) for side in stages.resolved.read_by(join))
    return tuple(sorted(found))


def control_edge(stages: Stages) -> EdgePlan | None:
    """The edge on which stages say that records will not come; None where no join needs to know."""
    if not stages.apart:
        return None
    name = stages.resolved.spec.name
    partitions = max(_partitions(stages, join) for join in stages.apart)
    return EdgePlan(CONTROL, (f"{name}.control",), CONTROL_SCHEMA, "avro", partitions, node=CONTROL)


# ---------------------------------------------------------------- what forbids it


def apart_faults(stages: Stages, join: str) -> Iterator[Fault]:
    """Why the sides of a join cannot come of different stages."""
    resolved = stages.resolved
    place: YamlPath = ("nodes", join, "from")
    called = f"node '{join}' of pipeline '{resolved.spec.name}'"
    kind = resolved.nodes[join].kind
    sides = resolved.read_by(join)
    roots = {side: resolved.placed_by(side) for side in sides}
    if not kind.apart:
        yield Fault(
            place,
            f"{called} gathers the branches of one record, but its sides come of different stages: {', '.join(sides)}",
            f"'{kind.name}' needs all of them in one stage (no `isolate` in between); join.by_id and join.any do not",
        )
    elif len(set(roots.values())) > 1:
        said = "; ".join(f"'{side}' of {', '.join(sorted(found))}" for side, found in roots.items())
        yield Fault(
            place,
            f"{called} gathers the branches of one record, but its sides come of different streams: {said}",
            "let them branch off one edge, with no `rekey` after it",
        )
    elif len({resolved.edges[side].partitions for side in sides}) > 1:
        said = ", ".join(f"'{side}' {resolved.edges[side].partitions}" for side in sides)
        yield Fault(
            place,
            f"the sides of {called} come of different stages and lie on different partitions: {said}",
            "leave `partitions` of the edges to the input, or set the input's",
        )
    else:
        yield from _way_faults(stages, join, place, called)


def _way_faults(stages: Stages, join: str, place: YamlPath, called: str) -> Iterator[Fault]:
    resolved = stages.resolved
    ways = ways_of(stages, join)
    for edge in sorted(ways):
        producer = resolved.edges[edge].producer
        if producer is not None and ways[edge] and resolved.nodes[producer].kind.outside:
            yield Fault(
                place,
                f"{called} would not know of records that '{producer}' drops: its work is done outside",
                "join.by_key meets them within a time",
            )
    if _in_loop(stages, join):
        yield Fault(
            place,
            f"{called} lies in a loop, and its sides come of different stages",
            "let the loop and all its branches be one stage (no `isolate` within)",
        )


def _in_loop(stages: Stages, join: str) -> bool:
    resolved = stages.resolved
    seen: set[str] = set()
    waiting = [resolved.edges[edge].producer for edge in resolved.read_by(join)]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node == join:
            return True
        seen.add(node)
        waiting += [resolved.edges[edge].producer for edge in resolved.read_by(node)]
    return False


def control_faults(stages: Stages) -> Iterator[Fault]:
    """One control topic serves all joins of a pipeline: partition by partition."""
    taken = stages.resolved.edges.get("control") if stages.apart else None
    if taken is not None and taken.producer is not None:
        message = f"the topic '{stages.resolved.spec.name}.control' is where stages speak to joins of others"
        yield Fault(("nodes", taken.producer), message, "rename the node", at_key=True)
    counts = {join: _partitions(stages, join) for join in sorted(stages.apart)}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"'{join}' {count}" for join, count in counts.items())
        yield Fault(
            ("nodes", next(iter(counts)), "from"),
            f"joins across stages need equal partitions within a pipeline: {said}",
            "declare equal `partitions`, or keep the sides of one in one stage",
        )


def _partitions(stages: Stages, join: str) -> int:
    """Those of a join's sides, and so of what it hears of them."""
    return max(stages.resolved.edges[side].partitions for side in stages.resolved.read_by(join))


def wait_faults(stages: Stages, join: str) -> Iterator[Fault]:
    """A time to wait where there is nothing to wait for."""
    if getattr(stages.resolved.nodes[join].settings, "wait", None) is not None:
        yield Fault(
            ("nodes", join, "with", "wait"),
            f"wait: has no effect: all sides of '{join}' are in one stage, which knows when they are over",
            "leave it out",
            "warning",
        )
