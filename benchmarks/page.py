"""`docs/benchmarks.md`, made of the committed raw results alone: numbers are never written into it by hand.

python -m benchmarks report        # tests hold that the page is what this makes of benchmarks/results
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import RESULTS, median

PAGE: Final = RESULTS.parent.parent / "docs" / "benchmarks.md"

_HEAD: Final = """# Benchmarks

Written by `python -m benchmarks report` from the raw numbers in `benchmarks/results`; do not edit. `make bench` measures all
anew and writes this page. A ratio is larger when we are better, whatever the unit; a goal that is missed stays here as missed.

What was held still in every run: one machine, loopback only; a real Apache Kafka (the embedded broker, its data thrown away
at the end) with the settings a user gets; our own programs as users start them, with consumer groups, commits, metrics and
contract checks; the same ONNX file, the same request bodies and the same load generator for every server, which checks every
answer once all are in; the sides of a comparison in turn (ABAB, the order changes with each pair), warmed up first, medians
over the pairs, the spread of the pairs beside them; onnxruntime with one thread on all sides. What was not: servers,
broker and load generator share the cores. Compare numbers of one run, not of two.
"""


def page(results: Path, runs: Mapping[str, Callable[..., Any]]) -> str:
    """The page, with the benchmarks in the order of `runs`."""
    documents = {
        name: json.loads(path.read_text()) for name in runs if (path := results / f"{name}.json").is_file()
    }
    parts = [_HEAD, "## All of them\n", _overview(documents, runs)]
    for name, document in documents.items():
        parts += [f"## {name}\n", _told(runs[name]), *_facts(document), *_tables(document["raw"])]
    return "\n".join(parts).rstrip() + "\n"


def _overview(documents: Mapping[str, Any], names: Iterable[str]) -> str:
    """One row for each; of several goals the one furthest from being reached."""
    rows = []
    for name in names:
        if name in documents:
            d = documents[name]
            row = (
                _number(d["value"]),
                _number(d["baseline"]),
                d["unit"],
                _number(d["ratio"]),
                _number(d["goal"]),
            )
            rows.append((f"[`{name}`](#{name})", *row, _verdict(d), d["date"][:10]))
        else:
            rows.append((f"`{name}`", "", "", "", "", "", "no results yet", ""))
    return _table(("name", "ours", "baseline", "unit", "ratio", "goal", "", "measured"), rows)


def _told(run: Callable[..., Any]) -> str:
    """What the benchmark says of itself in its source."""
    module = inspect.getdoc(sys.modules[run.__module__]) or ""
    own = inspect.getdoc(run) or ""
    return f"{module}\n\n{own}\n"


def _facts(document: Mapping[str, Any]) -> list[str]:
    machine = document["machine"]
    load = ", ".join(f"{x:.1f}" for x in machine["load_average"])
    memory = f", {machine['memory_gb']} GB" if "memory_gb" in machine else ""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    ours = document["raw"].get("command of ours")
    facts = [
        f"- `{document['command']}`, {document['date']}",
        f"- {machine['cpu']}, {machine['cores']} cores{memory}, {machine['system']}; load average at the end {load}",
        f"- {versions}",
    ]
    if ours:
        facts.append(f"- ours: `dataflow {ours}`")
    return ["\n".join(facts) + "\n"]


def _tables(raw: Mapping[str, Any]) -> list[str]:
    parts = []
    if "goals" in raw:
        parts.append(_goals(raw["goals"]))
    if "peers" in raw:
        parts += ["### Each peer\n", _peers(raw["peers"])]
    if "engines" in raw:
        parts += ["### Each engine\n", _engines(raw["engines"])]
    if "beside" in raw and "alone" in raw:
        parts += ["### At the same rates\n", _rates(raw["beside"]), "### Ours alone\n", _rates(raw["alone"])]
    if "ceiling of the client" in raw:
        told = (
            f"{_number(numbers['per_second'])} requests/s {at}"
            for at, numbers in raw["ceiling of the client"].items()
        )
        parts.append(
            f"The load generator's own ceiling, against a server that does nothing: {', '.join(told)}.\n"
        )
    return parts


def _goals(goals: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, g in goals.items():
        spread = " to ".join(map(_number, g["spread"])) if "spread" in g else ""
        values = (
            _number(g["value"]),
            _number(g["baseline"]),
            _number(g["ratio"]),
            spread,
            _number(g["goal"]),
        )
        rows.append((name, *values, _verdict(g)))
    return _table(("goal", "ours", "baseline", "ratio", "spread", "at least", ""), rows)


def _peers(peers: Mapping[str, Mapping[str, Any]]) -> str:
    """Ours stands in every row as it was beside that peer."""
    rows = []
    for name, peer in peers.items():
        for at, sides in peer.get("pairs", {}).items():
            ours, theirs = (
                {
                    key: median([run[key] for run in sides[side]])
                    for key in sides[side][0]
                    if key != "statuses"
                }
                for side in ("ours", "theirs")
            )
            keys = ("p50_ms", "p99_ms", "per_second", "cpu_us", "pss_mb")
            both = (f"{_number(theirs[key])} / {_number(ours[key])}" for key in keys)
            version = next(iter(peer["versions"].values()), "")
            rows.append((f"{name} {version}".strip(), at.removeprefix("at "), *both))
        if "not measured" in peer:
            rows.append((name, "", f"not measured: {_short(peer['not measured'])}", "", "", "", ""))
    head = ("peer / ours", "callers", "p50 ms", "p99 ms", "requests/s", "CPU us a request", "memory MB")
    return _table(head, rows)


def _engines(engines: Mapping[str, Mapping[str, Any]]) -> str:
    """CPU and memory are those of the whole run, the start included."""
    rows: list[tuple[str, ...]] = []
    for name, engine in engines.items():
        if "not measured" in engine:
            rows.append((name, f"not measured: {_short(engine['not measured'])}", "", "", ""))
            continue
        runs = engine["runs"]
        both = (
            " / ".join(_number(median([run[key] for run in runs[side]])) for side in ("theirs", "ours"))
            for key in ("rate", "cpu_us", "pss_mb")
        )
        whole = all(run["complete"] for run in runs["theirs"])
        rows.append((name, *both, "" if whole else "stopped before its end"))
    return _table(("engine / ours", "records/s", "CPU us a record", "memory MB", ""), rows)


def _rates(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = []
    for name, measured in runs.items():
        by_rate: dict[float, list[Mapping[str, Any]]] = {}
        for run in measured:
            by_rate.setdefault(run["rate"], []).append(run)
        for rate, same in by_rate.items():
            keys = ("p50_ms", "p99_ms", "goodput")
            statuses: dict[str, int] = {}
            for run in same:
                for status, count in run["statuses"].items():
                    statuses[status] = statuses.get(status, 0) + count
            told = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
            medians = (_number(median([run[key] for run in same])) for key in keys)
            rows.append((name, _number(rate), *medians, told))
    return _table(("side", "asked/s", "p50 ms", "p99 ms", "answered in time/s", "statuses"), rows)


def _verdict(result: Mapping[str, Any]) -> str:
    if "not measured" in result:
        return f"not measured: {_short(result['not measured'])}"
    if not result["goal"]:
        return "no goal"
    return "holds" if result["holds"] else "**missed**"


def _short(reason: str) -> str:
    """The first line, as it fits into a cell."""
    return reason.strip().splitlines()[0][:160].replace("|", "/")


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
