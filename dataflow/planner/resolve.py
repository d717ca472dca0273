"""From a declared pipeline to a graph with contracts: kinds looked up, settings checked, edges named, fields inferred.

Pure but for what is read beside the pipeline: the signatures of models (through a function given), the columns of
table files, and user code by its syntax tree, never by running it. Every independent fault is a `Problem` of its
own; what merely follows from another one is not reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from pydantic import ValidationError

from dataflow.core.errors import (
    ContractError,
    NotKnownYetError,
    SpecError,
    nearest,
)
from dataflow.core.schema import Schema
from dataflow.planner.contracts import (
    cut_of,
    default_encoding,
    difference_of,
    labelled,
    loop_of,
    repartition_of,
)
from dataflow.planner.failures import with_failures
from dataflow.planner.faults import Faults, port_faults
from dataflow.planner.graph import edge_name, in_order
from dataflow.planner.loops import Loops
from dataflow.planner.resolved import Resolved, ResolvedEdge, ResolvedNode
from dataflow.planner.tables import ResolvedTable, resolve_table
from dataflow.registry import Registry
from dataflow.sdk import ContractContext, ModelInfo, NodeKind, Settings
from dataflow.spec import Declared, Fault, NodeSpec, PipelineSpec, Project
from dataflow.spec.fields import schema_of
from dataflow.spec.messages import faults_of
from dataflow.spec.problems import YamlPath
from dataflow.spec.source import walk

__all__ = ["Models", "Resolved", "ResolvedEdge", "ResolvedNode", "ResolvedTable", "resolve", "unbuilt"]

Models = Callable[[str], ModelInfo]
# ``pipeline.edge`` -> that edge as an input, None for no such pipeline. Raises ContractError where it cannot be read,
# NotKnownYetError where a fault of the other pipeline hides it.
Others = Callable[[str], ResolvedEdge | None]


def resolve(
    project: Project,
    pipeline: str,
    registry: Registry,
    *,
    models: Models | None = None,
    others: Others = lambda _name: None,
) -> Resolved:
    """Resolve one pipeline. Raises SpecError only when there is none.

    `models` gives a model's signature, fields empty while its artifact is not built; without it all are taken so.
    `others` gives edges of other pipelines (see `upstream.Pipelines`); without it there are none.
    """
    declared = project.pipeline(pipeline)
    return _Resolving(project, declared, registry, models or unbuilt(project), others).run()


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
        self,
        project: Project,
        declared: Declared[PipelineSpec],
        registry: Registry,
        models: Models,
        others: Others,
    ) -> None:
        self._project = project
        self._declared = declared
        self._spec = declared.spec
        self._registry = registry
        self._models = models
        self._others = others
        self._found = Faults(declared)
        self._fault, self._raised = self._found.add, self._found.raised
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
        for name, spec in self._spec.nodes.items():
            if name not in self._shaped:  # its faults do not hide those of its edges
                _ = [tuple(self._fed(name, port, edges)) for port, edges in spec.feeds.items()]
        shaped = self._shaped.values()
        closing = {edge_name(n.name, port, n.ports): n.name for n in shaped if (port := loop_of(n.kind))}
        self._loops = Loops(closing, self._producers, wiring)
        if not self._found.problems:  # a node without some of its edges may lie in a loop that is not seen
            for name, fault in self._loops.faults():
                self._doomed.add(name)
                self._fault(fault)
        order, cycles = in_order(self._loops.feeders())
        for cycle in cycles:
            self._cycle(cycle)
        nodes: dict[str, ResolvedNode] = {}
        for name in order:
            node = self._contracts(self._shaped[name], wiring[name])
            if node is not None:
                nodes[name] = node
        for node in nodes.values():
            self._check_returns(node)
        return Resolved(
            spec=self._spec,
            declared=self._declared,
            nodes=nodes,
            edges=self._edges,
            tables=self._tables,
            problems=tuple(sorted(set(self._found.problems))),
            failed=frozenset(self._failed),
        )

    # ---- names

    def _input(self, name: str, topic: str) -> None:
        declared = self._project.topics.get(topic)
        if declared is None:
            if self._read_other(name, topic, ("inputs", name)):
                return
            self._failed.add(name)
            if topic not in self._project.broken:
                hint = nearest(topic, self._project.topics)
                self._fault(Fault(("inputs", name), f"unknown topic '{topic}'", hint))
            return
        spec = declared.spec
        self._edges[name] = ResolvedEdge(
            name, spec.schema(), spec.codec, spec.partitions, spec.key, spec.key_bytes, topic=topic
        )

    def _read_other(self, name: str, text: str, path: YamlPath) -> bool:
        """Take an edge of another pipeline as the input `name`; False where `text` names no other pipeline."""
        try:
            found = self._others(text) if "." in text else None
        except NotKnownYetError:
            self._failed.add(name)  # reported there
            return True
        except ContractError as error:
            self._failed.add(name)
            self._fault(Fault(path, error.message, error.hint))
            return True
        if found is None:
            return False
        self._edges[name] = replace(found, name=name)
        return True

    def _shape(self, name: str, spec: NodeSpec) -> None:
        """Look up a node's kind, check its settings, and name its edges."""
        if name in self._spec.inputs:
            fault = Fault(
                ("nodes", name), f"'{name}' is an input already", "rename one of the two", at_key=True
            )
            self._fault(fault)
            return
        try:
            found = self._registry.get(spec.use)
            kind = with_failures(found) if spec.failed else found
        except SpecError as error:
            self._failed.add(name)
            self._fault(Fault(("nodes", name, "use"), error.message, error.hint))
            return
        settings = None if name in self._declared.left_out else self._settings(name, kind, spec)
        if settings is None:
            self._failed.add(name)
            return
        try:
            node = _Shaped(name, spec, kind, settings, kind.ports(settings))
            self._shaped[name] = node
            self._references(node)
        except Exception as error:  # noqa: BLE001  (a kind may be the user's own code: anything may come)
            self._failed.add(name)
            self._shaped.pop(name, None)
            self._raised(name, error)
            return
        for port in node.ports:
            self._producers[edge_name(name, port, node.ports)] = name

    def _settings(self, name: str, kind: NodeKind, spec: NodeSpec) -> Settings | None:
        path = ("nodes", name, "with")
        try:
            return kind.settings.model_validate(spec.settings)
        except ValidationError as error:
            for fault in faults_of(error, kind.settings, spec.settings):
                self._fault(replace(fault, path=(*path, *fault.path)))
        except Exception as error:  # noqa: BLE001  (a kind may be the user's own code: anything may come)
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
                self._fault(Fault(self._setting_path(node, model), f"unknown model '{model}'", hint))
        for table in node.kind.tables(node.settings):
            try:
                self._tables[table] = resolve_table(table, self._project, self._declared.folder)
            except ContractError as error:
                self._doomed.add(node.name)
                if table not in self._project.broken:
                    self._fault(Fault(self._setting_path(node, table), error.message, error.hint))

    # ---- edges

    def _wire(self, node: _Shaped) -> dict[str, tuple[str, ...]]:
        """Edges by input port. Faults doom the node."""
        before = len(self._found.problems)
        feeds = {port: tuple(self._fed(node.name, port, fed)) for port, fed in node.spec.feeds.items()}
        for fault in port_faults(node.name, node.spec, node.kind):
            self._fault(fault)
        if len(self._found.problems) > before:
            self._doomed.add(node.name)
            known = node.kind.names_inputs or node.kind.inputs
            feeds = {port: fed for port, fed in feeds.items() if not port or known is True or port in known}
        return {port or node.kind.inputs[0]: fed for port, fed in feeds.items() if node.kind.inputs}

    def _fed(self, name: str, port: str, edges: tuple[str, ...]) -> Iterator[str]:
        """Those of `edges` that exist; an unknown one is a fault, a failed one dooms the node."""
        for index, edge in enumerate(edges):
            path: YamlPath = ("nodes", name, "from", *([port] if port else []), index)
            if edge in edges[:index]:
                self._fault(Fault(path, f"edge '{edge}' is there twice"))
            elif edge in self._producers or edge in self._edges:
                yield edge
            elif edge in self._failed or (node := edge.partition(".")[0]) in self._failed:
                self._doomed.add(name)
            elif node not in self._spec.nodes and self._read_other(edge, edge, path):
                if edge in self._edges:
                    yield edge
                else:
                    self._doomed.add(name)
            else:
                self._fault(Fault(path, f"unknown edge '{edge}'", self._edge_hint(edge)))

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
        message = f"these nodes feed each other in a cycle: {shown}"
        self._fault(Fault(("nodes", cycle[0], "from"), message, "loop.until makes a loop that ends"))

    def _check_returns(self, node: ResolvedNode) -> None:
        """What comes back to a node must be what it began with."""
        for port, edges in self._loops.ahead(node.name).items():
            for edge in node.inputs[port]:
                if edge not in edges and edge in self._edges:
                    self._compare(node.name, node.spec, port, edges[0], edge)

    # ---- contracts

    def _contracts(self, node: _Shaped, wired: Mapping[str, tuple[str, ...]]) -> ResolvedNode | None:
        """The node with the contracts of its outputs; None (its edges failed) if they cannot be known."""
        names = {port: edge_name(node.name, port, node.ports) for port in node.ports}
        found = None
        ahead = self._loops.ahead(node.name)
        if node.name not in self._doomed and all(e in self._edges for edges in ahead.values() for e in edges):
            found = self._contract(node, ahead)
        if found is None:
            self._failed.update(names.values())
            return None
        feeding = [self._edges[edge] for edges in ahead.values() for edge in edges]
        placed = repartition_of(node.kind, node.settings)
        partitions = (
            placed.partitions
            or self._spec.edges.partitions
            or max((edge.partitions for edge in feeding), default=1)
        )
        labels = {f.name: f.privacy for edge in feeding for f in edge.schema if f.privacy}
        found = {port: labelled(schema, labels) for port, schema in found.items()}
        for port, name in names.items():
            encoding = placed.encoding or default_encoding(found[port], placed.key)
            self._edges[name] = ResolvedEdge(
                name, found[port], node.kind.codec or self._spec.edges.codec, partitions, placed.key, encoding, node.name, port,
                cut=cut_of(
                    placed, open_to_others=node.spec.open, outside=node.kind.outside, loop=self._loops.back.get(name, ())
                ),
                open=node.spec.open, loop=self._loops.back.get(name, ()),
            )  # fmt: skip
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
        except Exception as error:  # noqa: BLE001  (a kind may be the user's own code: anything may come)
            self._raised(node.name, error)
            return None
        missing = [port for port in node.ports if port not in found]
        if missing:
            message = f"kind '{node.kind.name}' gives no contract for its port '{missing[0]}'"
            self._fault(Fault(("nodes", node.name, "use"), message, "this is a fault of the kind"))
            return None
        return found

    def _merged(self, node: _Shaped, port: str, edges: tuple[str, ...]) -> Schema | None:
        """The one contract of all edges that feed a port; None (and a problem) where they differ."""
        good = [self._compare(node.name, node.spec, port, edges[0], edge) for edge in edges[1:]]
        return self._edges[edges[0]].schema if all(good) else None

    def _compare(self, name: str, spec: NodeSpec, port: str, first: str, edge: str) -> bool:
        """Whether two edges that feed one port have one contract; a problem where not."""
        difference = difference_of(first, self._edges[first].schema, edge, self._edges[edge].schema)
        if not difference:
            return True
        named = "" if "" in spec.feeds else port
        path: YamlPath = ("nodes", name, "from", *([named] if named else []), spec.feeds[named].index(edge))
        self._fault(Fault(path, f"'{edge}' and '{first}' differ: {difference}", "give both the same fields"))
        return False

    def _topic(self, name: str) -> Schema:
        """The contract of a topic or a table file; a topic that is only written to needs no key."""
        if name in self._project.topics:
            return self._project.topics[name].spec.schema()
        return resolve_table(name, self._project, self._declared.folder).schema

    def _setting_path(self, node: _Shaped, value: str) -> YamlPath:
        """Where in the node's settings a value stands."""
        path = next((p for p, found in walk(node.spec.settings) if found == value), ())
        return ("nodes", node.name, "with", *path)


def _out(spec: NodeSpec) -> Schema | None:
    return schema_of(spec.out) if spec.out is not None else None
