"""How long rows wait, and batches taken apart and put together again around them, so that order per key is kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np

from dataflow.core.batch import Batch, Row, concatenate, read_order
from dataflow.planner.plan import RetryPolicy
from dataflow.runtime.nodes import in_read_order


def split(
    emitted: list[tuple[str, Batch]], keys: set[bytes | None]
) -> tuple[list[tuple[str, Batch]], list[tuple[str, Batch]]]:
    """What may go out, and what waits because its key does. A record without a key waits for nobody."""
    free: list[tuple[str, Batch]] = []
    held: list[tuple[str, Batch]] = []
    for port, batch in emitted:
        waits = np.array([row.key in keys for row in batch.rows], dtype=bool)
        if not waits.any():
            free.append((port, batch))
            continue
        held.append((port, batch.take(np.flatnonzero(waits))))
        free.append((port, batch.take(np.flatnonzero(~waits))))
    return free, held


def parted(sides: Mapping[str, Batch], under_way: Sequence[Row]) -> tuple[dict[str, Batch], dict[str, Batch]]:
    """The sides of records that nothing is under way of, and those of records that must wait, or whose key must."""
    sources = {row.source for row in under_way}
    keys = {row.key for row in under_way} - {None}
    ready, waiting = {}, {}
    for port, batch in sides.items():
        waits = np.array([row.source in sources or row.key in keys for row in batch.rows], dtype=bool)
        if not waits.all():
            ready[port] = batch.take(np.flatnonzero(~waits)) if waits.any() else batch
        if waits.any():
            waiting[port] = batch.take(np.flatnonzero(waits))
    return ready, waiting


def places_of(rows: Sequence[Row]) -> dict[bytes, int]:
    """Where each record lies in a batch, by its id."""
    return {row.id: place for place, row in enumerate(rows)}


def merged(
    held: list[tuple[str, Batch]], emitted: list[tuple[str, Batch]], places: Mapping[bytes, int]
) -> list[tuple[str, Batch]]:
    """One batch a port, in the order in which the records were read.

    Those of one record, its children or what was made at once from state, go by the `places` that the records had, or
    their parents, in the batch that the node was given first.
    """
    made = []
    for port in dict.fromkeys(p for p, _ in (*held, *emitted)):
        parts = [b for p, b in (*held, *emitted) if p == port]
        batch = concatenate(parts[0].schema, parts)
        first = [_place(row, places) for row in batch.rows]
        order = read_order(np.array([row.source for row in batch.rows], dtype=np.intp))
        made.append((port, batch.take(np.lexsort(np.array([first, order])))))
    return made


def _place(row: Row, places: Mapping[bytes, int]) -> int:
    found = places.get(row.id)
    return next((places[p] for p in row.parents if p in places), -1) if found is None else found


def in_order(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    batch = concatenate(parts[0].schema, parts)
    return batch.take(in_read_order(batch.rows))


def backoff_ms(policy: RetryPolicy, attempt: int, seed: bytes = b"") -> int:
    """Wait before attempt `attempt` + 1: doubling from backoff_ms, at most backoff_max_ms, shortened by up to `jitter`.

    How much shorter is a hash of `seed` (the id of a record that waits) and the attempt: a run of the same records
    waits the same times, and records that failed together do not come back together.
    """
    whole = min(policy.backoff_ms * 2 ** (attempt - 1), max(policy.backoff_max_ms, policy.backoff_ms))
    if policy.jitter:
        whole *= 1 - policy.jitter * crc32(seed + str(attempt).encode()) / 2**32
    return int(whole)
