from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.control.importing.pbtxt import parse_pbtxt
from dataflow.core.errors import SpecError


def parse(text: str) -> Any:
    return parse_pbtxt(text, "config.pbtxt").value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("# only a comment", {}),
        ("name: \"a\" # said\nname: 'b'", {"name": ["a", "b"]}),
        ('text: "one" "two"\n  \'three\'', {"text": ["onetwothree"]}),
        (r'text: "a\n\"\x41\101\u00e9\'"', {"text": ["a\n\"AA\u00e9'"]}),
        (r'bytes: "\xff"', {"bytes": ["\\xff"]}),
        ("dims: [ 1, -1 , 0x10, 017 ]", {"dims": [1, -1, 16, 15]}),
        ("dims: 1 dims: [] dims: [2, 3];", {"dims": [1, 2, 3]}),
        ("rate: 1.5 rate: -2e3 rate: 3f rate: .5", {"rate": [1.5, -2000.0, 3.0, 0.5]}),
        ("rate: -inf", {"rate": [-math.inf]}),
        ("kind: KIND_GPU on: true off: false", {"kind": ["KIND_GPU"], "on": [True], "off": [False]}),
        ("a { b: 1 } a: { b: 2, c <d: 3> }", {"a": [{"b": [1]}, {"b": [2], "c": [{"d": [3]}]}]}),
        ('input [ { name: "x" }, { name: "y" } ]', {"input": [{"name": ["x"]}, {"name": ["y"]}]}),
        ("[some.extension]: 1", {"[some.extension]": [1]}),
    ],
)
def test_what_it_reads(text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name", "config.pbtxt:1:5: ':' or a message is needed after the field's name, not 'the end'"),
        ("a: 1\n  b {", "config.pbtxt:2:6: '}' is missing, not 'the end'"),
        ("a: }", "config.pbtxt:1:4: a value is needed, not '}'"),
        ("a: [1 2]", "config.pbtxt:1:7: ',' or ']' is needed, not '2]'"),
        ("a: -word", "config.pbtxt:1:5: a number is needed after '-', not 'word'"),
        ("a: 12ab", "config.pbtxt:1:4: a value is needed, not '12ab'"),
        ('a: "open', "config.pbtxt:1:4: a value is needed, not '\"open'"),
        (
            r'a: "\q"',
            "config.pbtxt:1:8: a backslash stands before a character that it cannot escape, not 'the end'",
        ),
        ("} a: 1", "config.pbtxt:1:1: a field's name is needed, not '} a: 1'"),
        ("a {" * 1000, "messages are nested deeper"),
        ("a: " + "9" * 2000, "the number is too long"),
    ],
)
def test_what_it_refuses(text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(text)
    assert message in str(error.value)


def test_places_are_those_of_values_and_names() -> None:
    source = parse_pbtxt('name: "m"\ninput [\n  {\n    name: "x"\n  }\n]\n', "config.pbtxt")
    assert source.place(("name", 0)).line == 1
    assert source.place(("input",), key=True).line == 2
    assert (source.place(("input", 0)).line, source.place(("input", 0)).column) == (3, 3)
    assert source.place(("input", 0, "name"), key=True).line == 4


names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
scalars = (
    st.integers(-(2**63), 2**63)
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
messages = st.recursive(
    st.dictionaries(names, st.lists(scalars, min_size=1, max_size=3), max_size=3),
    lambda inner: st.dictionaries(names, st.lists(inner | scalars, min_size=1, max_size=3), max_size=3),
    max_leaves=12,
)


class Printer:
    """Writes a message in one of the many ways that the format allows, drawn by hypothesis."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def message(self, value: dict[str, list[Any]]) -> str:
        return "".join(self.field(name, values) for name, values in value.items())

    def field(self, name: str, values: list[Any]) -> str:
        if self.choose(True, False):
            inside = self.choose(",", " , # more\n").join(self.item(v) for v in values)
            return f"{name}:{self.blank()}[{inside}]{self.choose(' ', ';', ',')}"
        return "".join(
            f"{name}{self.choose(':', ': ') if not isinstance(v, dict) else self.choose('', ':', ' ')}"
            f"{self.item(v)}{self.choose(' ', ';', ',', chr(10))}"
            for v in values
        )

    def item(self, value: Any) -> str:
        if isinstance(value, dict):
            opening, closing = self.choose("{}", "<>")
            return f"{opening}{self.blank()}{self.message(value)}{closing}"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, float) and math.isinf(value):
            return self.choose("inf", "Infinity") if value > 0 else "-inf"
        return (
            hex(value) if isinstance(value, int) and value >= 0 and self.choose(True, False) else repr(value)
        )

    def text(self, value: str) -> str:
        if self.choose(True, False):
            octal = "".join(f"\\{byte:03o}" for byte in value.encode())
            quote = self.choose('"', "'")
            return f"{quote}{octal}{quote}"
        return json.dumps(value, ensure_ascii=False).replace("\\u00", "\\x").replace("\x7f", "\\x7f")

    def blank(self) -> str:
        return str(self.choose("", " ", "\n", " # }\n"))


@given(st.data(), messages)
def test_what_is_written_is_read_back(data: st.DataObject, message: dict[str, list[Any]]) -> None:
    assert parse(Printer(data.draw).message(message)) == message


@given(st.text(alphabet="ab1.-+eE\"'\\xu0{}<>[]:,;# \n", max_size=40) | st.text(max_size=20))
def test_any_other_text_is_refused_in_our_words(text: str) -> None:
    try:
        parse(text)
    except SpecError as error:
        message = str(error)
    else:
        message = "config.pbtxt:"
    assert message.startswith("config.pbtxt:")
