"""Thousands of connections that do nothing, and somebody who wants an answer meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from attacks.verdict import CLOSED, HUNG, Tally
from attacks.wire import BOUND_S, Wire, once, request
from dataflow.core.limits import MAX_CONNECTIONS
from dataflow.gateway.connection import room_for

FAMILY: Final = "crowd"
WANTED: Final = 10_000
_AT_ONCE: Final = 200
_RECORD: Final = request("/pipelines/sums", b'{"x":[1,2,3],"name":"a"}')
_QUIET: Final = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def attack(port: int, wanted: int, tell: Callable[[str], None], tally: Tally) -> int:
    """Open connections, ask beside them, and wait until the server has ended them; how many there were."""
    able = min(room_for(wanted), room_for(MAX_CONNECTIONS))
    if able < wanted:
        tell(
            f"ONLY {able:,} of {wanted:,} IDLE CONNECTIONS: the limit of file descriptors does not allow more"
        )
    wires = [Wire(port) for _ in range(able)]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def come(index: int, wire: Wire) -> None:
        async with gate:
            try:
                async with asyncio.timeout(BOUND_S):
                    if index % 3 == 0:
                        await wire.open()  # says nothing
                    elif index % 3 == 1:
                        await wire.send([_QUIET[:-4]])  # says half of it
                    else:
                        await wire.ask([_QUIET])  # asked once
            except TimeoutError:
                tally.note(FAMILY, HUNG, "coming in")
            except OSError as error:
                tally.note(FAMILY, CLOSED, "coming in", error)

    await asyncio.gather(*(come(index, wire) for index, wire in enumerate(wires)))
    for _ in range(20):
        outcome = await once(port, [_RECORD])
        if outcome.status == 200:
            tally.note(FAMILY, 200, "beside the crowd")
        else:
            tally.wrong(FAMILY, outcome.status, "beside the crowd", "a good request was not answered")
    left = await asyncio.gather(*(_ended(wire) for wire in wires))
    for ended in left:
        if ended:
            tally.note(FAMILY, CLOSED, "an idle connection")
        else:
            tally.note(FAMILY, HUNG, "an idle connection that is never ended")
    return able


async def _ended(wire: Wire) -> bool:
    """Whether the server ends a connection that is idle."""
    try:
        async with asyncio.timeout(BOUND_S):
            return await wire.ended()
    except TimeoutError:
        return False
    finally:
        wire.abort()
