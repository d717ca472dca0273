"""The demo's own machinery: it fails loudly, and leaves no process behind. `make demo` is the test of the rest."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from scripts._ask import compare, v2_body
from scripts._stage import DemoError, Output, Stage, child
from scripts._watch import at_rest
from tests.conftest import wait_for

SLEEPER = [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(600)"]


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def stage() -> Stage:
    return Stage(Console(file=io.StringIO(), width=200))


@pytest.mark.parametrize("raised", [None, DemoError("no"), KeyboardInterrupt()])
def test_a_child_ends_with_its_block(raised: BaseException | None) -> None:
    number = 0

    def body() -> None:
        nonlocal number
        with child(SLEEPER, dict(os.environ)) as process:
            number = process.pid
            said = Output(process)
            assert wait_for(lambda: said.find("ready"), "the child")
            if raised is not None:
                raise raised

    if raised is None:
        body()
    else:
        with pytest.raises(type(raised)):
            body()
    assert number
    assert not runs(number)


def test_a_child_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts._stage.STOP_S", 0.2)
    deaf = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {SLEEPER[-1]}"
    with child([sys.executable, "-c", deaf], dict(os.environ)) as process:
        said = Output(process)
        assert wait_for(lambda: said.find("ready"), "the child")
    assert not runs(process.pid)


def test_a_child_that_ended_by_itself_is_told_with_what_it_said() -> None:
    with child([sys.executable, "-c", "print('port in use')"], dict(os.environ)) as process:
        said = Output(process)
        process.wait(30)
        with pytest.raises(DemoError, match="port in use"):
            said.find("gateway")


def test_a_command_that_fails_fails_the_demo() -> None:
    with pytest.raises(DemoError, match=r"dataflow model inspect nowhere.onnx exited with"):
        stage().run("model", "inspect", "nowhere.onnx")


def test_a_gateway_that_is_gone_fails_the_demo() -> None:
    shown = stage()
    shown.url = "http://127.0.0.1:9"
    with pytest.raises(DemoError, match="/graph"):
        shown.graph()


def test_an_answer_that_differs_fails_the_demo() -> None:
    expected = np.array([1.0, 2.0], dtype=np.float32)
    assert compare(expected, [1.0, 2.00001], "V2") < 1e-4
    with pytest.raises(DemoError, match=r"differs from onnxruntime.s own by 0\.5"):
        compare(expected, [1.0, 2.5], "V2")
    with pytest.raises(DemoError, match="not all came"):
        compare(expected, [1.0, None], "V2")


def test_a_v2_request_is_made_of_the_models_metadata() -> None:
    inputs = [{"name": "origin", "datatype": "BYTES"}, {"name": "at", "datatype": "INT64"}]
    moment = datetime(2013, 1, 1, 12, tzinfo=UTC)
    body = v2_body(inputs, [{"origin": "EWR", "at": moment}, {"origin": "JFK", "at": moment}])
    assert body["inputs"] == [
        {"name": "origin", "datatype": "BYTES", "shape": [2], "data": ["EWR", "JFK"]},
        {"name": "at", "datatype": "INT64", "shape": [2], "data": [1_357_041_600_000_000] * 2},
    ]


def test_it_is_at_rest_only_when_every_stage_has_done_its_part() -> None:
    def graph(drift: int, crew: int, lag: int) -> dict[str, Any]:
        records = {"weather": 10, "drift": drift, "crew": crew}
        stages = [{"name": name, "records": count, "lag": lag} for name, count in records.items()]
        return {"stages": stages, "edges": [{"name": "triage.late", "records": 3}]}

    assert at_rest(graph(drift=10, crew=3, lag=0))
    assert not at_rest(graph(drift=9, crew=3, lag=0))
    assert not at_rest(graph(drift=10, crew=2, lag=0))
    assert not at_rest(graph(drift=10, crew=3, lag=1))


def test_the_demo_starts_as_make_starts_it() -> None:
    said = subprocess.run(
        [sys.executable, "scripts/demo.py", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "--keep" in said.stdout
