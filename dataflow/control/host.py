"""One process that runs pipelines: workers by pipeline, replaced one by one as plans change, and the gateway's needs."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

from dataflow.control.view import GraphView
from dataflow.core.errors import DataflowError
from dataflow.core.schema import Schema
from dataflow.gateway.app import Gateway, GatewaySettings
from dataflow.planner.plan import REPLIES, Plan
from dataflow.runtime.worker import Worker
from dataflow.runtime.workshop import Workshop

log = logging.getLogger("dataflow.host")

SAMPLE_INTERVAL_S: Final = 1.0
# Between looks at stages that are starting; their states are plain attributes of other threads.
READY_POLL_S: Final = 0.02


class Host:
    """The plans this process serves and, where it works too, their workers. Thread-safe.

    `run` brings the process to a set of plans: workers of changed and gone pipelines are drained and stopped, new ones
    started; those that stay the same are not touched.
    """

    def __init__(self, shop: Workshop, *, work: bool = True) -> None:
        self.shop = shop
        self.view = GraphView(shop.metrics)
        self._work = work
        self._lock = threading.Lock()
        self._plans: dict[str, Plan] = {}
        self._workers: dict[str, Worker] = {}
        self._closing = threading.Event()
        self._gateway: Gateway
        threading.Thread(target=self._sample, name="sample", daemon=True).start()

    @property
    def plans(self) -> dict[str, Plan]:
        return self._plans

    def run(self, plans: Iterable[Plan]) -> list[str]:
        """Serve exactly these plans from now on; the names of the pipelines that were started or replaced."""
        wanted = {p.pipeline: p for p in plans}
        with self._lock:
            changed = [
                n for n, p in wanted.items() if n not in self._plans or self._plans[n].version != p.version
            ]
            gone = [n for n in self._plans if n not in wanted]
            # No more requests for those that go: while their workers drain, nobody would answer them.
            self._plans = {n: p for n, p in self._plans.items() if n in wanted}
            for name in (*changed, *gone):
                worker = self._workers.pop(name, None)
                if worker is not None:
                    worker.stop()
            self._plans = wanted
            if self._work:
                for name in changed:
                    self._workers[name] = Worker(self.shop, [wanted[name]])
                    self._workers[name].start()
        return changed

    def stop(self) -> None:
        """Drain and stop all workers."""
        self._closing.set()
        with self._lock:
            for worker in self._workers.values():
                worker.stop()
            self._workers = {}

    @property
    def failed(self) -> list[str]:
        """Stages that stopped for good, with the reason."""
        return [f"{s.pipeline}.{s.stage}: {s.error}" for w in list(self._workers.values()) for s in w.failed]

    @property
    def ready(self) -> bool:
        """Whether there is work and every stage of it runs."""
        states = [s.metrics.state for w in list(self._workers.values()) for s in w.stages.values()]
        return bool(states) and all(state == "running" for state in states)

    def working(self, pipeline: str) -> bool:
        """Whether all stages of a pipeline run, as far as this process runs them."""
        worker = self._workers.get(pipeline)
        return worker is None or all(s.metrics.state == "running" for s in worker.stages.values())

    def await_ready(self, timeout_s: float) -> bool:
        """Wait until every stage runs; False when one does not come up in time or stopped for good."""
        deadline = time.monotonic() + timeout_s
        while not self.ready and not self.failed and time.monotonic() < deadline:
            self._closing.wait(READY_POLL_S)
        return self.ready

    def graph(self) -> dict[str, Any]:
        return self.view.document(list(self._plans.values()))

    def _sample(self) -> None:
        while not self._closing.wait(SAMPLE_INTERVAL_S):
            self.view.sample()

    def gateway(self, tokens: dict[str, frozenset[str]], *, detail: bool) -> Gateway:
        """A gateway of what this process serves."""
        partitions = self.shop.fabric.admin().describe([REPLIES])[REPLIES].partitions
        # A replica that shares its partition with another passes over the other's replies: a cost, not a fault.
        settings = GatewaySettings(
            tokens=tokens, reply_partition=secrets.randbelow(partitions), detail=detail
        )
        gateway = Gateway(
            self.shop.fabric,
            lambda: self._plans,
            settings,
            graph=self.graph,
            metrics=self._exposition,
            writer_of=self._writer_of,
            observe=self._observe,
            tracing=self.shop.tracing,
            working=self.working,
            inside=self.shop.inside,
        )
        self._gateway = gateway
        return gateway

    def _observe(self, pipeline: str, door: str, status: int, seconds: float) -> None:
        if door != "tap":
            metrics = self.shop.metrics.gateway(pipeline)
            metrics.by_status.add(str(status))
            metrics.seconds.observe(seconds)

    def _exposition(self) -> bytes:
        # Requests wait at the door, whatever pipeline they are for: label "" is the whole replica.
        self.shop.metrics.gateway("").pending = len(self._gateway.exchange.pending)
        return self.shop.metrics.prometheus()

    def _writer_of(self, fingerprint: bytes) -> Schema | None:
        try:
            stored = self.shop.schemas.lookup(fingerprint)
        except DataflowError as error:
            log.warning("looking up schema %s: %s", fingerprint.decode(errors="replace"), error)
            return None
        return stored.schema if stored is not None else None
