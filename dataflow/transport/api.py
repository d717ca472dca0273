"""What the engine needs of a log, as Protocols: the in-memory log and Kafka pass one contract suite.

All objects are single-threaded unless said otherwise. Offsets are those of Kafka: the position after the last
processed record is what is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

Position = tuple[str, int]  # (topic, partition)
Header = tuple[str, bytes | str | None]

EARLIEST: Final = -2
LATEST: Final = -1


class Message(Protocol):
    """One fetched record, read by method calls as confluent-kafka's own Message is, so that nothing is copied."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Sequence[tuple[str, bytes]] | None: ...
    def timestamp(self) -> tuple[int, int]:
        """(type, Unix time in ms)."""
        ...


Delivered = Callable[
    [object | None, object], None
]  # (error or None, message): called from Producer.poll or flush


class Producer(Protocol):
    """acks=all, order kept, partitioner murmur2_random; idempotent unless made `single_flight` (see `Fabric`)."""

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: list[Header] | None = None,
        partition: int = -1,
        on_delivery: Delivered | None = None,
        timestamp_ms: int = 0,
    ) -> None:
        """Queue one record. A full queue is waited for while delivery callbacks are served.

        Raises TransportError for what can never be sent (too large, unknown partition).
        """
        ...

    def poll(self, timeout_s: float) -> int:
        """Serve delivery callbacks for at most `timeout_s`; the number served."""
        ...

    def flush(self, timeout_s: float) -> int:
        """Wait until all is delivered; the number of records still not."""
        ...

    def close(self) -> None: ...


class Rebalance(Protocol):
    """Told by `Consumer.poll` when ownership changes. `revoked` may still commit; `lost` may not.

    `starting` comes before the committed offsets of newly owned partitions are looked up, `assigned` when they are read.
    """

    def starting(self, positions: Sequence[Position]) -> None: ...
    def assigned(self, positions: Sequence[Position]) -> None: ...
    def revoked(self, positions: Sequence[Position]) -> None: ...
    def lost(self, positions: Sequence[Position]) -> None: ...


class Consumer(Protocol):
    def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        """Join the group; partitions come and go through `rebalance`, called from within `poll` and `close`."""
        ...

    def assign(self, offsets: Mapping[Position, int]) -> None:
        """Read these partitions without a group, from these offsets (EARLIEST, LATEST allowed)."""
        ...

    def poll(self, max_records: int, timeout_s: float) -> Sequence[Message]:
        """At most `max_records` records; waits up to `timeout_s` for the first and not at all for the rest.

        Raises OffsetOutOfRange, TopicGone or TransportError for errors that end the reading.
        """
        ...

    def pause(self, positions: Iterable[Position]) -> None: ...
    def resume(self, positions: Iterable[Position]) -> None: ...
    def seek(self, position: Position, offset: int) -> None: ...

    def commit(self, offsets: Mapping[Position, int], *, wait: bool) -> None:
        """Commit positions. With `wait`, raises TransportError if refused; without, a refusal is met by the next."""
        ...

    def committed(self, positions: Sequence[Position]) -> dict[Position, int | None]: ...
    def position(self, positions: Sequence[Position]) -> dict[Position, int | None]:
        """Where the next record will be read: after the last one polled, or at the end if that was reached."""
        ...

    def high(self, position: Position) -> int | None:
        """The end of an owned partition as the last fetch told it, None when that is not known yet."""
        ...

    def ends(self) -> dict[Position, int]:
        """Ends that `poll` has reached since the last call: all before them is polled, records or not, and nothing after."""
        ...

    def close(self) -> None: ...


class TransactionalProducer(Producer, Protocol):
    """A producer whose records, with the offsets they come from, are seen all or not at all by read-committed readers.

    One thread; `begin` before the first `send`, then `commit` or `abort`. After an exception from any of these only
    `close` may be called: whether the transaction is through is then not known here, the committed offsets tell.
    """

    def begin(self) -> None: ...

    def start_commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        """Wait for all records' acknowledgements, then begin to add the group's `offsets` and to commit.

        Several producers' commits go on side by side; nothing else may be called before `finish_commit`, which must be.
        Raises as that does.
        """
        ...

    def finish_commit(self) -> None:
        """Wait for the commit that was started.

        Raises FencedError when a producer of the same name was made later, or the group has moved on; TransportError
        when the transaction was not, or may not have been, committed.
        """
        ...

    def commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        """`start_commit` and `finish_commit`."""
        ...

    def abort(self) -> None:
        """Undo what is open, if anything is: nobody ever sees the records. Raises TransportError."""
        ...


@dataclass(frozen=True)
class TopicInfo:
    """A topic as the broker has it. `config` holds only the settings asked for."""

    name: str
    topic_id: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


class Admin(Protocol):
    """Thread-safe."""

    def cluster_id(self) -> str: ...
    def topics(self) -> dict[str, TopicInfo]:
        """All topics (without config)."""
        ...

    def describe(self, names: Sequence[str]) -> dict[str, TopicInfo]:
        """The named topics that exist, with their non-default config."""
        ...

    def create(self, name: str, partitions: int, config: Mapping[str, str]) -> bool:
        """Create a topic and wait until it can be used; False if it was there already."""
        ...

    def alter(self, name: str, config: Mapping[str, str]) -> None: ...
    def delete(self, names: Sequence[str]) -> None: ...
    def offsets(self, positions: Sequence[Position], at: int) -> dict[Position, int]:
        """Offset of each partition at EARLIEST, LATEST (its end) or the first record with time >= `at` (Unix ms)."""
        ...

    def group_offsets(self, group: str, positions: Sequence[Position]) -> dict[Position, int]:
        """Committed offsets of a group at those of `positions` where it has any."""
        ...

    def close(self) -> None: ...


class Fabric(Protocol):
    """A cluster: the factory of all the above. Thread-safe."""

    def producer(self, *, latency_first: bool = True, single_flight: bool = False) -> Producer:
        """A producer. `latency_first`: each record goes at once; else records gather for some milliseconds.

        `single_flight`: one request to a broker at a time. Records that come meanwhile go together as the next; order
        holds, and a retry may write a record twice. For all that is at least once. With `latency_first` too, that goes
        for each topic: requests of several are under way at once, and records of two topics come in any order.
        """
        ...

    def transactional(self, name: str, *, latency_first: bool = False) -> TransactionalProducer:
        """A transactional producer. Any earlier one of this `name`, anywhere, is fenced and its open transaction undone.

        Blocks until that is done. `latency_first` as in `producer`: a commit sends all at once anyway, so it is for those
        who wait for an acknowledgement before. Raises TransportError.
        """
        ...

    def transactionals(
        self, names: Sequence[str], *, latency_first: bool = False
    ) -> Sequence[TransactionalProducer]:
        """One for each name, made side by side; where one fails there is none."""
        ...

    def consumer(
        self, group: str | None = None, *, start: int = EARLIEST, together: bool = False
    ) -> Consumer:
        """A consumer in `group`, or groupless. `start`: where a group without a committed offset begins.

        `together`: a member owns the same partition numbers of all topics. All members must say the same.
        """
        ...

    def admin(self) -> Admin: ...
    def close(self) -> None: ...
