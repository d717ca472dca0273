"""How elements are put back into their record: the settings of `each.gather`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field as Setting
from pydantic import model_validator

from dataflow.sdk import Duration, Settings


class Gather(Settings):
    """What is collected, and what happens when an element is missing."""

    fields: list[str] | dict[str, str] = Setting(
        min_length=1,
        description="The items' fields to collect: their names, or `NEW_NAME: name`.",
    )
    on_missing: Literal["fail", "null", "skip"] = Setting(
        default="fail",
        description=(
            "What happens to a record some of whose items failed or were dropped: it fails, their places are null, or "
            "the lists are shorter."
        ),
    )
    missing: str | None = Setting(
        default=None,
        description="The name of a field, list<int32>, that says which items are missing, by index.",
    )
    wait: Duration | None = Setting(
        default=None,
        description=(
            "Where the items come of another stage: how long what is there waits for what is not; then `on_missing` says "
            "what becomes of the record. Default: as long as the caller; where nobody waits, for a day. An item that was "
            "dropped or failed is known at once, whatever this is."
        ),
    )
    late: Literal["drop", "fail"] = Setting(
        default="drop",
        description=(
            "What becomes of an item that comes after that time: it is dropped with the reason `late`, or a dead letter."
        ),
    )
    index: str = Setting(default="index", description="The items' field that `each.split` counted them in.")
    count: str = Setting(
        default="count", description="The field of `of` in which `each.split` said how many there are."
    )

    @model_validator(mode="before")
    @classmethod
    def _spelling(cls, value: Any) -> Any:
        """`on_missing: null` is YAML's null."""
        if isinstance(value, dict) and "on_missing" in value and value["on_missing"] is None:
            return {**value, "on_missing": "null"}
        return value

    @property
    def collected(self) -> dict[str, str]:
        """Name in the result -> name in the items."""
        return (
            self.fields
            if isinstance(self.fields, dict)
            else {name: name for name in dict.fromkeys(self.fields)}
        )
