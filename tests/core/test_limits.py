"""Limits that a process is given by its environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dataflow.core.limit_settings import PREFIX


def ran(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{PREFIX + name: value for name, value in given.items()}}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_a_limit_is_set_and_what_follows_from_it_follows() -> None:
    script = "from dataflow.gateway import http, taps; print(http.MAX_BODY_BYTES, http.MAX_BODIES_BYTES, taps.MAX_TAP_BACKLOG)"
    done = ran("-c", script, MAX_BODY_BYTES="1000", MAX_TAP_BACKLOG=" 7 ")
    assert done.stdout.split() == ["1000", "4000", "7"], done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_TAPS", "0", "DATAFLOW_LIMIT_MAX_TAPS='0' (valid: a whole number of at least 1)"),
        ("MAX_TAPS", "1e3", "DATAFLOW_LIMIT_MAX_TAPS='1e3' (valid: a whole number of at least 1)"),
        (
            "MAX_TAP", "5",
            "DATAFLOW_LIMIT_MAX_TAP: no limit that may be set (did you mean 'DATAFLOW_LIMIT_MAX_TAPS'?)",
        ),
        # What a contract says must be the same for all processes.
        ("MAX_RECORD_BYTES_DECLARED", "5", "DATAFLOW_LIMIT_MAX_RECORD_BYTES_DECLARED: no limit that may be set"),
    ],
)  # fmt: skip
def test_a_wrong_limit_stops_every_command(name: str, value: str, said: str) -> None:
    done = ran("-m", "dataflow", "nodes", **{name: value})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {said}")
