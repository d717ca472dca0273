"""Locks between processes that the kernel lets go of when their holders die, kill -9 included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataflow.core.errors import BrokerError


def take_lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock until it and all its inherited copies are closed; None if it is held."""
    try:
        import fcntl
    except ImportError as error:
        raise BrokerError(
            "the embedded broker runs on Linux and macOS only",
            hint="use WSL, or an existing cluster with --bootstrap HOST:PORT",
        ) from error
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def hold_lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock for a block; yields whether it was taken."""
    descriptor = take_lock(path, wait=wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)
