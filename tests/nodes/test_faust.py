"""`agent.faust` and `distinct`: a real Faust app with a windowed table, killed while it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dataflow.control.assemble import Assembled, LintError, assemble
from dataflow.control.deploy import deploy
from dataflow.control.produce import TopicProducer
from dataflow.control.records import TapRecord
from dataflow.control.replay_plan import shadow_plan
from dataflow.control.streams import EdgeReader, find_stream, find_topic
from dataflow.core import headers, ids
from dataflow.core.errors import NodeError
from dataflow.core.schema import column_of
from dataflow.planner.plan import Plan, StagePlan
from dataflow.runtime.worker import Worker, lag_of
from dataflow.runtime.workshop import Workshop
from dataflow.testing import run_pipeline
from dataflow.transport.kafka import KafkaFabric
from nodes import _faust_host as host
from nodes.faust import AgentFaust, FaustApp
from tests.conftest import wait_for

YAML = """
kind: Topic
name: {name}.clicks
codec: json
key: page
partitions: 2
fields: {{page: string, n: int64}}
---
kind: Pipeline
name: {name}
inputs: {{click: {name}.clicks}}
nodes:
  counted:
    use: agent.faust
    from: click
    with: {{app: "counting:app", reads: clicks, writes: click-counts}}
    out: {{page: string, n: int64, count: int64, part: int64}}
  counts: {{use: distinct, from: counted}}
"""
APP = """
import faust

app = faust.App("counting", broker="kafka://nowhere:1", store="memory://", value_serializer="json")
clicks = app.topic("clicks")
counts = app.topic("click-counts")
seen = app.Table("seen", default=int).tumbling(3600.0, expires=7200.0)


@app.agent(clicks)
async def count(stream):
    async for click in stream:
        page = click["page"]
        seen[page] += 1
        for part in range(2):
            value = {"page": page, "n": click["n"], "count": seen[page].now(), "part": part}
            await counts.send(key=page, value=value)
"""


def write(folder: Path, name: str, yaml: str = YAML, app: str = APP) -> None:
    place = folder / "pipelines" / "clicks"
    place.mkdir(parents=True)
    (folder / "dataflow.yaml").write_text("kind: Project\n")
    (place / "pipeline.yaml").write_text(yaml.format(name=name))
    (place / "counting.py").write_text(app)


class Running:
    """The pipeline, in this process; the Faust app is a child of it."""

    def __init__(self, folder: Path, name: str, kafka: KafkaFabric, app: str = APP) -> None:
        write(folder, name, app=app)
        self.name = name
        self.kafka = kafka
        self.assembled: Assembled = assemble(folder, environ=os.environ)
        self.plan: Plan = self.assembled.plans[0]
        deploy(kafka, self.plan)
        self.shop = Workshop(folder, self.assembled.registry, kafka)
        self.worker = Worker(self.shop, [self.plan])

    def produce(self, numbers: range) -> None:
        stream = find_topic(f"{self.name}.clicks", {self.name: self.plan}, self.assembled.project)
        columns = {
            "page": column_of(stream.schema["page"].type, [f"p{n % 5}" for n in numbers]),
            "n": column_of(stream.schema["n"].type, list(numbers)),
        }
        with TopicProducer(self.kafka, stream) as producer:
            assert not producer.send(columns, len(numbers)).failed
            producer.flush()

    def agent(self) -> psutil.Process | None:
        """The process of the app."""
        for child in psutil.Process().children():
            if any(part.endswith("_faust_host.py") for part in child.cmdline()):
                return child
        return None

    def done(self, stage: StagePlan) -> bool:
        return lag_of(self.shop, self.plan, stage) == 0

    def records(self, edge: str) -> list[TapRecord]:
        return list(EdgeReader(self.kafka, find_stream(f"{self.name}.{edge}", {self.name: self.plan})))


@pytest.fixture
def running(tmp_path: Path, unique: str, kafka: KafkaFabric) -> Iterator[Running]:
    made = Running(tmp_path, unique, kafka)
    made.worker.start()
    yield made
    made.worker.stop()
    assert made.agent() is None


@pytest.mark.broker
@pytest.mark.timeout(300)
def test_killed_while_it_works_nothing_is_lost_and_nothing_there_twice(running: Running) -> None:
    running.produce(range(200))
    counts = running.shop.metrics.node(running.name, "counts", "distinct")
    wait_for(lambda: counts.records >= 100, "the first counts")
    killed = wait_for(running.agent, "the process of the app")
    assert isinstance(killed, psutil.Process)
    running.produce(range(200, 400))
    os.kill(killed.pid, signal.SIGKILL)
    running.produce(range(400, 600))
    for stage in running.plan.stages:  # the app first: what it wrote is there once it has committed
        wait_for(partial(running.done, stage), f"stage {stage.name} to have processed all")
    again = running.agent()
    assert again is not None
    assert again.pid != killed.pid

    once = running.records("counts")
    numbers = Counter((r.value["n"], r.value["part"]) for r in once if r.value is not None)
    assert set(numbers) == {(n, part) for n in range(600) for part in (0, 1)}
    assert set(numbers.values()) == {1}
    # The agent's own edge is at least once: what was in hand when it was killed is there again.
    all_of_it = running.records("counted")
    assert len(all_of_it) >= len(once)
    assert len(once) + counts.dropped.counts.get("repeated", 0) == len(all_of_it)
    # The table came back from its changelog: counts went on, they did not begin anew.
    largest = {r.value["page"]: r.value["count"] for r in once if r.value is not None}
    assert all(count >= 120 for count in largest.values())
    # Ids are those of children, and lead back to the record that was processed.
    asked = {r.id: f"{r.topic}/{r.partition}/{r.offset}/" for r in running.records("click")}
    assert len({r.id for r in once}) == len(once)
    for record in all_of_it:
        (parent,) = record.parents
        assert record.header(headers.SOURCE).decode().startswith(asked[parent])
    assert {p for r in all_of_it for p in r.parents} == set(asked)


@pytest.mark.broker
@pytest.mark.timeout(300)
def test_an_app_that_cannot_be_hosted_says_why(
    tmp_path: Path, unique: str, kafka: KafkaFabric, caplog: pytest.LogCaptureFixture
) -> None:
    made = Running(
        tmp_path, unique, kafka, app=APP.replace("@app.agent(clicks)", "@app.agent(clicks, concurrency=2)")
    )
    stage = made.worker.stages[unique, "counted"]
    made.worker.start()
    try:
        wait_for(lambda: "concurrency beyond 1" in caplog.text, "the reason")
        wait_for(lambda: "ended with 1" in stage.metrics.error, "the failure of the stage")
    finally:
        made.worker.stop()


# ---------------------------------------------------------------- what it marks


def event(topic: str = "in", offset: int = 7, carried: Any = None) -> Any:
    message = SimpleNamespace(topic=topic, partition=0, offset=offset, timestamp=1.5, headers=carried)
    return Event(message)


class Event:
    """An event as far as the host looks at it; weakly referenced, as Faust's are."""

    def __init__(self, message: Any) -> None:
        self.message = message


def test_what_is_sent_again_bears_the_same_marks() -> None:
    marker = host.Marker("p/agent", "p@1/agent", {"in/0": 5})
    first, again, other = event(), event(), event(offset=8)

    def marks(found: Any, topic: str = "out") -> tuple[bytes, bytes, bytes]:
        made = marker.headers(found, "count", topic, {"mine": b"1"})
        assert made["mine"] == b"1"
        return made[headers.ID], made[headers.SOURCE], made[headers.PARENTS]

    two = [marks(first), marks(first), marks(first, "elsewhere")]
    assert [source for _, source, _ in two] == [b"in/0/7/count:0", b"in/0/7/count:1", b"in/0/7/count:0"]
    assert len({record_id for record_id, _, _ in two}) == 3
    assert [marks(again), marks(again), marks(again, "elsewhere")] == two
    (parent,) = ids.of_positions(5, [1_500], [7])
    assert {p for _, _, p in two} == {parent}
    assert marks(other)[1] == b"in/0/8/count:0"


def test_headers_travel_on_and_marks_through_the_apps_own_topics() -> None:
    marker = host.Marker("p/agent", "p@1/agent", {"in/0": 5})
    record_id = ids.mint(1_000)
    found = event(
        carried=[(headers.ID, record_id), ("traceparent", b"t"), (headers.REPLY_TO, b"r"), ("gone", None)]
    )
    made = marker.headers(found, "first", "between", {})
    assert made[headers.PARENTS] == record_id
    assert made["traceparent"] == b"t"
    assert made[headers.ORIGIN] == b"p@1/agent"
    assert {headers.REPLY_TO, "gone", headers.SCHEMA}.isdisjoint(made)
    between = event("between", 99, made)
    last = marker.headers(between, "second", "out", {})
    assert last[headers.SOURCE] == b"in/0/7/first:0/second:0"
    assert last[headers.PARENTS] == made[headers.ID]
    # What nobody marked has no source: it is known by its place alone.
    assert marker.headers(event("between"), "second", "out", {"mine": b"1"}) == {"mine": b"1"}


def test_topics_are_those_of_the_engine() -> None:
    topic = host.renaming(lambda _app, *names, **_options: names, {"a": ("x.a", "x.requests")})
    assert topic(None, "a", "b") == ("x.a", "x.requests", "b")


def test_settings_that_are_the_engines() -> None:
    seen: dict[str, Any] = {}
    make = host.settled(
        lambda _self, name, **options: seen.update(options, id=name), "group", {"broker": ["b"]}
    )
    make(None, "theirs", broker="kafka://theirs", commit_interval=9, store="memory://")
    assert seen == {"id": "group", "broker": ["b"], "store": "memory://"}


# ---------------------------------------------------------------- what lint says


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("codec: json", "codec: avro", "'agent.faust' reads json, and 'click' is avro"),
        (
            "    out: {{page: string, n: int64, count: int64, part: int64}}\n",
            "",
            "what the app writes is not declared",
        ),
        ("inputs:", "delivery: exactly_once\ninputs:", "no more than at least once"),
        ("inputs:", "answer: {{from: counts}}\ninputs:", "a caller would wait for node 'counted'"),
        ("use: agent.faust", "use: agent.faust\n    write: off", "writes its records itself"),
        ("counting:app", "counting", "'counting' does not name a faust.App"),
    ],
)
def test_lint_finds_what_cannot_be(tmp_path: Path, old: str, new: str, told: str) -> None:
    write(tmp_path, "p", YAML.replace(old, new))
    with pytest.raises(LintError) as found:
        assemble(tmp_path, environ=os.environ)
    assert told in str(found.value)


def test_it_is_a_stage_by_itself_and_read_from_kafka(tmp_path: Path) -> None:
    write(tmp_path, "p")
    (plan,) = assemble(tmp_path, environ=os.environ).plans
    agent, after = plan.stages
    assert (agent.nodes, agent.outside, agent.reads) == (("counted",), True, ("click",))
    assert (after.nodes, after.outside, after.reads) == (("counts",), False, ("counted",))
    assert plan.edges["counted"].codec == "json"
    assert plan.edges["counted"].partitions == 2


def test_it_is_off_in_replays_and_replayed_from(tmp_path: Path) -> None:
    write(tmp_path, "p")
    made = assemble(tmp_path, environ=os.environ)
    (plan,) = made.plans
    off = shadow_plan(plan, plan, made.registry, "", "dataflow.replay-1.").off
    assert off == {"counted": "agent.faust has effects outside", "counts": "it needs what 'counted' gives"}
    assert list(shadow_plan(plan, plan, made.registry, "counted", "dataflow.replay-1.").compared) == [
        "counts"
    ]


def test_faust_is_imported_by_its_own_process_alone() -> None:
    program = (
        "import sys; from dataflow.registry import Registry; from dataflow.runtime.worker import Worker; "
        "kind = Registry.default().get('agent.faust'); sys.exit('faust' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.faust.PathFinder.find_spec", lambda _name: None)
    settings = FaustApp(app="a:b", reads="c", writes="d")
    with pytest.raises(NodeError, match="extra faust"):
        AgentFaust(settings, SimpleNamespace(node="n")).open()  # type: ignore[arg-type]  # it looks at no more


def test_what_it_would_write_is_given_in_tests(tmp_path: Path) -> None:
    write(tmp_path, "p")
    made = assemble(tmp_path, environ=os.environ)
    given = [{"page": "a", "n": n, "count": n, "part": 0} for n in range(5)]
    found = run_pipeline(tmp_path, made.plans[0], made.registry, {"counted": given})
    assert found.edges["counts"] == given
