"""A stage whose work is done outside: starts the process, looks after it, ends it by its id.

The process is the member of the stage's consumer group and writes the stage's edge itself. What it needs to know comes
as one line of JSON on its standard input; the end of that input means stop, so that it never outlives us, however we
end. What it prints goes to our log.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol, runtime_checkable

import orjson

from dataflow.core import ids
from dataflow.core.agents import AgentPlace
from dataflow.core.errors import NodeError, PlanError
from dataflow.core.limits import DRAIN_TIMEOUT_MS
from dataflow.planner.plan import Plan, StagePlan
from dataflow.runtime.workshop import Workshop

log = logging.getLogger("dataflow.agent")

_WATCH_S: Final = 0.2
# Lines of its output that are told when it ends.
_LAST_LINES: Final = 8
_MAX_LINE: Final = 500
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08]")  # colours and spinners of a terminal


class OutsideNode(Protocol):
    """A node of a kind with ``outside = True``, see `sdk.NodeClass`."""

    def command(self, place: AgentPlace) -> Sequence[str]: ...


@runtime_checkable
class Reachable(Protocol):
    """A cluster that other processes can reach: not the log in memory."""

    @property
    def bootstrap(self) -> str: ...
    @property
    def security(self) -> dict[str, str]: ...


class Agent:
    """Runs one such stage. `run` returns when stopped, and raises NodeError when the process ends by itself."""

    def __init__(self, shop: Workshop, plan: Plan, stage: StagePlan) -> None:
        self._shop = shop
        self._plan = plan
        self._stage = stage
        self._stopping = threading.Event()
        self._told: deque[str] = deque(maxlen=_LAST_LINES)

    def stop(self) -> None:
        """Ask it to end; returns at once. Thread-safe."""
        self._stopping.set()

    def run(self) -> None:
        parts = self._shop.build(self._plan, self._stage)
        parts.tables.close()
        metrics = parts.program.metrics
        node: OutsideNode = parts.nodes[0]  # type: ignore[assignment]  # a kind with outside=True has a command
        place = self._place()
        process = subprocess.Popen(
            list(node.command(place)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C is for us: we end it when our turn comes
        )
        listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
        listener.start()
        try:
            _tell(process, place)
            metrics.state, metrics.error = "running", ""
            while not self._stopping.wait(_WATCH_S):
                if process.poll() is not None:
                    listener.join(1)
                    told = " | ".join(self._told)
                    raise NodeError(
                        f"the process of node '{self._name}' ended with {process.returncode}: {told}"
                    )
        finally:
            _end(process)
            listener.join()  # to the end of what it printed
        metrics.state = "stopped"

    @property
    def _name(self) -> str:
        return self._stage.nodes[0]

    def _place(self) -> AgentPlace:
        fabric, plan = self._shop.fabric, self._plan
        if not isinstance(fabric, Reachable):
            raise PlanError(
                f"node '{self._name}' is a process outside: it needs a broker, not a log in memory"
            )
        node = plan.nodes[self._name]
        output = plan.edges[next(iter(node.outputs.values()))]
        inputs = {
            port: tuple(t for e in edges for t in plan.edges[e].topics) for port, edges in node.inputs.items()
        }
        admin = self._shop.fabric.admin()
        topics = admin.describe([t for found in inputs.values() for t in found])
        cluster = admin.cluster_id()
        return AgentPlace(
            pipeline=plan.pipeline,
            node=self._name,
            origin=f"{plan.origin}/{self._name}",
            project=str(self._shop.project),
            folder=str(self._shop.project / plan.folder),
            bootstrap=fabric.bootstrap,
            security=fabric.security,
            group=self._stage.group,
            inputs=inputs,
            seeds={
                f"{name}/{n}": ids.seed_of(cluster, info.topic_id, n)
                for name, info in topics.items()
                for n in range(info.partitions)
            },
            output=output.topics[0],
            partitions=output.partitions,
        )

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            text = _CONTROL.sub("", line.decode("utf-8", "replace")).strip()[:_MAX_LINE]
            if text:
                self._told.append(text)
                log.warning("%s.%s: %s", self._plan.pipeline, self._name, text)
        process.stdout.close()


def _tell(process: subprocess.Popen[bytes], place: AgentPlace) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(orjson.dumps(_document(place)) + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended already; its status and last words are told by who watches it


def _document(place: AgentPlace) -> dict[str, Any]:
    return dataclasses.asdict(place)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it finish what it has in hand, for as long as a drain may take; then kill it."""
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:
        pass
    try:
        process.wait(DRAIN_TIMEOUT_MS / 1000)
    except subprocess.TimeoutExpired:
        log.warning("process %d did not end in time: killed", process.pid)
        process.kill()
        process.wait()
