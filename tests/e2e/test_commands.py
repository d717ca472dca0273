"""The commands that look into and feed a running project, used as in a shell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dataflow.cli.main import main
from tests.conftest import wait_for
from tests.e2e.processes import COMMAND, Running, environment, json_lines, succeed
from tests.e2e.project import SMALL, save, write_files

pytestmark = pytest.mark.broker

AT = "2024-05-01T12:00:00Z"


def call(project: Path, *arguments: str, given: str = "") -> Result:
    """In this process: most of the time of a short command is the start of its Python."""
    words = ["--project", str(project), *arguments]
    return CliRunner().invoke(main, words, input=given, catch_exceptions=False)


def tell(project: Path, *arguments: str, given: str = "") -> str:
    """The standard output of what must exit 0."""
    done = call(project, *arguments, given=given)
    assert done.exit_code == 0, f"dataflow {' '.join(arguments)}: exit {done.exit_code}\n{done.output}"
    return done.stdout


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def reading(celsius: float, note: str) -> dict[str, Any]:
    return {"sensor": f"of {note}", "celsius": celsius, "note": note, "at": AT}


def tap(project: Path, edge: str, *arguments: str) -> list[dict[str, Any]]:
    return json_lines(tell(project, "tap", edge, "--from", "earliest", *arguments))


def arrived(project: Path, edge: str, note: str, count: int) -> list[dict[str, Any]]:
    """The records with that note, once there are so many (or the test's time is over)."""
    where = ("--where", f"note == '{note}'", "--limit", str(count), "--follow")
    return tap(project, edge, *where)


def test_produce_tap_and_trace_in_pipes(up: Running, url: str, project: Path) -> None:
    given = lines(*(reading(c, "piped") for c in (1.0, 50.0, -70.0)))
    ids = succeed(project, "produce", "plant.readings", "--print-ids", given=given).split()
    scored = arrived(project, "sort.score", "piped", 2)
    assert {record["id"] for record in scored} == set(ids[:2])
    assert {record["value"]["fahrenheit"] for record in scored} == {33.8, 122.0}
    assert all(record["value"]["sensor"] == record["key"] == "***" for record in scored)

    shown = tap(project, "sort.score", "--id", ids[0], "--show-private", "--limit", "1")
    assert shown[0]["value"]["sensor"] == shown[0]["key"] == "of piped"
    table = tell(project, "tap", "sort.score", "--from", "earliest", "--format", "table", "--limit", "1")
    assert table.splitlines()[0].split()[:3] == ["time", "position", "key"]
    tell(
        project,
        "tap",
        "sort.score",
        "--from",
        "earliest",
        "--where",
        "note == 'piped'",
        "--to",
        str(project / "t.parquet"),
    )
    assert set(pq.read_table(project / "t.parquet").column("celsius").to_pylist()) == {1.0, 50.0}

    first = "set -o pipefail; $0 tap sort.score --from earliest | head -n 1"
    cut = subprocess.run(
        ["bash", "-c", first, COMMAND],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(json_lines(cut.stdout)) == 1
    assert "Traceback" not in cut.stderr

    traced = succeed(project, "trace", ids[1])
    for stream in ("sort.reading", "sort.sane", "sort.score", "sort.triage.hot"):
        assert stream in traced
    assert "of piped" not in tell(project, "trace", ids[1], "--format", "json")


def test_produce_says_which_rows_do_not_fit(up: Running, url: str, project: Path) -> None:
    bad = {"sensor": "a", "celsius": "warm", "at": AT}
    given = lines(reading(1.0, "loose"), bad)
    loose = call(project, "produce", "plant.readings", given=given)
    assert loose.exit_code == 1
    assert "stdin:2: field 'celsius': 'warm'" in loose.stderr
    assert "1 record sent" in loose.stderr + loose.stdout
    assert len(arrived(project, "sort.score", "loose", 1)) == 1
    strict = call(project, "produce", "plant.readings", "--strict", given=lines(reading(2.0, "strict"), bad))
    assert strict.exit_code == 1
    assert tap(project, "sort.reading", "--where", "note == 'strict'") == []


def test_mistakes_are_named(up: Running, url: str, project: Path) -> None:
    for arguments, told in [
        (("produce", "plant.readngs"), "plant.readings"),
        (("tap", "sort.scoer"), "score"),
        (("tap", "srot.score"), "sort"),
        (("tap", "sort.score", "--from", "yesterday"), "earliest"),
        (("tap", "sort.score", "--where", "celsus > 1"), "celsius"),
        (("trace", "nonsense"), "nonsense"),
        (("dead-letters", "show", "9/0"), "9/0"),
        (("plan", "srot"), "sort"),
    ]:
        done = call(project, *arguments)
        assert done.exit_code == 1, arguments
        assert told in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_dead_letters_list_show_redrive(up: Running, url: str, project: Path, door: httpx.Client) -> None:
    failed = door.post("/pipelines/sort", json=reading(13.0, "letter"))
    record = failed.json()["id"]
    assert failed.status_code == 500

    def letters(*arguments: str) -> dict[str, dict[str, Any]]:
        listed = tell(project, "dead-letters", "list", "--format", "json", *arguments)
        return {str(letter["id"]): letter for letter in json_lines(listed)}

    letter = letters("--pipeline", "sort")[record]
    assert (letter["node"], letter["error"]) == ("score", "ValueError")
    assert letters("--node", "triage") == {}
    shown = tell(project, "dead-letters", "show", letter["position"])
    assert "unlucky" in shown
    assert "of letter" not in shown
    assert "of letter" in tell(project, "dead-letters", "show", record, "--show-private")
    assert call(project, "dead-letters", "redrive").exit_code == 2
    tell(project, "dead-letters", "redrive", record, "--dry-run")
    assert record in letters()

    tell(project, "dead-letters", "redrive", record)
    assert record not in letters() or letters()[record]["attempt"] == 1
    again = wait_for(
        lambda: [
            found for found in letters("--all").values() if found["id"] == record and found["attempt"] == 1
        ],
        "the redriven record to fail once more",
    )
    assert again


def test_status_and_plan_as_json(up: Running, url: str, project: Path) -> None:
    graph = json.loads(tell(project, "status", "--format", "json"))
    assert {p["name"] for p in graph["pipelines"]} == {"sort", "iris", "images", "waits", "shown", "words"}
    assert "score" in tell(project, "status")
    plans = tell(project, "plan", "sort", "--format", "json")
    assert "sort.triage.hot" in plans
    (project / "before.json").write_text(plans)
    assert "no" in tell(project, "plan", "sort", "--diff", str(project / "before.json")).lower()
    assert call(project, "plan", "sort", "--compare").exit_code == 0


SHARE = """
import os
from typing import TypedDict


class Product(TypedDict):
    y: float
    worker: int


def times(row: dict, factor: float) -> Product:
    return {"y": row["x"] * factor, "worker": os.getpid()}
"""


def test_deploy_worker_and_gateway_as_processes_share_the_load(
    bootstrap: str, tmp_path: Path, unique: str
) -> None:
    topic = f"kind: Topic\nname: {unique}\nkey: name\npartitions: 8\nfields: {{name: string, x: float64}}\n"
    pipeline = SMALL["pipelines/shown/pipeline.yaml"]
    pipeline = pipeline.replace("name: shown", f"name: {unique}").replace("plant.shown", unique)
    write_files(
        tmp_path,
        {
            "dataflow.yaml": "kind: Project\nname: shared\n",
            "topics/t.yaml": topic,
            "pipelines/p/pipeline.yaml": pipeline,
            "pipelines/p/times.py": SHARE,
        },
    )
    at = ("--bootstrap", bootstrap)
    first = Running(tmp_path, "worker", "--pipeline", unique, *at)
    second = Running(tmp_path, "worker", "--pipeline", unique, *at)
    gateway = Running(tmp_path, "gateway", "--port", "0", *at)
    with first, second, gateway:
        first.shows(f"waiting for {unique}")
        assert f"deployed {unique}" in succeed(tmp_path, "deploy", unique, *at)
        for worker in (first, second):
            worker.shows(f"pipeline {unique}")
        with httpx.Client(base_url=gateway.url, timeout=60) as client:

            def workers() -> set[int]:
                records = [{"name": f"n{i}", "x": float(i)} for i in range(64)]
                asked = client.post(f"/pipelines/{unique}", json=records)
                if asked.status_code in {404, 503, 504}:  # not yet known to the gateway, or the workers start
                    return set()
                assert asked.status_code == 200, asked.text
                answers = asked.json()
                assert [answer.get("y") for answer in answers] == [2.0 * i for i in range(64)], answers
                return {int(answer["worker"]) for answer in answers}

            both = {first.process.pid, second.process.pid}
            wait_for(lambda: workers() == both, "both workers to answer")
            assert first.stop() == 0
            wait_for(lambda: workers() == {second.process.pid}, "the other worker to take all over")
    assert (second.process.returncode, gateway.process.returncode) == (0, 0)


def test_a_worker_without_the_planned_code_says_so(bootstrap: str, tmp_path: Path, unique: str) -> None:
    pipeline = SMALL["pipelines/shown/pipeline.yaml"].replace("name: shown", f"name: {unique}")
    files = {
        "dataflow.yaml": "kind: Project\nname: shared\n",
        "topics/t.yaml": f"kind: Topic\nname: {unique}\nfields: {{x: float64}}\n",
        "pipelines/p/pipeline.yaml": pipeline.replace("plant.shown", unique),
        "pipelines/p/times.py": SHARE,
    }
    write_files(tmp_path, files)
    succeed(tmp_path, "deploy", unique, "--bootstrap", bootstrap)
    save(tmp_path / "pipelines/p/times.py", SHARE + "\n# newer\n")
    with Running(tmp_path, "worker", "--pipeline", unique, "--bootstrap", bootstrap) as worker:
        worker.shows(f"pipeline '{unique}'.*not what was\\s+planned")
