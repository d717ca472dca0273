"""Pipelines made up from a seed: what is declared, what is fed, and how each node is to be thought of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from dataflow.planner.build import build_plan
from dataflow.planner.plan import Plan
from dataflow.planner.resolve import resolve
from dataflow.spec import load_project
from tests.simulation.kinds import ATTEMPTS, REGISTRY

TOPIC: Final = "records"
START_MS: Final = 1_704_067_200_000
WINDOW_MS: Final = 10_000
FIELDS: Final = {
    "k": "string",
    "n": "int64",
    "v": "int64",
    "c": "int64",
    "g": "string",
    "u": "string",
    "do": "string",
    "items": {"type": "list", "items": {"type": "int64"}},
    "at": {"type": "timestamp", "event_time": True},
}


@dataclass(frozen=True)
class Edge:
    """A stream of the pipeline that may be built upon.

    ordered     the records of a `k` are in the order of their `n`, on one partition
    by_key      the record key is one with `k`
    in_time     event time does not go back on a partition
    """

    name: str
    ordered: bool = True
    by_key: bool = True
    in_time: bool = True


@dataclass(frozen=True)
class Node:
    """A node as declared, and its edges: `reads` by port."""

    name: str
    use: str
    reads: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    isolate: bool = False


@dataclass(frozen=True)
class Sketch:
    """A pipeline of a seed, with its input: records with the partition each is written to."""

    seed: int
    delivery: str
    partitions: int
    nodes: tuple[Node, ...]
    unordered: frozenset[str]
    records: tuple[Mapping[str, Any], ...] = ()

    def yaml(self, *, fused: bool = False) -> str:
        """The declaration (JSON is YAML). `fused`: nothing is isolated, so that the reference runs in few stages."""
        nodes = {}
        for node in self.nodes:
            source: Any = dict(node.reads) if list(node.reads) != ["in"] else node.reads["in"]
            body: dict[str, Any] = {"use": node.use, "from": source, "with": dict(node.settings), **node.more}
            if node.isolate and not fused:
                body["isolate"] = True
            nodes[node.name] = body
        lines = [f"  {name}: {json.dumps(body)}" for name, body in nodes.items()]
        head = f"kind: Pipeline\nname: p\ninputs: {{{TOPIC}: {TOPIC}}}\ndelivery: {self.delivery}\nnodes:\n"
        return head + "\n".join(lines) + "\n"

    def plan(self, folder: Path, *, fused: bool = False) -> Plan:
        """The pipeline planned, its files in `folder`."""
        place = folder / "pipelines" / "p"
        place.mkdir(parents=True, exist_ok=True)
        (folder / "dataflow.yaml").write_text("kind: Project\nname: test\n")
        topic = {"kind": "Topic", "name": TOPIC, "key": "k", "partitions": self.partitions, "fields": FIELDS}
        (place / "topic.yaml").write_text(json.dumps(topic))
        (place / "pipeline.yaml").write_text(self.yaml(fused=fused))
        project = load_project(folder, environ={})
        resolved = resolve(project, "p", REGISTRY)
        assert not resolved.problems, (self.yaml(), resolved.problems)
        return build_plan(project, resolved, {}, "code")


class _Maker:
    """Adds nodes to a sketch, each to an edge that is there."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(f"pipeline {seed}")
        self.away = Random(f"keyed anew {seed}")
        self.nodes: list[Node] = []
        self.edges = [Edge(TOPIC)]
        self.unordered: set[str] = set()

    def add(self, use: str, source: Edge, settings: Mapping[str, Any], **more: Any) -> str:
        name = f"n{len(self.nodes)}"
        isolate = self.rng.random() < 0.35
        self.nodes.append(Node(name, use, {"in": source.name}, settings, more, isolate))
        return name

    def made(self, name: str, like: Edge, **changed: Any) -> Edge:
        edge = replace(like, name=name, **changed)
        self.edges.append(edge)
        if not edge.ordered:
            self.unordered.add(name)
        return edge

    # One of these for each kind: it says what edges there are then.
    def select(self, source: Edge) -> None:
        rng = self.rng
        text = f"(v * {rng.randint(1, 5)} + {rng.randint(0, 9)}) % 1000"
        self.made(self.add("transform.select", source, {"set": {"v": text}}), source)

    def flaky(self, source: Edge) -> None:
        name = self.add("sim.flaky", source, {}, retry={"attempts": ATTEMPTS, "backoff": "200ms"})
        self.made(name, source, in_time=False)

    def filter(self, source: Edge) -> None:
        name = self.add("filter.when", source, {"when": f"v % 3 != {self.rng.randint(0, 2)}"})
        self.made(name, source)

    def route(self, source: Edge) -> None:
        rule = self.rng.choice(("v % 2 == 0", "v % 5 < 2"))
        name = self.add("route.when", source, {"a": rule, "b": "otherwise"})
        self.made(f"{name}.a", source)
        self.made(f"{name}.b", source)

    def count(self, source: Edge) -> None:
        if source.ordered and source.by_key:
            self.made(self.add("sim.count", source, {}), source)
        else:
            self.select(source)

    def window(self, source: Edge) -> None:
        if not (source.ordered and source.by_key):
            self.filter(source)
            return
        delay = "0s" if source.in_time and self.rng.random() < 0.5 else "365d"
        aggregate = {"records": "count", "total": "sum(v)"}
        settings = {"size": f"{WINDOW_MS // 1000}s", "delay": delay, "aggregate": aggregate}
        self.add("window.tumbling", source, settings, keep=["k"])

    def rekey(self, source: Edge) -> None:
        key = self.rng.choice(("g", "u"))
        name = self.add("rekey", source, {"key": key, "partitions": self.rng.randint(1, 3)})
        self.made(name, source, by_key=source.by_key and key == "u", in_time=False)

    def batch(self, source: Edge) -> None:
        settings = {"size": self.rng.randint(2, 5), "wait": f"{self.rng.choice((50, 400))}ms"}
        self.made(self.add("batch.window", source, settings), source)

    def fan(self, source: Edge) -> None:
        first = len(self.nodes)
        split = self.add("each.split", source, {"field": "items", "as": "item"}, keep=["k", "n"])
        twice = self.add("transform.select", Edge(split), {"set": {"item": "item * 2"}})
        away = self.away.random() < 0.3
        moved = self.add("rekey", Edge(twice), {"key": "index"}) if away else twice
        kept = self.add("filter.when", Edge(moved), {"when": "item % 3 != 0"})
        reads = {"items": kept, "of": f"{split}.parents"}
        gather = f"n{len(self.nodes)}"
        settings = {"fields": {"parts": "item"}, "on_missing": "skip"}
        self.nodes.append(Node(gather, "each.gather", reads, settings))
        # Items of another stage: what is complete first comes first.
        apart = away or any(node.isolate for node in self.nodes[first:])
        edge = replace(source, ordered=source.ordered and not apart, in_time=source.in_time and not apart)
        if not source.ordered:
            self.unordered |= {split, f"{split}.parents", twice, kept}
        if away:
            self.unordered |= {moved, kept}
        if not edge.ordered:
            self.unordered.add(gather)
        self.made(self.add("transform.select", Edge(gather), {"drop": ["parts", "count"]}), edge)

    def join(self, source: Edge) -> None:
        first = len(self.nodes)
        if self.rng.random() < 0.5:
            self.flaky(source)
        else:
            self.select(source)
        left = self.edges.pop()
        self.filter(source)
        right = self.edges.pop()
        how = self.rng.choice(("inner", "outer"))
        name = f"n{len(self.nodes)}"
        settings: dict[str, Any] = {"how": how, "select": {"b": ["v"]}, "prefix": {"b": "b_"}}
        if how == "outer":
            settings["required"] = ["a"]
        self.nodes.append(Node(name, "join.by_id", {"a": left.name, "b": right.name}, settings))
        # Sides of different stages: what is complete first comes first.
        apart = any(node.isolate for node in self.nodes[first:])
        edge = replace(source, ordered=source.ordered and not apart, in_time=False)
        self.made(self.add("transform.select", Edge(name), {"drop": ["b_v"]}), edge)
        if not edge.ordered:
            self.unordered.add(name)


_KINDS: Final[tuple[tuple[Callable[[_Maker, Edge], None], int], ...]] = (
    (_Maker.select, 2),
    (_Maker.flaky, 3),
    (_Maker.filter, 2),
    (_Maker.route, 2),
    (_Maker.count, 5),
    (_Maker.window, 3),
    (_Maker.rekey, 2),
    (_Maker.batch, 2),
    (_Maker.fan, 1),
    (_Maker.join, 2),
)


def sketch_of(seed: int) -> Sketch:
    """The pipeline of a seed."""
    maker = _Maker(seed)
    rng = maker.rng
    for _ in range(rng.randint(1, 4)):
        # As a rule the last one goes on: chains show more than stars.
        source = maker.edges[-1] if rng.random() < 0.75 else rng.choice(maker.edges)
        (kind,) = rng.choices([k for k, _ in _KINDS], [w for _, w in _KINDS])
        kind(maker, source)
    delivery = rng.choice(("exactly_once", "exactly_once", "at_least_once"))
    partitions = rng.choice((1, 1, 2, 2, 3, 4))
    nodes = tuple(maker.nodes)
    records = tuple(_records(rng, [node.name for node in nodes if node.use == "sim.flaky"]))
    return Sketch(seed, delivery, partitions, nodes, frozenset(maker.unordered), records)


def _records(rng: Random, flaky: list[str]) -> list[dict[str, Any]]:
    """Records with a counter per key; few of them fail, each at one node."""
    made: list[dict[str, Any]] = []
    counters: dict[str, int] = {}
    time_ms = START_MS
    keys = [f"k{i}" for i in range(rng.randint(1, 6))]
    for _ in range(rng.randint(4, 40)):
        key = rng.choice(keys)
        counters[key] = counters.get(key, 0) + 1
        time_ms += rng.choice((0, 500, 1_000, 4_000))
        do = ""
        if flaky and rng.random() < 0.2:
            node = rng.choice(flaky)
            do = f"poison:{node}" if rng.random() < 0.3 else f"flaky:{node}:{rng.choice((1, 2, 3, 9))}"
        made.append({
            "k": key, "n": counters[key], "v": rng.randint(0, 999), "c": 0,
            "g": f"g{int(key[1:]) % 2}", "u": f"u-{key}", "do": do,
            "items": [rng.randint(0, 9) for _ in range(rng.randint(0, 3))],
            "at": time_ms,
        })  # fmt: skip
    return made
