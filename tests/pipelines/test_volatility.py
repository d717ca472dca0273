"""The example of a loop: every price is explained or told to be one that no volatility explains, in rounds that are counted."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataflow.cli.test import run_tests
from dataflow.control.assemble import Assembled, assemble
from dataflow.sdk import Batch, Schema
from dataflow.testing import run_pipeline
from pipelines.volatility import newton
from tests.conftest import wait_for
from tests.e2e.processes import Running

ROOT = Path(__file__).parents[2]
FIELDS = ("spot", "strike", "years", "rate", "price", "sigma", "miss")


@pytest.fixture(scope="module")
def made() -> Assembled:
    return assemble(ROOT, ["volatility"], environ=os.environ)


def call_price(spot: float, strike: float, years: float, rate: float, sigma: float) -> float:
    """The price of a call, written down anew: by the complementary error function, one option at a time."""
    deviation = sigma * math.sqrt(years)
    above = (math.log(spot / strike) + (rate + sigma**2 / 2) * years) / deviation
    below = above - deviation
    inside = [0.5 * math.erfc(-x / math.sqrt(2)) for x in (above, below)]
    return spot * inside[0] - strike * math.exp(-rate * years) * inside[1]


def quotes(count: int, seed: int) -> list[dict[str, Any]]:
    """Prices that some volatility explains, and others that none does, one in five."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        spot, years, rate = 100.0, random.uniform(0.1, 2), random.uniform(0, 0.08)
        sigma = random.uniform(0.1, 0.9)
        strike = spot * math.exp(random.uniform(-1.5, 1.5) * sigma * math.sqrt(years))
        price = call_price(spot, strike, years, rate, sigma)
        if number % 5 == 0:
            strike = spot * random.uniform(0.3, 0.6)
            price = (spot - strike * math.exp(-rate * years)) * random.uniform(0.5, 0.95)
            sigma = math.nan
        found.append(
            {"contract": f"c{number}", "spot": spot, "strike": strike, "years": years, "rate": rate, "price": price, "is": sigma}
        )  # fmt: skip
    return found


def said(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in r.items() if name != "is"} for r in records]


def test_inline_tests_pass(made: Assembled) -> None:
    outcomes = list(run_tests(made, made.plans[0]))
    assert len(outcomes) == 4
    assert {o.name: o.faults for o in outcomes if o.faults} == {}


def test_a_round_comes_back_to_the_stage_that_began_it(made: Assembled) -> None:
    (stage,) = made.plans[0].stages
    assert stage.reads == ("quote", "close.again")
    assert stage.leaves == ("close.again",)


def test_every_price_is_explained_or_told_to_be_unexplained(made: Assembled) -> None:
    given_ = quotes(200, seed=4)
    result = run_pipeline(ROOT, made.plans[0], made.registry, {"quote": said(given_)})
    explained = {r["contract"]: r["sigma"] for r in result.edges["implied"]}
    assert {r["contract"] for r in result.edges["unexplained"]} == {
        q["contract"] for q in given_ if math.isnan(q["is"])
    }
    assert len(explained) + len(result.edges["unexplained"]) == len(given_)
    for quote in given_:
        if not math.isnan(quote["is"]):
            assert explained[quote["contract"]] == pytest.approx(quote["is"], abs=1e-6)
    rounds = len(result.edges["step"]) / len(given_)
    assert rounds < 7  # twelve each for those that have none
    assert not result.dead_letters


@given(
    away=st.floats(-1.5, 1.5), years=st.floats(0.02, 5), rate=st.floats(-0.02, 0.1), sigma=st.floats(0.02, 3),
)  # fmt: skip
@example(away=-1.5, years=2.0, rate=0.09375, sigma=0.03125)
def test_twelve_rounds_are_enough(away: float, years: float, rate: float, sigma: float) -> None:
    """For strikes up to 1.5 standard deviations from the forward; the price of one much farther says next to nothing."""
    strike = 100.0 * math.exp(rate * years + away * sigma * math.sqrt(years))
    price = call_price(100.0, strike, years, rate, sigma)
    row = {
        "spot": 100.0,
        "strike": strike,
        "years": years,
        "rate": rate,
        "price": price,
        "sigma": 0.0,
        "miss": 0.0,
    }
    for call in (newton.guess, *([newton.step] * 12)):
        batch = Batch.of(Schema.of(**dict.fromkeys(FIELDS, "float64")), [row])
        row |= {name: float(column[0]) for name, column in call(batch).items()}
    assert abs(row["miss"]) <= 1e-10 * 100


# --- on the real broker


@pytest.fixture(scope="module")
def door(made: Assembled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """`dataflow up` over a copy of the example."""
    folder = tmp_path_factory.mktemp("volatility")
    shutil.copy(ROOT / "dataflow.yaml", folder)
    (folder / "topics").mkdir()
    shutil.copy(ROOT / "topics/options.yaml", folder / "topics")
    shutil.copytree(ROOT / "pipelines/volatility", folder / "pipelines/volatility")
    with Running(folder, "up", "--port", "0", "--ephemeral") as running:
        running.shows("Ctrl-C")
        address = str(json.loads((folder / ".dataflow/up.json").read_text())["gateway"])
        wait_for(lambda: httpx.get(f"{address}/v2/health/ready").status_code == 200, "readiness")
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client


@pytest.mark.broker
@pytest.mark.slow
def test_callers_have_their_volatility_when_the_last_round_is_over(door: httpx.Client) -> None:
    for quote in quotes(20, seed=8):
        answer = door.post("/pipelines/volatility", json=said([quote])[0])
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["contract"] == quote["contract"]
        if math.isnan(quote["is"]):
            assert found["miss"] > 0
        else:
            assert found["sigma"] == pytest.approx(quote["is"], abs=1e-6)
    refused = door.post("/pipelines/volatility", json=said([quotes(1, seed=1)[0] | {"price": 200.0}])[0])
    assert refused.status_code >= 400
    assert "no price of a call" in refused.text
