"""One run: workers over a cluster in memory, their turns and what befalls them in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

from dataflow.codecs import codec_for
from dataflow.codecs.values import coerce_records
from dataflow.control.deploy import deploy
from dataflow.core.errors import TransportError
from dataflow.planner.plan import Plan, StagePlan
from dataflow.runtime import restore, stage
from dataflow.runtime.parts import StageParts
from dataflow.runtime.stage import StageLoop
from dataflow.runtime.workshop import Workshop
from dataflow.testing.pipelines import HandClock
from tests.simulation.fabric import Killed, Process, ProcessFabric, SimFabric
from tests.simulation.kinds import REGISTRY
from tests.simulation.pipelines import START_MS, TOPIC, Sketch

MAX_WORKERS: Final = 4
# More than any run takes to come to rest.
MAX_ROUNDS: Final = 3_000


@dataclass
class Loop:
    """A stage in a worker, and what closes it."""

    plan: StagePlan
    loop: StageLoop
    stack: ExitStack


@dataclass
class Worker:
    """`stopped`: its process gets no time for so many steps."""

    process: Process
    stopped: int = 0
    loops: dict[str, Loop] = field(default_factory=dict)


class Failed(AssertionError):
    """The engine did what it must not."""


@contextmanager
def simulated_time(clock: HandClock) -> Iterator[None]:
    """The loops' own clock is the hand-moved one too, and a restore reads little at a time."""

    class Time:
        monotonic = staticmethod(clock)
        time = staticmethod(clock)

    with patch.object(stage, "time", Time), patch.object(restore, "RESTORE_RECORDS", 4):
        yield


class World:
    """A deployed plan, its input as far as fed, and the workers. `trace` says what was done, in order."""

    def __init__(self, sketch: Sketch, plan: Plan, project: Path, rng: Random) -> None:
        self.sketch = sketch
        self.plan = plan
        self.project = project
        self.rng = rng
        self.clock = HandClock()
        self.fabric = SimFabric(self.clock, rng)
        self.workers: list[Worker] = []
        self.dead: list[Process] = []
        self.trace: list[str] = []
        self._fed = 0
        self._born = 0
        # Before all others, so that it has the same id, and its records theirs, however the pipeline is cut.
        topic = plan.topics[TOPIC]
        self.fabric.create(topic.name, topic.partitions, topic.config)
        deploy(self.fabric, plan)
        edge = plan.edges[TOPIC]
        records = [
            {**r, "at": datetime.fromtimestamp(r["at"] / 1000, UTC).isoformat()} for r in sketch.records
        ]
        coerced = coerce_records(edge.schema, records)
        assert not coerced.failed, coerced.failed
        self._values = codec_for(edge.codec, edge.schema).encode(coerced.columns, len(records)).values

    # ---- what may happen

    @property
    def fed(self) -> bool:
        return self._fed == len(self._values)

    def feed(self, count: int) -> None:
        producer = self.fabric.producer()
        for record, value in list(zip(self.sketch.records, self._values, strict=True))[
            self._fed : self._fed + count
        ]:
            # Ids are made of the time in the log, too.
            producer.send(TOPIC, value, record["k"].encode(), timestamp_ms=START_MS + self._fed)
            self._fed += 1
        producer.close()

    def join(self) -> None:
        self._born += 1
        worker = Worker(Process(f"w{self._born}"))
        self.workers.append(worker)
        self._guard(worker, lambda: self._open(worker))

    def _open(self, worker: Worker) -> None:
        """Start the stages of a worker that do not run."""
        shop = Workshop(self.project, REGISTRY, ProcessFabric(self.fabric, worker.process))
        for found in self.plan.stages:
            if found.name not in worker.loops:
                loop = StageLoop(partial(self._build, shop, found), shop.fabric, self.clock)
                stack = ExitStack()
                worker.loops[found.name] = Loop(found, loop, stack)
                self._watched(worker, found.name, lambda loop=loop, stack=stack: loop.open(stack))

    def _build(self, shop: Workshop, found: StagePlan) -> StageParts:
        return replace(shop.build(self.plan, found), commit_every_ms=200)

    def turn(self, worker: Worker, name: str) -> None:
        loop = worker.loops[name].loop
        self._guard(worker, lambda: self._watched(worker, name, lambda: loop.turn(0)))

    def commit(self, worker: Worker, name: str) -> None:
        loop = worker.loops[name].loop
        self._guard(worker, lambda: self._watched(worker, name, loop.commit_now))

    def reopen(self, worker: Worker) -> None:
        self._guard(worker, lambda: self._open(worker))

    def leave(self, worker: Worker) -> None:
        """Close all in order."""

        def close_all() -> None:
            for name in list(worker.loops):
                self._close(worker, name)

        self._guard(worker, close_all)
        if worker in self.workers:
            self.workers.remove(worker)

    def kill(self, worker: Worker) -> None:
        if worker.process.alive:
            worker.process.die("between two turns")
        self._bury(worker)

    def expire(self, process: Process) -> None:
        """The group no longer waits for a dead process."""
        for consumer in process.consumers:
            self.fabric.evict(consumer)
        self.dead.remove(process)

    def freeze(self, worker: Worker) -> None:
        """It gets no time for too long, so that its group goes on without it; then it goes on, and does not know yet."""
        worker.stopped = self.rng.randint(1, 40)
        self.fabric.zombies += 1
        for consumer in worker.process.consumers:
            self.fabric.evict(consumer)

    # ---- how it ends

    def _watched(self, worker: Worker, name: str, call: Any) -> None:
        """Do something of a stage. What a fault brings about ends the stage alone, as in a worker."""
        try:
            call()
        except TransportError as error:
            if not self.fabric.hurt:
                raise Failed(f"{worker.process.name}.{name}: {error!r} without any fault") from error
            self.trace.append(f"  {worker.process.name}.{name} stops: {error!r}")
            worker.loops[name].loop.abandon()
            self._close(worker, name)

    def _close(self, worker: Worker, name: str) -> None:
        found = worker.loops.pop(name)
        try:
            found.stack.close()
        except TransportError as error:
            if not self.fabric.hurt:
                raise
            self.trace.append(f"  {worker.process.name}.{name} closes with {error!r}")

    def _guard(self, worker: Worker, call: Any) -> None:
        try:
            call()
        except Killed:
            self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        self.trace.append(f"  {worker.process.name} is dead: {worker.process.died_at}")
        self.fabric.hurt += 1
        for found in worker.loops.values():
            found.loop._close_states()
        worker.loops.clear()
        self.workers.remove(worker)
        self.dead.append(worker.process)

    def close(self) -> None:
        """Let go of what is left, whatever happened."""
        for worker in self.workers:
            worker.process.alive = False
            for found in worker.loops.values():
                found.loop._close_states()

    def settle(self) -> None:
        """No more faults: all comes to rest, then the inputs end."""
        self.fabric.outcome, self.fabric.failing = None, 0
        for process in list(self.dead):
            self.expire(process)
        for worker in self.workers:
            worker.process.fuse = worker.stopped = 0
        if not self.workers:
            self.join()
        self.feed(len(self._values))
        self._rest()
        for found in self.plan.stages:
            for worker in self.workers:
                worker.loops[found.name].loop.end_inputs()
            self._rest()

    def _rest(self) -> None:
        still = 0
        for _ in range(MAX_ROUNDS):
            before = self._progress()
            for worker in list(self.workers):
                if len(worker.loops) < len(self.plan.stages):
                    self.reopen(worker)
                for name in list(worker.loops):
                    self.turn(worker, name)
                    if name in worker.loops:
                        self.commit(worker, name)
            still = still + 1 if self._progress() == before else 0
            if still < 2:
                continue
            loops = [found.loop for worker in self.workers for found in worker.loops.values()]
            if any(not loop.idle and loop.due_ms is None for loop in loops):
                continue  # acknowledgements are under way
            # Retries before timers: a timer of tomorrow is not to be fired while something still comes.
            due = [d for loop in loops if (d := loop.due_ms) is not None]
            due = due or [d for loop in loops if (d := loop.timer_ms) is not None]
            if not due:
                return
            self.clock.now_s = max(self.clock.now_s + 0.001, min(due) / 1000 + 0.0005)
        raise Failed("it does not come to rest")

    def _progress(self) -> tuple[object, ...]:
        ends = tuple(p.end for t in self.fabric.stored.values() for p in t.partitions)
        loops = [(name, f.loop) for worker in self.workers for name, f in worker.loops.items()]
        return ends, tuple((name, loop.idle, loop.tasks) for name, loop in loops)


# ---------------------------------------------------------------- the schedule


def run_quietly(world: World) -> None:
    """One worker, no faults."""
    with simulated_time(world.clock):
        try:
            world.join()
            world.feed(len(world.sketch.records))
            world.settle()
        finally:
            world.close()


def run_wildly(world: World, most_faults: int) -> None:
    """Turns, clock moves and at most so many faults, then rest."""
    rng = world.rng
    with simulated_time(world.clock):
        try:
            faults = rng.randint(0, most_faults)
            for _ in range(rng.randint(1, 3)):
                world.join()
            for _ in range(rng.randint(20, 120)):
                if rng.random() < 0.12 and faults:
                    faults -= 1
                    _fault(world)
                else:
                    _step(world)
            world.trace.append("rest")
            world.settle()
        finally:
            world.close()


def _step(world: World) -> None:
    rng = world.rng
    chance = rng.random()
    if chance < 0.12 and not world.fed:
        count = rng.randint(1, 8)
        world.trace.append(f"feed {count}")
        world.feed(count)
        return
    if chance < 0.22:
        seconds = rng.choice((0.001, 0.02, 0.1, 0.3))
        world.trace.append(f"clock +{seconds}")
        world.clock.advance(seconds)
        return
    for worker in world.workers:
        worker.stopped -= worker.stopped > 0
        if worker.stopped == 1:
            _wake(world, worker)
            return
    running = [worker for worker in world.workers if not worker.stopped]
    places = [(worker, name) for worker in running for name in worker.loops]
    if not places:
        world.trace.append("start anew")
        for worker in running:
            world.reopen(worker)
        if not world.workers:
            world.join()
        return
    worker, name = rng.choice(places)
    does = world.commit if rng.random() < 0.12 else world.turn
    world.trace.append(f"{does.__name__} {worker.process.name}.{name}")
    does(worker, name)


def _wake(world: World, worker: Worker) -> None:
    """It goes on where it was: in the middle of something, as if nothing had been."""
    worker.stopped = 0
    for name in list(worker.loops):
        if world.rng.random() < 0.6 and name in worker.loops:
            world.trace.append(f"wakes and commits {worker.process.name}.{name}")
            world.commit(worker, name)


def _fault(world: World) -> None:
    rng = world.rng
    what = rng.choice(
        ("kill", "fuse", "fuse", "fuse", "join", "leave", "freeze", "freeze", "expire", "refused", "unknown", "failing")
    )  # fmt: skip
    awake = [worker for worker in world.workers if not worker.stopped]
    worker = rng.choice(awake) if awake else None
    world.trace.append(f"{what} {worker.process.name if worker else ''}")
    if what == "join" or worker is None:
        if len(world.workers) < MAX_WORKERS:
            world.join()
    elif what == "kill":
        world.kill(worker)
    elif what == "fuse":
        worker.process.fuse = rng.randint(1, 40)
    elif what == "leave":
        world.leave(worker)
    elif what == "freeze":
        world.freeze(worker)
    elif what == "expire":
        for process in list(world.dead):
            world.expire(process)
    elif what in ("refused", "unknown"):
        world.fabric.outcome = "refused" if what == "refused" else "unknown"
    else:
        world.fabric.failing = rng.randint(1, 10)
