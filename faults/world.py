"""Everything that runs during a run, and what it takes to say that all is well again."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import confluent_kafka as ck
import httpx

from faults.callers import Callers
from faults.cluster import Brokers
from faults.expired import Step
from faults.feeder import Feeder
from faults.processes import Agent, Crew, Stable, free_port, shown
from faults.project import FACTORS, write_project
from faults.reader import Reader
from faults.story import EDGES, Story
from faults.watch import Group, Place, Watch
from faults.wire import Schemas

_LOOK_S: Final = 0.5
_START_S: Final = 120.0

_HANDED: Final = re.compile(r"^dataflow_stage_handed_total\{[^}]*\} (\S+)", re.MULTILINE)
FIRST_STAGE: Final = tuple(e.topic for e in EDGES["flow"] if e.topic != "flow.last")
GROUPS: Final = (
    Group("dataflow.flow.sane", ("flow.events",), FIRST_STAGE, "flow"),
    Group("dataflow.flow.last", ("flow.whole",), ("flow.last",), "flow"),
    Group(
        "dataflow.kept.tally",
        ("kept.events",),
        tuple(e.topic for e in EDGES["kept"] if e.topic != "kept.counted"),
        "flow",
    ),
    Group("dataflow.kept.counted", ("kept.lots",), ("kept.counted",), "flow"),
    Group("dataflow.plain.tag", ("plain.events",), ("plain.tag",), "plain"),
    Group("dataflow.plain.next", ("plain.tag",), ("plain.next",), "plain"),
    Group("dataflow.asked.done", ("asked.events", "asked.requests"), ("asked.done",), "flow"),
    Group("dataflow.handed.done", ("handed.events", "handed.requests"), ("handed.done",), "gateway"),
)
SHARES: Final = {"flow.events": 4 / 7, "kept.events": 2 / 7, "plain.events": 1 / 7}
"""What part of a run's records each input gets."""
TOPICS: Final = (*SHARES, *(e.topic for p in EDGES.values() for e in p))
"""What the concurrent reader reads."""


# Which workers do what; with mutants each pipeline has its own, that others are not condemned with it.
_TOGETHER: Final = {"flow": ("flow", "kept", "asked"), "plain": ("plain",)}
_APART: Final = {"flow": ("flow", "asked"), "kept": ("kept",), "plain": ("plain",)}


class Waits:
    """For what all the looks of one settling waited, and for how long."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, wrong: str, seconds: float) -> None:
        """`wrong` is what a look found: of it, only who it was about counts."""
        self._seconds[wrong.partition(" stands at ")[0].partition(":")[0]] += seconds

    def __str__(self) -> str:
        """The longest first; those of less than two seconds are not worth it."""
        longest = sorted(self._seconds.items(), key=lambda waited: -waited[1])
        return ", ".join(f"{seconds:.0f} s for {what}" for what, seconds in longest if seconds >= 2)


@dataclass(frozen=True)
class Sizes:
    """Of a run. `records` are those of all inputs together, see `SHARES`."""

    nodes: int
    workers: int
    gateways: int
    callers: int
    records: int


class World:
    """See the module. `close` ends all of it."""

    def __init__(
        self, folder: Path, sizes: Sizes, seed: int, mutants: Mapping[str, str], *, patched: bool = True
    ) -> None:
        self.folder = folder
        self._patched = patched
        self.sizes = sizes
        self.story = Story(seed, sizes.records)
        self.wrong: list[str] = []
        """What the faults themselves found to be wrong."""
        self.waits = Waits()
        self.holes = ""
        """What was tried of holes in the log."""
        self.steps: list[Step] = []
        """How the clocks were set."""
        self.factors = [FACTORS[0]]
        """What the versions of the model multiply by, in the order in which they were deployed."""
        self._stack = ExitStack()
        try:
            self._build(mutants)
        except BaseException:
            self._stack.close()
            raise

    def _build(self, mutants: Mapping[str, str]) -> None:
        sizes, folder = self.sizes, self.folder
        self.version = 0
        self.project = write_project(folder / "project")
        self.brokers = Brokers(folder / "brokers", sizes.nodes)
        self._stack.callback(self.brokers.close)
        self.stable = Stable(folder / "agents", self.project, self._patched)
        self._stack.callback(self.stable.close)
        self.deploy()
        self.crews = {
            name: self._crew(name, pipelines, mutants.get(name, ""))
            for name, pipelines in (_APART if mutants else _TOGETHER).items()
        }
        self.gateways: list[tuple[Agent, str]] = []
        self._gateway_mutant = mutants.get("gateway", "")
        for crew in self.crews.values():
            crew.fill()
        self.fill_gateways()
        schemas = Schemas(self.brokers.bootstrap)
        self.watch = Watch(self.brokers.bootstrap, GROUPS, lambda: self.agents)
        self.reader = Reader(self.brokers.bootstrap, folder / "seen.npz", TOPICS)
        self._stack.callback(self.reader.close)
        self.feeder = Feeder(self.brokers.bootstrap, schemas, self.story, SHARES)
        for _, url in self.gateways:
            self._await_ready(url)
        self.callers = Callers(lambda place: self.gateways[place % len(self.gateways)][1], sizes.callers)
        self.watch.start()

    def _crew(self, name: str, pipelines: Sequence[str], mutant: str) -> Crew:
        arguments = ["worker", "--bootstrap", self.brokers.door]
        arguments += [x for pipeline in pipelines for x in ("--pipeline", pipeline)]
        return Crew(self.stable, name, arguments, 1 if name == "plain" else self.sizes.workers, mutant)

    @property
    def agents(self) -> Sequence[Agent]:
        return [a for c in self.crews.values() for a in c.members] + [g for g, _ in self.gateways]

    def deploy(self) -> None:
        self.stable.run("deploy", "--bootstrap", self.brokers.bootstrap)

    def fill_gateways(self) -> None:
        """Start the gateways that are missing, each at the port of the one before it."""
        for place in range(self.sizes.gateways):
            if place < len(self.gateways):
                agent, url = self.gateways[place]
                if agent.running:
                    continue
                port = int(url.rsplit(":", 1)[1])
                self.gateways[place] = (self._gateway(port), url)
            else:
                port = free_port()
                self.gateways.append((self._gateway(port), f"http://127.0.0.1:{port}"))

    def _gateway(self, port: int) -> Agent:
        # Requests to `handed` are handed over in memory; those to `asked` are shared with the workers, by way of Kafka.
        arguments = ["serve", "--pipeline", "asked", "--pipeline", "handed", "--no-grpc"]
        arguments += ["--bootstrap", self.brokers.door, "--port", str(port)]
        return self.stable.start("gateway", arguments, mutant=self._gateway_mutant)

    def handed(self) -> int:
        """How many requests were handed over in memory, by the gateways of the moment."""
        told = [httpx.get(f"{url}/metrics", timeout=10).text for _, url in self.gateways]
        return sum(int(float(n)) for text in told for n in _HANDED.findall(text))

    def _await_ready(self, url: str) -> None:
        agent = next(a for a, known in self.gateways if known == url)
        shown(agent, "Ctrl-C", _START_S)

    def set_clock(self, offset_s: float) -> None:
        """Let the wall clock of all processes be wrong by this from now on."""
        (self.project / "clock").write_text(str(offset_s))
        self.steps.append(Step(time.time(), offset_s))

    def heal(self) -> None:
        """Undo whatever a fault left: brokers run, the network passes, the frozen are thawed, the dead replaced."""
        (self.project / "slow").unlink(missing_ok=True)
        if self.steps and self.steps[-1].offset_s:
            self.set_clock(0.0)
        for node in self.brokers.nodes:
            if not node.pid:
                node.start()
        for crew in self.crews.values():
            crew.fill()
            while len(crew.members) > crew.size:
                crew.end(crew.members[0])
        self.fill_gateways()

    def settle(self, timeout_s: float) -> str:
        """Wait until every partition has one owner, and has been committed further since, or to its end.

        "" when that came in time, else what is not so.
        """
        deadline = time.monotonic() + timeout_s
        self.waits = Waits()
        marks: dict[str, dict[Place, int]] = {}
        wrong = "nothing was looked at"
        while (began := time.monotonic()) < deadline:
            self.heal()
            try:
                wrong = ""
                for name in self.watch.groups:
                    wrong = wrong or self._unsettled(name, marks)
                if not wrong:
                    return ""
            except ck.KafkaException as error:
                wrong = f"the cluster does not answer: {error}"
            time.sleep(_LOOK_S)
            self.waits.add(wrong, time.monotonic() - began)
        return wrong

    def _unsettled(self, group: str, marks: dict[str, dict[Place, int]]) -> str:
        owners = self.watch.owners(group)
        if any(count != 1 for count in owners.values()):
            return f"owners of {group}: {owners}"
        committed = self.watch.committed(group)
        mark = marks.setdefault(group, committed)
        if standing := [p for p, offset in committed.items() if offset == mark[p]]:
            ends = self.watch.ends(standing)
            still = {p: (committed[p], ends[p]) for p in standing if committed[p] < ends[p]}
            if still:
                return f"group {group} stands at {still}"
        return ""

    def tell_state(self, name: str) -> None:
        """Have workers say what they have in hand; put aside what clients say of themselves (FAULTS_STATS), and groups."""
        for crew in self.crews.values():
            for agent in crew.members:
                if agent.working:
                    agent.signal(signal.SIGUSR1)
        for path in self.stable.folder.glob("*/stats-*"):
            kept = self.folder / "stuck" / name / path.parent.name / path.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, kept)
        groups = self.folder / "stuck" / name / "groups.json"
        groups.parent.mkdir(parents=True, exist_ok=True)
        groups.write_text(json.dumps({group: self._members(group) for group in self.watch.groups}, indent=1))

    def _members(self, group: str) -> object:
        try:
            return self.watch.members(group)
        except ck.KafkaException as error:
            return f"no answer: {error}"

    def drained(self, timeout_s: float) -> str:
        """Wait until all groups are at the end of what they read; "" or who is not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.heal()
            behind = [name for name in self.watch.groups if not self.watch.finished(name)]
            if not behind and self.feeder.done:
                return ""
            time.sleep(_LOOK_S)
        return f"not at the end: {', '.join(behind) or 'the feeder'}"

    def close(self) -> None:
        with suppress(AttributeError):  # what was never built
            self.callers.close()
            self.feeder.close()
            self.watch.close()
        self._stack.close()
