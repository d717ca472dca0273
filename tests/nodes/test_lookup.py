"""`join.lookup` against the engine's own broadcast table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.batch import Batch
from dataflow.core.errors import ContractError
from dataflow.core.outcomes import Out
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.runtime.tables import BroadcastTable
from dataflow.testing.nodes import NodeResult, build_node, contract_of, kind_of, run_node
from nodes.lookup import JoinLookup

INPUT = Schema.of(flight="string", tail=FieldType("string", nullable=True), year="int32")
PLANES = Schema(
    (
        Field("tailnum", FieldType("string")),
        Field("seats", FieldType("int32"), doc="in all classes", unit="seat"),
        Field("built", FieldType("timestamp"), event_time=True),
        Field("speed", FieldType("float32", nullable=True)),
    )
)
BUILT = datetime(1999, 1, 1, tzinfo=UTC).replace(tzinfo=None)
ROWS = [("N1", 100, BUILT, 1.5), ("N2", 200, BUILT, None)]


def table_of(rows: Sequence[tuple[Any, ...]] = ROWS, schema: Schema = PLANES) -> BroadcastTable:
    table = BroadcastTable(schema, name="planes")
    for row in rows:
        table.upsert(str(row[0]).encode(), row)
    return table


def topics(name: str) -> Schema:
    if name != "planes":
        raise ContractError(f"unknown topic '{name}'", hint="did you mean 'planes'?")
    return PLANES


def contract(settings: Mapping[str, Any], schema: Schema = INPUT, **options: Any) -> Schema:
    given = {"table": "planes", "by": {"tailnum": "tail"}, **settings}
    return contract_of(JoinLookup, schema, given, topics=topics, **options)["out"]


def run(
    settings: Mapping[str, Any], tails: Sequence[str | None], table: BroadcastTable | None = None
) -> NodeResult:
    held = table if table is not None else table_of()
    given = {"table": "planes", "by": {"tailnum": "tail"}, **settings}
    records = [{"flight": f"F{i}", "tail": tail, "year": 2013} for i, tail in enumerate(tails)]
    return run_node(JoinLookup, INPUT, records, given, topics=topics, tables=lambda _: held)


class TestContract:
    def test_missing_rows_make_fields_nullable(self) -> None:
        added = contract({}).without(INPUT.names)
        assert added.describe() == "seats: int32?, built: timestamp?, speed: float32?"
        assert (added["seats"].doc, added["seats"].unit) == ("in all classes", "seat")
        assert not added["built"].event_time

    def test_otherwise_they_stay_as_they_are(self) -> None:
        for choice in ({"on_missing": "drop"}, {"on_missing": "fail"}):
            assert contract({"select": ["seats"], **choice}).describe().endswith("seats: int32")
        assert contract({"select": ["seats"], "default": {"seats": 0}}).describe().endswith("seats: int32")

    def test_select_and_prefix(self) -> None:
        made = contract({"select": ["tailnum", "seats"], "prefix": "plane_"})
        assert made.names == ("flight", "tail", "year", "plane_tailnum", "plane_seats")

    def test_yaml_null(self) -> None:
        kind = kind_of(JoinLookup)
        made = kind.settings.model_validate({"table": "planes", "by": {"a": "b"}, "on_missing": None})
        assert made.on_missing == "null"  # type: ignore[attr-defined]
        assert kind.tables(made) == ("planes",)

    @pytest.mark.parametrize(
        ("settings", "path", "message"),
        [
            ({"table": "plane"}, ("with", "table"), "unknown topic 'plane' (did you mean 'planes'?)"),
            ({"by": {"tail": "tail"}}, ("with", "by", "tail"), "no field 'tail' in planes (did you mean 'tailnum'?)"),
            ({"by": {"tailnum": "tai"}}, ("with", "by", "tailnum"), "'tail'"),
            (
                {"by": {"tailnum": "year"}}, ("with", "by", "tailnum"),
                "'year' is int32, but tailnum in planes is string",
            ),
            ({"select": ["seat"]}, ("with", "select", 0), "no field 'seat' in planes (did you mean 'seats'?)"),
            ({"select": []}, ("with", "select"), "no field of planes is added"),
            ({"default": {"seat": 1}}, ("with", "default", "seat"), "'seat' is not added (did you mean 'seats'?)"),
            ({"select": ["seats"], "on_missing": "default"}, ("with", "default"), "no value for 'seats'"),
            (
                {"select": ["seats"], "default": {"seats": "many"}}, ("with", "default", "seats"),
                "'many' (str) is not valid, expected int32",
            ),
            ({"default": {"seats": 1}, "on_missing": "drop"}, ("with", "default"), "has no effect with on_missing: drop"),
        ],
    )  # fmt: skip
    def test_messages(self, settings: dict[str, Any], path: tuple[Any, ...], message: str) -> None:
        with pytest.raises(ContractError) as caught:
            contract(settings)
        assert message in str(caught.value)
        assert caught.value.path == path

    def test_a_clash_of_names(self) -> None:
        with pytest.raises(
            ContractError, match=r"field 'seats' of planes is also in the input .*prefix"
        ) as caught:
            contract({}, Schema.of(tail="string", seats="int8"))
        assert caught.value.path == ("with", "table")

    def test_what_follows_from_the_table_is_not_declared(self) -> None:
        with pytest.raises(ContractError):
            contract({}, keep=["flight"])

    @pytest.mark.parametrize(
        ("mine", "theirs", "fits"),
        [
            ("int32", "int64", True), ("int32", "float64", True), ("float32", "float64", False),
            ("float32", "float32", True), ("string", "bytes", False), ("timestamp", "date", False),
            ("bool", "bool", True), ("bool", "int8", False),
        ],
    )  # fmt: skip
    def test_which_keys_compare(self, mine: str, theirs: str, fits: bool) -> None:
        def build() -> None:
            contract_of(
                JoinLookup, Schema.of(k=mine), {"table": "t", "by": {"key": "k"}},
                topics=lambda _: Schema.of(key=theirs, v="int8"),
            )  # fmt: skip

        if fits:
            build()
        else:
            with pytest.raises(ContractError, match="but key in t is"):
                build()


class TestRows:
    def test_fields_are_added(self) -> None:
        result = run({}, ["N2", "N1"])
        assert result.out == [
            {"flight": "F0", "tail": "N2", "year": 2013, "seats": 200, "built": BUILT, "speed": None},
            {"flight": "F1", "tail": "N1", "year": 2013, "seats": 100, "built": BUILT, "speed": 1.5},
        ]

    def test_null_for_what_is_missing(self) -> None:
        result = run({"select": ["seats", "built"]}, ["N1", "N9", None])
        assert [(r["seats"], r["built"]) for r in result.out] == [(100, BUILT), (None, None), (None, None)]

    def test_defaults(self) -> None:
        settings = {"default": {"seats": 7, "built": "2000-01-01T00:00:00Z"}}
        result = run(settings, ["N1", "N9"])
        assert [(r["seats"], r["built"].year, r["speed"]) for r in result.out] == [
            (100, 1999, 1.5),
            (7, 2000, None),
        ]

    def test_drop_and_fail(self) -> None:
        dropped = run({"on_missing": "drop"}, ["N9", "N1", None])
        assert [r["flight"] for r in dropped.out] == ["F1"]
        assert dropped.parents["out"] == [1]
        assert dropped.dropped == [(0, "no row in planes"), (2, "no row in planes")]
        failed = run({"on_missing": "fail"}, ["N9", "N1", None])
        assert [r["seats"] for r in failed.out] == [100]
        assert failed.failed == [
            (0, "no row in planes for tailnum='N9'"), (2, "no row in planes for tailnum=None"),
        ]  # fmt: skip
        assert run({"on_missing": "drop"}, ["N9"]).out == []

    def test_several_keys_by_expressions(self) -> None:
        schema = Schema.of(airport="string", age="int64", temp="float32")
        table = BroadcastTable(schema)
        table.upsert(b"1", ("ewr", 14, 1.5))
        result = run_node(
            JoinLookup, Schema.of(origin="string", year="int32"), [{"origin": "EWR", "year": 1999}],
            {"table": "w", "by": {"airport": "lower(origin)", "age": "2013 - year"}},
            topics=lambda _: schema, tables=lambda _: table,
        )  # fmt: skip
        assert result.out == [{"origin": "EWR", "year": 1999, "temp": 1.5}]

    def test_timestamps_as_keys(self) -> None:
        schema = Schema.of(at="timestamp", v="int8")
        table = BroadcastTable(schema)
        table.upsert(b"1", (BUILT, 3))
        result = run_node(
            JoinLookup, Schema.of(t="timestamp"), [{"t": BUILT}], {"table": "w", "by": {"at": "t"}},
            topics=lambda _: schema, tables=lambda _: table,
        )  # fmt: skip
        assert result.out == [{"t": BUILT, "v": 3}]

    def test_the_row_of_its_time(self) -> None:
        schema = Schema.of(place="string", hour="timestamp", rain="int32")
        table = BroadcastTable(schema)
        hours = [(3, 30), (1, 10), (2, 20)]
        for hour, rain in hours:
            table.upsert(str(hour).encode(), ("oslo", datetime(2026, 1, 5, hour), rain))  # noqa: DTZ001
        asked = [
            ("oslo", 0, 59),
            ("oslo", 1, 0),
            ("oslo", 2, 59),
            ("oslo", 3, 1),
            ("oslo", 9, 0),
            ("rome", 2, 0),
        ]
        records = [{"at": place, "t": datetime(2026, 1, 5, hour, minute)} for place, hour, minute in asked]  # noqa: DTZ001
        given = {"table": "w", "by": {"place": "at"}, "as_of": {"hour": "t"}, "select": ["rain"]}
        for more, rains in (
            ({}, [None, 10, 20, 30, 30, None]),
            ({"max_age": "2h"}, [None, 10, 20, 30, None, None]),
        ):
            result = run_node(
                JoinLookup, Schema.of(at="string", t="timestamp"), records, {**given, **more},
                topics=lambda _: schema, tables=lambda _: table,
            )  # fmt: skip
            assert [row["rain"] for row in result.out] == rains

    @pytest.mark.parametrize(
        ("settings", "path", "message"),
        [
            ({"as_of": {"bilt": "t"}}, ("with", "as_of", "bilt"), "no field 'bilt' in planes"),
            ({"as_of": {"built": "year"}}, ("with", "as_of", "built"), "'year' is int32"),
            ({"as_of": {"seats": "t"}}, ("with", "as_of", "seats"), "seats in planes is int32"),
            ({"max_age": "2h"}, ("with", "max_age"), "has no effect without as_of"),
            ({"as_of": {"built": "t", "seats": "t"}}, ("with", "as_of"), "takes one field"),
        ],
    )
    def test_times_that_do_not_compare(
        self, settings: dict[str, Any], path: tuple[Any, ...], message: str
    ) -> None:
        schema = Schema.of(tail="string", year="int32", t="timestamp")
        with pytest.raises(ContractError, match=message) as caught:
            contract(settings, schema)
        assert caught.value.path == path

    def test_a_row_that_comes_later_is_seen(self) -> None:
        table = table_of()
        node = build_node(
            JoinLookup, INPUT, {"table": "planes", "by": {"tailnum": "tail"}, "select": ["seats"]},
            topics=topics, tables=lambda _: table,
        )  # fmt: skip
        batch = Batch.of(INPUT, [{"flight": "F", "tail": "N3", "year": 1}])
        seen = []
        changes: list[Callable[[], None]] = [
            lambda: None,
            lambda: table.upsert(b"N3", ("N3", 9, BUILT, None)),
            lambda: table.delete(b"N3"),
        ]
        for change in changes:
            change()
            out = Out(batch, ("out",))
            node.process(batch, out)
            seen.append(out.emissions[0].columns["seats"][0])
        assert seen == [None, 9, None]

    @given(
        tails=st.lists(st.sampled_from(["N1", "N2", "N3", None]), max_size=20),
        choice=st.sampled_from(["null", "drop", "fail", "default"]),
    )
    def test_every_row_is_accounted_for(self, tails: list[str | None], choice: str) -> None:
        extra = {"default": {"seats": -1}} if choice == "default" else {}
        result = run({"on_missing": choice, "select": ["seats"], **extra}, tails)
        seats = {"N1": 100, "N2": 200}
        missing = [i for i, tail in enumerate(tails) if tail not in seats]
        assert [i for i, _ in result.dropped] == (missing if choice == "drop" else [])
        assert [i for i, _ in result.failed] == (missing if choice == "fail" else [])
        fill = {"null": None, "default": -1}
        expected = [seats.get(t or "", fill.get(choice)) for t in tails if t in seats or choice in fill]
        assert [r["seats"] for r in result.out] == expected
