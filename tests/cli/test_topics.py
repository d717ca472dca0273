from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro

from dataflow.control.assemble import assemble
from dataflow.testing import PipelineRun
from tests.cli.project import call, make


def test_list(tmp_path: Path) -> None:
    result = call(make(tmp_path), "topics", "list")
    assert result.output.splitlines() == [
        "topic             edge              codec  key     partitions  fields",
        "readings          declared          avro   sensor  2           sensor: string, value: float64",
        "hello.requests    hello.readings    avro   sensor  2           sensor: string, value: float64",
        "hello.route.high  hello.route.high  avro           2           sensor: string, value: float64",
        "hello.route.low   hello.route.low   avro           2           sensor: string, value: float64",
        "hello.doubled     hello.doubled     avro           2           sensor: string, value: float64",
    ]


def test_list_as_json(tmp_path: Path) -> None:
    found = json.loads(call(make(tmp_path), "topics", "list", "--format", "json").output)["topics"]
    assert found[0] == {
        "topic": "readings",
        "pipeline": None,
        "edge": None,
        "codec": "avro",
        "key": ["sensor"],
        "partitions": 2,
        "doc": "",
        "fields": [
            {"name": "sensor", "type": {"kind": "string"}},
            {"name": "value", "type": {"kind": "float64"}},
        ],
    }
    assert found[-1]["pipeline"] == "hello"


def test_one_is_printed_as_it_is_and_several_by_topic(tmp_path: Path) -> None:
    make(tmp_path)
    one = json.loads(call(tmp_path, "topics", "export", "readings").output)
    assert one["type"] == "record"
    assert [f["name"] for f in one["fields"]] == ["sensor", "value"]
    two = json.loads(
        call(tmp_path, "topics", "export", "readings", "hello.doubled", "--format", "jsonschema").output
    )
    assert list(two) == ["readings", "hello.doubled"]
    assert two["readings"]["required"] == ["sensor", "value"]


def test_an_avro_library_reads_a_record_with_the_export(tmp_path: Path) -> None:
    make(tmp_path)
    schema: Any = json.loads(call(tmp_path, "topics", "export", "hello.doubled").output)
    made = assemble(tmp_path, environ={})
    with PipelineRun(tmp_path, made.plans[0], made.registry) as run:
        run.feed("readings", [{"sensor": "a", "value": 20}])
        run.settle()
        values = [m.value() for p in run.fabric.stored["hello.doubled"].partitions for m in p.records]
    assert values[0] is not None
    read = fastavro.schemaless_reader(io.BytesIO(values[0]), fastavro.parse_schema(schema), None)
    assert read == {"sensor": "a", "value": 40.0}


def test_files(tmp_path: Path) -> None:
    make(tmp_path)
    result = call(tmp_path, "topics", "export", "--out", str(tmp_path / "out"))
    assert result.output == f"5 files in {tmp_path / 'out'}\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "hello.doubled.avsc",
        "hello.requests.avsc",
        "hello.route.high.avsc",
        "hello.route.low.avsc",
        "readings.avsc",
    ]


def references(document: Any) -> list[str]:
    if isinstance(document, dict):
        own = [document["$ref"]] if "$ref" in document else []
        return own + [r for value in document.values() for r in references(value)]
    return [r for value in document for r in references(value)] if isinstance(document, list) else []


def test_asyncapi(tmp_path: Path) -> None:
    make(tmp_path, topics__text_yaml="kind: Topic\nname: text\ncodec: json\nfields: {a: string}\n")
    document = json.loads(call(tmp_path, "topics", "export", "--format", "asyncapi").output)
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["readings"]["address"] == "readings"
    assert document["channels"]["readings"]["bindings"]["kafka"]["partitions"] == 2
    messages = document["components"]["messages"]
    assert messages["readings"]["payload"]["schema"]["type"] == "record"
    assert messages["text"]["contentType"] == "application/json"
    assert messages["text"]["payload"]["type"] == "object"
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_unknown_topic(tmp_path: Path) -> None:
    result = call(make(tmp_path), "topics", "export", "reading")
    assert result.exit_code == 1
    assert result.stderr == "Error: no topic 'reading' (did you mean 'readings'?)\n"
