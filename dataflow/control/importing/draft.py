"""A pipeline of ours in the making: nodes are added to it, and the contracts of its edges are known as far as told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from dataflow.control.importing.models import Model, field_name, module_name, plain_name
from dataflow.control.importing.parts import DIFFERS, FILL_IN, Part
from dataflow.core.schema import FieldType

REQUEST: Final = "request"
Edges = tuple[str, ...]
Known = dict[str, FieldType | None]


@dataclass(frozen=True)
class Tensor:
    """A field on an edge, or on whichever of several edges has the record."""

    edges: Edges
    field: str
    type: FieldType | None = None


@dataclass
class Draft:
    """A pipeline with one input `request`; `fields` is its contract unless `reads` names an edge of another.

    known      the fields of an edge, None where they cannot be told; ports of a router have those of its input
    optional   fields of the request that need not be there
    guesses    types of the request's fields for which no model says one
    """

    name: str
    part: Part
    doc: str = ""
    reads: str = ""
    fields: Known = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    answer: list[str] = field(default_factory=list)
    deadline: str = ""
    models: dict[str, Model] = field(default_factory=dict)
    known: dict[str, Known | None] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)
    guesses: dict[str, FieldType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known[REQUEST] = self.fields

    def free(self, name: str) -> str:
        """`name`, or the like of it that no node and no input has."""
        plain = found = plain_name(name)
        number = 1
        while found in self.nodes or found == REQUEST:
            number += 1
            found = f"{plain}-{number}"
        return found

    def is_request(self, edges: Edges) -> bool:
        """Whether records of these edges are the requests themselves, and their contract ours to write."""
        return not self.reads and all(self.known.get(edge) is self.fields for edge in edges)

    def ask(self, name: str, kind: FieldType | None, at: tuple[str | int, ...] = ()) -> Tensor:
        """The request's field `name`, which is declared where it is not yet; two types of it are made one."""
        known = self.fields.get(name)
        if known is not None and kind is not None and known != kind:
            both = both_types(known, kind)
            if both is None:
                self.part.note(
                    FILL_IN,
                    f"'{name}' is {known.describe()} to one model and {kind.describe()} to another",
                    "the request needs a field for each: map them by `inputs` of the nodes",
                    at,
                )
            kind = both or known
        self.fields[name] = kind or known
        return Tensor((REQUEST,), name, kind or known)

    def add(self, name: str, use: str, source: object, **words: Any) -> str:
        """A node; empty words are left out. Gives its name, which is its edge's."""
        node = {"use": use, "from": source} | {
            word.rstrip("_"): value for word, value in words.items() if value is not None and value != {}
        }
        self.nodes[name] = node
        return name

    def gather(
        self,
        name: str,
        wanted: Mapping[str, Tensor],
        gates: Sequence[Edges] = (),
        wholes: Sequence[Edges] = (),
        how: Mapping[str, Any] | None = None,
    ) -> tuple[Edges, dict[str, str]]:
        """One edge that has all `wanted`, and the field that each is there.

        Where they are on several edges, a join puts them together; fields that two of them have are prefixed. `gates`
        are edges that must have the record and give nothing, `wholes` those that give whatever they have.
        """
        sides: dict[Edges, list[str] | None] = dict.fromkeys(wholes)
        for tensor in wanted.values():
            fields = sides.setdefault(tensor.edges, [])
            if fields is not None and tensor.field not in fields:
                fields.append(tensor.field)
        for edges in gates:
            sides.setdefault(edges, [])
        if len(sides) <= 1:
            edges = next(iter(sides), (REQUEST,))
            return edges, {target: tensor.field for target, tensor in wanted.items()}
        joined, names = self.join(self.free(name), sides, how or {})
        given = {target: names.get((t.edges, t.field), t.field) for target, t in wanted.items()}
        self.known[joined] = None if wholes else {given[target]: t.type for target, t in wanted.items()}
        return (joined,), given

    def join(
        self, name: str, sides: Mapping[Edges, Sequence[str] | None], settings: Mapping[str, Any]
    ) -> tuple[str, dict[tuple[Edges, str], str]]:
        """A `join.by_id` of these fields of these edges (None for all), and what each is called behind it."""
        ports = side_names(sides)
        seen: set[str] = set()
        prefix: dict[str, str] = {}
        names: dict[tuple[Edges, str], str] = {}
        for edges, fields in sides.items():
            if seen & set(fields or ()):
                prefix[ports[edges]] = f"{field_name(ports[edges])}_"
            for found in fields or ():
                names[edges, found] = prefix.get(ports[edges], "") + found
                seen.add(names[edges, found])
        select = {ports[e]: list(fields) for e, fields in sides.items() if fields is not None}
        chosen = {"select": select, "prefix": prefix, **settings}
        with_ = {word: value for word, value in chosen.items() if value != {}}
        self.add(name, "join.by_id", {ports[e]: source_of(e) for e in sides}, with_=with_)
        return name, names

    def gate(self, name: str, edges: Edges, *gates: Edges) -> str:
        """A join that lets the records of `edges` through which all of `gates` have, too."""
        node, _ = self.join(self.free(name), {edges: None} | {gate: [] for gate in gates}, {})
        self.known[node] = self.known.get(edges[0])
        return node

    def select(self, name: str, edges: Edges, fields: Mapping[str, Tensor]) -> str:
        """A node that leaves these fields only, under these names; the edge itself where it has just them."""
        rename = {tensor.field: new for new, tensor in fields.items() if tensor.field != new}
        there = self.known.get(edges[0])
        if len(edges) == 1 and not rename and there is not None and set(there) == set(fields):
            return edges[0]
        made = self.add(
            self.free(name),
            "transform.select",
            source_of(edges),
            with_={k: v for k, v in (("rename", rename), ("keep", list(fields))) if v},
        )
        self.known[made] = {new: tensor.type for new, tensor in fields.items()}
        return made

    def run(
        self,
        name: str,
        model: Model,
        edges: Edges,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str] | None = None,
    ) -> str:
        """A node that runs `model`: `inputs` are fields by tensor, `outputs` (None for all) fields by tensor."""
        self.models[model.name] = model
        name = self.free(name)
        mapped = {tensor: given for tensor, given in inputs.items() if tensor != given}
        renamed = outputs if outputs is not None else {t: field_name(t) for t in model.outputs or {}}
        types = {field: (model.outputs or {}).get(tensor) for tensor, field in renamed.items()}
        if model.use == "model.python":
            wanted = {field_name(t): Tensor(edges, f) for t, f in inputs.items()}
            source = self.select(f"{name}-inputs", edges, wanted) if mapped else source_of(edges)
            out = {f: described(kind) for f, kind in types.items()}
            self.add(name, model.use, source, with_={"call": f"{module_name(model.name)}.predict"}, out=out)
        else:
            asked = (
                {}
                if outputs is None and not model.left_out and all(t == f for t, f in renamed.items())
                else renamed
            )
            with_: dict[str, Any] = {"model": model.name, "inputs": mapped, "outputs": dict(asked)}
            if any(kind is not None and kind.shape == (1,) for kind in types.values()):
                with_["squeeze"] = False  # clients of V2 go on to read [N, 1]
            self.add(name, model.use, source_of(edges), with_={k: v for k, v in with_.items() if v != {}})
            if model.file is None and any(types.values()):
                self.nodes[name]["out"] = {f: described(kind) for f, kind in types.items()}
        self.nodes[name]["keep"] = []
        self.known[name] = types if renamed else None
        return name

    def feed(self, model: Model, edges: Edges, at: tuple[str | int, ...] = ()) -> dict[str, str]:
        """The field of `edges` for each input of `model`: of its own name, or the only one for the only input.

        Of the request they are declared. An input that nothing feeds is noted.
        """
        if self.is_request(edges):
            return {t: self.ask(field_name(t), kind, at).field for t, kind in (model.inputs or {}).items()}
        there = self.known.get(edges[0])
        if there is None or model.inputs is None:
            return {}
        found = {t: field_name(t) for t in model.inputs if field_name(t) in there}
        if not found and len(model.inputs) == len(there) == 1:
            return {next(iter(model.inputs)): next(iter(there))}
        for tensor in model.inputs:
            if tensor not in found:
                self.part.note(
                    FILL_IN,
                    f"nothing feeds input '{tensor}' of model '{model.name}'",
                    f"there are {', '.join(there) or 'no fields'}: map it, inputs: {{{tensor}: FIELD}}",
                    at,
                )
        return found

    def batch(
        self, name: str, edges: Edges, size: int, wait_ms: int | None, part: Part, at: tuple[str | int, ...]
    ) -> Edges:
        """The edge behind a node that makes batches, or `edges` where there is nothing to make."""
        if size < 2:
            return edges
        settings: dict[str, Any] = {"size": size}
        if wait_ms is None:
            part.note(
                FILL_IN,
                f"the batch of {size} has no time after which fewer go on",
                f"say how long a record may wait: wait: of '{name}'",
                at,
            )
        else:
            settings["wait"] = f"{wait_ms}ms"
        made = self.add(self.free(name), "batch.window", source_of(edges), with_=settings)
        self.known[made] = self.known.get(edges[0])
        return (made,)


def finish(draft: Draft) -> None:
    """Put batches into stages of their own where there are joins, and note fields whose type nothing tells."""
    if any(node["use"].startswith("join.") for node in draft.nodes.values()):
        for node in draft.nodes.values():
            if node["use"] == "batch.window":
                # A join waits for what its own stage works on, not for what is held back there.
                node["isolate"] = True
    for name, kind in draft.fields.items():
        if not draft.reads and kind is None and name not in draft.guesses:
            draft.part.note(
                FILL_IN,
                f"pipeline '{draft.name}': the type of '{name}' is not known",
                f"write it in the contract {draft.name}.inputs, for 'unknown'",
            )


def lone_pipeline(model: Model, part: Part, batch: Batch | None = None) -> Draft:
    """A pipeline that serves just this model, as its server did."""
    draft = Draft(model.name, part, doc=f"Serves the model {model.name}.")
    fed = draft.feed(model, (REQUEST,))
    edges = batch.before(draft, model.name, (REQUEST,)) if batch is not None else (REQUEST,)
    draft.answer = [draft.run(model.name, model, edges, fed)]
    return draft


@dataclass(frozen=True)
class Batch:
    """What a model's own declaration says of batches: how many, and how long the first waits."""

    size: int
    wait_ms: int | None
    part: Part
    at: tuple[str | int, ...] = ()

    def before(self, draft: Draft, name: str, edges: Edges) -> Edges:
        return draft.batch(f"{name}-batch", edges, self.size, self.wait_ms, self.part, self.at)


def rename_note(part: Part, name: str, plain: str) -> None:
    if plain != name:
        part.note(DIFFERS, f"'{name}' is called '{plain}' here", "clients ask for the new name")


def source_of(edges: Edges) -> str | list[str]:
    return edges[0] if len(edges) == 1 else list(edges)


def side_names(sides: Mapping[Edges, object]) -> dict[Edges, str]:
    """A name for each side of a join: that of its edge."""
    found: dict[Edges, str] = {}
    for edges in sides:
        name = plain = edges[0].replace(".", "-")
        number = 1
        while name in found.values():
            number += 1
            name = f"{plain}-{number}"
        found[edges] = name
    return found


def described(kind: FieldType | None) -> str:
    """The type as a declaration says it; a word that lint refuses where it is not known."""
    return kind.describe() if kind is not None else "unknown"


def both_types(one: FieldType, other: FieldType) -> FieldType | None:
    """The type that suits both: free dimensions take the size that the other fixes. None if there is none."""
    if len(one.shape) != len(other.shape) or replace(one, shape=()) != replace(other, shape=()):
        return None
    pairs = list(zip(one.shape, other.shape, strict=True))
    if any(a != b and -1 not in {a, b} for a, b in pairs):
        return None
    return replace(one, shape=tuple(max(a, b) for a, b in pairs))
