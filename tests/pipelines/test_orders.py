"""The examples `orders` and `answer_rules`: inline tests, and callers at the door of a real broker."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from dataflow.cli.test import run_tests
from dataflow.control.assemble import Assembled, assemble
from dataflow.planner.plan import Plan
from pipelines.crops import draw
from tests.conftest import wait_for
from tests.e2e.processes import Running, json_lines, succeed

ROOT = Path(__file__).parents[2]
RULES = {"committed": "exactly_once", "durable": "at_least_once", "eager": "at_least_once"}
NAMES = ("orders", *(f"answer-{rule}" for rule in RULES))


@pytest.fixture(scope="module")
def made() -> Assembled:
    return assemble(ROOT, NAMES, environ=os.environ)


@pytest.fixture(scope="module")
def plans(made: Assembled) -> Mapping[str, Plan]:
    return {plan.pipeline: plan for plan in made.plans}


@pytest.mark.parametrize("pipeline", NAMES)
def test_inline_tests_pass(made: Assembled, plans: Mapping[str, Plan], pipeline: str) -> None:
    outcomes = list(run_tests(made, plans[pipeline]))
    assert outcomes
    assert {o.name: o.faults for o in outcomes if o.faults} == {}


def test_the_rules_differ_in_delivery_and_answer_alone(plans: Mapping[str, Plan]) -> None:
    found = [plans[f"answer-{rule}"] for rule in RULES]
    assert [(p.answer.when, p.delivery) for p in found if p.answer] == list(RULES.items())
    assert len({tuple((n.name, n.kind, repr(n.settings)) for n in p.nodes.values()) for p in found}) == 1


def test_lint_warns_of_the_eager_one_alone(made: Assembled) -> None:
    (warning,) = made.warnings
    assert "an eager answer may be lost" in str(warning)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "shop"
    for part in ("orders", "answer_rules", "digits"):
        shutil.copytree(ROOT / "pipelines" / part, folder / "pipelines" / part)
    (folder / "topics").mkdir()
    for name in ("shops.yaml", "digits.yaml"):
        shutil.copy(ROOT / "topics" / name, folder / "topics" / name)
    (folder / "dataflow.yaml").write_text("kind: Project\nname: shop\n")
    return folder


@pytest.fixture(scope="module")
def door(folder: Path) -> Iterator[httpx.Client]:
    with Running(folder, "up", *NAMES, "--port", "0", "--ephemeral") as running:
        running.shows("Ctrl-C")
        address = str(json.loads((folder / ".dataflow/up.json").read_text())["gateway"])
        wait_for(lambda: httpx.get(f"{address}/v2/health/ready").status_code == 200, "readiness")
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client


@pytest.mark.broker
@pytest.mark.slow
def test_a_customer_is_told_from_the_newest_count(door: httpx.Client, folder: Path) -> None:
    now = datetime.now(UTC)

    def ask(shop: str, order: str, pieces: int) -> dict[str, Any]:
        said = {"shop": shop, "order": order, "pieces": pieces, "at": datetime.now(UTC).isoformat()}
        answer = door.post("/pipelines/orders", json=said)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    levels = [("oslo", 9, 50), ("oslo", 3, 10), ("rome", 5, 5)]
    lines = [
        json.dumps({"shop": s, "level": n, "counted": (now - timedelta(minutes=m)).isoformat()})
        for s, n, m in levels
    ]
    succeed(folder, "produce", "shop.stock", "-", given="\n".join(lines))
    # The counts are on another topic: an order may overtake them, and is then told that the shop is asked.
    wait_for(lambda: ask("oslo", "A0", 1)["level"] == 3, "the counts of oslo to be known")
    wait_for(lambda: ask("rome", "B0", 1)["level"] == 5, "the count of rome to be known")
    first = ask("oslo", "A1", 2)
    assert (first["when"], first["short"], first["level"]) == ("today", 0, 3)
    second = ask("rome", "B1", 8)
    assert (second["when"], second["short"]) == ("this week", 3)
    nobody = ask("bern", "C1", 1)
    assert (nobody["when"], nobody["level"]) == ("we ask the shop", None)
    tapped = json_lines(
        succeed(folder, "tap", "orders.promise", "--from", "earliest", "--limit", "5", "--format", "json")
    )
    assert {line["value"]["order"] for line in tapped} <= {"A0", "A1", "B0", "B1", "C1"}  # type: ignore[index]


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_answers_and_the_edge_has_the_same(door: httpx.Client, folder: Path, rule: str) -> None:
    images, labels = draw.held_out()
    asked = [door.post(f"/pipelines/answer-{rule}", json={"image": images[i].tolist()}) for i in range(8)]
    assert {a.status_code for a in asked} == {200}
    answers = {a.headers["df-id"]: a.json() for a in asked}
    right = sum(a.json()["digit"] == label for a, label in zip(asked, labels, strict=False))
    assert right >= 7
    limit = ("--limit", str(len(asked)))
    tapped = json_lines(
        succeed(folder, "tap", f"answer-{rule}.sure", "--from", "earliest", "--format", "json", *limit)
    )
    edge = {str(line["id"]): line["value"] for line in tapped}
    assert edge == answers
