"""What a run left on the log, against what it should have left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dataflow.codecs import codec_for
from dataflow.codecs.values import to_jsonable
from dataflow.core import headers
from dataflow.planner.plan import DEAD_LETTERS, Plan
from dataflow.state.changelog import VALUE, decode_key, packed_of
from dataflow.transport.memory_log import MemoryMessage
from tests.simulation.model import Meaning
from tests.simulation.pipelines import TOPIC, Sketch
from tests.simulation.world import Failed, World

# An edge's records: (id, key, wire bytes), by partition in order.
Written = list[list[tuple[bytes, bytes | None, bytes]]]
Decoded = dict[str, Any]


@dataclass
class Left:
    """What a run left: records by edge, dead letters as (node, k, n), and values of state by (node, key, name)."""

    edges: dict[str, Written] = field(default_factory=dict)
    letters: list[tuple[str, str, int]] = field(default_factory=list)
    state: dict[tuple[str, bytes, str], Any] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)  # timers that are left
    zombies: int = 0


class Decoder:
    """Records of a plan's edges, decoded once each."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[tuple[str, bytes], Decoded] = {}

    def __call__(self, edge: str, values: Iterable[bytes]) -> list[Decoded]:
        wanted = list(values)
        new = list(dict.fromkeys(v for v in wanted if (edge, v) not in self._known))
        if new:
            found = self._plan.edges[edge]
            decoded = codec_for(found.codec, found.schema).decode(new)
            assert not decoded.failed
            for value, record in zip(new, to_jsonable(found.schema, decoded.columns, len(new)), strict=True):
                self._known[edge, value] = record
        return [self._known[edge, v] for v in wanted]


def left_by(world: World, decoder: Decoder) -> Left:
    made = Left(zombies=world.fabric.zombies)
    plan, stored = world.plan, world.fabric.stored
    for edge in plan.edges.values():
        if edge.name != TOPIC and edge.write:
            made.edges[edge.name] = [
                [_written(m) for m in p.records] for p in stored[edge.topics[0]].partitions
            ]
    names = {edge.topics[0]: edge.name for edge in plan.edges.values() if edge.write}
    for partition in stored[DEAD_LETTERS].partitions:
        for message in partition.records:
            told = {n: v.decode() for n, v in message.headers() or ()}
            node = told[headers.ERROR_NODE].partition("/")[2]
            # A record made from state was never read of a topic: it is as its node was given it.
            name = names.get(told[headers.ERROR_TOPIC]) or plan.nodes[node].inputs["in"][0]
            (record,) = decoder(name, [message.value() or b""])
            made.letters.append((node, record["k"], record["n"]))
    for stage in plan.stages:
        if stage.changelog:
            _fold(stored[stage.changelog].partitions, made)
    return made


def _written(message: MemoryMessage) -> tuple[bytes, bytes | None, bytes]:
    return _id(message), message.key(), message.value() or b""


def _id(message: MemoryMessage) -> bytes:
    return next((v for n, v in message.headers() or () if n == headers.ID), b"")


def _fold(partitions: Sequence[Any], made: Left) -> None:
    for partition in partitions:
        newest = {message.key(): message.value() for message in partition.records}
        for raw, value in newest.items():
            if value is None:
                continue
            entry = decode_key(raw)
            if entry.kind == VALUE:
                made.state[entry.node, entry.key, entry.name] = msgspec.msgpack.decode(packed_of(value))
            elif entry.kind == b"t":
                made.other.append(f"timer {entry}")


def shown(record: Mapping[str, Any], *, counted: bool = True) -> tuple[Any, ...]:
    """The fields of a record that the model says something of; without `counted`, not those that state made."""
    if "records" in record:
        return (record["k"], record["records"], record["total"]) if counted else (record["k"],)
    names = ("k", "n", "v", "c", "parts", "b_v", "item", "index")
    return tuple(
        tuple(x) if isinstance(x := record.get(name), list) else x for name in names if counted or name != "c"
    )


# ---------------------------------------------------------------- the reference is right


def check_meaning(sketch: Sketch, meaning: Meaning, left: Left, decoder: Decoder) -> None:
    """The engine's quiet run is what the model says, values and order."""
    for edge, written in left.edges.items():
        found = [r for partition in written for r in decoder(edge, [v for _, _, v in partition])]
        _equal(edge, "values", Counter(map(shown, found)), Counter(map(shown, meaning.edges[edge])))
        if edge not in sketch.unordered:
            _equal(edge, "order", _orders(found), _orders(meaning.edges[edge]))
    _equal("dead letters", "records", Counter(left.letters), Counter(meaning.failed))
    counts = {(node, key.decode()): v for (node, key, name), v in left.state.items() if name == "count"}
    _equal("state", "counts", counts, meaning.counts)


def _orders(records: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[Any, ...]]]:
    made: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for record in records:
        made[record.get("k", "")].append(shown(record))
    return made


def _equal(place: str, what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        detail = f"found {found}\n wanted {wanted}"
        if isinstance(found, Counter):
            detail = f"too many {dict(found - wanted)}, missing {dict(wanted - found)}"
        raise Failed(f"{place}: {what} differ: {detail}")


# ---------------------------------------------------------------- a run is right


def check(sketch: Sketch, plan: Plan, quiet: Left, left: Left, decoder: Decoder) -> None:
    """A run with faults, against the quiet one."""
    exactly = sketch.delivery == "exactly_once"
    for edge, written in left.edges.items():
        wanted = quiet.edges[edge]
        records = [r for p in written for r in p] if exactly else _first([r for p in written for r in p])
        reference = [r for p in wanted for r in p]
        if exactly:
            _equal(edge, "records", Counter(records), Counter(reference))
        else:
            _equal(edge, "ids", Counter(r[0] for r in records), Counter(r[0] for r in reference))
            _equal(edge, "values", _values(edge, records, decoder), _values(edge, reference, decoder))
        if edge not in sketch.unordered:
            _equal(edge, "order", _order(edge, records, decoder), _order(edge, reference, decoder))
    letters = Counter(left.letters) if exactly else Counter(set(left.letters))
    _equal("dead letters", "records", letters, Counter(quiet.letters))
    # At least once nobody fences the changelog: a member that was put out alive may write what is old there.
    if exactly or not left.zombies:
        _check_counts(quiet, left, exactly=exactly)
        if left.other != quiet.other:
            raise Failed(f"left: {left.other}, wanted {quiet.other}")


def _check_counts(quiet: Left, left: Left, *, exactly: bool) -> None:
    for (node, key, name), value in quiet.state.items():
        found = left.state.get((node, key, name))
        if name == "count" and (found is None or found < value or (exactly and found != value)):
            raise Failed(f"state of {node}: {key!r} counts {found}, wanted {value}")


def _first(records: list[tuple[bytes, bytes | None, bytes]]) -> list[tuple[bytes, bytes | None, bytes]]:
    """Without the repeats of an id."""
    made: dict[bytes, tuple[bytes, bytes | None, bytes]] = {}
    for record in records:
        made.setdefault(record[0], record)
    return list(made.values())


def _values(
    edge: str, records: list[tuple[bytes, bytes | None, bytes]], decoder: Decoder
) -> dict[bytes, tuple[Any, ...]]:
    decoded = decoder(edge, [r[2] for r in records])
    return {r[0]: shown(x, counted=False) for r, x in zip(records, decoded, strict=True)}


def _order(
    edge: str, records: list[tuple[bytes, bytes | None, bytes]], decoder: Decoder
) -> dict[str, list[bytes]]:
    """Ids by `k` (by nothing where there is none), as they lie on the partitions."""
    made: dict[str, list[bytes]] = defaultdict(list)
    for record, decoded in zip(records, decoder(edge, [r[2] for r in records]), strict=True):
        made[decoded.get("k", "")].append(record[0])
    return made
