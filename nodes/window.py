"""`window.tumbling`, `window.hopping`, `window.session`, `window.count`: aggregates of records by key and window."""

from __future__ import annotations

from typing import Final

from pydantic import Field as Setting
from pydantic import model_validator

from dataflow.sdk import (
    ContractContext,
    Duration,
    NodeContext,
    Schema,
    Wait,
    node,
)

from ._window import WindowNode
from ._window_panes import AlignedPanes, CountPanes, SessionPanes
from ._window_settings import END, START, Aggregated, Timed, event_times, late_contract, output_of

# Windows that one record may be in: each is an entry of state, and a result.
MAX_OVERLAPS: Final = 1_000

TUMBLING_EXAMPLE = """
kind: Topic
name: readings.taken
key: station
fields:
  station: string
  celsius: float64
  at: {type: timestamp, event_time: true}
---
kind: Pipeline
name: means-of-five-minutes
inputs: {reading: readings.taken}
nodes:
  mean:
    use: window.tumbling
    from: reading
    with:
      size: 5m
      delay: 10s
      late: port
      aggregate: {readings: count, celsius: mean(celsius), highest: max(celsius)}
    keep: [station]
tests:
  - name: a window closes when event time passes its end
    given:
      reading:
        - {station: A, celsius: 10.0, at: "2024-05-01T12:01:00Z"}
        - {station: A, celsius: 20.0, at: "2024-05-01T12:04:59Z"}
        - {station: A, celsius: 30.0, at: "2024-05-01T12:05:10Z"}
        - {station: A, celsius: 99.0, at: "2024-05-01T12:04:00Z"}
    expect:
      mean:
        - {station: A, readings: 2, celsius: 15.0, highest: 20.0, window_start: "2024-05-01T12:00:00Z"}
        - {station: A, readings: 1, celsius: 30.0, window_end: "2024-05-01T12:10:00Z"}
      mean.late: [{station: A, celsius: 99.0}]
"""

HOPPING_EXAMPLE = """
kind: Topic
name: calls.ended
key: line
fields:
  line: string
  seconds: float32
  at: {type: timestamp, event_time: true}
---
kind: Pipeline
name: length-of-calls
inputs: {call: calls.ended}
nodes:
  lengths:
    use: window.hopping
    from: call
    with:
      size: 10m
      every: 5m
      aggregate: {calls: count, long: "quantile(seconds, 0.9)"}
tests:
  - name: each call is in two windows
    given:
      call:
        - {line: a, seconds: 30, at: "2024-05-01T12:01:00Z"}
        - {line: a, seconds: 60, at: "2024-05-01T12:06:00Z"}
    expect:
      lengths:
        - {window_start: "2024-05-01T11:55:00Z", calls: 1, long: 30}
        - {window_start: "2024-05-01T12:00:00Z", calls: 2, long: 57}
        - {window_start: "2024-05-01T12:05:00Z", calls: 1, long: 60}
"""

SESSION_EXAMPLE = """
kind: Topic
name: pages.seen
key: visitor
fields:
  visitor: string
  page: string
  at: {type: timestamp, event_time: true}
---
kind: Pipeline
name: visits
inputs: {page: pages.seen}
nodes:
  visit:
    use: window.session
    from: page
    with:
      gap: 30m
      delay: 1m
      aggregate: {pages: count, different: distinct(page), left: last(page), seen_last: max(at)}
    keep: [visitor]
tests:
  - name: half an hour without a page ends a visit
    given:
      page:
        - {visitor: ann, page: home, at: "2024-05-01T12:00:00Z"}
        - {visitor: ann, page: cart, at: "2024-05-01T12:29:00Z"}
        - {visitor: ann, page: home, at: "2024-05-01T14:00:00Z"}
    expect:
      visit:
        - {visitor: ann, pages: 2, different: 2, left: cart, window_end: "2024-05-01T12:59:00Z"}
        - {visitor: ann, pages: 1, seen_last: "2024-05-01T14:00:00Z"}
"""

COUNT_EXAMPLE = """
kind: Topic
name: parts.measured
key: machine
fields: {machine: string, width: float64}
---
kind: Pipeline
name: samples-of-three
inputs: {part: parts.measured}
nodes:
  sample:
    use: window.count
    from: part
    with: {count: 3, timeout: 1h, aggregate: {parts: count, mean: mean(width), largest: max(width)}}
    keep: [machine]
tests:
  - name: three parts of one machine, and what is left an hour later
    given:
      part:
        - {machine: m1, width: 1.0}
        - {machine: m2, width: 7.0}
        - {machine: m1, width: 2.0}
        - {machine: m1, width: 6.0}
    expect:
      sample: [{machine: m1, parts: 3, mean: 3.0, largest: 6.0}, {machine: m2, parts: 1, mean: 7.0}]
"""


class Tumbling(Timed):
    """How large windows are, and what they make of their records."""

    size: Duration = Setting(description="How long a window is.")
    offset: Wait = Setting(
        default=0, description="Windows begin at multiples of their size, UTC, and so much later."
    )


class Hopping(Tumbling):
    """How large windows are, how often one begins, and what they make of their records."""

    every: Duration = Setting(
        description="A window begins so often: each record is in `size / every` windows."
    )

    @model_validator(mode="after")
    def _overlaps(self) -> Hopping:
        if self.every > self.size:
            raise ValueError(
                "every: longer than the size leaves gaps; filter the records first, or size: larger"
            )
        if self.size > self.every * MAX_OVERLAPS:
            raise ValueError(f"every: a record would be in more than {MAX_OVERLAPS} windows")
        return self


class Session(Timed):
    """How long a silence ends a session, and what sessions make of their records."""

    gap: Duration = Setting(description="A session ends when its key brought no record for so long.")


class Count(Aggregated):
    """How many records a window has, and what it makes of them."""

    count: int = Setting(ge=1, le=1_000_000, description="Records of a key to a window.")
    timeout: Duration | None = Setting(
        default=None,
        description="So long after its first record a window closes with what it has. Default: it waits.",
    )

    @model_validator(mode="after")
    def _of_event_time(self) -> Count:
        given = [name for name in ("delay", "idle_timeout") if name in self.model_fields_set]
        if given:
            raise ValueError(f"{given[0]}: has no effect, a window of so many records has no watermark")
        return self


def _contract(settings: Aggregated, context: ContractContext, event_time: str) -> dict[str, Schema]:
    event_times(settings, context.inputs)
    found = {"out": output_of(settings, context, event_time)}
    if isinstance(settings, Timed) and settings.late == "port":
        found["late"] = late_contract(context)
    return found


def _ports(settings: Timed) -> tuple[str, ...]:
    return ("out", "late") if settings.late == "port" else ("out",)


class _TimedWindow(WindowNode):
    """What the kinds of windows in time share."""

    ports = staticmethod(_ports)


@node("window.tumbling", settings=Tumbling, inputs=("in", "*"), example=TUMBLING_EXAMPLE)
class WindowTumbling(_TimedWindow):
    """Aggregate the records of each key in windows of one size, one after another.

    A window begins at `window_start` and ends before `window_end`. It closes when event time has passed its end, whoever's
    record moved it, and gives one result with the record's key; a key without records in it gives none. Event time is the
    *watermark*: the latest time seen less `delay`, with several inputs (`from: {a: EDGE, b: EDGE}`) the least of theirs. It
    moves row by row, so that results do not depend on how records were cut into batches. With `lateness`, a closed window
    still takes records, and each gives a corrected result; a record whose windows are all over goes where `late` says.

    Without an event-time field windows are in the time of processing, and closed by the clock.
    """

    @staticmethod
    def contract(settings: Tumbling, context: ContractContext) -> dict[str, Schema]:
        return _contract(settings, context, START)

    def __init__(self, settings: Tumbling, context: NodeContext) -> None:
        sizes = {"size_ms": settings.size, "every_ms": settings.size, "offset_ms": settings.offset}
        super().__init__(settings, context, AlignedPanes, sizes)


@node("window.hopping", settings=Hopping, inputs=("in", "*"), example=HOPPING_EXAMPLE)
class WindowHopping(_TimedWindow):
    """Aggregate the records of each key in windows of one size that overlap: one begins every so often.

    A record is in `size / every` windows. All else is as in `window.tumbling`; a record is late when all its windows are
    over, and counts in those that are not. With `emit: update` it gives a result for each of its windows.
    """

    @staticmethod
    def contract(settings: Hopping, context: ContractContext) -> dict[str, Schema]:
        return _contract(settings, context, START)

    def __init__(self, settings: Hopping, context: NodeContext) -> None:
        sizes = {"size_ms": settings.size, "every_ms": settings.every, "offset_ms": settings.offset}
        super().__init__(settings, context, AlignedPanes, sizes)


@node("window.session", settings=Session, inputs=("in", "*"), example=SESSION_EXAMPLE)
class WindowSession(_TimedWindow):
    """Aggregate the records of each key that come no further apart than `gap`.

    A session begins with its first record, at `window_start`, and ends `gap` after its last one, at `window_end`; `min(TIME)`
    and `max(TIME)` give the records' own times. A record out of order that lies between two sessions makes them one. All
    else is as in `window.tumbling`.
    """

    @staticmethod
    def contract(settings: Session, context: ContractContext) -> dict[str, Schema]:
        return _contract(settings, context, END)

    def __init__(self, settings: Session, context: NodeContext) -> None:
        super().__init__(settings, context, SessionPanes, {"gap_ms": settings.gap})


@node("window.count", settings=Count, inputs=("in", "*"), example=COUNT_EXAMPLE)
class WindowCount(WindowNode):
    """Aggregate every so many records of each key, in the order in which they are read.

    The last of them closes the window; one that does not fill is closed by `timeout`, or at the end of a bounded run.
    `window_start` and `window_end` are the earliest and the latest time of its records: event time if there is an
    event-time field, else the time of processing.
    """

    @staticmethod
    def contract(settings: Count, context: ContractContext) -> dict[str, Schema]:
        return _contract(settings, context, END)

    def __init__(self, settings: Count, context: NodeContext) -> None:
        sizes = {"count": settings.count, "timeout_ms": settings.timeout or 0}
        super().__init__(settings, context, CountPanes, sizes)
