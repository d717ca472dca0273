"""Everything that can be known to be wrong before anything runs, all at once, each fault at its place.

The loader finds what is wrong within one document, `resolve` what is wrong in the graph and its contracts; here is
the rest: doors in and out, inline tests, what a version cannot do, what is allowed but risky (warnings).
"""

from __future__ import annotations

from collections.abc import Iterator

from dataflow.core.errors import nearest
from dataflow.core.schema import Schema
from dataflow.planner.resolve import Models
from dataflow.planner.resolved import Resolved, ResolvedEdge, ResolvedNode
from dataflow.planner.stages import cut_into_stages, stage_faults
from dataflow.planner.upstream import Pipelines
from dataflow.registry import Registry
from dataflow.spec import Fault, Problem, Project, TopicSpec
from dataflow.spec.problems import YamlPath


def lint(
    project: Project,
    registry: Registry,
    models: Models | None = None,
    *,
    pipelines: Pipelines | None = None,
) -> list[Problem]:
    """All problems of a project, sorted by place. Errors forbid running, warnings state a risk.

    `pipelines` resolves them and knows those that are deployed beside them; `models` is for it then.
    """
    found = pipelines or Pipelines(project, registry, models)
    problems = set(project.problems)
    for declared in project.models.values():
        spec = declared.spec
        if not spec.build and not (declared.folder / spec.file).is_file():
            fault = Fault(
                ("file",), f"no file '{spec.file}'", "or say how to make it, e.g. build: python train.py"
            )
            problems.add(declared.problem(fault))
    for name in project.pipelines:
        problems |= set(check(project, found.resolved(name)))
    return sorted(problems)


def check(project: Project, resolved: Resolved) -> list[Problem]:
    """All problems of one resolved pipeline, those found by `resolve` included."""
    faults = [
        *_shape_faults(resolved),
        *_input_faults(resolved),
        *_open_faults(resolved),
        *_output_faults(project, resolved),
        *_answer_faults(resolved),
        *_codec_faults(resolved),
        *_count_faults(resolved),
        *_test_faults(resolved),
    ]
    for node in resolved.nodes.values():
        faults += _partition_faults(resolved, node)
        faults += _key_faults(resolved, node)
    found = {resolved.declared.problem(fault) for fault in faults}
    return sorted(found | set(resolved.problems))


def _shape_faults(resolved: Resolved) -> Iterator[Fault]:
    if not resolved.spec.nodes and not resolved.declared.left_out:
        yield Fault(("nodes",), "a pipeline needs a node", "nodes: {name: {use: KIND, from: INPUT}}")
    if not resolved.failed:  # a graph with holes has other stages than the one that is meant
        yield from stage_faults(cut_into_stages(resolved))


def _input_faults(resolved: Resolved) -> Iterator[Fault]:
    """Two inputs of one topic would be one stream, and one consumer cannot tell them apart."""
    first: dict[str, str] = {}
    for name, topic in resolved.inputs.items():
        declared = name in resolved.spec.inputs
        if declared and topic in first:
            path: YamlPath = ("inputs", name)
            yield Fault(
                path, f"input '{first[topic]}' is the topic '{topic}' already", f"use '{first[topic]}'"
            )
        first.setdefault(topic, name)
        upstream = resolved.edges[name].upstream
        if (
            upstream is None
            or resolved.spec.delivery != "exactly_once"
            or upstream.delivery == "exactly_once"
        ):
            continue
        path = ("inputs", name) if declared else _path_of_feed(resolved, name)
        message = (
            f"pipeline '{upstream.pipeline}' delivers at least once: a record of '{upstream.name}' that it writes twice "
            "is two records here, with one id"
        )
        yield Fault(
            path, message, "exactly_once holds from end to end where both pipelines have it", "warning"
        )


def _path_of_feed(resolved: Resolved, edge: str) -> YamlPath:
    """Where a node reads an edge."""
    return next(
        ("nodes", name, "from", *([port] if port else []), edges.index(edge))
        for name, node in resolved.spec.nodes.items()
        for port, edges in node.feeds.items()
        if edge in edges
    )


def _open_faults(resolved: Resolved) -> Iterator[Fault]:
    """Which topics outsiders may write to: to be known, if only once a review."""
    for edge in resolved.edges.values():
        if edge.open and resolved.spec.nodes[str(edge.producer)].write == "on":
            message = (
                f"outsiders may write to topic '{resolved.spec.name}.{edge.name}': what they write is processed as "
                "this pipeline's own"
            )
            hint = "`dataflow plan` lists the right to give them"
            yield Fault(("nodes", str(edge.producer), "open"), message, hint, "warning")


def _output_faults(project: Project, resolved: Resolved) -> Iterator[Fault]:
    for topic, edge in resolved.spec.outputs.items():
        path: YamlPath = ("outputs", topic)
        declared = project.topics.get(topic)
        if declared is None and topic not in project.broken:
            yield Fault(path, f"unknown topic '{topic}'", nearest(topic, project.topics), at_key=True)
        yield from _edge_faults(resolved, path, edge)
        found = resolved.edges.get(edge)
        if declared is not None and found is not None:
            yield from _fit_faults(path, found, declared.spec)
        fed_back = [name for name, read in resolved.inputs.items() if read == topic]
        if fed_back:
            message = f"topic '{topic}' is also the input '{fed_back[0]}': its records come round again"
            yield Fault(path, message, severity="warning", at_key=True)


def _edge_faults(resolved: Resolved, path: YamlPath, edge: str) -> Iterator[Fault]:
    if not resolved.is_known(edge):
        yield Fault(path, f"unknown edge '{edge}'", edge_hint(resolved, edge))


def edge_hint(resolved: Resolved, edge: str) -> str:
    """The ports of a node that has no edge of its own name, else the nearest edge."""
    ports = [name for name in resolved.edge_names if name.startswith(f"{edge}.")]
    return "its ports: " + ", ".join(ports) if ports else nearest(edge, resolved.edge_names)


def _fit_faults(path: YamlPath, edge: ResolvedEdge, topic: TopicSpec) -> Iterator[Fault]:
    """What the topic's contract asks for and the edge does not have; fields it does not ask for are left out."""
    for field in topic.schema():
        if field.name not in edge.schema:
            message = (
                f"topic '{topic.name}' needs the field '{field.name}', which '{edge.name}' does not have"
            )
            yield Fault(path, message, nearest(field.name, edge.schema.names))
            continue
        given = edge.schema[field.name].type
        if not field.type.accepts(given):
            needed = f"topic '{topic.name}' needs '{field.name}' as {field.type.describe()}"
            yield Fault(
                path, f"{needed}, '{edge.name}' has {given.describe()}", "cast it by transform.select"
            )


def _answer_faults(resolved: Resolved) -> Iterator[Fault]:
    answer, spec = resolved.spec.answer, resolved.spec
    if answer is None:
        return
    start, inputs = resolved.answer_input, {**spec.inputs, **resolved.inputs}
    if answer.input is not None and answer.input not in inputs:
        yield Fault(("answer", "input"), f"unknown input '{answer.input}'", nearest(answer.input, inputs))
        start = None
    elif start is None and not inputs:
        yield Fault(("answer",), "an answer needs an input that requests go to", "inputs: {name: TOPIC}")
    elif start is None:
        hint = f"input: {' or '.join(inputs)}"
        yield Fault(("answer",), "there are several inputs: say which one requests go to", hint)
    for index, edge in enumerate(answer.edges):
        path: YamlPath = ("answer", "from", index)
        yield from _edge_faults(resolved, path, edge)
        if start is not None and edge in resolved.edges:
            yield from _path_faults(resolved, path, edge, start)
    if answer.when == "eager":
        message = "when: an eager answer may be lost in a crash: the caller has it, the topics do not"
        yield Fault(("answer", "when"), message, "durable waits for Kafka", severity="warning")
    if answer.when == "durable" and resolved.spec.delivery == "exactly_once":
        message = "when: a durable answer comes before the commit: after a crash the committed one may differ"
        yield Fault(("answer", "when"), message, "committed waits for it, some 4 ms more", severity="warning")


def _path_faults(resolved: Resolved, path: YamlPath, edge: str, start: str) -> Iterator[Fault]:
    origins = resolved.origins(edge)
    if edge == start:
        yield Fault(path, f"'{edge}' is the input itself: an answer comes from a node")
    elif start not in origins:
        shown = ", ".join(f"'{origin}'" for origin in sorted(origins))
        yield Fault(path, f"no path leads from the input '{start}' to '{edge}'", f"it is fed by {shown}")


def _codec_faults(resolved: Resolved) -> Iterator[Fault]:
    if resolved.spec.edges.codec != "raw":
        return
    for edge in resolved.edges.values():
        if edge.producer is not None and [field.type.kind for field in edge.schema] != ["bytes"]:
            message = (
                f"codec: 'raw' carries one field of type bytes, '{edge.name}' has {edge.schema.describe()}"
            )
            yield Fault(("edges", "codec"), message, "valid: avro, arrow, json")


def _count_faults(resolved: Resolved) -> Iterator[Fault]:
    """Each task writes to the partition of its own number: that is where keys belong only if one count divides the other."""
    wanted = resolved.spec.edges.partitions
    if wanted is None:
        return
    for node in resolved.nodes.values():
        made = [resolved.edges[name] for name in node.outputs.values() if name in resolved.edges]
        if node.kind.outside or any(edge.key for edge in made):
            continue  # placed by key, over however many
        for name in (edge for edges in node.inputs.values() for edge in edges):
            count = resolved.edges[name].partitions
            if not made or count % wanted == 0:
                continue
            keyed = any(resolved.edges[edge].key for edge in resolved.placed_by(name))
            message = f"partitions: '{made[0].name}' would have {wanted}, and '{name}', which it is made of, has {count}: "
            message += (
                "records would not lie where their keys belong"
                if keyed
                else "some partitions would stay empty"
            )
            valid = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            hint = f"leave it out, or valid: {valid}; `rekey` spreads records over any number"
            yield Fault(("edges", "partitions"), message, hint, "error" if keyed else "warning")
            return


def _partition_faults(resolved: Resolved, node: ResolvedNode) -> Iterator[Fault]:
    """A kind that pairs partitions needs the same number of them on every port; it says `copartitioned = True`."""
    if not getattr(node.kind.target, "copartitioned", False):
        return
    fed = [resolved.edges[edge] for edges in node.inputs.values() for edge in edges]
    if len({edge.partitions for edge in fed}) > 1:
        counts = " and ".join(f"'{edge.name}' has {edge.partitions} partitions" for edge in fed)
        message = f"'{node.kind.name}' joins partition by partition, but {counts}"
        yield Fault(("nodes", node.name, "from"), message, "give their topics equal partitions")


def _key_faults(resolved: Resolved, node: ResolvedNode) -> Iterator[Fault]:
    """A kind that brings records of one key together over its ports (`pairs_keys`): equal keys must be equal bytes."""
    if not getattr(node.kind.target, "pairs_keys", False) or len(node.inputs) < 2:
        return
    said: dict[str, str] = {}
    for port, edges in node.inputs.items():
        for edge in edges:
            keys = [e for name in resolved.placed_by(edge) if (e := resolved.edges[name]).key]
            if not keys:
                message = (
                    f"'{node.kind.name}' brings records of one key together, and those of '{edge}' have none"
                )
                yield Fault(
                    ("nodes", node.name, "from", port), message, "key: FIELD in its topic, or `rekey`"
                )
                return
            for found in keys:
                said.setdefault(
                    found.key_encoding, f"'{edge}' by {', '.join(found.key)} as {found.key_encoding}"
                )
    if len(said) > 1:
        message = f"'{node.kind.name}' brings records of one key together, and their keys are other bytes: "
        hint = "equal `key_encoding`, or `rekey` one of them"
        yield Fault(("nodes", node.name, "from"), message + " and ".join(said.values()), hint)


def _test_faults(resolved: Resolved) -> Iterator[Fault]:
    # A process outside does not run in a test: what it would write is given instead.
    outside = [e for n in resolved.nodes.values() if n.kind.outside for e in n.outputs.values()]
    inputs = {**resolved.spec.inputs, **resolved.inputs, **dict.fromkeys(outside)}
    for number, test in enumerate(resolved.spec.tests):
        path: YamlPath = ("tests", number)
        for name, records in test.given.items():
            here = (*path, "given", name)
            if name in resolved.tables:
                yield from _record_faults(here, name, resolved.tables[name].schema, records)
            elif name not in inputs:
                valid = [*inputs, *resolved.tables]
                yield Fault(here, f"unknown input '{name}'", nearest(name, valid), at_key=True)
            elif name in resolved.edges:
                yield from _record_faults(here, name, resolved.edges[name].schema, records)
        for edge, records in test.expect.items():
            here = (*path, "expect", edge)
            if not resolved.is_known(edge):
                yield Fault(here, f"unknown edge '{edge}'", edge_hint(resolved, edge), at_key=True)
            elif edge in resolved.edges:
                yield from _record_faults(here, edge, resolved.edges[edge].schema, records)


def _record_faults(
    path: YamlPath, edge: str, schema: Schema, records: list[dict[str, object]]
) -> Iterator[Fault]:
    for index, record in enumerate(records):
        for name in record:
            if name not in schema:
                hint = nearest(name, schema.names)
                yield Fault((*path, index, name), f"'{edge}' has no field '{name}'", hint, at_key=True)
