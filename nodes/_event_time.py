"""Event time of a keyed node: the watermark over its inputs, row by row, and how it goes on while they are silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    BEFORE_ALL_MS,
    Batch,
    ContractError,
    Duration,
    KeyedState,
    Schema,
    Settings,
    Timer,
    Wait,
    nearest,
)

NO_TIME: Final = -(1 << 63)  # of a row whose event time is null
NO_KEY: Final = "the record has no key, and state is kept by key: declare key: on its topic, or rekey it"
_NEVER: Final = 1 << 62
# What belongs to the node and not to a key. A record may have the key b"": no name of a user begins with ~.
_NODE: Final = b""
_INPUTS: Final = "~inputs"


class EventTimeSettings(Settings):
    """Where event time comes from, and how long it waits."""

    time: str | None = Setting(
        default=None,
        description="The timestamp field that is a record's event time. Default: the contract's event-time field.",
    )
    delay: Wait = Setting(
        default=0,
        description="How far records may be out of order: the watermark is the latest event time seen less this.",
    )
    idle_timeout: Duration | None = Setting(
        default=None,
        description=(
            "An input that brought no record for so long is not waited for, if none of it lies unread; while all are silent, "
            "event time goes on with the wall clock. Default: an input is waited for however long it is silent."
        ),
    )


def time_field(time: str | None, schema: Schema, where: str = "the input") -> str:
    """The event-time field of an input, "" if it has none. Raises ContractError at ("with", "time")."""
    path = ("with", "time")
    if time is None:
        return next((f.name for f in schema if f.event_time), "")
    if time not in schema:
        raise ContractError(
            f"time: no field '{time}' in {where}", path=path, hint=nearest(time, schema.names)
        )
    if schema[time].type.kind != "timestamp":
        raise ContractError(
            f"time: '{time}' is {schema[time].type.describe()}",
            path=path,
            hint="event time is a timestamp: transform.select makes one",
        )
    return time


def times_ms(batch: Batch, field: str) -> list[int]:
    """Event times of the rows in Unix ms, NO_TIME for null."""
    times: list[int] = batch[field].astype("datetime64[ms]").astype(np.int64).tolist()
    return times


@dataclass(slots=True)
class _Input:
    """What is known of one input: its latest event time, when it last brought a record, whether it is waited for."""

    latest_ms: int
    heard_ms: int
    idle: bool


@dataclass(slots=True)
class _Inputs:
    """All inputs of a node in one task.

    armed_ms  when a timer is set to look after silent inputs, None while there is none
    pace      while all are idle: event time goes on from the second with the clock from the first, in ms
    """

    by_port: dict[str, _Input]
    armed_ms: int | None = None
    pace: tuple[int, int] | None = None


@dataclass(slots=True)
class Progress:
    """One call's part of the watermark: the largest event time of its port, and the least of the others in `others_ms`.

    The watermark of a row is the smaller of both, less the delay. The caller moves `latest_ms` and ends with `store`.
    """

    latest_ms: int
    others_ms: int
    port: str
    inputs: _Inputs | None


class EventClock:
    """Moves the watermark of a node. All it knows is in the node's state; an instance serves all tasks."""

    def __init__(self, ports: Mapping[str, str], settings: EventTimeSettings) -> None:
        """`ports` has the time field of each input port."""
        self._fields = dict(ports)
        self.delay_ms = settings.delay
        self._idle_ms = settings.idle_timeout or 0
        # The watermark says all there is to know of a single input that is always waited for.
        self._plain = len(ports) == 1 and not self._idle_ms

    def begin(self, port: str, state: KeyedState) -> Progress:
        """A batch arrived on `port`."""
        if self._plain:
            mark = state.watermark_ms
            latest = mark if mark == BEFORE_ALL_MS else mark + self.delay_ms
            return Progress(latest, _NEVER, port, None)
        inputs = self._load(state)
        self._wake(inputs, state)
        mine = inputs.by_port[port]
        mine.heard_ms, mine.idle, inputs.pace = state.now_ms, False, None
        others = [i.latest_ms for name, i in inputs.by_port.items() if name != port and not i.idle]
        return Progress(mine.latest_ms, min(others, default=_NEVER), port, inputs)

    def store(self, progress: Progress, state: KeyedState) -> None:
        """The batch is over: keep what `progress` came to, and see to it that silence will be noticed."""
        inputs = progress.inputs
        if inputs is None:
            return
        inputs.by_port[progress.port].latest_ms = progress.latest_ms
        # A timer for event time that goes on by the clock may be hours away: this input is to be looked after sooner.
        if self._idle_ms and (inputs.armed_ms is None or inputs.armed_ms > state.now_ms + self._idle_ms):
            self._arm(inputs, state)
        self._save(inputs, state)

    def owns(self, timer: Timer) -> bool:
        """Whether a processing timer is the one that looks after silent inputs."""
        return timer.name == _INPUTS and timer.key == _NODE

    def look(self, timer: Timer, state: KeyedState) -> None:
        """That timer is due: advance the watermark past silent inputs. Event timers may be due then; `wait` follows."""
        inputs, now_ms = self._load(state), state.now_ms
        if now_ms - timer.at_ms > self._idle_ms:
            # So late because nobody ran this node: the silence was ours, and records may lie there unread.
            for one in inputs.by_port.values():
                one.heard_ms = now_ms
            inputs.pace = None if inputs.pace is None else (now_ms, state.watermark_ms)
        self._wake(inputs, state)
        for one in inputs.by_port.values():
            one.idle = one.idle or now_ms - one.heard_ms >= self._idle_ms
        waited = [one.latest_ms for one in inputs.by_port.values() if not one.idle]
        if waited:
            mark = min(waited) - self.delay_ms
        else:
            if inputs.pace is None:
                latest = max(one.latest_ms for one in inputs.by_port.values())
                heard = max(one.heard_ms for one in inputs.by_port.values())
                inputs.pace = (heard, max(latest - self.delay_ms, state.watermark_ms))
            since_ms, from_ms = inputs.pace
            mark = from_ms if from_ms <= BEFORE_ALL_MS else from_ms + now_ms - since_ms
        state.advance(mark)
        inputs.armed_ms = None
        self._save(inputs, state)

    @staticmethod
    def _wake(inputs: _Inputs, state: KeyedState) -> None:
        """An input of which records lie unread is not silent: it is this worker that did not listen."""
        for port, one in inputs.by_port.items():
            if state.unread(port):
                one.heard_ms, one.idle = state.now_ms, False

    def wait(self, state: KeyedState) -> None:
        """After `look`, and when the event timers that were due have fired: set the timer for the next look."""
        inputs = self._load(state)
        self._arm(inputs, state)
        self._save(inputs, state)

    def _arm(self, inputs: _Inputs, state: KeyedState) -> None:
        heard = [one.heard_ms for one in inputs.by_port.values() if not one.idle]
        at_ms = min(heard) + self._idle_ms if heard else self._paced(inputs, state)
        inputs.armed_ms = None if at_ms is None else max(at_ms, state.now_ms + 1)
        if inputs.armed_ms is not None:
            state.set_timer(_NODE, _INPUTS, inputs.armed_ms)

    @staticmethod
    def _paced(inputs: _Inputs, state: KeyedState) -> int | None:
        """When event time, going on with the clock, reaches the next event timer; None: there is nothing to reach."""
        due_ms = state.next_event_ms()
        if due_ms is None or inputs.pace is None or inputs.pace[1] <= BEFORE_ALL_MS:
            return None
        since_ms, from_ms = inputs.pace
        return since_ms + due_ms - from_ms

    def _load(self, state: KeyedState) -> _Inputs:
        kept: dict[str, Any] = state.get(_NODE, _INPUTS, {})
        by_port = kept.get("ports", {})
        pace = kept.get("pace")
        return _Inputs(
            {port: _Input(*by_port.get(port, (BEFORE_ALL_MS, state.now_ms, False))) for port in self._fields},
            kept.get("armed_ms"),
            None if pace is None else (pace[0], pace[1]),
        )

    @staticmethod
    def _save(inputs: _Inputs, state: KeyedState) -> None:
        ports = {port: [i.latest_ms, i.heard_ms, i.idle] for port, i in inputs.by_port.items()}
        state.put(_NODE, _INPUTS, {"ports": ports, "armed_ms": inputs.armed_ms, "pace": inputs.pace})
