"""Small ONNX models, and a project made of foreign declarations: linted, planned and run in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import helper

from dataflow.cli.lint import lint_project
from dataflow.control.assemble import assemble
from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.parts import Note
from dataflow.control.importing.written import files_of, write_files
from dataflow.testing import run_pipeline
from tests.serving.onnx_models import FLOAT, write_graph

Convert = Callable[[list[Path], Path | None], Conversion]
ROW = ["rows", 2]


def write_models(folder: Path, *names: str) -> Path:
    """Models of these names: `sumdiff*` gives the sum and difference of two vectors, `top*` the maximum of one, and
    all others the double of one."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / f"{name}.onnx"
        if name.startswith("sumdiff"):
            nodes = [
                helper.make_node("Add", ["a", "b"], ["sum"]),
                helper.make_node("Sub", ["a", "b"], ["diff"]),
            ]
            write_graph(
                path,
                {"a": (FLOAT, ROW), "b": (FLOAT, ROW)},
                {"sum": (FLOAT, ROW), "diff": (FLOAT, ROW)},
                nodes,
            )
        elif name.startswith("top"):
            node = helper.make_node("ReduceMax", ["x"], ["top"], axes=[1])
            write_graph(path, {"x": (FLOAT, ROW)}, {"top": (FLOAT, ["rows", 1])}, [node])
        else:
            node = helper.make_node("Add", ["x", "x"], ["y"])
            write_graph(path, {"x": (FLOAT, ROW)}, {"y": (FLOAT, ROW)}, [node])
    return folder


def converted(
    convert: Convert, folder: Path, text: str, *models: str, name: str = "declared.yaml"
) -> Conversion:
    """The conversion of a file with `text`, with these models beside it."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return convert([file], write_models(folder / "models", *models) if models else None)


def project(made: Conversion, folder: Path) -> Path:
    """The conversion as a project."""
    out = folder / "out"
    write_files(files_of(made, out), out, force=True)
    return out


def problems(made: Conversion, folder: Path) -> list[str]:
    """What `dataflow lint` says of the project made."""
    return [str(problem) for problem in lint_project(project(made, folder), {})[1]]


def run(
    made: Conversion, folder: Path, pipeline: str, records: Sequence[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """What these requests leave on each edge of a pipeline of the project, which lints without a problem."""
    assert problems(made, folder) == []
    out = project(made, folder)
    assembled = assemble(out, [pipeline], environ={})
    result = run_pipeline(out, assembled.plans[0], assembled.registry, {"request": records})
    assert result.dead_letters == []
    return result.edges


def said(made: Conversion) -> list[str]:
    """The notes, without their file."""
    return [str(note).rpartition("/")[2] for note in sorted(set(made.notes))]


def filled_in(made: Conversion) -> list[Note]:
    return [note for note in made.notes if note.sort == "fill in"]
