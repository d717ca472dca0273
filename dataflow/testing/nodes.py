"""Run one node kind on rows, the way the engine would: settings checked, contract inferred, every row settled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflow.core.batch import Batch, to_list
from dataflow.core.errors import NodeError
from dataflow.core.outcomes import Out
from dataflow.core.schema import Schema
from dataflow.sdk import ContractContext, ModelInfo, Node, NodeContext, NodeKind, Table
from dataflow.sdk.kinds import KIND_ATTRIBUTE


@dataclass(frozen=True)
class NodeResult:
    """What a node did with a batch: rows emitted by port, and (row index, reason) of what was dropped or failed."""

    ports: Mapping[str, list[dict[str, Any]]]
    parents: Mapping[str, list[int]]
    dropped: list[tuple[int, str]]
    failed: list[tuple[int, str]]

    @property
    def out(self) -> list[dict[str, Any]]:
        return self.ports.get("out", [])


def kind_of(target: NodeKind | Callable[..., Any]) -> NodeKind:
    """The kind attached to a function or class by `sdk.node`."""
    if isinstance(target, NodeKind):
        return target
    kind = getattr(target, KIND_ATTRIBUTE, None)
    if not isinstance(kind, NodeKind):
        raise NodeError(f"{target!r} is no node kind", hint="put @node(...) on it")
    return kind


def _no_model(name: str) -> ModelInfo:
    raise NodeError(f"no model '{name}'")


def _no_table(name: str) -> Table:
    raise NodeError(f"no table '{name}'")


def _no_topic(name: str) -> Schema:
    raise NodeError(f"no topic '{name}'")


def contract_of(
    target: NodeKind | Callable[..., Any],
    inputs: Schema | Mapping[str, Schema],
    settings: Mapping[str, Any] | None = None,
    *,
    out: Schema | None = None,
    keep: Sequence[str] | None = None,
    folder: Path = Path(),
    models: Callable[[str], ModelInfo] = _no_model,
    topics: Callable[[str], Schema] = _no_topic,
) -> dict[str, Schema]:
    """Output contracts by port."""
    kind = kind_of(target)
    by_port = {"in": inputs} if isinstance(inputs, Schema) else dict(inputs)
    context = ContractContext(
        "node", by_port, out, tuple(keep) if keep is not None else None, folder, models, topics
    )
    return kind.contract(kind.settings.model_validate(dict(settings or {})), context)


def build_node(
    target: NodeKind | Callable[..., Any],
    inputs: Schema | Mapping[str, Schema],
    settings: Mapping[str, Any] | None = None,
    *,
    out: Schema | None = None,
    keep: Sequence[str] | None = None,
    folder: Path = Path(),
    models: Callable[[str], ModelInfo] = _no_model,
    topics: Callable[[str], Schema] = _no_topic,
    tables: Callable[[str], Table] = _no_table,
) -> Node:
    """A node as the engine would build it; opened if it can be. The caller closes it."""
    kind = kind_of(target)
    outputs = contract_of(
        kind, inputs, settings, out=out, keep=keep, folder=folder, models=models, topics=topics
    )
    by_port = {"in": inputs} if isinstance(inputs, Schema) else dict(inputs)
    kept = tuple(keep) if keep is not None else None
    context = NodeContext("test", "node", folder, by_port, outputs, models, tables, out, kept)
    made = kind.build(kind.settings.model_validate(dict(settings or {})), context)
    opener = getattr(made, "open", None)
    if opener is not None:
        opener()
    return made


def run_node(
    target: NodeKind | Callable[..., Any],
    inputs: Schema | Mapping[str, Schema],
    records: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    *,
    out: Schema | None = None,
    keep: Sequence[str] | None = None,
    folder: Path = Path(),
    models: Callable[[str], ModelInfo] = _no_model,
    topics: Callable[[str], Schema] = _no_topic,
    tables: Callable[[str], Table] = _no_table,
    port: str = "in",
    batch_records: int = 0,
) -> NodeResult:
    """Build, open, run over `records` (in batches of `batch_records`, 0 for one batch), flush and close one node.

    An exception out of `process` fails the rows not yet accounted for, as in the engine.
    """
    by_port = {"in": inputs} if isinstance(inputs, Schema) else dict(inputs)
    kind = kind_of(target)
    made = build_node(
        kind,
        by_port,
        settings,
        out=out,
        keep=keep,
        folder=folder,
        models=models,
        topics=topics,
        tables=tables,
    )
    ports = kind.ports(kind.settings.model_validate(dict(settings or {})))
    result = NodeResult({p: [] for p in ports}, {p: [] for p in ports}, [], [])
    size = batch_records or max(len(records), 1)
    try:
        for start in range(0, len(records), size):
            batch = Batch.of(by_port[port], list(records[start : start + size]))
            _collect(made, batch, port, ports, start, result)
        flush = getattr(made, "flush", None)
        if flush is not None:
            flush()
    finally:
        closer = getattr(made, "close", None)
        if closer is not None:
            closer()
    return result


def _collect(
    made: Node, batch: Batch, port: str, ports: Sequence[str], start: int, result: NodeResult
) -> None:
    out = Out(batch, ports)
    try:
        made.process(batch, out, port)
    except Exception as error:  # noqa: BLE001  (user code: anything may come)
        missed = [i for i, state in enumerate(out.state.tolist()) if state == 0]
        out.fail(missed, str(error) or type(error).__name__, error=type(error).__name__)
    out.settle()
    for emission in out.emissions:
        names = list(emission.columns)
        lists = [to_list(emission.columns[n]) for n in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]
        result.ports[emission.port].extend(rows)
        result.parents[emission.port].extend((emission.parents + start).tolist())
    result.dropped.extend((loss.row + start, loss.reason) for loss in out.dropped)
    result.failed.extend((loss.row + start, loss.reason) for loss in out.failed)
