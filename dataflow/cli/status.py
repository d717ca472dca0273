"""`dataflow status`: ask a running gateway for its graph."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import click

from dataflow.cli.context import project_option
from dataflow.core.errors import DataflowError

# What `dataflow up` writes below the project's `.dataflow/` while it runs: {"pid", "gateway", "bootstrap"}.
STATE_FILE: Final = "up.json"


@click.command()
@project_option
@click.option(
    "--url", default=None, help="The gateway to ask. Default: that of this project's `dataflow up`."
)
@click.option("--live", is_flag=True, help="Keep it current until Ctrl-C.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
def status(project: Path, url: str | None, live: bool, form: str) -> None:
    """Show the running graph: rates, lag and latency of every stage, node and edge."""
    from rich.console import Console

    from dataflow.cli.status_table import render, watch_until_interrupted

    address = url or _running_gateway(project)
    if form == "json":
        click.echo(json.dumps(_fetch_graph(address), indent=2))
    elif live:
        watch_until_interrupted(lambda: _fetch_graph(address))
    else:
        Console().print(render(_fetch_graph(address)))


def _running_gateway(folder: Path) -> str:
    path = folder / ".dataflow" / STATE_FILE
    try:
        return str(json.loads(path.read_text())["gateway"])
    except (OSError, ValueError, KeyError):
        raise DataflowError(
            f"nothing runs in '{folder}'", hint="start `dataflow up`, or name a gateway with --url"
        ) from None


def _fetch_graph(url: str) -> dict[str, Any]:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{url}/graph")  # noqa: S310  (the user's own address)
    token = os.environ.get("DATAFLOW_TOKEN")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            document: dict[str, Any] = json.load(answer)
            return document
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DataflowError(f"asking {url}/graph: {error}", hint="is `dataflow up` running?") from error
