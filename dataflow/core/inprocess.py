"""Where a gateway and the stages of one process meet without Kafka: requests on their way in, replies on their way back.

What goes this way is written to Kafka all the same, a request by the stage that it is given to. Everything here is
thread-safe: a gateway lives in its event loop, each stage on a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import orjson

from dataflow.core import headers


class Reply(NamedTuple):
    """What became of one row.

    status  one of `core.headers.STATUS_*`
    reason  the JSON of df-reason, b"" when ok
    schema  the fingerprint of the contract that `value` was written with, b"" if not told
    share   of a row that went several ways at once, what this way had of it (`core.shares`), b"" for the whole
    """

    record_id: bytes
    status: str
    value: bytes | None
    edge: str
    reason: bytes
    schema: bytes = b""
    share: bytes = b""

    @property
    def good(self) -> bool:
        return self.status == headers.STATUS_OK

    def why(self) -> dict[str, Any]:
        """reason, node and error of a row that was not answered, as far as they are told."""
        try:
            said = orjson.loads(self.reason)
        except orjson.JSONDecodeError:
            return {}
        return said if isinstance(said, dict) else {}


class Desk:
    """Takes the replies to requests that wait in this process; the others go by Kafka."""

    def __init__(self) -> None:
        self._prefix = b""
        self._waits: Callable[[bytes], bool] = _nobody
        self.deliver: Callable[[Sequence[Reply]], None] = _nothing

    def open(
        self, prefix: bytes, waits: Callable[[bytes], bool], deliver: Callable[[Sequence[Reply]], None]
    ) -> None:
        """From now on take replies to addresses that begin so and whose record id is waited for.

        Both are called from any thread.
        """
        self._waits, self.deliver, self._prefix = waits, deliver, prefix

    def close(self) -> None:
        self._prefix = b""

    def waits(self, address: bytes) -> bool:
        """Whether `deliver` takes the reply to this address (df-reply-to without a share)."""
        prefix = self._prefix
        return bool(prefix) and address.startswith(prefix) and self._waits(address[len(prefix) :])


@dataclass(eq=False, slots=True)
class Given:
    """One request as records that are not written yet: ids and values in the rows' order, the headers of all.

    delivered  told of each record what the broker said: None, or the error
    back       takes the request back, which then was not written
    """

    record_ids: Sequence[bytes]
    values: Sequence[bytes | None]
    reply_prefix: bytes
    shared: Sequence[tuple[str, bytes]]
    delivered: Callable[[object | None], None]
    back: Callable[[], None]


class Handover:
    """Requests from the gateway to the stage that reads them, of one version of a pipeline; they are kept in `topic`.

    The stage opens it while it can run them at once; meanwhile, and while there is no such stage, requests go by Kafka.
    """

    def __init__(self, version: str, topic: str) -> None:
        self.version = version
        self.topic = topic
        # Requests came that could not be given: the stage is to get ready for them.
        self.wanted = False
        self._open = False
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Given] = SimpleQueue()

    def give(self, given: Given) -> bool:
        """Give a request to the stage, which writes and runs it or gives it back; False if that takes none now."""
        with self._lock:  # nothing may come to a queue that was emptied for good
            if self._open:
                self._queue.put(given)
                return True
        self.wanted = True
        return False

    @property
    def takes(self) -> bool:
        """Whether requests are taken now."""
        return self._open

    def open(self) -> None:
        self._open = True

    def take(self, limit: int, wait_s: float) -> list[Given]:
        """Requests of about `limit` records in all; waits up to `wait_s` for the first."""
        found: list[Given] = []
        try:
            found.append(self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait())
            rows = len(found[0].record_ids)
            while rows < limit:
                found.append(self._queue.get_nowait())
                rows += len(found[-1].record_ids)
        except Empty:
            pass
        return found

    def close(self) -> None:
        """Take no more; what was not taken goes back."""
        if not self._open:
            return
        with self._lock:
            self._open = False
        while given := self.take(1, 0):
            for each in given:
                each.back()


@dataclass
class InProcess:
    """What a gateway and the stages of its process share. `handing` off: requests go by Kafka even so."""

    handing: bool = True
    desk: Desk = field(default_factory=Desk)
    _handovers: dict[str, Handover] = field(default_factory=dict)

    def made_for(self, pipeline: str, version: str, topic: str) -> Handover:
        """The handover of this version of a pipeline, whose requests are in `topic`; from now on the only one of that name."""
        found = self._handovers.get(pipeline)
        if found is None or found.version != version:
            found = self._handovers[pipeline] = Handover(version, topic)
        return found

    def to(self, pipeline: str, version: str) -> Handover | None:
        """Where to give requests to this version of a pipeline, if one of its stages here takes any."""
        found = self._handovers.get(pipeline)
        return found if found is not None and found.version == version else None


def _nobody(record_id: bytes) -> bool:
    del record_id
    return False


def _nothing(replies: Sequence[Reply]) -> None:
    """Nobody waits, so nothing is delivered."""
