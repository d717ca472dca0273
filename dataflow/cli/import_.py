"""`dataflow import`: declarations of Seldon Core 2, KServe and Triton as ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dataflow.cli.context import count
from dataflow.core.errors import SpecError

if TYPE_CHECKING:
    from dataflow.control.importing.conversion import Conversion
    from dataflow.control.importing.parts import Note

_MANIFESTS: Final = ("*.yaml", "*.yml", "*.json")
_COLOURS: Final = {"fill in": "red", "not converted": "yellow", "differs": "cyan"}


@click.command(name="import")
@click.argument("product", type=click.Choice(["seldon", "kserve", "triton"]))
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE..."
)
@click.option(
    "--models",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the ONNX files, NAME.onnx or NAME/VERSION/model.onnx: contracts are read from them.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the project to write.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
def import_(product: str, files: tuple[Path, ...], models: Path | None, out: Path, force: bool) -> None:
    """Turn declarations of another server into a project of ours.

    Each FILE is a manifest of Seldon Core 2 (Model, Pipeline) or KServe (InferenceService, InferenceGraph), or a
    config.pbtxt of Triton; or a folder, with all such files in it. What our declarations have no word for, and what
    the files do not tell, is printed as `file:line: what; what to do instead`. Where they do not tell enough, `dataflow
    lint` fails until it is written.
    """
    from dataflow.control.importing.written import files_of, write_files

    made = _convert(product, _expanded(product, files), models)
    _tell_notes(made.notes)
    if not made.pipelines:
        raise SpecError("there is nothing to convert", hint="nothing is written")
    written = files_of(made, out)
    write_files(written, out, force=force)
    for name in written:
        click.echo(f"made {out / name}")
    for draft in made.pipelines:
        answer = f", answers from {', '.join(draft.answer)}" if draft.answer else ", without an answer"
        click.echo(f"pipeline {draft.name}: {count(len(draft.nodes), 'node')}{answer}")
    _tell_end(made.notes, out)


def _convert(product: str, files: list[Path], models: Path | None) -> Conversion:
    if product == "seldon":
        from dataflow.control.importing.seldon import convert_seldon

        return convert_seldon(files, models)
    if product == "kserve":
        from dataflow.control.importing.kserve import convert_kserve

        return convert_kserve(files, models)
    from dataflow.control.importing.triton import convert_triton

    return convert_triton(files, models)


def _expanded(product: str, files: Iterable[Path]) -> list[Path]:
    """The files, and for a folder those in it that are of the product."""
    patterns = ("config.pbtxt",) if product == "triton" else _MANIFESTS
    found: dict[Path, None] = {}
    for file in files:
        inside = sorted(p for pattern in patterns for p in file.rglob(pattern)) if file.is_dir() else [file]
        if not inside:
            raise SpecError(f"'{file}' has no {' and no '.join(patterns)}")
        found.update(dict.fromkeys(inside))
    return list(found)


def _tell_notes(notes: Iterable[Note]) -> None:
    for note in sorted(set(notes)):
        place, sort, rest = f"{note.file}:{note.line}", note.sort, note.what
        instead = f"; {note.instead}" if note.instead else ""
        click.echo(
            f"{click.style(place, bold=True)}: {click.style(sort, fg=_COLOURS[sort])}: {rest}{instead}"
        )


def _tell_end(notes: Iterable[Note], out: Path) -> None:
    missing = sum(note.sort == "fill in" for note in set(notes))
    if missing:
        click.echo(
            f"to fill in: {count(missing, 'thing')}; dataflow --project {out} lint names what it needs"
        )
    else:
        click.echo(f"go on with: dataflow --project {out} lint")
