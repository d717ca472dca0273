"""What is in the topics at the end, as arrays: read by a stock client, decoded by fastavro, held against the story."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from multiprocessing import get_context
from typing import Any, Final

import confluent_kafka as ck
import numpy as np

from faults.callers import PIPELINES
from faults.expired import Request
from faults.reader import Seen, note
from faults.story import EDGES, PIECES, Edge, Integers, Story, total
from faults.wire import Schemas, consumer, end_of, header, partitions, read_all

LETTERS_TOPIC: Final = "dataflow.dead-letters"
_SAMPLES: Final = 5
_READERS: Final = 2
_BY_TOPIC: Final[Mapping[str, Edge]] = {e.topic: e for several in EDGES.values() for e in several}


@dataclass
class Found:
    """The records of one topic in the order of each partition's log, as equally long arrays. `code`: `story.PIECES`."""

    topic: str
    code: array[int] = field(default_factory=lambda: array("q"))
    partition: array[int] = field(default_factory=lambda: array("q"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    identity: array[int] = field(default_factory=lambda: array("q"))
    strange: list[str] = field(default_factory=list)
    """Records that are not what the story says, described."""
    origins: dict[bytes, int] = field(default_factory=dict)
    factors: dict[bytes, set[float]] = field(default_factory=dict)

    def add(self, message: ck.Message, code: int) -> None:
        self.code.append(code)
        self.partition.append(message.partition())
        self.offset.append(message.offset())
        self.identity.append(_identity(message))
        origin = header(message, "df-origin")
        self.origins[origin] = self.origins.get(origin, 0) + 1

    def arrays(self) -> tuple[Integers, Integers, Integers, Integers]:
        """code, partition, offset, identity; by partition and offset."""
        made = [
            np.asarray(a, dtype=np.int64) for a in (self.code, self.partition, self.offset, self.identity)
        ]
        order = np.lexsort((made[2], made[1]))
        return made[0][order], made[1][order], made[2][order], made[3][order]


@dataclass(frozen=True)
class Letter:
    """A dead letter: what it was, where it was read, and why it is one."""

    value: bytes
    topic: str
    partition: int
    offset: int
    error: str
    code: int  # -1 for what is no record of the story
    identity: int


@dataclass
class Evidence:
    """All of it. `seen` is what a late reader sees: by place, offsets and digests."""

    edges: dict[str, Found]
    inputs: dict[str, Found]
    poison: dict[str, list[tuple[int, int, bytes]]]
    letters: list[Letter]
    requests: dict[str, list[Request]]  # by pipeline
    answers: dict[str, list[tuple[str, int, int]]]
    seen: Seen


def gather(bootstrap: str, story: Story) -> Evidence:
    """Read everything: the edges of `story.EDGES`, inputs, dead letters, requests and answers."""
    topics = [f"{p}.events" for p in EDGES] + list(_BY_TOPIC)
    # Millions of records, decoded in Python: a core each.
    with ProcessPoolExecutor(_READERS, mp_context=get_context("spawn")) as pool:
        parts = [*pool.map(partial(_read, bootstrap, story), _shares(bootstrap, topics))]
    made = Evidence({}, {}, {}, [], {}, {}, {})
    for part in parts:
        for whole, share in (
            (made.edges, part.edges), (made.inputs, part.inputs), (made.poison, part.poison), (made.seen, part.seen)
        ):  # fmt: skip
            whole.update(share)  # type: ignore[arg-type]  # each pair is of one type
    schemas = Schemas(bootstrap)
    read_all(bootstrap, [LETTERS_TOPIC], lambda ms: made.letters.extend(_letter(schemas, m) for m in ms))
    for pipeline in PIPELINES:
        _gather_asked(bootstrap, schemas, made, pipeline)
    return made


def _shares(bootstrap: str, topics: Sequence[str]) -> list[list[str]]:
    """As many lists of topics as there are readers, about equally many records in each."""
    client = consumer(bootstrap)
    sizes = dict.fromkeys(topics, 0)
    for topic, partition in partitions(client, topics):
        sizes[topic] += end_of(client, (topic, partition))
    client.close()
    shares: list[list[str]] = [[] for _ in range(_READERS)]
    for topic in sorted(topics, key=lambda t: -sizes[t]):
        min(shares, key=lambda share: sum(sizes[t] for t in share)).append(topic)
    return shares


def _read(bootstrap: str, story: Story, topics: Sequence[str]) -> Evidence:
    """What is in some of the inputs and edges."""
    schemas = Schemas(bootstrap)
    schemas.read()
    made = Evidence({}, {}, {}, [], {}, {}, {})
    made.edges = {t: Found(t) for t in topics if t in _BY_TOPIC}
    made.inputs = {t: Found(t) for t in topics if t not in _BY_TOPIC}
    made.poison = {t: [] for t in made.inputs}

    def take(messages: Sequence[ck.Message]) -> None:
        note(made.seen, messages)
        for message in messages:
            topic = message.topic()
            if topic in made.inputs:
                _take_input(made, story, schemas, message)
            else:
                _take_output(made.edges[topic], _BY_TOPIC[topic], story, schemas, message)

    read_all(bootstrap, topics, take)
    return made


def _take_input(made: Evidence, story: Story, schemas: Schemas, message: ck.Message) -> None:
    found = made.inputs[message.topic()]
    if not header(message, "df-schema"):
        made.poison[message.topic()].append((message.partition(), message.offset(), message.value()))
        return
    value = schemas.decode(message)
    if value["turn"] != story.turns[value["n"]]:
        found.strange.append(f"{message.topic()}: n {value['n']} has turn {value['turn']}")
    found.add(message, value["n"] * PIECES)


def _take_output(found: Found, edge: Edge, story: Story, schemas: Schemas, message: ck.Message) -> None:
    value = schemas.decode(message)
    if not edge.judged(story, value) and len(found.strange) < _SAMPLES:
        found.strange.append(f"{edge.topic}[{message.partition()}]@{message.offset()}: {str(value)[:300]}")
    if edge.topic.endswith(".score"):
        origin = header(message, "df-origin")
        found.factors.setdefault(origin, set()).add(value["y"] / total(value["n"]))
    found.add(message, value["n"] * PIECES + edge.which(value))


def _letter(schemas: Schemas, message: ck.Message) -> Letter:
    code = -1
    if header(message, "df-schema"):
        code = int(schemas.decode(message)["n"]) * PIECES
    return Letter(
        message.value(),
        header(message, "df-error-topic").decode(),
        int(header(message, "df-error-partition")),
        int(header(message, "df-error-offset")),
        header(message, "df-error").decode(),
        code,
        _identity(message),
    )


def _identity(message: ck.Message) -> int:
    """Of its id; the same in every process, as `hash` is not."""
    return int.from_bytes(blake2b(header(message, "df-id"), digest_size=8).digest(), "little", signed=True)


def _gather_asked(bootstrap: str, schemas: Schemas, made: Evidence, pipeline: str) -> None:
    """Requests and their committed answers: id and number, and what the answer says."""
    asked = made.requests[pipeline] = []
    answered = made.answers[pipeline] = []

    def requests(messages: Sequence[ck.Message]) -> None:
        for m in messages:
            deadline_ms = int(header(m, "df-deadline") or 0)
            asked.append(Request(header(m, "df-id").decode(), schemas.decode(m)["n"], deadline_ms / 1000))

    def answers(messages: Sequence[ck.Message]) -> None:
        for message in messages:
            value: dict[str, Any] = schemas.decode(message)
            answered.append((header(message, "df-id").decode(), value["n"], value["answer"]))

    read_all(bootstrap, [f"{pipeline}.requests"], requests)
    read_all(bootstrap, [f"{pipeline}.done"], answers)


def uncommitted(bootstrap: str, topics: Sequence[str]) -> dict[str, int]:
    """How many records a reader sees that does not ask for committed ones only, by topic."""
    counts = dict.fromkeys(topics, 0)

    def take(messages: Sequence[ck.Message]) -> None:
        for message in messages:
            counts[message.topic()] += 1

    read_all(bootstrap, topics, take, committed=False)
    return counts
