"""Kinds of nodes: what their classes may have, how they are declared, and what the engine knows of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict

from dataflow.core.batch import Batch
from dataflow.core.outcomes import Out
from dataflow.core.schema import Schema
from dataflow.sdk.contexts import ContractContext, NodeContext

Config = TypeVar("Config", bound="Settings")


class Settings(BaseModel):
    """Base of a kind's settings (the `with` of a node): frozen, unknown names refused, docstring is documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


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
    apart                        class attribute, True for a gathering node that needs, for the result of a record, what
                                 has that record's id and no more: its sides may come of different stages. The engine
                                 then keeps what came first, and calls `gather` when the last is there, will not come, or
                                 the `wait` of its settings (ms or None) is over
    holds                        class attribute, True for a node that, where it keeps state, may let a record go on later
                                 than those fetched with it: what joins it with another side then waits for both
    family                       class attribute of such a node: the input port whose records are children of those on its
                                 other port, and are kept with them. It has ``expected(batch: Batch) -> Sequence[int]``
                                 then: how many children each record of the other port has. Its `late` setting ("drop",
                                 "fail") says what becomes of a child that comes after the time
    splits                       class attribute: the output port on which a node makes children, one or more of a record,
                                 and gives on another port each record itself
    repartition(settings)        staticmethod: (key fields, encoding, partitions): the node's records are keyed anew, and
                                 what comes next reads them from Kafka; "" and 0 leave encoding and partitions to the engine
    loop                         class attribute: the output port that may lead back to an earlier node. The kind bounds
                                 the rounds: `visits_of(row, "PIPELINE/NODE")` counts them. No other cycle is possible
    pairs_keys                   class attribute, True for a node that brings records of one key together over its ports: their
                                 keys must be equal bytes
    tombstones                   class attribute, a set of input ports: what is read there from Kafka without a value is a row,
                                 `Batch.deleted`. Elsewhere such a record is a dead letter
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
    outside                      class attribute, True for a node whose work is done by a process of its own, which reads
                                 the node's inputs from Kafka, as one member of a group, and writes its edge itself, at
                                 least once. In place of `process` it has ``command(place: AgentPlace) -> Sequence[str]``:
                                 what to run; `place` comes as one line of JSON on its standard input, whose end means stop
    codec                        class attribute: how an `outside` node's records are written, in and out
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

    @property
    def apart(self) -> bool:
        """Whether its sides may come of different stages (see `NodeClass`)."""
        return self.gathers and bool(getattr(self.target, "apart", False))

    @property
    def family(self) -> str:
        """The input port that has children of the records of the other one (see `NodeClass`); "" for none."""
        return str(getattr(self.target, "family", ""))

    @property
    def splits(self) -> str:
        """The output port on which it makes children (see `NodeClass`); "" for none."""
        return str(getattr(self.target, "splits", ""))

    @property
    def outside(self) -> bool:
        """Whether a process of its own does the work (see `NodeClass`)."""
        return bool(getattr(self.target, "outside", False))

    @property
    def codec(self) -> str:
        """The only codec that an `outside` node reads and writes; "" for any other."""
        return str(getattr(self.target, "codec", ""))

    def keyed_for(self, settings: Settings, folder: Path) -> bool:
        """Whether it keeps state by record key under these settings. `folder` is the pipeline's; user code is read."""
        decides = getattr(self.target, "keyed_for", None)
        if decides is not None:
            return bool(decides(settings, folder))
        return bool(getattr(self.target, "keyed", False))

    @property
    def holds(self) -> bool:
        """Whether, keeping state, it may let records go on later than they came."""
        return bool(getattr(self.target, "holds", False))

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
