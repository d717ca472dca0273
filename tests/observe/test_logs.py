from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from dataflow.core.errors import DataflowError
from dataflow.observe.logs import configure


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """The root logger as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        logging.getLogger("dataflow.stage").exception("stage %s failed", "score")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["level"], said["logger"], said["message"]) == (
        "error",
        "dataflow.stage",
        "stage score failed",
    )
    assert "bad\nvalue" in said["error"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_normal_work_is_silent(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(form)
    logging.getLogger("dataflow.stage").info("assigned 4 partitions")
    assert capsys.readouterr().err == ""


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(DataflowError, match=r"no log form 'yaml' \(valid: json, text\)"):
        configure("yaml")
