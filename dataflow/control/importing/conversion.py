"""What a conversion gives: pipelines, the models they run, and all that a user must know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataflow.control.importing.draft import Draft
from dataflow.control.importing.models import Model
from dataflow.control.importing.parts import Note


@dataclass
class Conversion:
    """Pipelines of ours, drawn from foreign declarations."""

    pipelines: list[Draft] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def models(self) -> dict[str, Model]:
        """The models that the pipelines run, by name."""
        return {name: model for draft in self.pipelines for name, model in draft.models.items()}
