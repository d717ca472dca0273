"""`source.file`: records from a CSV, Parquet or JSON lines file, paced by a rate or by their own times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field as Setting

from dataflow.sdk import (
    Column,
    ContractContext,
    ContractError,
    DataflowError,
    NodeContext,
    Schema,
    Settings,
    nearest,
    node,
)

from ._file_readers import FORMATS, Chunk, read_chunks

EXAMPLE = """
# file: readings.csv
#| sensor,at,value
#| a,2024-05-01T12:00:00Z,1.5
#| b,2024-05-01T12:00:02Z,2.5
kind: Topic
name: readings
fields: {sensor: string, at: {type: timestamp, event_time: true}, value: float32}
---
kind: Pipeline
name: replay
nodes:
  readings: {use: source.file, with: {path: readings.csv, topic: readings, pace_by: at, speed: 60}}
"""

_SUFFIXES: Final[Mapping[str, str]] = {
    ".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip


# A clock's rounding must not make a caller wait for a record that it has waited for.
_TOLERANCE_S: Final = 1e-6


class FileSource(Settings):
    """Which file, what is in it, and how fast it is sent."""

    path: str = Setting(min_length=1, description="The file, relative to the pipeline's folder.")
    topic: str | None = Setting(
        default=None,
        description="A topic whose contract the records have. Or declare the fields under `out:`.",
    )
    format: Literal["csv", "parquet", "jsonl"] | None = Setting(
        default=None, description="Default: by the file's extension."
    )
    rate: float | None = Setting(
        default=None, gt=0, description="Records per second. Default: as fast as they go."
    )
    pace_by: str | None = Setting(
        default=None, description="A timestamp field: records are sent as far apart as these times are."
    )
    speed: float = Setting(
        default=1.0, gt=0, description="With `pace_by`: how much faster than the times say."
    )
    on_error: Literal["stop", "skip"] = Setting(
        default="stop",
        description="What a record that does not fit its contract does: stop the source, or be skipped.",
    )


@node("source.file", settings=FileSource, inputs=(), source=True, example=EXAMPLE)
class SourceFile:
    """Read records from a file, each once, in order, at a rate or paced by their own times.

    Fields of the contract are found by name, others are ignored; a nullable field may lack. CSV holds texts: lists,
    records and tensors as JSON, nothing between two commas as null where null is allowed.

    How the engine runs it (nothing here reads a clock, sleeps, or knows of Kafka)::

        source.open()
        while True:
            count = source.due(now_s)                    # records that may be sent by now
            if count == 0:
                wait(source.wait_s(now_s))               # seconds until the next is due
            elif (part := source.read(min(count, most))) is None:
                break                                    # the end
            else:
                columns, count = part                    # columns of the contract, `count` rows
        source.close()

    `now_s` is any clock in seconds that does not go back; the first `due` starts the pace. `skip(n)`, before the
    first `due`, passes over what an earlier run has sent; `position` is where the source stands, in records.
    """

    def __init__(self, settings: FileSource, context: NodeContext) -> None:
        self._settings = settings
        self._schema = context.output
        self._path = context.folder / settings.path
        self._chunks: Iterator[Chunk] = iter(())
        self._chunk = Chunk({}, 0, 0)
        self._due_s: npt.NDArray[np.float64] | None = None
        self._at = 0
        self._ended = False
        self._started: tuple[float, float] | None = None
        self._origin: np.datetime64 | None = None
        self._latest_s = -np.inf
        self.position = 0
        self.skipped = 0

    @staticmethod
    def contract(settings: FileSource, context: ContractContext) -> dict[str, Schema]:
        _format(settings)
        schema = _declared(settings, context)
        if settings.pace_by is not None:
            path = ("with", "pace_by")
            if settings.pace_by not in schema:
                raise ContractError(
                    f"pace_by: no field '{settings.pace_by}'",
                    path=path,
                    hint=nearest(settings.pace_by, schema.names),
                )
            kind = schema[settings.pace_by].type
            if kind.kind not in {"timestamp", "date"}:
                raise ContractError(
                    f"pace_by: '{settings.pace_by}' is {kind.describe()}, not a timestamp", path=path
                )
            if settings.rate is not None:
                raise ContractError(
                    "rate and pace_by: a source has one pace", path=path, hint="remove one of them"
                )
        elif settings.speed != 1.0:
            raise ContractError("speed: has no effect without pace_by", path=("with", "speed"))
        return {"out": schema}

    def open(self) -> None:
        """Open the file and read its first records. Raises NodeError for no file, or one without the fields."""
        self._chunks = read_chunks(self._path, _format(self._settings), self._schema, self._settings.on_error)
        self._advance()

    def close(self) -> None:
        self._chunks = iter(())

    def due(self, now_s: float) -> int:
        """How many records may be read by `now_s`: at least one if any is due, looking no further than those in hand.

        At the end it is 1, so that `read` is called and says so.
        """
        if self._ended:
            return 1
        left = self._chunk.count - self._at
        elapsed = self._elapsed(now_s)
        if self._due_s is not None:
            return int(np.searchsorted(self._due_s[self._at :], elapsed + _TOLERANCE_S, side="right"))
        if self._settings.rate is not None:
            return max(0, min(left, int((elapsed + _TOLERANCE_S) * self._settings.rate) + 1 - self.position))
        return left

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next record is due; 0 if one is."""
        if self.due(now_s):
            return 0.0
        elapsed = self._elapsed(now_s)
        if self._due_s is not None:
            return float(self._due_s[self._at]) - elapsed
        assert self._settings.rate is not None, "without a pace all is due"
        return self.position / self._settings.rate - elapsed

    def read(self, max_records: int) -> tuple[Mapping[str, Column], int] | None:
        """The next records, at most `max_records`, due or not; None at the end.

        Raises NodeError naming the file and the record for what does not fit the contract, unless `on_error: skip`.
        """
        if self._ended:
            return None
        start = self._at
        end = min(start + max_records, self._chunk.count)
        columns = {name: column[start:end] for name, column in self._chunk.columns.items()}
        self._at = end
        self.position += end - start
        if end == self._chunk.count:
            self._advance()
        return columns, end - start

    def skip(self, records: int) -> None:
        """Pass over the next records; fewer if the file ends before."""
        target = self.position + records
        while self.position < target and self.read(target - self.position) is not None:
            pass

    def _advance(self) -> None:
        """Take the next chunk that has records in hand."""
        while True:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._ended = True
                return
            self.skipped += chunk.skipped
            if chunk.count:
                break
        self._chunk, self._at = chunk, 0
        if self._settings.pace_by is not None:
            self._due_s = self._times(chunk.columns[self._settings.pace_by])
            self._latest_s = float(self._due_s[-1])

    def _times(self, column: Column) -> npt.NDArray[np.float64]:
        """Seconds of play after the file's first time. A record out of order or without a time is due with the last."""
        times = column.astype("datetime64[us]")
        known = ~np.isnat(times)
        if self._origin is None and known.any():
            self._origin = times[known][0]
        since = times - (self._origin if self._origin is not None else times)
        seconds = np.where(known, since.view(np.int64) / 1e6 / self._settings.speed, -np.inf)
        due: npt.NDArray[np.float64] = np.maximum(np.maximum.accumulate(seconds), self._latest_s)
        return due

    def _elapsed(self, now_s: float) -> float:
        """Now on the axis on which records are due: that of their times, or seconds since record 0."""
        if self._started is None:
            if self._due_s is not None:
                base = max(0.0, float(self._due_s[self._at]))
            else:
                base = self.position / (self._settings.rate or 1.0)
            self._started = (now_s, base)
        return now_s - self._started[0] + self._started[1]


def _declared(settings: FileSource, context: ContractContext) -> Schema:
    if context.out is not None and settings.topic is not None:
        raise ContractError(
            "out: and topic: both say what is in the file", path=("with", "topic"), hint="remove one"
        )
    if context.out is not None:
        return context.out
    if settings.topic is None:
        raise ContractError(
            f"what is in '{settings.path}' is not declared",
            path=("with", "path"),
            hint="name a topic with these fields under with: {topic: ...}, or declare them under out:",
        )
    try:
        return context.topics(settings.topic)
    except DataflowError as error:
        raise ContractError(error.message, path=("with", "topic"), hint=error.hint) from None


def _format(settings: FileSource) -> str:
    if settings.format is not None:
        return settings.format
    suffix = Path(settings.path).suffix.lower()
    found = _SUFFIXES.get(suffix)
    if found is None:
        raise ContractError(
            f"path: '{settings.path}' has no known extension",
            path=("with", "path"),
            hint=f"{nearest(suffix, _SUFFIXES)}, or say format: {' | '.join(FORMATS)}",
        )
    return found
