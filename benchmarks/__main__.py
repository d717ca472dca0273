"""`python -m benchmarks NAME [--quick]`: the last line printed is the result as JSON. `report` writes the page of all."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import click

from benchmarks import (
    guarantees,
    join,
    many_pipelines,
    memory,
    onnx_compute,
    onnx_model,
    passthrough,
    passthrough_peers,
    records,
    state,
    sync_plain,
)
from benchmarks.cluster import Cluster, started
from benchmarks.page import PAGE, page
from benchmarks.report import RESULTS, BenchmarkError, Outcome, save, tell
from benchmarks.servers import committed, five_nodes, open_loop, rf3, sync, tensors


class Run(Protocol):
    def __call__(self, cluster: Cluster, *, quick: bool) -> Outcome: ...


BENCHMARKS: Final[dict[str, Run]] = {
    "passthrough": passthrough.run,
    "sync-plain": sync_plain.run,
    "onnx": onnx_model.run,
    "onnx-compute": onnx_compute.run,
    "memory": memory.run,
    "guarantees": guarantees.run,
    "state": state.run,
    "join": join.run,
    "sync-durable": sync.run_durable,
    "sync-eager": sync.run_eager,
    "sync-committed": committed.run,
    "sync-rf3": rf3.run,
    "sync-binary": tensors.run_binary,
    "sync-grpc": tensors.run_grpc,
    "five-nodes": five_nodes.run,
    "open-loop": open_loop.run,
    "many-pipelines": many_pipelines.run,
    "passthrough-peers": passthrough_peers.run,
    "records": records.run,
}


def measure(name: str, *, quick: bool, results: Path = RESULTS, say: Callable[[str], None] = print) -> bool:
    """Run one benchmark on a broker of its own; whether it holds. Raises BenchmarkError if it measured nothing."""
    with started() as cluster:
        outcome = BENCHMARKS[name](cluster, quick=quick)
    tell(f"raw numbers in {save(outcome, results, quick=quick)}")
    say(outcome.result.line())
    return outcome.result.holds


@click.command()
@click.argument("name", type=click.Choice([*BENCHMARKS, "all", "report"]))
@click.option("--quick", is_flag=True, help="Few records and one pair: does it run, not how fast is it.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    help="Folder for the raw numbers.",
)
@click.option(
    "--page",
    "page_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=PAGE,
    help="Where `report`, and `all` at its end, write what the raw numbers say.",
)
def main(name: str, quick: bool, results: Path, page_path: Path) -> None:
    """Measure NAME, or write the page of all results. Exit code 1 when one failed to measure; a goal that is missed is
    told, not an error."""
    # As Ctrl-C does: what was started here is stopped, not left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failed = False
    for each in BENCHMARKS if name == "all" else () if name == "report" else (name,):
        try:
            measure(each, quick=quick, results=results, say=click.echo)
        except BenchmarkError as error:
            tell(f"Error: {each}: {error}")
            failed = True
    if name == "report" or (name == "all" and not quick):
        page_path.write_text(page(results, BENCHMARKS))
        tell(f"written: {page_path}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
