"""`raw_server` that answers once Kafka has the request and its answer: what durability costs whoever writes it by hand.

BOOTSTRAP=... python -m benchmarks.raw_durable MODEL PORT

Two records of bare floats, in topics of one partition; a client each, which is faster than one for both; no ids, no
schema, no order between the two, nothing that finds a request again after a crash. Where ours misses a server that keeps
nothing, this one says how much of it is the log's price.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.raw_server import application, serve


class Log:
    """A topic. Delivery reports are served by a thread of its own, and told to the loop as many as there are at once."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        # One request in flight, as ours: what comes meanwhile goes together, which at 32 callers was a third faster.
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap, "socket.nagle.disable": True, "linger.ms": 0, "acks": "all",
                "max.in.flight.requests.per.connection": 1,
            }
        )  # fmt: skip
        self._reported: list[tuple[asyncio.Future[None], Any]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def write(self, value: bytes) -> asyncio.Future[None]:
        """Done when the record is acknowledged."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._producer.produce(
            self._topic, value, on_delivery=lambda error, _: self._reported.append((done, error))
        )
        return done

    def _serve(self) -> None:
        while True:
            self._producer.poll(0.1)
            reported, self._reported = self._reported, []
            if reported:
                reported[0][0].get_loop().call_soon_threadsafe(_settle, reported)


def _settle(reported: list[tuple[asyncio.Future[None], Any]]) -> None:
    for done, error in reported:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(RuntimeError(str(error)))


def keeper(bootstrap: str) -> Callable[[bytes, bytes], Any]:
    topics = [f"by-hand.{os.getpid()}.{kind}" for kind in ("questions", "answers")]
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics([NewTopic(topic, 1, 1) for topic in topics]).values():
        made.result(30)
    questions, answers = (Log(bootstrap, topic) for topic in topics)

    async def keep(question: bytes, answer: bytes) -> None:
        first, second = questions.write(question), answers.write(answer)
        await first
        await second

    return keep


if __name__ == "__main__":
    serve(application(Path(sys.argv[1]), keeper(os.environ["BOOTSTRAP"])), int(sys.argv[2]))
