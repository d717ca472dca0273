from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.batch import Batch, Encoded
from dataflow.core.errors import ContractError
from dataflow.core.outcomes import Out
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.sdk import Sides
from dataflow.testing import build_node, contract_of
from nodes.join import JoinAny, JoinById
from tests.nodes.gathering import gather, row

A, B, C = Schema.of(a="int64"), Schema.of(b="string"), Schema.of(c="float32")
NOON = datetime.fromisoformat("2024-05-01T12:00")
SIDES = {"left": A, "right": B}


def two(left: list[int], right: list[int]) -> dict[str, Any]:
    """Sides on which these records are."""
    return {
        "left": ([row(n) for n in left], [{"a": n} for n in left]),
        "right": ([row(n) for n in right], [{"b": str(n)} for n in right]),
    }


# --- by_id


def test_inner_drops_what_a_side_lacks_and_names_the_side() -> None:
    result = gather(JoinById, SIDES, two([1, 2, 3], [3, 1, 4]))
    assert result.out == [{"a": 1, "b": "1"}, {"a": 3, "b": "3"}]
    assert result.parents["out"] == [0, 2]  # the rows of the first side: its id, key and headers go on
    assert result.dropped == [(1, "no right"), (5, "no left")]
    assert result.failed == []


def test_outer_gives_null_and_names_who_lacked_it() -> None:
    result = gather(JoinById, SIDES, two([1, 2], [2, 3]), {"how": "outer", "missing": "without"})
    assert result.out == [
        {"a": 1, "b": None, "without": ["right"]},
        {"a": 2, "b": "2", "without": []},
        {"a": None, "b": "3", "without": ["left"]},
    ]
    assert result.dropped == []


def test_a_side_that_nothing_reached_is_missing_as_a_whole() -> None:
    assert gather(JoinById, SIDES, two([], [1])).dropped == [(0, "no left")]
    outer = gather(JoinById, SIDES, two([], [1, 2]), {"how": "outer"})
    assert outer.out == [{"a": None, "b": "1"}, {"a": None, "b": "2"}]


def test_required_sides_are_needed_and_stay_without_null() -> None:
    settings = {"how": "outer", "required": ["left"]}
    found = contract_of(JoinById, SIDES, settings)["out"]
    assert found.describe() == "a: int64, b: string?"
    result = gather(JoinById, SIDES, two([1], [1, 2]), settings)
    assert result.out == [{"a": 1, "b": "1"}]
    assert result.dropped == [(2, "no left")]
    everything = gather(
        JoinById, {**SIDES, "third": C}, two([1], [1]), {"how": "outer", "required": ["right", "third"]}
    )
    assert everything.dropped == [(0, "no third")]


def test_all_that_is_missing_is_in_the_reason() -> None:
    sides = {**SIDES, "third": C}
    given_sides = {**two([], []), "third": ([row(1)], [{"c": 0.5}])}
    assert gather(JoinById, sides, given_sides).dropped == [(0, "no left, right")]


def test_several_records_of_one_id_on_a_side_fail_that_record_only() -> None:
    result = gather(JoinById, SIDES, two([1, 1, 2], [1, 2]))
    assert result.out == [{"a": 2, "b": "2"}]
    assert result.failed == [(0, "side 'left' has more than one record with this id")]
    assert result.dropped == []


def test_one_record_fetched_twice_is_joined_twice() -> None:
    first, again = row("x", source=0), row("x", source=1)
    result = gather(
        JoinById,
        SIDES,
        {"left": ([first, again], [{"a": 1}, {"a": 2}]), "right": ([again, first], [{"b": "2"}, {"b": "1"}])},
    )
    assert result.out == [{"a": 1, "b": "1"}, {"a": 2, "b": "2"}]
    assert result.failed == []


def test_nullable_columns_of_every_kind() -> None:
    kinds = Schema.of(
        t=FieldType("timestamp"), x=FieldType("float32", (2,)), free=FieldType("int8", (-1,)), s="string",
        l=FieldType("list", item=FieldType("int32")), n="float64",
    )  # fmt: skip
    record = {
        "t": NOON,
        "x": [1, 2],
        "free": np.array([1], np.int8),
        "s": "s",
        "l": [1],
        "n": 1.0,
    }
    sides = {"left": A, "right": kinds}
    for right in ([2], []):
        given_sides: dict[str, Any] = {
            "left": ([row(1), row(2)], [{"a": 1}, {"a": 2}]),
            "right": ([row(n) for n in right], [record for _ in right]),
        }
        settings = {"how": "outer", "required": ["left"]}
        out = contract_of(JoinById, sides, settings)["out"]
        result = gather(JoinById, sides, given_sides, settings)
        assert all(result.out[0][name] is None for name in kinds.names)
        if right:
            np.testing.assert_array_equal(result.out[1].pop("x"), [1, 2])
            np.testing.assert_array_equal(result.out[1].pop("free"), [1])
            assert result.out[1] == {"a": 2, "t": NOON, "s": "s", "l": [1], "n": 1.0}
        assert all(out[name].type.nullable for name in kinds.names)


def test_select_and_prefix_settle_what_both_sides_have() -> None:
    both = Schema.of(score="float32", model="string")
    sides = {"left": both, "right": both}
    with pytest.raises(ContractError, match="field 'score' is on side 'left' and on side 'right'") as caught:
        contract_of(JoinById, sides)
    assert "prefix" in (caught.value.hint or "")
    assert contract_of(JoinById, sides, {"prefix": {"right": "r_"}})["out"].names == (
        "score", "model", "r_score", "r_model",
    )  # fmt: skip
    settings = {"select": {"left": ["score"], "right": ["model"]}}
    assert contract_of(JoinById, sides, settings)["out"].names == ("score", "model")
    one = {
        "left": ([row(1)], [{"score": 1.0, "model": "l"}]),
        "right": ([row(1)], [{"score": 2.0, "model": "r"}]),
    }
    assert gather(JoinById, sides, one, settings).out == [{"score": 1.0, "model": "r"}]
    assert gather(JoinById, sides, one, {"prefix": {"left": "l_"}}).out == [
        {"l_score": 1.0, "l_model": "l", "score": 2.0, "model": "r"}
    ]


def test_of_two_event_times_the_first_counts_and_none_that_may_be_null() -> None:
    timed = FieldType("timestamp")
    sides = {
        "left": Schema((Field("at", timed, event_time=True),)),
        "right": Schema((Field("then", timed, event_time=True, privacy="secret"),)),
    }
    inner = contract_of(JoinById, sides)["out"]
    assert [f.event_time for f in inner] == [True, False]
    assert inner["then"].privacy == "secret"
    outer = contract_of(JoinById, sides, {"how": "outer", "required": ["right"]})["out"]
    assert [f.event_time for f in outer] == [False, True]


@pytest.mark.parametrize(
    ("settings", "message", "path"),
    [
        ({"required": ["left"]}, "required: has no effect with how: inner", ("with", "required")),
        ({"missing": "m"}, "missing: has no effect with how: inner", ("with", "missing")),
        ({"how": "outer", "required": ["lft"]}, "required: no side 'lft'", ("with", "required", 0)),
        ({"select": {"rigth": []}}, "select: no side 'rigth'", ("with", "select", "rigth")),
        ({"prefix": {"x": "x_"}}, "prefix: no side 'x'", ("with", "prefix", "x")),
        ({"select": {"left": ["aa"]}}, "no field 'aa' in side 'left'", ("with", "select", "left", 0)),
        ({"select": {"left": ["a", "a"]}}, "there twice", ("with", "select", "left")),
        ({"how": "outer", "missing": "b"}, "field 'b' is there already", ("with", "missing")),
        ({"select": {"left": [], "right": []}}, "no field of any side", ("with", "select")),
    ],
)
def test_what_does_not_fit_is_told_at_its_place(
    settings: dict[str, Any], message: str, path: tuple[str | int, ...]
) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        contract_of(JoinById, SIDES, settings)
    assert caught.value.path == path


def test_declarations_are_refused() -> None:
    with pytest.raises(ContractError, match="keep: the fields of this kind follow"):
        contract_of(JoinById, SIDES, keep=["a"])
    with pytest.raises(ValidationError):
        contract_of(JoinById, SIDES, {"how": "left"})


def test_aligned_sides_pass_their_columns_on_as_they_are() -> None:
    rows = [row(n) for n in range(3)]
    left = Batch.of(A, [{"a": n} for n in range(3)], rows)
    right = Batch.of(B, [{"b": str(n)} for n in range(3)], list(rows))
    sides = Sides.of({"left": left, "right": right})
    out = Out(Batch(Schema(()), {}, [*rows, *rows]), ["out"])
    build_node(JoinById, SIDES).gather(sides, out)  # type: ignore[attr-defined]  # a kind that gathers has it
    assert out.emissions[0].columns["a"] is left["a"]
    assert out.emissions[0].columns["b"] is right["b"]


SOME = st.lists(st.integers(0, 5), unique=True, max_size=5)


@example(left=[], right=[], third=[1, 0], how="outer", needed=set())  # one side alone, in another order
@given(
    left=SOME,
    right=SOME,
    third=SOME,
    how=st.sampled_from(["inner", "outer"]),
    needed=st.sets(st.sampled_from(["left", "third"])),
)
def test_it_is_what_a_naive_join_gives(
    left: list[int], right: list[int], third: list[int], how: str, needed: set[str]
) -> None:
    if not left + right + third:
        return
    there = {"left": left, "right": right, "third": third}
    required = sorted(needed) if how == "outer" else []
    sides = {**two(left, right), "third": ([row(n) for n in third], [{"c": n} for n in third])}
    extra = {"missing": "m", "required": required} if how == "outer" else {}
    result = gather(JoinById, {**SIDES, "third": C}, sides, {"how": how, **extra})
    wanted, lost = [], []
    must = required if how == "outer" else list(there)
    for n in sorted(set(left + right + third)):
        missing = [side for side, found in there.items() if n not in found]
        lacking = [side for side in missing if side in must]
        if lacking:
            order = [side for side in there if side in lacking]
            lost.append("no " + ", ".join(order))
            continue
        made = {
            "a": n if n in left else None, "b": str(n) if n in right else None, "c": float(n) if n in third else None,
        }  # fmt: skip
        wanted.append({**made, "m": missing} if how == "outer" else made)
    assert result.out == wanted
    assert sorted(reason for _, reason in result.dropped) == sorted(lost)
    assert result.failed == []


# --- any

TEXTS = {"best": Schema.of(text="string"), "fallback": Schema.of(text="string")}


def texts(best: list[int], fallback: list[int]) -> dict[str, Any]:
    return {
        "best": ([row(n) for n in best], [{"text": f"best {n}"} for n in best]),
        "fallback": ([row(n) for n in fallback], [{"text": f"fallback {n}"} for n in fallback]),
    }


def test_the_first_side_that_has_it_wins_once() -> None:
    result = gather(JoinAny, TEXTS, texts([1, 3], [1, 2, 3]), {"side": "by"})
    found = {r["text"]: r["by"] for r in result.out}
    assert found == {"best 1": "best", "best 3": "best", "fallback 2": "fallback"}
    assert len(result.out) == 3
    assert result.dropped == result.failed == []


def test_the_declared_order_decides_not_the_alphabet() -> None:
    turned = {"fallback": TEXTS["fallback"], "best": TEXTS["best"]}
    result = gather(JoinAny, turned, texts([1], [1]))
    assert result.out == [{"text": "fallback 1"}]


def test_of_several_records_of_one_id_the_first_is_taken() -> None:
    given_sides = {**texts([], [1]), "best": ([row(2), row(2)], [{"text": "one"}, {"text": "two"}])}
    assert [r["text"] for r in gather(JoinAny, TEXTS, given_sides).out] == ["one", "fallback 1"]


def test_any_keeps_the_bytes_where_contracts_are_equal() -> None:
    rows = [row(1), row(2)]
    best = Batch.of(TEXTS["best"], [{"text": "a"}, {"text": "b"}], rows)
    best.encoded = Encoded(b"f", [b"1", b"2"])
    out = Out(Batch(Schema(()), {}, rows), ["out"])
    build_node(JoinAny, TEXTS).gather(Sides.of({"best": best}), out)  # type: ignore[attr-defined]
    reuse = out.emissions[0].reuse
    assert reuse is not None
    assert reuse.encoded == best.encoded


def test_any_needs_equal_fields_or_a_selection() -> None:
    sides = {"x": Schema.of(n="int64", extra="string"), "y": Schema.of(n="int64", other="string")}
    with pytest.raises(ContractError, match="no field 'extra' in side 'y'"):
        contract_of(JoinAny, sides)
    with pytest.raises(ContractError, match="'b' is on side 'y' and not on side 'x'") as caught:
        contract_of(JoinAny, {"x": Schema.of(a="int64"), "y": Schema.of(a="int64", b="int64")})
    assert caught.value.path == ("from", "y")
    with pytest.raises(ContractError, match="'n' is int64 on side 'x', string on side 'y'"):
        contract_of(JoinAny, {"x": Schema.of(n="int64"), "y": Schema.of(n="string")})
    with pytest.raises(ContractError, match="field 'n' is there already"):
        contract_of(JoinAny, sides, {"select": ["n"], "side": "n"})
    assert contract_of(JoinAny, sides, {"select": ["n"], "side": "by"})["out"].names == ("n", "by")
    one = {
        "x": ([row(1)], [{"n": 1, "extra": "e"}]),
        "y": ([row(1), row(2)], [{"n": 10, "other": "o"}, {"n": 20, "other": "o"}]),
    }
    assert gather(JoinAny, sides, one, {"select": ["n"]}).out == [{"n": 1}, {"n": 20}]


def test_a_private_field_of_any_side_stays_private() -> None:
    plain = Schema.of(name="string")
    private = Schema((Field("name", FieldType("string"), privacy="identifier"),))
    assert contract_of(JoinAny, {"x": plain, "y": private})["out"]["name"].privacy == "identifier"
