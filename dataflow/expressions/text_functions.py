"""Functions of texts, and `like`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from dataflow.expressions.call import Arguments, Function
from dataflow.expressions.typed import BOOL, INT64, STRING, Typed, map_rows

# A pattern's part between two %: a text, or where it has a _ one character each, None for "any".
_Segment = str | tuple[str | None, ...]


def _length(arguments: Arguments) -> Typed:
    part = arguments.parts[0]
    if part.untyped or not (part.type.shape or part.type.kind in ("string", "enum", "bytes", "list")):
        arguments.fail(0, f"length() takes a text, bytes, a list or a tensor; this is {part.type.describe()}")
    return map_rows(INT64, len, part)


def _of_text(result: Callable[[str], str]) -> Callable[[Arguments], Typed]:
    return lambda arguments: map_rows(STRING, result, arguments.text(0))


def _test(test: Callable[[str, str], bool]) -> Callable[[Arguments], Typed]:
    return lambda arguments: map_rows(BOOL, test, arguments.text(0), arguments.text(1))


def _contains(arguments: Arguments) -> Typed:
    item = arguments.parts[0].type.item
    if item is None:
        return map_rows(BOOL, lambda text, part: part in text, arguments.text(0), arguments.text(1))
    sought = arguments.parts[1]
    same = item.kind == sought.type.kind or (item.is_number and sought.is_number)
    if (
        sought.untyped
        or sought.type.shape
        or not (same or {item.kind, sought.type.kind} == {"enum", "string"})
    ):
        arguments.fail(1, f"the list holds {item.describe()}, this is {sought.type.describe()}")
    return map_rows(BOOL, lambda items, value: value in items, arguments.parts[0], sought)


def _concat(arguments: Arguments) -> Typed:
    parts = [arguments.text(index) for index in range(len(arguments))]
    return map_rows(STRING, lambda *texts: "".join(texts), *parts)


def _substring(arguments: Arguments) -> Typed:
    text, start = arguments.text(0), arguments.integer(1)
    if len(arguments) == 2:
        return map_rows(STRING, lambda text, start: text[max(start, 0) :], text, start)
    return map_rows(STRING, _cut, text, start, arguments.integer(2))


def _cut(text: str, start: int, length: int) -> str:
    start = max(start, 0)
    return text[start : start + max(length, 0)]


def like(pattern: str) -> Callable[[Any], bool]:
    """A test whether a whole text fits `pattern`: % is any characters or none, _ one, a backslash takes the next.

    Each part between two % is put at the first place where it fits: that is right because a later place never
    leaves more room for the rest. So it costs at most pattern times text, never more (no backtracking).
    """
    segments = _segments(pattern)
    if len(segments) == 1:
        only = segments[0]
        return lambda text: len(text) == len(only) and _fits(only, text, 0)
    first, *middle, last = segments

    def test(text: str) -> bool:
        if len(text) < len(first) + len(last) or not _fits(first, text, 0):
            return False
        end = len(text) - len(last)
        if not _fits(last, text, end):
            return False
        position = len(first)
        for segment in middle:
            position = _find(segment, text, position, end)
            if position < 0:
                return False
            position += len(segment)
        return True

    return test


def _segments(pattern: str) -> list[_Segment]:
    segments: list[list[str | None]] = [[]]
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            segments.append([])
        elif character == "_":
            segments[-1].append(None)
        else:
            # A backslash at the very end stands for itself.
            segments[-1].append(next(characters, "\\") if character == "\\" else character)
    return [tuple(segment) if None in segment else "".join(filter(None, segment)) for segment in segments]


def _fits(segment: _Segment, text: str, start: int) -> bool:
    if isinstance(segment, str):
        return text.startswith(segment, start)
    return all(wanted is None or wanted == text[start + offset] for offset, wanted in enumerate(segment))


def _find(segment: _Segment, text: str, start: int, end: int) -> int:
    """The first place from `start` where `segment` fits and ends by `end`, or -1."""
    if isinstance(segment, str):
        return text.find(segment, start, end)
    for place in range(start, end - len(segment) + 1):
        if _fits(segment, text, place):
            return place
    return -1


FUNCTIONS: Final = (
    Function(
        "length", "length(x)", "Characters of a text, bytes, items of a list, first dimension of a tensor.",
        1, 1, _length,
    ),
    Function("lower", "lower(s)", "In lower case.", 1, 1, _of_text(str.lower)),
    Function("upper", "upper(s)", "In upper case.", 1, 1, _of_text(str.upper)),
    Function("trim", "trim(s)", "Without white space at both ends.", 1, 1, _of_text(str.strip)),
    Function("startswith", "startswith(s, part)", "Whether s begins with part.", 2, 2, _test(str.startswith)),
    Function("endswith", "endswith(s, part)", "Whether s ends with part.", 2, 2, _test(str.endswith)),
    Function(
        "contains", "contains(s, part)", "Whether part is somewhere in s; of a list: whether it holds that value.",
        2, 2, _contains,
    ),
    Function("concat", "concat(a, b, ...)", "The texts one after another.", 1, None, _concat),
    Function(
        "substring", "substring(s, start, length)",
        "From `start`, counted from 0, so many characters (to the end if left out).", 2, 3, _substring,
    ),
)  # fmt: skip
