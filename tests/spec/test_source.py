from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.limits import MAX_YAML_BYTES
from dataflow.spec.source import Place, Source, read_yaml


def one(text: str, **environ: str) -> Source:
    sources, problems = read_yaml(text, "f.yaml", environ)
    assert problems == []
    assert len(sources) == 1
    return sources[0]


def faults(text: str, **environ: str) -> list[str]:
    return [str(problem) for problem in read_yaml(text, "f.yaml", environ)[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("yes", "yes"), ("true", True), ("~", None), ("", None), ("0o17", 15), ("0x1F", 31),
        ("012", 12), ("1_000", "1_000"), ("1e3", 1000.0), (".5", 0.5), ("-.inf", -math.inf), ("2013-01-01", "2013-01-01"),
        ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("12:30:45", "12:30:45"), ("0b11", "0b11"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = one(f"a: {text}\n").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text() -> None:
    assert one("{on: 1, 2: 2, null: 3, 1.0: 4}").value == {"on": 1, "2": 2, "null": 3, "1.0": 4}


def test_places_of_keys_and_values() -> None:
    source = one("a:\n  b: [x, 'y z', \"q\\n\"]\n  c: |\n    text\n")
    assert source.place(("a", "b", 0)) == Place(2, 7, 7)
    assert source.place(("a", "b", 1)) == Place(2, 10, 11)
    assert source.place(("a", "b", 2)) == Place(2, 17)  # an escape: its text does not stand there
    assert source.place(("a", "c")) == Place(3, 6)
    assert source.place(("a", "c"), key=True) == Place(3, 3, 3)
    assert source.place(("a", "b", 9, "nothing")) == source.place(("a", "b"))


def test_many_documents_and_empty_ones() -> None:
    sources, problems = read_yaml("---\na: 1\n---\n# nothing\n---\nb: 2\n...\n", "f", {})
    assert [source.value for source in sources] == [{"a": 1}, {"b": 2}]
    assert problems == []
    assert sources[1].place(("b",)).line == 6


def test_aliases_and_merges() -> None:
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\nmany: {<<: [{c: 1}, {c: 2, d: *base}]}\n"
    value = one(text).value
    assert value["more"] == {"a": 1, "b": 3}
    assert value["many"] == {"c": 1, "d": {"a": 1, "b": 2}}


def test_variables() -> None:
    text = "port: ${PORT:8080}\nhost: ${HOST}\nquoted: '${PORT:8080}'\nmixed: ${HOST}:${PORT:1}\nplain: $${HOST}\nnone: ${X:}\n"
    assert one(text, HOST="here").value == {
        "port": 8080, "host": "here", "quoted": "8080", "mixed": "here:1", "plain": "${HOST}", "none": None,
    }  # fmt: skip


def test_a_variable_that_is_not_set() -> None:
    assert faults("a: 1\nb: ${HOM}\n", HOME="x") == [
        "f.yaml:2:4: the environment has no variable 'HOM' (did you mean 'HOME'?)"
    ]
    assert faults("b: ${SECRET}\n") == [
        "f.yaml:1:4: the environment has no variable 'SECRET' (set it, or give a default: ${SECRET:...})"
    ]
    assert faults("b: x${-}y\n") == [
        "f.yaml:1:4: '${-}y' is no variable (${NAME}, ${NAME:default}, or $${ for a plain ${)"
    ]


def test_a_name_declared_twice() -> None:
    assert faults("a: 1\nb:\n  c: 1\n  c: 2\na: 2\n") == [
        "f.yaml:5:1: 'a' is declared twice (first in line 1)",
        "f.yaml:4:3: 'c' is declared twice (first in line 3)",
    ]


def test_what_is_before_a_syntax_error_is_given() -> None:
    sources, problems = read_yaml("a: 1\n---\nb: [1\nc: 2\n", "f.yaml", {})
    assert [source.value for source in sources] == [{"a": 1}]
    assert [str(problem) for problem in problems] == [
        (
            "f.yaml:4:2: this is no YAML: expected ',' or ']', but got ':' "
            "(while parsing a flow sequence that begins in line 3)"
        )
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: *b\n", "f.yaml:1:4: this is no YAML: found undefined alias 'b'"),
        ("a: !secret x\n", "f.yaml:1:4: the tag '!secret' is not known (leave it out)"),
        ("[a, b]: 1\n", "f.yaml:1:1: a key must be plain text"),
        ("a: {<<: 3}\n", "f.yaml:1:9: '<<' merges mappings only"),
        ("a: " + "9" * 5000, "f.yaml:1:4: the number is too long"),
    ],
)
def test_faults(text: str, message: str) -> None:
    assert faults(text) == [message]


def test_bombs() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    assert faults(laughs)[0].endswith("more than 100000 values once aliases are expanded")
    assert faults("[" * 3000)[0].endswith("nested deeper than 50")
    assert faults("a: &a [*a]\n")[0].endswith("nested deeper than 50")
    assert faults("a: &a {<<: *a}\n")[0].endswith("nested deeper than 50")
    assert faults("# " + "x" * MAX_YAML_BYTES) == ["f.yaml:1:1: the file is larger than 1000000 bytes"]


plain: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé \"'\\:#${}", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from("abc"), plain, min_size=1))
def test_json_is_yaml(value: dict[str, Any]) -> None:
    import json

    text = json.dumps(value).replace("${", "$${")
    assert one(text).value == value
