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

from collections.abc import Mapping
from typing import Any

from dataflow.codecs.base import Codec, Decoded
from dataflow.codecs.values import coerce_columns, coerce_records, conform
from dataflow.core import headers, ids
from dataflow.core.agents import AgentPlace
from dataflow.core.batch import Batch, Row, concatenate, pack_row, to_list, unpack_row
from dataflow.core.durations import Duration, Wait
from dataflow.core.errors import (
    CodecError,
    ContractError,
    DataflowError,
    ModelError,
    NodeBrokenError,
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
from dataflow.sdk.contexts import ContractContext, Lease, ModelInfo, NodeContext, Table
from dataflow.sdk.kinds import Node, NodeClass, NodeKind, Settings, Sides, node
from dataflow.state.api import BEFORE_ALL_MS, KeyedState, Timer, TimerClock
from dataflow.state.user import KeyedContext

__all__ = [
    "BEFORE_ALL_MS",
    "BEHIND",
    "CONSUMED",
    "MAX_ASYNC_CALLS",
    "AgentPlace",
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
    "NodeBrokenError",
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
    "headers",
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
