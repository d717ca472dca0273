"""Pipelines on pipelines: the edges of other pipelines, of the same project or of the cluster, as inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dataflow.core.errors import ContractError, NotKnownYetError, nearest
from dataflow.core.limits import MAX_RECORD_BYTES
from dataflow.planner.build import edge_topic
from dataflow.planner.plan import EdgePlan, Plan
from dataflow.planner.resolve import Models, resolve
from dataflow.planner.resolved import Resolved, ResolvedEdge, Upstream
from dataflow.registry import Registry
from dataflow.spec import Project


class Pipelines:
    """The pipelines of a project, each resolved once, and edges of each as inputs of the others.

    `deployed` gives the plans of the cluster by pipeline. It is asked once, and only for a pipeline that the project
    does not declare.
    """

    def __init__(
        self,
        project: Project,
        registry: Registry,
        models: Models | None = None,
        deployed: Callable[[], Mapping[str, Plan]] = dict,
    ) -> None:
        self._project = project
        self._registry = registry
        self._models = models
        self._ask = deployed
        self._deployed: Mapping[str, Plan] | None = None
        self._resolved: dict[str, Resolved] = {}
        self._under_way: list[str] = []

    def resolved(self, name: str) -> Resolved:
        """Raises SpecError when the project has no such pipeline."""
        if name not in self._resolved:
            self._under_way.append(name)
            try:
                self._resolved[name] = resolve(
                    self._project, name, self._registry, models=self._models, others=self._find
                )
            finally:
                self._under_way.pop()
        return self._resolved[name]

    def _find(self, text: str) -> ResolvedEdge | None:
        """See `resolve.Others`."""
        if text in self._project.broken:
            raise NotKnownYetError(f"topic '{text}' has faults")
        pipeline, _, edge = text.partition(".")
        reader = self._under_way[-1]
        if pipeline == reader:
            raise ContractError(f"'{text}' is an edge of this pipeline itself", hint=f"from: {edge}")
        if pipeline in self._under_way:
            way = self._under_way[self._under_way.index(pipeline) :]
            raise ContractError(
                f"pipelines read each other: {' -> '.join([*way, pipeline])}",
                hint="make one pipeline of them, or publish to a topic of its own in between",
            )
        if pipeline in self._project.pipelines:
            return self._declared(pipeline, edge)
        if pipeline in self._project.broken:
            raise NotKnownYetError(f"pipeline '{pipeline}' has faults")
        if self._deployed is None:
            self._deployed = self._ask()
        if pipeline in self._deployed:
            return _planned(self._deployed[pipeline], edge)
        near = nearest(pipeline, [*self._project.pipelines, *self._deployed])
        if near.startswith("did you mean"):
            raise ContractError(f"no pipeline '{pipeline}', here or on the cluster", hint=near)
        return None

    def _declared(self, pipeline: str, edge: str) -> ResolvedEdge:
        other = self.resolved(pipeline)
        found = other.edges.get(edge)
        if found is None:
            if other.is_known(edge):
                raise NotKnownYetError(f"edge '{edge}' of pipeline '{pipeline}' has faults")
            raise _unknown(pipeline, edge, list(other.edges))
        if found.producer is None:
            raise _is_input(pipeline, edge, str(found.topic))
        if other.spec.nodes[found.producer].write == "off":
            raise _unwritten(pipeline, edge)
        topic = edge_topic(f"{pipeline}.{edge}", found.partitions, other.spec.edges, MAX_RECORD_BYTES)
        upstream = Upstream(pipeline, edge, other.spec.delivery, topic, MAX_RECORD_BYTES, found.open)
        return _as_input(edge, other.edges, lambda e: _feeds(other, e), upstream)


def _feeds(resolved: Resolved, edge: str) -> Sequence[str]:
    producer = resolved.edges[edge].producer
    return resolved.read_by(producer) if producer is not None else ()


def _planned(plan: Plan, edge: str) -> ResolvedEdge:
    found = plan.edges.get(edge)
    if found is None:
        raise _unknown(plan.pipeline, edge, list(plan.edges))
    if not found.node:
        raise _is_input(plan.pipeline, edge, found.topics[0])
    if not found.write:
        raise _unwritten(plan.pipeline, edge)

    def feeds(name: str) -> Sequence[str]:
        node = plan.nodes.get(plan.edges[name].node)
        return [e for edges in node.inputs.values() for e in edges] if node is not None else ()

    topic = plan.topics[found.topics[0]]
    upstream = Upstream(plan.pipeline, edge, plan.delivery, topic, found.max_record_bytes, found.open)
    return _as_input(edge, plan.edges, feeds, upstream)


def _as_input(
    edge: str,
    edges: Mapping[str, ResolvedEdge] | Mapping[str, EdgePlan],
    feeds: Callable[[str], Sequence[str]],
    upstream: Upstream,
) -> ResolvedEdge:
    found = edges[edge]
    key, encoding = _carried_key(edge, edges, feeds)
    return ResolvedEdge(
        edge,
        found.schema,
        found.codec,
        found.partitions,
        key,
        encoding,
        topic=upstream.topic.name,
        upstream=upstream,
    )


def _carried_key(
    edge: str,
    edges: Mapping[str, ResolvedEdge] | Mapping[str, EdgePlan],
    feeds: Callable[[str], Sequence[str]],
) -> tuple[tuple[str, ...], str]:
    """The key that the records of an edge carry on; none where it is not one, or its fields are not in the contract."""
    keys: set[tuple[tuple[str, ...], str]] = set()
    seen, waiting = {edge}, [edge]
    while waiting:
        name = waiting.pop()
        before = feeds(name)
        one = edges[name]
        if one.key or not before:
            alike = all(
                f in edges[edge].schema and edges[edge].schema[f].type == one.schema[f].type for f in one.key
            )
            keys.add((one.key, one.key_encoding) if alike else ((), ""))
            continue
        waiting += [e for e in before if e not in seen]
        seen.update(before)
    return keys.pop() if len(keys) == 1 else ((), "")


def _unknown(pipeline: str, edge: str, known: Sequence[str]) -> ContractError:
    ports = [name for name in known if name.startswith(f"{edge}.")]
    hint = "its ports: " + ", ".join(ports) if ports else nearest(edge, known)
    return ContractError(f"pipeline '{pipeline}' has no edge '{edge}'", hint=hint)


def _is_input(pipeline: str, edge: str, topic: str) -> ContractError:
    return ContractError(
        f"'{edge}' is an input of pipeline '{pipeline}', not an edge that it writes",
        hint=f"read its topic: inputs: {{{edge}: {topic}}}",
    )


def _unwritten(pipeline: str, edge: str) -> ContractError:
    return ContractError(
        f"edge '{edge}' of pipeline '{pipeline}' is `write: off`: there is nothing to read",
        hint=f"write it, in pipeline '{pipeline}'",
    )
