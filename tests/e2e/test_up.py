"""The life of `dataflow up`: reload, ends of all kinds, what is in its way, the broker away, data kept."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import wait_for
from tests.e2e.processes import Running, dataflow, javas_of, json_lines, succeed
from tests.e2e.project import SHOWN, SMALL, TIMES, save, write_files

pytestmark = pytest.mark.broker

FILES = {name: text for name, text in SMALL.items() if "sort" in name or "/" not in name or "topics" in name}
SECRET = "let me in"
READING = {"sensor": "s1", "celsius": 50, "at": "2024-05-01T12:00:00Z"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "plant", FILES)


def test_saved_changes_are_taken_over_and_broken_ones_are_not(
    up: Running, project: Path, door: httpx.Client
) -> None:
    node, yaml = project / "pipelines/shown/times.py", project / "pipelines/shown/pipeline.yaml"

    def answer() -> Any:
        asked = door.post("/pipelines/shown", json={"x": 3.0})
        assert asked.status_code == 200, asked.text
        return asked.json()["y"]

    assert answer() == 6.0
    save(node, TIMES.replace("* factor", "* factor + 100"))
    wait_for(lambda: answer() == 106.0, "the new code to answer")

    save(yaml, SHOWN.replace("use: transform.python", "use: transform.pithon"))
    up.shows(r"pipelines/shown/pipeline\.yaml:7:\d+: .*transform\.pithon.*did you mean 'transform\.python'")
    assert answer() == 106.0
    save(yaml, SHOWN + "\nnodes: [\n")
    up.shows(r"pipelines/shown/pipeline\.yaml:\d+")
    assert answer() == 106.0
    save(yaml, SHOWN.replace("factor: 2", "factor: 5"))
    wait_for(lambda: answer() == 115.0, "the mended pipeline to answer")

    save(node, "def (")
    up.shows(r"times\.py:1: not valid Python")
    assert answer() == 115.0
    save(node, "import no_such_module\n" + TIMES)
    up.shows(r"node 'times' of pipeline 'shown' does not start: .*no_such_module")
    assert answer() == 115.0
    assert door.get("/v2/models/shown/ready").json() == {"name": "shown", "ready": True}
    save(node, TIMES)
    save(yaml, SHOWN)
    wait_for(lambda: answer() == 6.0, "the first version to answer again")


def test_pipelines_come_and_go(up: Running, project: Path, door: httpx.Client) -> None:
    place = project / "pipelines/guest"
    write_files(place, {"pipeline.yaml": SHOWN.replace("name: shown", "name: guest"), "times.py": TIMES})

    def status() -> int:
        soon = {"x-deadline-ms": "1000"}
        return door.post("/pipelines/guest", json={"x": 1.0}, headers=soon).status_code

    wait_for(lambda: status() == 200, "the new pipeline")
    (place / "pipeline.yaml").unlink()
    up.shows("removed guest")
    assert status() == 404


def test_one_life_after_another(folder: Path) -> None:
    """Token, broker away, second `up`, Ctrl-C, data kept, kill -9, and up once more."""
    door = {"Authorization": f"Bearer {SECRET}"}
    with Running(folder, "up", "--port", "0", DATAFLOW_TOKEN=SECRET) as first:
        with httpx.Client(base_url=first.url, headers=door, timeout=60) as client:
            first.shows("Ctrl-C")
            check_tokens(client)
            second_up_is_refused(folder, first)
            broker_goes_and_comes(folder, client)
        assert first.stop() == 0
        assert "stopped" in first.text
        assert "Traceback" not in first.text
    assert javas_of(folder) == []
    assert not (folder / ".dataflow/up.json").exists()

    with Running(folder, "up", "--port", "0") as second:
        second.shows("Ctrl-C")
        kept = json_lines(succeed(folder, "tap", "sort.score", "--from", "earliest", "--limit", "1"))
        assert kept[0]["value"] == {"fahrenheit": 122.0, "sensor": "***", "celsius": 50.0, "note": None}
        second.process.kill()
        second.ends()
    wait_for(lambda: javas_of(folder) == [], "the JVM to follow its killed owner")

    with Running(folder, "up", "--port", "0", "--ephemeral") as third:
        third.shows("Ctrl-C")
        assert httpx.post(f"{third.url}/pipelines/sort", json=READING, timeout=60).status_code == 200
        assert third.stop(signal.SIGTERM) == 0
    assert javas_of(folder) == []


def check_tokens(client: httpx.Client) -> None:
    """Who has the token may see what is private; who has none is refused."""
    assert client.post("/pipelines/sort", json=READING).status_code == 200
    path = "/taps/sort/score?from=earliest&limit=1"
    shown = next(line for line in client.get(path).text.splitlines() if line.startswith("data: "))
    assert json.loads(shown.removeprefix("data: "))["value"]["sensor"] == "s1"
    for wrong in ({}, {"Authorization": "Bearer guess"}):
        refused = httpx.post(f"{client.base_url}/pipelines/sort", json=READING, headers=wrong)
        assert refused.status_code == 401
        assert "token" in refused.json()["error"]


def second_up_is_refused(folder: Path, first: Running) -> None:
    """In one line, and without harm to the one that runs."""
    refused = dataflow(folder, "up", "--port", "0")
    assert refused.returncode == 1
    assert str(first.process.pid) in refused.stderr
    assert first.url in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert json.loads((folder / ".dataflow/up.json").read_text())["gateway"] == first.url


def broker_goes_and_comes(folder: Path, client: httpx.Client) -> None:
    """503 with Retry-After while it is away, answers again when it is back."""
    (java,) = javas_of(folder)
    java.suspend()
    try:
        away = client.post("/pipelines/sort", json=READING, headers={"x-deadline-ms": "2000"})
    finally:
        java.resume()
    assert (away.status_code, away.headers.get("retry-after") is not None) == (503, True), away.text
    wait_for(lambda: client.post("/pipelines/sort", json=READING).status_code == 200, "answers again")


def test_what_is_in_the_way_is_said_in_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, told in [
            (("--port", str(port)), f"127.0.0.1:{port}"),
            (("--port", "0", "--host", "0.0.0.0"), "token"),
            (("--port", "0", "--bootstrap", f"127.0.0.1:{port + 0}9"), "--bootstrap"),
        ]:
            refused = dataflow(folder, "up", "--ephemeral", *arguments)
            assert refused.returncode == 1, arguments
            assert told in refused.stderr, (arguments, refused.stderr)
            assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert javas_of(folder) == []


def test_up_on_a_broker_of_others(folder: Path, bootstrap: str) -> None:
    with Running(folder, "up", "--port", "0", "--bootstrap", bootstrap) as running:
        assert httpx.post(f"{running.url}/pipelines/sort", json=READING, timeout=60).status_code == 200
        assert javas_of(folder) == []
        assert running.stop() == 0
    (scored,) = json_lines(
        succeed(folder, "tap", "sort.score", "--from", "earliest", "--limit", "1", "--bootstrap", bootstrap)
    )
    assert scored["value"]
