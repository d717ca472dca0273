"""What became of the cases, and what is wrong with it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

# Statuses of a server that may be: it is told to come back, or its deadline is over.
ALLOWED: Final = frozenset({503, 504})
# Codes of gRPC that would be a fault of ours.
FAULTS: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
# Faults that are told in words; all are counted.
_SHOWN: Final = 20
CLOSED: Final = "closed"
HUNG: Final = "hung"


@dataclass
class Tally:
    """Outcomes of all cases. Thread-safe."""

    cases: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    hung: int = 0
    faults: int = 0
    told: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, family: str, status: int | str, sent: object, said: object = "") -> None:
        """One case: its HTTP status, code of gRPC, `CLOSED` without an answer, or `HUNG`."""
        with self._lock:
            self.cases[family] += 1
            self.statuses[str(status)] += 1
            if status == HUNG:
                self.hung += 1
                self._tell(family, status, sent, said)
            elif (isinstance(status, int) and status >= 500 and status not in ALLOWED) or status in FAULTS:
                self._fault(family, status, sent, said)

    def wrong(self, family: str, status: int | str, sent: object, why: str) -> None:
        """A case that was answered, but not as it must be."""
        with self._lock:
            self.cases[family] += 1
            self.statuses[str(status)] += 1
            self._fault(family, status, sent, why)

    def leak(self, what: str) -> None:
        self.leaks.append(what)

    def _fault(self, family: str, status: int | str, sent: object, said: object) -> None:
        self.faults += 1
        self._tell(family, status, sent, said)

    def _tell(self, family: str, status: int | str, sent: object, said: object) -> None:
        if len(self.told) < _SHOWN:
            self.told.append(f"{family}: {status} for {_short(sent)}: {_short(said)}")

    @property
    def sound(self) -> bool:
        return not (self.hung or self.faults or self.leaks)

    def document(self, **more: Any) -> dict[str, Any]:
        return {
            "cases": sum(self.cases.values()),
            "statuses": dict(sorted(self.statuses.items())),
            "hung": self.hung,
            "leaked": len(self.leaks),
            "faults": self.faults,
            "families": dict(sorted(self.cases.items())),
            **more,
            "ok": self.sound,
        }

    def summary(self, **more: Any) -> str:
        return json.dumps(self.document(**more))


def _short(said: object) -> str:
    text = repr(said)
    return text if len(text) <= 700 else f"{text[:500]} ... {text[-200:]}"
