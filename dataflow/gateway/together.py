"""Requests of one turn of the loop, encoded and decoded together: one by one, numpy's calls cost more than their bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np

from dataflow.core.inprocess import Reply
from dataflow.core.schema import Column
from dataflow.gateway.correlation import Pending
from dataflow.gateway.doors import PipelineDoor
from dataflow.transport.api import Header

# What is larger goes by itself.
SMALL_BYTES: Final = 4_096


@dataclass(frozen=True, slots=True)
class Ask:
    """What travels with a request's records: the deadline (Unix ms) and the caller's headers.

    whole   one bad row ends the request
    """

    deadline_ms: int
    whole: bool = True
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose records go out at the end of this turn of the loop."""

    door: PipelineDoor
    pending: Pending[Reply]
    columns: Mapping[str, Column]
    rows: int
    ask: Ask


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits for a request's answer, and at which door."""

    future: asyncio.Future[None]
    door: PipelineDoor


def encoded(group: Sequence[Asked]) -> list[list[bytes | None] | Exception]:
    """The payloads of each request's records, or why it has none; the requests are of one door. Raises nothing."""
    door = group[0].door
    small = [asked for asked in group if sum(c.nbytes for c in asked.columns.values()) <= SMALL_BYTES]
    if len(small) == len(group) > 1:
        rows = sum(asked.rows for asked in group)
        try:
            values = door.values(
                {n: np.concatenate([asked.columns[n] for asked in group]) for n in door.request.names}, rows
            )
            return [values[at : at + asked.rows] for at, asked in zip(_starts(group), group, strict=False)]
        except Exception:  # noqa: BLE001, S110 - one of them cannot be encoded: which, and why, is found one by one
            pass
    made: list[list[bytes | None] | Exception] = []
    for asked in group:
        try:
            made.append(door.values(asked.columns, asked.rows))
        except Exception as error:  # noqa: BLE001 - its caller is told; the others are not to wait for it
            made.append(error)
    return made


def _starts(group: Iterable[Asked]) -> Iterable[int]:
    return accumulate((asked.rows for asked in group), initial=0)


def decode(ended: Iterable[Pending[Reply]]) -> None:
    """Decode the answers of requests that ended at once, those of a door in one go, where all their rows have one."""
    doors: dict[int, tuple[PipelineDoor, list[Pending[Reply]]]] = {}
    for pending in ended:
        waiter = pending.waiter
        assert isinstance(waiter, Waiter), "set by ask"
        if all(reply is not None and reply.good for reply in pending.results):
            doors.setdefault(id(waiter.door), (waiter.door, []))[1].append(pending)
    for door, group in doors.values():
        replies = [reply for pending in group for reply in pending.results if reply is not None]
        if sum(len(reply.value or b"") for reply in replies) > SMALL_BYTES * len(group):
            continue
        try:
            columns = door.columns(replies)
        except Exception:  # noqa: BLE001, S112 - which of them it is, is found one by one
            continue
        at = 0
        for pending in group:
            end = at + len(pending.results)
            pending.columns = {name: column[at:end] for name, column in columns.items()}
            at = end
