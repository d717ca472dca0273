"""Nothing is dropped silently: a key that a conversion does not know is named, wherever it stands."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dataflow.control.importing.kserve import convert_kserve
from dataflow.control.importing.parts import read_manifests
from dataflow.control.importing.seldon import convert_seldon
from dataflow.control.importing.triton import convert_triton
from dataflow.core.errors import SpecError
from tests.control.importing import test_kserve, test_seldon, test_triton
from tests.control.importing.examples import Convert

SELDON = (
    test_seldon.HEAD
    + """
  input: {joinType: inner}
  steps:
  - {name: a, batch: {size: 2, windowMs: 5}}
  - {name: b, inputs: [a.outputs.y], tensorMap: {a.outputs.y: x}, triggers: [p.inputs.t]}
  output: {steps: [b], stepsJoin: inner}
"""
)
KSERVE = (
    test_kserve.HEAD
    + """
    root: {routerType: Sequence, steps: [{serviceName: a}, {nodeName: more, data: $response}]}
    more: {routerType: Splitter, steps: [{serviceName: b, weight: 50}, {serviceName: c, weight: 50}]}
"""
)
# Other tools' words, and what the cluster writes itself.
FREE = {("metadata", "labels"), ("metadata", "annotations"), ("status",)}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every mapping."""
    if isinstance(value, dict):
        yield path
        for key, member in value.items():
            yield from places(member, (*path, key))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from places(member, (*path, index))


@pytest.mark.parametrize(
    ("convert", "text"),
    [(convert_seldon, SELDON), (convert_kserve, KSERVE), (convert_kserve, test_kserve.SERVICE)],
)
def test_a_key_that_is_not_known_is_named_wherever_it_stands(
    convert: Convert, text: str, tmp_path: Path
) -> None:
    manifest = YAML(typ="safe", pure=True).load(text)
    file = tmp_path / "declared.json"
    for path in [p for p in places(manifest) if p not in FREE]:
        changed = copy.deepcopy(manifest)
        inner = changed
        for step in path:
            inner = inner[step]
        inner["unheardOf"] = 1
        file.write_text(json.dumps(changed))
        try:
            told = "\n".join(map(str, convert([file], None).notes))
        except SpecError as error:
            told = str(error)
        # ... or what it stands in is named as a whole
        whole = [".".join(map(str, path[:length])) for length in range(1, len(path) + 1)]
        assert "unheardOf" in told or any(f"not converted: {name};" in told for name in whole), path


def test_a_field_that_is_not_known_is_named_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "both" / "config.pbtxt"
    file.parent.mkdir()
    text = test_triton.ENSEMBLE.lstrip()
    for place in [0, *(index + 1 for index, character in enumerate(text) if character == "{")]:
        file.write_text(f"{text[:place]} unheard_of: 1 {text[place:]}")
        told = "\n".join(map(str, convert_triton([file], None).notes))
        assert "unheard_of" in told, text[place : place + 40]


def test_lists_of_objects_and_plain_dollars(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: a/v1, kind: One, metadata: {name: x}, spec: {text: '${NOT_SET}'}}\n"
        "- {apiVersion: b/v1, kind: Two, metadata: {name: y}}\n"
    )
    found = read_manifests([file], [])
    assert [(m.kind, m.group, m.name, m.part.line()) for m in found] == [
        ("One", "a", "x", 4),
        ("Two", "b", "y", 5),
    ]
    assert found[0].part.part("spec").text("text") == "${NOT_SET}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "list.yaml:1: this is no Kubernetes object"),
        ("kind: X\n", "list.yaml:1: metadata.name is missing"),
    ],
)
def test_what_is_no_object_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as error:
        read_manifests([file], [])
    assert message in str(error.value)
