"""The shape of a pipeline's graph: edge names, who feeds whom, an order, cycles. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def edge_name(node: str, port: str, ports: Iterable[str]) -> str:
    """``node`` for a port that is called `out` or is the only one, else ``node.port``."""
    return node if port == "out" or len(tuple(ports)) == 1 else f"{node}.{port}"


def led_back(
    read: Mapping[str, Collection[str]], made_by: Mapping[str, str], looping: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """By looping edge, the nodes before its own that read it: where its loop begins. Other readers are after it.

    read      edges by the node that reads them
    made_by   the node that makes each edge; inputs are not there
    looping   edges that may close a loop
    """
    feeds = {n: {made_by[e] for e in edges if e in made_by and e not in looping} for n, edges in read.items()}
    found = {}
    for edge in looping:
        before, waiting = {made_by[edge]}, [made_by[edge]]
        while waiting:
            new = feeds.get(waiting.pop(), set()) - before
            before |= new
            waiting += new
        found[edge] = tuple(node for node, edges in read.items() if edge in edges and node in before)
    return found


def in_order(feeders: Mapping[str, Iterable[str]]) -> tuple[list[str], list[list[str]]]:
    """Nodes so that each comes after those that feed it, and the cycles found on the way.

    Among nodes that are free to go, the declared order decides, so the result is stable. Nodes of a cycle are in the
    order too (where they are is of no meaning). A cycle begins with the node of it that is declared first and
    follows the records: each feeds the next, the last feeds the first.
    """
    waiting = {node: {f for f in feeds if f in feeders} for node, feeds in feeders.items()}
    order: list[str] = []
    cycles: list[list[str]] = []
    while waiting:
        free = next((node for node, left in waiting.items() if not left), None)
        if free is None:
            cycle = _cycle_in(waiting)
            cycles.append(cycle)
            # The cycle is broken up where it begins; what else hangs on it may hold cycles of its own.
            for node in cycle:
                waiting[node] -= set(cycle)
            continue
        order.append(free)
        del waiting[free]
        for left in waiting.values():
            left.discard(free)
    return order, cycles


def _cycle_in(waiting: Mapping[str, set[str]]) -> list[str]:
    """A cycle among nodes each of which waits for another one."""
    names = list(waiting)
    trail = [names[0]]
    while True:
        feeder = min(waiting[trail[-1]], key=names.index)
        if feeder in trail:
            cycle = trail[trail.index(feeder) :][::-1]
            first = min(range(len(cycle)), key=lambda i: names.index(cycle[i]))
            return cycle[first:] + cycle[:first]
        trail.append(feeder)
