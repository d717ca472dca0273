"""A worker: the stages of one or more plans, each on a thread of its own, started again after what may pass."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeAlias

from dataflow.core import limits
from dataflow.core.errors import DataflowError, OffsetOutOfRangeError, TopicGoneError, TransportError
from dataflow.observe.metrics import StageMetrics
from dataflow.planner.plan import Plan, StagePlan
from dataflow.runtime.agent import Agent
from dataflow.runtime.feeder import Feeder
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.workshop import Workshop
from dataflow.transport.api import EARLIEST, LATEST

log = logging.getLogger("dataflow.worker")

Looping: TypeAlias = StageLoop | Feeder | Agent

RESTART_BACKOFF_S: Final = 1.0
RESTART_BACKOFF_MAX_S: Final = 30.0
# A stage that ran this long before it failed starts with a fresh back-off.
STEADY_S: Final = 60.0
# How often lag is measured and topics are checked to be still the same.
WATCH_INTERVAL_S: Final = 2.0


class StageThread:
    """One stage: runs its loop, and starts it anew after an error that may pass.

    An offset out of range or a topic that is gone or anew stops the stage for good: records would be skipped in silence.
    """

    def __init__(self, make: Callable[[], Looping], metrics: StageMetrics) -> None:
        self._make = make
        self.metrics = metrics
        self._loop: Looping | None = None
        self._stopping = threading.Event()
        self._final = False
        self._thread = threading.Thread(
            target=self._run, name=f"{metrics.pipeline}.{metrics.stage}", daemon=True
        )

    @property
    def failed(self) -> bool:
        return self.metrics.state == "failed"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to drain and end; returns at once."""
        self._stopping.set()
        if self._loop is not None:
            self._loop.stop()

    def end_inputs(self) -> None:
        """Say that all its inputs have ended, see `StageLoop`."""
        if isinstance(self._loop, StageLoop):
            self._loop.end_inputs()

    @property
    def drained(self) -> bool:
        """Whether all is committed that its nodes gave when they heard of the end."""
        return not isinstance(self._loop, StageLoop) or self._loop.drained.is_set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; False if it is still running."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def fail(self, error: DataflowError) -> None:
        """Stop it for good, from outside: nothing more is committed."""
        self.metrics.error = str(error)
        self._final = True
        if isinstance(self._loop, StageLoop):
            self._loop.abandon()
        self.stop()

    def _run(self) -> None:
        name = f"{self.metrics.pipeline}.{self.metrics.stage}"
        backoff_s = RESTART_BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            self.metrics.state = "starting"
            try:
                self._loop = self._make()
                if self._stopping.is_set():
                    break
                self._loop.run()
                break
            except (OffsetOutOfRangeError, TopicGoneError) as error:
                self.metrics.error = str(error)
                self._final = True
                log.critical("stage %s stopped: %s", name, error)
                break
            except BaseException as error:
                self.metrics.error = str(error) or type(error).__name__
                self.metrics.state = "restarting"
                expected = isinstance(error, DataflowError)
                log.error("stage %s failed: %s", name, self.metrics.error, exc_info=not expected)  # noqa: TRY400
                if time.monotonic() - started > STEADY_S:
                    backoff_s = RESTART_BACKOFF_S
                self._stopping.wait(backoff_s)
                backoff_s = min(backoff_s * 2, RESTART_BACKOFF_MAX_S)
        self.metrics.state = "failed" if self._final else "stopped"


class Worker:
    """All stages of some plans in this process. Not reusable: start once, stop once."""

    def __init__(self, shop: Workshop, plans: Iterable[Plan]) -> None:
        self._shop = shop
        self._plans = tuple(plans)
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.stages: dict[tuple[str, str], StageThread] = {
            (plan.pipeline, stage.name): StageThread(
                partial(self._make, plan, stage), shop.metrics.stage(plan.pipeline, stage.name)
            )
            for plan in self._plans
            for stage in plan.stages
        }

    def _make(self, plan: Plan, stage: StagePlan) -> Looping:
        if stage.source:
            return Feeder(partial(self._shop.build, plan, stage), self._shop.fabric, plan, stage)
        if stage.outside:
            return Agent(self._shop, plan, stage)
        return StageLoop(partial(self._shop.build, plan, stage), self._shop.fabric)

    def start(self) -> None:
        for stage in self.stages.values():
            stage.metrics.error = ""
            stage.start()
        self._watcher.start()

    def stop(self) -> None:
        """Drain every stage and wait for it, for as long as a drain may take."""
        self._closing.set()
        for stage in self.stages.values():
            stage.stop()
        deadline = time.monotonic() + limits.DRAIN_TIMEOUT_MS / 1000 + 5
        for name, stage in self.stages.items():
            if not stage.join(max(deadline - time.monotonic(), 0.1)):
                log.warning(
                    "stage %s.%s did not end in time: its work in hand is left to the next owner", *name
                )

    @property
    def failed(self) -> list[StageMetrics]:
        """Stages that stopped for good."""
        return [s.metrics for s in self.stages.values() if s.failed]

    def _watch(self) -> None:
        """Measure lag, and stop the stages of a topic that was created anew: its offsets mean other records now."""
        topic_ids: dict[str, str] = {}
        while not self._closing.wait(WATCH_INTERVAL_S):
            try:
                for plan in self._plans:
                    self._check_topics(plan, topic_ids)
                    for stage in plan.stages:
                        self._measure(plan, stage)
            except TransportError as error:
                log.debug("watching: %s", error)  # the broker is away: the stages will say so

    def _check_topics(self, plan: Plan, known: dict[str, str]) -> None:
        names = [t for s in plan.stages for e in plan.fetched(s) for t in e.topics]
        for name, info in self._shop.fabric.admin().describe(names).items():
            if known.setdefault(name, info.topic_id) == info.topic_id:
                continue
            error = TopicGoneError(
                f"topic '{name}' was created anew while it was read",
                hint="its offsets mean other records now: restart",
            )
            for stage in plan.stages:
                if any(name in edge.topics for edge in plan.fetched(stage)):
                    self.stages[plan.pipeline, stage.name].fail(error)

    def _measure(self, plan: Plan, stage: StagePlan) -> None:
        metrics = self._shop.metrics.stage(plan.pipeline, stage.name)
        metrics.lag = lag_of(self._shop, plan, stage)


def lag_of(shop: Workshop, plan: Plan, stage: StagePlan) -> int:
    """Records of the stage's inputs that no member of its group has committed yet."""
    admin = shop.fabric.admin()
    topics = [t for e in plan.fetched(stage) for t in e.topics]
    positions = [(t, n) for t in topics for n in range(plan.topics[t].partitions)]
    # Ends after commits: what a stage sends round to itself between the two would else be in neither.
    committed = admin.group_offsets(stage.group, positions)
    missing = [p for p in positions if p not in committed]
    starts = {**admin.offsets(missing, EARLIEST), **committed}
    ends = admin.offsets(positions, LATEST)
    return sum(max(ends[p] - starts.get(p, 0), 0) for p in positions)
