"""The web shop: visits and carts are those that a plain look at all clicks at once finds."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dataflow.control.assemble import Assembled, assemble
from dataflow.planner.plan import Plan
from dataflow.testing import RunResult, run_pipeline
from pipelines.clickstream import clicks
from tests.conftest import wait_for
from tests.e2e.processes import Running, dataflow, json_lines, succeed

ROOT = Path(__file__).parents[2]
GAP, PATIENCE, DELAY = timedelta(minutes=30), timedelta(minutes=45), timedelta(minutes=1)
Click = Mapping[str, Any]


@pytest.fixture(scope="module")
def made() -> Assembled:
    return assemble(ROOT, ["clickstream"], environ=os.environ)


@pytest.fixture(scope="module")
def plan(made: Assembled) -> Plan:
    return made.plans[0]


@pytest.fixture(scope="module")
def given() -> list[dict[str, Any]]:
    found = clicks.clicks(visitors=400, days=3, seed=4)
    return [{**one, "product": one["product"] or None, "cents": one["cents"] or None} for one in found]


@pytest.fixture(scope="module")
def result(made: Assembled, plan: Plan, given: list[dict[str, Any]]) -> RunResult:
    return run_pipeline(ROOT, plan, made.registry, {"click": given})


def at(click: Click) -> datetime:
    return datetime.fromisoformat(click["at"])


def by_visitor(given: Iterable[Click]) -> dict[str, list[Click]]:
    """The clicks of each visitor, in the order in which the shop got them."""
    found: dict[str, list[Click]] = defaultdict(list)
    for click in given:
        found[click["visitor"]].append(click)
    return found


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_clicks_are_like_those_of_a_shop(given: list[dict[str, Any]]) -> None:
    assert 3_000 < len(given) < 10_000
    assert {click["action"] for click in given} == {"view", "add", "remove", "pay"}
    out_of_order = sum(at(b) < at(a) for a, b in pairwise(given))
    assert out_of_order > 50
    latest = at(given[0])
    for click in given:
        latest = max(latest, at(click))
        assert latest - at(click) < DELAY
    evening = sum(18 <= at(click).hour < 22 for click in given)
    assert evening > 3 * sum(2 <= at(click).hour < 6 for click in given)
    assert given == [
        {**one, "product": one["product"] or None, "cents": one["cents"] or None}
        for one in clicks.clicks(visitors=400, days=3, seed=4)
    ]


def test_visits_are_those_of_all_clicks_at_once(given: list[dict[str, Any]], result: RunResult) -> None:
    expected = {}
    for visitor, theirs in by_visitor(given).items():
        visit: list[Click] = []
        for click in [*sorted(theirs, key=at), None]:
            if visit and (click is None or at(click) - at(visit[-1]) >= GAP):
                expected[visitor, at(visit[0])] = (
                    len(visit),
                    len({c["page"] for c in visit}),
                    len({c["product"] for c in visit} - {None}),
                    max((c["cents"] for c in visit if c["cents"] is not None), default=None),
                    at(visit[-1]),
                    at(visit[-1]) + GAP,
                )
                visit = []
            if click is not None:
                visit.append(click)
    found = {
        (v["visitor"], moment(v["window_start"])): (
            v["clicks"], v["pages"], v["products"], v["dearest"], moment(v["last_click"]), moment(v["window_end"]),
        )
        for v in result.edges["visit"]
    }  # fmt: skip
    assert found == expected
    assert len(found) == len(result.edges["visit"])
    assert result.edges["visit.late"] == []
    assert result.dead_letters == []


def test_carts_are_paid_or_left(given: list[dict[str, Any]], result: RunResult) -> None:
    expected = defaultdict(list)
    for visitor, theirs in by_visitor(given).items():
        cart: dict[str, int] = {}
        last = None
        for click in theirs:
            if cart and last is not None and at(click) - last >= PATIENCE:
                # Between the end of patience and what delay adds, it depends on the clicks of others.
                assert at(click) - last > PATIENCE + DELAY, "choose another seed"
                expected[visitor].append(("left", sorted(cart), sum(cart.values())))
                cart = {}
            if click["action"] == "add":
                cart[click["product"]] = click["cents"]
            elif click["action"] == "remove":
                cart.pop(click["product"], None)
            elif click["action"] == "pay" and cart:
                expected[visitor].append(("paid", sorted(cart), sum(cart.values())))
                cart = {}
            if click["action"] in ("add", "remove"):
                last = max(last, at(click)) if cart and last is not None else at(click)
        if cart:
            expected[visitor].append(("left", sorted(cart), sum(cart.values())))
    found = defaultdict(list)
    for cart_ in result.edges["cart"]:
        found[cart_["visitor"]].append((cart_["outcome"], cart_["products"], cart_["cents"]))
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in expected.items()}
    outcomes = [outcome for carts in found.values() for outcome, _, _ in carts]
    assert outcomes.count("paid") > 20
    assert outcomes.count("left") > 100
    reminded = [c["visitor"] for c in result.edges["cart"] if c["remind"]]
    assert len(set(reminded)) == len(reminded)  # three days: nobody twice


def test_clicks_go_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    done = CliRunner().invoke(clicks.main, ["--out", str(file), "--visitors", "5", "--days", "1"])
    assert done.exit_code == 0, done.output
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["page"] for row in rows] == [one["page"] for one in clicks.clicks(5, 1, 1)]


@pytest.mark.broker
@pytest.mark.slow
def test_the_same_comes_out_of_the_real_broker(tmp_path: Path, made: Assembled, plan: Plan) -> None:
    """Exactly once, and with ids that are those of any other run."""
    given = clicks.clicks(visitors=60, days=2, seed=6)
    # Event time must pass the last timers in every partition: visitors of a month later see to that.
    later = (clicks.FIRST_DAY + timedelta(days=30)).isoformat()
    for number in range(40):
        end = {
            "visitor": f"end{number}",
            "action": "view",
            "page": "/",
            "product": "",
            "cents": "",
            "at": later,
        }
        given.append(end)
    shutil.copy(ROOT / "dataflow.yaml", tmp_path)
    (tmp_path / "topics").mkdir()
    shutil.copy(ROOT / "topics/clicks.yaml", tmp_path / "topics")
    shutil.copytree(ROOT / "pipelines/clickstream", tmp_path / "pipelines/clickstream")
    with (tmp_path / "clicks.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, clicks.FIELDS)
        rows.writeheader()
        rows.writerows(given)
    plain = [{**one, "product": one["product"] or None, "cents": one["cents"] or None} for one in given]
    in_memory = run_pipeline(ROOT, plan, made.registry, {"click": plain})
    expected = sorted(
        json.dumps([id_, cart["outcome"], cart["products"], cart["cents"], cart["remind"]])
        for cart, id_ in zip(in_memory.edges["cart"], in_memory.ids["cart"], strict=True)
        if cart["outcome"] == "left"  # a paid one has the id of its click
    )
    paid = sum(cart["outcome"] == "paid" for cart in in_memory.edges["cart"])
    visits = sum(not v["visitor"].startswith("end") for v in in_memory.edges["visit"])
    assert len(expected) > 10
    with Running(tmp_path, "up", "--port", "0", "--ephemeral") as running:
        running.shows("Ctrl-C")
        succeed(tmp_path, "produce", "shop.clicks", "clicks.csv")
        total = len(expected) + paid

        def carts() -> list[Any]:
            done = dataflow(
                tmp_path,
                "tap",
                "clickstream.cart",
                "--from",
                "earliest",
                "--format",
                "json",
                "--show-private",
            )
            lines: list[Any] = list(json_lines(done.stdout)) if done.returncode == 0 else []
            return lines if len(lines) >= total else []

        wait_for(carts, "the carts")
        found = carts()
        shown = sorted(
            json.dumps(
                [record["id"], *(record["value"][n] for n in ("outcome", "products", "cents", "remind"))]
            )
            for record in found
            if record["value"]["outcome"] == "left"
        )
        assert shown == expected
        assert len(found) == total
        taps = succeed(tmp_path, "tap", "clickstream.visit", "--from", "earliest", "--format", "json")
        assert len(json_lines(taps)) == visits
