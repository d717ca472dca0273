"""What `up` takes for a change of the project."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from watchfiles import Change, awatch

from dataflow.cli.hosting import MAX_SETTLING_MS, is_source


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        (Change.modified, "pipelines/p/pipeline.yaml", True),
        (Change.added, "pipelines/p/code.py", True),
        (Change.added, "pipelines/p/table.parquet", True),
        (Change.deleted, "models/m.onnx", True),
        (Change.modified, "pipelines/p/notes.txt", False),
        (Change.modified, ".dataflow/broker/log.yaml", False),
        (Change.modified, "pipelines/p/__pycache__/code.py", False),
        (Change.added, "pipelines/p", True),  # a folder with all that is in it
        (Change.modified, "pipelines/p", False),
        (Change.added, "pipelines/p/none", False),
        (Change.deleted, "pipelines/gone", True),
        (Change.deleted, "pipelines/gone/.cache", False),
    ],
)
def test_what_is_a_change(tmp_path: Path, change: Change, name: str, expected: bool) -> None:
    project = tmp_path / ".local" / "project"  # hidden is what lies below the project, not where it lies
    (project / "pipelines/p").mkdir(parents=True)
    assert is_source(project, change, str(project / name)) is expected


def test_a_folder_that_is_moved_in_and_out_is_seen(tmp_path: Path) -> None:
    """Of its files nothing is told."""
    project, outside = tmp_path / "project", tmp_path / "guest"
    project.mkdir()
    outside.mkdir()
    (outside / "pipeline.yaml").write_text("kind: Pipeline")
    asyncio.run(_moved(project, outside))


async def _moved(project: Path, outside: Path) -> None:
    inside = project / outside.name
    seen = awatch(project, watch_filter=partial(is_source, project), step=50, debounce=MAX_SETTLING_MS)
    first = asyncio.ensure_future(anext(seen))
    while not first.done():  # until it watches
        (project / "here.py").write_text("")
        await asyncio.wait([first], timeout=0.1)
    outside.rename(inside)
    while (Change.added, str(inside)) not in await anext(seen):
        pass
    inside.rename(outside)
    while (Change.deleted, str(inside)) not in await anext(seen):
        pass
    await seen.aclose()
