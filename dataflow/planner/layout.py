"""Boxes and lines on a grid of characters: layers from top to bottom, lines that run at right angles. Pure.

The steps are those of Sugiyama, Tagawa and Toda ("Methods for visual understanding of hierarchical system structures",
1981), each in its simplest form: layers by the longest path, places for lines that pass a layer, an order within
each layer by barycentres, positions by the mean of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

GAP: Final = 3  # columns between boxes of a layer
SWEEPS: Final = 8
_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES: Final = {
    0: " ", _UP: "│", _DOWN: "│", _UP | _DOWN: "│", _LEFT: "─", _RIGHT: "─", _LEFT | _RIGHT: "─",
    _DOWN | _RIGHT: "┌", _DOWN | _LEFT: "┐", _UP | _RIGHT: "└", _UP | _LEFT: "┘",
    _UP | _DOWN | _RIGHT: "├", _UP | _DOWN | _LEFT: "┤", _DOWN | _LEFT | _RIGHT: "┬", _UP | _LEFT | _RIGHT: "┴",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    """One box: lines of text, and whether its corners are round."""

    name: str
    lines: tuple[str, ...]
    round: bool = False


@dataclass(frozen=True)
class Line:
    """An arrow from one box down to another. Lines of one `source` and `label` leave it at one point."""

    source: str
    target: str
    label: str = ""
    dashed: bool = False


@dataclass
class _Cell:
    """A box, or a place where a long line passes a layer (then `box` is None)."""

    name: str
    box: Box | None = None
    width: int = 1
    center: int = 0
    outs: dict[str, int] = field(default_factory=dict)  # label -> column where it leaves


@dataclass(frozen=True)
class _Hop:
    """A line between neighbouring layers. `label` is that of its whole line; only the first hop shows it."""

    source: str
    target: str
    label: str
    shown: str
    dashed: bool


def draw(boxes: Sequence[Box], lines: Sequence[Line]) -> str:
    """The graph as text. `lines` must not form a cycle; boxes come in an order that is kept where lines allow."""
    if not boxes:
        return ""
    layer_of = _layers(boxes, lines)
    cells, layers, hops = _cells(boxes, lines, layer_of)
    _order(layers, hops)
    _widen(cells, hops)
    _place(cells, layers, hops)
    return _paint(cells, layers, hops)


def _layers(boxes: Sequence[Box], lines: Sequence[Line]) -> dict[str, int]:
    """Layer of each box: one below the lowest of those that feed it; boxes that nothing feeds stand above their first."""
    layer = dict.fromkeys((b.name for b in boxes), 0)
    for _ in boxes:
        for line in lines:
            layer[line.target] = max(layer[line.target], layer[line.source] + 1)
    fed = {line.target for line in lines}
    for box in boxes:
        below = [layer[line.target] for line in lines if line.source == box.name]
        if box.name not in fed and below:
            layer[box.name] = min(below) - 1
    return layer


def _cells(
    boxes: Sequence[Box], lines: Sequence[Line], layer_of: Mapping[str, int]
) -> tuple[dict[str, _Cell], list[list[str]], list[_Hop]]:
    cells = {b.name: _Cell(b.name, b, max(map(len, b.lines)) + 4) for b in boxes}
    layers: list[list[str]] = [[] for _ in range(max(layer_of.values()) + 1)]
    for box in boxes:
        layers[layer_of[box.name]].append(box.name)
    hops: list[_Hop] = []
    for line in lines:
        before, first = line.source, True
        for depth in range(layer_of[line.source] + 1, layer_of[line.target] + 1):
            here = line.target
            if depth < layer_of[line.target]:
                # Lines of one net share their way down for as long as they can.
                here = f"\0{line.source}\0{line.label}\0{depth}\0{line.dashed}"
                if here not in cells:
                    cells[here] = _Cell(here)
                    layers[depth].append(here)
            hop = _Hop(before, here, line.label if first else "", line.label if first else "", line.dashed)
            if hop not in hops:
                hops.append(hop)
            before, first = here, False
    return cells, layers, hops


def _order(layers: list[list[str]], hops: Sequence[_Hop]) -> None:
    """Sort each layer by the mean place of its neighbours above, then below, some times."""
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        depths = range(1, len(layers)) if downward else range(len(layers) - 2, -1, -1)
        for depth in depths:
            other = layers[depth - 1 if downward else depth + 1]
            place = {name: index for index, name in enumerate(other)}
            weights = {}
            for index, name in enumerate(layers[depth]):
                near = [
                    place[n] + _within(h, hops) if downward else place[n]
                    for h in hops
                    if (h.target if downward else h.source) == name
                    and (n := h.source if downward else h.target) in place
                ]
                weights[name] = sum(near) / len(near) if near else float(index)
            layers[depth].sort(key=weights.__getitem__)


def _within(hop: _Hop, hops: Sequence[_Hop]) -> float:
    """Where along its source's lower side a hop leaves, in 0..1: ports keep their order."""
    labels = list(dict.fromkeys(h.label for h in hops if h.source == hop.source))
    return labels.index(hop.label) / (len(labels) + 1)


def _widen(cells: Mapping[str, _Cell], hops: Sequence[_Hop]) -> None:
    """Make boxes wide enough for the lines that come and for the labels of those that leave."""
    for cell in cells.values():
        labels = dict.fromkeys(h.label for h in hops if h.source == cell.name)
        cell.outs = dict.fromkeys(labels, 0)
        if cell.box is not None:
            arrivals = sum(h.target == cell.name for h in hops)
            cell.width = max(cell.width, sum(len(label) + 2 for label in labels) + 2, 2 * arrivals + 3)
            cell.width += cell.width % 2 == 0  # an odd width has a middle


def _place(cells: Mapping[str, _Cell], layers: Sequence[Sequence[str]], hops: Sequence[_Hop]) -> None:
    for layer in layers:
        _spread([cells[n] for n in layer], {})
    for sweep in range(SWEEPS):
        depths = range(len(layers)) if sweep % 2 == 0 else range(len(layers) - 1, -1, -1)
        for depth in depths:
            wanted = {}
            for name in layers[depth]:
                above = [_leaves(cells, h) for h in hops if h.target == name]
                below = [cells[h.target].center - _offset(cells, h) for h in hops if h.source == name]
                near = (above or below) if sweep % 2 == 0 else (below or above)
                if near:
                    wanted[name] = sum(near) / len(near)
            _spread([cells[n] for n in layers[depth]], wanted)
    left = min(c.center - c.width // 2 for c in cells.values())
    for cell in cells.values():
        cell.center -= left
        _set_outs(cell)


def _offset(cells: Mapping[str, _Cell], hop: _Hop) -> int:
    """Column where a hop leaves its source, from the source's middle."""
    cell = cells[hop.source]
    if len(cell.outs) < 2:
        return 0
    widths = [len(label) + 2 for label in cell.outs]
    at = list(cell.outs).index(hop.label)
    room = cell.width - 2 - sum(widths)
    return 1 + sum(widths[:at]) + room * at // len(widths) + 1 - cell.width // 2


def _leaves(cells: Mapping[str, _Cell], hop: _Hop) -> int:
    return cells[hop.source].center + _offset(cells, hop)


def _set_outs(cell: _Cell) -> None:
    for label in cell.outs:
        cell.outs[label] = cell.center + _offset({cell.name: cell}, _Hop(cell.name, "", label, "", False))


def _spread(cells: Sequence[_Cell], wanted: Mapping[str, float]) -> None:
    """Put a layer's cells near where they want to be, none over another.

    The mean of the leftmost and the rightmost of such arrangements is one, too: the constraints are linear.
    """
    aims = [wanted.get(c.name, float(c.center)) for c in cells]
    apart = [0.0] + [(a.width + b.width) / 2 + GAP for a, b in pairwise(cells)]
    right = list(aims)
    for i in range(1, len(cells)):
        right[i] = max(aims[i], right[i - 1] + apart[i])
    left = list(aims)
    for i in range(len(cells) - 2, -1, -1):
        left[i] = min(aims[i], left[i + 1] - apart[i + 1])
    for cell, a, b in zip(cells, left, right, strict=True):
        cell.center = round((a + b) / 2)
    for a_cell, b_cell in pairwise(cells):  # rounding may have cost a column
        nearest = a_cell.center + a_cell.width // 2 + GAP + 1 + b_cell.width // 2
        b_cell.center = max(b_cell.center, nearest)


# ---------------------------------------------------------------- painting


class _Grid:
    """Characters by row and column; lines are kept as directions, so that they join where they meet."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, int], int] = {}
        self._solid: set[tuple[int, int]] = set()
        self._text: dict[tuple[int, int], str] = {}

    def text(self, row: int, column: int, text: str) -> None:
        for index, character in enumerate(text):
            self._text[row, column + index] = character

    def vertical(self, column: int, top: int, bottom: int, *, dashed: bool) -> None:
        """From the middle of row `top` to that of row `bottom`."""
        for row in range(top, bottom + 1):
            way = (_UP if row > top else 0) | (_DOWN if row < bottom else 0)
            self._mark(row, column, way, dashed=dashed)

    def horizontal(self, row: int, one: int, other: int, *, dashed: bool) -> None:
        first, last = sorted((one, other))
        for column in range(first, last + 1):
            way = (_LEFT if column > first else 0) | (_RIGHT if column < last else 0)
            self._mark(row, column, way, dashed=dashed)

    def _mark(self, row: int, column: int, way: int, *, dashed: bool) -> None:
        self._lines[row, column] = self._lines.get((row, column), 0) | way
        if not dashed:
            self._solid.add((row, column))

    def __str__(self) -> str:
        places = [*self._lines, *self._text]
        rows = max(row for row, _ in places) + 1
        columns = max(column for _, column in places) + 1
        lines = ("".join(self._character(r, c) for c in range(columns)).rstrip() for r in range(rows))
        return "\n".join(lines)

    def _character(self, row: int, column: int) -> str:
        if (row, column) in self._text:
            return self._text[row, column]
        drawn = _LINES[self._lines.get((row, column), 0)]
        return drawn if (row, column) in self._solid else {"│": "┆", "─": "┄"}.get(drawn, drawn)


def _paint(cells: Mapping[str, _Cell], layers: Sequence[Sequence[str]], hops: Sequence[_Hop]) -> str:
    grid = _Grid()
    row = 0
    for layer in layers:
        here = [cells[name] for name in layer]
        height = max((len(c.box.lines) + 2 for c in here if c.box is not None), default=1)
        for cell in here:
            if cell.box is not None:
                _paint_box(grid, cell, row)
        inside = [h for h in hops if h.source in layer]
        for hop in inside:  # from the lower side of the box, or all along a place that is passed
            box = cells[hop.source].box
            top = row if box is None else row + len(box.lines) + 2
            grid.vertical(cells[hop.source].outs[hop.label], top, row + height, dashed=hop.dashed)
        row = _paint_gap(grid, cells, inside, row + height)
    return str(grid)


def _paint_box(grid: _Grid, cell: _Cell, row: int) -> None:
    assert cell.box is not None
    left = cell.center - cell.width // 2
    corners = "╭╮╰╯" if cell.box.round else "┌┐└┘"
    grid.text(row, left, corners[0] + "─" * (cell.width - 2) + corners[1])
    for index, line in enumerate(cell.box.lines):
        grid.text(row + 1 + index, left, "│" + line.center(cell.width - 2) + "│")
    bottom = row + 1 + len(cell.box.lines)
    grid.text(bottom, left, corners[2] + "─" * (cell.width - 2) + corners[3])


def _paint_gap(grid: _Grid, cells: Mapping[str, _Cell], hops: Sequence[_Hop], top: int) -> int:
    """The lines between two layers, from row `top`; gives the row where the next layer starts."""
    if not hops:
        return top + 1
    arrives = _arrivals(cells, hops)
    nets: dict[tuple[int, bool], list[int]] = {}
    for hop in hops:
        nets.setdefault((cells[hop.source].outs[hop.label], hop.dashed), []).append(arrives[hop])
    labels = any(h.shown for h in hops)
    first = top + labels
    track_of = _tracks(nets)
    tracks = max(track_of.values(), default=-1) + 1
    bottom = max(first + tracks, top + 1)
    for (leaves, dashed), targets in nets.items():
        if (leaves, dashed) not in track_of:
            grid.vertical(leaves, top - 1, bottom, dashed=dashed)
            continue
        track = first + track_of[leaves, dashed]
        grid.vertical(leaves, top - 1, track, dashed=dashed)
        for target in targets:
            grid.horizontal(track, leaves, target, dashed=dashed)
            grid.vertical(target, track, bottom, dashed=dashed)
    for hop in hops:
        if hop.shown:
            grid.text(top, cells[hop.source].outs[hop.label] + 1, hop.shown)
        if cells[hop.target].box is not None:
            grid.text(bottom, arrives[hop], "▼")
    for hop in hops:
        passed = cells[hop.target]
        if passed.box is None:  # a line that passes goes on where it arrived
            passed.outs = dict.fromkeys(passed.outs, arrives[hop])
    return bottom + 1


def _arrivals(cells: Mapping[str, _Cell], hops: Sequence[_Hop]) -> dict[_Hop, int]:
    """Column at which each hop meets its target. None but a straight line arrives below the start of another one."""
    starts = {cells[h.source].outs[h.label] for h in hops}
    arrives: dict[_Hop, int] = {}
    for name in dict.fromkeys(h.target for h in hops):
        cell = cells[name]
        coming = sorted((h for h in hops if h.target == name), key=lambda h: cells[h.source].outs[h.label])
        taken: set[int] = set()
        for index, hop in enumerate(coming):
            start = cells[hop.source].outs[hop.label]
            middle = cell.center + 2 * index - (len(coming) - 1)
            inside = abs(start - cell.center) < cell.width // 2 or start == cell.center
            wanted = start if inside and start not in taken else middle
            arrives[hop] = _free_column(cell, wanted, (starts - {start}) | taken)
            taken.add(arrives[hop])
    return arrives


def _free_column(cell: _Cell, wanted: int, others: set[int]) -> int:
    """The column nearest to `wanted` that is above the cell, not one of `others` and, if possible, not beside one."""
    half = max(cell.width // 2 - 1, 0)
    above = sorted(range(cell.center - half, cell.center + half + 1), key=lambda c: (abs(c - wanted), c))
    for apart in (2, 1):
        for column in above:
            if all(abs(column - other) >= apart for other in others):
                return column
    return next(c for c in range(wanted, wanted + len(others) + 1) if c not in others)


def _tracks(nets: Mapping[tuple[int, bool], Sequence[int]]) -> dict[tuple[int, bool], int]:
    """A row for each net that has to turn, so that no two lie over each other; straight ones need none."""
    rows: list[list[tuple[int, int]]] = []
    found: dict[tuple[int, bool], int] = {}
    for net in sorted(nets):
        leaves = net[0]
        if all(target == leaves for target in nets[net]):
            continue
        low, high = min(leaves, *nets[net]), max(leaves, *nets[net])
        for index, row in enumerate(rows):
            if all(high < a or low > b for a, b in row):
                row.append((low, high))
                found[net] = index
                break
        else:
            rows.append([(low, high)])
            found[net] = len(rows) - 1
    return found
