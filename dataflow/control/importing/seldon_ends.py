"""Where a Seldon pipeline begins and ends: the edge of another pipeline that it reads, and what its callers get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dataflow.control.importing.draft import REQUEST, Edges, Tensor, source_of
from dataflow.control.importing.models import field_name, plain_name
from dataflow.control.importing.parts import DIFFERS, NOT_CONVERTED, Part
from dataflow.control.importing.seldon_wiring import Reference, Wiring


def read_input(wiring: Wiring, part: Part, outputs: Mapping[str, list[str]]) -> bool:
    """Whether the pipeline's input could be converted: one edge of another pipeline, or its own requests."""
    refs = part.texts("externalInputs")
    renames = part.named("tensorMap")
    part.skip("joinType", "triggersJoinType", "joinWindowMs")
    if len(refs) > 1:
        part.note(
            NOT_CONVERTED,
            f"pipeline '{wiring.name}' joins {len(refs)} streams of other pipelines",
            "put the pipelines into one and join their edges, or join.by_key in a pipeline of your own",
            ("externalInputs",),
        )
        return False
    for ref in refs:
        pipeline, *rest = ref.split(".")
        tensor = ""
        if rest[:1] == ["step"] and len(rest) > 1:
            edge, tensor = rest[1], ".".join(rest[3:])
            if rest[2:3] == ["inputs"]:
                return _no_edge(wiring, part, ref, "its steps' inputs are no edge")
        else:
            steps = outputs.get(pipeline, [])
            tensor = ".".join(rest[1:])
            if rest[:1] == ["outputs"] and pipeline not in outputs:
                return _no_edge(wiring, part, ref, "which is not in these files: import both at once")
            if rest[:1] != ["outputs"] or len(steps) != 1:
                return _no_edge(wiring, part, ref, "it is no one edge here")
            edge = steps[0].split(".")[0]
        wiring.draft.reads = f"{plain_name(pipeline)}.{plain_name(edge)}"
        if tensor:
            wiring.external[renames.get(ref, tensor)] = field_name(tensor)
        wiring.draft.known[REQUEST] = None
    for old, new in renames.items():
        wiring.external[new] = field_name(old.rpartition(".")[2])
    return True


def _no_edge(wiring: Wiring, part: Part, ref: str, why: str) -> bool:
    part.note(
        NOT_CONVERTED,
        f"pipeline '{wiring.name}' reads {ref}: {why}",
        "read one edge: PIPELINE.NODE",
        ("externalInputs",),
    )
    return False


def add_answer(wiring: Wiring, part: Part) -> None:
    """What callers get, by the manifest's `output`; nothing without one: then it has no callers."""
    references = wiring.references(part, "steps")
    how = part.text("stepsJoin") or "inner"
    renames = part.named("tensorMap")
    edges = list(dict.fromkeys(wiring.edge(r) for r in references))
    wiring.window(part, "joinWindowMs", several=len(edges) > 1)
    if not references:
        return
    if wiring.draft.reads:
        part.note(
            DIFFERS,
            "output: a pipeline that reads another's edge has no callers",
            "tap its edges",
            ("steps",),
        )
        return
    if how == "any" and not renames:
        wiring.draft.answer = [
            source
            for r in edges
            for source in _picked(wiring, [s for s in references if wiring.edge(s) == r])
        ]
    elif len(edges) == 1:
        wiring.draft.answer = list(_picked(wiring, references, renames))
    else:
        wiring.draft.answer = [_joined(wiring, part, references, renames, how)]


def _fields(
    wiring: Wiring, references: list[Reference], renames: Mapping[str, str]
) -> dict[str, Tensor] | None:
    """The fields that these references answer with; None where a step's are not known."""
    fields: dict[str, Tensor] = {}
    for reference in references:
        edge = wiring.edge(reference)
        known = wiring.draft.known.get(edge[0])
        if not reference.tensor and known is None:
            return None
        for name in [field_name(reference.tensor)] if reference.tensor else list(known or {}):
            new = renames.get(f"{reference.step}.{reference.side}.{name}", name)
            fields[field_name(new)] = Tensor(edge, name, (known or {}).get(name))
    return fields


def _picked(
    wiring: Wiring, references: list[Reference], renames: Mapping[str, str] | None = None
) -> Iterator[str]:
    edges = wiring.edge(references[0])
    fields = _fields(wiring, references, renames or {})
    yield edges[0] if fields is None else wiring.draft.select(f"{references[0].step}-answer", edges, fields)


def _joined(
    wiring: Wiring, part: Part, references: list[Reference], renames: Mapping[str, str], how: str
) -> str:
    sides: dict[Edges, list[str] | None] = {}
    for reference in references:
        known = wiring.draft.known.get(wiring.edge(reference)[0])
        fields = (
            [field_name(reference.tensor)] if reference.tensor else None if known is None else list(known)
        )
        edges = wiring.edge(reference)
        taken = sides.setdefault(edges, [])
        if fields is None or taken is None:
            sides[edges] = None
        else:
            sides[edges] = list(dict.fromkeys([*taken, *fields]))
    node = wiring.draft.free("answer")
    settings = {"how": "outer"} if how == "outer" else {}
    _, names = wiring.draft.join(node, sides, settings)
    for (edge, name), new in names.items():
        if name != new:
            part.note(
                DIFFERS,
                f"'{name}' of '{source_of(edge)}' is '{new}' in the answer",
                "two steps give it",
                ("steps",),
            )
    rename = {
        names[wiring.edge(r), field_name(old)]: field_name(new)
        for text, new in renames.items()
        for r in [wiring.reference(text, part, ("tensorMap", text))]
        for old in [r.tensor]
        if (wiring.edge(r), field_name(old)) in names
    }
    if not rename:
        return node
    return wiring.draft.add(
        wiring.draft.free("answer-renamed"), "transform.select", node, with_={"rename": rename}
    )
