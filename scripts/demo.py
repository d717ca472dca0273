"""The flagship on a real Kafka broker, told step by step: `make demo`. Each step checks itself.

Exits 0 only if everything that is told really happened; 1, with what did not, otherwise. `--keep` leaves it running.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataflow.broker import Broker, BrokerSettings
from dataflow.broker.jars import Progress
from dataflow.core.errors import DataflowError
from pipelines.flight_delay import alarms, data
from scripts import _flights
from scripts._ask import Asked, Door, ask_digits, ask_flights
from scripts._flights import Flights
from scripts._stage import COMMAND, PIPELINE, ROOT, WORK, DemoError, Output, Stage, check, child
from scripts._watch import replay

SHUFFLES = 10
TAPPED = 3
WIDTH = 120
LAST_LINES = 20
EDGES_OF_A_LATE_FLIGHT = frozenset(
    {"weather", "plane", "features", "predict", "triage.late", "rebook", "crew"}
)


def set_up(stage: Stage) -> tuple[data.Year, dict[str, Any]]:
    stage.step(
        "Set-up", "Every departure from New York City in 2013, hourly weather and planes: real data, CC0."
    )
    year, files = _flights.prepare(WORK / "data")
    check(len(year.departures) > 300_000, "the data of the year are not complete")
    stage.done(
        f"{len(year.departures):,} departures, {len(year.weather):,} hours of weather, {len(year.planes):,} planes"
    )
    stage.run("lint", show=5)
    return year, files


def train_models(stage: Stage) -> None:
    stage.step(
        "Training",
        "`build:` in pipeline.yaml says how; it runs when the model or what makes it is not there yet.",
    )
    stage.run("model", "build", show=0)
    metrics = json.loads((ROOT / "pipelines" / "flight_delay" / "metrics.json").read_text())
    asked = {
        f"months {', '.join(map(str, metrics['held out months']))}, held out": metrics["errors"],
        "last quarter, trained before it": metrics["errors in the last quarter, trained before it"],
    }
    table = Table(box=None, padding=(0, 2), title="mean absolute error in minutes", title_justify="left")
    table.add_column("")
    for name in metrics["errors"]:
        table.add_column(name, justify="right")
    for label, errors in asked.items():
        table.add_row(label, *(f"{error['mae']:.2f}" for error in errors.values()))
        others = [error["mae"] for name, error in errors.items() if name != "model"]
        check(errors["model"]["mae"] < min(others), f"{label}: the model is no better than no model")
    stage.console.print(table)
    stage.done(
        f"better than every answer that needs no model, on {metrics['rows']['held out']:,} flights it never saw"
    )
    said = stage.run("test", show=20)
    check(" passed in " in said and "failed" not in said, "an inline test failed")


def start_broker(stage: Stage, stack: ExitStack) -> None:
    stage.step(
        "Broker",
        "Apache Kafka 4.3.0, started from Python alone; its jars and its Java come as packages, once.",
    )
    with stage.console.status("starting") as shown:

        def report(progress: Progress) -> None:
            part = f" {progress.done / progress.total:.0%}" if progress.total else ""
            shown.update(escape(progress.step) + part)

        broker = Broker(BrokerSettings(data=WORK / "broker", ephemeral=True), on_progress=report)
        broker.start()
    stack.callback(broker.stop)
    stage.bootstrap = broker.bootstrap
    stage.done(f"listening on {stage.bootstrap}; it ends with the demo")


def start_pipelines(stage: Stage, stack: ExitStack, files: dict[str, Any]) -> None:
    stage.step(
        "Tables, then the pipelines",
        "Tables are compacted topics; they are loaded to the end before the first flight.",
    )
    stage.run("produce", "weather.hourly", str(files["weather"]), show=3)
    stage.run("produce", "planes", str(files["planes"]), show=3)
    arguments = ["up", PIPELINE, "digits", "--port", "0", "--no-reload"]
    stage.command(*arguments)
    running = stack.enter_context(child([str(COMMAND), *arguments], stage.environment()))
    said = stage.serving = Output(running)
    stage.url = stage.wait("the gateway", lambda: said.find(r"gateway\s+(http://\S+)"))[1]
    stage.wait("the pipelines", lambda: said.find("Ctrl-C"))
    stage.wait(
        "all stages to run",
        lambda: said.find("gateway") and all(s["state"] == "running" for s in stage.graph()["stages"]),
    )
    for line in said.lines:
        stage.quote(line)
    names = stage.get("/v2/models")
    check(PIPELINE in str(names), f"the gateway does not serve {PIPELINE}: {names}")
    stage.done("broker, workers and HTTP door run")


def show_plan(stage: Stage) -> None:
    stage.step(
        "The plan", "Which nodes share a process, and why: a monitor can never slow or fail a request."
    )
    said = stage.run("plan", PIPELINE, show=28)
    plan = json.loads(stage.run("plan", PIPELINE, "--format", "json", quiet=True))
    text = json.dumps(plan)
    check(all(name in text for name in ("drift", "crew", "rebook")), "the plan lacks a node")
    check("not on the path to an answer" in said, "the drift detector is in the way of an answer")
    stage.done("three stages: what an answer waits for, the crew's notices, the drift detector")


def replay_year(stage: Stage, flights: Flights) -> None:
    stage.step(
        "Replay",
        f"{_flights.REPLAYED:,} flights from 1 February 2013, then {_flights.REPLAYED:,} from 1 July, by topic.",
    )
    for name in ("winter", "summer"):
        peak, seconds = replay(stage, flights.files[name], _flights.REPLAYED)
        stage.done(
            f"{name}: {_flights.REPLAYED:,} flights through every node in {seconds:.0f} s, up to {peak:,.0f} a second; none failed"
        )


def ask(stage: Stage, flights: Flights) -> Asked:
    stage.step(
        "Ask",
        "The same pipelines by HTTP: a waiting caller is answered over Kafka, and every step stays on its topic.",
    )
    door = Door(stage.url)
    try:
        asked = ask_flights(stage, door, flights)
        stage.done(
            f"all delays equal onnxruntime's own on the same rows (largest difference {asked.largest_difference:.1e})"
        )
        stage.done(f"one request: {asked.median_ms:.1f} ms (median), both hops acknowledged by Kafka")
        ask_digits(stage, door)
    finally:
        door.close()
    return asked


def tap_edges(stage: Stage) -> None:
    stage.step(
        "Tap", "Every edge is a topic that anyone may read, live or later, without disturbing anybody."
    )
    for edge in ("features", "rebook"):
        arguments = [
            "tap",
            f"{PIPELINE}.{edge}",
            "--from",
            "earliest",
            "--limit",
            str(TAPPED),
            "--format",
            "json",
        ]
        stage.command(*arguments, "| jq -c .value")
        lines = stage.run(*arguments, quiet=True).splitlines()
        records = [json.loads(line)["value"] for line in lines]
        for record in records:
            stage.quote(json.dumps(record))
        check(len(records) == TAPPED, f"{len(records)} records of {edge}, not {TAPPED}")
        wanted = "x" if edge == "features" else "offers"
        check(all(record[wanted] is not None for record in records), f"a record of {edge} lacks '{wanted}'")
        shown = {record["tailnum"] for record in records}
        check(
            not any(str(name).startswith("N") for name in shown), f"a private registration is shown: {shown}"
        )
    stage.done("both edges are there; the aircraft's registration is labelled private, and masked")


def trace_request(stage: Stage, asked: Asked) -> None:
    stage.step("Trace", f"One request, {asked.late_flight}, on every edge that it reached, by its id alone.")

    def reached() -> set[str] | None:
        """Streams of the request, once all are there: nobody waited for the crew's notice, it may still be on its way."""
        document = json.loads(stage.run("trace", asked.late_id, "--format", "json", quiet=True))
        names = {stream for hop in document["hops"] for stream in hop["streams"]}
        found = {name.removeprefix(f"{PIPELINE}.") for name in names}
        return found if document["complete"] and found >= EDGES_OF_A_LATE_FLIGHT else None

    found = stage.wait("the whole trace", reached, 30.0)
    stage.run("trace", asked.late_id, show=16)
    check("triage.on_time" not in found, "a late flight is also on time")
    stage.done(f"found on {len(found)} streams, with node and version of each")


def find_drift(stage: Stage, year: data.Year) -> None:
    stage.step("Drift", "Windows of 5,000 flights against a sample of January; off the answer's path.")
    said = stage.run("tap", f"{PIPELINE}.drift", "--from", "earliest", "--format", "json")
    windows = [json.loads(line)["value"] for line in said.splitlines()]
    table = Table(
        "window",
        "replayed",
        "drifted",
        "largest effect",
        "features beyond 2 standard deviations",
        box=None,
        padding=(0, 2),
    )
    for place, window in enumerate(windows):
        worst = max(window["features"], key=lambda f: f["effect"])
        colour = "red" if window["drifted"] else "green"
        table.add_row(
            str(window["window"]),
            "February" if place < len(windows) // 2 else "July",
            f"[{colour}]{'yes' if window['drifted'] else 'no'}[/]",
            f"{worst['effect']:.2f} ({worst['feature']})",
            ", ".join(window["drifted_features"]),
        )
    stage.console.print(table)
    expected = 2 * _flights.REPLAYED // alarms.settings()["window"]
    check(len(windows) == expected, f"{len(windows)} windows, not {expected}")
    drifted = [window["drifted"] for window in windows]
    check(not any(drifted[: expected // 2]), f"a false alarm in winter: {drifted}")
    check(all(drifted[expected // 2 :]), f"summer was not found: {drifted}")
    stage.done("winter against winter is silent, summer against winter drifts")
    rates = alarms.measure(*alarms.features_by_month(year), shuffles=SHUFFLES)
    stage.say(
        f"false alarms by chance: {rates.chance} of January against January, at most {rates.alpha:.0%} is promised"
    )
    stage.say(
        f"false alarms by weather: {rates.winter} of all winter in order ({rates.winter.apart} of them apart); found in July: {rates.summer}"
    )
    check(rates.chance.share <= rates.alpha, "more false alarms than promised")
    check(rates.winter.alarms == 0, "a false alarm in winter")
    check(rates.summer.share == 1.0, "July was not found by every window")
    stage.done("measured with the same node; MODEL.md says how, and what it does not show")


def try_next(stage: Stage, *, keep: bool) -> None:
    stage.step("What to try next", "In another terminal, in this folder." if keep else "In this folder.")
    url, cluster = (stage.url, f" --bootstrap {stage.bootstrap}") if keep else ("localhost:8080", "")
    table = Table.grid(padding=(0, 3))
    if not keep:
        table.add_row("  dataflow up", "the same, yours, until Ctrl-C")
    table.add_row(f"  dataflow tap {PIPELINE}.triage.late{cluster}", "follow an edge")
    table.add_row(f"  dataflow status --live{f' --url {url}' if keep else ''}", "rates, lag and latency")
    table.add_row(f"  curl {url}/v2/models/{PIPELINE}", "inputs and outputs")
    if not keep:
        table.add_row("  edit pipelines/flight_delay/rebook.py", "`dataflow up` takes it over on save")
    table.add_row("  dataflow new my-project", "a project of your own")
    table.columns[0].style = "cyan"
    table.columns[0].no_wrap = True
    stage.console.print(table)


def play(stage: Stage, *, keep: bool) -> None:
    """All steps in order. Raises DemoError or DataflowError where one fails; what was started is ended either way."""
    with ExitStack() as stack:
        year, files = set_up(stage)
        train_models(stage)
        flights = _flights.choose(year, files)
        start_broker(stage, stack)
        start_pipelines(stage, stack, files)
        show_plan(stage)
        replay_year(stage, flights)
        find_drift(stage, year)
        asked = ask(stage, flights)
        tap_edges(stage)
        trace_request(stage, asked)
        try_next(stage, keep=keep)
        if keep:
            stage.console.print("\n[bold]It runs on. Ctrl-C ends it.[/]")
            try:
                signal.pause()
            except KeyboardInterrupt:
                return


def _refuse_beside_another() -> None:
    """`dataflow up` writes down where it runs: the demo's own would hide one that runs already."""
    state = ROOT / ".dataflow" / "up.json"
    try:
        process = int(json.loads(state.read_text())["pid"])
        os.kill(process, 0)
    except (OSError, ValueError, KeyError):
        return
    raise DemoError(
        f"`dataflow up` runs here already (process {process}); the demo starts its own: end that one first"
    )


def _console() -> Console:
    """The terminal; where there is none (CI, a pipe), lines of a width that the tables need."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@click.command()
@click.option("--keep", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
def main(keep: bool) -> None:
    """Show the flagship at work on a real broker. Exits 0 only if all of it really happened."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    stage = Stage(_console())
    failed: Callable[[str], None] = lambda text: stage.console.print(f"\n[bold red]failed[/] {escape(text)}")  # noqa: E731
    try:
        _refuse_beside_another()
        play(stage, keep=keep)
    except (DemoError, DataflowError) as error:
        failed(str(error))
        if stage.serving is not None:
            stage.say("the last that `dataflow up` said:")
            for line in list(stage.serving.lines)[-LAST_LINES:]:
                stage.quote(line)
        sys.exit(1)
    except KeyboardInterrupt:
        failed("interrupted; all that was started has been ended")
        sys.exit(130)
    stage.console.print("\n[bold green]All of it happened.[/]")


if __name__ == "__main__":
    main()
