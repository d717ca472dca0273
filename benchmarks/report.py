"""What a benchmark ends with: one line of JSON for a reader, and the raw numbers in a file for whoever doubts it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

from dataflow.broker.settings import KAFKA_VERSION

RESULTS: Final = Path(__file__).parent / "results"
_PACKAGES: Final = (
    "kafka-dataflow", "confluent-kafka", "fastavro", "numpy", "onnxruntime", "orjson", "uvicorn", "uvloop",
)  # fmt: skip


class BenchmarkError(Exception):
    """A benchmark that measured nothing: outputs are wrong, offsets did not reach the end, a process died."""


@dataclass(frozen=True)
class Result:
    """`ratio` is larger when we are better, whatever the unit; the benchmark holds when it reaches `goal`."""

    name: str
    value: float
    baseline: float
    ratio: float
    goal: float
    holds: bool

    @staticmethod
    def of(name: str, value: float, baseline: float, ratio: float, goal: float) -> Result:
        return Result(name, round(value, 4), round(baseline, 4), round(ratio, 3), goal, ratio >= goal)

    def line(self) -> str:
        return json.dumps(asdict(self))


def tightest(name: str, found: Mapping[str, Result]) -> Result:
    """Of a benchmark's several goals the one that is furthest from being reached, or is by the least; 0 is no goal."""
    goals = [result for result in found.values() if result.goal]
    return replace(min(goals, key=lambda r: r.ratio / r.goal), name=name)


@dataclass(frozen=True)
class Outcome:
    """The result, its unit, and every raw number behind it (JSON-able)."""

    result: Result
    unit: str
    raw: Mapping[str, Any]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ascending `ordered` lies (nearest rank)."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def tell(text: str) -> None:
    """Progress, on standard error: standard output ends with the result's line."""
    print(text, file=sys.stderr, flush=True)


def save(outcome: Outcome, folder: Path, *, quick: bool) -> Path:
    """Write the raw numbers beside what they were measured on."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{outcome.result.name}{'-quick' if quick else ''}.json"
    document = {
        **asdict(outcome.result),
        "unit": outcome.unit,
        "command": f"python -m benchmarks {outcome.result.name}{' --quick' if quick else ''}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(),
        "raw": outcome.raw,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _machine() -> dict[str, Any]:
    cpu = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            x.partition(":")[2].strip() for x in information.read_text().splitlines() if "model name" in x
        ]
        cpu = names[0] if names else cpu
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {"system": platform.platform(), "cpu": cpu, "cores": os.cpu_count(), "load_average": [*load],
            "memory_gb": round(psutil.virtual_memory().total / 1e9)}  # fmt: skip


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "kafka": KAFKA_VERSION}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a bare tree
            found[name] = "-"
    return found
