"""Doors that are broken on purpose: what the verdict must not let pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from dataflow.gateway.app import Gateway

# What is broken, every so many requests.
_EVERY: Final = 20


class Mutant:
    """An ASGI application around a gateway's, which now and then breaks a request in one of some ways, by turns."""

    def __init__(self, gateway: Gateway, ways: Sequence[Callable[[Mutant], Awaitable[None]]]) -> None:
        self.gateway = gateway
        self._ways = ways
        self._count = 0
        self.kept: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._count += 1
        turn, rest = divmod(self._count, _EVERY)
        if rest == 0:
            await self._ways[turn % len(self._ways)](self)
        await self.gateway(scope, receive, send)


async def _fails(_: Mutant) -> None:
    raise RuntimeError("broken on purpose")


async def _hangs(_: Mutant) -> None:
    await asyncio.Event().wait()


async def _leaks(mutant: Mutant) -> None:
    mutant.kept.append(asyncio.ensure_future(asyncio.Event().wait()))


async def _holds(mutant: Mutant) -> None:
    mutant.gateway._budget.used += 1


async def _hoards(mutant: Mutant) -> None:
    mutant.kept.append(b"x" * 20_000_000)


MUTANTS: Final[dict[str, Callable[[Mutant], Awaitable[None]]]] = {
    "fails": _fails,
    "hangs": _hangs,
    "leaks": _leaks,
    "holds": _holds,
    "hoards": _hoards,
}
