"""What callers are told: by a record of the topic of replies, or in memory where they wait in this process."""

from __future__ import annotations

import logging
from typing import Final

import orjson

from dataflow.core import headers
from dataflow.core.batch import Row
from dataflow.core.errors import RecordTooLargeError, TransportError, shortened
from dataflow.core.inprocess import Desk, Reply
from dataflow.core.shares import address_of, share_of
from dataflow.planner.plan import REPLIES, RESULTS
from dataflow.runtime.execution import Ended
from dataflow.transport.api import Header, Producer

log = logging.getLogger("dataflow.replies")

# Where callers are told: those who wait, and those who come back to ask.
_REPLIES: Final = {topic.encode(): topic for topic in (REPLIES, RESULTS)}
# Beyond what Kafka can have; int() of a stranger's digits is to stay small.
MAX_PARTITION_DIGITS: Final = 6


class Replies:
    """A stage's replies. Plain and unacknowledged: a lost reply is a 504, never a wrong answer.

    Those to callers of this process are gathered until `hand_over`.
    """

    def __init__(self, producer: Producer, desk: Desk | None = None) -> None:
        self._producer = producer
        self._desk = desk or Desk()
        self._here: list[Reply] = []

    def answer(self, row: Row, edge: str, value: bytes | None, fingerprint: bytes) -> None:
        """Hand an answer to the gateway that waits."""
        share = share_of(row.reply)
        # Whoever takes all that comes of a request knows by the shares when nothing is left; others take the first answer.
        if share and not any(name == headers.STREAM for name, _ in row.carry):
            share = b""
        self._send(row, Reply(b"", headers.STATUS_OK, value, edge, b"", fingerprint, share))

    def refuse(self, ended: Ended) -> None:
        """Tell a waiting caller at once that no answer will come, and why."""
        status = headers.STATUS_FAILED if ended.error else headers.STATUS_DROPPED
        if ended.reason == headers.STATUS_EXPIRED:
            status = headers.STATUS_EXPIRED
        reason = orjson.dumps({"reason": shortened(ended.reason), "node": ended.node, "error": ended.error})
        self._send(ended.row, Reply(b"", status, None, "", reason, b"", share_of(ended.row.reply)))

    def hand_over(self) -> None:
        """Give this process's callers what there is for them: once a turn, each time wakes the gateway."""
        if self._here:
            here, self._here = self._here, []
            self._desk.deliver(here)

    def _send(self, row: Row, reply: Reply) -> None:
        """Send to the address in the record's header; to nothing but replies, whatever a stranger wrote there."""
        address = address_of(row.reply)
        topic, _, rest = address.partition(b"/")
        partition, _, request = rest.partition(b"/")
        if self._desk.waits(address):
            self._here.append(reply._replace(record_id=request))
            return
        if topic not in _REPLIES or not partition.isdigit() or len(partition) > MAX_PARTITION_DIGITS:
            return
        try:
            self._producer.send(_REPLIES[topic], reply.value, request, _headers(row, reply), int(partition))
        except RecordTooLargeError as error:
            if reply.value is not None:
                self.refuse(Ended(row, f"the answer is too large: {error}", "", type(error).__name__))
        except TransportError as error:
            # The caller meets its deadline; the record itself is processed, and the next must be too.
            log.warning("a reply was not sent: %s", error)


def _headers(row: Row, reply: Reply) -> list[Header]:
    head: list[Header] = [(headers.ID, row.id), (headers.STATUS, reply.status)]
    if reply.good:
        head += [(headers.EDGE, reply.edge), (headers.SCHEMA, reply.schema)]
    else:
        head.append((headers.REASON, reply.reason))
    if reply.share:
        head.append((headers.SHARE, reply.share))
    return head
