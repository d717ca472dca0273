"""`rekey`: what it refuses, what becomes of null, and where records lie and go after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.codecs.keys import encode_key
from dataflow.control.assemble import assemble
from dataflow.core import headers
from dataflow.core.errors import ContractError
from dataflow.core.schema import FieldType, Schema
from dataflow.testing import PipelineRun, contract_of, run_node
from dataflow.transport.memory_log import StoredTopic
from dataflow.transport.murmur import murmur2_partition
from nodes.rekey import RekeyRecords

SCHEMA = Schema.of(
    shop=FieldType("string", nullable=True), n="int64", small="int16", x="float64", tags=FieldType("list", item=FieldType("string")),
    vector=FieldType("int32", shape=(2,)),
)  # fmt: skip


def record(shop: str | None, n: int = 1) -> dict[str, Any]:
    return {"shop": shop, "n": n, "small": 1, "x": 0.5, "tags": [], "vector": [1, 2]}


def test_the_contract_is_that_of_the_input() -> None:
    assert contract_of(RekeyRecords, SCHEMA, {"key": "shop"}) == {"out": SCHEMA}
    assert contract_of(RekeyRecords, SCHEMA, {"key": ["shop", "n"], "encoding": "composite"}) == {
        "out": SCHEMA
    }


@pytest.mark.parametrize(
    ("settings", "message", "path"),
    [
        ({"key": "shp"}, "key: no field 'shp' in the input (did you mean 'shop'?)", ("with", "key")),
        ({"key": ["n", "shp"]}, "key: no field 'shp' in the input (did you mean 'shop'?)", ("with", "key", 1)),
        ({"key": ["n", "n"]}, "key: field 'n' is there twice", ("with", "key", 1)),
        ({"key": "x"}, "key: field 'x' of type float64 cannot be a key (valid: string, enum, bytes", ("with", "key")),
        ({"key": "vector"}, r"key: field 'vector' of type int32[2] cannot be a key", ("with", "key")),
        ({"key": ["n", "shop"], "encoding": "int"}, "encoding: 'int64' needs a key of one field", ("with", "encoding")),
        ({"key": "n", "encoding": "int32"}, "encoding: 'int32' holds no int64 (it holds int8, int16", ("with", "encoding")),
        ({"key": "shop", "encoding": "bytes"}, "encoding: 'bytes' holds no string", ("with", "encoding")),
    ],
)  # fmt: skip
def test_what_makes_no_key_is_refused(settings: dict[str, Any], message: str, path: tuple[Any, ...]) -> None:
    with pytest.raises(ContractError) as caught:
        contract_of(RekeyRecords, SCHEMA, settings)
    assert str(caught.value).startswith(message)
    assert caught.value.path == path


def test_a_record_without_a_key_fails_or_is_dropped() -> None:
    rows = [record("a"), record(None), record("b")]
    failing = run_node(RekeyRecords, SCHEMA, rows, {"key": "shop"})
    assert failing.parents == {"out": [0, 2]}
    assert failing.failed == [(1, "field 'shop' is null: it makes no key")]
    dropping = run_node(RekeyRecords, SCHEMA, rows, {"key": "shop", "on_null": "drop"})
    assert (dropping.parents, dropping.dropped) == ({"out": [0, 2]}, [(1, "no key")])
    both = run_node(RekeyRecords, SCHEMA, rows, {"key": ["shop", "n"]})
    assert both.parents == {"out": [0, 1, 2]}
    none = run_node(RekeyRecords, SCHEMA, [record(None)], {"key": "shop"})
    assert (none.parents, none.failed) == ({"out": []}, [(0, "field 'shop' is null: it makes no key")])


PROJECT = {
    "topics.yaml": """
kind: Topic
name: visits
key: visitor
partitions: 3
fields: {visitor: string, shop: string, n: int64}
""",
    "pipeline.yaml": """
kind: Pipeline
name: by-shop
delivery: %s
inputs: {visit: visits}
answer: {from: [seen], input: visit}
nodes:
  shop: {use: rekey, from: visit, with: {key: shop, partitions: 5}}
  seen: {use: transform.select, from: shop, with: {keep: [shop, n]}}
""",
}

VISITS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.builds(
        dict, visitor=st.sampled_from("abcdefgh"), shop=st.sampled_from("uvwxyz"), n=st.integers(0, 99)
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for delivery in ("at_least_once", "exactly_once"):
        folder = tmp_path_factory.mktemp(delivery)
        place = folder / "pipelines" / "p"
        place.mkdir(parents=True)
        (folder / "dataflow.yaml").write_text("kind: Project\nname: test\n")
        (place / "topics.yaml").write_text(PROJECT["topics.yaml"])
        (place / "pipeline.yaml").write_text(PROJECT["pipeline.yaml"] % delivery)
        made[delivery] = folder
    return made


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@given(visits=VISITS)
def test_records_of_a_key_come_together_in_the_order_of_their_writing(
    projects: dict[str, Path], delivery: str, visits: list[dict[str, Any]]
) -> None:
    assembled = assemble(projects[delivery], environ={})
    (plan,) = assembled.plans
    with PipelineRun(projects[delivery], plan, assembled.registry) as run:
        run.feed("visit", visits)
        run.settle()
        result = run.result()
        stored = run.fabric.stored
    schema = plan.edges["shop"].schema
    assert sorted(map(repr, result.edges["shop"])) == sorted(map(repr, visits))
    assert len(set(result.ids["shop"])) == len(visits)
    assert sorted(result.ids["shop"]) == sorted(result.ids["seen"])
    lying = ids_by_key(stored["by-shop.shop"], 5)
    assert set(lying) == {encode_key(schema, ("shop",), visit) for visit in visits}
    assert ids_by_key(stored["by-shop.seen"], 5) == lying
    assert not result.dead_letters


def ids_by_key(topic: StoredTopic, partitions: int) -> dict[bytes, list[bytes | None]]:
    """The ids of each key in the order in which they lie, each where its key belongs."""
    found: dict[bytes, list[bytes | None]] = {}
    for number, part in enumerate(topic.partitions):
        for message in part.records:
            key = message.key()
            assert key is not None
            assert murmur2_partition(key, partitions) == number
            found.setdefault(key, []).append(dict(message.headers() or ())[headers.ID])
    return found
