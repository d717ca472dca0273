"""The examples of joins and fan-out on real data: what comes out is what the models themselves say of each image."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image

from dataflow.cli.test import run_tests
from dataflow.control.assemble import Assembled, assemble
from dataflow.core.errors import ModelError
from dataflow.planner.plan import Plan
from dataflow.sdk import Fail
from dataflow.testing import run_pipeline
from pipelines.crops import crop, draw
from pipelines.diamond import train, vote
from tests.conftest import wait_for
from tests.e2e.processes import Running

ROOT = Path(__file__).parents[2]
Column = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def made() -> Assembled:
    return assemble(ROOT, ["diamond", "diamond-apart", "crops"], environ=os.environ)


@pytest.fixture(scope="module")
def plans(made: Assembled) -> Mapping[str, Plan]:
    return {plan.pipeline: plan for plan in made.plans}


def probabilities(path: str, pixels: Column) -> Column:
    data = (ROOT / "pipelines" / path).read_bytes()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"pixels": pixels})
    return np.asarray(found)


# --- both


@pytest.mark.parametrize("pipeline", ["diamond", "diamond-apart", "crops"])
def test_inline_tests_pass(made: Assembled, plans: Mapping[str, Plan], pipeline: str) -> None:
    outcomes = list(run_tests(made, plans[pipeline]))
    assert len(outcomes) >= 2
    assert {o.name: o.faults for o in outcomes if o.faults} == {}


@pytest.mark.parametrize("pipeline", ["diamond", "crops"])
def test_all_of_it_is_one_stage(plans: Mapping[str, Plan], pipeline: str) -> None:
    (stage,) = plans[pipeline].stages
    assert set(stage.nodes) == set(plans[pipeline].nodes)
    assert stage.on_answer_path


# --- diamond


@pytest.fixture(scope="module")
def scans() -> tuple[Column, Column]:
    """Held-out images, every third of them so faint that one model is not asked, and each with a mark of its own.

    The mark: records are told apart by their image, so no two may be equal.
    """
    images, labels = draw.held_out()
    faint = np.arange(len(images)) % 3 == 0
    images = np.where(faint[:, None, None], images // 2, images).astype(np.uint8)
    assert len({image.tobytes() for image in images}) == len(images)
    return images, labels


def test_the_forest_has_a_stage_of_its_own(plans: Mapping[str, Plan]) -> None:
    stages = {stage.name: stage.nodes for stage in plans["diamond-apart"].stages}
    assert stages == {
        "scale": ("scale", "linear", "known"), "forest": ("forest",), "both": ("both", "vote")
    }  # fmt: skip


@pytest.mark.parametrize("pipeline", ["diamond", "diamond-apart"])
def test_the_vote_is_the_mean_of_both_and_one_alone_where_the_other_failed(
    made: Assembled, plans: Mapping[str, Plan], scans: tuple[Column, Column], pipeline: str
) -> None:
    images, labels = scans
    result = run_pipeline(
        ROOT, plans[pipeline], made.registry, {"images": [{"image": image.tolist()} for image in images]}
    )
    ids = {
        np.array(r["pixels"], np.float32).tobytes(): i
        for r, i in zip(result.edges["scale"], result.ids["scale"], strict=True)
    }
    pixels = images.reshape(len(images), -1).astype(np.float32) / np.float32(16)
    linear, forest = (probabilities(f"diamond/{name}.onnx", pixels) for name in ("linear", "forest"))
    alone = pixels.mean(axis=1) < vote.FAINTEST
    assert 30 < alone.sum() < len(images) // 2
    expected = np.where(alone[:, None], linear, (linear + forest) / 2)
    by_id = dict(zip(result.ids["vote"], result.edges["vote"], strict=True))
    assert len(by_id) == len(result.edges["vote"]) == len(images)
    right = 0
    for at, row in enumerate(pixels):
        found = by_id[ids[row.tobytes()]]
        assert found["without"] == (["forest"] if alone[at] else [])
        assert found["digit"] == expected[at].argmax()
        assert found["confidence"] == pytest.approx(expected[at].max(), abs=1e-5)
        agrees = None if alone[at] else bool(linear[at].argmax() == forest[at].argmax())
        assert found["agree"] == agrees
        right += int(found["digit"] == labels[at])
    assert right / len(images) > 0.9  # the faint ones are hard to read
    # Each image that the forest was not asked about is kept, with the reason, though its caller had an answer.
    assert {d.node for d in result.dead_letters} == {"known"}
    assert len(result.dead_letters) == alone.sum()


def test_models_that_agree_are_right(tmp_path: Path) -> None:
    result = CliRunner().invoke(train.main, ["--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.iterdir()} == {"linear.onnx", "forest.onnx", "metrics.json"}
    learned, pixels, _, labels = train.read_digits()
    opinions = {}
    for name in ("linear", "forest"):
        # Training again gives the same file.
        assert (tmp_path / f"{name}.onnx").read_bytes() == (
            ROOT / f"pipelines/diamond/{name}.onnx"
        ).read_bytes()
        opinions[name] = probabilities(f"diamond/{name}.onnx", pixels).argmax(axis=1)
        assert (opinions[name] == labels).mean() > 0.95
    agree = opinions["linear"] == opinions["forest"]
    assert agree.mean() > 0.95
    assert (opinions["linear"] == labels)[agree].mean() > 0.995
    assert learned.mean(axis=1).min() >= vote.FAINTEST


# --- crops


def test_forms_are_read_as_the_model_reads_each_digit(made: Assembled, plans: Mapping[str, Plan]) -> None:
    forms = draw.draw(60, seed=5)
    given = [{"name": f"f{at}", "image": data} for at, (data, _) in enumerate(forms)]
    result = run_pipeline(ROOT, plans["crops"], made.registry, {"scan": given})
    assert result.dead_letters == []
    found = {r["name"]: r for r in result.edges["number"]}
    assert len(found) == len(result.edges["number"]) == len(forms)
    assert any(not number for _, number in forms)
    assert max(len(number) for _, number in forms) == draw.MOST_DIGITS
    read, total = 0, 0
    for at, (data, number) in enumerate(forms):
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        crops = crop.cut({"pixels": pixels})["crops"]
        assert len(crops) == len(number)
        said: list[int] = []
        if len(crops):
            scores = probabilities(
                "digits/digits.onnx", crops.reshape(-1, 64).astype(np.float32) / np.float32(16)
            )
            said = scores.argmax(axis=1).tolist()
            assert found[f"f{at}"]["confidence"] == pytest.approx(scores.max(axis=1).min(), abs=1e-5)
        assert found[f"f{at}"]["digits"] == said
        assert found[f"f{at}"]["number"] == "".join(map(str, said))
        read += sum(str(a) == b for a, b in zip(said, number, strict=True))
        total += len(number)
    assert read / total > 0.95


def test_a_broken_file_among_good_ones_fails_alone(made: Assembled, plans: Mapping[str, Plan]) -> None:
    (good, number), *_ = [form for form in draw.draw(20, seed=2) if form[1]]
    given = [
        {"name": "good", "image": good},
        {"name": "cut", "image": good[:40]},
        {"name": "text", "image": b"x"},
    ]
    result = run_pipeline(ROOT, plans["crops"], made.registry, {"scan": given})
    assert [r["name"] for r in result.edges["number"]] == ["good"]
    assert len(result.edges["number"][0]["digits"]) == len(number)
    assert {(d.node, d.error) for d in result.dead_letters} == {("decode", "ImageError")}


@pytest.mark.parametrize("dot", [1, 2, 5])
def test_what_is_drawn_is_cut_out_again(dot: int) -> None:
    images, _ = draw.held_out()
    random = np.random.default_rng(dot)
    line = draw.form(list(images[:6]), random, dot)
    np.testing.assert_array_equal(crop.cut({"pixels": line})["crops"], images[:6])
    width = 300
    lines = [draw.form(list(images[at : at + 3]), random, dot) for at in (0, 3)]
    page = np.concatenate(
        [np.pad(one, ((0, 0), (0, max(0, width - one.shape[1]))))[:, :width] for one in lines]
    )
    np.testing.assert_array_equal(crop.cut({"pixels": page})["crops"], images[:6])


def test_a_frame_that_is_no_square_is_told() -> None:
    images, _ = draw.held_out()
    torn = np.delete(draw.form([images[0]], np.random.default_rng(1), 2), 12, axis=0)
    with pytest.raises(Fail, match=r"the box at row \d+, column \d+ is 18 x 17 pixels"):
        crop.cut({"pixels": torn})
    assert crop.cut({"pixels": np.zeros((3, 4), np.uint8)})["crops"].shape == (0, 8, 8)


def test_forms_are_drawn_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(draw.main, ["--out", str(tmp_path / "forms"), "--count", "3", "--seed", "7"])
    assert result.exit_code == 0, result.output
    with (tmp_path / "forms" / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["number"] for r in rows] == [number for _, number in draw.draw(3, seed=7)]
    assert (tmp_path / "forms" / "form-000.png").read_bytes() == draw.draw(1, seed=7)[0][0]
    monkeypatch.setattr(draw, "HELD_OUT", tmp_path / "none.parquet")
    with pytest.raises(ModelError, match="no file at"):
        draw.held_out()


# --- on the real broker


@pytest.fixture(scope="module")
def door(made: Assembled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """`dataflow up` over a copy of the examples, so that theirs is not disturbed."""
    folder = tmp_path_factory.mktemp("flow")
    shutil.copy(ROOT / "dataflow.yaml", folder)
    for name in (
        "topics/digits.yaml",
        "topics/scans.yaml",
        "pipelines/digits",
        "pipelines/diamond",
        "pipelines/crops",
    ):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target)
        else:
            shutil.copy(ROOT / name, target)
    with Running(folder, "up", "--port", "0", "--ephemeral") as running:
        running.shows("Ctrl-C")
        address = str(json.loads((folder / ".dataflow/up.json").read_text())["gateway"])
        wait_for(lambda: httpx.get(f"{address}/v2/health/ready").status_code == 200, "readiness")
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client


@pytest.mark.broker
@pytest.mark.slow
def test_a_caller_has_the_number_on_a_form(door: httpx.Client) -> None:
    wrong = 0
    for at, (data, number) in enumerate(draw.draw(12, seed=9)):
        record = {"name": f"f{at}", "image": base64.b64encode(data).decode()}
        response = door.post("/pipelines/crops", json=record)
        assert response.status_code == 200, response.text
        assert response.json()["name"] == f"f{at}"
        assert len(response.json()["number"]) == len(number)
        wrong += sum(a != b for a, b in zip(response.json()["number"], number, strict=True))
    assert wrong <= 3
    broken = door.post(
        "/pipelines/crops", json={"name": "x", "image": base64.b64encode(b"no image").decode()}
    )
    assert broken.status_code >= 400
    assert "no PNG or JPEG image" in broken.text


@pytest.mark.broker
@pytest.mark.slow
def test_a_caller_is_answered_by_one_model_when_the_other_fails(door: httpx.Client) -> None:
    images, labels = draw.held_out()

    def ask(pipeline: str, darker: int = 1) -> dict[str, Any]:
        response = door.post(f"/pipelines/{pipeline}", json={"image": (images[1] // darker).tolist()})
        assert response.status_code == 200, response.text
        return dict(response.json())

    clear = ask("diamond")
    assert (clear["digit"], clear["without"]) == (labels[1], [])
    # The forest's stage may still load its model; its part counts from then on.
    wait_for(lambda: ask("diamond-apart")["without"] == [], "the forest in its own stage", 60)
    for pipeline in ("diamond", "diamond-apart"):
        faint = ask(pipeline, darker=3)
        assert (faint["without"], faint["agree"]) == (["forest"], None)
