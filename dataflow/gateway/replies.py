"""The replies to this gateway: one thread reads its partition of the reply topic and hands batches to the event loop.

A reply record is keyed by the request record's id. Its value is the answer's payload under the contract of the edge in
header ``df-edge``; when header ``df-status`` is not ``ok``, ``df-reason`` says why.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from dataflow.core import headers
from dataflow.core.errors import DataflowError, OffsetOutOfRangeError
from dataflow.core.inprocess import Reply
from dataflow.core.limits import MAX_BATCH_RECORDS
from dataflow.transport.api import LATEST, Consumer, Fabric, Message, Position

log = logging.getLogger("dataflow.gateway")

# Wake-ups of an idle reader, and how long `stop` may take.
POLL_S: Final = 0.05
# Between attempts to read again once the broker is back.
RETRY_S: Final = 0.5


def reply_of(message: Message) -> Reply | None:
    """The reply in a record of the reply topic; None for a record that is none (no key)."""
    record_id = message.key()
    if record_id is None:
        return None
    status, edge, reason, schema, share = headers.STATUS_OK, "", b"", b"", b""
    for name, value in message.headers() or ():
        if name == headers.STATUS:
            status = value.decode("ascii", "replace")
        elif name == headers.EDGE:
            edge = value.decode("utf-8", "replace")
        elif name == headers.REASON:
            reason = value
        elif name == headers.SCHEMA:
            schema = value
        elif name == headers.SHARE:
            share = value
    return Reply(record_id, status, message.value(), edge, reason, schema, share)


class ReplyReader:
    """Reads one partition from its end on. `deliver` is called in the event loop, once per poll that found any.

    While the broker cannot be read `healthy` is False; reading goes on where it stopped.
    """

    def __init__(
        self,
        fabric: Fabric,
        position: Position,
        deliver: Callable[[Sequence[Reply]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._fabric = fabric
        self._position = position
        self._deliver = deliver
        self._loop = loop
        self._stop = threading.Event()
        self._offset: int | None = None
        self._thread = threading.Thread(target=self._run, name="dataflow-replies", daemon=True)
        self.healthy = False

    def start(self) -> None:
        """Find the end of the partition, so that no reply to a later request is missed, then read in the background.

        Blocks for a broker round trip. Raises TransportError when there is no such partition or no broker.
        """
        self._offset = self._fabric.admin().offsets([self._position], LATEST)[self._position]
        self.healthy = True
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer: Consumer | None = None
            try:
                consumer = self._fabric.consumer()
                assert self._offset is not None, "start() found the offset"
                consumer.assign({self._position: self._offset})
                self._read(consumer)
            except OffsetOutOfRangeError:
                # Nobody waits for replies that old: retention took them.
                log.warning("replies were deleted before they were read; going on at the end")
                self._offset = LATEST
            except DataflowError as error:
                self.healthy = False
                log.warning("reading replies: %s", error)
                self._stop.wait(RETRY_S)
            finally:
                if consumer is not None:
                    consumer.close()

    def _read(self, consumer: Consumer) -> None:
        while not self._stop.is_set():
            messages = consumer.poll(MAX_BATCH_RECORDS, POLL_S)
            self.healthy = True
            if not messages:
                continue
            self._offset = messages[-1].offset() + 1
            replies = [reply for reply in map(reply_of, messages) if reply is not None]
            # One wake-up of the loop for the whole poll: each costs a system call and a switch of threads.
            self._loop.call_soon_threadsafe(self._deliver, replies)
