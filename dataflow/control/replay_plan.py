"""What a replay runs: the part of a plan below some edges, on topics of its own, without effects outside. Pure.

Names of nodes, edges and the pipeline stay as they are, for ids are hashes of them; topics and groups get a prefix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from dataflow.codecs.compatibility import check_compatible
from dataflow.core.errors import PlanError, SpecError, nearest
from dataflow.planner.plan import (
    DEAD_LETTERS,
    EdgePlan,
    NodePlan,
    Plan,
    StagePlan,
    TopicPlan,
    join_source,
)
from dataflow.registry import Registry

PREFIX: Final = "dataflow.replay-"
# Fed records keep their times, which may be long past: retention by time would take them at once.
_KEPT: Final = {"retention.ms": "-1", "retention.bytes": "-1"}
_COMPACTED: Final = {"cleanup.policy": "compact"}


@dataclass(frozen=True)
class Shadow:
    """A replay, planned.

    plan         what runs; its edges, groups and dead letters have names of their own
    fed          edges whose recorded records are fed, by name, as they were recorded
    compared     edges whose records are compared, upstream ones first: as recorded
    not_compared edges below the fed ones that are not, and why
    off          nodes that do not run, and why
    renamed      topics that a plan names without an edge: what the engine calls them, and their names here
    """

    plan: Plan
    fed: Mapping[str, EdgePlan]
    compared: Mapping[str, EdgePlan]
    not_compared: Mapping[str, str]
    off: Mapping[str, str]
    renamed: Mapping[str, str]


def shadow_plan(recorded: Plan, runs: Plan, registry: Registry, edge: str, prefix: str) -> Shadow:
    """Plan the replay of `recorded` through `runs` (the same plan, or that of a changed file) from `edge`.

    "" is all inputs. Raises SpecError for an edge that is not there or not written, PlanError for one that cannot be
    fed alone, and for a changed contract under which the recorded records cannot be read.
    """
    starts = _starts(recorded, runs, registry, edge)
    fed, running, off = _below(runs, registry, starts)
    for name in fed:
        _check_fed(recorded, runs, name)
    made = {e for n in running for e in runs.nodes[n].outputs.values()}
    edges = {n: _fed_edge(runs.edges[n], recorded.edges[n], prefix) for n in fed}
    edges |= {n: _own_edge(runs.edges[n], prefix) for n in made}
    order = [e for n in _sorted(runs) if n in running for e in runs.nodes[n].outputs.values()]
    skipped = {e: _not_compared(recorded, runs, e) for e in order}
    skipped |= {e: why for n, why in off.items() for e in runs.nodes[n].outputs.values()}
    below = _below(recorded, registry, [s for s in starts if s in recorded.edges])
    old = {e for n in (*below[1], *below[2]) for e in recorded.nodes[n].outputs.values()}
    skipped |= {e: "the changed pipeline has no such edge" for e in sorted(old) if e not in runs.edges}
    plan = dataclasses.replace(
        runs,
        edges=edges,
        nodes={n: runs.nodes[n] for n in running},
        stages=tuple(s for stage in runs.stages if (s := _stage(stage, runs, running, prefix)) is not None),
        inputs={n: e.topics[0] for n, e in edges.items() if not e.node},
        topics=_topics(edges, runs, prefix),
        answer=None,
        control=None if runs.control is None else _own_edge(runs.control, prefix),
    )
    return Shadow(
        plan=plan,
        fed={n: recorded.edges[n] for n in fed},
        compared={e: recorded.edges[e] for e in order if not skipped[e]},
        not_compared={e: why for e, why in skipped.items() if why},
        off=off,
        renamed={DEAD_LETTERS: prefix + DEAD_LETTERS},
    )


def _starts(recorded: Plan, runs: Plan, registry: Registry, edge: str) -> list[str]:
    """The edges to begin at."""
    if edge:
        valid = [n for n in recorded.edges if n in runs.edges]
        if edge not in valid:
            where = "" if edge not in recorded.edges else " any more, in the changed file"
            raise SpecError(
                f"pipeline '{recorded.pipeline}' has no edge '{edge}'{where}", hint=nearest(edge, valid)
            )
        return [edge]
    read = {e for n in runs.nodes.values() for e in _read_by(n)}
    return [n for n, e in runs.edges.items() if n in read and (not e.node or _feeds(runs, registry, e))]


def _feeds(plan: Plan, registry: Registry, edge: EdgePlan) -> bool:
    return registry.get(plan.nodes[edge.node].kind).source


def _below(
    plan: Plan, registry: Registry, starts: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]:
    """The edges to feed, the nodes that run, and those below the starts that do not, with the reason."""
    order = _sorted(plan)
    reached = _closure(plan, order, starts)
    off = {
        n: f"{plan.nodes[n].kind} has effects outside"
        for n in reached
        if not registry.get(plan.nodes[n].kind).pure
    }
    for effect in tuple(off):
        for name in _closure(plan, order, plan.nodes[effect].outputs.values()):
            off.setdefault(name, f"it needs what '{effect}' gives")
    running = [n for n in reached if n not in off]
    made = {e for n in running for e in plan.nodes[n].outputs.values()}
    sides = dict.fromkeys(starts)
    for name in running:
        others = [e for e in _read_by(plan.nodes[name]) if e not in made and e not in sides]
        if others and registry.get(plan.nodes[name].kind).gathers:
            raise PlanError(
                f"node '{name}' puts the branches of one record together, and '{others[0]}' is not below "
                f"'{', '.join(starts)}'",
                hint="replay from an edge that all its sides come of, or from the inputs",
            )
        sides |= dict.fromkeys(others)
    looped = made.intersection(sides)
    if looped:
        raise PlanError(
            f"edge '{min(looped)}' is in a loop: what comes of its records comes to it again",
            hint="replay from an edge before the loop, or from the inputs",
        )
    return tuple(sides), tuple(running), {n: off[n] for n in order if n in off}


def _closure(plan: Plan, order: Iterable[str], edges: Iterable[str]) -> list[str]:
    """The nodes below some edges, in this order."""
    at_hand: set[str] = set()
    found: set[str] = set()
    more = set(edges)
    while more - at_hand:
        at_hand |= more
        found |= {n for n, node in plan.nodes.items() if at_hand.intersection(_read_by(node))}
        more = {e for n in found for e in plan.nodes[n].outputs.values()}
    return [n for n in order if n in found]


def _check_fed(recorded: Plan, runs: Plan, name: str) -> None:
    """The recorded records of an edge are there, and can be read under the contract of what runs."""
    old, new = recorded.edges.get(name), runs.edges[name]
    if old is None:
        raise PlanError(f"edge '{name}' is new in the changed file: nothing was recorded there")
    if not old.topics:
        raise SpecError(
            f"edge '{recorded.pipeline}.{name}' is declared `write: off`: nothing was recorded there",
            hint="replay from an edge further up",
        )
    faults = [f"codec {old.codec} became {new.codec}"] if old.codec != new.codec else []
    faults += check_compatible(old.schema, new.schema, new.codec) if not faults else []
    if faults:
        raise PlanError(
            f"edge '{name}': what was recorded cannot be read under the changed contract: "
            + "; ".join(faults),
            hint="new fields must be nullable",
        )


def _not_compared(recorded: Plan, runs: Plan, name: str) -> str:
    """Why the edge is not compared; "" if it is."""
    old = recorded.edges.get(name)
    if old is None:
        return "it is new: nothing was recorded"
    if not old.topics or not runs.edges[name].topics:
        return "it is declared `write: off`"
    return ""


def _fed_edge(edge: EdgePlan, recorded: EdgePlan, prefix: str) -> EdgePlan:
    return dataclasses.replace(
        edge, topics=(prefix + recorded.topics[0],), node="", write=True, publish=(), upstream="", open=False
    )


def _own_edge(edge: EdgePlan, prefix: str) -> EdgePlan:
    return dataclasses.replace(edge, topics=tuple(prefix + t for t in edge.topics[:1]), publish=())


def _stage(stage: StagePlan, plan: Plan, running: Iterable[str], prefix: str) -> StagePlan | None:
    """The stage without what does not run; None if nothing of it does."""
    nodes = tuple(n for n in stage.nodes if n in set(running))
    if not nodes:
        return None
    own = {e for n in nodes for e in plan.nodes[n].outputs.values()}
    fetched = set(stage.reads)  # a stage may fetch what it writes itself: an edge that is keyed anew
    reads = dict.fromkeys(e for n in nodes for e in _read_by(plan.nodes[n]) if e not in own or e in fetched)
    spoken_of = {*reads, *own, *map(join_source, nodes)}
    return dataclasses.replace(
        stage, group=prefix + stage.group, reads=tuple(reads), nodes=nodes, answers=(), leaves=(), on_answer_path=False,
        changelog=prefix + stage.changelog if stage.changelog else "", shares={},
        closes=tuple(c for c in stage.closes if {c.source, c.edge} <= spoken_of and set(c.through) <= set(nodes)),
        hears=any(plan.nodes[n].apart for n in nodes),
    )  # fmt: skip


def _topics(edges: Mapping[str, EdgePlan], runs: Plan, prefix: str) -> dict[str, TopicPlan]:
    """The topics that a replay makes. Those of fed edges get the partitions of what is fed, see `with_partitions`."""
    made = {}
    spoken = [] if runs.control is None else [_own_edge(runs.control, prefix)]
    for edge in (*edges.values(), *spoken):
        for topic in edge.topics:
            planned = runs.topics.get(topic.removeprefix(prefix))
            config = {
                k: v for k, v in (planned.config if planned else {}).items() if k == "max.message.bytes"
            }
            role = "edge" if edge.node else "input"
            made[topic] = TopicPlan(topic, edge.partitions, role, {**config, **_KEPT})
    letters = runs.topics[DEAD_LETTERS]
    made[prefix + DEAD_LETTERS] = dataclasses.replace(letters, name=prefix + DEAD_LETTERS)
    return made


def with_partitions(shadow: Shadow, partitions: Mapping[str, int]) -> Shadow:
    """The shadow with so many partitions for each fed edge: as many as the recorded topics have."""
    plan = shadow.plan
    edges, topics = dict(plan.edges), dict(plan.topics)
    for name, count in partitions.items():
        edges[name] = dataclasses.replace(edges[name], partitions=count)
        topic = edges[name].topics[0]
        topics[topic] = dataclasses.replace(topics[topic], partitions=count)
    stages = []
    for stage in plan.stages:
        count = max([stage.partitions, *(partitions.get(e, 0) for e in stage.reads)])
        stages.append(dataclasses.replace(stage, partitions=count))
        if stage.changelog:
            topics[stage.changelog] = TopicPlan(stage.changelog, count, "changelog", _COMPACTED)
    return dataclasses.replace(
        shadow, plan=dataclasses.replace(plan, edges=edges, topics=topics, stages=tuple(stages))
    )


def _read_by(node: NodePlan) -> list[str]:
    return [e for edges in node.inputs.values() for e in edges]


def _sorted(plan: Plan) -> list[str]:
    """The nodes, each after those that feed it. A loop is entered where it was declared first."""
    waiting = dict.fromkeys(plan.nodes)
    found: list[str] = []
    while waiting:
        blocked = {e for n in waiting for e in plan.nodes[n].outputs.values()}
        ready = [n for n in waiting if not blocked.intersection(_read_by(plan.nodes[n]))]
        for name in ready or list(waiting)[:1]:
            del waiting[name]
            found.append(name)
    return found
