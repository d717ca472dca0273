"""What a function of the language is, and how it looks at its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol

from dataflow.core.schema import NUMBERS
from dataflow.expressions.promotion import as_float, as_int, as_timestamp
from dataflow.expressions.typed import Typed


class Fail(Protocol):
    """Raises the ExpressionError for argument `index`, or for the call itself where `index` is None."""

    def __call__(self, index: int | None, message: str, hint: str = "") -> NoReturn: ...


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of one call, already typed. The methods check one and say what is wrong with it."""

    name: str
    parts: tuple[Typed, ...]
    fail: Fail

    def __len__(self) -> int:
        return len(self.parts)

    def _refuse(self, index: int, wanted: str, hint: str = "") -> NoReturn:
        found = "null" if self.parts[index].untyped else self.parts[index].type.describe()
        self.fail(index, f"{self.name}() takes {wanted}, this is {found}", hint)

    def number(self, index: int) -> Typed:
        if not self.parts[index].is_number:
            self._refuse(index, "a number", "float(x) and int(x) make numbers")
        return self.parts[index]

    def float(self, index: int) -> Typed:
        return as_float(self.number(index))

    def integer(self, index: int) -> Typed:
        if not self.parts[index].is_integer:
            self._refuse(index, "a whole number", "int(x) makes one")
        return as_int(self.parts[index])

    def text(self, index: int) -> Typed:
        if not self.parts[index].is_text:
            self._refuse(index, "a text", "string(x) makes one")
        return self.parts[index]

    def time(self, index: int) -> Typed:
        """A timestamp or a date, as a timestamp."""
        if not self.parts[index].is_time:
            self._refuse(index, "a timestamp or a date", "timestamp('2013-01-01T00:00:00Z') makes one")
        return as_timestamp(self.parts[index])

    def numbers(self, index: int) -> Typed:
        """A tensor of numbers or a list of numbers."""
        part = self.parts[index]
        item = part.type.item
        listed = item is not None and not item.nullable and not item.shape and item.kind in NUMBERS
        if not listed and not (part.type.shape and part.type.kind in NUMBERS):
            self._refuse(index, "a tensor or a list of numbers")
        return part

    def constant_integer(self, index: int, low: int, high: int) -> int:
        part = self.parts[index]
        value = part.single() if part.constant and part.is_integer else None
        if value is None or not low <= value <= high:
            self.fail(index, f"{self.name}() takes a whole number from {low} to {high}, written as such")
        return int(value)

    def constant_text(self, index: int) -> str | None:
        """The text where it is written as such, else None."""
        part = self.parts[index]
        value = part.single() if part.constant and part.is_text else None
        return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class Function:
    """One function: `usage` and `doc` are its reference; `build` checks the arguments and makes the result."""

    name: str
    usage: str
    doc: str
    minimum: int
    maximum: int | None
    build: Callable[[Arguments], Typed]
