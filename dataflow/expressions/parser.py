"""Text to syntax tree: one precedence-climbing parser (Pratt 1973), so that nesting costs few stack frames.

Loosest to tightest: ``if else``; ``or``; ``and``; ``not``; comparisons, ``in``, ``like``, ``is``; ``+ -``;
``* / // %``; unary ``-``; ``.name`` and ``[index]``.
"""

from __future__ import annotations

import math
from typing import Final, NoReturn

from dataflow.expressions import syntax
from dataflow.expressions.grammar import (
    HINTS,
    KEYWORDS,
    MAX_DEPTH,
    MAX_LIST_ITEMS,
    Token,
    fault,
    tokenize,
    unquote,
)

_CHOICE, _OR, _AND, _NOT, _COMPARE, _ADD, _MULTIPLY, _UNARY = range(1, 9)
_COMPARISONS: Final = ("==", "!=", "<", "<=", ">", ">=")
_LEVELS: Final = {
    "if": _CHOICE,
    "or": _OR,
    "and": _AND,
    **dict.fromkeys((*_COMPARISONS, "in", "like", "is", "not"), _COMPARE),
    **dict.fromkeys(("+", "-"), _ADD),
    **dict.fromkeys(("*", "/", "//", "%"), _MULTIPLY),
}
_A_VALUE: Final = "a value is expected: a field, a number, a 'text', a function(...) or (...)"
_MAX_INTEGER: Final = 2**64 - 1


def parse(text: str, where: str = "") -> syntax.Syntax:
    """The tree of `text`. Raises ExpressionError, whatever the text."""
    return _Parser(text, where).parse()


class _Parser:
    """One pass over the tokens of one text."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._tokens = tokenize(text, where)
        self._position = 0
        self._nesting = 0

    def parse(self) -> syntax.Syntax:
        if self._token.kind == "end":
            self._fail(self._token, "the expression is empty", hint=_A_VALUE)
        tree = self._expression(_CHOICE)
        if self._token.kind != "end":
            self._unexpected("an operator or the end is expected")
        return tree

    @property
    def _token(self) -> Token:
        return self._tokens[self._position]

    def _next(self) -> Token:
        token = self._tokens[self._position]
        self._position += 1
        return token

    def _at(self, text: str) -> bool:
        return self._token.text == text and self._token.kind in ("symbol", "keyword")

    def _accept(self, text: str) -> bool:
        if self._at(text):
            self._position += 1
            return True
        return False

    def _expect(self, text: str, purpose: str) -> Token:
        if not self._at(text):
            self._unexpected(f"'{text}' is expected {purpose}")
        return self._next()

    def _fail(self, place: Token | syntax.Syntax, message: str, *, hint: str = "") -> NoReturn:
        raise fault(self._text, place.start, place.end, message, hint=hint, where=self._where)

    def _unexpected(self, expected: str) -> NoReturn:
        token = self._token
        hint = HINTS.get(token.text, "")
        lowered = token.text.lower()
        if not hint and token.kind == "name" and lowered in KEYWORDS:
            hint = f"keywords are in lower case: {lowered}"
        elif not hint and token.kind == "keyword":
            hint = f"a field of this name is written `{token.text}`, with backticks"
        self._fail(token, expected, hint=hint)

    def _depth(self, start: int, end: int, *children: syntax.Syntax) -> int:
        depth = 1 + max(child.depth for child in children)
        if depth > MAX_DEPTH:
            raise fault(
                self._text,
                start,
                end,
                f"the expression is nested more than {MAX_DEPTH} deep",
                hint="set part of it as a field of its own first (transform.select)",
                where=self._where,
            )
        return depth

    def _expression(self, level: int) -> syntax.Syntax:
        self._nesting += 1
        if self._nesting > MAX_DEPTH:
            self._fail(self._token, f"the expression is nested more than {MAX_DEPTH} deep")
        left = self._prefix()
        while True:
            token = self._token
            found = _LEVELS.get(token.text) if token.kind in ("symbol", "keyword") else None
            if found is None or found < level:
                break
            left = self._infix(left, token, found)
        self._nesting -= 1
        return left

    def _prefix(self) -> syntax.Syntax:
        token = self._token
        if self._accept("not"):
            operand = self._expression(_NOT)
            return syntax.Not(
                token.start, operand.end, self._depth(token.start, operand.end, operand), operand
            )
        if self._accept("-"):
            return self._negative(token)
        if self._accept("+"):
            return self._expression(_UNARY)
        return self._postfix(self._primary())

    def _negative(self, minus: Token) -> syntax.Syntax:
        operand = self._expression(_UNARY)
        if isinstance(operand, syntax.Literal) and type(operand.value) in (int, float):
            value = -operand.value  # type: ignore[operator]  # the line above leaves numbers only
            return syntax.Literal(minus.start, operand.end, 1, self._integer_in_range(minus, operand, value))
        depth = self._depth(minus.start, operand.end, operand)
        return syntax.Negative(minus.start, operand.end, depth, operand)

    def _integer_in_range(self, first: Token, last: syntax.Syntax, value: float) -> float:
        if isinstance(value, int) and value < -(2**63):
            raise fault(
                self._text,
                first.start,
                last.end,
                "the number does not fit 64 bits",
                hint="write it with an exponent, e.g. -1e19",
                where=self._where,
            )
        return value

    def _infix(self, left: syntax.Syntax, token: Token, level: int) -> syntax.Syntax:
        if level == _CHOICE:
            return self._choice(left)
        if level in (_OR, _AND):
            return self._logic(left, token.text, level)
        if level == _COMPARE:
            made = self._test(left, token)
            following = self._token
            if following.kind == "symbol" and following.text in _COMPARISONS:
                self._fail(following, "comparisons do not chain", hint="write a < b and b < c")
            return made
        self._next()
        right = self._expression(level + 1)
        depth = self._depth(left.start, right.end, left, right)
        return syntax.Arithmetic(left.start, right.end, depth, token.text, left, right)

    def _choice(self, then: syntax.Syntax) -> syntax.Syntax:
        self._next()
        condition = self._expression(_OR)
        self._expect("else", "after the condition: write a if condition else b")
        otherwise = self._expression(_CHOICE)
        depth = self._depth(then.start, otherwise.end, then, condition, otherwise)
        return syntax.Choice(then.start, otherwise.end, depth, then, condition, otherwise)

    def _logic(self, left: syntax.Syntax, operator: str, level: int) -> syntax.Syntax:
        operands = [left]
        while self._accept(operator):
            operands.append(self._expression(level + 1))
        end = operands[-1].end
        depth = self._depth(left.start, end, *operands)
        return syntax.Logic(left.start, end, depth, operator, tuple(operands))

    def _test(self, left: syntax.Syntax, token: Token) -> syntax.Syntax:
        self._next()
        if token.text == "is":
            return self._is_null(left)
        negated = token.text == "not"
        if negated:
            token = self._token
            if token.text not in ("in", "like"):
                self._unexpected("'in' or 'like' is expected after 'not'")
            self._next()
        if token.text == "in":
            return self._within(left, negated)
        right = self._expression(_ADD)
        depth = self._depth(left.start, right.end, left, right)
        if token.text == "like":
            return syntax.Like(left.start, right.end, depth, left, right, negated)
        return syntax.Comparison(left.start, right.end, depth, token.text, left, right)

    def _is_null(self, left: syntax.Syntax) -> syntax.Syntax:
        negated = self._accept("not")
        if not self._at("null"):
            self._unexpected("'null' is expected after 'is'")
        end = self._next().end
        return syntax.IsNull(left.start, end, self._depth(left.start, end, left), left, negated)

    def _within(self, left: syntax.Syntax, negated: bool) -> syntax.Syntax:
        opening = self._expect("[", "after 'in', e.g. in ['EWR', 'JFK']")
        items = self._sequence("]", "the list")
        end = self._tokens[self._position - 1].end
        if not items:
            self._fail(opening, "the list is empty")
        if len(items) > MAX_LIST_ITEMS:
            self._fail(
                opening,
                f"the list has {len(items)} items where {MAX_LIST_ITEMS} are allowed",
                hint="join.lookup finds values in a table",
            )
        depth = self._depth(left.start, end, left, *items)
        return syntax.Within(left.start, end, depth, left, items, negated)

    def _sequence(self, closing: str, what: str) -> tuple[syntax.Syntax, ...]:
        """Expressions separated by commas up to `closing`, which is taken too."""
        items: list[syntax.Syntax] = []
        while not self._at(closing):
            items.append(self._expression(_CHOICE))
            if not self._accept(","):
                break
        self._expect(closing, f"to close {what}")
        return tuple(items)

    def _primary(self) -> syntax.Syntax:
        token = self._token
        if token.kind == "number":
            return self._number()
        if token.kind == "string":
            self._next()
            return syntax.Literal(token.start, token.end, 1, unquote(token))
        if token.kind == "keyword" and token.text in ("true", "false", "null"):
            self._next()
            value = None if token.text == "null" else token.text == "true"
            return syntax.Literal(token.start, token.end, 1, value)
        if token.kind == "quoted":
            self._next()
            return syntax.Name(token.start, token.end, 1, unquote(token))
        if token.kind == "name":
            return self._name()
        if not self._accept("("):
            self._unexpected(_A_VALUE)
        inner = self._expression(_CHOICE)
        self._expect(")", "to close '('")
        return inner

    def _name(self) -> syntax.Syntax:
        token = self._next()
        if not self._accept("("):
            return syntax.Name(token.start, token.end, 1, token.text)
        arguments = self._sequence(")", f"the call of {token.text}")
        end = self._tokens[self._position - 1].end
        depth = self._depth(token.start, end, *arguments) if arguments else 1
        return syntax.Call(token.start, end, depth, token.text, arguments)

    def _number(self) -> syntax.Syntax:
        token = self._next()
        if self._token.kind == "name" and self._token.start == token.end:
            self._fail(
                self._token, "a number ends where letters begin", hint="put a space or an operator between"
            )
        value: int | float = float(token.text)
        if token.text.isdigit():
            # At most 20 digits reach int(): Python refuses thousands of them with an error of its own.
            value = int(token.text) if len(token.text.lstrip("0")) <= 20 else _MAX_INTEGER + 1
            if value > _MAX_INTEGER:
                self._fail(
                    token, "the number does not fit 64 bits", hint="write it with an exponent, e.g. 1e20"
                )
        elif math.isinf(value):
            self._fail(token, "the number is beyond the range of float64 (1.8e308)")
        return syntax.Literal(token.start, token.end, 1, value)

    def _postfix(self, tree: syntax.Syntax) -> syntax.Syntax:
        while True:
            if self._accept("."):
                token = self._token
                if token.kind not in ("name", "quoted", "keyword"):
                    self._unexpected("a field name is expected after '.'")
                self._next()
                name = unquote(token) if token.kind == "quoted" else token.text
                depth = self._depth(tree.start, token.end, tree)
                tree = syntax.Member(tree.start, token.end, depth, tree, name)
            elif self._accept("["):
                positions = self._sequence("]", "the index")
                end = self._tokens[self._position - 1].end
                if not positions:
                    self._fail(self._tokens[self._position - 1], "an index is expected, e.g. x[0]")
                for position in positions:
                    tree = self._index(tree, position, end)
            else:
                return tree

    def _index(self, tree: syntax.Syntax, position: syntax.Syntax, end: int) -> syntax.Syntax:
        if not isinstance(position, syntax.Literal) or type(position.value) is not int:
            self._fail(position, "an index is a whole number, e.g. x[0] or x[-1]")
        return syntax.Index(tree.start, end, self._depth(tree.start, end, tree), tree, position.value)
