"""Kafka transactions. librdkafka has no KIP-890: after any error whose outcome is open the producer is of no more use.

A delayed EndTxn of such a producer could end a *later* transaction; one made anew under the same name has a new epoch,
so that nothing of the old one is taken any more.

librdkafka's `send_offsets_to_transaction` does not keep to its timeout (its issues 5456 and 5511). When the broker that
coordinated the group drops out of the cluster for a moment, it waits for a connection that nobody makes any more, until
any other connection of the client comes or goes: that is why idle ones are closed. It is called on a thread that can be
left behind. The commit itself follows on that thread, so that many transactions wait for the broker side by side.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import confluent_kafka as ck

from dataflow.core.errors import TransportError
from dataflow.transport.api import Consumer, Position
from dataflow.transport.kafka_clients import KafkaConsumer, KafkaProducer
from dataflow.transport.kafka_errors import refused

# An open transaction hides what comes after it from read-committed readers: this long at the most after a crash.
TRANSACTION_TIMEOUT_MS: Final = 10_000
# One step of the protocol, retries included; within the transaction's own timeout.
STEP_TIMEOUT_S: Final = 8.0
# Beyond the timeout that was asked for: a call that is not back by then will not come back.
HUNG_AFTER_S: Final = 1.0

SETTINGS: Final[Mapping[str, Any]] = {
    "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
    "delivery.timeout.ms": TRANSACTION_TIMEOUT_MS,
    # The coordinator answers CONCURRENT_TRANSACTIONS while the last commit settles; the default wait of 100 ms makes
    # that the p99 of every commit.
    "retry.backoff.ms": 2,
    # It doubles up to this: tens of producers that ask a coming broker fifty times a second keep it from coming.
    "retry.backoff.max.ms": 500,
    # What ends a call that hangs (see the module), its client and its threads with it. Connections that wait for an answer
    # are closed too, so this is longer than any step of a transaction.
    "connections.max.idle.ms": 15_000,
}


class HungError(Exception):
    """A call that did not come back; nothing may be called on its client any more, not even `close`."""


class Aside:
    """A thread that makes one call after another for another thread, which waits so long and no longer.

    After a call that raised none is made any more. `end` it.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._last: Callable[[], object] | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def start(self, made: Callable[[], object]) -> None:
        """Make the call after those before it. For each there is one `wait`."""
        self._calls.put(made)

    def wait(self, timeout_s: float) -> None:
        """Wait for the next call; raises what it raised, and HungError when it takes longer than `timeout_s`."""
        try:
            error = self._results.get(timeout=timeout_s)
        except queue.Empty:
            raise HungError from None
        if error is not None:
            raise error

    def end(self, last: Callable[[], object] | None = None) -> None:
        """Let the thread end, once the call that it makes has come back; `last` is made then, whatever came of it."""
        self._last = last
        self._calls.put(None)

    def _run(self) -> None:
        error: BaseException | None = None
        while (made := self._calls.get()) is not None:
            if error is not None:
                continue
            try:
                made()
            except BaseException as caught:  # noqa: BLE001 - raised where it was waited for
                error = caught
            del made  # what a call keeps alive is not kept beyond it
            self._results.put(error)
        if self._last is not None:
            self._last()


class KafkaTransaction(KafkaProducer):
    """See `transport.api.TransactionalProducer`."""

    def __init__(self, settings: Mapping[str, Any], name: str) -> None:
        super().__init__(settings)
        self._name = name
        self.doing = f"writing in transaction '{name}'"
        self._hung = False
        self._broken = False
        self._open = False
        self._started = 0
        self._since_s = 0.0
        self._at = ""  # the step that is under way
        self._aside = Aside(f"transactions of {name}")
        self._start("taking over", self.client.init_transactions)

    def ready(self) -> KafkaTransaction:
        """Wait until earlier producers of this name are fenced. Once, before anything else."""
        self._wait("taking over")
        return self

    def _serve(self, call: Callable[[float], int], timeout_s: float) -> int:
        try:
            return super()._serve(call, timeout_s)
        except TransportError:
            self._broken = True
            raise

    def begin(self) -> None:
        self._step("beginning", lambda _: self.client.begin_transaction())
        self._open = True

    def start_commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        if self.flush(STEP_TIMEOUT_S):
            self._broken = True
            raise TransportError(
                f"transaction '{self._name}': its records were not acknowledged", hint="is the broker up?"
            )
        if offsets:
            assert isinstance(consumer, KafkaConsumer), "one fabric makes both"
            positions = [ck.TopicPartition(t, p, o) for (t, p), o in offsets.items()]
            # Asked here: within a rebalance the consumer answers the thread that it calls back, and no other.
            asked = [consumer.client.consumer_group_metadata()]

            def add(timeout_s: float) -> None:
                # Asked anew for another try: the member's epoch in it changes with every rebalance.
                metadata = asked.pop() if asked else consumer.client.consumer_group_metadata()
                self.client.send_offsets_to_transaction(positions, metadata, timeout_s)

            self._start("adding offsets", add)
        self._start("committing", self.client.commit_transaction)

    def _start(self, doing: str, call: Callable[[float], object]) -> None:
        if not self._started:
            self._since_s = time.monotonic()
        self._aside.start(lambda: self._step(doing, call))
        self._started += 1

    def finish_commit(self) -> None:
        self._wait("committing")
        self._open = False

    def _wait(self, doing: str) -> None:
        """Wait for all that was started; after one that fails there is nothing more to wait for.

        The time counts from the start: transactions that hang side by side are waited for side by side.
        """
        started, self._started = self._started, 0
        for number in range(1, started + 1):
            until_s = self._since_s + number * (STEP_TIMEOUT_S + HUNG_AFTER_S)
            try:
                self._aside.wait(max(until_s - time.monotonic(), 0.0))
            except HungError as error:
                self._broken = self._hung = True
                raise TransportError(
                    f"{self._at or doing} transaction '{self._name}': no answer within {STEP_TIMEOUT_S:.0f} s",
                    hint="did the broker that coordinates it, or the group, go away? It is tried again with a new producer",
                ) from error

    def commit(self, offsets: Mapping[Position, int], consumer: Consumer) -> None:
        self.start_commit(offsets, consumer)
        self.finish_commit()

    def abort(self) -> None:
        if not self._open:
            return
        self._step("aborting", self.client.abort_transaction)
        self._open = False

    def close(self) -> None:
        """Undo what is open, as far as the producer is still good for that; else the transaction's timeout does."""
        with suppress(TransportError):  # nobody closes a client in the middle of a call of another thread
            self._wait("closing")
        self._aside.end(self._let_go if self._hung else None)
        if self._hung:
            return  # its client lives as long as its call; the next producer of this name fences it
        if self._open and not self._broken:
            with suppress(TransportError):  # a producer made anew under this name undoes it
                self.abort()
        self.client.purge()
        with suppress(ck.KafkaException), warnings.catch_warnings():
            # A fenced producer cannot even say goodbye, and warns of it.
            warnings.filterwarnings("ignore", message="Producer abort_transaction failed during close")
            self.client.close()

    def _let_go(self) -> None:
        """End the client, whoever still holds this: its threads, its connections."""
        del self.client, self._produce

    def _step(self, doing: str, call: Callable[[float], object]) -> None:
        """One call of the protocol, repeated while the client says it may be."""
        deadline = time.monotonic() + STEP_TIMEOUT_S
        self._at = doing
        while True:
            try:
                call(max(deadline - time.monotonic(), 0.1))
                return
            except ck.KafkaException as error:
                reason = error.args[0]
                if reason.retriable() and time.monotonic() < deadline:
                    continue
                self._broken = True
                raise refused(reason, f"{doing} transaction '{self._name}'") from error
