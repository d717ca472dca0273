"""From a declared pipeline to a graph with contracts: kinds looked up, settings checked, edges named, fields inferred.

Pure but for what is read beside the pipeline: the signatures of models (through a function given), the columns of
table files, and user code by its syntax tree, never by running it. Every independent fault is a `Problem` of its
own; what merely follows from another one is not reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from dataflow.core.errors import ContractError, DataflowError, ExpressionError, SpecError, nearest
from dataflow.core.schema import Schema
from dataflow.planner.graph import edge_name, in_order
from dataflow.planner.resolved import Resolved, ResolvedEdge, ResolvedNode
from dataflow.planner.tables import ResolvedTable, resolve_table
from dataflow.registry import Registry
from dataflow.sdk import ContractContext, ModelInfo, NodeKind, Settings
from dataflow.spec import Declared, Fault, NodeSpec, PipelineSpec, Problem, Project
from dataflow.spec.fields import schema_of
from dataflow.spec.messages import faults_of
from dataflow.spec.problems import YamlPath
from dataflow.spec.source import walk

__all__ = ["Models", "Resolved", "ResolvedEdge", "ResolvedNode", "ResolvedTable", "resolve", "unbuilt"]

Models = Callable[[str], ModelInfo]


def resolve(project: Project, pipeline: str, registry: Registry, *, models: Models | None = None) -> Resolved:
    """Resolve one pipeline. Raises SpecError only when there is no such pipeline.

    `models` gives a model's signature, fields empty while its artifact is not built; without it all are taken so.
    """
    return _Resolving(project, project.pipeline(pipeline), registry, models or unbuilt(project)).run()


def unbuilt(project: Project) -> Models:
    """Models as declared, with no signature."""

    def model(name: str) -> ModelInfo:
        declared = project.models[name]
        artifact = declared.folder / declared.spec.file
        return ModelInfo(name, artifact, Schema(()), Schema(()), declared.spec.chosen_options)

    return model


@dataclass(frozen=True)
class _Shaped:
    """A node whose kind, settings and ports are known."""

    name: str
    spec: NodeSpec
    kind: NodeKind
    settings: Settings
    ports: tuple[str, ...]


class _Resolving:
    """The state of one `resolve`."""

    def __init__(
        self, project: Project, declared: Declared[PipelineSpec], registry: Registry, models: Models
    ) -> None:
        self._project = project
        self._declared = declared
        self._spec = declared.spec
        self._registry = registry
        self._models = models
        self._problems: list[Problem] = []
        self._edges: dict[str, ResolvedEdge] = {}
        self._failed: set[str] = set(declared.left_out)
        self._tables: dict[str, ResolvedTable] = {}
        self._shaped: dict[str, _Shaped] = {}
        self._producers: dict[str, str] = {}
        self._doomed: set[str] = set()

    def run(self) -> Resolved:
        for name, topic in self._spec.inputs.items():
            self._input(name, topic)
        for name, spec in self._spec.nodes.items():
            self._shape(name, spec)
        wiring = {node.name: self._wire(node) for node in self._shaped.values()}
        feeders = {
            name: [self._producers[e] for edges in ports.values() for e in edges if e in self._producers]
            for name, ports in wiring.items()
        }
        order, cycles = in_order(feeders)
        for cycle in cycles:
            self._cycle(cycle)
        nodes: dict[str, ResolvedNode] = {}
        for name in order:
            node = self._contracts(self._shaped[name], wiring[name])
            if node is not None:
                nodes[name] = node
        return Resolved(
            spec=self._spec,
            declared=self._declared,
            nodes=nodes,
            edges=self._edges,
            tables=self._tables,
            problems=tuple(sorted(set(self._problems))),
            failed=frozenset(self._failed),
            feeds=_feeds(self._shaped.values(), self._producers, wiring),
        )

    # ---- names

    def _input(self, name: str, topic: str) -> None:
        declared = self._project.topics.get(topic)
        if declared is None:
            self._failed.add(name)
            if topic not in self._project.broken:
                hint = nearest(topic, self._project.topics)
                self._fault(("inputs", name), f"unknown topic '{topic}'", hint)
            return
        spec = declared.spec
        self._edges[name] = ResolvedEdge(
            name, spec.schema(), spec.codec, spec.partitions, spec.key, spec.key_bytes, topic=topic
        )

    def _shape(self, name: str, spec: NodeSpec) -> None:
        """Look up a node's kind, check its settings, and name its edges."""
        if name in self._spec.inputs:
            self._fault(("nodes", name), f"'{name}' is an input already", "rename one of the two", key=True)
            return
        try:
            kind = self._registry.get(spec.use)
        except SpecError as error:
            self._failed.add(name)
            self._fault(("nodes", name, "use"), error.message, error.hint)
            return
        settings = self._settings(name, kind, spec)
        if settings is None:
            self._failed.add(name)
            return
        node = _Shaped(name, spec, kind, settings, kind.ports(settings))
        self._shaped[name] = node
        for port in node.ports:
            self._producers[edge_name(name, port, node.ports)] = name
        self._references(node)

    def _settings(self, name: str, kind: NodeKind, spec: NodeSpec) -> Settings | None:
        path = ("nodes", name, "with")
        try:
            return kind.settings.model_validate(spec.settings)
        except ValidationError as error:
            for fault in faults_of(error, kind.settings, spec.settings):
                self._fault((*path, *fault.path), fault.message, fault.hint)
        except DataflowError as error:
            self._raised(name, error)
        return None

    def _references(self, node: _Shaped) -> None:
        """Check that models and tables exist; they are looked at again only by contracts."""
        for model in node.kind.models(node.settings):
            if model in self._project.models:
                continue
            self._doomed.add(node.name)
            if model not in self._project.broken:
                hint = nearest(model, self._project.models)
                self._fault(self._setting_path(node, model), f"unknown model '{model}'", hint)
        for table in node.kind.tables(node.settings):
            try:
                self._tables[table] = resolve_table(table, self._project, self._declared.folder)
            except ContractError as error:
                self._doomed.add(node.name)
                if table not in self._project.broken:
                    self._fault(self._setting_path(node, table), error.message, error.hint)

    # ---- edges

    def _wire(self, node: _Shaped) -> dict[str, tuple[str, ...]]:
        """Edges by input port. Faults doom the node."""
        spec, ports = node.spec, node.kind.inputs
        path: YamlPath = ("nodes", node.name, "from")
        before = len(self._problems)
        wired: dict[str, tuple[str, ...]] = {}
        if node.kind.source or not ports:
            if spec.feeds:
                self._fault(
                    path, f"'{node.kind.name}' makes its records itself: it has no input", "leave it out"
                )
        elif not spec.feeds:
            self._fault(path[:2], "'from' is missing", nearest("", self._names()), key=True)
        elif "" in spec.feeds and len(ports) > 1:
            shape = ", ".join(f"{port}: ..." for port in ports)
            hint = f"from: {{{shape}}}"
            self._fault(path, f"'{node.kind.name}' has the ports {', '.join(ports)}: say which", hint)
        else:
            for port, edges in spec.feeds.items():
                if port and port not in ports:
                    self._fault((*path, port), f"unknown input port '{port}'", nearest(port, ports), key=True)
                    continue
                wired[port or ports[0]] = tuple(self._fed(node, port, edges))
            for port in ports:
                if not spec.feeds.get(port) and "" not in spec.feeds:
                    self._fault(path, f"nothing feeds the input port '{port}'", f"from: {{{port}: ...}}")
        if len(self._problems) > before:
            self._doomed.add(node.name)
        return wired

    def _fed(self, node: _Shaped, port: str, edges: tuple[str, ...]) -> Iterator[str]:
        for index, edge in enumerate(edges):
            path: YamlPath = ("nodes", node.name, "from", *([port] if port else []), index)
            if edge in edges[:index]:
                self._fault(path, f"edge '{edge}' is there twice")
            elif edge in self._producers or edge in self._edges:
                yield edge
            elif edge in self._failed or edge.partition(".")[0] in self._failed:
                self._doomed.add(node.name)
            else:
                self._fault(path, f"unknown edge '{edge}'", self._edge_hint(edge))

    def _edge_hint(self, edge: str) -> str:
        node = self._shaped.get(edge)
        if node is not None and node.ports:
            return "its ports: " + ", ".join(edge_name(edge, port, node.ports) for port in node.ports)
        return nearest(edge, self._names())

    def _names(self) -> list[str]:
        return [*self._edges, *self._producers, *self._failed]

    def _cycle(self, cycle: list[str]) -> None:
        self._doomed.update(cycle)
        shown = " -> ".join([*cycle, cycle[0]])
        self._fault(("nodes", cycle[0], "from"), f"these nodes feed each other in a cycle: {shown}")

    # ---- contracts

    def _contracts(self, node: _Shaped, wired: Mapping[str, tuple[str, ...]]) -> ResolvedNode | None:
        """The node with the contracts of its outputs; None (its edges failed) if they cannot be known."""
        names = {port: edge_name(node.name, port, node.ports) for port in node.ports}
        found = None
        if node.name not in self._doomed and all(e in self._edges for edges in wired.values() for e in edges):
            found = self._contract(node, wired)
        if found is None:
            self._failed.update(names.values())
            return None
        feeding = [self._edges[edge] for edges in wired.values() for edge in edges]
        partitions = self._spec.edges.partitions or max((edge.partitions for edge in feeding), default=1)
        for port, name in names.items():
            self._edges[name] = ResolvedEdge(
                name, found[port], self._spec.edges.codec, partitions, producer=node.name, port=port
            )
        return ResolvedNode(
            name=node.name,
            spec=node.spec,
            kind=node.kind,
            settings=node.settings,
            raw_settings=node.spec.settings,
            inputs=wired,
            outputs=names,
            contracts=found,
            out=_out(node.spec),
            keep=node.spec.keep,
            models=node.kind.models(node.settings),
            tables=node.kind.tables(node.settings),
        )

    def _contract(self, node: _Shaped, wired: Mapping[str, tuple[str, ...]]) -> dict[str, Schema] | None:
        inputs: dict[str, Schema] = {}
        for port, edges in wired.items():
            merged = self._merged(node, port, edges)
            if merged is None:
                return None
            inputs[port] = merged
        context = ContractContext(
            node=node.name,
            inputs=inputs,
            out=_out(node.spec),
            keep=node.spec.keep,
            folder=self._declared.folder,
            models=self._models,
            topics=self._topic,
        )
        try:
            found = node.kind.contract(node.settings, context)
        except DataflowError as error:
            self._raised(node.name, error)
            return None
        missing = [port for port in node.ports if port not in found]
        if missing:
            message = f"kind '{node.kind.name}' gives no contract for its port '{missing[0]}'"
            self._fault(("nodes", node.name, "use"), message, "this is a fault of the kind")
            return None
        return found

    def _merged(self, node: _Shaped, port: str, edges: tuple[str, ...]) -> Schema | None:
        """The one contract of all edges that feed a port; None (and a problem) where they differ."""
        first, good = self._edges[edges[0]].schema, True
        for index, edge in enumerate(edges[1:], start=1):
            difference = _difference(edges[0], first, edge, self._edges[edge].schema)
            if difference:
                good = False
                named = () if "" in node.spec.feeds else (port,)
                path: YamlPath = ("nodes", node.name, "from", *named, index)
                self._fault(
                    path, f"'{edge}' and '{edges[0]}' differ: {difference}", "give both the same fields"
                )
        return first if good else None

    def _topic(self, name: str) -> Schema:
        if name in self._tables:
            return self._tables[name].schema
        return resolve_table(name, self._project, self._declared.folder).schema

    # ---- problems

    def _raised(self, node: str, error: DataflowError) -> None:
        """An error out of a kind, at the place it names."""
        path = error.path if isinstance(error, ContractError) else _path_named(error)
        column = 0
        inner: BaseException | None = error
        while inner is not None and not column:
            column = inner.column if isinstance(inner, ExpressionError) else 0
            inner = inner.__cause__ or inner.__context__
        fault = Fault(("nodes", node, *path), error.message, error.hint)
        self._problems.append(self._declared.problem(fault, text_column=column))

    def _fault(self, path: YamlPath, message: str, hint: str = "", *, key: bool = False) -> None:
        is_key = key or message.startswith("unknown name")
        self._problems.append(self._declared.problem(Fault(path, message, hint), key=is_key))

    def _setting_path(self, node: _Shaped, value: str) -> YamlPath:
        """Where in the node's settings a value stands."""
        path = next((p for p, found in walk(node.spec.settings) if found == value), ())
        return ("nodes", node.name, "with", *path)


_NAMED: Final = re.compile(r"(with|out|keep)((?:\.\w+)*): ")


def _path_named(error: DataflowError) -> YamlPath:
    """The path that a message begins with, as ``with.when: ...``; `with` where it names none."""
    match = _NAMED.match(error.message)
    return tuple(match[0][:-2].split(".")) if match else ("with",)


def _out(spec: NodeSpec) -> Schema | None:
    return schema_of(spec.out) if spec.out is not None else None


def _difference(name: str, schema: Schema, other_name: str, other: Schema) -> str:
    """In words, what one contract has that the other has not; "" for equal fields and types."""
    for one, these, two, those in ((name, schema, other_name, other), (other_name, other, name, schema)):
        alone = [f"'{n}'" for n in these.names if n not in those]
        if alone:
            return f"{', '.join(alone)} only in '{one}', not in '{two}'"
    for found in schema:
        theirs = other[found.name].type
        if theirs != found.type:
            return f"'{found.name}' is {found.type.describe()} in '{name}', {theirs.describe()} in '{other_name}'"
    return ""


def _feeds(
    shaped: Any, producers: Mapping[str, str], wiring: Mapping[str, Mapping[str, tuple[str, ...]]]
) -> dict[str, tuple[str, ...]]:
    """Edge to the nodes it feeds, node to the edges it writes."""
    feeds: dict[str, list[str]] = {}
    for node in shaped:
        for edges in wiring[node.name].values():
            for edge in edges:
                feeds.setdefault(edge, []).append(node.name)
    for edge, node in producers.items():
        feeds.setdefault(f"{node}()", []).append(edge)
    return {name: tuple(fed) for name, fed in feeds.items()}
