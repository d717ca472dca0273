"""User code is described without being run, loaded in isolation, and loaded afresh after a change."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from dataflow.core.errors import ContractError, NodeError
from dataflow.core.usercode import UserCallable, code_digest, load_callable, project_root, signature_of


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('___', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return folder


def fields_of(folder: Path, annotations: str, *, prelude: str = "") -> str:
    """The contract of a TypedDict with these members, as text."""
    members = "\n".join(f"    {line.strip()}" for line in annotations.strip().splitlines())
    text = (
        "from __future__ import annotations\nimport datetime as dt\nimport typing\nfrom collections.abc import *\n"
        "from datetime import date, datetime\nfrom decimal import Decimal\nfrom enum import StrEnum\n"
        "from typing import *\nimport numpy as np\nfrom dataflow.sdk import Tensor\n"
        f"{dedent(prelude)}\nclass Row(TypedDict):\n{members}\ndef build(row: dict) -> Row: ...\n"
    )
    (folder / "made.py").write_text(text)
    returns = signature_of(folder, "made.build").returns
    return returns.schema.describe() if returns.schema is not None else returns.why


@pytest.fixture(autouse=True)
def path_as_before() -> object:
    before = list(sys.path)
    yield
    sys.path[:] = before


class TestAnnotations:
    @pytest.mark.parametrize(
        ("annotation", "expected"),
        [
            ("int", "int64"),
            ("float", "float64"),
            ("str", "string"),
            ("bytes", "bytes"),
            ("bool", "bool"),
            ("datetime", "timestamp"),
            ("dt.datetime", "timestamp"),
            ("date", "date"),
            ("np.float32", "float32"),
            ("np.uint8", "uint8"),
            ("'int'", "int64"),
            ("str | None", "string?"),
            ("Optional[int]", "int64?"),
            ("typing.Optional[int]", "int64?"),
            ("Union[None, float]", "float64?"),
            ("int | float", "float64"),
            ("NotRequired[int]", "int64?"),
            ("Annotated[float, 'km']", "float64"),
            ("list[str]", "list<string>"),
            ("list[int | None]", "list<int64?>"),
            ("Sequence[float] | None", "list<float64>?"),
            ("tuple[int, ...]", "list<int64>"),
            ('Literal["a", "b"]', "enum<a|b>"),
            ('Literal["a", None]', "enum<a>?"),
            ("Literal[1, 2]", "int64"),
            ("Literal[True]", "bool"),
            ('Tensor["float32", 12]', "float32[12]"),
            ('Tensor["uint8", -1, 64] | None', "uint8[?,64]?"),
        ],
    )
    def test_types(self, tmp_path: Path, annotation: str, expected: str) -> None:
        assert fields_of(tmp_path, f"x: {annotation}") == f"x: {expected}"

    def test_nested_rows_aliases_and_enums(self, tmp_path: Path) -> None:
        text = fields_of(
            tmp_path,
            """
            where: Place
            speeds: list[Speed]
            state: State
            x: Tensor["float32", SIZE]
            """,
            prelude="""
            SIZE = 3
            Speed = NewType("Speed", float)
            class State(StrEnum):
                UP = "up"
                DOWN = "down"
            class Point(NamedTuple):
                east: float
                north: float
            class Place(TypedDict):
                name: str
                at: Point | None
            """,
        )
        assert text == (
            "where: record<name: string, at: record<east: float64, north: float64>?>, "
            "speeds: list<float64>, state: enum<up|down>, x: float32[3]"
        )

    def test_inherited_members_and_total(self, tmp_path: Path) -> None:
        text = fields_of(
            tmp_path,
            "more: More",
            prelude="class Base(TypedDict):\n    a: int\nclass More(Base, total=False):\n    b: str",
        )
        assert text == "more: record<a: int64, b: string?>"

    @pytest.mark.parametrize(
        ("annotation", "message"),
        [
            ("Decimal", "'Decimal' has no precision (field 'x' of Row) (declare the field under out:"),
            ("complex", "made.py:13: no field type for 'complex'"),
            ("int | str", "'int | str' is one of several types"),
            ("dict[str, int]", "no field type for 'dict[str, int]'"),
            ('Tensor["float31", 2]', "is no tensor type"),
            ('Tensor["float32"]', "is no tensor type"),
            ('Literal["a", 1]', "mixes types"),
            ("Row", "'Row' contains itself"),
        ],
    )
    def test_what_is_no_type_is_said(self, tmp_path: Path, annotation: str, message: str) -> None:
        assert message in fields_of(tmp_path, f"x: {annotation}")


def describe(tmp_path: Path, text: str, ref: str = "code.f") -> UserCallable:
    write(tmp_path, code="from typing import *\nfrom collections.abc import *\n" + dedent(text))
    return signature_of(tmp_path, ref)


ROW = "class Row(TypedDict):\n    a: int\n"


class TestSignature:
    def test_a_row_wise_function(self, tmp_path: Path) -> None:
        found = describe(tmp_path, ROW + "def f(row: dict, scale: int, *, up: bool = True) -> Row: ...")
        assert (found.kind, found.array_wise, found.asynchronous) == ("function", False, False)
        assert (found.parameters, found.required, found.line) == (("scale", "up"), ("scale",), 5)

    def test_context_is_no_argument(self, tmp_path: Path) -> None:
        found = describe(tmp_path, "async def f(row, context): ...")
        assert found.takes_context
        assert found.asynchronous
        assert found.parameters == ()

    @pytest.mark.parametrize("spelled", ["Batch", "'Batch'", "sdk.Batch", "B"])
    def test_array_wise_by_annotation(self, tmp_path: Path, spelled: str) -> None:
        prelude = "from dataflow import sdk\nfrom dataflow.sdk import Batch, Out\nfrom dataflow.sdk import Batch as B\n"
        found = describe(tmp_path, prelude + f"def f(batch: {spelled}, out: Out, low: int = 0) -> None: ...")
        assert found.array_wise
        assert found.takes_out
        assert found.parameters == ("low",)

    def test_the_engines_names_in_a_project_that_holds_the_engine(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").touch()
        write(tmp_path, dataflow___sdk="class Batch: ...\nclass Tensor: ...\n")
        text = (
            "if TYPE_CHECKING:\n    from dataflow.sdk import Batch, Tensor\n"
            "class Row(TypedDict):\n    x: Tensor['int8', 2]\ndef f(batch: Batch) -> Row: ..."
        )
        found = describe(tmp_path, text)
        assert found.array_wise
        assert found.returns.schema is not None, found.returns.why

    @pytest.mark.parametrize(
        "many", ["list[Row]", "Iterator[Row]", "Generator[Row, None, None]", "list[Row] | None"]
    )
    def test_fan_out(self, tmp_path: Path, many: str) -> None:
        returns = describe(tmp_path, ROW + f"def f(row) -> {many}: ...").returns
        assert returns.many
        assert returns.schema is not None
        assert returns.schema.describe() == "a: int64"

    def test_a_dropping_function_and_a_silent_one(self, tmp_path: Path) -> None:
        assert describe(tmp_path, ROW + "def f(row) -> Row | None: ...").returns.schema is not None
        assert describe(tmp_path, "def f(row) -> None: ...").returns.nothing

    @pytest.mark.parametrize(
        ("annotation", "why"),
        [
            ("", "code.py:3: f has no return annotation"),
            (" -> dict[str, Any]", "returns 'dict[str, Any]', whose fields are not known"),
            (" -> dict", "whose fields are not known"),
            (" -> int", "returns 'int', whose type is no row: return a dict"),
            (" -> Elsewhere", "whose row type is not found"),
        ],
    )
    def test_why_there_is_no_contract(self, tmp_path: Path, annotation: str, why: str) -> None:
        returns = describe(tmp_path, f"def f(row){annotation}: ...").returns
        assert returns.schema is None
        assert why in returns.why

    def test_a_class(self, tmp_path: Path) -> None:
        text = ROW + "class C:\n    def __init__(self, a, b=1): ...\n    def process(self, row) -> Row: ...\n"
        found = describe(tmp_path, text, "code.C")
        assert (found.kind, found.parameters, found.required) == ("class", ("a", "b"), ("a",))
        assert found.returns.schema is not None

    def test_a_dataclass_has_its_fields_as_parameters(self, tmp_path: Path) -> None:
        text = (
            "from dataclasses import dataclass\n@dataclass\nclass C:\n    low: float\n    high: float = 1.0\n"
            "    async def __call__(self, row): ...\n"
        )
        found = describe(tmp_path, text, "code.C")
        assert (found.parameters, found.required, found.asynchronous) == (("low", "high"), ("low",), True)

    def test_row_types_of_sibling_and_project_files(self, tmp_path: Path) -> None:
        (tmp_path / "dataflow.yaml").touch()
        folder = tmp_path / "pipelines" / "p"
        write(tmp_path, shared___rows="from typing import TypedDict\nclass Far(TypedDict):\n    far: int\n")
        write(
            folder,
            rows="from typing import TypedDict\nclass Near(TypedDict):\n    near: int\n",
            code="""
            import rows
            from shared.rows import Far
            from .rows import Near as Close
            def far(row) -> Far: ...
            def near(row) -> Close: ...
            def by_module(row) -> rows.Near: ...
            """,
            front="from code import near\nfrom .code import far as afar\n",
        )
        for ref, expected in (
            ("code.far", "far: int64"), ("code.near", "near: int64"), ("code.by_module", "near: int64"),
            ("front.near", "near: int64"), ("front.afar", "far: int64"),
        ):  # fmt: skip
            schema = signature_of(folder, ref).returns.schema
            assert schema is not None, ref
            assert schema.describe() == expected

    def test_nothing_is_run(self, tmp_path: Path) -> None:
        mark = tmp_path / "run"
        found = describe(tmp_path, f"open({str(mark)!r}, 'w')\nraise SystemExit('run')\ndef f(row): ...")
        assert not mark.exists()
        assert found.ref == "code.f"

    @pytest.mark.parametrize(
        ("ref", "message"),
        [
            ("build", "'build' names no function (write module.function"),
            ("cod.f", "no module 'cod' in "),
            ("cod.f", "did you mean 'code'?"),
            ("code.biuld", "no function or class 'biuld' in code.py (did you mean 'build'?)"),
            ("code.SIZE", "code.py:6 defines no function or class"),
            ("code.Empty", "class Empty has no method 'process' or '__call__' (did you mean 'proces'?)"),
            ("code.nullary", "nullary takes no row"),
            ("broken.f", "broken.py:1: not valid Python"),
        ],
    )
    def test_messages(self, tmp_path: Path, ref: str, message: str) -> None:
        write(
            tmp_path,
            code="""\
            def build(row): ...
            def nullary(): ...
            class Empty:
                def proces(self, row): ...

            SIZE = 3
            """,
            broken="def f(:\n",
        )
        with pytest.raises(ContractError) as caught:
            signature_of(tmp_path, ref)
        assert message in str(caught.value)
        assert caught.value.path == ("with", "call")


class TestLoading:
    def test_two_folders_with_one_module_name(self, tmp_path: Path) -> None:
        one = write(
            tmp_path / "one", features="import helpers\ndef f(): return helpers.NAME", helpers="NAME = 'one'"
        )
        two = write(
            tmp_path / "two",
            features="from .helpers import NAME\ndef f(): return NAME",
            helpers="NAME = 'two'",
        )
        assert load_callable(one, "features.f")() == "one"
        assert load_callable(two, "features.f")() == "two"
        assert "features" not in sys.modules
        assert "helpers" not in sys.modules

    def test_functions_of_one_folder_share_their_modules(self, tmp_path: Path) -> None:
        write(tmp_path, code="class A: ...\ndef f(): return A\ndef g(): return A")
        assert load_callable(tmp_path, "code.f")() is load_callable(tmp_path, "code.g")()

    def test_a_saved_file_is_loaded_afresh_and_what_ran_before_lives_on(self, tmp_path: Path) -> None:
        write(tmp_path, code="from helper import N\ndef f(): return N", helper="N = 1")
        before = load_callable(tmp_path, "code.f")
        write(tmp_path, helper="N = 2")
        assert load_callable(tmp_path, "code.f")() == 2
        assert before() == 1
        write(tmp_path, helper="N = 1")
        assert load_callable(tmp_path, "code.f")() == 1

    def test_packages_and_late_imports(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            **{"parts/__init__": "from .inner import deep\n"},
            parts___inner="from ..top import N\ndef deep():\n    import late.more\n    import late.more as m\n"
            "    from late import more\n    assert m is more is late.more\n    return N, m.M\n",
            top="N = 1",
            late___more="M = 2",
        )
        assert load_callable(tmp_path, "parts.inner.deep")() == (1, 2)
        assert load_callable(tmp_path, "parts.deep")() == (1, 2)

    def test_the_projects_root_is_importable_and_the_folders_full_name_is_the_folder(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "dataflow.yaml").touch()
        write(tmp_path, common_to_this_test="K = 7")
        folder = write(
            tmp_path / "pipelines" / "p",
            code="""
            from common_to_this_test import K
            from pipelines.p.other import Other
            from pipelines.p import other
            import other as short
            def f(): return K, Other is other.Other is short.Other
            """,
            other="class Other: ...",
        )
        assert project_root(folder) == tmp_path
        assert load_callable(folder, "code.f")() == (7, True)
        assert load_callable(folder, "json.dumps")({}) == "{}"

    def test_dataclasses_with_postponed_annotations_find_their_module(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            code="""
            from __future__ import annotations
            from dataclasses import dataclass, fields
            @dataclass
            class C:
                x: int = 1
                def process(self, row): ...
            """,
        )
        assert load_callable(tmp_path, "code.C")().x == 1

    def test_an_import_that_fails_says_where(self, tmp_path: Path) -> None:
        write(tmp_path, code="import no_such_module_of_mine\ndef f(row): ...")
        with pytest.raises(
            NodeError, match=r"importing .*code\.py failed: ModuleNotFoundError: No module named"
        ):
            load_callable(tmp_path, "code.f")
        write(tmp_path, code="def f(row): ...")
        assert load_callable(tmp_path, "code.f") is not None

    def test_a_missing_function(self, tmp_path: Path) -> None:
        write(tmp_path, code="def build(row): ...")
        with pytest.raises(ContractError, match="did you mean 'build'"):
            load_callable(tmp_path, "code.buid")


class TestDigest:
    def test_it_follows_the_code(self, tmp_path: Path) -> None:
        write(tmp_path, code="def f(row): ...")
        first = code_digest(tmp_path, ["code.f"])
        assert code_digest(tmp_path, ["code.f"]) == first
        (tmp_path / "data.csv").write_text("a\n")
        write(tmp_path / "__pycache__", x="ignored = 1")
        assert code_digest(tmp_path, ["code.f"]) == first
        write(tmp_path, helper="x = 1")
        assert code_digest(tmp_path, ["code.f"]) != first

    def test_it_follows_named_files_outside_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "dataflow.yaml").touch()
        folder = tmp_path / "p"
        write(folder, code="def f(row): ...")
        write(tmp_path, far="def f(row): ...")
        first = code_digest(folder, ["far.f"])
        write(tmp_path, far="def f(row): pass")
        assert code_digest(folder, ["far.f"]) != first
        assert code_digest(folder, ["code.f"]) == code_digest(folder, [])

    def test_virtual_environments_are_left_out(self, tmp_path: Path) -> None:
        write(tmp_path, code="def f(row): ...")
        first = code_digest(tmp_path, [])
        write(tmp_path, env___lib___package="x = 1")
        (tmp_path / "env" / "pyvenv.cfg").touch()
        write(tmp_path / ".venv", package="x = 1")
        assert code_digest(tmp_path, []) == first
