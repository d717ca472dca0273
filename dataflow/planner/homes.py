"""Children that are keyed anew on their way to where they are put together again: how they come home. Pure.

A `rekey` between an `each.split` and its `each.gather` moves children away from the partition of their record. Whoever
writes them to the rekeyed edge notes that partition on them; the sides of the gather, and what stages say of such
children, are written back to it. The way out is the first rekeyed edge behind the split; others may follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dataflow.planner.branches import begun_on, branches_of, same_ids
from dataflow.planner.resolved import Resolved
from dataflow.spec import Fault
from dataflow.spec.problems import YamlPath

if TYPE_CHECKING:
    from dataflow.planner.stages import Stages


def homes_of(stages: Stages) -> dict[str, tuple[str, ...]]:
    """By side of a gather: the edges by which its children left home; sides that lie at home are left out."""
    resolved = stages.resolved
    found: dict[str, tuple[str, ...]] = {}
    for join in stages.apart:
        if resolved.nodes[join].kind.family:
            branch = branches_of(resolved, join)[0]
            found |= {side: left for side in branch.sides if (left := left_by(resolved, side, branch.roots))}
    return found


def left_by(resolved: Resolved, edge: str, roots: frozenset[str]) -> tuple[str, ...]:
    """The edges, as ``pipeline.edge``, by which the records of `edge` left the partitions of `roots`, on which they were made."""
    out = {
        name
        for name in before(resolved, edge, roots) - roots
        if resolved.edges[name].key and all(begun <= roots for begun in _begun_before(resolved, name))
    }
    return tuple(sorted(f"{resolved.spec.name}.{name}" for name in out))


def before(resolved: Resolved, edge: str, roots: frozenset[str]) -> set[str]:
    """The edge, and all on the ways to it from `roots`."""
    seen: set[str] = set()
    waiting = [edge]
    while waiting:
        name = waiting.pop()
        producer = resolved.edges[name].producer
        if name in seen:
            continue
        seen.add(name)
        if name not in roots and producer is not None:
            waiting += same_ids(resolved, producer)
    return seen


def _begun_before(resolved: Resolved, edge: str) -> Iterator[frozenset[str]]:
    producer = resolved.edges[edge].producer
    for feeding in () if producer is None else same_ids(resolved, producer):
        yield begun_on(resolved, feeding)


def home_faults(stages: Stages, join: str, place: YamlPath, called: str) -> Iterator[Fault]:
    """Why children that were keyed anew cannot come home."""
    resolved = stages.resolved
    branch = branches_of(resolved, join)[0]
    for side in branch.sides:
        if not left_by(resolved, side, branch.roots):
            continue
        if resolved.edges[side].key:
            message = f"{called} has its items from '{side}', which keys them anew: they do not lie with their record"
            yield Fault(place, message, "gather what comes of a node behind it, or leave the rekey out")
            continue
        for node in resolved.nodes:
            if (
                side in resolved.read_by(node)
                and stages.fetches(node, side)
                and not _gathers(stages, node, side)
            ):
                yield Fault(
                    ("nodes", node, "from"),
                    f"'{side}' goes back to the partitions of what was split, for '{join}': node '{node}' would not have "
                    "its records by their key",
                    "give one of the two a node of its own to read from",
                )


def _gathers(stages: Stages, node: str, side: str) -> bool:
    """Whether a node puts the children on an edge together."""
    kind = stages.resolved.nodes[node].kind
    return node in stages.apart and side in stages.resolved.nodes[node].inputs.get(kind.family, ())
