"""The two plans of a replay: what was recorded, and what its records go through now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from dataflow.control.assemble import LintError, OnBuild, code_matches, plan_all
from dataflow.core.errors import PlanError, SpecError, nearest
from dataflow.planner.plan import Plan
from dataflow.registry import Registry
from dataflow.spec import Project, load_project
from dataflow.spec.documents import PipelineSpec
from dataflow.spec.loader import Declared, declare, placed
from dataflow.spec.source import read_yaml


def recorded_plan(plans: Mapping[str, Plan], name: str, project: Project) -> Plan:
    """The plan that is deployed. Raises SpecError with the nearest name."""
    plan = plans.get(name)
    if plan is None:
        declared = name in project.pipelines
        hint = "dataflow up starts it: nothing is recorded yet" if declared else nearest(name, plans)
        raise SpecError(f"no pipeline '{name}' on this cluster", hint=hint)
    return plan


def same_plan(folder: Path, plan: Plan) -> Plan:
    """The deployed plan, if the project in `folder` has its code and models. Raises PlanError if it has others."""
    if not code_matches(folder, plan):
        raise PlanError(
            f"the code or the models of pipeline '{plan.pipeline}' in '{folder}' are not those that are deployed",
            hint="--with its pipeline.yaml replays through what is in this folder",
        )
    return plan


def changed_plan(
    folder: Path,
    name: str,
    file: Path,
    environ: Mapping[str, str],
    on_build: OnBuild,
    deployed: Mapping[str, Plan],
) -> tuple[Plan, Registry]:
    """The plan of the project with pipeline `name` as `file` declares it.

    Code and files are looked for beside the pipeline's own declaration; `deployed` are the plans on the cluster.
    Raises SpecError if the file does not declare it, LintError with all that is wrong.
    """
    project = load_project(folder, environ=environ)
    here = project.pipelines.get(name)
    own = here is not None and (project.folder / here.file).resolve() == file.resolve()
    if not own:
        project = _with(project, _read(file, name, here, environ))
    assembled = plan_all(project, Registry.default(folder), [name], on_build, lambda: deployed)
    return assembled.plans[0], assembled.registry


def _with(project: Project, changed: Declared[PipelineSpec]) -> Project:
    """The project with another declaration of one pipeline; faults of the one it replaces do not matter any more."""
    name = changed.spec.name
    before = project.pipelines.get(name)
    files = {changed.file, before.file if before is not None else ""}
    return dataclasses.replace(
        project,
        pipelines={**project.pipelines, name: changed},
        problems=[p for p in project.problems if p.file not in files],
        broken=project.broken - {name},
    )


def _read(
    file: Path, name: str, here: Declared[PipelineSpec] | None, environ: Mapping[str, str]
) -> Declared[PipelineSpec]:
    """The declaration of pipeline `name` in a file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read '{file}': {error}") from error
    sources, problems = read_yaml(text, str(file), environ)
    if problems:
        raise LintError(problems)
    found = [s for s in sources if isinstance(s.value, dict) and s.value.get("kind") == "Pipeline"]
    source = next((s for s in found if s.value.get("name") == name), None)
    if source is None:
        names = [str(s.value.get("name")) for s in found]
        raise SpecError(
            f"'{file}' declares no pipeline '{name}'",
            hint=nearest(name, names) if names else "it must hold a document of kind: Pipeline",
        )
    folder = here.folder if here is not None else file.resolve().parent
    declared, faults, _ = declare(PipelineSpec, source, str(file), folder)
    if declared is None or any(fault.severity == "error" for fault in faults):
        raise LintError(placed(fault, source, str(file)) for fault in faults)
    return declared
