"""`dataflow infer`: run a Python node's function on sample records and print the contract of what it returns."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dataflow.cli.context import project_option, tell_build
from dataflow.core.errors import ContractError, NodeError, SpecError, nearest

if TYPE_CHECKING:
    from dataflow.cli.inference import Inferred
    from dataflow.core.batch import Batch
    from dataflow.planner.resolved import Resolved
    from dataflow.spec import NodeSpec, Project

KINDS: Final = ("transform.python", "logic.python", "model.python")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_<>\[\]()|?.,-]+")


@dataclass
class Results:
    """What the function gave for the sample: rows or columns, and what ended otherwise."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)
    columns: dict[str, Any] | None = None
    dropped: int = 0
    failed: list[str] = field(default_factory=list)


@click.command()
@click.argument("node")
@click.option(
    "--sample",
    required=True,
    help="Records of the node's input: a CSV, Parquet or JSON lines file, or - for stdin.",
)
@click.option("--pipeline", default="", help="Whose NODE it is, where several have one of that name.")
@click.option(
    "--rows", type=click.IntRange(1), default=1000, show_default=True, help="Records to read at most."
)
@project_option
def infer(node: str, sample: str, pipeline: str, rows: int, project: Path) -> None:
    """Run the function of the Python node NODE on sample records and print its `out:`, to be put into the YAML.

    This is the only command that runs your code to learn a contract. `dataflow tap PIPELINE.EDGE --format json` makes
    a sample from a running pipeline.
    """
    from dataflow.cli.inference import schema_of_columns, schema_of_records
    from dataflow.registry import Registry
    from dataflow.spec import load_project

    loaded = load_project(project, environ=os.environ)
    name = _pipeline_of(loaded, node, pipeline)
    spec = loaded.pipelines[name].spec.nodes[node]
    if spec.use not in KINDS:
        raise SpecError(
            f"node '{node}' of pipeline '{name}' is a {spec.use}: its contract follows from its settings",
            hint=f"infer is for {', '.join(KINDS)}",
        )
    batch = _sample(loaded, name, node, spec, Registry.default(project), sample, rows)
    results = run_on(loaded.pipelines[name].folder, spec, batch, _artifact(loaded, spec))
    for failure in results.failed[:5]:
        click.echo(failure, err=True)
    if results.columns is None and not results.rows:
        raise NodeError(
            f"node '{node}' returned no record for {len(batch)} of the sample: {len(results.failed)} failed, "
            f"{results.dropped} were dropped",
            hint="give it a sample that it has something to say to",
        )
    found = schema_of_records(results.rows) if results.columns is None else schema_of_columns(results.columns)
    ended = (
        f", {results.dropped} dropped, {len(results.failed)} failed"
        if results.dropped or results.failed
        else ""
    )
    click.echo(f"# node '{node}' of pipeline '{name}', seen in {len(batch)} records{ended}", err=True)
    click.echo("\n".join(out_block(found)))


def _pipeline_of(project: Project, node: str, pipeline: str) -> str:
    if pipeline:
        spec = project.pipeline(pipeline).spec
        if node not in spec.nodes:
            raise SpecError(f"pipeline '{pipeline}' has no node '{node}'", hint=nearest(node, spec.nodes))
        return pipeline
    homes = [name for name, declared in project.pipelines.items() if node in declared.spec.nodes]
    if not homes:
        names = [n for declared in project.pipelines.values() for n in declared.spec.nodes]
        raise SpecError(f"no pipeline has a node '{node}'", hint=nearest(node, names))
    if len(homes) > 1:
        raise SpecError(f"pipelines {', '.join(homes)} have a node '{node}'", hint="--pipeline NAME")
    return homes[0]


def _sample(
    project: Project, pipeline: str, node: str, spec: NodeSpec, registry: Any, sample: str, rows: int
) -> Batch:
    """The first `rows` records of the sample under the contract of the node's input."""
    from dataflow.control.assemble import Models
    from dataflow.control.files import read_file
    from dataflow.core.batch import Batch, Row
    from dataflow.planner.resolve import resolve

    resolved = resolve(project, pipeline, registry, models=Models(project, {}))
    edge = next((e for edges in spec.feeds.values() for e in edges), "")
    if edge not in resolved.edges:
        raise ContractError(
            f"the contract of '{edge}', which node '{node}' reads, is not known", hint=_why(resolved, edge)
        )
    schema = resolved.edges[edge].schema
    for part in read_file(sample, schema):
        if part.failed:
            raise SpecError(f"{part.failed[0]}", hint=f"the sample holds records of '{edge}'")
        columns = {n: c[:rows] for n, c in part.columns.items()}
        made = [Row(f"{i:08x}-0000-7000-8000-000000000000".encode()) for i in range(min(part.count, rows))]
        return Batch(schema, columns, made)
    raise SpecError(f"the sample '{sample}' holds no record")


def _why(resolved: Resolved, edge: str) -> str:
    producer = edge.partition(".")[0]
    if producer in resolved.spec.nodes:
        return f"infer or declare that of node '{producer}' first"
    return nearest(edge, resolved.edge_names)


def _artifact(project: Project, spec: NodeSpec) -> Path | None:
    """The built model of a `model.python` node that has one."""
    from dataflow.control.assemble import build_models

    name = spec.settings.get("model")
    if not isinstance(name, str):
        return None
    if name not in project.models:
        raise SpecError(f"no model '{name}'", hint=nearest(name, project.models))
    made = build_models(project, [name], tell_build)[name]
    return project.folder / made.file


def run_on(folder: Path, spec: NodeSpec, batch: Batch, artifact: Path | None = None) -> Results:
    """Call a node's function as the engine would, but with no contract to hold it to."""
    from dataflow.core.usercode import load_callable, signature_of

    ref = str(spec.settings.get("call", ""))
    user = signature_of(folder, ref)
    arguments = dict(spec.settings.get("arguments") or {})
    if artifact is not None:
        arguments["artifact"] = artifact
    target = load_callable(folder, ref)
    instance = target(**arguments) if isinstance(target, type) else None
    loop = asyncio.new_event_loop()
    try:
        _call(getattr(instance, "open", None), loop)
        call: Callable[..., Any] = partial(target, **arguments)
        if instance is not None:
            call = getattr(instance, "process", instance)
        results = (
            _run_batch(call, batch, takes_out=user.takes_out)
            if user.array_wise
            else _run_rows(call, batch, loop, takes_context=user.takes_context)
        )
        _call(getattr(instance, "close", None), loop)
    finally:
        loop.close()
    return results


def _call(function: Callable[[], Any] | None, loop: asyncio.AbstractEventLoop) -> None:
    if function is not None:
        result = function()
        if inspect.isawaitable(result):
            loop.run_until_complete(_awaited(result))


async def _awaited(result: Any) -> Any:
    return await result


def _run_rows(
    call: Callable[..., Any], batch: Batch, loop: asyncio.AbstractEventLoop, *, takes_context: bool
) -> Results:
    from dataflow.core.usercode import CallContext, Drop

    results = Results()
    for number, (row, record) in enumerate(zip(batch.rows, batch.to_dicts(), strict=True), 1):
        context = {"context": CallContext(row.id.decode(), row.key, 0)} if takes_context else {}
        try:
            returned = call(record, **context)
            if inspect.isawaitable(returned):
                returned = loop.run_until_complete(_awaited(returned))
            made = list(_records(returned))
        except Drop:
            results.dropped += 1
        except Exception as error:  # noqa: BLE001  (user code: anything may come)
            results.failed.append(f"record {number} failed: {type(error).__name__}: {error}")
        else:
            results.rows += made
            results.dropped += returned is None
    return results


def _records(returned: Any) -> Iterator[Mapping[str, Any]]:
    from dataflow.cli.inference import fields_of

    if returned is None:
        return
    one = fields_of(returned)
    if one is not None:
        yield one
        return
    if isinstance(returned, str | bytes) or not isinstance(returned, Iterable):
        raise ContractError(f"it returned {returned!r}, expected a dict, None, or a list of dicts")
    for item in returned:
        fields = fields_of(item)
        if fields is None:
            raise ContractError(f"it returned {item!r} in a list, expected a dict")
        yield fields


def _run_batch(call: Callable[..., Any], batch: Batch, *, takes_out: bool) -> Results:
    import numpy as np

    from dataflow.core.outcomes import Out

    try:
        if not takes_out:
            return Results(columns=dict(call(batch)))
        out = Out(batch, ("out",))
        call(batch, out)
    except Exception as error:  # noqa: BLE001  (user code: anything may come)
        return Results(failed=[f"the batch failed: {type(error).__name__}: {error}"])
    parts = [emission.columns for emission in out.emissions]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None
    return Results(columns=columns, dropped=len(out.dropped), failed=[loss.reason for loss in out.failed])


def out_block(found: Inferred) -> Iterator[str]:
    """The `out:` of a node in YAML; fields whose type is not known are commented out."""
    from dataflow.spec.fields import field_spec_of

    yield "out:"
    for declared in found.schema:
        text = str(field_spec_of(declared))
        yield f"  {declared.name}: {text if _PLAIN.fullmatch(text) else json.dumps(text)}"
    for name in found.unknown:
        yield f"  # {name}: only null was seen; give it a type that ends in ?"
