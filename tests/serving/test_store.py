from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from dataflow.core.errors import ModelError
from dataflow.serving import ModelStore


class Loaded:
    pass


def test_holders_share_and_the_last_one_frees() -> None:
    store = ModelStore()
    share = store.sharer("m", "digest")
    first = share("cpu", Loaded)
    second = share("cpu", Loaded)
    other = share("cuda", Loaded)
    key = ("m", "digest", "cpu")
    assert first.value is second.value
    assert other.value is not first.value
    assert store.holders(key) == 2
    alive = weakref.ref(first.value)
    first.close()
    first.close()  # a second close changes nothing
    assert store.holders(key) == 1
    second.close()
    gc.collect()
    assert alive() is None
    assert store.keys == [("m", "digest", "cuda")]
    with pytest.raises(ModelError, match="is not loaded"):
        store.holders(key)


def test_many_ask_at_once_and_one_loads() -> None:
    store, started, loads = ModelStore(), threading.Barrier(8), []

    def load() -> Loaded:
        loads.append(threading.get_ident())
        return Loaded()

    def ask(_: int) -> object:
        started.wait()
        return store.lease("m", load).value

    with ThreadPoolExecutor(8) as pool:
        values = set(pool.map(ask, range(8)))
    assert len(values) == len(loads) == 1
    assert store.holders("m") == 8


def test_a_failed_load_reaches_those_who_wait_and_is_tried_anew() -> None:
    store, loading, waiting = ModelStore(), threading.Event(), threading.Event()

    def fail() -> Loaded:
        loading.set()
        waiting.wait(10)
        raise OSError("no such file")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.lease, "m", fail)
        loading.wait(10)
        second = pool.submit(store.lease, "m", Loaded)
        while store.holders("m") < 2:  # the second has joined the wait
            threading.Event().wait(0.001)
        waiting.set()
        with pytest.raises(OSError, match="no such file"):
            first.result(10)
        with pytest.raises(ModelError, match="loading m failed: no such file"):
            second.result(10)
    assert store.keys == []
    assert isinstance(store.lease("m", Loaded).value, Loaded)
