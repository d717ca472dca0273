from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.batch import Batch, Row
from dataflow.core.errors import ContractError
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.testing import build_node, contract_of, run_node
from nodes.weighted import RouteWeighted

USERS = Schema.of(user="string", n=FieldType("int64", nullable=True), x="float32")


def ways(count: int, settings: dict[str, Any]) -> list[str]:
    """The port of each of the users u0, u1, ..."""
    records = [{"user": f"u{at}", "n": at, "x": 0.0} for at in range(count)]
    result = run_node(RouteWeighted, USERS, records, {"by": "user", **settings})
    port_of = {at: port for port, rows in result.parents.items() for at in rows}
    assert len(port_of) == count
    assert not result.dropped + result.failed
    return [port_of[at] for at in range(count)]


def test_shares_are_those_of_the_weights() -> None:
    found = ways(20_000, {"weights": {"a": 90, "b": 9, "c": 1, "never": 0}})
    shares = {port: found.count(port) / len(found) for port in ("a", "b", "c", "never")}
    assert shares == pytest.approx({"a": 0.9, "b": 0.09, "c": 0.01, "never": 0}, abs=0.007)
    assert shares["never"] == 0


def test_the_way_of_a_value_is_what_the_page_says() -> None:
    found = ways(50, {"weights": {"a": 1, "b": 3}, "salt": "trial"})
    for at, port in enumerate(found):
        digest = blake2b(b"trial\0" + f"u{at}".encode(), digest_size=8).digest()
        assert port == ("a" if int.from_bytes(digest, "big") / 2**64 < 0.25 else "b")


def test_it_is_the_same_for_ever() -> None:
    # Written down once: a change of the hash would send everybody another way.
    assert "".join(ways(16, {"weights": {"a": 1, "b": 1}, "salt": "s"})) == "aaaabbababbbaabb"


def test_more_weight_moves_only_those_at_the_border() -> None:
    before = ways(2_000, {"weights": {"old": 90, "new": 10}})
    after = ways(2_000, {"weights": {"old": 70, "new": 30}})
    assert all(now == "new" for was, now in zip(before, after, strict=True) if was == "new")
    moved = sum(was != now for was, now in zip(before, after, strict=True))
    assert moved / 2_000 == pytest.approx(0.2, abs=0.03)


def test_other_salts_decide_independently_and_equal_ones_alike() -> None:
    settings = {"weights": {"a": 1, "b": 1}}
    one, two = ways(4_000, {**settings, "salt": "1"}), ways(4_000, {**settings, "salt": "2"})
    both = sum(x == y for x, y in zip(one, two, strict=True)) / 4_000
    assert both == pytest.approx(0.5, abs=0.03)
    assert one == ways(4_000, {**settings, "salt": "1"})


def test_by_default_the_id_decides_whatever_the_fields_say() -> None:
    rows = [Row(f"{at:08x}-0000-7000-8000-000000000000".encode(), source=at) for at in range(200)]
    made = build_node(RouteWeighted, USERS, {"weights": {"a": 1, "b": 1}})
    found = []
    for user in ("u", "v"):
        batch = Batch.of(USERS, [{"user": user, "n": 0, "x": 0.0}] * len(rows), rows)
        out = Out(batch, ["a", "b"])
        made.process(batch, out)
        out.settle()
        found.append({e.port: e.parents.tolist() for e in out.emissions})
    assert found[0] == found[1]
    assert 70 < len(found[0]["a"]) < 130


def test_a_null_goes_by_its_id() -> None:
    records = [{"user": "u", "n": None, "x": 0.0} for _ in range(200)]
    result = run_node(RouteWeighted, USERS, records, {"weights": {"a": 1, "b": 1}, "by": "n"})
    assert 70 < len(result.ports["a"]) < 130
    same = run_node(
        RouteWeighted, USERS, [{**r, "n": 7} for r in records], {"weights": {"a": 1, "b": 1}, "by": "n"}
    )
    assert {len(same.ports["a"]), len(same.ports["b"])} == {0, 200}


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
    st.lists(st.text(max_size=3), max_size=20),
)
def test_every_row_goes_one_way(weights: list[int], users: list[str]) -> None:
    records = [{"user": user, "n": None, "x": 0.0} for user in users]
    settings = {"weights": {f"p{at}": weight for at, weight in enumerate(weights)}, "by": "user"}
    result = run_node(RouteWeighted, USERS, records, settings)
    assert sorted(at for rows in result.parents.values() for at in rows) == list(range(len(users)))
    for at, weight in enumerate(weights):
        assert weight or not result.ports[f"p{at}"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "at least 1"),
        ({"a": -1}, "not 0 or more"),
        ({"a": 0}, "all weights are 0"),
        ({"A": 1}, "no port name"),
        ({"a": "much"}, "valid number"),
        ({"a": float("inf")}, "not 0 or more"),
    ],
)
def test_weights_are_checked(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        contract_of(RouteWeighted, USERS, {"weights": weights})


def test_contract() -> None:
    assert contract_of(RouteWeighted, USERS, {"weights": {"a": 1, "b": 0}}) == {"a": USERS, "b": USERS}
    with pytest.raises(ContractError, match="no field 'usr' in the input") as caught:
        contract_of(RouteWeighted, USERS, {"weights": {"a": 1}, "by": "usr"})
    assert caught.value.path == ("with", "by")
    with pytest.raises(ContractError, match="'x' is float32, which is not hashed"):
        contract_of(RouteWeighted, USERS, {"weights": {"a": 1}, "by": "x"})
