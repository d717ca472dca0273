"""The report of a replay as one HTML file that needs nothing else: no script, no font, no link outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Final

from dataflow.control.replay_report import MAX_LISTED, EdgeComparison, ReplayReport, totals
from dataflow.control.replay_stretch import time_text

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --bad: #c0392b; --good: #1e8449; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { padding: .2rem .7rem .2rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code, td.v { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.bad { color: var(--bad); } .good { color: var(--good); } .wide { overflow-x: auto; }
details { margin: .4rem 0; } summary { cursor: pointer; }
.bar { display: flex; height: .8rem; width: 16rem; background: var(--soft); border-radius: 3px; overflow: hidden; }
.bar i { display: block; } .equal { background: #27ae60; } .within { background: #82c99b; }
.differing { background: #e67e22; } .missing { background: #c0392b; } .extra { background: #8e44ad; }
"""
_PARTS: Final = ("equal", "within", "differing", "missing", "extra")
_MEANS: Final = {
    "equal": "the same values",
    "within": "numbers differ, by no more than the tolerance",
    "differing": "the same record with other values",
    "missing": "recorded, and not replayed",
    "extra": "replayed, and not recorded",
}


def page(report: ReplayReport) -> str:
    """The whole document."""
    title = f"Replay of {report.pipeline}"
    body = "\n".join((*_head(report, title), *_summary(report), *_edges(report), *_rest(report)))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(report: ReplayReport, title: str) -> Iterator[str]:
    verdict = '<span class="good">equal</span>' if report.same else '<span class="bad">differs</span>'
    yield f"<h1>{escape(title)}: {verdict}</h1>"
    through = f"<code>{escape(report.changed)}</code>" if report.changed else "the plan that is deployed"
    yield (
        f"<p>Recorded by version <code>{escape(report.recorded_version)}</code>, run again through {through} "
        f"(version <code>{escape(report.replayed_version)}</code>), tolerance {report.tolerance:g}, "
        f"in {report.seconds:.1f} s.</p>"
    )
    rows = [
        (f.edge, f"{f.records}", time_text(f.first_ms) if f.records else "", time_text(f.last_ms) if f.records else "", "; ".join(f.offsets))
        for f in report.fed
    ]  # fmt: skip
    yield "<h2>What was fed</h2>"
    yield _table(("edge", "records", "first", "last", "offsets"), rows, numbers={1})


def _summary(report: ReplayReport) -> Iterator[str]:
    yield "<h2>Edges</h2>"
    rows = []
    counts = totals(report)
    for edge in report.edges:
        rows.append([
            f'<a href="#{escape(edge.edge)}">{escape(edge.edge)}</a>', str(edge.recorded), str(edge.replayed),
            *(str(getattr(edge, name)) for name in _PARTS), _bar(edge),
        ])  # fmt: skip
    if len(report.edges) > 1:
        rows.append(
            ["all", str(counts["recorded"]), str(counts["replayed"]), *(str(counts[p]) for p in _PARTS), ""]
        )
    yield _table(("edge", "recorded", "replayed", *_PARTS, ""), rows, numbers=set(range(1, 8)), raw=True)
    yield "<p>" + "; ".join(f"<b>{name}</b>: {means}" for name, means in _MEANS.items()) + ".</p>"


def _bar(edge: EdgeComparison) -> str:
    whole = sum(getattr(edge, name) for name in _PARTS)
    parts = (
        f'<i class="{name}" style="width:{100 * getattr(edge, name) / whole:.3f}%" title="{name}"></i>'
        for name in _PARTS
        if getattr(edge, name)
    )
    return f'<div class="bar">{"".join(parts)}</div>' if whole else ""


def _edges(report: ReplayReport) -> Iterator[str]:
    for edge in report.edges:
        told = list(_edge(edge))
        if told:
            yield f'<h2 id="{escape(edge.edge)}">{escape(edge.edge)}</h2>'
            yield from told


def _edge(edge: EdgeComparison) -> Iterator[str]:
    if edge.fields:
        found = sorted(edge.fields.items(), key=lambda item: -item[1].records)
        rows = [(name, str(f.records), f"{f.largest:.6g}" if f.largest else "") for name, f in found]
        yield _table(("field", "records", "largest difference"), rows, numbers={1, 2})
    differing = [(d.id, d.path, d.recorded, d.replayed) for d in edge.differences]
    yield from _list("differing", edge.differing, ("id", "field", "recorded", "replayed"), differing)
    missing = [(m.id, m.reason) for m in edge.missing_records]
    yield from _list("missing", edge.missing, ("id", "why"), missing)
    yield from _list("extra", edge.extra, ("id",), [(x,) for x in edge.extra_records])
    if edge.repeated:
        yield f"<p>{edge.repeated} records were there twice, byte for byte, and count once.</p>"
    if len(edge.versions) > 1:
        told = ", ".join(f"{version or '?'} ({count})" for version, count in edge.versions.items())
        yield f"<p>Recorded by several versions: {escape(told)}.</p>"
    yield from (f"<p>{escape(note)}</p>" for note in edge.notes)


def _list(what: str, count: int, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not count:
        return
    cut = f", the first {MAX_LISTED} listed" if len(rows) >= MAX_LISTED else ""
    is_open = " open" if len(rows) <= 100 else ""
    yield f"<details{is_open}><summary>{count} {what}{cut}</summary>{_table(head, rows)}</details>"


def _rest(report: ReplayReport) -> Iterator[str]:
    yield from _pairs("Not compared", ("edge", "why"), report.not_compared)
    yield from _pairs("Nodes that did not run", ("node", "why"), report.off)
    yield from _pairs("Failed in the replay", ("node: error", "records"), report.failed)
    yield from _pairs("Dropped in the replay", ("node: reason", "records"), report.dropped)
    if report.notes:
        yield "<h2>To know</h2><ul>"
        yield from (f"<li>{escape(note)}</li>" for note in report.notes)
        yield "</ul>"
    if report.kept:
        yield "<h2>Topics that were kept</h2><ul>"
        yield from (f"<li><code>{escape(topic)}</code></li>" for topic in report.kept)
        yield "</ul>"


def _pairs(title: str, head: Sequence[str], found: Mapping[str, object]) -> Iterator[str]:
    if found:
        yield f"<h2>{title}</h2>"
        yield _table(head, [(name, str(value)) for name, value in found.items()])


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    raw: bool = False,
) -> str:
    """A table; `numbers` are the columns set to the right, `raw` cells are HTML already."""
    right = set(numbers)
    kinds = ["n" if i in right else "v" for i in range(len(head))]
    top = "".join(f'<th class="{k}">{escape(h)}</th>' for k, h in zip(kinds, head, strict=True))
    lines = "".join(
        "<tr>"
        + "".join(f'<td class="{k}">{c if raw else escape(c)}</td>' for k, c in zip(kinds, row, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>\n{lines}</table></div>'
