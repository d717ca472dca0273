"""Looks at the cluster through the whole run: committed offsets, ends, open transactions, owners, memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, OffsetSpec

from faults.owners import Members, Owners
from faults.processes import Agent
from faults.wire import QUIET, consumer

Place = tuple[str, int]
_REQUEST_S: Final = 5.0
_STUCK_S: Final = 0.5


@dataclass(frozen=True)
class Group:
    """A consumer group of the engine: what it reads, and the topics that its stage writes."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    crew: str


@dataclass(frozen=True)
class Look:
    """One look. `ends` was asked after `committed`: what was committed then has its outputs before them."""

    at_s: float
    committed: Mapping[str, Mapping[Place, int]]
    ends: Mapping[Place, int]


@dataclass
class Measures:
    """Of one process over time: seconds, bytes, threads, descriptors."""

    name: str
    rows: list[tuple[float, int, int, int]] = field(default_factory=list)


class Watch:
    """Looks every `every_s`; see `looks`, `stalls_s` and `measures`."""

    def __init__(
        self,
        bootstrap: str,
        groups: Sequence[Group],
        agents: Callable[[], Sequence[Agent]],
        every_s: float = 2.0,
    ) -> None:
        self.groups = {g.name: g for g in groups}
        self._agents = agents
        self._every_s = every_s
        self._admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})
        self._asking = {g.name: consumer(bootstrap, group=g.name) for g in groups}
        self._owners = Owners(bootstrap)
        self._places: dict[str, list[Place]] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._open_since: dict[Place, tuple[int, float]] = {}
        self.began_s = time.monotonic()
        self.looks: list[Look] = []
        self.missed = 0
        self.stalls_s: dict[Place, float] = {}
        """The longest that one open transaction held up the readers of a partition."""
        self.doubles: list[str] = []
        """Partitions that two members of a group owned at once."""
        self.measures: dict[int, Measures] = {}
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60)
        self._owners.close()
        for client in self._asking.values():
            client.close()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._measure()
            try:
                self.look()
            except ck.KafkaException:
                self.missed += 1

    def look(self) -> Look:
        """Look now. Raises KafkaException while the cluster does not answer."""
        with self._lock:
            committed = {name: self.committed(name) for name in self.groups}
            now = time.monotonic() - self.began_s
            outputs = [p for g in self.groups.values() for t in g.writes for p in self.places(t)]
            ends, stable = (self._offsets(outputs, committed_only=c) for c in (False, True))
            for place, end in stable.items():
                self._note_stall(place, end, ends[place], now)
            found = Look(now, committed, ends)
            self.looks.append(found)
            return found

    def _note_stall(self, place: Place, stable: int, end: int, now: float) -> None:
        if stable >= end:
            self._open_since.pop(place, None)
            return
        known, since = self._open_since.get(place, (-1, now))
        if known != stable:
            known, since = stable, now
        self._open_since[place] = (known, since)
        self.stalls_s[place] = max(self.stalls_s.get(place, 0.0), now - since)

    def places(self, topic: str) -> list[Place]:
        if topic not in self._places:
            found = self._admin.list_topics(topic, timeout=_REQUEST_S).topics[topic].partitions
            if not found:
                raise ck.KafkaException(ck.KafkaError(ck.KafkaError.LEADER_NOT_AVAILABLE))
            self._places[topic] = [(topic, n) for n in sorted(found)]
        return self._places[topic]

    def committed(self, group: str) -> dict[Place, int]:
        """Committed offsets of a group on what it reads, 0 where none."""
        places = self.inputs(group)
        found = self._asking[group].committed([ck.TopicPartition(*p) for p in places], timeout=_REQUEST_S)
        for partition in found:
            if partition.error is not None:
                raise ck.KafkaException(partition.error)
        return {(p.topic, p.partition): max(p.offset, 0) for p in found}

    def inputs(self, group: str) -> list[Place]:
        return [p for topic in self.groups[group].reads for p in self.places(topic)]

    def ends(self, places: Sequence[Place]) -> dict[Place, int]:
        """What a read-committed reader sees as the ends."""
        return self._offsets(places, committed_only=True)

    def _offsets(self, places: Sequence[Place], *, committed_only: bool) -> dict[Place, int]:
        level = ck.IsolationLevel.READ_COMMITTED if committed_only else ck.IsolationLevel.READ_UNCOMMITTED
        asked = {ck.TopicPartition(*p): OffsetSpec.latest() for p in places}
        futures = self._admin.list_offsets(asked, isolation_level=level, request_timeout=_REQUEST_S)
        try:
            found = {(p.topic, p.partition): f.result(_REQUEST_S + 5).offset for p, f in futures.items()}
        except TimeoutError:
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT)) from None
        if any(offset < 0 for offset in found.values()):  # said without an error, while a leader moves
            raise ck.KafkaException(ck.KafkaError(ck.KafkaError.LEADER_NOT_AVAILABLE))
        return found

    def owners(self, group: str) -> dict[Place, int]:
        """How many members own each partition of what the group reads."""
        counts = dict.fromkeys(self.inputs(group), 0) | self._owners.ask(group)
        self.doubles += [f"{group} {p}" for p, count in counts.items() if count > 1]
        return counts

    def members(self, group: str) -> Members:
        """What each member of a group has and is to have."""
        return self._owners.members(group)

    def stuck_records(self, topics: Sequence[str]) -> int:
        """Records behind transactions that are open and stay so for many times what one takes."""
        places = [p for t in topics for p in self.places(t)]
        then = self._offsets(places, committed_only=True)
        time.sleep(_STUCK_S)
        stable, ends = (self._offsets(places, committed_only=c) for c in (True, False))
        return sum(ends[p] - stable[p] for p in places if stable[p] == then[p])

    def finished(self, group: str) -> bool:
        """Whether a group has committed to the end of what it reads."""
        try:
            return self.committed(group) == self.ends(self.inputs(group))
        except ck.KafkaException:
            return False

    def _measure(self) -> None:
        now = time.monotonic() - self.began_s
        for agent in self._agents():
            if agent.running and (found := agent.measure()) is not None:
                self.measures.setdefault(agent.pid, Measures(agent.name)).rows.append((now, *found))
