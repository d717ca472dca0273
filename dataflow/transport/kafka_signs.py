"""What a librdkafka consumer lets be seen of itself, and what follows from it where the client does nothing itself."""

from __future__ import annotations

import ctypes
import logging
import math
from typing import Any, Final

from dataflow.core.errors import TransportError

log = logging.getLogger("dataflow.kafka")

# librdkafka's levels are those of syslog.
_NOTICE: Final = 5
_PYTHON_LEVELS: Final = {4: logging.WARNING, _NOTICE: logging.INFO, 6: logging.INFO, 7: logging.DEBUG}
# A member whose heartbeat was not answered in time joins anew after a while, in which the coordinator is back, and not
# more often than this.
REJOIN_AFTER_S: Final = 2.0
REJOIN_EVERY_S: Final = 10.0
# The client's own thread says that it is there so often,
SIGN_EVERY_S: Final = 5.0
# and is given up after so much of polling without a word.
DEAD_S: Final = 30.0
# What counts of the time between two polls: who does not poll does not hear either.
_MOST_S: Final = 1.0


class Signs:
    """Those of one consumer, told on the thread that polls it; times are monotonic seconds.

    Two faults of librdkafka 2.16 are met here:

    - The answer to a heartbeat may tell a member what to give up or to take. A heartbeat that is not answered in time is
      sent again, but not so that the broker would tell it once more: the two disagree from then on, and a partition has
      no owner. Nothing but a notice in the log says that it happened; to join anew mends it.
    - When leaders change, its threads may wait for each other's locks for ever. Nothing is said of that at all; a client
      without signs of life is left behind, since to close it would wait for ever, too.
    """

    def __init__(self, log_level: int, now_s: float) -> None:
        self._shown = _PYTHON_LEVELS.get(log_level, logging.ERROR)
        self._level = max(log_level, _NOTICE)
        self._polled_s = now_s
        self._silent_s = 0.0
        self._missed = False
        self._rejoin_at_s = math.inf
        self._rejoined_s = -math.inf
        self.dead = False

    def settings(self) -> dict[str, Any]:
        """What the client needs so that it is heard; this object is its logger, too."""
        return {
            "log_level": self._level,
            "statistics.interval.ms": int(SIGN_EVERY_S * 1000),
            "stats_cb": self._alive,
        }

    @property
    def unheard(self) -> bool:
        """Whether a heartbeat was not answered in time and nothing has followed yet."""
        return self._missed or self._rejoin_at_s < math.inf

    def _alive(self, statistics: str) -> None:
        del statistics
        self._silent_s = 0.0

    def log(self, level: int, message: str, *arguments: str) -> None:
        """As `logging.Logger.log`; `arguments` are the facility, the client's name and the text."""
        facility, _, text = arguments
        if facility == "REQTMOUT" and "ConsumerGroupHeartbeatRequest in flight" in text:
            self._missed = True
        elif level >= self._shown:
            log.log(level, message, *arguments)

    def polled(self, now_s: float) -> bool:
        """Whether the member is to join its group anew, now. Raises TransportError for a client that is dead."""
        self._silent_s += min(now_s - self._polled_s, _MOST_S)
        self._polled_s = now_s
        if self._silent_s > DEAD_S:
            self.dead = True
            raise TransportError(
                f"the Kafka client has not said a word for {DEAD_S:.0f} s",
                hint="a new one goes on in its place",
            )
        if self._missed:
            self._missed = False
            due_s = max(now_s + REJOIN_AFTER_S, self._rejoined_s + REJOIN_EVERY_S)
            self._rejoin_at_s = min(self._rejoin_at_s, due_s)
        if now_s <= self._rejoin_at_s:
            return False
        log.info("a heartbeat was not answered in time: this member joins its group anew")
        self._rejoined_s, self._rejoin_at_s = now_s, math.inf
        return True


def leave_behind(client: object) -> None:
    """Never let go of a dead client: its end would wait for ever, when it is collected as when it is closed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
