"""`dataflow tap`: any stream, from anywhere in it, as a table, JSON lines, bytes or a Parquet file."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dataflow.cli.context import bootstrap_option, project_option
from dataflow.cli.outside import cluster, pipe, tell

if TYPE_CHECKING:
    from dataflow.control.records import TapRecord
    from dataflow.control.streams import EdgeReader

# Rows of a Parquet row group, and how long a follower's records wait for one.
ROW_GROUP_RECORDS: Final = 5_000
_CELL_WIDTH: Final = 32


@click.command()
@click.argument("stream", metavar="PIPELINE.EDGE|topic:NAME")
@project_option
@bootstrap_option
@click.option(
    "--from", "begin", metavar="START",
    help="earliest, latest, offset:N, id:ID, a time (2024-05-01T12:00:00Z) or how long ago (-5m). Default: latest.",
)  # fmt: skip
@click.option(
    "--follow/--no-follow", default=None,
    help="Go on as records come. Default: yes when starting at the latest, else stop at the present end.",
)  # fmt: skip
@click.option("--where", default="", metavar="EXPR", help="Only records for which this is true.")
@click.option("--id", "record_id", default="", help="Only what is, derives from or answers this id.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many records.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "raw"]),
    help="Default: table in a terminal, else json.",
)
@click.option(
    "--to", type=click.Path(dir_okay=False), help="Write the values to this file (Parquet, CSV, JSON lines)."
)
@click.option("--show-private", is_flag=True, help="Show fields labelled private.")
def tap(
    stream: str,
    project: Path,
    bootstrap: str,
    begin: str | None,
    follow: bool | None,
    where: str,
    record_id: str,
    limit: int | None,
    form: str | None,
    to: str | None,
    show_private: bool,
) -> None:
    """Read any edge of a pipeline, or a topic, without disturbing anybody."""
    from dataflow.control.starts import FROM_LATEST, parse_start, start_of_id
    from dataflow.control.streams import EdgeReader, find_stream

    start = FROM_LATEST
    if begin is not None:
        start = parse_start(begin, int(time.time() * 1000))
    elif record_id:
        start = start_of_id(record_id)
    with cluster(project, bootstrap) as outside, pipe():
        found = find_stream(stream, outside.plans, outside.project)
        reader = EdgeReader(
            outside.fabric,
            found,
            start=start,
            follow=start == FROM_LATEST if follow is None else follow,
            where=where,
            record_id=record_id,
            limit=limit,
            show_private=show_private,
        )
        if to is not None:
            _to_file(reader, to)
        else:
            _show(reader, form or ("table" if sys.stdout.isatty() else "json"), show_private=show_private)


def _show(reader: EdgeReader, form: str, *, show_private: bool) -> None:
    if form == "raw" and reader.stream.is_private and not show_private:
        from dataflow.core.errors import DataflowError

        raise DataflowError(
            f"'{reader.stream.name}' has private fields: its bytes show them", hint="--show-private"
        )
    write = sys.stdout.buffer.write
    said = {"table": _table, "json": _json, "raw": _raw}[form](reader)
    for lines in said:
        write(lines)
        sys.stdout.buffer.flush()


def _raw(reader: EdgeReader) -> Iterator[bytes]:
    for batch in reader.batches():
        yield b"".join((record.wire or b"") + b"\n" for record in batch)


def _json(reader: EdgeReader) -> Iterator[bytes]:
    import orjson

    from dataflow.control.records import jsonable_records

    for batch in reader.batches():
        documents = jsonable_records(reader.schema, batch, reader.stream)
        yield b"".join(orjson.dumps(document) + b"\n" for document in documents)


def _table(reader: EdgeReader) -> Iterator[bytes]:
    """Aligned text; the first records decide how wide a column is. What does not decode goes to standard error."""
    from dataflow.control.records import jsonable_records

    names = ["time", "position", "key", *reader.schema.names]
    widths: list[int] = []
    line_width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for batch in reader.batches():
        documents = jsonable_records(reader.schema, batch, reader.stream)
        rows = [_row(d) for d in documents if d["value"] is not None]
        for document in documents:
            if document["value"] is None:
                tell(
                    f"{document['topic']}/{document['partition']}/{document['offset']}: {document.get('error')}"
                )
        if not rows:
            continue
        text = b""
        if not widths:
            widths = [min(max(map(len, column)), _CELL_WIDTH) for column in zip(names, *rows, strict=True)]
            text = _line(names, widths, line_width)
        yield text + b"".join(_line(row, widths, line_width) for row in rows)


def _row(document: dict[str, Any]) -> list[str]:
    time_text = datetime.fromtimestamp(document["time_ms"] / 1_000, UTC).strftime("%H:%M:%S.%f")[:-3]
    position = f"{document['partition']}/{document['offset']}"
    return [time_text, position, _cell(document["key"]), *(_cell(v) for v in document["value"].values())]


def _cell(value: Any) -> str:
    import orjson

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if text.isprintable() else repr(text)[1:-1]


def _line(cells: Sequence[str], widths: Sequence[int], line_width: int | None) -> bytes:
    cut = [c if len(c) <= w else c[: max(w - 1, 0)] + "…" for c, w in zip(cells, widths, strict=True)]
    text = "  ".join(c.ljust(w) for c, w in zip(cut, widths, strict=True)).rstrip()
    return (text[:line_width] + "\n").encode()


def _to_file(reader: EdgeReader, path: str) -> None:
    from dataflow.control.files import FileWriter
    from dataflow.control.records import columns_of_records

    held: list[TapRecord] = []
    bad = 0
    with FileWriter(path, reader.schema) as writer:
        flush: Callable[[], None] = lambda: writer.write(*columns_of_records(reader.schema, held))  # noqa: E731
        try:
            for batch in reader.batches():
                for record in batch:
                    if record.value is None:
                        bad += 1
                        tell(f"{record.topic}/{record.partition}/{record.offset}: {record.error}")
                    else:
                        held.append(record)
                if len(held) >= ROW_GROUP_RECORDS or writer.form != "parquet":
                    flush()
                    held.clear()
        finally:
            flush()
            said = f", {bad} did not decode" if bad else ""
            tell(f"{path}: {writer.rows} records{said}")
