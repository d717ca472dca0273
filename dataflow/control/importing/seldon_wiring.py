"""What a Seldon pipeline's references stand for while it is drawn: edges, fields, and what each step was fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dataflow.control.importing.draft import REQUEST, Draft, Edges, Tensor
from dataflow.control.importing.models import field_name
from dataflow.control.importing.parts import DIFFERS, NOT_CONVERTED, Part
from dataflow.core.errors import SpecError, nearest
from dataflow.core.schema import FieldType


@dataclass(frozen=True)
class Reference:
    """What a step reads: `step` is "" for the pipeline's own inputs, `tensor` is "" for all."""

    step: str
    side: str
    tensor: str
    text: str
    at: tuple[str | int, ...]


@dataclass
class Wiring:
    """A pipeline in conversion.

    edges      the node of each step converted so far
    inputs     what each step was fed, by its model's tensors
    read       the edge that each step's model reads
    external   the field of the upstream edge for a tensor of the pipeline's input, where another pipeline feeds it
    """

    name: str
    spec: Part
    draft: Draft
    edges: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    read: dict[str, Edges] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)

    def reference(self, text: str, part: Part, at: tuple[str | int, ...]) -> Reference:
        """What `text` refers to. Raises SpecError where it is no step of the pipeline, and not the pipeline."""
        first, _, rest = text.partition(".")
        side, _, tensor = rest.partition(".")
        own = first == self.name
        if side not in {"", "inputs", "outputs"} or not (own or first in self.names):
            hint = nearest(first, [*self.names, self.name])
            raise SpecError(f"{part.file}:{part.line(*at)}: '{text}' names no step and no input", hint=hint)
        return Reference("" if own else first, side or "outputs", tensor, text, at)

    @property
    def names(self) -> list[str]:
        """The steps. Raises SpecError for one without a name."""
        steps = self.spec.parts("steps")
        for step in steps:
            if not step.text("name"):
                raise SpecError(f"{step.file}:{step.line()}: a step needs a name")
        return [step.text("name") for step in steps]

    def references(self, part: Part, key: str) -> list[Reference]:
        return [self.reference(t, part, (key, i)) for i, t in enumerate(part.texts(key))]

    def order(self, steps: Mapping[str, Part]) -> list[str] | None:
        """The steps so that each comes after those it reads; None for a cycle."""
        reads = {
            name: [r.step for key in ("inputs", "triggers") for r in self.references(part, key) if r.step]
            for name, part in steps.items()
        }
        order: list[str] = []
        while len(order) < len(steps):
            ready = [n for n in steps if n not in order and all(r in order for r in reads[n])]
            if not ready:
                first = next(n for n in steps if n not in order)
                steps[first].note(
                    NOT_CONVERTED,
                    f"pipeline '{self.name}': its steps are a cycle",
                    "write the loop with `loop.until`, whose condition says when a record leaves it",
                    ("name",),
                )
                return None
            order += ready
        return order

    def resolved(self, reference: Reference, tensor: str, kind: FieldType | None = None) -> Tensor | None:
        """The field that `tensor` of what is referred to is."""
        if not reference.step:
            name = self.external.get(tensor, field_name(tensor))
            if self.draft.reads:
                return Tensor((REQUEST,), name, kind)
            return self.draft.ask(name, kind, ("steps",))
        if reference.side == "inputs":
            fed, read = self.inputs[reference.step], self.read[reference.step]
            if tensor in fed or not self.draft.is_request(read):
                return fed.get(tensor)
            return replace(self.draft.ask(field_name(tensor), kind, ("steps",)), edges=read)
        edge = self.edges[reference.step]
        known = self.draft.known.get(edge)
        name = field_name(tensor)
        if known is not None and name not in known:
            return None
        return Tensor((edge,), name, (known or {}).get(name))

    def edge(self, reference: Reference) -> Edges:
        """The edge that is referred to."""
        if reference.step and reference.side == "outputs":
            return (self.edges[reference.step],)
        if reference.step:
            return self.read[reference.step]
        return (REQUEST,)

    def window(self, part: Part, key: str, *, several: bool) -> None:
        if part.number(key) and several:
            part.note(
                DIFFERS,
                f"{key}: {part.number(key)}",
                "a join here needs no window: it is over when its sides are, or known not to come (`wait` across stages)",
                (key,),
            )
