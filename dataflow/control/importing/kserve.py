"""KServe: `InferenceService` (``serving.kserve.io/v1beta1``) and `InferenceGraph` (``serving.kserve.io/v1alpha1``).

The format and what the router does with it: KServe's API types, its router, and kserve.github.io, "Inference Graph".
A step gets the request of its node, or with ``data: $response`` what the step before it answered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dataflow.control.importing.conversion import Conversion
from dataflow.control.importing.draft import (
    REQUEST,
    Batch,
    Draft,
    Edges,
    finish,
    lone_pipeline,
    rename_note,
    source_of,
)
from dataflow.control.importing.gjson import condition_of
from dataflow.control.importing.models import Model, field_name, find_model_file, plain_name, read_model
from dataflow.control.importing.parts import DIFFERS, FILL_IN, NOT_CONVERTED, Manifest, Part, read_manifests
from dataflow.core.errors import SpecError, nearest
from dataflow.core.schema import FieldType

GROUP: Final = "serving.kserve.io"
FRAMEWORKS: Final = (
    "onnx", "sklearn", "xgboost", "lightgbm", "tensorflow", "pytorch", "triton", "huggingface", "paddle", "pmml",
)  # fmt: skip
# What the router's own batcher takes where the manifest says nothing.
BATCHER_SIZE, BATCHER_WAIT_MS = 32, 5000
INSTEAD: Final[Mapping[str, str]] = {
    "namespace": "a project has one space of names: put what must be apart into projects of their own",
    "containers": "run your code in a `model.python` or `transform.python` node",
    "image": "a node runs in any worker that has its packages",
    "args": "they were for the other server: use the model's `options`",
    "env": "they were for the other server: use the model's `options`",
    "ports": "the gateway's ports are in `dataflow.yaml`",
    "transformer": "write what is before and after the model as `transform.python` nodes",
    "explainer": "run the explainer in a `model.python` node beside the answer: it never slows it",
    "canary": "declare both models, and share records by `route.weighted`",
    "canaryTrafficPercent": "declare both models, and share records by `route.weighted`",
    "logger": "nothing to do: every edge is a topic that can be tapped",
    "resources": "machines are not declared: give them to the workers",
    "minReplicas": "start more workers: `dataflow worker`",
    "maxReplicas": "start more workers: `dataflow worker`",
    "scaleTarget": "start more workers: `dataflow worker`",
    "scaleMetric": "start more workers: `dataflow worker`",
    "autoScaling": "start more workers: `dataflow worker`",
    "serviceAccountName": "fetch the artifact yourself, e.g. by the model's `build`",
    "storage": "fetch the artifact yourself, e.g. by the model's `build`",
    "routerTimeouts": "`deadline` of the pipeline holds for the whole request",
    "containerConcurrency": "`max_batch` of the model's `options` says how many rows run at once",
}


@dataclass(frozen=True)
class Service:
    """An InferenceService: its model, and what it says of batches."""

    model: Model
    part: Part
    batch: Batch | None


def convert_kserve(files: list[Path], models: Path | None) -> Conversion:
    """Our declarations for the manifests in `files`; `models` has ONNX files. Raises SpecError and ModelError."""
    made = Conversion()
    manifests = read_manifests(files, made.notes)
    services: dict[str, Service] = {}
    for manifest in manifests:
        if manifest.group != GROUP or manifest.kind not in {"InferenceService", "InferenceGraph"}:
            manifest.part.note(NOT_CONVERTED, f"{manifest.kind} '{manifest.name}'", "left out")
        elif manifest.kind == "InferenceService":
            services[manifest.name] = _service(manifest, models)
    for manifest in manifests:
        if manifest.group == GROUP and manifest.kind == "InferenceGraph":
            made.pipelines.append(_Graph(manifest, services, models).draw())
            manifest.part.report_unread(INSTEAD)
    used = {name for draft in made.pipelines for name in draft.models}
    for service in services.values():
        if service.model.name not in used:
            draft = lone_pipeline(service.model, service.part, service.batch)
            draft.deadline = _deadline(service.part.part("spec").part("predictor"))
            made.pipelines.append(draft)
        service.part.report_unread(INSTEAD)
    for draft in made.pipelines:
        finish(draft)
    return made


def _service(manifest: Manifest, models: Path | None) -> Service:
    predictor = manifest.part.part("spec").part("predictor")
    where, framework = predictor, ""
    at: tuple[str, ...] = ()
    if "model" in predictor:
        where, at = predictor.part("model"), ("modelFormat",)
        framework = where.part("modelFormat").text("name")
        where.part("modelFormat").skip("version")
    elif "containers" in predictor:
        framework, at = "a container", ("containers",)
        predictor.skip("containers")  # the note of the model says it
    else:
        legacy = next((name for name in FRAMEWORKS if name in predictor), "")
        framework, where = legacy, predictor.part(legacy) if legacy else predictor
    where.skip("protocolVersion", "runtime", "runtimeVersion", "name")
    batcher = predictor.part("batcher")
    batch = None
    if "batcher" in predictor:
        size = batcher.number("maxBatchSize") or BATCHER_SIZE
        wait_ms = batcher.number("maxLatency") or BATCHER_WAIT_MS
        batch = Batch(size, wait_ms, batcher)
    file = find_model_file(models, manifest.name)
    model = read_model(manifest.name, framework, file, where, doc=where.text("storageUri"), at=at)
    return Service(model, manifest.part, batch)


def _deadline(part: Part) -> str:
    seconds = part.number("timeout")
    return f"{seconds}s" if seconds else ""


@dataclass
class _Graph:
    """One graph in conversion; a routing node becomes the nodes that it is made of, each time it is reached."""

    manifest: Manifest
    services: Mapping[str, Service]
    models: Path | None

    def draw(self) -> Draft:
        part, name = self.manifest.part, self.manifest.name
        spec = part.part("spec")
        rename_note(part, name, plain_name(name))
        self.nodes = spec.part("nodes")
        self.draft = Draft(plain_name(name), spec, deadline=_deadline(spec))
        if "root" not in self.nodes:
            raise SpecError(f"{part.file}:{spec.line('nodes')}: the graph has no node 'root'")
        self.draft.answer = list(self._visit("root", (REQUEST,), (), self.nodes))
        for name in self.nodes.values:
            if name not in self.visited:
                self.nodes.note(NOT_CONVERTED, f"node '{name}'", "no step leads to it", (name,))
                self.nodes.skip(name)
        return self.draft

    @property
    def visited(self) -> set[str]:
        return self.nodes.seen

    def _visit(self, name: str, edges: Edges, path: tuple[str, ...], part: Part) -> Edges:
        """The edges that the routing node's answers come on, for the records of `edges`."""
        if name not in self.nodes:
            hint = nearest(name, self.nodes.values)
            raise SpecError(f"{part.file}:{part.line('nodeName')}: no node '{name}'", hint=hint)
        if name in path:
            raise SpecError(
                f"{part.file}:{part.line('nodeName')}: node '{name}' leads to itself",
                hint="write the loop with `loop.until`",
            )
        node = self.nodes.part(name)
        steps = node.parts("steps")
        router = node.text("routerType")
        if not steps:
            raise SpecError(f"{node.file}:{node.line()}: node '{name}' has no steps")
        inside = (*path, name)
        if router == "Sequence":
            return self._sequence(steps, edges, inside)
        if router == "Switch":
            return self._switch(name, steps, edges, inside)
        if router == "Splitter":
            return self._splitter(name, steps, edges, inside)
        if router == "Ensemble":
            return self._ensemble(name, steps, edges, inside)
        raise SpecError(
            f"{node.file}:{node.line('routerType')}: routerType '{router}' is not known",
            hint="valid: Sequence, Switch, Ensemble, Splitter",
        )

    # ------------------------------------------------------------ routers

    def _sequence(self, steps: list[Part], edges: Edges, path: tuple[str, ...]) -> Edges:
        previous: Edges = edges
        ended: Edges = ()
        for index, step in enumerate(steps):
            response = step.text("data") == "$response" and index > 0
            step.one("mapPredictionsToInstances")  # it is by names or, of one tensor, by place
            condition = step.text("condition")
            gate: Edges = ()
            if condition and index > 0:
                gate, stop = self._continue(step, previous)
                ended += stop
            elif condition:
                step.note(
                    NOT_CONVERTED, "a condition of the first step", "there is no response yet", ("condition",)
                )
            if index > 0 and not response and not gate:
                step.note(
                    DIFFERS,
                    f"the response of '{_named(steps[index - 1])}' is not used, and this step waited for it",
                    "here both run beside each other",
                    ("data",) if "data" in step else (),
                )
            source = edges
            if response:
                source = gate or previous
            elif gate:
                source = (self.draft.gate(f"{_named(step)}-if", edges, gate),)
            step.skip("dependency")  # what failed here goes no further
            previous = self._target(step, source, path)
        return (*previous, *ended)

    def _continue(self, step: Part, previous: Edges) -> tuple[Edges, Edges]:
        """The ports of a router on the response so far: the step is reached, and the sequence ends."""
        router = self.draft.free(f"{_named(step)}-when")
        ports = {"go": self._condition(step, previous), "end": "otherwise"}
        self.draft.add(router, "route.when", source_of(previous), with_=ports)
        for port in ports:
            self.draft.known[f"{router}.{port}"] = self.draft.known.get(previous[0])
        return (f"{router}.go",), (f"{router}.end",)

    def _switch(self, name: str, steps: list[Part], edges: Edges, path: tuple[str, ...]) -> Edges:
        ports: dict[str, str] = {}
        chosen: list[tuple[str, Part]] = []
        for step in steps:
            if not step.text("condition"):
                step.note(
                    NOT_CONVERTED, f"'{_named(step)}' of a Switch has no condition", "it is never reached"
                )
                step.skip(*step.values)
                continue
            port = _port(_named(step), ports)
            ports[port] = self._condition(step, edges)
            chosen.append((port, step))
        return self._routed("route.when", name, ports, chosen, edges, path)

    def _splitter(self, name: str, steps: list[Part], edges: Edges, path: tuple[str, ...]) -> Edges:
        weights: dict[str, int] = {}
        chosen: list[tuple[str, Part]] = []
        for step in steps:
            port = _port(_named(step), weights)
            weights[port] = step.number("weight") or 0
            chosen.append((port, step))
        return self._routed("route.weighted", name, {"weights": weights}, chosen, edges, path)

    def _routed(
        self,
        use: str,
        name: str,
        settings: Mapping[str, Any],
        chosen: list[tuple[str, Part]],
        edges: Edges,
        path: tuple[str, ...],
    ) -> Edges:
        router = self.draft.add(self.draft.free(name), use, source_of(edges), with_=dict(settings))
        found: list[str] = []
        for port, step in chosen:
            edge = f"{router}.{port}"
            self.draft.known[edge] = self.draft.known.get(edges[0])
            step.skip("dependency")
            found += self._target(step, (edge,), path)
        return tuple(found)

    def _ensemble(self, name: str, steps: list[Part], edges: Edges, path: tuple[str, ...]) -> Edges:
        """A join of the branches: fields are prefixed with the step's name, as the router nests them under it."""
        sides: dict[str, Edges] = {}
        hard: list[str] = []
        for step in steps:
            side = _port(_named(step), sides)
            if step.text("dependency") == "Hard":
                hard.append(side)
            sides[side] = self._target(step, edges, path)
        prefix = {side: f"{field_name(side)}_" for side in sides}
        with_: dict[str, Any] = {"prefix": prefix}
        if len(hard) < len(sides):
            with_ |= {"how": "outer"} | ({"required": hard} if hard else {})
        joined = self.draft.free(f"{name}-merged" if name in self.draft.nodes else name)
        self.draft.add(joined, "join.by_id", {s: source_of(e) for s, e in sides.items()}, with_=with_)
        known: dict[str, FieldType | None] = {}
        for side, found in sides.items():
            for field, kind in (self.draft.known.get(found[0]) or {}).items():
                soft = kind is not None and side not in hard
                known[prefix[side] + field] = (
                    replace(kind, nullable=True) if kind is not None and soft else kind
                )
        self.draft.known[joined] = known or None
        return (joined,)

    # ------------------------------------------------------------ steps

    def _target(self, step: Part, edges: Edges, path: tuple[str, ...]) -> Edges:
        node = step.text("nodeName")
        if node:
            step.skip("name")
            return self._visit(node, edges, path, step)
        name, url = step.text("serviceName"), step.text("serviceUrl")
        if not name and _host(url) in self.services:
            name = _host(url)
            what = f"serviceUrl: taken for the InferenceService '{name}' of these files"
            step.note(DIFFERS, what, "the model is run here, not called", ("serviceUrl",))
        service = self.services.get(name)
        if service is not None:
            model, batch = service.model, service.batch
        elif name:
            batch = None
            model = self.draft.models.get(plain_name(name)) or read_model(
                name, "", find_model_file(self.models, name), step, at=("serviceName",)
            )
        else:
            if not url:
                raise SpecError(
                    f"{step.file}:{step.line()}: a step needs a serviceName, serviceUrl or nodeName"
                )
            batch = None
            name = _host(url) or _named(step)
            model = read_model(name, f"a service at {url}", None, step, at=("serviceUrl",))
        fed = self.draft.feed(model, edges, ("nodes",))
        if batch is not None:
            edges = batch.before(self.draft, model.name, edges)
        return (self.draft.run(_named(step), model, edges, fed),)

    def _condition(self, step: Part, edges: Edges) -> str:
        """The step's condition as an expression over the fields of `edges`; its own text where it is none of ours."""
        text = step.text("condition")
        known = self.draft.known.get(edges[0]) or {}

        def only() -> str:
            if len(known) != 1:
                raise SpecError(f"'{text}' names no field, and there is not just one", hint="name it")
            return next(iter(known))

        try:
            found = condition_of(text, only)
        except SpecError as error:
            step.note(FILL_IN, error.message, error.hint, ("condition",))
            return text
        if self.draft.is_request(edges):
            self.draft.ask(found.field, None)
            if found.type:
                self.draft.guesses.setdefault(found.field, FieldType(found.type))
            return found.expression
        if known and found.field not in known:
            hint = nearest(found.field, known)
            step.note(
                FILL_IN, f"the condition asks for '{found.field}', which is no field", hint, ("condition",)
            )
        kind = known.get(found.field)
        if kind is not None and kind.shape == (1,) and f"{found.field}[" not in found.expression:
            return re.sub(r"^`?\w+`?", r"\g<0>[0]", found.expression)
        return found.expression


def _host(url: str) -> str:
    """The first label of a URL's host: the name of a service, inside its cluster."""
    match = re.match(r"https?://([A-Za-z][A-Za-z0-9-]*)", url)
    return match[1] if match else ""


def _named(step: Part) -> str:
    """The step's own name, else that of its target."""
    step.skip("name")
    for key in ("name", "serviceName", "nodeName"):
        value = step.values.get(key)
        if isinstance(value, str) and value:
            return value
    return _host(str(step.values.get("serviceUrl", ""))) or "step"


def _port(name: str, taken: Mapping[str, object]) -> str:
    """A name for a port: not one of those `taken`, and not the word that the router's settings have."""
    plain = found = plain_name(name)
    number = 1
    while found in taken or found == "match":
        number += 1
        found = f"{plain}-{number}"
    return found
