"""A pipeline as its callers see it: what goes in, where it is written, and what comes back from which edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Final

import numpy as np

from dataflow.codecs import Codec, codec_for
from dataflow.codecs.keys import check_key, encode_keys
from dataflow.core.errors import CodecError, GatewayError, PlanError
from dataflow.core.inprocess import Reply
from dataflow.core.schema import Column, Field, Schema
from dataflow.planner.plan import EdgePlan, Plan

# Rows of a request that go to one partition one after the other: a small request stays one batch of its model, a
# large one is spread over the tasks.
ROWS_IN_A_RUN: Final = 64


@dataclass(slots=True)
class PipelineDoor:
    """Built once per plan. `answer` is the union of the answer edges' fields, `codecs` decode each edge's records."""

    plan: Plan
    request: Schema
    codec: Codec
    topic: str
    partitions: int
    key: tuple[str, ...]
    key_encoding: str
    answer: Schema
    codecs: Mapping[str, Codec]
    turns: count[int]

    @property
    def name(self) -> str:
        return self.plan.pipeline

    @property
    def version(self) -> str:
        return self.plan.version

    @staticmethod
    def of(plan: Plan) -> PipelineDoor:
        """Raises PlanError for a pipeline without an answer, or whose answers disagree on a field's type."""
        if plan.answer is None:
            raise PlanError(f"pipeline '{plan.pipeline}' has no answer", hint="declare `answer:`")
        entrance = plan.edges[plan.answer.input]
        check_key(entrance.schema, entrance.key)
        edges = [plan.edges[name] for name in plan.answer.edges]
        topic = plan.answer.requests_topic
        planned = plan.topics.get(topic)
        return PipelineDoor(
            plan,
            entrance.schema,
            codec_for(entrance.codec, entrance.schema),
            topic,
            planned.partitions if planned is not None else entrance.partitions,
            entrance.key,
            entrance.key_encoding,
            union(plan.pipeline, edges),
            {edge.name: codec_for(edge.codec, edge.schema) for edge in edges},
            count(),
        )

    def values(self, columns: Mapping[str, Column], rows: int) -> list[bytes | None]:
        """The payloads of a request's records.

        Raises GatewayError: 400 for a row that the codec cannot carry, 413 for one too large for the contract.
        """
        encoded = self.codec.encode(columns, rows)
        if encoded.failed:
            row, error = encoded.failed[0]
            raise GatewayError(400, f"row {row}: {error.message}", hint=error.hint)
        for row, value in enumerate(encoded.values):
            if value is not None and len(value) > self.max_record_bytes:
                raise GatewayError(
                    413,
                    f"row {row}: the record has {len(value)} bytes, valid: up to {self.max_record_bytes}",
                    hint="`max_record_bytes` of the input's topic says so",
                )
        return encoded.values

    @property
    def max_record_bytes(self) -> int:
        assert self.plan.answer is not None, "checked by `of`"
        return self.plan.edges[self.plan.answer.input].max_record_bytes

    def keys(self, columns: Mapping[str, Column], rows: int) -> list[bytes | None]:
        return encode_keys(self.request, self.key, columns, rows, self.key_encoding)

    def partition_of(self, turn: int, row: int) -> int:
        """Where a row without a key goes; `turn` is one `next(door.turns)` per request."""
        return (turn + row // ROWS_IN_A_RUN) % self.partitions

    def columns(self, replies: Sequence[Reply]) -> dict[str, Column]:
        """The columns of `answer` from one good reply per row. Raises GatewayError 500 for a reply of no use."""
        first = replies[0].edge
        if all(reply.edge == first for reply in replies):
            columns = self.decoded(first, replies)
            if len(columns) == len(self.answer):
                return columns
            return self._scattered([(columns, range(len(replies)))], len(replies))
        rows_of: dict[str, list[int]] = {}
        for row, reply in enumerate(replies):
            rows_of.setdefault(reply.edge, []).append(row)
        parts = [(self.decoded(e, [replies[r] for r in rows]), rows) for e, rows in rows_of.items()]
        return self._scattered(parts, len(replies))

    def columns_with_gaps(self, replies: Sequence[Reply | None]) -> dict[str, Column]:
        """As `columns`, from one good reply per row or None: such rows are null, 0 or false."""
        rows_of: dict[str, list[int]] = {}
        for row, reply in enumerate(replies):
            if reply is not None:
                rows_of.setdefault(reply.edge, []).append(row)
        parts = [
            (self.decoded(e, [r for r in map(replies.__getitem__, rows) if r is not None]), rows)
            for e, rows in rows_of.items()
        ]
        return self._scattered(parts, len(replies))

    def decoded(self, edge: str, replies: Sequence[Reply]) -> dict[str, Column]:
        """The columns of good replies, all of one edge. Raises GatewayError 500, 503."""
        codec = self.codecs.get(edge)
        if codec is None:
            raise GatewayError(
                500, f"an answer came from edge '{edge}', which is none of this pipeline's version"
            )
        if any(reply.schema not in (b"", codec.fingerprint) for reply in replies):
            # A worker of another version of the plan answered: its bytes mean something else.
            raise GatewayError(503, f"the contract of edge '{edge}' is being changed", hint="try again")
        decoded = codec.decode([reply.value for reply in replies])
        if decoded.failed:
            cause: CodecError = decoded.failed[0][1]
            raise GatewayError(500, f"an answer of edge '{edge}' does not decode: {cause.message}")
        return decoded.columns

    def _scattered(
        self, parts: Sequence[tuple[Mapping[str, Column], Sequence[int]]], rows: int
    ) -> dict[str, Column]:
        """One column per field of `answer`, null where a row's edge has no such field."""
        made: dict[str, Column] = {}
        for declared in self.answer:
            dtype = declared.type.column_dtype
            whole = np.full(rows, np.datetime64("NaT") if dtype.kind == "M" else None, dtype=_room(declared))
            if dtype.kind not in "OM":
                whole = np.zeros((rows, *declared.type.shape), dtype=dtype)
            for columns, at in parts:
                column = columns.get(declared.name)
                if column is None:
                    continue
                if whole.dtype.kind == "O" and column.ndim > 1:
                    for row, tensor in zip(at, column, strict=True):
                        whole[row] = tensor
                else:
                    whole[list(at)] = column if whole.dtype.kind != "O" else column.astype(object)
            made[declared.name] = whole
        return made


def _room(declared: Field) -> np.dtype[np.object_] | np.dtype[np.datetime64]:
    dtype = declared.type.column_dtype
    return dtype if dtype.kind == "M" else np.dtype(object)


def union(pipeline: str, edges: Sequence[EdgePlan]) -> Schema:
    """All fields of the edges; one that some edge lacks is nullable. Raises PlanError where types differ."""
    found: dict[str, Field] = {}
    origin: dict[str, str] = {}
    for edge in edges:
        for declared in edge.schema:
            known = found.setdefault(declared.name, declared)
            first = origin.setdefault(declared.name, edge.name)
            if replace(known.type, nullable=True) != replace(declared.type, nullable=True):
                raise PlanError(
                    f"pipeline '{pipeline}': answers '{first}' and '{edge.name}' disagree on field "
                    f"'{declared.name}': {known.type.describe()} and {declared.type.describe()}",
                    hint="rename one of them with transform.select",
                )
            if declared.type.nullable:
                found[declared.name] = replace(known, type=declared.type)
    for name, declared in found.items():
        if not all(name in edge.schema for edge in edges):
            found[name] = replace(declared, type=replace(declared.type, nullable=True))
    return Schema(tuple(found.values()))
