"""`dataflow trace`: one request on every edge it reached."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflow.cli.context import bootstrap_option, project_option
from dataflow.cli.outside import cluster, pipe, tell

if TYPE_CHECKING:
    from dataflow.control.trace import Hop, Trace


@click.command()
@click.argument("record_id", metavar="ID")
@project_option
@bootstrap_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--show-private", is_flag=True, help="Show fields labelled private (in JSON).")
def trace(record_id: str, project: Path, bootstrap: str, form: str, show_private: bool) -> None:
    """Find the request or record with this ID on every edge: where, when, by which node and version. Exits 1 if nowhere."""
    from dataflow.control.trace import trace as search

    with cluster(project, bootstrap) as outside, pipe():
        found = search(
            outside.fabric, outside.plans, record_id, project=outside.project, show_private=show_private
        )
        if form == "json":
            import orjson

            click.echo(orjson.dumps(_document(found), default=_said, option=orjson.OPT_SERIALIZE_NUMPY))
        else:
            _print(found)
    if not found.hops:
        raise SystemExit(1)


def _print(found: Trace) -> None:
    if not found.hops:
        tell(
            f"{found.id}: no record of it is there any more, or not yet ({found.scanned:,} records looked at)"
        )
        return
    rows: list[tuple[str, ...]] = [("time", "after", "stream", "position", "node", "version", "status")]
    rows += [_row(hop) for hop in found.hops]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for hop in found.hops:
        if hop.reason:
            click.echo(f"{hop.kind}: {hop.reason}")
    for name in found.waiting:
        tell(f"{name} has not processed it yet")
    for name in found.ended:
        tell(f"{name} processed it and wrote nothing: it was dropped there, or is kept elsewhere")
    if not found.complete:
        tell(f"the search ended after {found.scanned:,} records: there may be more")


def _row(hop: Hop) -> tuple[str, ...]:
    record = hop.record
    moment = datetime.fromtimestamp(record.time_ms / 1_000, UTC).strftime("%H:%M:%S.%f")[:-3]
    status = hop.status + (f" (attempt {record.attempt})" if record.attempt else "")
    position = f"{record.topic}/{record.partition}/{record.offset}"
    return moment, f"+{hop.delta_ms} ms", ", ".join(hop.streams), position, hop.node, hop.version, status


def _document(found: Trace) -> dict[str, Any]:
    return {
        "id": found.id,
        "complete": found.complete,
        "waiting": list(found.waiting),
        "ended": list(found.ended),
        "hops": [
            {
                "kind": hop.kind,
                "streams": list(hop.streams),
                "topic": hop.record.topic,
                "partition": hop.record.partition,
                "offset": hop.record.offset,
                "time_ms": hop.record.time_ms,
                "delta_ms": hop.delta_ms,
                "id": hop.record.id,
                "parents": list(hop.record.parents),
                "attempt": hop.record.attempt,
                "pipeline": hop.pipeline,
                "version": hop.version,
                "node": hop.node,
                "status": hop.status,
                "reason": hop.reason,
                "value": hop.record.value if hop.kind == "record" else None,
            }
            for hop in found.hops
        ],
    }


def _said(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
