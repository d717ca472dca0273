"""The kinds of records that a join puts together, and where each began with its id: back along the edges. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dataflow.planner.resolved import Resolved


@dataclass(frozen=True)
class Branch:
    """Sides of a join that have records of one kind, and the edges on which these began, with their ids."""

    sides: tuple[str, ...]
    roots: frozenset[str]


def branches_of(resolved: Resolved, join: str) -> tuple[Branch, ...]:
    """One for a join of records with one id; the children and their parents for one that puts children together."""
    node = resolved.nodes[join]
    sides = resolved.read_by(join)
    if node.kind.family:
        children = node.inputs.get(node.kind.family, ())
        parents = tuple(side for side in sides if side not in children)
        return (
            Branch(children, frozenset().union(*(born_on(resolved, side) for side in children))),
            Branch(parents, frozenset().union(*(begun_on(resolved, side) for side in parents))),
        )
    begun = {begun_on(resolved, side) for side in sides}
    if len(begun) > 1:  # children on one side, and not on another
        begun = {frozenset().union(*(resolved.placed_by(side) for side in sides))}
    return (Branch(sides, begun.pop()),)


def born_on(resolved: Resolved, edge: str) -> frozenset[str]:
    """The edges on which the records of `edge` were made as children; those where they begin if they were not."""
    return _back(resolved, edge, lambda name: is_split(resolved, name))


def begun_on(resolved: Resolved, edge: str) -> frozenset[str]:
    """The edges since which the records of `edge` have their ids, and lie where they lie."""
    return _back(resolved, edge, lambda name: is_split(resolved, name) or resolved.edges[name].places)


def _back(resolved: Resolved, edge: str, stops: Callable[[str], bool]) -> frozenset[str]:
    found, seen, waiting = set(), {edge}, [edge]
    while waiting:
        name = waiting.pop()
        producer = resolved.edges[name].producer
        feeding = () if producer is None else same_ids(resolved, producer)
        if not feeding or stops(name):
            found.add(name)
            continue
        waiting += [e for e in feeding if e not in seen]
        seen.update(feeding)
    return frozenset(found)


def is_split(resolved: Resolved, edge: str) -> bool:
    """Whether children are made on an edge."""
    found = resolved.edges[edge]
    return (
        bool(found.port)
        and found.producer is not None
        and resolved.nodes[found.producer].kind.splits == found.port
    )


def same_ids(resolved: Resolved, node: str) -> tuple[str, ...]:
    """The edges whose records a node gives again: what puts children together gives their parents."""
    found = resolved.nodes[node]
    return tuple(e for port, edges in found.inputs.items() if port != found.kind.family for e in edges)
