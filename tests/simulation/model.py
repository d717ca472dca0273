"""The reference: what a pipeline means, in lists and dictionaries. Nothing of the engine is used here.

All that the generated nodes do concerns one `k` at a time, so each `k` is thought through by itself, in the order of its
records. A record is named by (k, n) throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.pipelines import TOPIC, WINDOW_MS, Node, Sketch

Record = dict[str, Any]
ATTEMPTS = 4


@dataclass
class Meaning:
    """Records by edge, in order for each `k`; what failed, as (node, k, n); and what counting nodes know, by node and key."""

    edges: dict[str, list[Record]] = field(default_factory=dict)
    failed: list[tuple[str, str, int]] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)


def meaning_of(sketch: Sketch) -> Meaning:
    """What is to be on each edge."""
    made = Meaning({TOPIC: [dict(record) for record in sketch.records]})
    key_of = {TOPIC: "k"}
    for node in sketch.nodes:
        source = node.reads.get("in", "")
        key = key_of.get(source, "k")
        records = made.edges.get(source, [])
        for name, result in _run(node, records, key, made).items():
            made.edges[name] = result
            key_of[name] = node.settings["key"] if node.use == "rekey" else _key(node, key_of)
    return made


def _key(node: Node, key_of: Mapping[str, str]) -> str:
    return key_of[next(iter(node.reads.values()))]


def _run(node: Node, records: list[Record], key: str, made: Meaning) -> dict[str, list[Record]]:
    name, settings = node.name, node.settings
    match node.use:
        case "transform.select":
            return {name: [_selected(record, settings) for record in records]}
        case "sim.flaky":
            good = [record for record in records if not _fails(record, name)]
            made.failed += [(name, r["k"], r["n"]) for r in records if _fails(r, name)]
            return {name: good}
        case "filter.when":
            return {name: [r for r in records if _true(settings["when"], r)]}
        case "route.when":
            yes = [_true(settings["a"], r) for r in records]
            return {
                f"{name}.a": [r for r, y in zip(records, yes, strict=True) if y],
                f"{name}.b": [r for r, y in zip(records, yes, strict=True) if not y],
            }
        case "sim.count":
            return {name: [_counted(record, key, name, made) for record in records]}
        case "window.tumbling":
            return {name: _windows(records)}
        case "rekey" | "batch.window":
            return {name: records}
        case "each.split":
            return {
                name: [
                    {"k": r["k"], "n": r["n"], "item": v, "index": i}
                    for r in records
                    for i, v in enumerate(r["items"])
                ],
                f"{name}.parents": records,
            }
        case "each.gather":
            return {name: _gathered(made.edges[node.reads["items"]], made.edges[node.reads["of"]])}
        case "join.by_id":
            return {name: _joined(made.edges[node.reads["a"]], made.edges[node.reads["b"]], settings["how"])}
    raise AssertionError(node.use)


def _selected(record: Record, settings: Mapping[str, Any]) -> Record:
    changed = dict(record)
    for name, text in settings.get("set", {}).items():
        if name == "item":
            changed["item"] = record["item"] * 2
            continue
        times, plus = map(int, re.findall(r"\d+", text)[:2])
        changed[name] = (record["v"] * times + plus) % 1000
    for name in settings.get("drop", ()):
        changed.pop(name, None)
    return changed


def _true(text: str, record: Record) -> bool:
    found = re.fullmatch(r"(\w+) % (\d+) (!=|==|<) (\d+)", text)
    assert found is not None, text
    left, right = record[found[1]] % int(found[2]), int(found[4])
    return bool({"!=": left != right, "==": left == right, "<": left < right}[found[3]])


def _fails(record: Record, node: str) -> bool:
    what, _, rest = record["do"].partition(":")
    name, _, times = rest.partition(":")
    return name == node and (what == "poison" or int(times) >= ATTEMPTS)


def _counted(record: Record, key: str, node: str, made: Meaning) -> Record:
    count = made.counts.get((node, record[key]), 0) + 1
    made.counts[node, record[key]] = count
    return {**record, "c": count}


def _windows(records: list[Record]) -> list[Record]:
    panes: dict[tuple[int, str], Record] = {}
    for record in records:
        place = (record["at"] // WINDOW_MS * WINDOW_MS, record["k"])
        pane = panes.setdefault(place, {"k": record["k"], "start": place[0], "records": 0, "total": 0})
        pane["records"] += 1
        pane["total"] += record["v"]
    return [panes[place] for place in sorted(panes)]


def _gathered(items: list[Record], parents: list[Record]) -> list[Record]:
    parts: dict[tuple[str, int], list[int]] = {}
    for item in items:
        parts.setdefault((item["k"], item["n"]), []).append(item["item"])
    return [{**parent, "parts": parts.get((parent["k"], parent["n"]), [])} for parent in parents]


def _joined(left: list[Record], right: list[Record], how: str) -> list[Record]:
    there = {(r["k"], r["n"]): r["v"] for r in right}
    return [
        {**r, "b_v": there.get((r["k"], r["n"]))} for r in left if how == "outer" or (r["k"], r["n"]) in there
    ]
