"""Callers over HTTP, some at once, through the whole run: what they were told is kept and held against the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx

_PAUSE_S: Final = 0.2


@dataclass(frozen=True)
class Answer:
    """What one caller was told. `status` 0: nothing, the connection broke or the caller gave up."""

    n: int
    status: int
    record_id: str
    answer: int | None
    asked_s: float
    took_s: float


class Callers:
    """Threads that ask one question after another; `urls` are the gateways of the moment, by their caller."""

    def __init__(self, urls: Callable[[int], str], count: int, pipeline: str = "asked") -> None:
        self._urls = urls
        self._path = f"/pipelines/{pipeline}"
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
        while not self._stop.wait(_PAUSE_S):
            url = self._urls(place)
            if not url:
                continue
            with self._lock:
                n = self._next = self._next + 1
                self.waiting += 1
            answer = self._one(client, url, n)
            with self._lock:
                self.waiting -= 1
                self.answers.append(answer)
            if not answer.status:
                client.close()
                client = httpx.Client(timeout=30)
        client.close()

    def _one(self, client: httpx.Client, url: str, n: int) -> Answer:
        began = time.monotonic()
        try:
            said = client.post(f"{url}{self._path}", json={"n": n})
        except httpx.HTTPError:
            return Answer(n, 0, "", None, began, time.monotonic() - began)
        told = said.json().get("answer") if said.status_code == 200 else None
        return Answer(
            n, said.status_code, said.headers.get("df-id", ""), told, began, time.monotonic() - began
        )
