from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import nodes
from dataflow import registry
from dataflow.core.errors import SpecError
from dataflow.registry import Registry
from dataflow.sdk import NodeKind
from tests.spec.projects import write

KIND = """
from dataflow.sdk import node

@node("{name}")
def process(batch, out, settings):
    '''What it does.'''
    out.emit(batch)
"""


def test_our_own_kinds_are_found() -> None:
    found = Registry.default()
    assert {"transform.python", "model.onnx", "filter.when", "route.when"} <= set(found.by_name)
    assert found.get("filter.when").name == "filter.when"
    assert [kind.name for kind in found.kinds()] == sorted(found.by_name)
    assert all(Path(file).parent.name == "nodes" for file in found.files.values())


def test_in_our_checkout_the_nodes_are_registered_once() -> None:
    root = Path(nodes.__file__).parent.parent
    assert Registry.default(root).by_name == Registry.default().by_name


def test_a_projects_own_nodes(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "nodes/mine.py": KIND.format(name="my.kind")
            + "\nfrom ._helper import X\nfrom .other import process as p\n",
            "nodes/other.py": KIND.format(name="other.kind"),
            "nodes/_helper.py": KIND.format(name="hidden.kind") + "X = 1\n",
        },
    )
    found = Registry.default(folder)
    assert found.get("my.kind").doc == "What it does."
    assert found.files["my.kind"] == str(tmp_path / "nodes/mine.py")
    assert found.files["other.kind"] == str(tmp_path / "nodes/other.py")
    assert "hidden.kind" not in found.by_name
    assert "filter.when" in found.by_name
    assert sys.modules["nodes"] is nodes


def test_an_edited_node_is_loaded_anew_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    folder = write(tmp_path, {"nodes/mine.py": KIND.format(name="my.kind")})
    first = Registry.default(folder).get("my.kind")
    assert Registry.default(folder).get("my.kind") is first
    write(tmp_path, {"nodes/mine.py": KIND.format(name="my.kinds")})
    assert "my.kinds" in Registry.default(folder).by_name
    assert "my.kind" not in Registry.default(folder).by_name


def test_an_unknown_kind() -> None:
    with pytest.raises(SpecError) as raised:
        Registry.default().get("filter.wen")
    assert str(raised.value) == "unknown node kind 'filter.wen' (did you mean 'filter.when'?)"


def test_one_name_for_two_kinds(tmp_path: Path) -> None:
    write(tmp_path, {"nodes/a.py": KIND.format(name="my.kind"), "nodes/b.py": KIND.format(name="my.kind")})
    with pytest.raises(SpecError) as raised:
        Registry.default(tmp_path)
    a, b = tmp_path / "nodes/a.py", tmp_path / "nodes/b.py"
    assert (
        str(raised.value) == f"node kind 'my.kind' is there twice: in {a} and in {b} (rename one of the two)"
    )


def test_files_that_do_not_load(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "nodes/a.py": "x = 1\n\ndef broken(:\n",
            "nodes/b.py": "import json\n\njson.loads('no')\n",
            "nodes/c.py": "import missing_package\n",
        },
    )
    with pytest.raises(SpecError) as raised:
        Registry.default(tmp_path)
    folder = tmp_path / "nodes"
    assert str(raised.value).splitlines() == [
        f"{folder}/a.py:3: cannot load nodes: invalid syntax",
        f"{folder}/b.py:3: cannot load nodes: JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        f"{folder}/c.py:1: cannot load nodes: ModuleNotFoundError: No module named 'missing_package'",
    ]


def test_a_package_of_the_projects_nodes_that_does_not_load(tmp_path: Path) -> None:
    write(tmp_path, {"nodes/__init__.py": "1 / 0\n"})
    with pytest.raises(SpecError) as raised:
        Registry.default(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}/nodes/__init__.py:1: cannot load nodes: ZeroDivisionError: division by zero"
    )


def test_kinds_of_other_distributions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, {"plug_nodes/__init__.py": "", "plug_nodes/a.py": KIND.format(name="plug.kind")})
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint("plug", "plug_nodes", registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert isinstance(Registry.default().get("plug.kind"), NodeKind)
    points.append(EntryPoint("gone", "gone_nodes", registry.ENTRY_POINT_GROUP))
    with pytest.raises(SpecError) as raised:
        Registry.default()
    assert str(raised.value) == (
        "node kinds of 'gone' (gone_nodes) cannot be loaded: ModuleNotFoundError: No module named 'gone_nodes' "
        "(upgrade or remove 'gone')"
    )


def test_a_users_package_called_nodes_does_not_hide_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path, {"nodes/__init__.py": "", "nodes/mine.py": KIND.format(name="my.kind")})
    for name in [n for n in sys.modules if n == "nodes" or n.startswith("nodes.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    found = Registry.default(tmp_path)
    assert {"my.kind", "filter.when"} <= set(found.by_name)
