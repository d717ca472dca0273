"""Everything a node author imports, and nothing else.

A node kind is one function or class under `node`::

    class Clip(Settings):
        '''Limits of the values let through.'''
        field: str
        high: float

    @node("transform.clip", settings=Clip)
    def clip(batch: Batch, out: Out, settings: Clip) -> None:
        '''Drop rows above a limit.'''
        over = np.flatnonzero(batch[settings.field] > settings.high)
        out.emit(batch.take(keep), rows=keep)
        out.drop(over, "too high")

A kind with a life cycle or a contract of its own is a class: see `NodeClass`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict

from dataflow.codecs.base import Codec, Decoded
from dataflow.codecs.values import coerce_columns, coerce_records, conform
from dataflow.core import ids
from dataflow.core.batch import Batch, Row, concatenate, pack_row, to_list, unpack_row
from dataflow.core.durations import Duration, Wait
from dataflow.core.errors import (
    CodecError,
    ContractError,
    DataflowError,
    ModelError,
    NodeError,
    NotKnownYetError,
    nearest,
)
from dataflow.core.limits import MAX_ASYNC_CALLS
from dataflow.core.outcomes import BEHIND, CONSUMED, Out
from dataflow.core.schema import Column, Field, FieldType, Schema, column_of, empty_column
from dataflow.core.usercode import (
    CallContext,
    Drop,
    Fail,
    Retry,
    UserCallable,
    load_callable,
    signature_of,
)
from dataflow.core.visits import visits_of
from dataflow.expressions import Expression, parse_expression
from dataflow.state.api import BEFORE_ALL_MS, KeyedState, Timer, TimerClock
from dataflow.state.user import KeyedContext

__all__ = [
    "BEFORE_ALL_MS",
    "BEHIND",
    "CONSUMED",
    "MAX_ASYNC_CALLS",
    "Batch",
    "CallContext",
    "Codec",
    "CodecError",
    "Column",
    "ContractContext",
    "ContractError",
    "DataflowError",
    "Decoded",
    "Drop",
    "Duration",
    "Expression",
    "Fail",
    "Field",
    "FieldType",
    "KeyedContext",
    "KeyedState",
    "Lease",
    "ModelError",
    "ModelInfo",
    "Node",
    "NodeClass",
    "NodeContext",
    "NodeError",
    "NodeKind",
    "NotKnownYetError",
    "Out",
    "Retry",
    "Row",
    "Schema",
    "Settings",
    "Sides",
    "Table",
    "Tensor",
    "Timer",
    "TimerClock",
    "UserCallable",
    "Wait",
    "codec_of",
    "coerce_columns",
    "coerce_records",
    "column_of",
    "columns_of",
    "concatenate",
    "conform",
    "empty_column",
    "ids",
    "load_callable",
    "nearest",
    "node",
    "pack_row",
    "parse_expression",
    "signature_of",
    "table_of",
    "to_list",
    "unpack_row",
    "visits_of",
]  # fmt: skip

Config = TypeVar("Config", bound="Settings")


class Settings(BaseModel):
    """Base of a kind's settings (the `with` of a node): frozen, unknown names refused, docstring is documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def table_of(schema: Schema, columns: Mapping[str, Column]) -> Any:
    """The columns as a `pyarrow.Table`; see `codecs.tables.table_of`. pyarrow is imported on first use."""
    from dataflow.codecs import tables

    return tables.table_of(schema, columns)


def columns_of(schema: Schema, table: Any) -> dict[str, Column]:
    """The columns of `schema` from a `pyarrow.Table` or `RecordBatch`; see `codecs.tables.columns_of`."""
    from dataflow.codecs import tables

    return tables.columns_of(schema, table)


def codec_of(schema: Schema) -> Codec:
    """Records of a contract to bytes and back, by column: what state keeps of a record."""
    from dataflow.codecs import codec_for

    return codec_for("avro", schema)


class Tensor:
    """Annotation of a tensor field in a row type, e.g. ``x: Tensor["float32", 12]``. Read by lint, never run."""

    def __class_getitem__(cls, item: object) -> type[Any]:
        del item
        return object


class Lease(Protocol):
    """Something loaded that others may hold too. `close` gives it back; the last to do so lets it be freed."""

    @property
    def value(self) -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ModelInfo:
    """A model as declared and as read from its artifact: fields in and out with the free batch axis removed.

    `inputs`/`outputs` are empty when the artifact is not built yet; `artifact` may not exist then.
    `uncarryable` are outputs that no contract can carry: name and the reason, with the way out. `share(variant,
    load)` lends what `load` made, once per process for all holders of an equal variant; None: nothing is shared.
    """

    name: str
    artifact: Path
    inputs: Schema
    outputs: Schema
    options: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    uncarryable: Mapping[str, str] = field(default_factory=dict)
    share: Callable[[Hashable, Callable[[], Any]], Lease] | None = field(
        default=None, compare=False, repr=False
    )


class Table(Protocol):
    """A broadcast table, loaded to its end before the stage starts and kept current by the engine.

    Fields are those of the topic or file; the newest record of a key wins. Reads see one row or None.
    """

    @property
    def schema(self) -> Schema: ...

    def index(self, fields: Sequence[str]) -> Callable[[tuple[Any, ...]], tuple[Any, ...] | None]:
        """A function from the values of `fields` (in that order) to the row's values in schema order, or None.

        Call once in `open`; the function stays current. A value is compared as the column's Python scalar
        (datetime for timestamps, str, int, ...); of several rows with equal values the newest is found.
        """
        ...


@dataclass(frozen=True)
class ContractContext:
    """What a kind's `contract` may look at. Pure: user code is never run here.

    inputs   contract of each input port
    out      fields declared under the node's `out:`, None if there is no such declaration
    keep     input fields to keep beside the outputs: None if not declared, else names
    folder   the pipeline's folder, where user modules and files are
    """

    node: str
    inputs: Mapping[str, Schema]
    out: Schema | None
    keep: tuple[str, ...] | None
    folder: Path
    models: Callable[[str], ModelInfo]
    topics: Callable[[str], Schema]

    @property
    def input(self) -> Schema:
        """The contract of the only input port."""
        return self.inputs["in"]

    def kept(self) -> Schema:
        """The input fields named by `keep:`; raises ContractError at ("keep", i) for an unknown one."""
        for index, name in enumerate(self.keep or ()):
            if name not in self.input:
                raise ContractError(
                    f"keep: no field '{name}' in the input",
                    path=("keep", index),
                    hint=nearest(name, self.input.names),
                )
        return self.input.select(self.keep or ())


@dataclass(frozen=True)
class NodeContext:
    """What a running node is given at construction.

    `outputs` are the contracts that the columns it emits must meet, by port. `model(name)` gives a built artifact
    (it is built by then), `table(name)` a broadcast table by topic or file name, `random_seed` is stable per node.
    """

    pipeline: str
    node: str
    folder: Path
    inputs: Mapping[str, Schema]
    outputs: Mapping[str, Schema]
    model: Callable[[str], ModelInfo]
    table: Callable[[str], Table]
    out: Schema | None = None
    keep: tuple[str, ...] | None = None

    @property
    def input(self) -> Schema:
        return self.inputs["in"]

    @property
    def output(self) -> Schema:
        return self.outputs["out"]


@runtime_checkable
class Node(Protocol):
    """A running node. Single-threaded: one instance per stage and process, called with one batch at a time.

    `process` accounts for every row on `out`; an exception fails every row of the batch that is not yet accounted
    for, and takes nothing else down. `port` is the input port the batch arrived on.
    """

    def process(self, batch: Batch, out: Out, port: str = "in") -> None: ...


@dataclass(frozen=True)
class Sides:
    """What reached a gathering node of some fetched records: a batch for each input port that got any rows.

    For `Out`, rows are counted over all sides: row i of side `port` is ``starts[port] + i``.
    """

    batches: Mapping[str, Batch]
    starts: Mapping[str, int]

    @staticmethod
    def of(batches: Mapping[str, Batch]) -> Sides:
        starts, count = {}, 0
        for port, batch in batches.items():
            starts[port] = count
            count += len(batch)
        return Sides(batches, starts)


class NodeClass(Protocol):
    """The optional parts of a class under `node`; `process` and `__init__(settings, context)` are required.

    contract(settings, context)  staticmethod: the output contracts by port. Default: the input, on every port
    ports(settings)              staticmethod: output port names, where they depend on settings
    models(settings) / tables(settings)   staticmethods: names of models / broadcast topics or files needed
    open() / close()             acquire and release; open runs before the first batch, close after the last
    flush()                      called before offsets of processed rows are committed: everything taken in must be
                                 durable when it returns
    gathers                      class attribute, True for a node that takes all its inputs at once: in place of
                                 `process` it has ``gather(sides: Sides, out: Out)``, called with all there is of some
                                 fetched records (rows of equal `Row.source`) when everything upstream of it in the
                                 stage is over for them. Whatever is not there by then, retries included, was dropped,
                                 failed or sent another way
    repartition(settings)        staticmethod: (key fields, encoding, partitions): the node's records are keyed anew, and
                                 what comes next reads them from Kafka; "" and 0 leave encoding and partitions to the engine
    loop                         class attribute: the output port that may lead back to an earlier node. The kind bounds
                                 the rounds: `visits_of(row, "PIPELINE/NODE")` counts them. No other cycle is possible
    copartitioned                class attribute, True for a node whose inputs must lie on equal partitions
    commit_every_ms              class attribute: a stage with this node commits at most so often (default 100)
    keyed                        class attribute, True for a node with state and timers by record key (or attribute of the
                                 instance, with a staticmethod `keyed_for(settings, folder)` where settings decide). It is
                                 called with one more argument, the state of the node in the task at hand, and keeps
                                 nothing of a task elsewhere: ``process(batch, out, port, state: KeyedState)``,
                                 ``fire(timers: Sequence[Timer], out, state)`` when processing timers are due (`out` is
                                 over an empty batch), and ``drain(out, state)``, if it has it, when all inputs of a
                                 bounded run have ended
    remembers                    class attribute, True for a node that is not keyed and yet gives what depends on records
                                 before (a window in memory): a replay says that it began without them
    """

    def __init__(self, settings: Any, context: NodeContext) -> None: ...

    def process(self, batch: Batch, out: Out, port: str = "in") -> None: ...


@dataclass(frozen=True)
class NodeKind:
    """One registered kind: what `dataflow nodes show` prints and what the planner and the runtime use.

    pure     no effects outside: may be re-run and replayed. `logic.*` and `sink.*` are not
    source   has no input port; the engine runs it once as a feeder (source.file)
    """

    name: str
    settings: type[Settings]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    doc: str
    example: str
    pure: bool
    source: bool
    target: type[Any] | Callable[..., None]

    @property
    def gathers(self) -> bool:
        """Whether it takes all its inputs at once (see `NodeClass`)."""
        return bool(getattr(self.target, "gathers", False))

    def keyed_for(self, settings: Settings, folder: Path) -> bool:
        """Whether it keeps state by record key under these settings. `folder` is the pipeline's; user code is read."""
        decides = getattr(self.target, "keyed_for", None)
        if decides is not None:
            return bool(decides(settings, folder))
        return bool(getattr(self.target, "keyed", False))

    @property
    def names_inputs(self) -> bool:
        """Whether a pipeline gives the input ports their names: ``inputs=("*",)``, or ("in", "*") where one may be unnamed."""
        return "*" in self.inputs

    def ports(self, settings: Settings) -> tuple[str, ...]:
        """Output ports under these settings."""
        ports = getattr(self.target, "ports", None)
        return tuple(ports(settings)) if ports is not None else self.outputs

    def contract(self, settings: Settings, context: ContractContext) -> dict[str, Schema]:
        """Output contract of each port. Raises ContractError with a path into the node's declaration."""
        contract = getattr(self.target, "contract", None)
        if contract is not None:
            return dict(contract(settings, context))
        schema = context.out if context.out is not None else context.input
        return dict.fromkeys(self.ports(settings), schema)

    def models(self, settings: Settings) -> tuple[str, ...]:
        models = getattr(self.target, "models", None)
        return tuple(models(settings)) if models is not None else ()

    def tables(self, settings: Settings) -> tuple[str, ...]:
        tables = getattr(self.target, "tables", None)
        return tuple(tables(settings)) if tables is not None else ()

    def build(self, settings: Settings, context: NodeContext) -> Node:
        """Make a running node. The caller opens and closes it where it has `open`/`close`."""
        if isinstance(self.target, type):
            factory: Callable[..., Node] = self.target
            return factory(settings, context)
        return _FunctionNode(self.target, settings)


class _FunctionNode:
    """A plain function as a node."""

    def __init__(self, function: Callable[..., None], settings: Settings) -> None:
        self._function = function
        self._settings = settings

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        self._function(batch, out, self._settings)


KIND_ATTRIBUTE: Final = "__dataflow_kind__"
Target = TypeVar("Target", bound=Callable[..., Any])


class _Empty(Settings):
    """A kind without settings."""

    nothing: ClassVar[None] = None


def node(
    name: str,
    *,
    settings: type[Settings] = _Empty,
    inputs: Sequence[str] = ("in",),
    outputs: Sequence[str] = ("out",),
    example: str = "",
    pure: bool = True,
    source: bool = False,
) -> Callable[[Target], Target]:
    """Attach a `NodeKind` to a function ``(batch, out, settings)`` or a class (see `NodeClass`).

    `example` is a YAML pipeline (or several documents) that `dataflow nodes show` prints and a test plans and runs.
    Importing has no other effect: `Registry.scan` collects what is attached.
    """

    def attach(target: Target) -> Target:
        kind = NodeKind(
            name=name,
            settings=settings,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            doc=inspect.getdoc(target) or "",
            example=inspect.cleandoc(example),
            pure=pure,
            source=source,
            target=target,
        )
        setattr(target, KIND_ATTRIBUTE, kind)
        return target

    return attach
