"""The process of a node that runs outside: told where it is, watched, ended."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import ClassVar

import orjson
import pytest

from dataflow.control.assemble import assemble
from dataflow.control.deploy import deploy
from dataflow.core import ids
from dataflow.core.errors import NodeError, PlanError
from dataflow.planner.plan import Plan
from dataflow.runtime import agent as module
from dataflow.runtime.agent import Agent
from dataflow.runtime.workshop import Workshop
from dataflow.transport.memory import MemoryFabric
from tests.conftest import wait_for

YAML = """
kind: Topic
name: numbers
codec: json
partitions: 2
fields: {n: int64}
---
kind: Pipeline
name: p
inputs: {number: numbers}
nodes:
  outer: {use: outer.run, from: number, out: {n: int64}}
"""
NODE = '''
import sys
from dataflow.sdk import Settings, node

class Nothing(Settings):
    """No settings."""

@node("outer.run", settings=Nothing, pure=False)
class Outer:
    """Runs outer.py of the project."""

    outside = True
    codec = "json"

    def __init__(self, settings, context):
        self.folder = context.folder

    def command(self, place):
        return [sys.executable, "-u", str(self.folder / "outer.py")]

    def process(self, batch, out, port="in"):
        raise NotImplementedError
'''
WAITS = "import sys; open(sys.argv[0] + '.told', 'w').write(sys.stdin.readline()); sys.stdin.read()"
ENDS = "import sys; print('\\x1b[31mI cannot\\x1b[0m'); sys.exit(3)"
STAYS = "import sys, time, signal; print('here'); time.sleep(600)"


class Reached(MemoryFabric):
    """A log in memory that says where it is."""

    bootstrap = "host:1"
    security: ClassVar = {"sasl.password": "secret"}


class Made:
    def __init__(self, folder: Path, program: str, fabric: MemoryFabric) -> None:
        (folder / "pipelines").mkdir()
        (folder / "nodes").mkdir()
        (folder / "pipelines/p.yaml").write_text(YAML)
        (folder / "nodes/outer.py").write_text(NODE)
        (folder / "pipelines/outer.py").write_text(program)
        assembled = assemble(folder, environ=os.environ)
        self.folder = folder
        self.fabric = fabric
        self.plan: Plan = assembled.plans[0]
        deploy(fabric, self.plan)
        self.shop = Workshop(folder, assembled.registry, fabric)
        self.agent = Agent(self.shop, self.plan, self.plan.stages[0])

    @property
    def told(self) -> Path:
        return self.folder / "pipelines/outer.py.told"


def test_it_is_told_where_it_is_and_ends_when_asked(tmp_path: Path) -> None:
    made = Made(tmp_path, WAITS, Reached())
    thread = threading.Thread(target=made.agent.run)
    thread.start()
    wait_for(lambda: made.told.exists() and made.told.read_bytes().endswith(b"\n"), "what it was told")
    assert made.shop.metrics.stage("p", "outer").state == "running"
    made.agent.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert made.shop.metrics.stage("p", "outer").state == "stopped"
    told = orjson.loads(made.told.read_bytes())
    topic = made.fabric.describe(["numbers"])["numbers"]
    assert told["inputs"] == {"in": ["numbers"]}
    assert told["seeds"] == {f"numbers/{n}": ids.seed_of("memory", topic.topic_id, n) for n in (0, 1)}
    assert (told["output"], told["partitions"]) == ("p.outer", 2)
    assert (told["bootstrap"], told["security"]) == ("host:1", {"sasl.password": "secret"})
    assert (told["group"], told["origin"]) == ("dataflow.p.outer", f"p@{made.plan.version}/outer")
    assert told["folder"] == str(tmp_path / "pipelines")


def test_one_that_ends_by_itself_says_its_last_words(tmp_path: Path) -> None:
    made = Made(tmp_path, ENDS, Reached())
    with pytest.raises(NodeError, match=r"process of node 'outer' ended with 3: I cannot$"):
        made.agent.run()


def test_one_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "DRAIN_TIMEOUT_MS", 200)
    made = Made(tmp_path, STAYS, Reached())
    thread = threading.Thread(target=made.agent.run)
    thread.start()
    wait_for(lambda: "p.outer: here" in caplog.text, "its first words")
    made.agent.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert "did not end in time: killed" in caplog.text


def test_a_log_in_memory_cannot_be_reached(tmp_path: Path) -> None:
    made = Made(tmp_path, WAITS, MemoryFabric())
    with pytest.raises(PlanError, match="needs a broker"):
        made.agent.run()
