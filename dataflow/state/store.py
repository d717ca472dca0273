"""The committed state of one task on this machine: a cache of its changelog partition, so that a start need not read all."""

from __future__ import annotations

from pathlib import Path


class Store:
    """See the module. `next_offset` is the changelog offset up to which it is complete, 0 for an empty one."""

    next_offset: int


def open_store(path: Path | None, topic_id: str, now_ms: int) -> Store:
    """The store in a file (None: in memory), or an empty one that is as good: never an error about the file's content.

    `topic_id` is the identity of the changelog topic (cluster's topic id, or the name where there is none): a file made
    from another one is emptied, as is one that is damaged, or so old that the changelog may have compacted tombstones
    away since. Locked by another process: a temporary one. Folders are made.
    """
    raise NotImplementedError(path, topic_id, now_ms)
