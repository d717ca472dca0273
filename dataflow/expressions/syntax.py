"""The tree that the parser makes: what was written, with places, before any type is known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Syntax:
    """A part of an expression: ``text[start:end]``. `depth` is 1 for a leaf."""

    start: int
    end: int
    depth: int


@dataclass(frozen=True, slots=True)
class Literal(Syntax):
    """A constant: int, float, str, bool, or None for null."""

    value: int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Name(Syntax):
    """A field of the record."""

    name: str


@dataclass(frozen=True, slots=True)
class Member(Syntax):
    """``of.name``: a field of a nested record."""

    of: Syntax
    name: str


@dataclass(frozen=True, slots=True)
class Index(Syntax):
    """``of[position]``: an element of a tensor or list, counted from 0, or from the end when negative."""

    of: Syntax
    position: int


@dataclass(frozen=True, slots=True)
class Negative(Syntax):
    """``-operand``."""

    operand: Syntax


@dataclass(frozen=True, slots=True)
class Not(Syntax):
    operand: Syntax


@dataclass(frozen=True, slots=True)
class Arithmetic(Syntax):
    """``left operator right`` with one of + - * / // %."""

    operator: str
    left: Syntax
    right: Syntax


@dataclass(frozen=True, slots=True)
class Comparison(Syntax):
    """``left operator right`` with one of == != < <= > >=."""

    operator: str
    left: Syntax
    right: Syntax


@dataclass(frozen=True, slots=True)
class Logic(Syntax):
    """``a and b and c``, or the same with ``or``: flat, so that a long list is not deep."""

    operator: str
    operands: tuple[Syntax, ...]


@dataclass(frozen=True, slots=True)
class Within(Syntax):
    """``operand in [items]`` or ``not in``."""

    operand: Syntax
    items: tuple[Syntax, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class Like(Syntax):
    """``operand like pattern`` or ``not like``."""

    operand: Syntax
    pattern: Syntax
    negated: bool


@dataclass(frozen=True, slots=True)
class IsNull(Syntax):
    """``operand is null`` or ``is not null``."""

    operand: Syntax
    negated: bool


@dataclass(frozen=True, slots=True)
class Choice(Syntax):
    """``then if condition else otherwise``."""

    then: Syntax
    condition: Syntax
    otherwise: Syntax


@dataclass(frozen=True, slots=True)
class Call(Syntax):
    """``name(arguments)``."""

    name: str
    arguments: tuple[Syntax, ...]
