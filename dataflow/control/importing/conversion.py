"""What a conversion gives: pipelines, the models they run, and all that a user must know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataflow.control.importing.draft import Draft
from dataflow.control.importing.models import Model
from dataflow.control.importing.parts import Note
from dataflow.core.errors import SpecError


@dataclass
class Conversion:
    """Pipelines of ours, drawn from foreign declarations."""

    pipelines: list[Draft] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def models(self) -> dict[str, Model]:
        """The models that the pipelines run, by name. Raises SpecError where two have one name."""
        found: dict[str, Model] = {}
        for draft in self.pipelines:
            for name, model in draft.models.items():
                known = found.setdefault(name, model)
                if (known.file, known.doc, known.use) != (model.file, model.doc, model.use):
                    raise SpecError(f"two models are called '{name}'", hint="import them into two folders")
        return found
