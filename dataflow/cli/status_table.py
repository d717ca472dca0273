"""The running graph as tables, once or kept current."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

REFRESH_S: Final = 1.0
_STATES: Final = {
    "running": "green", "starting": "yellow", "restoring": "yellow", "restarting": "red", "failed": "bold red",
}  # fmt: skip


def render(document: Mapping[str, Any]) -> RenderableType:
    """One block a pipeline: its requests, stages, then nodes with what they write."""
    return Group(*(_pipeline(p) for p in document["pipelines"]))


def watch_until_interrupted(fetch: Callable[[], Mapping[str, Any]]) -> None:
    """Redraw once a second until Ctrl-C."""
    try:
        with Live(render(fetch()), console=Console(), auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(REFRESH_S)
                live.update(render(fetch()), refresh=True)
    except KeyboardInterrupt:
        return


def _pipeline(pipeline: Mapping[str, Any]) -> RenderableType:
    requests = pipeline["requests"]
    answered = ", ".join(f"{n} x {s}" for s, n in sorted(requests["answered"].items())) or "none"
    head = Text.assemble(
        (pipeline["name"], "bold"),
        f" {pipeline['version']}  requests: {answered}  {requests['rate']:g}/s  mean {_time(requests['seconds_mean'])}",
    )
    stages = Table(
        "stage", "state", "reads", _right("records"), _right("handed over"), _right("rate/s"), _right("lag"),
        _right("dead letters"),
    )  # fmt: skip
    for stage in pipeline["stages"]:
        lag = str(stage["lag"]) if stage["lag"] >= 0 else "?"
        state = Text(
            stage["state"] + (f": {stage['error']}" if stage["error"] else ""),
            _STATES.get(stage["state"], ""),
        )
        stages.add_row(
            stage["name"], state, ", ".join(stage["reads"]), str(stage["records"]), _share(stage), f"{stage['rate']:g}", lag,
            str(stage["dead_letters"]),
        )  # fmt: skip
    nodes = Table(
        "node",
        "kind",
        _right("records"),
        _right("rate/s"),
        _right("batch"),
        _right("per batch"),
        "dropped, failed",
    )
    for node in pipeline["nodes"]:
        lost = {**node.get("dropped", {}), **node.get("failed", {})}
        nodes.add_row(
            node["name"], node["kind"], str(node.get("records", 0)), f"{node['rate']:g}",
            f"{node.get('batch_mean', 0):.1f}", _time(node.get("seconds_mean", 0.0)),
            ", ".join(f"{n} x {reason}" for reason, n in lost.items()),
        )  # fmt: skip
    edges = Table("edge", "topics", _right("records"), _right("rate/s"), _right("bytes"))
    for edge in pipeline["edges"]:
        if edge["node"]:
            edges.add_row(
                edge["name"],
                ", ".join(edge["topics"]),
                str(edge["records"]),
                f"{edge['rate']:g}",
                str(edge["bytes"]),
            )
    return Group(head, stages, nodes, edges, Text(""))


def _right(title: str) -> Any:
    from rich.table import Column

    return Column(title, justify="right")


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _share(stage: Mapping[str, Any]) -> str:
    """Of the stage's records, requests that were handed to it in memory; nothing where none was."""
    handed = stage.get("handed", 0)
    return f"{handed / stage['records']:.0%}" if handed else ""
