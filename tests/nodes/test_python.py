"""`transform.python`, `logic.python`, `model.python` over real user modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.batch import Batch, Row
from dataflow.core.errors import ContractError, NodeError
from dataflow.core.outcomes import Out
from dataflow.core.schema import FieldType, Schema
from dataflow.sdk import ModelInfo
from dataflow.testing.examples import example_files, write_example_files
from dataflow.testing.nodes import NodeResult, build_node, contract_of, kind_of, run_node
from nodes.python import LogicPython, ModelPython, TransformPython

INPUT = Schema.of(x="float64", name="string")
PRELUDE = """
import asyncio, dataclasses, threading
from collections.abc import *
from typing import *
import numpy as np
from dataflow.sdk import *
class Row(TypedDict):
    y: float
"""


@pytest.fixture(autouse=True)
def path_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., NodeResult]:
    """Run the function (or class) `f` of a module with this text over rows of `INPUT`."""

    def run(
        text: str,
        xs: Sequence[float] = (1.0, 2.0),
        *,
        kind: type[Any] = TransformPython,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> NodeResult:
        (tmp_path / "code.py").write_text(PRELUDE + dedent(text))
        records = [{"x": x, "name": f"n{i}"} for i, x in enumerate(xs)]
        return run_node(
            kind, INPUT, records, {"call": "code.f", **(settings or {})}, folder=tmp_path, **options
        )

    return run


Run = Callable[..., NodeResult]


class TestRowWise:
    def test_a_row_is_replaced_by_what_is_returned(self, run: Run) -> None:
        result = run("def f(row: dict) -> Row: return {'y': row['x'] * 2}")
        assert result.out == [{"y": 2.0}, {"y": 4.0}]

    def test_kept_fields_follow(self, run: Run) -> None:
        result = run("def f(row: dict) -> Row: return {'y': row['x'] * 2}", keep=["name"])
        assert result.out == [{"y": 2.0, "name": "n0"}, {"y": 4.0, "name": "n1"}]

    def test_arguments(self, run: Run) -> None:
        text = "def f(row: dict, by: float = 1.0) -> Row: return {'y': row['x'] * by}"
        assert run(text, settings={"arguments": {"by": 10}}).out == [{"y": 10.0}, {"y": 20.0}]

    def test_none_drops(self, run: Run) -> None:
        result = run("def f(row) -> Row | None: return {'y': 1.0} if row['x'] > 1 else None", keep=["name"])
        assert result.out == [{"y": 1.0, "name": "n1"}]
        assert result.dropped == [(0, "returned None")]

    def test_exceptions_end_one_row(self, run: Run) -> None:
        result = run(
            """
            def f(row) -> Row:
                match row["x"]:
                    case 0: raise Drop("too small")
                    case 1: raise Fail("bad ticket")
                    case 2: raise ValueError("boom")
                    case 3: return {"y": {}["gone"]}
                return {"y": row["x"]}
            """,
            [0, 1, 2, 3, 4],
        )
        assert result.out == [{"y": 4.0}]
        assert result.parents["out"] == [4]
        assert result.dropped == [(0, "too small")]
        assert result.failed == [
            (1, "bad ticket"),
            (2, "boom (code.py:14)"),
            (3, "no key 'gone' (code.py:15)"),
        ]

    def test_what_may_be_retried_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "code.py").write_text(
            PRELUDE
            + "def f(row) -> Row:\n"
            + "    raise (Retry('busy'), Fail('down', retryable=True), Fail('bad'), OSError('gone'))[int(row['x'])]\n"
        )
        node = build_node(TransformPython, INPUT, {"call": "code.f"}, folder=tmp_path)
        batch = Batch.of(INPUT, [{"x": float(i), "name": ""} for i in range(4)])
        out = Out(batch, ("out",))
        node.process(batch, out)
        assert [(loss.error, loss.retryable) for loss in out.failed] == [
            ("Retry", True), ("Fail", True), ("Fail", False), ("OSError", False),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "body",
        [
            "return [{'y': i} for i in range(int(row['x']))]",
            "return tuple({'y': i} for i in range(int(row['x'])))",
            "return ({'y': i} for i in range(int(row['x'])))",
            "yield from ({'y': i} for i in range(int(row['x'])))",
        ],
    )
    def test_fan_out(self, run: Run, body: str) -> None:
        result = run(f"def f(row) -> Iterator[Row]:\n    {body}", [2, 0, 3], keep=["name"])
        assert [(r["y"], r["name"]) for r in result.out] == [
            (0, "n0"),
            (1, "n0"),
            (0, "n2"),
            (1, "n2"),
            (2, "n2"),
        ]
        assert result.parents["out"] == [0, 0, 2, 2, 2]
        assert result.dropped == [(1, "returned no records")]

    def test_children_and_single_rows_keep_their_order(self, tmp_path: Path) -> None:
        (tmp_path / "code.py").write_text(
            "def f(row):\n    one = {'y': row['x']}\n    return [one, one] if row['x'] == 1 else one\n"
        )
        node = build_node(
            TransformPython, INPUT, {"call": "code.f"}, folder=tmp_path, out=Schema.of(y="float64")
        )
        batch = Batch.of(INPUT, [{"x": x, "name": ""} for x in (0.0, 1.0, 2.0)])
        out = Out(batch, ("out",))
        node.process(batch, out)
        assert [(e.parents.tolist(), e.children) for e in out.emissions] == [
            ([0], False), ([1, 1], True), ([2], False),
        ]  # fmt: skip

    def test_one_bad_child_fails_its_row_with_all_its_children(self, run: Run) -> None:
        result = run("def f(row) -> list[Row]: return [{'y': 1.0}, {'y': 1.0 if row['x'] > 1 else 'bad'}]")
        assert len(result.out) == 2
        assert result.failed == [(0, "code.f returned field 'y': 'bad' (str) is not valid, expected float64")]

    def test_dataclasses_and_named_tuples_are_rows(self, run: Run) -> None:
        text = """
        @dataclasses.dataclass
        class Inner:
            a: int
        class Made(NamedTuple):
            y: float
            inner: Inner
        def f(row) -> Made: return Made(row["x"], Inner(1))
        """
        assert run(text, [1.0]).out == [{"y": 1.0, "inner": {"a": 1}}]

    @pytest.mark.parametrize(
        ("returned", "reason"),
        [
            ("{'y': 'a'}", "code.f returned field 'y': 'a' (str) is not valid, expected float64"),
            ("{'y': None}", "code.f returned field 'y': null is not allowed, expected float64"),
            ("{}", "code.f returned no field 'y', expected float64"),
            ("{'y': 1.0, 'Y': 2}", "code.f returned the field 'Y', which its contract lacks (valid: y)"),
            (
                "{'y': 1.0, 'yy': 2}",
                "code.f returned the field 'yy', which its contract lacks (did you mean 'y'?)",
            ),
            ("3", "returned 3 (int), expected a dict, None, or a list of dicts"),
            ("'text'", "returned 'text' (str), expected a dict, None, or a list of dicts"),
            ("[3]", "item 0 of what it returned is 3 (int), expected a dict"),
            ("{'y': np.zeros(2)}", "is not valid, expected float64"),
        ],
    )
    def test_what_does_not_meet_the_contract_fails_its_row_alone(
        self, run: Run, returned: str, reason: str
    ) -> None:
        result = run(f"def f(row) -> Row: return {{'y': 0.5}} if row['x'] else {returned}", [1, 0, 1])
        assert result.out == [{"y": 0.5}, {"y": 0.5}]
        assert [row for row, _ in result.failed] == [1]
        assert reason in result.failed[0][1]

    def test_nullable_fields_may_be_left_out(self, run: Run) -> None:
        text = """
        class Made(TypedDict):
            a: int | None
            b: NotRequired[str]
        def f(row) -> Made: return {"a": 1, "b": "x"} if row["x"] else {"a": None}
        """
        assert run(text, [0, 1]).out == [{"a": None, "b": None}, {"a": 1, "b": "x"}]

    def test_every_type_arrives_and_leaves(self, tmp_path: Path) -> None:
        schema = Schema.of(
            at="timestamp", maybe=FieldType("int32", nullable=True), t=FieldType("float32", (2,)),
            tags=FieldType("list", item=FieldType("string")), free=FieldType("uint8", (-1,)),
        )  # fmt: skip
        (tmp_path / "code.py").write_text(
            "import datetime, numpy\n"
            "def f(row):\n"
            "    assert type(row['at']) is datetime.datetime and row['maybe'] is None\n"
            "    assert row['t'].dtype == 'float32' and row['free'].shape == (3,)\n"
            "    return dict(row, t=[1, 2.5])\n"
        )
        record = {
            "at": datetime(2024, 5, 1, 12, tzinfo=UTC).replace(tzinfo=None), "maybe": None, "t": np.zeros(2, "float32"), "tags": ["a"],
            "free": np.arange(3, dtype="uint8"),
        }  # fmt: skip
        result = run_node(TransformPython, schema, [record], {"call": "code.f"}, folder=tmp_path, out=schema)
        assert result.failed == []
        (made,) = result.out
        assert made["at"] == record["at"]
        assert made["maybe"] is None
        assert made["t"].tolist() == [1.0, 2.5]
        assert made["free"].tolist() == [0, 1, 2]

    def test_aware_times_become_utc(self, run: Run) -> None:
        text = """
        from datetime import datetime, timedelta, timezone
        class Made(TypedDict):
            at: datetime
        def f(row) -> Made: return {"at": datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))}
        """
        assert run(text, [0]).out == [{"at": datetime(2024, 5, 1, 10, tzinfo=UTC).replace(tzinfo=None)}]

    def test_an_empty_batch(self, run: Run) -> None:
        assert run("def f(row) -> Row: return {'y': 1.0}", []).out == []

    @given(
        outcomes=st.lists(
            st.sampled_from(["one", "none", "two", "empty", "drop", "fail", "raise", "bad", "extra"]),
            max_size=30,
        ),
        size=st.integers(1, 31),
    )
    def test_every_row_is_accounted_for_whatever_the_batches(
        self, tmp_path_factory: pytest.TempPathFactory, outcomes: list[str], size: int
    ) -> None:
        folder = tmp_path_factory.getbasetemp() / "accounting"
        folder.mkdir(exist_ok=True)
        (folder / "code.py").write_text(
            PRELUDE
            + dedent(
                """
                def f(row) -> Row:
                    match row["name"]:
                        case "one": return {"y": row["x"]}
                        case "none": return None
                        case "two": return [{"y": row["x"]}, {"y": row["x"]}]
                        case "empty": return []
                        case "drop": raise Drop("dropped")
                        case "fail": raise Fail("failed")
                        case "bad": return {"y": "text"}
                        case "extra": return {"y": 1.0, "z": 1.0}
                    raise RuntimeError(row["name"])
                """
            )
        )
        records = [{"x": float(i), "name": outcome} for i, outcome in enumerate(outcomes)]
        result = run_node(
            TransformPython, INPUT, records, {"call": "code.f"}, folder=folder, batch_records=size
        )
        expected = [i for i, o in enumerate(outcomes) for _ in range({"one": 1, "two": 2}.get(o, 0))]
        assert result.parents["out"] == expected
        assert [r["y"] for r in result.out] == [float(i) for i in expected]
        assert sorted(i for i, _ in result.dropped) == [
            i for i, o in enumerate(outcomes) if o in {"none", "empty", "drop"}
        ]
        assert sorted(i for i, _ in result.failed) == [
            i for i, o in enumerate(outcomes) if o in {"fail", "raise", "bad", "extra"}
        ]


class TestCallContext:
    @pytest.mark.parametrize(
        ("form", "settings"),
        [
            ("def", {}),
            ("def", {"concurrency": 3}),
            ("def", {"timeout_ms": 60_000}),
            ("async def", {}),
            ("async def", {"timeout_ms": 60_000}),
        ],
    )
    def test_id_key_and_attempt(self, tmp_path: Path, form: str, settings: dict[str, int]) -> None:
        (tmp_path / "code.py").write_text(
            PRELUDE + "class Seen(TypedDict):\n    seen: str\n"
            f"{form} f(row, context: CallContext) -> Seen:\n"
            "    return {'seen': f'{context.id} {context.key!r} {context.attempt}'}\n"
        )
        rows = [Row(b"id-1", b"k", attempt=2), Row(b"id-2")]
        batch = Batch.of(INPUT, [{"x": 1.0, "name": ""}] * 2, rows)
        node = build_node(LogicPython, INPUT, {"call": "code.f", **settings}, folder=tmp_path)
        out = Out(batch, ("out",))
        node.process(batch, out)
        node.close()  # type: ignore[attr-defined]
        assert list(out.emissions[0].columns["seen"]) == ["id-1 b'k' 2", "id-2 None 0"]


class TestConcurrency:
    def test_async_calls_overlap_up_to_the_bound_and_keep_order(self, run: Run) -> None:
        result = run(
            """
            now, most = 0, 0
            async def f(row) -> Row:
                global now, most
                now += 1
                most = max(most, now)
                for _ in range(20 - int(row["x"])):
                    await asyncio.sleep(0)
                now -= 1
                return {"y": row["x"] + 100 * (most > 4)}
            """,
            [float(i) for i in range(20)],
            settings={"concurrency": 4},
        )
        assert [r["y"] for r in result.out] == [float(i) for i in range(20)]

    def test_async_calls_do_overlap(self, run: Run) -> None:
        result = run(
            """
            gate = None
            async def f(row) -> Row:
                global gate
                gate = gate or asyncio.Barrier(8)
                await gate.wait()       # passes only when eight calls are inside
                return {"y": row["x"]}
            """,
            [float(i) for i in range(16)],
            settings={"concurrency": 8, "timeout_ms": 60_000},
        )
        assert len(result.out) == 16

    def test_threads_overlap(self, run: Run) -> None:
        result = run(
            """
            gate = threading.Barrier(3)
            def f(row) -> Row:
                gate.wait(60)
                return {"y": row["x"]}
            """,
            [float(i) for i in range(6)],
            settings={"concurrency": 3},
        )
        assert [r["y"] for r in result.out] == [float(i) for i in range(6)]

    def test_one_loop_for_the_nodes_life(self, run: Run) -> None:
        result = run(
            """
            loops = set()
            async def f(row) -> Row:
                loops.add(id(asyncio.get_running_loop()))
                return {"y": len(loops)}
            """,
            [1.0, 2.0, 3.0],
            batch_records=1,
        )
        assert [r["y"] for r in result.out] == [1.0, 1.0, 1.0]

    def test_failures_of_async_rows(self, run: Run) -> None:
        result = run(
            """
            async def f(row) -> Row:
                if row["x"] == 0: await asyncio.Event().wait()
                if row["x"] == 1: raise Drop("no")
                if row["x"] == 2: raise asyncio.CancelledError
                if row["x"] == 3: raise TimeoutError("their own")
                return {"y": 1.0}
            """,
            [0, 1, 2, 3, 4],
            settings={"timeout_ms": 50},
        )
        assert result.parents["out"] == [4]
        assert result.dropped == [(1, "no")]
        assert [reason for _, reason in result.failed] == [
            "took longer than 50 ms", "CancelledError (code.py:13)", "their own (code.py:14)",
        ]  # fmt: skip

    def test_async_generators_fan_out(self, run: Run) -> None:
        result = run(
            """
            async def f(row) -> AsyncIterator[Row]:
                for i in range(int(row["x"])):
                    await asyncio.sleep(0)
                    yield {"y": i}
            """,
            [2, 1],
        )
        assert [r["y"] for r in result.out] == [0.0, 1.0, 0.0]


class TestArrayWise:
    def test_columns_one_to_one(self, run: Run) -> None:
        result = run("def f(batch: Batch) -> Row: return {'y': batch['x'] * 2}", keep=["name"])
        assert result.out == [{"y": 2.0, "name": "n0"}, {"y": 4.0, "name": "n1"}]

    @pytest.mark.parametrize(
        "returned",
        [
            "{'y': [1, 2.5]}",
            "{'y': np.array([1, 2.5], dtype='float32')}",
            "batch.replaced(batch.schema, {'y': np.array([1, 2.5])})",
        ],
    )
    def test_what_fits_is_converted(self, run: Run, returned: str) -> None:
        assert run(f"def f(batch: Batch) -> Row: return {returned}").out == [{"y": 1.0}, {"y": 2.5}]

    def test_strings_and_tensors(self, run: Run) -> None:
        text = """
        class Made(TypedDict):
            t: Tensor["float32", 2]
            s: str
        def f(batch: Batch) -> Made:
            return {"t": np.ones((len(batch), 2)), "s": np.array(["a", "b"])}
        """
        made = run(text).out
        assert [(r["t"].tolist(), r["t"].dtype, r["s"]) for r in made] == [
            ([1.0, 1.0], np.float32, "a"), ([1.0, 1.0], np.float32, "b"),
        ]  # fmt: skip

    def test_one_bad_value_fails_its_row(self, run: Run) -> None:
        result = run("def f(batch: Batch) -> Row: return {'y': ['a', 2.0]}", keep=["name"])
        assert result.out == [{"y": 2.0, "name": "n1"}]
        assert result.failed == [(0, "code.f returned field 'y': 'a' (str) is not valid, expected float64")]

    @pytest.mark.parametrize(
        ("returned", "reason"),
        [
            ("{'y': batch['x'][:1]}", "column 'y' with 1 rows, expected 2 rows"),
            ("{'y': 3.0}", "column 'y' with 3.0 (float), expected 2 rows"),
            ("{}", "code.f returned no column 'y', expected float64"),
            (
                "{'y': batch['x'], 'z': batch['x']}",
                "returned the column 'z', which its contract lacks (valid: y)",
            ),
            ("batch['x']", "(ndarray), expected a dict of columns"),
        ],
    )
    def test_wrong_columns_fail_all_rows(self, run: Run, returned: str, reason: str) -> None:
        result = run(f"def f(batch: Batch) -> Row: return {returned}")
        assert [row for row, _ in result.failed] == [0, 1]
        assert reason in result.failed[0][1]

    def test_pure_code_that_raises_runs_again_row_by_row(self, run: Run) -> None:
        text = """
        def f(batch: Batch) -> Row:
            if (batch["x"] == 0).any(): raise ValueError("zero")
            return {"y": 1 / batch["x"]}
        """
        result = run(text, [1, 0, 2], keep=["name"])
        assert result.out == [{"y": 1.0, "name": "n0"}, {"y": 0.5, "name": "n2"}]
        assert result.parents["out"] == [0, 2]
        assert result.failed == [(1, "zero (code.py:11)")]

    def test_logic_that_raises_is_not_run_again(self, run: Run) -> None:
        text = """
        calls = 0
        def f(batch: Batch) -> Row:
            global calls
            calls += 1
            raise ValueError(f"call {calls}")
        """
        result = run(text, [1, 0], kind=LogicPython)
        assert result.failed == [(0, "call 1 (code.py:14)"), (1, "call 1 (code.py:14)")]

    def test_none_drops_the_batch(self, run: Run) -> None:
        assert run("def f(batch: Batch) -> Row | None: return None").dropped == [
            (0, "returned None"), (1, "returned None"),
        ]  # fmt: skip

    def test_async(self, run: Run) -> None:
        assert run("async def f(batch: Batch) -> Row: return {'y': batch['x']}").out == [
            {"y": 1.0},
            {"y": 2.0},
        ]

    def test_full_control(self, run: Run) -> None:
        text = """
        def f(batch: Batch, out: Out) -> None:
            out.emit({"y": ["bad", 1.0, 2.0]}, rows=[0, 1, 1], children=True)
            out.drop([2], "third")
            out.fail([3], "fourth")
            out.consume([4])
        """
        result = run(text, [0, 1, 2, 3, 4, 5], out=Schema.of(y="float64"), keep=["name"])
        assert result.out == [{"y": 1.0, "name": "n1"}, {"y": 2.0, "name": "n1"}]
        assert result.dropped == [(2, "third")]
        assert sorted(result.failed) == [
            (0, "code.f emitted field 'y': 'bad' (str) is not valid, expected float64"),
            (3, "fourth"),
            (5, "the node did not account for this row"),
        ]


class TestClasses:
    @pytest.mark.parametrize("a", ["", "async "])
    @pytest.mark.parametrize("method", ["process", "__call__"])
    def test_life_cycle(self, run: Run, tmp_path: Path, a: str, method: str) -> None:
        text = f"""
        from pathlib import Path
        log = []
        class f:
            def __init__(self, by: float) -> None:
                self.by = by
            {a}def open(self) -> None:
                log.append("open")
            {a}def {method}(self, row) -> Row:
                return {{"y": row["x"] * self.by * len(log)}}
            {a}def close(self) -> None:
                log.append("close")
                Path(__file__).with_name("log").write_text(",".join(log))
        """
        result = run(text, settings={"arguments": {"by": 3}})
        assert [r["y"] for r in result.out] == [3.0, 6.0]
        assert (tmp_path / "log").read_text() == "open,close"

    def test_an_open_that_fails(self, run: Run) -> None:
        text = (
            "class f:\n    def open(self): raise OSError('no disk')\n    def process(self, row) -> Row: ..."
        )
        with pytest.raises(NodeError, match=r"code\.f: open failed: OSError: no disk \(code\.py:10\)"):
            run(text)


class TestKinds:
    def test_a_model_appends(self, run: Run) -> None:
        result = run("def f(batch: Batch) -> Row: return {'y': batch['x']}", [1.0], kind=ModelPython)
        assert result.out == [{"x": 1.0, "name": "n0", "y": 1.0}]

    def test_a_model_may_replace_a_field_and_keep_few(self, run: Run) -> None:
        text = "def f(row): return {'x': 'text'}"
        assert run(text, [1.0], kind=ModelPython, out=Schema.of(x="string")).out == [
            {"x": "text", "name": "n0"}
        ]
        assert run(text, [1.0], kind=ModelPython, out=Schema.of(x="string"), keep=[]).out == [{"x": "text"}]

    def test_a_model_is_given_its_artifact(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "w.txt").write_text("2.5")
        info = ModelInfo("weights", tmp_path / "w.txt", Schema(()), Schema(()))
        text = """
        class f:
            def __init__(self, artifact): self.weight = float(artifact.read_text())
            def process(self, batch: Batch) -> Row: return {"y": batch["x"] * self.weight}
        """
        result = run(
            text, [2.0], kind=ModelPython, settings={"model": "weights"}, models={"weights": info}.__getitem__
        )
        assert [r["y"] for r in result.out] == [5.0]
        kind = kind_of(ModelPython)
        assert kind.models(kind.settings.model_validate({"call": "code.f", "model": "weights"})) == (
            "weights",
        )
        (tmp_path / "code.py").write_text("def g(row): ...")
        with pytest.raises(ContractError, match=r"code\.g has no parameter 'artifact'"):
            contract_of(ModelPython, INPUT, {"call": "code.g", "model": "weights"}, folder=tmp_path)

    def test_logic_without_a_result_takes_rows_in_or_passes_them_on(self, run: Run) -> None:
        for text in ("def f(row) -> None: pass", "def f(batch: Batch) -> None: pass"):
            result = run(text, kind=LogicPython)
            assert (result.out, result.dropped, result.failed) == ([], [], [])
            assert run(text, kind=LogicPython, keep=["name"]).out == [{"name": "n0"}, {"name": "n1"}]

    def test_a_silent_function_may_still_end_a_row(self, run: Run) -> None:
        text = "def f(row) -> None:\n    if row['x'] == 1: raise Drop('one')\n    if row['x'] == 2: raise Fail('two')"
        result = run(text, [1, 2, 3], kind=LogicPython)
        assert (result.dropped, result.failed) == ([(0, "one")], [(1, "two")])

    def test_purity(self) -> None:
        assert kind_of(TransformPython).pure
        assert kind_of(ModelPython).pure
        assert not kind_of(LogicPython).pure


class TestContract:
    def contract(
        self, tmp_path: Path, text: str, settings: Mapping[str, Any] | None = None, **options: Any
    ) -> str:
        (tmp_path / "code.py").write_text(PRELUDE + dedent(text))
        made = contract_of(
            TransformPython, INPUT, {"call": "code.f", **(settings or {})}, folder=tmp_path, **options
        )
        return made["out"].describe()

    def test_a_declaration_wins(self, tmp_path: Path) -> None:
        text = "def f(row) -> Row: ..."
        assert self.contract(tmp_path, text) == "y: float64"
        assert self.contract(tmp_path, text, out=Schema.of(z="int8")) == "z: int8"
        assert self.contract(tmp_path, text, keep=["name"]) == "y: float64, name: string"

    @pytest.mark.parametrize(
        ("text", "settings", "path", "message"),
        [
            ("def f(row): ...", {}, ("with", "call"), "no contract: code.py:9: f has no return annotation"),
            ("def f(row): ...", {}, ("with", "call"), "dataflow infer node --sample FILE"),
            ("def f(batch: Batch, out: Out): ...", {}, ("with", "call"), "accounts for its rows on `out`"),
            ("def g(row): ...", {}, ("with", "call"), "no function or class 'f' in code.py"),
            (
                "def f(row, scale=1) -> Row: ...", {"arguments": {"scal": 1}}, ("with", "arguments", "scal"),
                "code.f has no parameter 'scal' (did you mean 'scale'?)",
            ),
            ("def f(row, a) -> Row: ...", {}, ("with", "arguments"), "code.f needs an argument 'a'"),
            ("def f(batch: Batch, context) -> Row: ...", {}, ("with", "arguments"), "batch.ids"),
            ("def f(b: Batch) -> Row: ...", {"timeout_ms": 5}, ("with", "timeout_ms"), "takes a whole batch at once"),
            (
                "def f(row, context: KeyedContext) -> Row: ...", {"timeout_ms": 5}, ("with", "timeout_ms"),
                "has state and is not async: a call that cannot be ended would go on changing it",
            ),
            ("def f(b: Batch) -> Row: ...", {"concurrency": 5}, ("with", "concurrency"), "whole batch at once"),
        ],
    )  # fmt: skip
    def test_messages(
        self, tmp_path: Path, text: str, settings: dict[str, Any], path: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(ContractError) as caught:
            self.contract(tmp_path, text, settings)
        assert message in str(caught.value)
        assert caught.value.path == path

    def test_keep_messages(self, tmp_path: Path) -> None:
        with pytest.raises(ContractError, match="no field 'nam' in the input") as caught:
            self.contract(tmp_path, "def f(row) -> Row: ...", keep=["nam"])
        assert caught.value.path == ("keep", 0)
        with pytest.raises(ContractError, match=r"field 'name' is also returned by code\.f"):
            self.contract(tmp_path, "def f(row): ...", keep=["name"], out=Schema.of(name="string"))

    def test_any_keyword_is_let_through(self, tmp_path: Path) -> None:
        assert (
            self.contract(tmp_path, "def f(row, **more) -> Row: ...", {"arguments": {"b": 1}}) == "y: float64"
        )


@pytest.mark.parametrize(
    ("kind", "schema", "settings", "records", "expected"),
    [
        (
            TransformPython, Schema.of(flight="string", kilometres="float64", minutes="float64"),
            {"call": "features.speed"}, [{"flight": "LH400", "kilometres": 900.0, "minutes": 60.0}],
            [{"metres_per_second": 250.0}],
        ),
        (
            LogicPython, Schema.of(passenger="string", minutes="int32"), {"call": "rebook.offer"},
            [{"passenger": "ann", "minutes": 400}],
            [{"action": "refund", "reference": "00000000-0000-7000-8000-000000000000"}],
        ),
    ],
)  # fmt: skip
def test_the_examples_functions_run(
    tmp_path: Path, kind: Any, schema: Schema, settings: dict[str, Any], records: Any, expected: Any
) -> None:
    write_example_files(kind_of(kind).example, tmp_path)
    assert run_node(kind, schema, records, settings, folder=tmp_path).out == expected


def test_the_models_example_runs(tmp_path: Path) -> None:
    write_example_files(kind_of(ModelPython).example, tmp_path)
    settings = {"call": "mean.Mean", "arguments": {"bias": 1.0}}
    schema, out = Schema.of(x=FieldType("float32", (3,))), Schema.of(score="float32")
    result = run_node(ModelPython, schema, [{"x": [1, 2, 3]}], settings, folder=tmp_path, out=out)
    assert [(r["x"].tolist(), r["score"]) for r in result.out] == [([1.0, 2.0, 3.0], 3.0)]


def test_example_files() -> None:
    text = "# file: a/b.py\n#| x = 1\n#|\n#|     y\nkind: Topic\n#| not a file\n"
    assert example_files(text) == {"a/b.py": "x = 1\n\n    y\n"}
