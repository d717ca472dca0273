"""What benchmarks with a waiting caller share: servers that are up, requests, and what their times come to."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.cluster import Cluster, Process
from benchmarks.projects import Floats
from benchmarks.report import BenchmarkError, quantile


def write_bodies(path: Path, rows: Floats, expected: list[float]) -> Path:
    """The requests' bodies and what the model answers, for the client."""
    bodies = [
        json.dumps(
            {"inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}]},
            separators=(",", ":"),
        )
        for row in ([round(float(v), 4) for v in row] for row in rows)
    ]
    path.write_text(json.dumps({"bodies": bodies, "expected": expected}))
    return path


def answers(process: Process, port: int, path: str, body: bytes) -> bool:
    """Whether the server at `port` answers. Raises BenchmarkError if its process has ended."""
    process.check()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body, {"content-type": "application/json", "x-deadline-ms": "2000"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(
    cluster: Cluster, address: str, path: str, bodies: Path, concurrency: int, warm_up: int, count: int
) -> str:
    """Send `count` requests, so many at a time; what the client printed, for `summary`."""
    numbers = (str(concurrency), str(warm_up), str(count))
    return cluster.start(
        "client", "-m", "benchmarks.http_client", address, path, str(bodies), *numbers
    ).wait()


def summary(printed: str) -> dict[str, Any]:
    """Quantiles of the times in the last line of what a client printed, and all else there.

    Raises BenchmarkError for one without times.
    """
    measured = json.loads(printed.strip().splitlines()[-1])
    ordered = sorted(measured.pop("latencies_ms"))
    if not ordered:
        raise BenchmarkError(f"no request was answered: {measured}")
    return {
        "requests": len(ordered),
        "per_second": round(len(ordered) / measured["seconds"], 1),
        "p50_ms": quantile(ordered, 0.5),
        "p90_ms": quantile(ordered, 0.9),
        "p99_ms": quantile(ordered, 0.99),
        "max_ms": ordered[-1],
        **{k: v for k, v in measured.items() if k != "seconds"},
    }
