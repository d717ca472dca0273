"""Doors that are broken on purpose: what the verdict must not let pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from dataflow.gateway.app import Gateway

# What is broken, every so many requests.
_EVERY: Final = 20


class Mutant:
    """An ASGI application around a gateway's; `break_it` is what happens to a request now and then."""

    def __init__(self, gateway: Gateway, break_it: Callable[[Mutant, Any], Any]) -> None:
        self.gateway = gateway
        self._break_it = break_it
        self._count = 0
        self.kept: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._count += 1
        if self._count % _EVERY == 0:
            await self._break_it(self, send)
        await self.gateway(scope, receive, send)


async def _fails(_: Mutant, __: Any) -> None:
    raise RuntimeError("broken on purpose")


async def _hangs(_: Mutant, __: Any) -> None:
    await asyncio.Event().wait()


async def _leaks(mutant: Mutant, _: Any) -> None:
    mutant.kept.append(asyncio.ensure_future(asyncio.Event().wait()))


async def _holds(mutant: Mutant, _: Any) -> None:
    mutant.gateway._budget.used += 1


async def _hoards(mutant: Mutant, _: Any) -> None:
    mutant.kept.append(b"x" * 20_000_000)


MUTANTS: Final[dict[str, Callable[[Mutant, Any], Any]]] = {
    "fails": _fails,
    "hangs": _hangs,
    "leaks": _leaks,
    "holds": _holds,
    "hoards": _hoards,
}
