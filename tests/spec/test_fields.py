from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflow.core.errors import ContractError
from dataflow.core.schema import TENSOR_KINDS, Field, FieldType
from dataflow.spec.fields import FieldSpec, field_spec_of, parse_type

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
shapes = st.lists(st.integers(1, 500) | st.just(-1), max_size=3).map(tuple)
leaves = (
    st.builds(FieldType, st.sampled_from(TENSOR_KINDS), shapes, st.booleans())
    | st.builds(FieldType, st.sampled_from(("string", "bytes", "timestamp", "date")), nullable=st.booleans())
    | st.lists(names, min_size=1, max_size=3, unique=True).map(
        lambda symbols: FieldType("enum", symbols=tuple(symbols))
    )
    | st.tuples(st.integers(1, 38), st.booleans()).map(
        lambda t: FieldType("decimal", nullable=t[1], precision=t[0], scale=t[0] // 2)
    )
)


def _records(types: st.SearchStrategy[FieldType]) -> st.SearchStrategy[FieldType]:
    members = st.dictionaries(names, types, min_size=1, max_size=3)
    return members.map(lambda m: FieldType("record", fields=tuple(Field(n, t) for n, t in m.items())))


types = st.recursive(
    leaves,
    lambda inner: _records(inner) | st.builds(FieldType, st.just("list"), nullable=st.booleans(), item=inner),
    max_leaves=6,
)


@given(types)
def test_a_type_shown_reads_back(field_type: FieldType) -> None:
    assert parse_type(field_type.describe()) == field_type


@given(types, st.text(max_size=5), st.booleans())
def test_a_field_written_reads_back(field_type: FieldType, doc: str, event_time: bool) -> None:
    field = Field("x", field_type, doc=doc, event_time=event_time)
    assert FieldSpec.model_validate(field_spec_of(field)).field("x") == field


@given(st.text(alphabet="lisrtecodn<>[](),:|?- 123_f", max_size=30))
def test_any_text_is_a_type_or_an_error(text: str) -> None:
    try:
        parse_type(text)
    except ContractError as error:
        assert error.message  # noqa: PT017


def test_the_long_form() -> None:
    spec = FieldSpec.model_validate(
        {"type": "list", "items": {"type": "record", "fields": {"a": "int32?", "b": "float32[-1,3]"}}}
    )
    assert spec.field_type().describe() == "list<record<a: int32?, b: float32[?,3]>>"


def test_blanks_in_the_shorthand() -> None:
    assert parse_type(" list < float32 [ 2 , ? ] > ? ").describe() == "list<float32[2,?]>?"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("float23", "unknown type 'float23' (did you mean 'float32'?)"),
        ("float32[12", "type 'float32[12': ']' is needed before 'its end'"),
        ("float32[a]", "type 'float32[a]': a whole number is needed, not 'a'"),
        ("float32[0]", "shape [0] has a size that is neither positive nor -1"),
        ("string[3]", "a field of type 'string' has no shape (use a list)"),
        ("string string", "type 'string string' does not parse at 'string'"),
        ("float32!", "type 'float32!' does not parse at '!'"),
        ("list", "a list needs the type of its items (list<string>, or items: string)"),
        ("record", "a record needs fields (fields: {name: string})"),
        ("enum", "an enum needs symbols (symbols: [low, high])"),
        ("decimal", "decimal: precision 0 is not in 1..38 (decimal(10,2))"),
        ("decimal(4,9)", "decimal: scale 9 is not in 0..4"),
        ({"type": "string", "symbols": ["a"]}, "symbols belong to type 'enum', not 'string'"),
        ({"type": "string", "items": "string"}, "items belong to type 'list', not 'string'"),
        (
            {"type": "float32[2]", "shape": [3]},
            "type 'float32[2]' already has a shape (give one of the two)",
        ),
        ("list<" * 20, "a type is nested deeper than 16"),
    ],
)
def test_what_is_no_type(value: object, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        FieldSpec.model_validate(value)
    (error,) = raised.value.errors()
    hint = error["ctx"]["hint"]
    assert error["ctx"]["message"] + (f" ({hint})" if hint else "") == message
