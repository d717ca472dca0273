"""`dataflow broker ...` as commands: a broker that outlives the command that started it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.slow]

COMMAND = "from dataflow.cli.broker import broker; broker(prog_name='broker')"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_three_nodes_by_one_command(tmp_path: Path) -> None:
    refused = run(tmp_path, "start", "--nodes", "3", "--port", "20999")
    assert (refused.returncode, "one node" in refused.stderr) == (2, True)
    started = run(tmp_path, "start", "--nodes", "3")
    try:
        assert started.returncode == 0, started.stderr
        found = json.loads(run(tmp_path, "status", "--format", "json").stdout)
        assert found["bootstrap"] == started.stdout.strip()
        assert (found["bootstrap"].count(","), len(found["pids"]), found["answering"]) == (2, 3, True)
    finally:
        assert run(tmp_path, "stop").stdout == "stopped\n"
    one = run(tmp_path, "start")
    assert (one.returncode, "the data of 3 nodes, not of 1" in one.stderr) == (1, True)


def test_start_status_logs_stop(tmp_path: Path) -> None:
    none = run(tmp_path, "status", "--format", "json")
    assert (none.returncode, json.loads(none.stdout)) == (1, {"running": False})
    assert "no broker has run" in run(tmp_path, "logs").stderr
    started = run(tmp_path, "start", "--ephemeral")
    try:
        assert started.returncode == 0, started.stderr
        bootstrap = started.stdout.strip()
        assert started.stderr == ""  # no terminal, no progress
        found = json.loads(run(tmp_path, "status", "--format", "json").stdout)
        assert (found["running"], found["answering"], found["bootstrap"]) == (True, True, bootstrap)
        assert bootstrap in run(tmp_path, "status").stdout
        assert "Kafka Server started" in run(tmp_path, "logs", "-n", "5").stdout
        again = run(tmp_path, "start")
        assert again.returncode == 1
        assert f"--bootstrap {bootstrap}" in again.stderr
        assert "Traceback" not in again.stderr
    finally:
        stopped = run(tmp_path, "stop")
    assert stopped.stdout == "stopped\n"
    assert "no broker runs" in run(tmp_path, "stop").stdout
    assert [path.name for path in (tmp_path / ".dataflow" / "broker").iterdir()] == ["lock"]
