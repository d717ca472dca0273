"""`dataflow state`: what a node keeps for a key, read from its changelog without asking a worker."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from dataflow.cli.context import bootstrap_option, project_option
from dataflow.cli.outside import cluster, pipe, tell


@click.command()
@click.argument("pipeline")
@click.argument("node")
@click.argument("key")
@project_option
@bootstrap_option
@click.option("--raw", type=click.Choice(["hex", "utf8"]), help="KEY is the record key's bytes, so written.")
@click.option("--partition", type=click.IntRange(0), help="Where to look, if not where the key belongs.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), help="Default: table in a terminal, else json."
)
@click.option("--show-private", is_flag=True, help="Show state of nodes that read private fields.")
def state(
    pipeline: str,
    node: str,
    key: str,
    project: Path,
    bootstrap: str,
    raw: str | None,
    partition: int | None,
    form: str | None,
    show_private: bool,
) -> None:
    """Show the values and timers that a node keeps for a key, as committed.

    A key is written as its contract has it: N14228, 7, or '["N14228",7]' for several fields.
    """
    from dataflow.core.errors import DataflowError, nearest
    from dataflow.gateway.state_view import StateView, locate, private_fields

    with cluster(project, bootstrap) as outside, pipe():
        plan = outside.plans.get(pipeline)
        if plan is None:
            raise DataflowError(
                f"no pipeline '{pipeline}' is deployed", hint=nearest(pipeline, outside.plans)
            )
        place = locate(plan, node, key, raw=raw or "", partition=partition)
        hidden = private_fields(plan, node)
        if hidden and not show_private:
            raise DataflowError(
                f"node '{node}' reads private fields ({', '.join(hidden[:5])}): its state may hold them",
                hint="--show-private",
            )
        # Nobody waits behind us: a large changelog may take its time.
        view = StateView(outside.fabric, wait_s=600)
        try:
            document = {"pipeline": pipeline, **view.read(place, int(time.time() * 1_000))}
        finally:
            view.close()
    _show(document, form or ("table" if sys.stdout.isatty() else "json"))


def _show(document: dict[str, Any], form: str) -> None:
    import orjson

    if form == "json":
        click.echo(orjson.dumps(document))
        return
    rows = [
        (
            v["name"],
            orjson.dumps(v["value"]).decode(),
            f"until {_time(v['expires_ms'])}" if "expires_ms" in v else "",
        )
        for v in document["values"]
    ]
    rows += [(t["name"], f"timer at {_time(t['at_ms'])}", f"{t['clock']} time") for t in document["timers"]]
    width = max(len(name) for name, _, _ in rows)
    for name, said, more in rows:
        click.echo(f"{name.ljust(width)}  {said}{'  ' if more else ''}{more}")
    tell(f"{document['changelog']} [{document['partition']}], up to offset {document['offset']}")
    if document["cut"]:
        tell("there is more: this is the beginning")


def _time(unix_ms: int) -> str:
    try:
        return datetime.fromtimestamp(unix_ms / 1_000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{unix_ms} ms"
