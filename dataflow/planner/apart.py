"""Joins whose sides come of different stages: the ways on which their records come, and who says that one will not.

Such a join reads its sides from Kafka, and hears on the control topic of records that will not come: of each record
that a stage took from a *source*, and did not write on an *edge* that it leads to. A source is an edge that the stage
fetches, the edge on which it makes children, or another such join in it (written `~NODE`), for what a join holds is
neither written nor lost. The pairs that concern a join are its ways, from its sides back to where the record began.

A join of children with their parents (`each.gather`) has two kinds of records, and ways of both: the children's lead back
to the edge on which they were made, the parents' to where these began.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dataflow.planner.branches import Branch, begun_on, born_on, branches_of, is_split, same_ids
from dataflow.planner.homes import home_faults, homes_of, left_by
from dataflow.planner.plan import CONTROL, CONTROL_SCHEMA, ClosePlan, EdgePlan, join_source
from dataflow.planner.resolved import Resolved
from dataflow.spec import Fault
from dataflow.spec.problems import YamlPath

if TYPE_CHECKING:
    from dataflow.planner.stages import Stages


def ways_of(stages: Stages, join: str) -> dict[str, tuple[str, ...]]:
    """By edge on the way to a join, its sides included: the sources of its records. () for where they begin."""
    ways: dict[str, tuple[str, ...]] = {}
    for branch in branches_of(stages.resolved, join):
        ways |= _ways(stages, branch)
    return ways


def _ways(stages: Stages, branch: Branch) -> dict[str, tuple[str, ...]]:
    resolved = stages.resolved
    ways: dict[str, tuple[str, ...]] = {}
    waiting = list(branch.sides)
    while waiting:
        edge = waiting.pop()
        producer = resolved.edges[edge].producer
        if edge in ways:
            continue
        began = edge in branch.roots or producer is None
        ways[edge] = () if began or producer is None else _sources(stages, producer, branch.roots)
        waiting += [source for source in ways[edge] if source in resolved.edges]
    return ways


def _sources(stages: Stages, producer: str, roots: frozenset[str]) -> tuple[str, ...]:
    """What the records that a node makes come from within its stage."""
    return tuple(sorted(_before(stages, producer, roots)[0]))


def _before(stages: Stages, producer: str, roots: frozenset[str]) -> tuple[set[str], set[str]]:
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
        for edge in same_ids(stages.resolved, node):
            maker = stages.resolved.edges[edge].producer
            if edge in roots or maker is None or stages.fetches(node, edge):
                sources.add(edge)
            else:
                waiting.append(maker)
    return sources, seen


def _through(stages: Stages, source: str, producer: str, roots: frozenset[str]) -> tuple[str, ...]:
    """The nodes by which records of one source come to be a node's."""
    nodes = _before(stages, producer, roots)[1]
    return tuple(sorted(node for node in nodes if source in _before(stages, node, roots)[0]))


def closed_by(stages: Stages, stage: str) -> tuple[ClosePlan, ...]:
    """What a stage says of records that do not go on: of its own, and of sides that reach no join of it."""
    resolved = stages.resolved
    found: set[ClosePlan] = set()
    for join in stages.apart:
        for branch in branches_of(resolved, join):
            for edge, sources in _ways(stages, branch).items():
                producer = resolved.edges[edge].producer
                if producer is None or stages.stage_of[producer] != stage:
                    continue
                if edge in branch.roots and is_split(resolved, edge):
                    found.add(ClosePlan(edge, edge))  # a child may be too large for its own edge
                home = left_by(resolved, edge, branch.roots) if resolved.nodes[join].kind.family else ()
                found.update(
                    ClosePlan(s, edge, _through(stages, s, producer, branch.roots), home) for s in sources
                )
        if stages.stage_of[join] == stage:
            found.update(ClosePlan(side, side) for side in resolved.read_by(join))
    return tuple(sorted(found))


def control_edge(stages: Stages) -> EdgePlan | None:
    """The edge on which stages say that records will not come; None where no join needs to know."""
    if not stages.apart:
        return None
    name = stages.resolved.spec.name
    partitions = max(_partitions(stages, join) for join in stages.apart)
    home = tuple(sorted({topic for left in homes_of(stages).values() for topic in left}))
    return EdgePlan(
        CONTROL, (f"{name}.control",), CONTROL_SCHEMA, "avro", partitions, node=CONTROL, home=home
    )


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
            f"'{kind.name}' needs all of them in one stage (no `isolate` in between); join.by_id, join.any and each.gather "
            "do not",
        )
    elif not kind.family and len(set(roots.values())) > 1:
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
    if resolved.nodes[join].kind.family:
        yield from _family_faults(resolved, join, place, called)
        yield from home_faults(stages, join, place, called)
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


def _family_faults(resolved: Resolved, join: str, place: YamlPath, called: str) -> Iterator[Fault]:
    """How many children there are, and which, is known of those that a split made of the very records of the other side."""
    children, parents = branches_of(resolved, join)
    made = {edge for edge in children.roots if is_split(resolved, edge)}
    split = {e for edge in made for e in resolved.read_by(resolved.edges[edge].producer or "")}
    begun = frozenset().union(*(begun_on(resolved, edge) for edge in split))
    if made != children.roots:
        said = ", ".join(f"'{edge}'" for edge in sorted(children.roots - made))
        yield Fault(
            place,
            f"{called} has its items of another stage, and not all are made by an `each.split`: they begin at {said}",
            "split with `each.split`, or keep all of it in one stage (no `isolate` in between)",
        )
    elif begun != parents.roots:
        said = ", ".join(f"'{edge}'" for edge in sorted(made))
        yield Fault(
            place,
            f"{called} has its items of {said}, and on the other side no records that these were made of",
            "the port `parents` of the same split, or what comes of it",
        )


def split_faults(stages: Stages, node: str) -> Iterator[Fault]:
    """A node that compares what was split from one record, and does not see all of it at once."""
    resolved = stages.resolved
    stage = stages.stage_of[node]
    for edge in resolved.read_by(node):
        roots = born_on(resolved, edge)
        producer = resolved.edges[edge].producer
        whole = producer is not None and edge not in roots and not stages.fetches(node, edge)
        sources = _before(stages, producer, roots)[0] if whole and producer is not None else {edge}
        makers = {e: resolved.edges[e].producer for e in roots if is_split(resolved, e)}
        far = [e for e, maker in makers.items() if maker is not None and stages.stage_of[maker] != stage]
        if makers and (far or not sources <= roots):
            kind = resolved.nodes[node].kind.name
            yield Fault(
                ("nodes", node, "from"),
                f"node '{node}' of pipeline '{resolved.spec.name}' compares what was split from one record, and would not "
                f"have all of it: records of '{min(makers)}' come from another stage",
                f"'{kind}' needs the split and all nodes up to it in one stage (no `isolate`, no `rekey` in between); "
                "each.gather brings them together again, and an each.split after it can be compared",
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
