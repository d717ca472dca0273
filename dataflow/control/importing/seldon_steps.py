"""Steps of a Seldon pipeline as nodes: what feeds the model, joins, triggers and batches before it."""

from __future__ import annotations

from collections.abc import Mapping

from dataflow.control.importing.draft import REQUEST, Edges, Tensor
from dataflow.control.importing.models import Model, field_name
from dataflow.control.importing.parts import DIFFERS, FILL_IN, NOT_CONVERTED, Part
from dataflow.control.importing.seldon_wiring import Reference, Wiring
from dataflow.core.errors import nearest
from dataflow.core.schema import FieldType


def add_step(wiring: Wiring, name: str, part: Part, model: Model) -> None:
    """The nodes of a step that runs `model`; the steps that it reads are there already."""
    sources = wiring.references(part, "inputs") or [Reference("", "inputs", "", wiring.name, ("name",))]
    renames = part.named("tensorMap")
    how = part.text("inputsJoinType") or "inner"
    wiring.window(part, "joinWindowMs", several=len({wiring.edge(s) for s in sources}) > 1)
    if how == "any" and len({wiring.edge(s) for s in sources}) > 1:
        edges, fed = _fed_by_first(wiring, name, model, sources, renames, part)
    else:
        apart = how == "outer" and model.use == "model.python"
        if how == "outer" and not apart:
            part.note(
                DIFFERS,
                f"step '{name}' joins what came, and runs without the rest",
                "here it needs all: a record that a side lacks is dropped, `no SIDE`, and its caller told at once",
                ("inputsJoinType",),
            )
        edges, fed = _fed_by_all(wiring, name, model, sources, renames, part, outer=apart)
    edges = _triggered(wiring, name, edges, part)
    batch = part.part("batch")
    size = batch.number("size")
    wait_ms = batch.number("windowMs")
    if size:
        edges = wiring.draft.batch(f"{name}-batch", edges, size, wait_ms, part, ("batch",))
    kinds = dict(model.inputs or {})
    wiring.inputs[name] = {t: Tensor(edges, f, kinds.get(t)) for t, f in fed.items()}
    wiring.read[name] = edges
    wiring.edges[name] = wiring.draft.run(name, model, edges, fed)


def _wanted(
    wiring: Wiring, model: Model, sources: list[Reference], renames: Mapping[str, str], part: Part
) -> tuple[dict[str, Tensor], list[Edges]]:
    """The tensors of the step's request, by the model's names; and edges taken whole, whose fields are unknown."""
    wanted: dict[str, Tensor] = {}
    wholes: list[Edges] = []
    kinds = dict(model.inputs or {})
    for source in sources:
        prefix = ".".join([source.step or wiring.name, source.side])
        inverse = {
            new: old[len(prefix) + 1 :] for old, new in renames.items() if old.startswith(f"{prefix}.")
        }
        if source.tensor:
            pairs = [(renames.get(f"{prefix}.{source.tensor}", source.tensor), source.tensor)]
        elif model.inputs is not None:
            pairs = [(t, inverse.get(t, t)) for t in model.inputs if t not in wanted]
        else:
            pairs = list(inverse.items())
            wholes.append(wiring.edge(source))
        for target, tensor in pairs:
            found = wiring.resolved(source, tensor, kinds.get(target))
            if found is None and source.tensor:
                part.note(
                    FILL_IN,
                    f"'{source.text}': there is no such tensor",
                    f"map {target} of the node",
                    source.at,
                )
            elif found is not None and source.tensor and wanted.get(target, found) != found:
                part.note(
                    NOT_CONVERTED, f"'{source.text}' gives {target} too", "the first is taken", source.at
                )
            elif found is not None:
                wanted.setdefault(target, found)
    return wanted, wholes


def _fed_by_all(
    wiring: Wiring,
    name: str,
    model: Model,
    sources: list[Reference],
    renames: Mapping[str, str],
    part: Part,
    *,
    outer: bool,
) -> tuple[Edges, dict[str, str]]:
    """The edge that has what all `sources` give, and the field there for each of the model's tensors."""
    wanted, wholes = _wanted(wiring, model, sources, renames, part)
    for tensor in model.inputs or {}:
        if tensor not in wanted:
            given = ", ".join(s.text for s in sources)
            part.note(
                FILL_IN,
                f"nothing feeds input '{tensor}' of model '{model.name}'",
                f"map a field of {given}: inputs: {{{tensor}: FIELD}}",
                ("name",),
            )
    if model.inputs is not None:
        for extra in [t for t in wanted if t not in model.inputs]:
            part.note(
                FILL_IN,
                f"model '{model.name}' has no input '{extra}'",
                nearest(extra, model.inputs),
                ("name",),
            )
    gates = [wiring.edge(s) for s in sources]
    read = {t.edges for t in wanted.values()} | set(wholes)
    gates = [edges for edges in gates if edges not in read and edges != (REQUEST,)]
    return wiring.draft.gather(f"{name}-inputs", wanted, gates, wholes, {"how": "outer"} if outer else {})


def _fed_by_first(
    wiring: Wiring, name: str, model: Model, sources: list[Reference], renames: Mapping[str, str], part: Part
) -> tuple[Edges, dict[str, str]]:
    """The first side, in the order declared, that has the record, each side with the fields of the model."""
    part.note(
        DIFFERS,
        f"step '{name}' runs for each input that comes",
        "here once, for the first side in the order written that has the record",
        ("inputsJoinType",),
    )
    sides: dict[str, str] = {}
    kinds: dict[str, FieldType | None] = {}
    for edges in dict.fromkeys(wiring.edge(s) for s in sources):
        mine = [s for s in sources if wiring.edge(s) == edges]
        wanted, _ = _wanted(wiring, model, mine, renames, part)
        fields = {field_name(target): tensor for target, tensor in wanted.items()}
        kinds |= {target: tensor.type for target, tensor in fields.items()}
        side = (
            wiring.draft.select(f"{name}-of-{edges[0].replace('.', '-')}", edges, fields)
            if fields
            else edges[0]
        )
        sides[edges[0].replace(".", "-")] = side
    made = wiring.draft.add(wiring.draft.free(f"{name}-inputs"), "join.any", sides)
    wiring.draft.known[made] = kinds or None
    return (made,), {t: field_name(t) for t in model.inputs or kinds}


def _triggered(wiring: Wiring, name: str, edges: Edges, part: Part) -> Edges:
    """The edge behind the step's triggers: it has the record of `edges` only where they came."""
    triggers = wiring.references(part, "triggers")
    how = part.text("triggersJoinType") or "inner"
    if not triggers:
        return edges
    if how == "outer":
        part.note(
            DIFFERS,
            "triggersJoinType: outer waits for its window",
            "here as `any`",
            ("triggersJoinType",),
        )
    asked = [t for t in triggers if not t.step and t.tensor]
    gates: list[Edges] = list(dict.fromkeys(wiring.edge(t) for t in triggers if t not in asked))
    for trigger in triggers:
        always = wiring.draft.known.get(wiring.edge(trigger)[0])  # an ONNX model gives all of its outputs
        if trigger.step and trigger.tensor and always is None:
            part.note(
                DIFFERS,
                f"trigger '{trigger.text}' was a tensor that may be absent",
                f"here '{trigger.step}' triggers whenever it has the record: put a filter.when or route.when behind it",
                trigger.at,
            )
    if asked:
        gates.append((_asked(wiring, name, asked, " and " if how == "inner" else " or "),))
    if len(gates) == 1 and asked and edges == (REQUEST,):
        return gates[0]
    return _gated(wiring, name, edges, gates, every=how == "inner")


def _asked(wiring: Wiring, name: str, asked: list[Reference], word: str) -> str:
    """A filter: the record goes on if the request has these tensors."""
    for reference in asked:
        wiring.draft.ask(field_name(reference.tensor), None, ("steps",))
        wiring.draft.optional.add(field_name(reference.tensor))
    when = word.join(f"{field_name(r.tensor)} is not null" for r in asked)
    node = wiring.draft.free(f"{name}-trigger")
    wiring.draft.add(node, "filter.when", REQUEST, with_={"when": when, "reason": "not triggered"})
    wiring.draft.known[node] = wiring.draft.fields
    return node


def _gated(wiring: Wiring, name: str, edges: Edges, gates: list[Edges], *, every: bool) -> Edges:
    if every or len(gates) == 1:
        return (wiring.draft.gate(f"{name}-triggered", edges, *gates),)
    sides: dict[Edges, list[str] | None] = {edges: None, **{gate: [] for gate in gates}}
    node = wiring.draft.free(f"{name}-triggered")
    data = edges[0].replace(".", "-")
    wiring.draft.join(node, sides, {"how": "outer", "required": [data], "missing": "untriggered"})
    passed = wiring.draft.free(f"{name}-any-trigger")
    when = f"length(untriggered) < {len(gates)}"
    wiring.draft.add(passed, "filter.when", node, with_={"when": when, "reason": "not triggered"})
    wiring.draft.known[passed] = wiring.draft.known[node] = wiring.draft.known.get(edges[0])
    return (passed,)
