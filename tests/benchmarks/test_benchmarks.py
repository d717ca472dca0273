"""Each benchmark runs to its end in quick mode and says so in one line. How fast it was is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory, records, state, sync_plain
from benchmarks.__main__ import BENCHMARKS
from benchmarks.cluster import Cluster, Process, started
from benchmarks.engines.beside import Engine, differ
from benchmarks.peers import PeerError, run_command
from benchmarks.report import Outcome, Result, quantile, save, tightest
from benchmarks.restore import key_of_each
from dataflow.transport.murmur import murmur2_partition

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["onnx", "onnx-compute", "sync-plain", "memory", "guarantees", "state", "join"]
)
def test_it_measures_and_checks(
    name: str, bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "QUICK_RECORDS", 10_000)  # its size is not asked here
    monkeypatch.setattr(sync_plain, "PEERS", ())  # nor is a server of others installed
    with started(bootstrap) as cluster:
        outcome = BENCHMARKS[name](cluster, quick=True)
    document = json.loads(save(outcome, tmp_path, quick=True).read_text())
    assert document["raw"]
    assert document["command"] == f"python -m benchmarks {name} --quick"
    assert document["name"] == name
    assert document["ratio"] > 0


@pytest.mark.broker
@pytest.mark.slow
def test_work_beside_engines(bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(cluster: Cluster, sink: str, group: str) -> Process:
        arguments = ("-m", "benchmarks.raw_loop", cluster.bootstrap, records.SOURCE, sink, group)
        return cluster.start("raw-loop", *arguments)

    def broken(cluster: Cluster, sink: str, group: str) -> Process:
        raise PeerError("there is none")

    engines = (Engine("A loop", 0.0, copy, same=False), Engine("Nobody", 5.0, broken))
    monkeypatch.setattr(records, "engines_of", lambda _: engines)
    with started(bootstrap) as cluster:
        outcome = records.run(cluster, quick=True)
    assert outcome.raw["goals"]["records/s beside A loop"]["ratio"] > 0
    assert outcome.raw["goals"]["records/s beside Nobody"]["not measured"] == "there is none"
    assert not outcome.result.holds


def test_outputs_of_those_who_are_through_are_compared() -> None:
    whole, other, part = ({"sum": n, "complete": n < 3} for n in (1, 2, 3))
    assert differ([whole, other])
    assert not differ([whole, whole, part])


@pytest.mark.slow
def test_the_command_ends_with_one_line_of_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "passthrough", "--quick", "--results", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert list(said) == ["name", "value", "baseline", "ratio", "goal", "holds"]
    assert said["name"] == "passthrough"
    assert said["holds"] == (said["ratio"] >= said["goal"])
    raw = json.loads((tmp_path / "passthrough-quick.json").read_text())["raw"]
    assert [r["digest"] for r in raw["ours"]] == [r["digest"] for r in raw["baseline"]]


def test_a_result_holds_from_its_goal_on() -> None:
    assert Result.of("x", 6.0, 10.0, 0.6, 0.6).holds
    assert not Result.of("x", 5.9, 10.0, 0.59, 0.6).holds


def test_a_quantile_is_one_of_the_values() -> None:
    ordered = [float(n) for n in range(1, 101)]
    assert (quantile(ordered, 0.5), quantile(ordered, 0.99), quantile([7.0], 0.99)) == (51.0, 100.0, 7.0)


def test_raw_numbers_say_where_they_come_from(tmp_path: Path) -> None:
    outcome = Outcome(Result.of("x", 1.0, 2.0, 0.5, 0.5), "ms", {"runs": [1, 2]})
    document = json.loads(save(outcome, tmp_path, quick=False).read_text())
    assert document["machine"]["cores"]
    assert document["versions"]["confluent-kafka"]
    assert document["raw"] == {"runs": [1, 2]}


def test_of_several_goals_the_one_that_is_furthest_away_is_told() -> None:
    far, held = Result.of("far", 1.0, 2.0, 0.5, 0.6), Result.of("held", 9.0, 3.0, 3.0, 1.0)
    beside = Result.of("beside", 1.0, 9.0, 0.1, 0.0)  # measured, without a goal
    told = tightest("both", {"far": far, "held": held, "beside": beside})
    assert (told.name, told.ratio, told.goal, told.holds) == ("both", 0.5, 0.6, False)


def test_a_peer_that_is_not_there_is_not_beaten() -> None:
    job = state.Job("counts", "count", "topic", 10, 10, {})
    found = state.results_of(job, [{"rate": 50_000}], [])
    assert found["counts"].holds
    assert not found["counts beside Quix"].holds
    with pytest.raises(PeerError, match="No module named no_such_module"):
        run_command([sys.executable, "-m", "no_such_module"])


def test_a_key_of_each_partition() -> None:
    keys = key_of_each(4, "sensor")
    assert [murmur2_partition(key.encode(), 4) for key in keys] == [0, 1, 2, 3]
