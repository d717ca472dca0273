from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.errors import ContractError
from dataflow.core.schema import FieldType, Schema
from dataflow.testing import NodeResult, contract_of
from nodes.top_k import RouteTopK
from tests.nodes.gathering import gather, row

HITS = Schema.of(score=FieldType("float64", nullable=True))


def top_k(rows: list[Any], scores: list[float | None], **settings: Any) -> NodeResult:
    records = [{"score": score} for score in scores]
    return gather(RouteTopK, {"in": HITS}, {"in": (rows, records)}, {"score": "score", **settings})


def test_the_best_of_each_parent_go_to_the_top_in_their_order() -> None:
    rows = [row(f"p{at}", 0, "p") for at in range(3)] + [row(f"q{at}", 1, "q") for at in range(2)]
    result = top_k(rows, [1, 3, 2, 0, -1], k=2)
    assert result.parents == {"top": [1, 2, 3, 4], "rest": [0]}
    assert result.dropped == result.failed == []


def test_of_equals_the_earlier_is_better_and_null_and_nan_are_the_worst() -> None:
    rows = [row(f"p{at}", 0, "p") for at in range(5)]
    assert top_k(rows, [None, 1, float("nan"), 1, float("-inf")], k=1).parents["top"] == [1]
    assert top_k(rows, [None, 1, float("nan"), 1, float("-inf")], k=3).parents["top"] == [1, 3, 4]
    assert top_k(rows, [None, 1, float("nan"), 1, float("-inf")], k=4).parents["top"] == [0, 1, 3, 4]


def test_a_record_that_was_not_split_is_its_own_group() -> None:
    assert top_k([row(1), row(2)], [1, 2], k=1).parents == {"top": [0, 1], "rest": []}


def test_per_request_counts_over_all_splits() -> None:
    rows = [row("a", 0, "p"), row("b", 0, "q"), row("c", 1, "p"), row("d", 0, "q")]
    assert top_k(rows, [1, 2, 0, 3], k=1).parents["top"] == [0, 2, 3]
    assert top_k(rows, [1, 2, 0, 3], k=1, per="request").parents["top"] == [2, 3]


def test_the_score_may_be_an_expression() -> None:
    rows = [row(f"p{at}", 0, "p") for at in range(3)]
    result = gather(
        RouteTopK,
        {"in": HITS},
        {"in": (rows, [{"score": n} for n in (1, 2, 3)])},
        {"score": "-score", "k": 1},
    )
    assert result.parents["top"] == [0]


def test_contract_and_settings() -> None:
    assert contract_of(RouteTopK, HITS, {"score": "score", "k": 1}) == {"top": HITS, "rest": HITS}
    with pytest.raises(
        ContractError, match="score: 'score > 1' gives bool\\? where a number is needed"
    ) as caught:
        contract_of(RouteTopK, HITS, {"score": "score > 1", "k": 1})
    assert caught.value.path == ("with", "score")
    with pytest.raises(ContractError, match="no field"):
        contract_of(RouteTopK, HITS, {"score": "scroe", "k": 1})
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        contract_of(RouteTopK, HITS, {"score": "score", "k": 0})


@given(
    st.lists(st.tuples(st.integers(0, 2), st.none() | st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_it_is_what_sorting_each_group_gives(found: list[tuple[int, int | None]], k: int) -> None:
    rows = [row(f"c{at}", 0, f"p{group}") for at, (group, _) in enumerate(found)]
    result = top_k(rows, [None if score is None else float(score) for _, score in found], k=k)
    wanted = []
    for group in range(3):
        members = [(-1 if s is None else s, -at) for at, (g, s) in enumerate(found) if g == group]
        wanted += [-at for _, at in sorted(members, reverse=True)[:k]]
    assert result.parents["top"] == sorted(wanted)
    assert sorted(result.parents["top"] + result.parents["rest"]) == list(range(len(found)))
