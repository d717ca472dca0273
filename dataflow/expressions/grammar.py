"""The words of the expression language: its limits, its tokens and the lexer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from dataflow.core.errors import ExpressionError

# Text of one expression: far beyond what a person reads, small enough that nobody can make the parser work.
MAX_CHARACTERS: Final = 4_096
# Depth of the tree (a chain `a + b + c` is as deep as it is long): parser, checker and evaluation all recurse, and
# Python stops at 1,000 frames, some of which the caller needs. `and`, `or` and lists do not add depth.
MAX_DEPTH: Final = 100
# Constants in one `in [...]`.
MAX_LIST_ITEMS: Final = 1_000
# A `like` pattern: matching costs at most its length times the length of the text.
MAX_PATTERN_CHARACTERS: Final = 256

KEYWORDS: Final = frozenset({"and", "or", "not", "in", "is", "null", "true", "false", "if", "else", "like"})

# Longest first. Those in HINTS are no operators here: they are read so that the message can say what is.
_SYMBOLS: Final = (
    "===", "!==", "&&", "||", "<>", "**", "=>", "==", "!=", "<=", ">=", "//", "<", ">", "+", "-", "*", "/", "%",
    "(", ")", "[", "]", ",", ".", "=", "!", "&", "|", "^", "?", ":",
)  # fmt: skip

HINTS: Final = {
    "=": "to compare, write ==",
    "===": "to compare, write ==",
    "!==": "write !=",
    "<>": "write !=",
    "=>": "write >=",
    "&&": "write and",
    "&": "write and",
    "||": "write or; to join texts, concat(a, b)",
    "|": "write or",
    "!": "write not",
    "**": "write pow(a, b)",
    "^": "write pow(a, b)",
    "?": "write a if condition else b",
    ":": "write a if condition else b",
    "between": "write x >= low and x <= high",
    "case": "write a if condition else b",
    "None": "write null",
    "nil": "write null",
}

_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<quoted>`(?:[^`]|``)*`)"
    r"|(?P<string>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<symbol>" + "|".join(re.escape(symbol) for symbol in _SYMBOLS) + ")"
)


@dataclass(frozen=True, slots=True)
class Token:
    """One word. `kind` is number, name, quoted, string, symbol, keyword or end; `start` and `end` are 0-based."""

    kind: str
    text: str
    start: int
    end: int


def fault(
    text: str, start: int, end: int, message: str, *, hint: str = "", where: str = ""
) -> ExpressionError:
    """An error that names the place (1-based column) and the offending text."""
    shown = text[start:end].strip()
    if len(shown) > 40:
        shown = shown[:37] + "..."
    place = f"column {start + 1}" + (f", at {shown!r}" if shown else "")
    if start >= len(text.rstrip()):
        place = f"column {start + 1}, at the end"
    prefix = f"{where}: " if where else ""
    return ExpressionError(f"{prefix}{place}: {message}", column=start + 1, hint=hint)


def tokenize(text: str, where: str = "") -> list[Token]:
    """The words of `text`, with one of kind ``end`` at the end. Raises ExpressionError."""
    if len(text) > MAX_CHARACTERS:
        raise fault(
            text,
            MAX_CHARACTERS,
            MAX_CHARACTERS + 1,
            f"the expression has {len(text)} characters where {MAX_CHARACTERS} are allowed",
            hint="a transform.python node has room for more",
            where=where,
        )
    tokens: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text, position, where)
        kind = match.lastgroup or ""
        if kind == "name" and match.group() in KEYWORDS:
            kind = "keyword"
        if kind == "quoted" and len(match.group()) == 2:
            raise fault(text, position, match.end(), "a quoted field name is empty", where=where)
        if kind != "space":
            tokens.append(Token(kind, match.group(), position, match.end()))
        position = match.end()
    tokens.append(Token("end", "", len(text.rstrip()), len(text.rstrip()) + 1))
    return tokens


def _unreadable(text: str, position: int, where: str) -> ExpressionError:
    character = text[position]
    if character in "'\"`":
        hint = "double it to write it inside"
        return fault(
            text, position, len(text), f"the quote {character} is not closed", hint=hint, where=where
        )
    hint = "to name a field with such characters, put it in `backticks`"
    message = f"the character {character!r} has no meaning here"
    return fault(text, position, position + 1, message, hint=hint, where=where)


def unquote(token: Token) -> str:
    """The text meant by a ``string`` or ``quoted`` token: a doubled quote stands for one, a backslash for itself."""
    quote = token.text[0]
    return token.text[1:-1].replace(quote * 2, quote)
