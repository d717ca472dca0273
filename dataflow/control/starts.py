"""Where the reading of a stream begins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dataflow.core import ids
from dataflow.core.errors import SpecError
from dataflow.transport.api import EARLIEST, LATEST, Admin, Position

_AGO: Final = re.compile(r"-(\d{1,9})(ms|s|m|h|d)")
_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
# A record may be stamped a little before the time in its id: the clocks of two machines.
ID_SLACK_MS: Final = 10_000


@dataclass(frozen=True)
class Start:
    """At `time_ms` if that is set, else at `offset` of every partition (EARLIEST, LATEST, or a number)."""

    offset: int = LATEST
    time_ms: int = -1

    def offsets(
        self,
        admin: Admin,
        positions: Sequence[Position],
        low: Mapping[Position, int],
        high: Mapping[Position, int],
    ) -> dict[Position, int]:
        """The first offset of each partition, within what the log holds."""
        if self.time_ms >= 0:
            found = admin.offsets(positions, self.time_ms)
        elif self.offset == EARLIEST:
            found = dict(low)
        elif self.offset == LATEST:
            found = dict(high)
        else:
            found = dict.fromkeys(positions, self.offset)
        return {p: min(max(found[p], low[p]), high[p]) for p in positions}


FROM_EARLIEST: Final = Start(EARLIEST)
FROM_LATEST: Final = Start(LATEST)


def start_of_id(record_id: str) -> Start:
    """A little before the time within an id. Raises SpecError for what is no id."""
    try:
        return Start(time_ms=max(ids.time_ms_of(record_id.strip().encode()) - ID_SLACK_MS, 0))
    except ValueError:
        raise SpecError(
            f"'{record_id[:80]}' is no record id",
            hint="an id looks like 0192a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",
        ) from None


def parse_start(text: str, now_ms: int) -> Start:
    """What users say of a start. Raises SpecError.

    ``earliest``, ``latest``, ``offset:N`` (or N), ``id:ID``, an ISO 8601 time (UTC unless it says otherwise), or how
    long ago: ``-5m``.
    """
    text = text.strip()
    if text in ("earliest", "latest"):
        return FROM_EARLIEST if text == "earliest" else FROM_LATEST
    number = text.removeprefix("offset:")
    if number.isascii() and number.isdigit() and len(number) < 19:
        return Start(int(number))
    if text.startswith("id:"):
        return start_of_id(text.removeprefix("id:"))
    return Start(time_ms=parse_time_ms(text, now_ms))


def parse_time_ms(text: str, now_ms: int) -> int:
    """An ISO 8601 time, or how long ago, as Unix ms. Raises SpecError."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(now_ms - int(ago[1]) * _MILLISECONDS[ago[2]], 0)
    try:
        time = datetime.fromisoformat(text)
        return max(int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1_000), 0)
    except (ValueError, OverflowError):
        raise SpecError(
            f"'{text[:80]}' is no place to start",
            hint="valid: earliest, latest, offset:N, id:ID, a time such as 2024-05-01T12:00:00Z, or -5m",
        ) from None
