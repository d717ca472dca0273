"""Projects written into a folder for one test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

from dataflow.spec import Project, load_project


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
    return folder


def project_of(folder: Path, files: Mapping[str, str], environ: Mapping[str, str] | None = None) -> Project:
    return load_project(write(folder, files), environ=environ or {})


def shown(project: Project) -> list[str]:
    return [str(problem) for problem in project.problems]
