from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.codecs.tables import columns_of, table_of
from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.core.schema import Column, Schema
from tests.codecs.strategies import assert_same_columns, contracts_with_batches

Case = tuple[Schema, dict[str, Column], int]
SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


@pytest.mark.parametrize("name", ["avro", "arrow", "json"])
@given(data=st.data())
@SLOW
def test_columns_come_back_as_they_were(name: str, data: st.DataObject) -> None:
    schema, columns, count = data.draw(contracts_with_batches())
    codec = codec_for(name, schema)
    encoded = codec.encode(columns, count)
    assert encoded.failed == []
    decoded = codec.decode(encoded.values)
    assert decoded.failed == []
    assert decoded.good.tolist() == list(range(count))
    assert_same_columns(columns, decoded.columns)


@given(case=contracts_with_batches())
@SLOW
def test_tables_give_columns_back(case: Case) -> None:
    schema, columns, _ = case
    assert_same_columns(columns, columns_of(schema, table_of(schema, columns)))


@given(case=contracts_with_batches())
@SLOW
def test_what_json_says_is_coerced_back(case: Case) -> None:
    schema, columns, count = case
    coerced = coerce_records(schema, to_jsonable(schema, columns, count))
    assert coerced.failed == []
    assert_same_columns(columns, coerced.columns)
