"""Protocol buffers' text format, read without a schema: what a `config.pbtxt` is written in.

Grammar: protobuf.dev, "Text Format Language Specification". The library that reads it needs the compiled schema of
the messages; a conversion that must report fields it does not know is better off without one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dataflow.core.errors import SpecError
from dataflow.core.limits import MAX_YAML_BYTES, MAX_YAML_DEPTH
from dataflow.spec.problems import YamlPath
from dataflow.spec.source import Place, Source

_BLANK: Final = re.compile(r"(?:\s|#[^\n]*(?:\n|\Z))+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXTENSION: Final = re.compile(r"\[\s*[A-Za-z_][\w./%-]*\s*\]")
_FLOAT: Final = re.compile(r"(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eEfF]))(?:[eE][-+]?[0-9]+)?[fF]?(?![\w.])")
_INTEGER: Final = re.compile(r"(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)(?![\w.])")
_STRING: Final = re.compile(r"\"(?:[^\"\\\n]|\\[^\n])*\"|'(?:[^'\\\n]|\\[^\n])*'")
_ESCAPE: Final = re.compile(
    rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))"
)
_PLAIN: Final[Mapping[bytes, bytes]] = {
    b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v",
    b"\\": b"\\", b"'": b"'", b'"': b'"', b"?": b"?",
}  # fmt: skip
_CLOSING: Final[Mapping[str, str]] = {"{": "}", "<": ">"}
_MAX_DIGITS: Final = 1_000


def parse_pbtxt(text: str, file: str) -> Source:
    r"""The message in `text`: a dict of every field's values as a list, in order, whether the field repeats or not.

    A value is a bool, int, float, text (of strings, as UTF-8 with ``\xNN`` for what is none, and of enum words), or a
    dict for a message. Places are those of values and of their fields' names. Raises SpecError with file and line.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_YAML_BYTES:
        raise SpecError(f"{file}: the file is larger than {MAX_YAML_BYTES} bytes")
    reader = _Reader(text, file)
    value = reader.message((), "")
    return Source(value, reader.values, reader.keys)


@dataclass
class _Reader:
    """Recursive descent; `at` is the position of the next character."""

    text: str
    file: str
    at: int = 0
    values: dict[YamlPath, Place] = field(default_factory=dict)
    keys: dict[YamlPath, Place] = field(default_factory=dict)
    seen: tuple[int, int] = (0, 1)

    def message(self, path: YamlPath, closing: str) -> dict[str, list[Any]]:
        """The fields up to `closing`, which is taken; up to the end of the text for ""."""
        self.values[path] = self.place()
        if len(path) > 2 * MAX_YAML_DEPTH:
            raise self.error(f"messages are nested deeper than {MAX_YAML_DEPTH}")
        found: dict[str, list[Any]] = {}
        while not self.end(closing):
            place = self.place()
            match = self.match(_NAME) or self.match(_EXTENSION)
            if match is None:
                raise self.error("a field's name is needed")
            name = match[0] if match[0][0] != "[" else "[" + match[0][1:-1].strip() + "]"
            self.keys.setdefault((*path, name), place)
            self.values.setdefault((*path, name), place)
            self.field_values(found.setdefault(name, []), (*path, name))
            self.take(",") or self.take(";")
        return found

    def end(self, closing: str) -> bool:
        self.blank()
        if self.at < len(self.text):
            return closing != "" and self.take(closing)
        if closing:
            raise self.error(f"'{closing}' is missing")
        return True

    def field_values(self, values: list[Any], path: YamlPath) -> None:
        """What follows a field's name, added to `values`: one value or a list; a message needs no colon."""
        colon = self.take(":")
        self.blank()
        if not self.take("["):
            values.append(self.value((*path, len(values)), colon))
            return
        if self.take("]"):
            return
        while True:
            values.append(self.value((*path, len(values)), colon))
            if self.take("]"):
                return
            if not self.take(","):
                raise self.error("',' or ']' is needed")

    def value(self, path: YamlPath, colon: bool) -> Any:
        self.blank()
        place = self.place()
        for opening, closing in _CLOSING.items():
            if self.take(opening):
                found: Any = self.message(path, closing)
                self.values[path] = place
                return found
        if not colon:
            raise self.error("':' or a message is needed after the field's name")
        self.values[path] = place
        return self.scalar()

    def scalar(self) -> Any:
        parts = []
        while match := self.match(_STRING):
            parts.append(self.unescaped(match[0][1:-1]))
        if parts:
            return b"".join(parts).decode(errors="backslashreplace")
        negative = self.take("-")
        if match := self.match(_FLOAT):
            number = float(match[0].rstrip("fF"))
            return -number if negative else number
        if match := self.match(_INTEGER):
            return self.integer(match[0], negative)
        word = self.match(_NAME)
        if word is None:
            raise self.error("a value is needed")
        if word[0].lower() in {"inf", "infinity", "nan"}:
            return float("-" * negative + word[0])
        if negative:
            self.at = word.start()
            raise self.error("a number is needed after '-'")
        return {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}.get(
            word[0], word[0]
        )

    def integer(self, text: str, negative: bool) -> int:
        if len(text) > _MAX_DIGITS:
            raise self.error("the number is too long")
        base = 16 if text[:2] in {"0x", "0X"} else 8 if text[0] == "0" and len(text) > 1 else 10
        return -int(text, base) if negative else int(text, base)

    def unescaped(self, text: str) -> bytes:
        def plain(match: re.Match[bytes]) -> bytes:
            octal, byte, short, long, other = match.groups()
            if octal or byte:
                return bytes([int(octal or byte, 8 if octal else 16) & 0xFF])
            if short or long:
                code = int(short or long, 16)
                if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                    raise self.error(f"{match[0].decode()} is no character")
                return chr(code).encode()
            if other not in _PLAIN:
                raise self.error("a backslash stands before a character that it cannot escape")
            return _PLAIN[other]

        return _ESCAPE.sub(plain, text.encode(errors="surrogatepass"))

    def blank(self) -> None:
        match = _BLANK.match(self.text, self.at)
        if match:
            self.at = match.end()

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.blank()
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def take(self, text: str) -> bool:
        self.blank()
        there = self.text.startswith(text, self.at)
        self.at += len(text) * there
        return there

    def place(self) -> Place:
        """Line and column of the next character; lines are counted on from where they were counted last."""
        self.blank()
        position, line = self.seen
        line += self.text.count("\n", position, self.at)
        self.seen = (self.at, line)
        return Place(line, self.at - self.text.rfind("\n", 0, self.at))

    def error(self, message: str) -> SpecError:
        place = self.place()
        rest = self.text[self.at : self.at + 20].split("\n")[0]
        return SpecError(f"{self.file}:{place.line}:{place.column}: {message}, not {rest or 'the end'!r}")
