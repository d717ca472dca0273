"""Callers over HTTP, some at once, through the whole run: what they were told is kept and held against the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx

PIPELINES: Final = ("asked", "handed")
_PAUSE_S: Final = {"asked": 0.2, "handed": 0.03}


@dataclass(frozen=True)
class Answer:
    """What one caller was told. `status` 0: nothing, the connection broke or the caller gave up."""

    pipeline: str
    n: int
    status: int
    record_id: str
    answer: int | None
    asked_s: float
    took_s: float


class Callers:
    """Threads that ask one question after another; `urls` are the gateways of the moment, by their caller."""

    def __init__(self, urls: Callable[[int], str], count: int) -> None:
        self._urls = urls
        self._stop = threading.Event()
        self._next = 0
        self._lock = threading.Lock()
        self.answers: list[Answer] = []
        self.waiting = 0
        """Callers that wait for an answer right now."""
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, place: int) -> None:
        client = httpx.Client(timeout=30)
        pipeline = PIPELINES[place // 2 % 2]
        while not self._stop.wait(_PAUSE_S[pipeline]):
            url = self._urls(place)
            if not url:
                continue
            with self._lock:
                n = self._next = self._next + 1
                self.waiting += 1
            answer = self._one(client, url, pipeline, n)
            with self._lock:
                self.waiting -= 1
                self.answers.append(answer)
            if not answer.status:
                client.close()
                client = httpx.Client(timeout=30)
        client.close()

    def _one(self, client: httpx.Client, url: str, pipeline: str, n: int) -> Answer:
        began = time.monotonic()
        try:
            said = client.post(f"{url}/pipelines/{pipeline}", json={"n": n})
        except httpx.HTTPError:
            return Answer(pipeline, n, 0, "", None, began, time.monotonic() - began)
        told = said.json().get("answer") if said.status_code == 200 else None
        return Answer(
            pipeline,
            n,
            said.status_code,
            said.headers.get("df-id", ""),
            told,
            began,
            time.monotonic() - began,
        )
