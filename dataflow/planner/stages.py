"""Where a pipeline's graph is cut into stages, and what forbids a cut. Pure: used by lint and by planning alike.

Nodes share a stage when one feeds the other in memory. An edge that must be read from Kafka (keyed anew, open to
others, closing a loop) is a cut, and what comes after it lies deeper: only nodes of one depth share a stage, so that a
stage never waits for what it writes itself. The one exception is meant: a loop's records come back to their own stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dataflow.planner.apart import apart_faults, control_faults, split_faults, wait_faults
from dataflow.planner.resolved import Resolved
from dataflow.spec import Fault
from dataflow.spec.problems import YamlPath


@dataclass(frozen=True)
class Stages:
    """Nodes by stage. `stage_of` maps each node to the first node of its stage, which gives the stage its name.

    on_path   nodes that a waiting caller (else: an output, else: anybody) depends on
    apart     nodes that gather, whose sides come of different stages: they have them all from Kafka
    """

    resolved: Resolved
    stage_of: Mapping[str, str]
    on_path: frozenset[str]
    apart: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.stage_of.values()))

    def members(self, stage: str) -> tuple[str, ...]:
        """Nodes of a stage, each after those that feed it in memory."""
        return tuple(node for node, leader in self.stage_of.items() if leader == stage)

    def fetches(self, node: str, edge: str) -> bool:
        """Whether the node's stage has the edge from Kafka, not from its own memory."""
        found = self.resolved.edges[edge]
        producer = found.producer
        elsewhere = producer is None or self.stage_of[producer] != self.stage_of[node]
        return elsewhere or bool(found.cut) or node in self.apart

    def keeps_state(self, node: str) -> bool:
        """Whether a node has state in its task."""
        return node in self.apart or self.resolved.keeps_state(node)

    def reads(self, stage: str) -> tuple[str, ...]:
        """The edges that a stage fetches from Kafka."""
        read = ((n, e) for n in self.members(stage) for e in self.resolved.read_by(n))
        return tuple(dict.fromkeys(e for n, e in read if self.fetches(n, e)))


def cut_into_stages(resolved: Resolved) -> Stages:
    """The stages of a pipeline without problems."""
    on_path = _on_path(resolved)
    stages = _cut(resolved, on_path, frozenset())
    while found := next((n for n in resolved.nodes if _is_torn(stages, n)), None):
        # What reads a join of its own stage may be torn by that: upstream ones first, until there are no more.
        stages = _cut(resolved, on_path, stages.apart | {found})
    return stages


def _cut(resolved: Resolved, on_path: set[str], apart: frozenset[str]) -> Stages:
    depth = _depths(resolved, apart)
    groups = _Groups(resolved.nodes)
    for node in resolved.nodes:
        for edge in resolved.read_by(node):
            found = resolved.edges[edge]
            producer = found.producer
            if producer is None:
                if node in on_path - apart and not _alone(resolved, node):
                    # All that an answer needs of one input is read once, by one stage.
                    for other in resolved.nodes:
                        together = other in on_path - apart and not _alone(resolved, other)
                        if together and depth[other] == depth[node] and edge in resolved.read_by(other):
                            groups.join(other, node)
            elif (
                not found.cut
                and node not in apart
                and depth[producer] == depth[node]
                and _fusible(resolved, producer, node, on_path)
            ):
                groups.join(producer, node)
    return Stages(resolved, {n: groups.find(n) for n in resolved.nodes}, frozenset(on_path), apart)


def _is_torn(stages: Stages, node: str) -> bool:
    """Whether a node that gathers has sides of different stages, or of different times, and it is not known yet."""
    found = stages.resolved.nodes[node]
    if node in stages.apart or not found.kind.gathers:
        return False
    behind = [[_behind(stages, node, edge) for edge in edges] for edges in found.inputs.values()]
    ways = {frozenset(e for fetched, _ in port for e in fetched) for port in behind}
    held = {frozenset(n for _, nodes in port for n in nodes if _holds(stages, n)) for port in behind}
    return len(ways) > 1 or len(held) > 1


def _holds(stages: Stages, node: str) -> bool:
    return stages.resolved.nodes[node].kind.holds and stages.keeps_state(node)


def _on_path(resolved: Resolved) -> set[str]:
    spec = resolved.spec
    targets: Iterable[str] = spec.answer.edges if spec.answer is not None else spec.outputs.values()
    wanted = [p for e in targets if e in resolved.edges and (p := resolved.edges[e].producer) is not None]
    if not wanted:
        return set(resolved.nodes)
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            producers = (resolved.edges[e].producer for e in resolved.read_by(name))
            wanted.extend(p for p in producers if p is not None)
    return found


def _depths(resolved: Resolved, apart: frozenset[str]) -> dict[str, int]:
    """How many cuts lie at most between an input and each node; the way back of a loop does not count."""
    depth: dict[str, int] = {}
    for node in resolved.nodes:  # each after those that feed it, but for loops
        found = [resolved.edges[e] for e in resolved.read_by(node)]
        before = [depth[e.producer] + (bool(e.cut) or node in apart) for e in found if e.producer in depth]
        depth[node] = max(before, default=0)
    return depth


def _fusible(resolved: Resolved, producer: str, consumer: str, on_path: set[str]) -> bool:
    apart = _alone(resolved, producer) or _alone(resolved, consumer) or resolved.nodes[producer].kind.source
    return not apart and (producer in on_path) == (consumer in on_path)


def _alone(resolved: Resolved, node: str) -> bool:
    """Whether a node is a stage by itself."""
    return resolved.spec.nodes[node].isolate or resolved.nodes[node].kind.outside


class _Groups:
    """Union-find over node names; the first name in order leads."""

    def __init__(self, names: Iterable[str]) -> None:
        self._order = {n: i for i, n in enumerate(names)}
        self._parent = {n: n for n in self._order}

    def find(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        leader, follower = sorted((self.find(one), self.find(other)), key=self._order.__getitem__)
        self._parent[follower] = leader


# ---------------------------------------------------------------- what forbids a cut


def stage_faults(stages: Stages) -> Iterator[Fault]:
    """Why a pipeline cannot run as it is cut, each at the declaration that would have to change."""
    yield from _unwritten_faults(stages)
    for node in stages.resolved.nodes:
        if node in stages.apart:
            yield from apart_faults(stages, node)
        elif stages.resolved.nodes[node].kind.gathers:
            yield from wait_faults(stages, node)
            if not stages.resolved.nodes[node].kind.apart:
                yield from split_faults(stages, node)
        if stages.resolved.nodes[node].kind.outside:
            yield from _outside_faults(stages, node)
        yield from _merge_faults(stages.resolved, node)
    yield from control_faults(stages)
    for stage in stages.names:
        yield from _task_faults(stages, stage)


def _unwritten_faults(stages: Stages) -> Iterator[Fault]:
    spec = stages.resolved.spec
    readers = {
        e: n for n in stages.resolved.nodes for e in stages.resolved.read_by(n) if stages.fetches(n, e)
    }
    for edge, reader in readers.items():
        producer = stages.resolved.edges[edge].producer
        if producer is not None and spec.nodes[producer].write == "off":
            message = (
                f"edge '{edge}' of pipeline '{spec.name}' is `write: off`, but stage "
                f"'{stages.stage_of[reader]}' reads it"
            )
            yield Fault(("nodes", producer, "write"), message, "write it, or keep both nodes in one stage")


def _outside_faults(stages: Stages, node: str) -> Iterator[Fault]:
    """A process outside knows one codec, no transactions and no callers, and its records are all in Kafka."""
    resolved = stages.resolved
    spec, kind = resolved.spec, resolved.nodes[node].kind
    for edge in resolved.read_by(node):
        codec = resolved.edges[edge].codec
        if codec != kind.codec:
            yield Fault(
                ("nodes", node, "from"),
                f"'{kind.name}' reads {kind.codec}, and '{edge}' is {codec}",
                f"codec: {kind.codec} on the topic, or `edges: {{codec: {kind.codec}}}`",
            )
    if spec.delivery == "exactly_once":
        message = f"node '{node}' ({kind.name}) is a process outside, which can do no more than at least once"
        yield Fault(("delivery",), message, "at_least_once; or a pipeline of its own for what is behind it")
    if spec.answer is not None and node in stages.on_path:
        message = f"a caller would wait for node '{node}' ({kind.name}), which answers nobody"
        yield Fault(("answer",), message, "answer from an edge that does not come of it")
    if spec.nodes[node].write == "off":
        yield Fault(("nodes", node, "write"), f"'{kind.name}' writes its records itself", "leave it out")


def _behind(stages: Stages, node: str, edge: str) -> tuple[set[str], set[str]]:
    """The edges that the node's stage fetches, of which the records of `edge` come, and the nodes within it on their way."""
    fetched: set[str] = set()
    nodes: set[str] = set()
    waiting = [(node, edge)]
    while waiting:
        reader, name = waiting.pop()
        producer = stages.resolved.edges[name].producer
        if producer is None or stages.fetches(reader, name):
            fetched.add(name)
        elif producer not in nodes:
            nodes.add(producer)
            waiting += [(producer, e) for e in stages.resolved.read_by(producer)]
    return fetched, nodes


def _merge_faults(resolved: Resolved, node: str) -> Iterator[Fault]:
    """Streams on one port: the records of one key must lie on one partition number, or there is no order to keep."""
    for port, edges in resolved.nodes[node].inputs.items():
        placing = {edge: _keyed(resolved, edge) for edge in edges}
        keyed = [edge for edge in edges if placing[edge]]
        for edge in keyed[1:]:
            pair = (keyed[0], edge)
            path = _feed_path(resolved, node, port, edges.index(edge))
            counts = [{resolved.edges[e].partitions for e in placing[one]} for one in pair]
            keys = [{", ".join(resolved.edges[e].key) for e in placing[one]} for one in pair]
            if len(counts[0] | counts[1]) > 1:
                said = " and ".join(f"'{e}' on {_either(c)}" for e, c in zip(pair, counts, strict=True))
                message = f"node '{node}' merges streams that lie on different partitions: {said}"
                hint = "give their topics equal `partitions`, or bring one to the other's by `rekey`"
                yield Fault(path, message, hint)
            elif keys[0] != keys[1]:
                said = " and ".join(f"'{e}' by {_either(k)}" for e, k in zip(pair, keys, strict=True))
                message = f"node '{node}' merges streams that are keyed differently: {said}"
                hint = "order is kept within each of them; `rekey` gives all one key"
                yield Fault(path, message, hint, "warning")


def _keyed(resolved: Resolved, edge: str) -> frozenset[str]:
    """The edges that give the records of `edge` a key; none where they have no key."""
    return frozenset(e for e in resolved.placed_by(edge) if resolved.edges[e].key)


def _either(values: Iterable[object]) -> str:
    return " or ".join(sorted(map(str, values)))


def _feed_path(resolved: Resolved, node: str, port: str, index: int) -> YamlPath:
    named = () if "" in resolved.spec.nodes[node].feeds else (port,)
    return ("nodes", node, "from", *named, index)


def _task_faults(stages: Stages, stage: str) -> Iterator[Fault]:
    """Exactly once, and with state, a task owns one partition number of all that its stage reads: equal counts."""
    exactly_once = stages.resolved.spec.delivery == "exactly_once"
    keyed = [n for n in stages.members(stage) if stages.keeps_state(n)]
    if not (exactly_once or keyed):
        return
    counts = {edge: stages.resolved.edges[edge].partitions for edge in stages.reads(stage)}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        yield Fault(
            ("delivery",) if exactly_once else ("nodes", keyed[0], "from"),
            f"{'exactly_once' if exactly_once else 'state'} needs equal partitions of all that a stage reads; stage '{stage}' reads {said}",
            "declare equal `partitions`, or bring them to one count by `rekey`",
        )
