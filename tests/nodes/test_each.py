from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.errors import ContractError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.testing import contract_of, run_node
from nodes.each import MAX_ITEMS, EachGather, EachSplit
from tests.nodes.gathering import gather, row

INTS = FieldType("list", item=FieldType("int32"))
BUNDLE = Schema.of(name="string", values=INTS)
LINE = FieldType("record", fields=(Field("sku", FieldType("string")), Field("pieces", FieldType("int32"))))


# --- split


def test_a_record_for_each_element_and_the_record_itself() -> None:
    records: list[dict[str, Any]] = [
        {"name": "x", "values": [7, 8]},
        {"name": "y", "values": []},
        {"name": "z", "values": [9]},
    ]
    result = run_node(EachSplit, BUNDLE, records, {"field": "values", "as": "value"}, keep=["name"])
    assert result.out == [
        {"value": 7, "index": 0, "count": 2, "name": "x"},
        {"value": 8, "index": 1, "count": 2, "name": "x"},
        {"value": 9, "index": 0, "count": 1, "name": "z"},
    ]
    assert result.parents["out"] == [0, 0, 2]
    assert result.ports["parents"] == [{**r, "count": len(r["values"])} for r in records]
    assert result.dropped == result.failed == []


def test_contracts_of_elements() -> None:
    fields = {
        "values": INTS,
        "lines": FieldType("list", item=LINE),
        "maybe": FieldType("list", item=FieldType("record", nullable=True, fields=LINE.fields)),
        "crops": FieldType("uint8", (-1, 8, 8)),
        "points": FieldType("float32", (3, 2)),
        "ragged": FieldType("float32", (-1, -1)),
        "flat": FieldType("float32", (-1,), nullable=True),
    }
    schema = Schema.of(**fields)

    def out(**settings: Any) -> str:
        return contract_of(EachSplit, schema, settings)["out"].describe()

    ends = ", index: int32, count: int32"
    assert out(field="values") == "values: int32" + ends
    assert out(field="lines") == "sku: string, pieces: int32" + ends
    assert out(field="maybe") == "sku: string?, pieces: int32?" + ends
    assert out(field="lines", **{"as": "line"}) == "line: record<sku: string, pieces: int32>" + ends
    assert out(field="crops", **{"as": "crop"}) == "crop: uint8[8,8]" + ends
    assert out(field="points") == "points: float32[2]" + ends
    assert out(field="ragged") == "ragged: float32[?]" + ends
    assert out(field="flat") == "flat: float32" + ends
    assert contract_of(EachSplit, schema, {"field": "values", "count": "n"})["parents"].names == (
        *schema.names,
        "n",
    )


def test_elements_of_every_kind() -> None:
    values: dict[str, tuple[FieldType, list[Any]]] = {
        "lines": (FieldType("list", item=LINE), [{"sku": "a", "pieces": 1}, {"sku": "b", "pieces": 2}]),
        "times": (
            FieldType("list", item=FieldType("timestamp")),
            [datetime.fromisoformat(f"2024-01-0{day}T12:00") for day in (1, 2)],
        ),
        "maybe": (FieldType("list", item=FieldType("int32", nullable=True)), [None, 2]),
        "lists": (FieldType("list", item=INTS), [[1], [2, 3]]),
    }
    for name, (kind, elements) in values.items():
        schema = Schema.of(**{name: kind})
        result = run_node(EachSplit, schema, [{name: elements}], {"field": name, "as": "e"})
        assert [r["e"] for r in result.out] == elements
    spread = run_node(
        EachSplit, Schema.of(lines=values["lines"][0]), [{"lines": values["lines"][1]}], {"field": "lines"}
    )
    assert [(r["sku"], r["pieces"]) for r in spread.out] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("shape", [(-1, 2), (3, 2), (-1, -1), (-1,)])
def test_tensors_split_along_their_first_dimension(shape: tuple[int, ...]) -> None:
    array = (
        np.arange(6, dtype=np.float32).reshape(3, 2) if len(shape) == 2 else np.arange(3, dtype=np.float32)
    )
    schema = Schema.of(x=FieldType("float32", shape))
    result = run_node(EachSplit, schema, [{"x": array}, {"x": array + 1}], {"field": "x"})
    assert len(result.out) == 6
    for at, found in enumerate(result.out):
        np.testing.assert_array_equal(found["x"], array[at % 3] + at // 3)


def test_null_has_no_elements_and_null_elements_are_elements() -> None:
    kind = FieldType("list", nullable=True, item=FieldType("record", nullable=True, fields=LINE.fields))
    result = run_node(EachSplit, Schema.of(x=kind), [{"x": None}, {"x": [None]}], {"field": "x"})
    assert result.out == [{"sku": None, "pieces": None, "index": 0, "count": 1}]
    assert [r["count"] for r in result.ports["parents"]] == [0, 1]


def test_ten_thousand_elements_and_not_one_more() -> None:
    records = [{"name": "x", "values": list(range(n))} for n in (MAX_ITEMS, MAX_ITEMS + 1)]
    result = run_node(EachSplit, BUNDLE, records, {"field": "values"})
    assert [r["index"] for r in result.out] == list(range(MAX_ITEMS))
    assert result.failed == [(1, "values: 10001 elements, at most 10000 are split")]
    few = run_node(EachSplit, BUNDLE, [{"name": "", "values": [1, 2]}], {"field": "values", "max_items": 1})
    assert few.failed == [(0, "values: 2 elements, at most 1 are split")]


@pytest.mark.parametrize(
    ("settings", "keep", "message", "path"),
    [
        ({"field": "valeus"}, (), "no field 'valeus' in the input", ("with", "field")),
        ({"field": "name"}, (), "'name' is string, which has no elements", ("with", "field")),
        ({"field": "values", "as": "index"}, (), "field 'index' is there already", ("with", "index")),
        ({"field": "values", "count": "name"}, (), "field 'name' is there already", ("with", "count")),
        ({"field": "values"}, ("values",), "field 'values' is there already", ("keep",)),
        ({"field": "values"}, ("nmae",), "no field 'nmae'", ("keep", 0)),
    ],
)
def test_a_bad_split_is_told_at_its_place(
    settings: dict[str, Any], keep: tuple[str, ...], message: str, path: tuple[str | int, ...]
) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        contract_of(EachSplit, BUNDLE, settings, keep=keep)
    assert caught.value.path == path


# --- gather

ITEMS = Schema.of(score="float64", index="int32", count="int32")
PARENTS = Schema.of(name="string", count="int32")
INPUTS = {"items": ITEMS, "of": PARENTS}


def sides(there: dict[str, tuple[int, list[int]]], order: list[int] | None = None) -> dict[str, Any]:
    """By parent: count, and the indices of the items that came. `order` shuffles the items."""
    parents = [row(name, source=at) for at, name in enumerate(there)]
    made = [
        (
            row(f"{name}{index}", source=at, parent=name),
            {"score": float(index), "index": index, "count": count},
        )
        for at, (name, (count, indices)) in enumerate(there.items())
        for index in indices
    ]
    chosen = [made[i] for i in order] if order is not None else made
    records = [{"name": name, "count": count} for name, (count, _) in there.items()]
    return {"items": ([r for r, _ in chosen], [r for _, r in chosen]), "of": (parents, records)}


def test_items_come_back_in_order_and_none_is_an_empty_list() -> None:
    given_sides = sides({"p": (3, [0, 1, 2]), "q": (0, []), "r": (1, [0])}, order=[3, 2, 0, 1])
    result = gather(EachGather, INPUTS, given_sides, {"fields": ["score"]})
    assert result.out == [
        {"name": "p", "count": 3, "score": [0.0, 1.0, 2.0]},
        {"name": "q", "count": 0, "score": []},
        {"name": "r", "count": 1, "score": [0.0]},
    ]
    assert result.parents["out"] == [4, 5, 6]  # the parents' rows
    assert result.dropped == result.failed == []


@pytest.mark.parametrize(
    ("policy", "score"), [("skip", [0.0, 2.0]), ("null", [0.0, None, 2.0]), (None, [0.0, None, 2.0])]
)
def test_what_is_missing_is_skipped_or_null(policy: str | None, score: list[float | None]) -> None:
    settings = {"fields": {"scores": "score"}, "on_missing": policy, "missing": "lost"}
    result = gather(EachGather, INPUTS, sides({"p": (3, [0, 2]), "q": (1, [])}), settings, keep=["name"])
    assert result.out == [
        {"name": "p", "scores": score, "lost": [1]},
        {"name": "q", "scores": [] if policy == "skip" else [None], "lost": [0]},
    ]


def test_missing_items_fail_the_record_unless_said_otherwise() -> None:
    result = gather(EachGather, INPUTS, sides({"p": (20, [0, 2]), "q": (1, [0])}), {"fields": ["score"]})
    assert [r["name"] for r in result.out] == ["q"]
    assert result.failed == [(3, "18 of 20 items are missing: 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...")]


def test_items_that_contradict_each_other_fail_the_record() -> None:
    there = {"p": (2, [0, 0]), "q": (2, [0, 2]), "r": (1, [-1]), "s": (1, [0])}
    result = gather(EachGather, INPUTS, sides(there), {"fields": ["score"], "on_missing": "skip"})
    assert [r["name"] for r in result.out] == ["s"]
    assert [reason for _, reason in result.failed] == [
        "item 0 came more than once", "item 2 is none of the 2 of this record",
        "item -1 is none of the 1 of this record",
    ]  # fmt: skip


def test_items_without_their_record_are_dropped() -> None:
    orphan = (row("o", source=0, parent="gone"), {"score": 1.0, "index": 0, "count": 1})
    stranger = (row("s", source=0), {"score": 1.0, "index": 0, "count": 1})
    items: Any = ([orphan[0], stranger[0]], [orphan[1], stranger[1]])
    assert gather(EachGather, INPUTS, {"items": items}, {"fields": ["score"]}).dropped == [
        (0, "no parent"),
        (1, "no parent"),
    ]
    result = gather(EachGather, INPUTS, {**sides({"p": (0, [])}), "items": items}, {"fields": ["score"]})
    assert result.dropped == [(0, "no parent"), (1, "no parent")]
    assert result.out == [{"name": "p", "count": 0, "score": []}]


def test_one_record_fetched_twice_has_items_twice() -> None:
    parents = [row("p", source=0), row("p", source=1)]
    items = [row("i", source=1, parent="p"), row("i", source=0, parent="p")]
    given_sides: dict[str, Any] = {
        "of": (parents, [{"name": "first", "count": 1}, {"name": "again", "count": 1}]),
        "items": (items, [{"score": n, "index": 0, "count": 1} for n in (2.0, 1.0)]),
    }
    result = gather(EachGather, INPUTS, given_sides, {"fields": ["score"]}, keep=["name"])
    assert result.out == [{"name": "first", "score": [1.0]}, {"name": "again", "score": [2.0]}]
    twice = {**given_sides, "of": ([parents[0], parents[0]], given_sides["of"][1])}
    failed = gather(EachGather, INPUTS, twice, {"fields": ["score"], "on_missing": "skip"}).failed
    assert failed == [(3, "this record came more than once on 'of'")]


def test_tensors_of_fixed_shape_are_stacked() -> None:
    items = Schema.of(x=FieldType("float32", (2,)), free=FieldType("int8", (-1,)), index="int32")
    inputs = {"items": items, "of": PARENTS}
    rows = [row("b", 0, "p"), row("a", 0, "p")]
    records: Any = [{"x": [n, n], "free": np.ones(n, np.int8), "index": n} for n in (1, 0)]
    of: Any = ([row("p", 0), row("q", 1)], [{"name": "p", "count": 2}, {"name": "q", "count": 0}])
    found = contract_of(EachGather, inputs, {"fields": ["x", "free"]})["out"]
    assert found.describe() == "name: string, count: int32, x: float32[?,2], free: list<int8[?]>"
    first, second = gather(
        EachGather, inputs, {"items": (rows, records), "of": of}, {"fields": ["x", "free"]}
    ).out
    np.testing.assert_array_equal(first["x"], np.array([[0, 0], [1, 1]], np.float32))
    assert [len(v) for v in first["free"]] == [0, 1]
    assert (second["x"].shape, second["x"].dtype, second["free"]) == ((0, 2), np.float32, [])
    with_null = {"fields": ["x"], "on_missing": "null"}
    assert contract_of(EachGather, inputs, with_null)["out"]["x"].type.describe() == "list<float32[2]?>"
    lacking: dict[str, Any] = {"items": (rows[:1], records[:1]), "of": of}
    cells = gather(EachGather, inputs, lacking, with_null).out[0]["x"]
    assert cells[0] is None
    assert cells[1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("settings", "keep", "message", "path"),
    [
        ({"fields": ["scroe"]}, None, "no field 'scroe' in 'items'", ("with", "fields")),
        ({"fields": ["count"]}, None, "field 'count' is there already", ("with", "fields")),
        ({"fields": ["score"], "index": "place"}, None, "no field 'place' in 'items'", ("with", "index")),
        ({"fields": ["score"], "count": "name"}, None, "'name' is string, not the int32", ("with", "count")),
        (
            {"fields": ["score"], "missing": "name"},
            None,
            "field 'name' is there already",
            ("with", "missing"),
        ),
        ({"fields": ["score"]}, ["nme"], "no field 'nme' in 'of'", ("keep", 0)),
    ],
)
def test_a_bad_gather_is_told_at_its_place(
    settings: dict[str, Any], keep: list[str] | None, message: str, path: tuple[str | int, ...]
) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        contract_of(EachGather, INPUTS, settings, keep=keep)
    assert caught.value.path == path


@given(
    data=st.data(),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    policy=st.sampled_from(["fail", "null", "skip"]),
)
def test_it_is_what_a_naive_gather_gives(data: st.DataObject, counts: list[int], policy: str) -> None:
    there = {
        chr(ord("p") + at): (count, sorted(data.draw(st.sets(st.integers(0, count - 1))) if count else []))
        for at, count in enumerate(counts)
    }
    total = sum(len(found) for _, found in there.values())
    order = data.draw(st.permutations(range(total)))
    settings = {"fields": ["score"], "on_missing": policy, "missing": "m"}
    result = gather(EachGather, INPUTS, sides(there, order), settings, keep=["name"])
    wanted = []
    for name, (count, found) in there.items():
        if policy == "fail" and len(found) < count:
            continue
        values = [float(i) if i in found else None for i in range(count)]
        kept = [v for v in values if v is not None or policy == "null"]
        wanted.append({"name": name, "score": kept, "m": [i for i in range(count) if i not in found]})
    assert result.out == wanted
    assert len(result.failed) == len(there) - len(wanted)
