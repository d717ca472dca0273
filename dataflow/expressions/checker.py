"""Syntax tree to typed tree: every name looked up, every operand's type checked, with the place of what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

from dataflow.core.errors import nearest
from dataflow.core.schema import FieldType, Schema
from dataflow.expressions import operators, syntax
from dataflow.expressions.call import Arguments
from dataflow.expressions.functions import FUNCTIONS
from dataflow.expressions.grammar import MAX_PATTERN_CHARACTERS, fault
from dataflow.expressions.promotion import common, converted
from dataflow.expressions.tensor_functions import element
from dataflow.expressions.text_functions import like
from dataflow.expressions.time_functions import moved, seconds_between
from dataflow.expressions.typed import BOOL, FLOAT64, INT64, STRING, Typed, constant, load, null

_EQUALITY: Final = ("==", "!=")
_LITERALS: Final = {bool: BOOL, float: FLOAT64, str: STRING}


class Checker:
    """Checks one text against one contract. `where` begins every message."""

    def __init__(self, text: str, schema: Schema, where: str) -> None:
        self._text = text
        self._schema = schema
        self._where = where
        self._rules: dict[type[syntax.Syntax], Callable[..., Typed]] = {
            syntax.Literal: self._literal,
            syntax.Name: self._name,
            syntax.Member: self._member,
            syntax.Index: self._index,
            syntax.Negative: self._negative,
            syntax.Not: self._not,
            syntax.Arithmetic: self._arithmetic,
            syntax.Comparison: self._comparison,
            syntax.Logic: self._logic,
            syntax.Within: self._within,
            syntax.Like: self._like,
            syntax.IsNull: self._is_null,
            syntax.Choice: self._choice,
            syntax.Call: self._call,
        }

    def check(self, tree: syntax.Syntax) -> Typed:
        """The typed part of `tree`. Raises ExpressionError."""
        return self._rules[type(tree)](tree)

    def fail(self, tree: syntax.Syntax, message: str, hint: str = "") -> NoReturn:
        raise fault(self._text, tree.start, tree.end, message, hint=hint, where=self._where)

    def _literal(self, tree: syntax.Literal) -> Typed:
        value = tree.value
        if value is None:
            return null()
        if type(value) is int:
            return constant(INT64 if value < 2**63 else FieldType("uint64"), value)
        return constant(_LITERALS[type(value)], value)

    def _name(self, tree: syntax.Name) -> Typed:
        name = tree.name
        if name not in self._schema:
            hint = nearest(name, self._schema.names)
            if not hint.startswith("did you mean"):
                hint += "; a text needs quotes: '" + name + "'"
            self.fail(tree, f"no field '{name}'", hint)
        field_type = self._schema[name].type
        return Typed(field_type, load(name, field_type), frozenset((name,)))

    def _member(self, tree: syntax.Member) -> Typed:
        part = self.check(tree.of)
        if part.type.kind != "record":
            hint = f"a field with a dot in its name is written `{self._text[tree.start : tree.end]}`"
            self.fail(tree, f"{part.type.describe()} has no field '{tree.name}': it is no record", hint)
        members = {member.name: member.type for member in part.type.fields}
        if tree.name not in members:
            self.fail(tree, f"no field '{tree.name}' in the record", nearest(tree.name, members))
        return operators.member(part, tree.name, members[tree.name])

    def _index(self, tree: syntax.Index) -> Typed:
        part = self.check(tree.of)
        if part.untyped or not (part.type.shape or part.type.kind == "list"):
            hint = "substring(s, start, length) takes a part of a text" if part.is_text else ""
            self.fail(tree, f"{part.type.describe()} has no elements: only tensors and lists have", hint)
        if part.type.shape:
            size = part.type.shape[0]
            if size != -1 and not -size <= tree.position < size:
                self.fail(tree, f"no element {tree.position} in {part.type.describe()}", f"0 to {size - 1}")
        return element(part, tree.position)

    def _negative(self, tree: syntax.Negative) -> Typed:
        return operators.negative(self._number(tree.operand, "-"))

    def _number(self, tree: syntax.Syntax, operator: str) -> Typed:
        part = self.check(tree)
        self._need_number(tree, part, operator)
        return part

    def _need_number(self, tree: syntax.Syntax, part: Typed, operator: str) -> None:
        if part.is_number:
            return
        hint = {
            "string": "concat(a, b) joins texts; float(s) reads a number",
            "bool": "int(b) is 0 or 1",
        }.get(part.type.kind, "")
        if part.type.shape:
            hint = "take an element, x[0], or sum, mean, min, max, argmax; transform.python for the rest"
        self.fail(tree, f"'{operator}' takes numbers, this is {_shown(part)}", "" if part.untyped else hint)

    def _arithmetic(self, tree: syntax.Arithmetic) -> Typed:
        left, right = self.check(tree.left), self.check(tree.right)
        operator = tree.operator
        if operator in ("+", "-") and (left.is_time or right.is_time):
            return self._time_arithmetic(tree, left, right)
        self._need_number(tree.left, left, operator)
        self._need_number(tree.right, right, operator)
        return operators.numbers(operator, left, right)

    def _time_arithmetic(self, tree: syntax.Arithmetic, left: Typed, right: Typed) -> Typed:
        if left.is_time and right.is_time and tree.operator == "-":
            return seconds_between(left, right)
        if left.is_time and right.is_number:
            return moved(left, right, 1 if tree.operator == "+" else -1)
        if not (left.is_number and right.is_time and tree.operator == "+"):
            self.fail(
                tree,
                f"no {_shown(left)} {tree.operator} {_shown(right)}",
                "valid: ts - ts (seconds), ts + seconds, ts - seconds; seconds(5), minutes(5), hours(5), days(5)",
            )
        return moved(right, left, 1)

    def _comparison(self, tree: syntax.Comparison) -> Typed:
        left, right = self.check(tree.left), self.check(tree.right)
        for part in (left, right):
            if part.untyped:
                hint = "write is null" if tree.operator == "==" else "write is not null"
                self.fail(tree, "a comparison with null is always null", hint)
        self._need_comparable(tree, left, right, ordered=tree.operator not in _EQUALITY)
        return operators.compare(tree.operator, left, right)

    def _need_comparable(self, tree: syntax.Syntax, left: Typed, right: Typed, *, ordered: bool) -> None:
        for part, other in ((left, right), (right, left)):
            if part.is_time and other.is_text:
                example = "timestamp('2013-01-01T00:00:00Z') or date('2013-01-01')"
                self.fail(tree, f"{_shown(part)} and {_shown(other)} do not compare", f"write {example}")
            if part.type.kind == "enum" and other.constant and other.type.kind == "string":
                self._need_symbol(tree, part, other)
        if (left.is_number and right.is_number) or (left.is_text and right.is_text):
            return
        if left.is_time and right.is_time:
            return
        same = not left.type.shape and not right.type.shape and left.type.kind == right.type.kind
        if same and left.type.kind in ("bool", "bytes"):
            if ordered:
                self.fail(tree, f"{left.type.kind} values have no order", "only == and != compare them")
            return
        hint = "is null and is not null work on any field"
        if left.is_text != right.is_text and (left.is_number or right.is_number):
            hint = "float(s) reads a number, string(x) writes one"
        self.fail(tree, f"{_shown(left)} and {_shown(right)} do not compare", hint)

    def _need_symbol(self, tree: syntax.Syntax, enum: Typed, text: Typed) -> None:
        value = text.single()
        if isinstance(value, str) and value not in enum.type.symbols:
            self.fail(tree, f"{value!r} is no symbol of {_shown(enum)}", nearest(value, enum.type.symbols))

    def _condition(self, tree: syntax.Syntax, use: str) -> Typed:
        part = self.check(tree)
        if not part.is_bool:
            shown = self._text[tree.start : tree.end]
            hint = (
                f"write {shown} != 0" if part.is_number else f"write {shown} == '...'" if part.is_text else ""
            )
            self.fail(tree, f"{use} takes true or false, this is {_shown(part)}", hint)
        return part

    def _not(self, tree: syntax.Not) -> Typed:
        return operators.negation(self._condition(tree.operand, "'not'"))

    def _logic(self, tree: syntax.Logic) -> Typed:
        parts = tuple(self._condition(operand, f"'{tree.operator}'") for operand in tree.operands)
        return operators.logic(tree.operator, parts)

    def _within(self, tree: syntax.Within) -> Typed:
        operand = self.check(tree.operand)
        items = tuple(self.check(item) for item in tree.items)
        for place, item in zip(tree.items, items, strict=True):
            if item.untyped or (item.constant and item.single() is None):
                self.fail(place, "a list holds no null", "write x in [...] or x is null")
            if not item.constant:
                self.fail(place, "a list holds constants", "write x == a or x == b")
            self._need_comparable(place, operand, item, ordered=False)
        return operators.within(operand, items, tree.negated)

    def _like(self, tree: syntax.Like) -> Typed:
        operand, pattern = self.check(tree.operand), self.check(tree.pattern)
        if not operand.is_text:
            self.fail(tree.operand, f"'like' takes a text, this is {_shown(operand)}", "string(x) makes one")
        text = pattern.single() if pattern.constant and pattern.type.kind == "string" else None
        if not isinstance(text, str):
            hint = "startswith, endswith and contains compare with any text"
            self.fail(tree.pattern, "a pattern is written as such, e.g. 'N1%'", hint)
        if len(text) > MAX_PATTERN_CHARACTERS:
            self.fail(
                tree.pattern,
                f"the pattern has {len(text)} characters where {MAX_PATTERN_CHARACTERS} are allowed",
            )
        return operators.like(operand, like(text), tree.negated)

    def _is_null(self, tree: syntax.IsNull) -> Typed:
        return operators.is_null(self.check(tree.operand), tree.negated)

    def _choice(self, tree: syntax.Choice) -> Typed:
        condition = self._condition(tree.condition, "'if'")
        then, otherwise = self.check(tree.then), self.check(tree.otherwise)
        result = common((then, otherwise))
        if result is None:
            if then.untyped and otherwise.untyped:
                self.fail(tree, "both sides are null: the result has no type", "e.g. float(null)")
            hint = "both sides need one type; casts: int, float, string, bool, timestamp, date"
            self.fail(tree, f"'if' chooses between {_shown(then)} and {_shown(otherwise)}", hint)
        return operators.choice(condition, converted(then, result), converted(otherwise, result), result)

    def _call(self, tree: syntax.Call) -> Typed:
        function = FUNCTIONS.get(tree.name)
        if function is None:
            self.fail(tree, f"no function '{tree.name}'", nearest(tree.name, FUNCTIONS))
        given = len(tree.arguments)
        if given < function.minimum or (function.maximum is not None and given > function.maximum):
            self.fail(tree, f"{tree.name}() does not take {_arguments(given)}", f"usage: {function.usage}")
        parts = tuple(self.check(argument) for argument in tree.arguments)
        return function.build(Arguments(tree.name, parts, partial(self._fail_call, tree)))

    def _fail_call(self, tree: syntax.Call, index: int | None, message: str, hint: str = "") -> NoReturn:
        self.fail(tree if index is None else tree.arguments[index], message, hint)


def _shown(part: Typed) -> str:
    return "null" if part.untyped else part.type.describe()


def _arguments(count: int) -> str:
    return "1 argument" if count == 1 else f"{count} arguments" if count else "no arguments"
