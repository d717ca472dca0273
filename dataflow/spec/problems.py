"""What is wrong with a declaration, and where. Problems are data: lint collects all of them before any is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic_core import PydanticCustomError

YamlPath = tuple[str | int, ...]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, order=True)
class Problem:
    """One fault at one place; line and column count from 1, `file` is relative to the project folder.

    value   the offending value as text, "" where there is none or where it may be a secret
    """

    file: str
    line: int
    column: int
    message: str
    value: str = ""
    hint: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        warning = "warning: " if self.severity == "warning" else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {warning}{self.message}{hint}"

    def as_dict(self) -> dict[str, Any]:
        """For `lint --format json`."""
        return asdict(self)


@dataclass(frozen=True)
class Fault:
    """A fault inside one document, by path: a `Problem` still without a line and a column.

    at_key        the key is at fault, not its value
    text_column   where in the value's own text the fault is, from 1 (expressions); 0: the value as a whole
    """

    path: YamlPath
    message: str
    hint: str = ""
    severity: Severity = "error"
    at_key: bool = False
    text_column: int = 0


def errors_of(problems: Iterable[Problem]) -> list[Problem]:
    """Those that forbid running; warnings left out."""
    return [p for p in problems if p.severity == "error"]


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """What a validator of ours raises: its words reach the user unchanged."""
    # Braces would be taken for placeholders of pydantic's own template, so the words travel as values.
    return PydanticCustomError("dataflow", "{message}", {"message": message, "hint": hint})
