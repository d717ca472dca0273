"""One run: a door, all that is thrown at it, and what it holds when all have gone."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from attacks import crowd, described, frames, listed
from attacks.bodies import Case, binary_case, json_case
from attacks.doors import address_case, header_case, record_case
from attacks.heads import head_case
from attacks.messages import Callers
from attacks.target import Held, Options, Target
from attacks.verdict import Tally
from attacks.wire import BOUND_S, Wire, once, request

Tell = Callable[[str], None]
FULL_CASES: Final = 100_000
QUICK_CASES: Final = 1_200
# Of the cases that are made by chance, how many are of which family. The list and the crowd come on top.
SHARES: Final = {
    "json": 0.40, "binary": 0.19, "records": 0.10, "headers": 0.04, "addresses": 0.06, "heads": 0.08, "grpc": 0.10,
    "described": 0.03,
}  # fmt: skip
_BODIES: Final[dict[str, Callable[[Random], Case]]] = {
    "json": json_case, "binary": binary_case, "records": record_case, "headers": header_case, "addresses": address_case,
}  # fmt: skip
_WIRES: Final = 32
_HEADS_AT_ONCE: Final = 200
_CALLS_AT_ONCE: Final = 64
# What may stay: threads' files, a client's connection to itself, pools that grow once.
_MORE_DESCRIPTORS: Final = 20
_MORE_TASKS: Final = 3
_MORE_MB: Final = 150.0
_PEAK_MB: Final = 1_500.0


@dataclass(frozen=True)
class Settings:
    """`cases` made by chance, of the families; `crowd` idle connections; `seed` decides the cases.

    bound_s   an exchange that takes longer hangs
    settle_s  so long what is held may take to go when nobody asks any more, and
    stop_s    the door to end when it is told to
    """

    seed: int
    cases: int = FULL_CASES
    crowd: int = crowd.WANTED
    families: tuple[str, ...] = (*SHARES, "list", "frames")
    bound_s: float = BOUND_S
    settle_s: float = 60.0
    stop_s: float = 60.0
    options: Options = field(default_factory=Options)


def run(chosen: Settings, tell: Tell) -> dict[str, Any]:
    """The document of the verdict; ``ok`` says whether the door withstood."""
    folder = Path(tempfile.mkdtemp(prefix="dataflow-attacks-"))
    target = Target(folder, chosen.options)
    tally = Tally()
    began = time.monotonic()
    try:
        measured = asyncio.run(_Run(chosen, target, tally, tell).all())
    finally:
        if not target.stop(chosen.stop_s):
            tally.leak("the door did not end by itself")
        log = target.log.read_text(errors="replace")
        shutil.rmtree(folder, ignore_errors=True)
    for line in tally.told:
        tell(f"WRONG {line}")
    for leak in tally.leaks:
        tell(f"LEAK {leak}")
    if log.strip() and not tally.sound:
        tell(log[-2_000:])
    return tally.document(seed=chosen.seed, seconds=round(time.monotonic() - began, 1), **measured)


class _Run:
    def __init__(self, chosen: Settings, target: Target, tally: Tally, tell: Tell) -> None:
        self._chosen = chosen
        self._target = target
        self._tally = tally
        self._tell = tell
        self._peak_mb = 0.0

    async def all(self) -> dict[str, Any]:
        watching = asyncio.create_task(self._watch())
        await self._warm_up()
        before = await asyncio.to_thread(self._target.tell)
        for name in self._chosen.families:
            if name == "list":
                await self._timed(name, self._list)
            elif name == "frames":
                await self._timed(name, self._frames)
            else:
                await self._timed(name, partial(self._family, name, int(self._chosen.cases * SHARES[name])))
        idle = 0
        if self._chosen.crowd:
            idle = await crowd.attack(self._target.port, self._chosen.crowd, self._tell, self._tally)
        after = await self._settled(before)
        watching.cancel()
        if self._peak_mb > before.memory_mb + _PEAK_MB:
            self._tally.leak(f"memory: {self._peak_mb:.0f} MB at its peak")
        return {
            "idle_connections": idle,
            "memory_mb": [round(before.memory_mb), round(self._peak_mb), round(after.memory_mb)],
            "descriptors": [before.descriptors, after.descriptors],
        }

    async def _timed(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        began, cases = time.monotonic(), sum(self._tally.cases.values())
        await work()
        done = sum(self._tally.cases.values()) - cases
        self._tell(
            f"{name}: {done:,} cases in {time.monotonic() - began:.1f} s, {self._target.memory_mb:.0f} MB"
        )

    async def _warm_up(self) -> None:
        """Code is loaded and pools are made before it is measured what is held."""
        for make in _BODIES.values():
            for number in range(40):
                case = make(Random(f"warm/{number}"))
                sent = request(case.path, case.body, case.headers, case.method)
                async with Wire(self._target.port) as wire:
                    await wire.ask([sent], self._chosen.bound_s, head=case.method == "HEAD")
        callers = Callers(self._target.grpc_port, Tally())
        for number in range(40):
            await callers.case(Random(f"warm/{number}"), "")
        await callers.close()

    async def _watch(self) -> None:
        while True:
            self._peak_mb = max(self._peak_mb, self._target.memory_mb)
            await asyncio.sleep(0.1)

    def _random(self, family: str, number: int) -> Random:
        return Random(f"{self._chosen.seed}/{family}/{number}")

    async def _family(self, name: str, cases: int) -> None:
        if name == "described":
            if cases:
                await asyncio.to_thread(
                    described.attack, self._target.port, cases, self._chosen.seed, self._tally
                )
        elif name == "heads":
            await self._side_by_side(cases, _HEADS_AT_ONCE, self._head)
        elif name == "grpc":
            callers = Callers(self._target.grpc_port, self._tally)
            try:
                await self._side_by_side(
                    cases, _CALLS_AT_ONCE, lambda n: callers.case(self._random(name, n), f"{name}/{n}")
                )
            finally:
                await callers.close()
        else:
            await self._bodies(name, cases)

    @staticmethod
    async def _side_by_side(cases: int, at_once: int, work: Callable[[int], Awaitable[None]]) -> None:
        numbers = iter(range(cases))

        async def one_after_another() -> None:
            for number in numbers:
                await work(number)

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))

    async def _head(self, number: int) -> None:
        sent = head_case(self._random("heads", number))
        outcome = await once(self._target.port, [sent])
        self._tally.note("heads", outcome.status, (f"heads/{number}", sent), outcome.body)

    async def _bodies(self, name: str, cases: int) -> None:
        """Connections that are used again and again, as clients do."""
        numbers = iter(range(cases))

        async def one_after_another() -> None:
            async with Wire(self._target.port) as wire:
                for number in numbers:
                    case = _BODIES[name](self._random(name, number))
                    sent = request(case.path, case.body, case.headers, case.method)
                    outcome = await wire.ask([sent], self._chosen.bound_s, head=case.method == "HEAD")
                    self._tally.note(name, outcome.status, (f"{name}/{number}", sent), outcome.body)
                    if _endless(case):
                        await wire.close()  # what follows of it would be taken for the next answer

        await asyncio.gather(*(one_after_another() for _ in range(_WIRES)))

    async def _list(self) -> None:
        """By turns what is quick, and side by side what waits for a time-out."""
        for attack in (*listed.framing(), *listed.floods()):
            await self._attack(attack)
        await asyncio.gather(*(self._attack(attack) for attack in listed.slow()))

    async def _frames(self) -> None:
        """Calls beside them and after them are answered."""
        good = [self._good_call() for _ in range(5)]
        await asyncio.gather(frames.attack(self._target.grpc_port, self._tally), *good)
        await self._good_call()

    async def _good_call(self) -> None:
        callers = Callers(self._target.grpc_port, self._tally)
        try:
            await callers.good(frames.FAMILY)
        finally:
            await callers.close()

    async def _attack(self, attack: listed.Attack) -> None:
        outcome = await attack.run(self._target.port)
        if outcome.status in attack.good:
            self._tally.note("list", outcome.status, attack.name)
        else:
            self._tally.wrong(
                "list", outcome.status, attack.name, f"right: {set(attack.good)}; {outcome.body!r}"
            )

    async def _settled(self, before: Held) -> Held:
        """What is held when nobody asks any more; what is too much of it is a leak."""
        deadline = time.monotonic() + self._chosen.settle_s
        while True:
            held = await asyncio.wait_for(asyncio.to_thread(self._target.tell), BOUND_S)
            leaks = _leaks(before, held)
            if not leaks or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        for leak in leaks:
            self._tally.leak(leak)
        return held


def _leaks(before: Held, after: Held) -> list[str]:
    found = [
        f"{name}: {getattr(after, name)}" for name in ("pending", "budget", "streams") if getattr(after, name)
    ]
    for name, more in (
        ("tasks", _MORE_TASKS), ("descriptors", _MORE_DESCRIPTORS), ("memory_mb", _MORE_MB),
    ):  # fmt: skip
        first, last = getattr(before, name), getattr(after, name)
        if last > first + more:
            found.append(f"{name}: {last:.0f}, {first:.0f} at first")
    return found


def _endless(case: Case) -> bool:
    return case.path.startswith("/taps") or case.path.endswith("generate_stream")
