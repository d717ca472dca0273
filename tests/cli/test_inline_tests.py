from __future__ import annotations

import re
from pathlib import Path

from tests.cli.project import PIPELINE, call, make

FAILING = """  - name: wrong
    given: {readings: [{sensor: a, value: 20}, {sensor: b, value: 1}, {sensor: c, value: 2000}]}
    expect: {doubled: [{sensor: a, value: 41}], route.low: []}
"""


def shown(output: str) -> str:
    """Times cut out."""
    return re.sub(r"\d+ ms", "MS", re.sub(r"in [0-9.]+ s", "in S", output))


def test_all_pass(tmp_path: Path) -> None:
    result = call(make(tmp_path), "test")
    assert result.exit_code == 0
    assert shown(result.output) == "hello\n  ok    above ten is doubled  MS\n1 passed in S\n"


def test_a_failing_test_shows_what_differs_and_what_was_lost(tmp_path: Path) -> None:
    result = call(make(tmp_path, PIPELINE + FAILING), "test")
    assert result.exit_code == 1
    assert shown(result.output) == (
        "hello\n"
        "  ok    above ten is doubled  MS\n"
        "  FAIL  wrong  MS\n"
        "          doubled: record 1: value\n"
        "            - 41.0\n"
        "            + 40.0\n"
        "          route.low: 0 records expected, 1 found\n"
        "            + {sensor: b, value: 1.0}\n"
        "          failed at doubled: ValueError: too much (double.py:9)\n"
        "1 passed, 1 failed in S\n"
    )


def test_a_record_that_does_not_fit_its_contract(tmp_path: Path) -> None:
    more = "  - name: bad\n    given: {readings: [{sensor: a, value: high}]}\n    expect: {}\n"
    result = call(make(tmp_path, PIPELINE + more), "test", "-k", "bad")
    assert result.exit_code == 1
    assert "input 'readings': record 1: field 'value'" in result.output


def test_tests_are_chosen_by_name(tmp_path: Path) -> None:
    result = call(make(tmp_path, PIPELINE + FAILING), "test", "hello", "-k", "above")
    assert result.exit_code == 0
    assert shown(result.output).endswith("1 passed in S\n")


def test_no_tests(tmp_path: Path) -> None:
    result = call(make(tmp_path, PIPELINE.partition("tests:")[0]), "test")
    assert result.exit_code == 0
    assert result.output == "hello\nno tests (declare some under `tests:` in the pipeline)\n"
