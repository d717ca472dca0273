"""Fields of contracts as declared: ``{type: float32, shape: [12], unit: mile}`` or the shorthand ``float32[12]``.

Shorthand, with blanks allowed anywhere::

    type   := kind [ "[" size {"," size} "]" ] [ "?" ]          size: a number, or -1 or ? for a free dimension
    kind   := name | "list" "<" type ">" | "record" "<" name ":" type {"," name ":" type} ">"
            | "enum" "<" symbol {"|" symbol} ">" | "decimal" "(" precision "," scale ")"

It is what `FieldType.describe` prints, so a type shown by `plan` can be pasted into a declaration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, StrictBool, model_validator

from dataflow.core.errors import ContractError, nearest
from dataflow.core.schema import KINDS, Field, FieldType, Schema
from dataflow.spec.problems import wrong

FIELD_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN: Final = re.compile(r"\s*(-?[A-Za-z0-9_.\-]+|[\[\]<>(),:|?])")
MAX_TYPE_CHARACTERS: Final = 10_000


class Strict(BaseModel):
    """Base of all declarations: frozen, unknown names refused, and only the names that users write."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def or_shorthand(shorthand: Mapping[str, Any]) -> Callable[[dict[str, Any]], None]:
    """For a model's `json_schema_extra`: the mapping that it describes, or what `shorthand` describes."""

    def extend(schema: dict[str, Any]) -> None:
        full = dict(schema)
        schema.clear()
        schema["anyOf"] = [dict(shorthand), full]

    return extend


class FieldSpec(Strict):
    """One field of a contract. A plain text is the type alone: ``string?``, ``float32[12]``, ``list<string>``."""

    model_config = ConfigDict(json_schema_extra=or_shorthand({"type": "string"}))

    type: str
    shape: tuple[int, ...] = ()
    nullable: StrictBool = False
    doc: str = ""
    unit: str = ""
    privacy: str = ""
    event_time: StrictBool = False
    items: FieldSpec | None = None
    fields: dict[str, FieldSpec] | None = None
    symbols: tuple[str, ...] = ()
    precision: int = 0
    scale: int = 0

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, dict):
            return value
        raise wrong(f"a type is needed, not {value!r}", "e.g. float32, or {type: float32, unit: mile}")

    @model_validator(mode="after")
    def _possible(self) -> FieldSpec:
        try:
            self.field_type()
        except ContractError as error:
            raise wrong(error.message, error.hint) from error
        return self

    def field_type(self) -> FieldType:
        """The type in full. Raises ContractError."""
        parsed = parse_type(self.type)
        if self.shape and parsed.shape and self.shape != parsed.shape:
            raise ContractError(f"type '{self.type}' already has a shape", hint="give one of the two")
        item, members = parsed.item, parsed.fields
        if self.items is not None:
            _only("items", "list", parsed.kind)
            item = self.items.field_type()
        if self.fields is not None:
            _only("fields", "record", parsed.kind)
            members = tuple(spec.field(name) for name, spec in self.fields.items())
        if self.symbols:
            _only("symbols", "enum", parsed.kind)
        if self.precision or self.scale:
            _only("precision and scale", "decimal", parsed.kind)
        return _complete(
            FieldType(
                kind=parsed.kind,
                shape=self.shape or parsed.shape,
                nullable=self.nullable or parsed.nullable,
                item=item,
                fields=members,
                symbols=self.symbols or parsed.symbols,
                precision=self.precision or parsed.precision,
                scale=self.scale or parsed.scale,
            )
        )

    def field(self, name: str) -> Field:
        if not re.fullmatch(FIELD_NAME, name):
            raise ContractError(
                f"field name '{name}' is not valid", hint="letters, digits and _, no digit first"
            )
        return Field(name, self.field_type(), self.doc, self.unit, self.privacy, self.event_time)


def schema_of(fields: dict[str, FieldSpec]) -> Schema:
    """The contract of declared fields, in their order."""
    return Schema(tuple(spec.field(name) for name, spec in fields.items()))


def field_spec_of(field: Field) -> dict[str, Any] | str:
    """The declaration of a field: the inverse of `FieldSpec.field`, short where possible (`infer` writes these)."""
    extras = {
        "doc": field.doc, "unit": field.unit, "privacy": field.privacy, "event_time": field.event_time,
    }  # fmt: skip
    given = {name: value for name, value in extras.items() if value}
    text = field.type.describe()
    return {"type": text, **given} if given else text


def parse_type(text: str) -> FieldType:
    """Read the shorthand. Raises ContractError; a list without an item type is complete only with `items`."""
    if len(text) > MAX_TYPE_CHARACTERS:
        raise ContractError(f"a type of {len(text)} characters is too long")
    tokens: list[str] = []
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ContractError(f"type '{text}' does not parse at '{text[position:].strip()[:10]}'")
        tokens.append(match[1])
        position = match.end()
    reader = _TypeReader(text, tokens)
    parsed = reader.type(depth=0)
    reader.end()
    return parsed


class _TypeReader:
    """Recursive descent over the tokens of one shorthand."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self._text = text
        self._tokens = tokens
        self._at = 0

    def type(self, depth: int) -> FieldType:
        if depth > 16:
            raise ContractError("a type is nested deeper than 16")
        kind = self._word("a type")
        if kind not in KINDS:
            raise ContractError(f"unknown type '{kind}'", hint=nearest(kind, KINDS))
        item: FieldType | None = None
        members: list[Field] = []
        symbols: list[str] = []
        precision = scale = 0
        if kind == "list" and self._take("<"):
            item = self.type(depth + 1)
            self._need(">")
        elif kind == "record" and self._take("<"):
            members = self._members(depth)
        elif kind == "enum" and self._take("<"):
            symbols.append(self._word("a symbol"))
            while self._take("|"):
                symbols.append(self._word("a symbol"))
            self._need(">")
        elif kind == "decimal" and self._take("("):
            precision = self._number()
            self._need(",")
            scale = self._number()
            self._need(")")
        shape = self._shape()
        return FieldType(kind, shape, self._take("?"), item, tuple(members), tuple(symbols), precision, scale)

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise ContractError(f"type '{self._text}' does not parse at '{self._tokens[self._at]}'")

    def _members(self, depth: int) -> list[Field]:
        members: list[Field] = []
        while not members or self._take(","):
            name = self._word("a field name")
            self._need(":")
            members.append(Field(name, self.type(depth + 1)))
        self._need(">")
        return members

    def _shape(self) -> tuple[int, ...]:
        if not self._take("["):
            return ()
        sizes: list[int] = []
        while not sizes or self._take(","):
            sizes.append(-1 if self._take("?") else self._number())
        self._need("]")
        return tuple(sizes)

    def _take(self, token: str) -> bool:
        taken = self._at < len(self._tokens) and self._tokens[self._at] == token
        self._at += taken
        return taken

    def _need(self, token: str) -> None:
        if not self._take(token):
            found = self._tokens[self._at] if self._at < len(self._tokens) else "its end"
            raise ContractError(f"type '{self._text}': '{token}' is needed before {found!r}")

    def _word(self, what: str) -> str:
        if self._at == len(self._tokens) or not re.match(r"[A-Za-z0-9_]", self._tokens[self._at]):
            raise ContractError(
                f"type '{self._text}': {what} is missing", hint="e.g. float32[12], list<string>?"
            )
        self._at += 1
        return self._tokens[self._at - 1]

    def _number(self) -> int:
        text = self._tokens[self._at] if self._at < len(self._tokens) else ""
        if not re.fullmatch(r"-?\d{1,9}", text):
            raise ContractError(f"type '{self._text}': a whole number is needed, not '{text}'")
        self._at += 1
        return int(text)


def _only(what: str, kind: str, found: str) -> None:
    if found != kind:
        raise ContractError(f"{what} belong to type '{kind}', not '{found}'")


def _complete(parsed: FieldType) -> FieldType:
    """`parsed`, if it says all that its kind needs."""
    if parsed.kind == "list" and parsed.item is None:
        raise ContractError("a list needs the type of its items", hint="list<string>, or items: string")
    if parsed.kind == "record" and not parsed.fields:
        raise ContractError("a record needs fields", hint="fields: {name: string}")
    if parsed.kind == "enum" and not parsed.symbols:
        raise ContractError("an enum needs symbols", hint="symbols: [low, high]")
    if len(set(parsed.symbols)) != len(parsed.symbols):
        raise ContractError("a symbol of the enum is there twice")
    if parsed.kind == "decimal" and not 0 < parsed.precision <= 38:
        raise ContractError(f"decimal: precision {parsed.precision} is not in 1..38", hint="decimal(10,2)")
    if parsed.kind == "decimal" and not 0 <= parsed.scale <= parsed.precision:
        raise ContractError(f"decimal: scale {parsed.scale} is not in 0..{parsed.precision}")
    if parsed.item is not None:
        _complete(parsed.item)
    for member in parsed.fields:
        _complete(member.type)
    return parsed
