"""From a project's folder to plans: load, build models, resolve, lint, plan. The one path that every command takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dataflow.core.errors import BrokerError, DataflowError, SpecError, TransportError
from dataflow.core.loading import code_digest
from dataflow.planner.build import build_plan
from dataflow.planner.lint import lint
from dataflow.planner.plan import ModelPlan, Plan
from dataflow.planner.upstream import Pipelines
from dataflow.registry import Registry
from dataflow.sdk import ModelInfo
from dataflow.serving import ensure_built, model_info
from dataflow.serving.build import digest_of
from dataflow.spec import Problem, Project, load_project

OnBuild = Callable[[str, str], None]
Deployed = Callable[[], Mapping[str, Plan]]


class LintError(SpecError):
    """A project that must not run; `problems` are all that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True)
class Assembled:
    """A project that lints, and the plans of the pipelines asked for. `warnings` do not stop it."""

    project: Project
    registry: Registry
    plans: tuple[Plan, ...]
    warnings: tuple[Problem, ...]


def assemble(
    folder: Path,
    pipelines: Iterable[str] = (),
    *,
    environ: Mapping[str, str],
    on_build: OnBuild = lambda _name, _line: None,
    deployed: Deployed | None = None,
) -> Assembled:
    """Plans of `pipelines` (all when empty). Models are built where needed; `on_build` gets name and line of output.

    `deployed` gives the plans of the cluster, for pipelines that are read and not declared here; by default of the
    cluster that commands in `folder` talk to. Raises LintError with every problem, SpecError for an unknown pipeline,
    ModelError for a build that fails.
    """
    project = load_project(folder, environ=environ)
    there = deployed or partial(deployed_plans, folder, None, environ)
    chosen = tuple(pipelines) or tuple(project.pipelines)
    return plan_all(project, Registry.default(folder), chosen, on_build, there)


def plan_all(
    project: Project,
    registry: Registry,
    chosen: Iterable[str],
    on_build: OnBuild = lambda _name, _line: None,
    deployed: Deployed = dict,
) -> Assembled:
    """Plans of the `chosen` pipelines of a loaded project. Raises as `assemble` does."""
    chosen = tuple(chosen)
    built = build_models(project, _models_named(project, _with_read(project, chosen)), on_build)
    found = Pipelines(project, registry, Models(project, built), deployed)
    problems = lint(project, registry, pipelines=found)
    errors = [p for p in problems if p.severity == "error"]
    if errors:
        raise LintError(errors)
    plans = []
    for name in chosen:
        resolved = found.resolved(name)
        used = {m for n in resolved.nodes.values() for m in n.models}
        planned = {m: built[m] for m in sorted(used)}
        calls = [c for n in resolved.nodes.values() if isinstance(c := n.raw_settings.get("call"), str)]
        plans.append(build_plan(project, resolved, planned, code_digest(resolved.declared.folder, calls)))
    return Assembled(project, registry, tuple(plans), tuple(p for p in problems if p.severity != "error"))


def deployed_plans(folder: Path, bootstrap: str | None, environ: Mapping[str, str]) -> dict[str, Plan]:
    """The plans on the cluster that commands in `folder` talk to; {} where none is known or it does not answer."""
    # Imported where they are needed: most projects are whole, and their commands start without a Kafka client.
    from dataflow.control.connect import connect
    from dataflow.control.deploy import read_plans

    try:
        fabric = connect(folder, bootstrap, environ)
    except (BrokerError, TransportError):
        return {}
    try:
        return read_plans(fabric)
    finally:
        fabric.close()


def code_matches(folder: Path, plan: Plan) -> bool:
    """Whether the project in `folder` has the code and the models that a plan was made of."""
    place = folder / plan.folder
    calls = [c for n in plan.nodes.values() if isinstance(c := n.settings.get("call"), str)]
    try:
        if code_digest(place, calls) != plan.code_digest:
            return False
        return all(digest_of(folder / m.file) == m.digest for m in plan.models.values())
    except (DataflowError, OSError):
        return False


def _with_read(project: Project, pipelines: Iterable[str]) -> list[str]:
    """These pipelines and those of the project whose edges they read, over any number of steps."""
    found = dict.fromkeys(pipelines)
    waiting = [name for name in found if name in project.pipelines]
    while waiting:
        spec = project.pipelines[waiting.pop()].spec
        texts = [
            *spec.inputs.values(),
            *(e for n in spec.nodes.values() for es in n.feeds.values() for e in es),
        ]
        read = {text.partition(".")[0] for text in texts if text not in project.topics}
        new = [name for name in sorted(read) if name in project.pipelines and name not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return list(found)


def _models_named(project: Project, pipelines: Iterable[str]) -> list[str]:
    """Models whose names stand in the settings of these pipelines' nodes: those to build before resolving."""
    named: dict[str, None] = {}
    for name in pipelines:
        if name in project.pipelines:
            for node in project.pipelines[name].spec.nodes.values():
                model = node.settings.get("model")
                if isinstance(model, str) and model in project.models:
                    named[model] = None
    return list(named)


def build_models(
    project: Project, names: Iterable[str], on_build: OnBuild = lambda _name, _line: None
) -> dict[str, ModelPlan]:
    """Build what is missing or stale; the plan of each model by name."""
    made = {}
    for name in names:
        declared = project.models[name]
        spec = declared.spec
        built = ensure_built(
            name, declared.folder, spec.file, spec.build, spec.inputs, on_line=partial(on_build, name)
        )
        path = built.path
        inside = path.is_relative_to(project.folder)
        made[name] = ModelPlan(
            name,
            path.relative_to(project.folder).as_posix() if inside else str(path),
            built.digest,
            spec.chosen_options,
        )
    return made


class Models:
    """Signatures of a project's models, read from what is built; empty where nothing is."""

    def __init__(self, project: Project, built: Mapping[str, ModelPlan]) -> None:
        self._project = project
        self._built = built
        self._known: dict[str, ModelInfo] = {}

    def __call__(self, name: str) -> ModelInfo:
        if name not in self._known:
            declared = self._project.models[name]
            artifact = declared.folder / declared.spec.file
            digest = self._built[name].digest if name in self._built else ""
            self._known[name] = model_info(
                name, artifact, options=declared.spec.chosen_options, digest=digest
            )
        return self._known[name]
