"""Flows that leave a stage and come back, on the real broker: keyed anew, open to others, merged."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataflow.codecs import codec_for
from dataflow.codecs.keys import encode_key
from dataflow.codecs.values import coerce_records, to_jsonable
from dataflow.control.assemble import assemble
from dataflow.control.bounded import Source, run_files
from dataflow.control.connect import BOOTSTRAP_VARIABLE
from dataflow.control.deploy import deploy
from dataflow.core import headers, ids
from dataflow.core.schema import Schema
from dataflow.planner.plan import DEAD_LETTERS, REPLIES, EdgePlan, Plan
from dataflow.runtime.worker import Worker
from dataflow.runtime.workshop import Workshop
from dataflow.transport.api import EARLIEST, Header, Message
from dataflow.transport.kafka import KafkaFabric
from dataflow.transport.murmur import murmur2_partition
from tests.conftest import wait_for

pytestmark = pytest.mark.broker

Records = Sequence[Mapping[str, Any]]


class Flow:
    """The pipelines of one folder on the broker, and records in and out of them by hand."""

    def __init__(
        self,
        folder: Path,
        fabric: KafkaFabric,
        yaml: str,
        files: Mapping[str, str] = {},
        *,
        deployed: bool = False,
    ) -> None:
        self.folder = folder
        self.fabric = fabric
        place = folder / "pipelines" / "p"
        place.mkdir(parents=True)
        (folder / "dataflow.yaml").write_text("kind: Project\nname: flows\n")
        (place / "pipeline.yaml").write_text(yaml)
        for name, text in files.items():
            (place / name).write_text(text)
        environ = {**os.environ, BOOTSTRAP_VARIABLE: fabric.bootstrap} if deployed else os.environ
        assembled = assemble(folder, environ=environ)
        self.registry = assembled.registry
        self.plans = {plan.pipeline: plan for plan in assembled.plans}
        for plan in assembled.plans:
            deploy(fabric, plan)

    @contextmanager
    def working(self, *pipelines: str) -> Iterator[Worker]:
        """The pipelines (all when none is named) run in this process until the block is left."""
        shop = Workshop(self.folder, self.registry, self.fabric)
        worker = Worker(shop, [self.plans[p] for p in pipelines or self.plans])
        worker.start()
        try:
            yield worker
            assert not worker.failed
        finally:
            worker.stop()

    def edge(self, name: str, pipeline: str = "") -> EdgePlan:
        return (self.plans[pipeline] if pipeline else next(iter(self.plans.values()))).edges[name]

    def write(self, topic: str, edge: EdgePlan, records: Records) -> None:
        """Records of an edge's contract onto a topic, as any producer would write them."""
        producer = self.fabric.producer()
        for key, value in zip(keys_of(edge, records), encoded(edge.schema, edge.codec, records), strict=True):
            producer.send(topic, value, key)
        assert producer.flush(30) == 0
        producer.close()

    def ask(self, plan: Plan, record: Mapping[str, Any], request: str, timeout_s: float = 60) -> None:
        """A request as a gateway writes it; its answer goes to partition 0 of the topic of replies."""
        assert plan.answer is not None
        edge = plan.edges[plan.answer.input]
        now_ms = int(time.time() * 1000)
        producer = self.fabric.producer()
        (value,) = encoded(edge.schema, edge.codec, [record])
        head: list[Header] = [
            (headers.ID, ids.mint(now_ms)),
            (headers.REPLY_TO, f"{REPLIES}/0/{request}"),
            (headers.DEADLINE, str(now_ms + int(timeout_s * 1000))),
        ]
        producer.send(plan.answer.requests_topic, value, keys_of(edge, [record])[0], head)
        assert producer.flush(30) == 0
        producer.close()

    def messages(self, topic: str) -> list[Message]:
        """All that is committed on a topic, each partition in its order."""
        count = self.fabric.admin().describe([topic])[topic].partitions
        consumer = self.fabric.consumer()
        consumer.assign({(topic, n): EARLIEST for n in range(count)})
        ends = self.fabric.admin().offsets([(topic, n) for n in range(count)], -1)
        found: list[Message] = []
        reached = dict.fromkeys(ends, 0)
        while any(reached[p] < end for p, end in ends.items()):
            for message in consumer.poll(10_000, 0.2):
                found.append(message)
                reached[message.topic(), message.partition()] = message.offset() + 1
            reached.update(consumer.ends())
        consumer.close()
        return sorted(found, key=lambda m: (m.partition(), m.offset()))

    def records(self, edge: EdgePlan) -> list[dict[str, Any]]:
        values = [m.value() for m in self.messages(edge.topics[0])]
        decoded = codec_for(edge.codec, edge.schema).decode(values)
        return to_jsonable(edge.schema, decoded.columns, len(values))

    def count(self, edge: EdgePlan) -> int:
        return len(self.messages(edge.topics[0]))

    def reply(self, request: str) -> dict[str, bytes | None]:
        """Headers of the answer to a request, and its value under ``""``; waits for it."""

        def found() -> list[Message]:
            return [m for m in self.messages(REPLIES) if m.key() == request.encode()]

        wait_for(found, f"the answer to {request}")
        (message,) = found()
        return {**dict(message.headers() or ()), "": message.value()}


def encoded(schema: Schema, codec: str, records: Records) -> Sequence[bytes | None]:
    decoded = coerce_records(schema, records)
    assert not decoded.failed
    return codec_for(codec, schema).encode(decoded.columns, len(records)).values


def keys_of(edge: EdgePlan, records: Records) -> list[bytes | None]:
    return [encode_key(edge.schema, edge.key, r, edge.key_encoding) if edge.key else None for r in records]


def header(message: Message, name: str) -> bytes | None:
    return dict(message.headers() or ()).get(name)


REKEYED = """
kind: Topic
name: {name}.visits
key: visitor
partitions: 3
fields: {{visitor: string, shop: string, n: int64}}
---
kind: Pipeline
name: {name}
delivery: {delivery}
inputs: {{visit: {name}.visits}}
answer: {{from: [big, small], input: visit}}
deadline: 30s
nodes:
  shop: {{use: rekey, from: visit, with: {{key: shop, partitions: 5}}}}
  size: {{use: route.when, from: shop, with: {{large: n >= 50, little: n >= 0}}}}
  big: {{use: transform.select, from: size.large, with: {{keep: [shop, n]}}}}
  small: {{use: transform.select, from: size.little, with: {{keep: [shop, n]}}, isolate: true}}
"""


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_records_of_a_key_come_together_and_callers_are_answered_behind_it(
    tmp_path: Path, kafka: KafkaFabric, unique: str, delivery: str
) -> None:
    flow = Flow(tmp_path, kafka, REKEYED.format(name=unique, delivery=delivery))
    plan = flow.plans[unique]
    visits = [{"visitor": f"v{n % 7}", "shop": f"s{n % 11}", "n": n % 100} for n in range(400)]
    flow.write(f"{unique}.visits", plan.edges["visit"], visits)
    with flow.working():
        flow.ask(plan, {"visitor": "caller", "shop": "s1", "n": 77}, f"{unique}-big")
        flow.ask(plan, {"visitor": "caller", "shop": "s2", "n": 7}, f"{unique}-small")
        flow.ask(plan, {"visitor": "caller", "shop": "s3", "n": -7}, f"{unique}-none")
        big, small, none = (flow.reply(f"{unique}-{name}") for name in ("big", "small", "none"))
        wait_for(lambda: flow.count(plan.edges["shop"]) == 403, "all visits by shop")
        wait_for(lambda: flow.count(plan.edges["big"]) + flow.count(plan.edges["small"]) == 402, "the end")
    assert (big[headers.STATUS], big[headers.EDGE]) == (b"ok", b"big")
    assert (small[headers.STATUS], small[headers.EDGE]) == (b"ok", b"small")
    assert none[headers.STATUS] == b"dropped"
    lying: dict[bytes, list[bytes | None]] = {}
    for message in flow.messages(f"{unique}.shop"):
        key = message.key()
        assert key is not None
        assert murmur2_partition(key, 5) == message.partition()
        lying.setdefault(key, []).append(header(message, headers.ID))
    assert set(lying) == {f"s{n}".encode() for n in range(11)}
    assert len({i for found in lying.values() for i in found}) == 403
    for edge in ("big", "small"):
        after: dict[bytes | None, list[bytes | None]] = {}
        for message in flow.messages(f"{unique}.{edge}"):
            after.setdefault(message.key(), []).append(header(message, headers.ID))
        for key, found in after.items():
            kept = set(found)
            assert [i for i in lying[key or b""] if i in kept] == found


OPEN = """
kind: Topic
name: {name}.raw
key: n
partitions: 2
fields: {{n: int64}}
---
kind: Topic
name: {name}.late
key: n
partitions: 2
fields: {{n: int64}}
---
kind: Pipeline
name: {name}
inputs: {{raw: {name}.raw, late: {name}.late}}
nodes:
  clean: {{use: filter.when, from: raw, with: {{when: n >= 0}}, open: true}}
  all: {{use: transform.select, from: [clean, late], with: {{set: {{twice: n * 2}}}}}}
"""


def test_what_outsiders_write_to_an_open_edge_flows_on_with_ours_and_with_a_merged_stream(
    tmp_path: Path, kafka: KafkaFabric, unique: str
) -> None:
    flow = Flow(tmp_path, kafka, OPEN.format(name=unique))
    raw, late, clean, everything = (flow.edge(name) for name in ("raw", "late", "clean", "all"))
    with flow.working():
        flow.write(f"{unique}.raw", raw, [{"n": n} for n in range(-5, 10)])
        flow.write(f"{unique}.late", late, [{"n": n} for n in range(100, 110)])
        flow.write(f"{unique}.clean", clean, [{"n": n} for n in range(200, 210)])
        producer = kafka.producer()
        producer.send(f"{unique}.clean", b"\xff no record of the contract", b"k")
        producer.flush(30)
        producer.close()
        expected = [*range(10), *range(100, 110), *range(200, 210)]
        wait_for(lambda: flow.count(everything) == len(expected), "all records")
        wait_for(partial(_died, flow, f"{unique}.clean"), "the dead letter")
    found = flow.records(everything)
    assert sorted(r["n"] for r in found) == expected
    assert all(r["twice"] == 2 * r["n"] for r in found)
    assert flow.count(clean) == 10 + 10 + 1
    assert len({header(m, headers.ID) for m in flow.messages(f"{unique}.all")}) == len(expected)


def _died(flow: Flow, topic: str) -> bool:
    return any(header(m, headers.ERROR_TOPIC) == topic.encode() for m in flow.messages(DEAD_LETTERS))


FIRST = """
kind: Topic
name: {name}.raw
key: n
partitions: 2
fields: {{n: int64}}
---
kind: Pipeline
name: {name}
delivery: {delivery}
inputs: {{raw: {name}.raw}}
answer: [out]
deadline: 30s
nodes:
  twice: {{use: transform.select, from: raw, with: {{set: {{twice: n * 2}}}}}}
  out: {{use: transform.select, from: twice, with: {{set: {{thrice: n + twice}}}}}}
"""

SECOND = """
kind: Pipeline
name: {name}-more
delivery: {delivery}
inputs: {{half_way: {name}.twice}}
nodes:
  big: {{use: filter.when, from: half_way, with: {{when: twice >= 20}}}}
"""


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_pipeline_is_attached_to_the_middle_of_a_running_one_without_touching_it(
    tmp_path: Path, kafka: KafkaFabric, unique: str, delivery: str
) -> None:
    first = Flow(tmp_path / "one", kafka, FIRST.format(name=unique, delivery=delivery))
    plan = first.plans[unique]
    with first.working() as worker:
        first.write(f"{unique}.raw", plan.edges["raw"], [{"n": n} for n in range(20)])
        wait_for(lambda: first.count(plan.edges["out"]) == 20, "traffic before")
        before = running(worker)
        # The other project has none of the first one's files: all it knows is the plan on the cluster.
        second = Flow(tmp_path / "two", kafka, SECOND.format(name=unique, delivery=delivery), deployed=True)
        big = second.edge("big")
        with second.working() as other:
            for n in range(20, 30):
                first.ask(plan, {"n": n}, f"{unique}-{n}")
            first.write(f"{unique}.raw", plan.edges["raw"], [{"n": n} for n in range(30, 40)])
            assert first.reply(f"{unique}-29")[headers.STATUS] == b"ok"
            wait_for(lambda: second.count(big) == 30, "what the first one wrote, from the beginning")
            wait_for(lambda: first.count(plan.edges["out"]) == 40, "traffic after")
            assert [s.metrics.state for s in other.stages.values()] == ["running"]
        assert running(worker) == before
    assert sorted(r["twice"] for r in second.records(big)) == [2 * n for n in range(10, 40)]
    written = {header(m, headers.ID) for m in first.messages(f"{unique}.twice")}
    assert len(first.messages(f"{unique}.twice")) == len(written) == 40  # once, however many read it
    assert {header(m, headers.ID) for m in second.messages(big.topics[0])} < written
    # What belongs to the first pipeline's callers stays there.
    assert all(header(m, headers.REPLY_TO) is None for m in second.messages(big.topics[0]))


def running(worker: Worker) -> list[tuple[int, str, str]]:
    """Each stage's loop by identity, with its state and its last error: as long as it is not started anew, the same."""
    return [(id(s._loop), s.metrics.state, s.metrics.error) for s in worker.stages.values()]


LOOP = """
kind: Topic
name: {name}.numbers
key: name
partitions: 2
fields: {{name: string, n: int64, left: int64}}
---
kind: Pipeline
name: {name}
delivery: {delivery}
inputs: {{number: {name}.numbers}}
answer: {{from: [end.done, end.exhausted], input: number}}
deadline: 30s
nodes:
  less: {{use: transform.select, from: [number, end.again], with: {{set: {{left: left - 1}}}}}}
  far: {{use: transform.select, from: less, isolate: true}}
  end: {{use: loop.until, from: far, with: {{until: left <= 0, max_visits: 6}}}}
"""


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_records_go_round_through_several_stages_and_callers_wait_for_their_way_out(
    tmp_path: Path, kafka: KafkaFabric, unique: str, delivery: str
) -> None:
    flow = Flow(tmp_path, kafka, LOOP.format(name=unique, delivery=delivery))
    plan = flow.plans[unique]
    given: list[dict[str, Any]] = [{"name": f"k{n % 5}", "n": n, "left": n % 9} for n in range(90)]
    flow.write(f"{unique}.numbers", plan.edges["number"], given)
    with flow.working():
        flow.ask(plan, {"name": "caller", "n": 1000, "left": 4}, f"{unique}-done")
        flow.ask(plan, {"name": "caller", "n": 1001, "left": 40}, f"{unique}-exhausted")
        done, exhausted = (flow.reply(f"{unique}-{name}") for name in ("done", "exhausted"))
        ended = [plan.edges["end.done"], plan.edges["end.exhausted"]]
        wait_for(lambda: sum(map(flow.count, ended)) == 92, "all to leave the loop")
    assert (done[headers.STATUS], done[headers.EDGE]) == (b"ok", b"end.done")
    assert (exhausted[headers.STATUS], exhausted[headers.EDGE]) == (b"ok", b"end.exhausted")
    found = {r["n"]: r["left"] for edge in ended for r in flow.records(edge)}
    wanted = {r["n"]: r["left"] - min(max(r["left"], 1), 6) for r in given}
    assert found == {**wanted, 1000: 0, 1001: 34}
    rounds = [
        (header(m, headers.ID), header(m, headers.VISITS)) for m in flow.messages(f"{unique}.end.again")
    ]
    assert len(set(rounds)) == len(rounds) == sum(min(max(r["left"], 1), 6) - 1 for r in given) + 3 + 5


def test_a_bounded_run_ends_when_nothing_goes_round_any_more(
    tmp_path: Path, kafka: KafkaFabric, unique: str
) -> None:
    flow = Flow(tmp_path, kafka, LOOP.format(name=unique, delivery="at_least_once"))
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"name": "k{n}", "n": {n}, "left": {n % 8}}}\n' for n in range(40)))
    shop = Workshop(flow.folder, flow.registry, kafka)
    report = run_files(shop, flow.plans[unique], {"number": Source(str(source))}, {}, str(out))
    assert report.good
    assert (report.rows, report.out) == (40, 40)
    assert sorted(json.loads(line)["n"] for line in out.read_text().splitlines()) == list(range(40))
