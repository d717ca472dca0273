"""Replays on the log in memory: what was recorded runs again and is compared, record by record."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from dataflow.codecs import codec_for
from dataflow.codecs.values import to_jsonable
from dataflow.control.deploy import read_plans
from dataflow.control.replay import Replay, replay
from dataflow.control.replay_report import ReplayReport
from dataflow.control.replay_sources import changed_plan, recorded_plan, same_plan
from dataflow.control.starts import FROM_EARLIEST, Start
from dataflow.core import headers
from dataflow.core.errors import DataflowError, OffsetOutOfRangeError, PlanError, SpecError
from dataflow.planner.plan import DEAD_LETTERS, Plan
from dataflow.registry import Registry
from dataflow.transport.api import EARLIEST, Fabric, Message
from dataflow.transport.memory import MemoryFabric
from tests.conftest import wait_for
from tests.control.project import Made, make, produce

PIPELINE = """
kind: Topic
name: {name}.orders
key: shop
partitions: 2
fields:
  shop: string
  amount: float64
  owner: {{type: string, nullable: true, privacy: identifier}}
---
kind: Pipeline
name: {name}-shop
inputs: {{orders: {name}.orders}}
nodes:
  taxed: {{use: transform.python, from: orders, with: {{call: shop.tax}}, keep: [shop, owner]}}
  lines: {{use: transform.python, from: taxed, with: {{call: shop.lines}}, keep: [shop]}}
  size: {{use: route.when, from: taxed, with: {{large: "total > {limit}", small: otherwise}}}}
  told: {{use: logic.python, from: size.large, with: {{call: shop.tell}}, keep: [shop]}}
  after: {{use: transform.select, from: told, with: {{drop: [sent]}}}}
  apart: {{use: transform.select, from: lines, with: {{set: {{double: "part * 2"}}}}, isolate: true}}
"""
CODE = """
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

class Total(TypedDict):
    total: float

class Part(TypedDict):
    part: float

class Sent(TypedDict):
    sent: bool

def tax(row: Any) -> Total:
    if row["amount"] < 0:
        raise ValueError("a refund")
    return {"total": row["amount"] * 1.19}

def lines(row: Any) -> Iterator[Part]:
    yield {"part": row["total"] / 2}
    yield {"part": row["total"] / 4}

def tell(row: Any) -> Sent:
    with Path(__file__).with_name("effects").open("a") as file:
        file.write("told\\n")
    return {"sent": True}
"""


@pytest.fixture
def made(tmp_path: Path, unique: str) -> Made:
    return shop(tmp_path, unique, MemoryFabric())


def shop(folder: Path, name: str, fabric: Fabric) -> Made:
    made = make(folder, name, fabric)
    place = folder / "pipelines" / "shop"
    place.mkdir()
    (place / "pipeline.yaml").write_text(PIPELINE.format(name=name, limit=100))
    (place / "shop.py").write_text(CODE)
    made.deploy()
    return made


def orders(made: Made, *amounts: float) -> list[str]:
    records = [{"shop": f"s{i % 3}", "amount": a, "owner": "Ada"} for i, a in enumerate(amounts)]
    return produce(made, f"{made.name}.orders", records)


def record(made: Made, *amounts: float) -> list[str]:
    """Produce and run the pipeline over it."""
    ids = orders(made, *amounts)
    with made.working() as shop:
        made.settle(shop)
    return ids


def plan_of(made: Made) -> Plan:
    return read_plans(made.fabric)[f"{made.name}-shop"]


def again(made: Made, runs: Plan | None = None, **wanted: object) -> ReplayReport:
    plan = plan_of(made)
    registry = Registry.default(made.folder)
    return replay(made.folder, registry, made.fabric, Replay(plan, runs or plan, **wanted))  # type: ignore[arg-type]  # settings by name


def changed(made: Made, text: str) -> Plan:
    file = made.folder / "changed.txt"
    file.write_text(text)
    plan, _ = changed_plan(made.folder, f"{made.name}-shop", file, os.environ, lambda _n, _l: None, {})
    return plan


def ends(made: Made, topic: str) -> int:
    return sum(_ends(made, topic))


def test_the_same_plan_gives_the_same(made: Made) -> None:
    record(made, *range(1, 60), -1)
    topics = set(made.fabric.admin().topics())
    letters = ends(made, DEAD_LETTERS)
    report = again(made)
    assert report.same
    counts = {e.edge: (e.recorded, e.equal) for e in report.edges}
    assert counts == {
        "taxed": (59, 59),
        "lines": (118, 118),
        "size.large": (0, 0),
        "size.small": (59, 59),
        "apart": (118, 118),
    }
    assert report.off == {"told": "logic.python has effects outside", "after": "it needs what 'told' gives"}
    assert report.not_compared == report.off
    assert report.failed == {"taxed: ValueError": 1}
    assert report.fed[0].records == 60
    # Nothing of it is left, and nothing outside was touched.
    assert set(made.fabric.admin().topics()) == topics
    assert ends(made, DEAD_LETTERS) == letters


def test_effects_stay_off(made: Made) -> None:
    record(made, 50, 150, 250)
    effects = made.folder / "pipelines/shop/effects"
    told = effects.read_text()
    assert told.count("told") == 2
    report = again(made)
    assert report.same
    assert effects.read_text() == told
    assert {e.edge: e.recorded for e in report.edges}["size.large"] == 2


def test_a_changed_threshold_shows_exactly_the_differing_ones(made: Made) -> None:
    ids = record(made, *range(0, 200, 10))
    runs = changed(made, PIPELINE.format(name=made.name, limit=150).split("---")[1])
    report = again(made, runs, changed="changed.txt")
    assert not report.same
    moved = [i for i, amount in zip(ids, range(0, 200, 10), strict=True) if 100 < amount * 1.19 <= 150]
    assert moved
    edges = {e.edge: e for e in report.edges}
    assert {m.id for m in edges["size.large"].missing_records} == set(moved)
    assert set(edges["size.small"].extra_records) == set(moved)
    assert edges["size.large"].missing == edges["size.small"].extra == len(moved)
    assert (edges["taxed"].equal, edges["taxed"].same) == (20, True)
    assert report.recorded_version != report.replayed_version


def test_changed_code_shows_values_and_masks_private_ones(made: Made) -> None:
    ids = record(made, 100, 200, 300)
    place = made.folder / "pipelines/shop"
    code = CODE.replace("1.19", "(1.19 if row['amount'] < 250 else 1.2)")
    (place / "shop.py").write_text(code)
    with pytest.raises(PlanError, match="--with"):
        same_plan(made.folder, plan_of(made))
    runs, _ = changed_plan(
        made.folder, f"{made.name}-shop", place / "pipeline.yaml", os.environ, lambda _n, _l: None, {}
    )
    report = again(made, runs)
    edges = {e.edge: e for e in report.edges}
    (one,) = edges["taxed"].differences
    assert (one.id, one.path, one.recorded, one.replayed) == (ids[2], "total", "357.0", "360.0")
    assert edges["taxed"].fields["total"].records == 1
    assert edges["taxed"].fields["total"].largest == pytest.approx(3)
    assert (edges["lines"].equal, edges["lines"].differing) == (4, 2)
    # A tolerance of one in a hundred takes them all.
    assert again(made, runs, tolerance=0.01).same


def test_private_values_are_masked(made: Made) -> None:
    ids = record(made, 5)
    text = PIPELINE.format(name=made.name, limit=100).split("---")[1]
    text = text.replace("from: orders", "from: renamed").replace(
        "nodes:", "nodes:\n  renamed: {use: transform.select, from: orders, with: {set: {owner: '\"Bob\"'}}}"
    )
    runs = changed(made, text)
    report = again(made, runs)
    edges = {e.edge: e for e in report.edges}
    (one,) = edges["taxed"].differences
    assert (one.id, one.path, one.recorded, one.replayed) == (ids[0], "owner", "***", "***")
    assert report.not_compared["renamed"] == "it is new: nothing was recorded"
    report = again(made, runs, show_private=True)
    edges = {e.edge: e for e in report.edges}
    (one,) = edges["taxed"].differences
    assert (one.recorded, one.replayed) == ("Ada", "Bob")


def test_strangers_records_get_the_ids_that_they_had(made: Made) -> None:
    """A record without an id is known by its place in the topic that it came to."""
    ids = record(made, 1)
    producer = made.fabric.producer()
    topic = f"{made.name}.orders"
    value = raw_order(made)
    for partition in (0, 1):
        producer.send(topic, value, b"s", [(headers.REPLY_TO, b"dataflow.replies/0/x")], partition)
        producer.send(topic, value, b"s", [(headers.ID, b"no id"), ("mine", None)], partition)
    producer.close()
    with made.working() as shop:
        made.settle(shop)
    report = again(made)
    assert report.same
    assert {e.edge: e.equal for e in report.edges}["lines"] == 10
    assert ids


def raw_order(made: Made) -> bytes:
    from dataflow.codecs import codec_for
    from dataflow.codecs.values import coerce_records

    edge = plan_of(made).edges["orders"]
    decoded = coerce_records(edge.schema, [{"shop": "s", "amount": 7.0}])
    (value,) = codec_for(edge.codec, edge.schema).encode(decoded.columns, 1).values
    assert value is not None
    return value


def test_from_an_edge_within(made: Made) -> None:
    record(made, *range(1, 30))
    report = again(made, edge="lines")
    assert [e.edge for e in report.edges] == ["apart"]
    assert (report.fed[0].edge, report.fed[0].records, report.same) == ("lines", 58, True)
    # What a node with effects gave is replayed from, though it does not run itself.
    record(made, 200)
    report = again(made, edge="told")
    assert [(e.edge, e.recorded, e.equal) for e in report.edges] == [("after", 1, 1)]


def test_a_stretch_by_offset_and_by_time(made: Made) -> None:
    fabric = made.fabric
    assert isinstance(fabric, MemoryFabric)
    moment = [time.time()]
    fabric.clock = lambda: moment[0]
    record(made, 1, 2, 3)
    moment[0] += 60
    later = record(made, 4, 5)
    report = again(made, begin=Start(time_ms=int(moment[0] * 1_000)))
    assert report.same
    assert {e.edge: e.recorded for e in report.edges}["taxed"] == len(later)
    report = again(made, end=Start(1))
    assert report.same
    assert {e.edge: e.recorded for e in report.edges}["taxed"] == sum(
        e > 0 for e in _ends(made, f"{made.name}.orders")
    )
    with pytest.raises(SpecError, match=r"no record in that stretch. There is: .*offsets 0 to"):
        again(made, begin=Start(50))
    for partition, end in enumerate(_ends(made, f"{made.name}.orders")):
        fabric.delete_records((f"{made.name}.orders", partition), min(2, end))
    with pytest.raises(OffsetOutOfRangeError, match=r"There is: .*--from earliest"):
        again(made, begin=Start(0))
    with pytest.raises(OffsetOutOfRangeError, match="There is: "):
        again(made, begin=Start(time_ms=1_000))
    assert again(made, begin=FROM_EARLIEST).same


def _ends(made: Made, topic: str) -> list[int]:
    from dataflow.control.bounded import ends_of

    return [end for _, end in sorted(ends_of(made.fabric, [topic]).items())]


def test_what_was_written_twice_counts_once(made: Made) -> None:
    """At least once: the same stretch processed again writes the same records under the same ids."""
    record(made, 1, 2, 3)
    stage = plan_of(made).stages[0]
    assert isinstance(made.fabric, MemoryFabric)
    made.fabric.groups[stage.group].offsets.clear()
    with made.working() as shop:
        made.settle(shop)
    report = again(made)
    assert report.same
    edges = {e.edge: e for e in report.edges}
    assert (edges["taxed"].recorded, edges["taxed"].repeated) == (3, 3)


def test_extra_missing_and_their_reasons(made: Made) -> None:
    (broken,) = record(made, 30)
    place = made.folder / "pipelines/shop"
    (place / "shop.py").write_text(CODE.replace('["amount"] < 0', '["amount"] > 20'))
    runs, _ = changed_plan(
        made.folder, f"{made.name}-shop", place / "pipeline.yaml", os.environ, lambda _n, _l: None, {}
    )
    report = again(made, runs)
    edges = {e.edge: e for e in report.edges}
    (missing,) = edges["taxed"].missing_records
    assert missing.id == broken
    assert missing.reason.startswith("taxed: ValueError: a refund")
    assert {m.reason for m in edges["lines"].missing_records} == {missing.reason}
    assert edges["apart"].missing == 2


def test_unknown_names_and_what_cannot_be_replayed(made: Made) -> None:
    plans = read_plans(made.fabric)
    name = f"{made.name}-shop"
    with pytest.raises(SpecError, match="did you mean"):
        recorded_plan(plans, name[:-1], made.assembled.project)
    with pytest.raises(SpecError, match="nothing is recorded yet"):
        recorded_plan({}, name, made.assembled.project)
    assert recorded_plan(plans, name, made.assembled.project) is plans[name]
    orders(made, 1, 2)
    with pytest.raises(SpecError, match=r"no edge 'taxes'.*did you mean 'taxed'"):
        again(made, edge="taxes")
    with pytest.raises(PlanError, match=r"nothing of pipeline .* can be compared below 'size.large'"):
        again(made, edge="size.large")
    with pytest.raises(PlanError, match="nothing was recorded of that stretch"):
        again(made)
    with pytest.raises(SpecError, match="no record in that stretch"):
        again(made, edge="taxed")
    assert not [t for t in made.fabric.admin().topics() if "replay-" in t]


def test_what_was_not_processed_yet_is_told(made: Made) -> None:
    record(made, 1, 2)
    orders(made, 3)
    report = again(made)
    edges = {e.edge: e for e in report.edges}
    assert edges["taxed"].extra == 1
    assert any("has not processed 1 records" in note for note in report.notes)


def test_an_edge_that_is_not_written(made: Made) -> None:
    text = (made.folder / "pipelines/shop/pipeline.yaml").read_text()
    text = text.replace("keep: [shop, owner]}", "keep: [shop, owner], write: off}")
    (made.folder / "pipelines/shop/pipeline.yaml").write_text(text)
    made.deploy()
    record(made, 1, 2)
    report = again(made)
    assert report.same
    assert report.not_compared["taxed"] == "it is declared `write: off`"
    with pytest.raises(SpecError, match="write: off"):
        again(made, edge="taxed")


def test_changed_contracts_must_read_what_was_recorded(made: Made) -> None:
    record(made, 1)
    topics = made.folder / "pipelines/shop/pipeline.yaml"
    before = plan_of(made)
    topics.write_text(topics.read_text().replace("amount: float64", "amount: float64\n  code: string"))
    runs, _ = changed_plan(made.folder, before.pipeline, topics, os.environ, lambda _n, _l: None, {})
    with pytest.raises(PlanError, match="cannot be read under the changed contract"):
        again(made, runs)


def test_kept_topics_can_be_tapped(made: Made) -> None:
    record(made, 1, 2)
    report = again(made, keep=True)
    taxed = next(t for t in report.kept if t.endswith("-shop.taxed"))
    assert ends(made, taxed) == 2


def test_the_file_must_declare_the_pipeline(made: Made) -> None:
    with pytest.raises(SpecError, match="declares no pipeline"):
        changed(made, "kind: Pipeline\nname: another\n")
    text = PIPELINE.format(name=made.name, limit=1).split("---")[1]
    with pytest.raises(DataflowError, match="unknown node kind"):
        changed(made, text.replace("route.when", "route.whem"))


APART = """
kind: Topic
name: {name}.calls
key: caller
partitions: 2
fields: {{caller: string, n: int64}}
---
kind: Pipeline
name: {name}-calls
inputs: {{call: {name}.calls}}
nodes:
  odd:  {{use: filter.when, from: call, with: {{when: n % 2 == 1}}}}
  slow: {{use: transform.select, from: call, with: {{set: {{n: n * 10}}}}, isolate: true}}
  both: {{use: join.by_id, from: {{odd: odd, slow: slow}}, with: {{how: outer, select: {{odd: [caller], slow: [n]}}, missing: without}}}}
  told: {{use: logic.python, from: both, with: {{call: tell.none}}}}
"""


def test_joins_across_stages_close_as_they_did(tmp_path: Path, unique: str) -> None:
    made = make(tmp_path, unique, MemoryFabric())
    place = tmp_path / "pipelines" / "calls"
    place.mkdir()
    (place / "pipeline.yaml").write_text(APART.format(name=unique))
    (place / "tell.py").write_text("def none(row: dict) -> None:\n    return None\n")
    made.deploy()
    produce(made, f"{unique}.calls", [{"caller": f"c{n}", "n": n} for n in range(20)])
    plan = read_plans(made.fabric)[f"{unique}-calls"]
    assert plan.control is not None
    with made.working() as shop:
        made.settle(shop)
        wait_for(partial(_count, made, plan, "both", 20), "all joined")
    control = ends(made, plan.control.topics[0])
    report = replay(made.folder, Registry.default(made.folder), made.fabric, Replay(plan, plan))
    assert report.same
    assert {e.edge: e.equal for e in report.edges} == {"odd": 10, "slow": 20, "both": 20}
    assert ends(made, plan.control.topics[0]) == control


FAMILIES = """
kind: Topic
name: {name}.baskets
key: basket
partitions: 3
fields: {{basket: string, prices: {{type: list, items: int64}}}}
---
kind: Pipeline
name: {name}-baskets
inputs: {{basket: {name}.baskets}}
delivery: exactly_once
nodes:
  price: {{use: each.split, from: basket, with: {{field: prices, as: price}}}}
  sane:  {{use: filter.when, from: price, with: {{when: price >= 0}}}}
  by:    {{use: rekey, from: sane, with: {{key: price}}}}
  taxed: {{use: transform.select, from: by, with: {{set: {{price: price * 2}}}}}}
  small: {{use: filter.when, from: taxed, with: {{when: price < 100}}, isolate: true}}
  all:
    use: each.gather
    from: {{items: small, of: price.parents}}
    with: {{fields: {{taxed: price}}, on_missing: "null", missing: lost}}
    keep: [basket]
"""


@pytest.mark.parametrize(
    "where", ["memory", pytest.param("kafka", marks=[pytest.mark.broker, pytest.mark.slow])]
)
def test_families_across_stages_and_partitions_gather_as_they_did(
    tmp_path: Path, unique: str, where: str, request: pytest.FixtureRequest
) -> None:
    fabric: Fabric = MemoryFabric() if where == "memory" else request.getfixturevalue("kafka")
    made = make(tmp_path, unique, fabric)
    place = tmp_path / "pipelines" / "baskets"
    place.mkdir()
    (place / "pipeline.yaml").write_text(FAMILIES.format(name=unique))
    made.deploy()
    # Of each five: none, all there, one dropped at home, one dropped away from home, all dropped.
    prices = [[], [1, 2, 3], [4, -1, 5], [60, 7], [-1, 70]]
    produce(made, f"{unique}.baskets", [{"basket": f"b{n}", "prices": prices[n % 5]} for n in range(40)])
    plan = read_plans(made.fabric)[f"{unique}-baskets"]
    with made.working() as shop:
        made.settle(shop)
        found = _baskets(made, plan)
    assert found == {
        f"b{n}": [
            ([], []),
            ([2, 4, 6], []),
            ([8, None, 10], [1]),
            ([None, 14], [0]),
            ([None, None], [0, 1]),
        ][n % 5]
        for n in range(40)
    }
    report = replay(made.folder, Registry.default(made.folder), made.fabric, Replay(plan, plan))
    assert report.same
    assert {e.edge: e.equal for e in report.edges}["all"] == 40


def _baskets(made: Made, plan: Plan) -> dict[str, tuple[list[int | None], list[int]]]:
    edge = plan.edges["all"]
    consumer = made.fabric.consumer()
    consumer.assign({(edge.topics[0], n): EARLIEST for n in range(edge.partitions)})
    found: list[Message] = []

    def read() -> bool:
        found.extend(consumer.poll(100, 0.1))
        return len(found) >= 40

    wait_for(read, "all gathered")
    consumer.close()
    assert len(found) == 40
    decoded = codec_for(edge.codec, edge.schema).decode([m.value() for m in found])
    rows = to_jsonable(edge.schema, decoded.columns, len(found))
    return {row["basket"]: (row["taxed"], row["lost"]) for row in rows}


def _count(made: Made, plan: Plan, edge: str, count: int) -> bool:
    return ends(made, plan.edges[edge].topics[0]) >= count


STATE = """
kind: Topic
name: {name}.hits
key: page
partitions: 2
fields: {{page: string, at: int64}}
---
kind: Pipeline
name: {name}-pages
inputs: {{hits: {name}.hits}}
delivery: exactly_once
nodes:
  counted: {{use: transform.python, from: hits, with: {{call: pages.count}}, out: {{hits: int64}}, keep: [page]}}
---
kind: Pipeline
name: {name}-upon
nodes:
  even: {{use: filter.when, from: {name}-pages.counted, with: {{when: hits > 2}}}}
"""
PAGES = """
from typing import Any
from dataflow.sdk import KeyedContext

def count(row: Any, context: KeyedContext) -> Any:
    context.state.set("n", context.state.get("n", 0) + 1)
    return {"hits": context.state.get("n")}
"""


def test_state_begins_empty_and_the_report_says_so(tmp_path: Path, unique: str) -> None:
    made = make(tmp_path, unique, MemoryFabric())
    place = tmp_path / "pipelines" / "pages"
    place.mkdir()
    (place / "pipeline.yaml").write_text(STATE.format(name=unique))
    (place / "pages.py").write_text(PAGES)
    made.deploy()
    hits = [{"page": f"p{i % 2}", "at": i} for i in range(10)]
    first = produce(made, f"{unique}.hits", hits)
    with made.working() as shop:
        made.settle(shop)
    plan = read_plans(made.fabric)[f"{unique}-pages"]
    registry = Registry.default(made.folder)
    assert plan.stages[0].changelog
    kept = ends(made, plan.stages[0].changelog)
    report = replay(made.folder, registry, made.fabric, Replay(plan, plan))
    assert report.same
    assert report.edges[0].equal == len(first)
    assert any("counted began with empty state" in note for note in report.notes)
    # From the middle on, all counts are short by what was before.
    ends_now = _ends(made, f"{unique}.hits")
    report = replay(made.folder, registry, made.fabric, Replay(plan, plan, begin=Start(2)))
    (edge,) = report.edges
    assert edge.differing == edge.recorded == sum(max(e - 2, 0) for e in ends_now)
    assert {d.path for d in edge.differences} == {"hits"}
    assert ends(made, plan.stages[0].changelog) == kept
    # A pipeline upon its edge is fed from there.
    upon = read_plans(made.fabric)[f"{unique}-upon"]
    report = replay(made.folder, registry, made.fabric, Replay(upon, upon))
    assert report.same
    assert (report.fed[0].records, report.edges[0].equal) == (10, 6)


TORN = """
kind: Topic
name: {name}.loans
partitions: 2
fields: {{loan: string, amount: float64}}
---
kind: Pipeline
name: {name}-torn
inputs: {{loan: {name}.loans}}
nodes:
  large: {{use: filter.when, from: loan, with: {{when: amount > 100}}}}
  odd: {{use: filter.when, from: loan, with: {{when: amount % 2 == 1}}, isolate: true}}
  both: {{use: join.by_id, from: {{large: large, odd: odd}}, with: {{how: outer, select: {{odd: [loan]}}, prefix: {{odd: odd_}}, missing: without}}}}
"""


def test_a_join_across_stages(tmp_path: Path, unique: str) -> None:
    made = make(tmp_path, unique, MemoryFabric())
    place = tmp_path / "pipelines" / "torn"
    place.mkdir()
    (place / "pipeline.yaml").write_text(TORN.format(name=unique))
    made.deploy()
    produce(made, f"{unique}.loans", [{"loan": f"l{i}", "amount": 90 + i} for i in range(20)])
    with made.working() as shop:
        made.settle(shop)
    plan = read_plans(made.fabric)[f"{unique}-torn"]
    said = ends(made, f"{unique}-torn.control")
    report = replay(made.folder, Registry.default(made.folder), made.fabric, Replay(plan, plan))
    assert report.same
    assert {e.edge: e.equal for e in report.edges} == {"large": 9, "odd": 10, "both": 14}
    assert ends(made, f"{unique}-torn.control") == said == 21  # what the replay said is on a topic of its own
