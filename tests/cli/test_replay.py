"""`dataflow replay` on the real broker: the digits, run over a file, and again with another threshold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from dataflow.cli.main import main
from dataflow.control.deploy import read_plans
from dataflow.control.streams import EdgeReader, find_stream
from dataflow.transport.kafka import KafkaFabric

ROOT = Path(__file__).parents[2]
IMAGES = 200


@pytest.fixture
def project(tmp_path: Path, unique: str) -> Path:
    """The digits under a name that nobody else uses; the model is built already."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "pipelines/digits", folder / "pipelines/digits")
    (folder / "dataflow.yaml").write_text("kind: Project\n")
    (folder / "topics").mkdir()
    topic = (ROOT / "topics/digits.yaml").read_text().replace("digits.images", f"{unique}.images")
    (folder / "topics/digits.yaml").write_text(topic)
    file = folder / "pipelines/digits/pipeline.yaml"
    text = file.read_text().replace("digits.images", f"{unique}.images")
    file.write_text(text.replace("kind: Pipeline\nname: digits", f"kind: Pipeline\nname: {unique}"))
    table = pyarrow.parquet.read_table(folder / "pipelines/digits/digits_test.parquet")
    pyarrow.parquet.write_table(table.slice(0, IMAGES), tmp_path / "images.parquet")
    return folder


def dataflow(project: Path, bootstrap: str, *words: str) -> Result:
    arguments = [words[0], *words[1:], "--project", str(project), "--bootstrap", bootstrap]
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})


def values(kafka: KafkaFabric, edge: str) -> dict[str, dict[str, Any]]:
    found = EdgeReader(kafka, find_stream(edge, read_plans(kafka)))
    return {r.id: r.value for r in found if r.value is not None}


@pytest.mark.broker
def test_another_threshold_shows_exactly_what_it_moves(
    project: Path, tmp_path: Path, bootstrap: str, kafka: KafkaFabric, unique: str
) -> None:
    done = dataflow(
        project,
        bootstrap,
        "run",
        unique,
        "--in",
        str(tmp_path / "images.parquet"),
        "--out",
        str(tmp_path / "out.jsonl"),
    )
    assert done.exit_code == 0, done.output
    confident = {i: v["confidence"] for i, v in values(kafka, f"{unique}.confidence").items()}
    assert len(confident) == IMAGES
    before = set(kafka.admin().topics())

    same = dataflow(project, bootstrap, "replay", unique, "--json")
    assert same.exit_code == 0, same.output
    report = orjson.loads(same.stdout)
    assert {e["edge"]: e["equal"] + e["within"] for e in report["edges"]}["confidence"] == IMAGES
    assert all(e["same"] for e in report["edges"])

    file = tmp_path / "surer.yaml"
    declared = (project / "pipelines/digits/pipeline.yaml").read_text()
    file.write_text(declared.replace("confidence >= 0.9,", "confidence >= 0.99,"))
    page = tmp_path / "report.html"
    moved = {i for i, c in confident.items() if 0.9 <= c < 0.99}
    assert moved
    told = dataflow(project, bootstrap, "replay", unique, "--with", str(file), "--json", "--html", str(page))
    assert told.exit_code == 1, told.output
    edges = {e["edge"]: e for e in orjson.loads(told.stdout)["edges"]}
    assert {m["id"] for m in edges["triage.sure"]["missing_records"]} == moved
    assert set(edges["triage.unsure"]["extra_records"]) == moved
    assert [e for e in edges.values() if e["differing"]] == []
    assert (edges["classify"]["recorded"], edges["classify"]["same"]) == (IMAGES, True)
    text = page.read_text()
    assert all(record_id in text for record_id in moved)
    assert "http" not in text.replace("http-equiv", "")

    shown = dataflow(project, bootstrap, "replay", unique, "--with", str(file), "--edge", "confidence")
    assert shown.exit_code == 1, shown.output
    assert f"triage.sure: {min(moved)}: missing" in shown.output or len(moved) > 10
    assert "differs" in shown.output
    # Nothing is left of it.
    assert set(kafka.admin().topics()) == before


@pytest.mark.broker
def test_what_cannot_be_done_ends_with_2(project: Path, bootstrap: str, unique: str) -> None:
    failed = dataflow(project, bootstrap, "replay", unique)
    assert failed.exit_code == 2
    assert "nothing is recorded yet" in failed.output
    failed = dataflow(project, bootstrap, "replay", unique, "--from", "yesterday")
    assert failed.exit_code == 2
