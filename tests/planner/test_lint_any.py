"""Whatever stands in a declaration, lint answers with problems that have a place, and never with an exception."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.planner.lint import lint
from dataflow.spec.source import walk
from tests.planner.kinds import REGISTRY
from tests.spec.projects import project_of

DOCUMENTS: list[dict[str, Any]] = [
    {
        "kind": "Topic", "name": "t", "key": ["id"], "retention": "7d", "partitions": 2, "cleanup": "compact",
        "fields": {"id": "string", "x": {"type": "list", "items": {"type": "float32"}}, "e": {"type": "enum", "symbols": ["a"]}},
    },
    {"kind": "Model", "name": "m", "file": "m.onnx", "build": "true", "inputs": ["*.py"], "options": {"device": "cpu"}},
    {
        "kind": "Pipeline", "name": "p", "inputs": {"t": "t"}, "outputs": {"t": "a"},
        "answer": {"from": ["a", "s.x"], "when": "durable", "input": "t"}, "deadline": "2s",
        "edges": {"retention": "1d", "codec": "avro"},
        "nodes": {
            "a": {"use": "test.pass", "from": ["t"], "out": {"z": "int8"}, "keep": ["id"], "retry": {"attempts": 2}},
            "s": {"use": "test.split", "from": "a", "with": {"by": {"x": "y", "z": "w"}}},
            "j": {"use": "test.join", "from": {"left": ["a"], "right": ["t"]}},
            "m": {"use": "test.uses", "from": "t", "with": {"model": "m", "table": "t"}},
        },
        "tests": [{"name": "n", "given": {"t": [{"id": "a"}]}, "expect": {"a": [{"z": 1}]}, "tolerance": 0.1}],
    },
]  # fmt: skip

junk = st.sampled_from(
    [None, True, -1, 0, 1.5, "", "a", "t", "nothing", "a.b", [], {}, [None], [[1]], {"a": None}, {"": ""}, "x" * 300]
)  # fmt: skip
PATHS = [(i, path) for i, document in enumerate(DOCUMENTS) for path, _ in walk(document)]


def changed(
    path: tuple[str | int, ...], depth: int, value: object, rename: str | None, document: Any
) -> None:
    """Replace the value `depth` steps into `path`, or rename its key."""
    cut = path[: 1 + depth % len(path)]
    for step in cut[:-1]:
        if not isinstance(document, dict | list):
            return
        try:
            document = document[step]  # type: ignore[index]  # a name into a mapping, a number into a list
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(document, dict):
        if rename is not None and cut[-1] in document:
            document[rename] = document.pop(cut[-1])
        else:
            document[cut[-1]] = copy.deepcopy(value)
    elif isinstance(document, list) and isinstance(cut[-1], int) and cut[-1] < len(document):
        document[cut[-1]] = copy.deepcopy(value)


change = st.tuples(
    st.sampled_from(PATHS), st.integers(0, 5), junk, st.none() | st.sampled_from(["usee", "t", "from", ""])
)


@given(st.lists(change, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lint_never_fails(
    tmp_path: Path, changes: list[tuple[tuple[int, Any], int, object, str | None]]
) -> None:
    documents = copy.deepcopy(DOCUMENTS)
    for (index, path), depth, value, rename in changes:
        changed(path, depth, value, rename, documents[index])
    text = "\n---\n".join(json.dumps(document) for document in documents)
    for problem in lint(project_of(tmp_path, {"pipelines/p.yaml": text + "\n"}), REGISTRY):
        assert problem.line in {1, 3, 5}
        assert problem.column >= 1
        assert problem.message
        assert not problem.message.startswith(":"), problem
        assert "fault of the kind" not in problem.hint, problem


def test_the_document_that_is_changed_is_good(tmp_path: Path) -> None:
    text = "\n---\n".join(json.dumps(document) for document in DOCUMENTS)
    found = lint(project_of(tmp_path, {"pipelines/p.yaml": text + "\n"}), REGISTRY)
    assert [problem.message for problem in found if problem.severity == "error"] == [
        "topic 't' needs the field 'e', which 'a' does not have",
        "topic 't' needs the field 'id', which 'a' does not have",
        "topic 't' needs the field 'x', which 'a' does not have",
    ]
