"""What a process has loaded of its models: one of each, however many nodes use it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dataflow.core.errors import ModelError, nearest
from dataflow.sdk import Lease


class ModelStore:
    """Loaded models by (model, digest, variant), counted by holders. Thread-safe.

    The first holder loads, those who come meanwhile wait for the same result, the last to leave frees it. A failed
    load is not kept: who waited gets the error, who comes later tries anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry] = {}

    def lease(self, key: Hashable, load: Callable[[], Any]) -> Lease:
        """Borrow what `load` makes, shared with all holders of an equal `key`. Raises what `load` raises."""
        with self._lock:
            entry = self._entries.get(key)
            first = entry is None
            if entry is None:
                entry = self._entries[key] = _Entry()
            entry.holders += 1
        if first:
            try:
                entry.value = load()
            except BaseException as error:
                entry.error = error
                with self._lock:
                    del self._entries[key]
                raise
            finally:
                entry.ready.set()
        else:
            entry.ready.wait()
            if entry.error is not None:
                raise ModelError(f"loading {key} failed: {entry.error}") from entry.error
        return _Lease(entry.value, partial(self._release, key))

    def sharer(self, model: str, digest: str) -> Callable[[Hashable, Callable[[], Any]], Lease]:
        """The `share` of a `ModelInfo`: `lease` with the model's name and digest in the key."""

        def share(variant: Hashable, load: Callable[[], Any]) -> Lease:
            return self.lease((model, digest, variant), load)

        return share

    def holders(self, key: Hashable) -> int:
        """How many hold `key` now. Raises ModelError for one that nobody holds."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                raise ModelError(f"{key} is not loaded", hint=nearest(str(key), map(str, self._entries)))
            return entry.holders

    @property
    def keys(self) -> list[Hashable]:
        """What is loaded or being loaded."""
        with self._lock:
            return list(self._entries)

    def _release(self, key: Hashable) -> None:
        with self._lock:
            entry = self._entries[key]
            entry.holders -= 1
            if entry.holders == 0:
                del self._entries[key]


@dataclass
class _Entry:
    holders: int = 0
    value: Any = None
    error: BaseException | None = None
    ready: threading.Event = field(default_factory=threading.Event)


class _Lease:
    """One holder's share. `close` may be called twice; `value` is not to be used after it."""

    def __init__(self, value: Any, release: Callable[[], None]) -> None:
        self._value = value
        self._release: Callable[[], None] | None = release

    @property
    def value(self) -> Any:
        return self._value

    def close(self) -> None:
        release, self._release, self._value = self._release, None, None
        if release is not None:
            release()
