"""How a process that keeps running treats its memory: set once, by the command that is the process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Final

# <malloc.h>: M_ARENA_MAX.
_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def few_arenas() -> None:
    """Let the C library keep two heaps for all threads; to be called before threads are started.

    glibc gives nearly every thread its own, and what the client's threads fetch is freed by ours: with some fifty
    threads that left 50 MB in pieces. Does nothing where there is no glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_ARENA_MAX, _ARENAS)


def calm_collector() -> None:
    """Let Python look for cyclic garbage rarely, and never again among what is loaded now.

    Records in flight are many small objects without cycles: by default the collector walks all that lives each time
    they pile up, which took two thirds of the time of reading a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
