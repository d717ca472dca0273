from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.planner.layout import Box, Line, draw


def boxes(*names: str) -> list[Box]:
    return [Box(name, (name,)) for name in names]


def test_a_chain() -> None:
    lines = [Line("a", "b", dashed=True), Line("b", "c", "high")]
    drawn = draw([Box("a", ("in",), round=True), *boxes("b", "c")], lines)
    assert drawn.split("\n") == [
        " ╭─────╮",
        " │  in │",
        " ╰─────╯",
        "    ┆",
        "    ▼",
        "┌───────┐",
        "│   b   │",
        "└───────┘",
        "    │high",
        "    ▼",
        "  ┌───┐",
        "  │ c │",
        "  └───┘",
    ]  # the box of b has room for the label


def test_a_diamond_with_ports_and_a_line_that_passes_a_layer() -> None:
    lines = [
        Line("a", "b", "left"), Line("a", "c", "right"), Line("b", "d"), Line("c", "d"), Line("a", "d", "left"),
    ]  # fmt: skip
    assert draw(boxes("a", "b", "c", "d"), lines).split("\n") == [
        "    ┌─────────────┐",
        "    │      a      │",
        "    └─────────────┘",
        "      │left │right",
        "  ┌───┴─┐   └─┐",
        "  ▼     │     ▼",
        "┌───┐   │   ┌───┐",
        "│ b │   │   │ c │",
        "└───┘   │   └───┘",
        "  └───┐ │ ┌───┘",
        "      ▼ ▼ ▼",
        "    ┌───────┐",
        "    │   d   │",
        "    └───────┘",
    ]


def test_nothing() -> None:
    assert draw([], []) == ""


@st.composite
def graphs(drawing: st.DrawFn) -> tuple[list[Box], list[Line]]:
    count = drawing(st.integers(1, 12))
    made = [
        Box(f"n{i:02}", (f"n{i:02}", "x" * drawing(st.integers(0, 12))), drawing(st.booleans()))
        for i in range(count)
    ]
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    chosen = drawing(st.lists(st.sampled_from(pairs), max_size=18, unique=True)) if pairs else []
    lines = [
        Line(
            f"n{a:02}", f"n{b:02}", drawing(st.sampled_from(["", "p", "quite_long"])), drawing(st.booleans())
        )
        for a, b in chosen
    ]
    return made, lines


def at(rows: list[str], row: int, column: int) -> str:
    return rows[row][column] if row < len(rows) and 0 <= column < len(rows[row]) else " "


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_boxes_are_whole_and_lines_begin_and_end_at_them(graph: tuple[list[Box], list[Line]]) -> None:
    made, lines = graph
    rows = draw(made, lines).split("\n")
    text = "\n".join(rows)
    arrows = 0
    for box in made:
        assert text.count(box.name) == 1
        row = next(i for i, line in enumerate(rows) if box.name in line)
        column = rows[row].index(box.name)
        left = rows[row].rindex("│", 0, column)
        right = rows[row].index("│", column)
        corners = "╭╮╰╯" if box.round else "┌┐└┘"
        bar = "─" * (right - left - 1)
        assert rows[row - 1][left : right + 1] == corners[0] + bar + corners[1]
        assert rows[row + 2][left : right + 1] == corners[2] + bar + corners[3]
        above = [at(rows, row - 2, c) for c in range(left + 1, right)]
        arrows += above.count("▼")
        below = {at(rows, row + 3, c) for c in range(left, right + 1)}
        assert ("▼" in above) == any(line.target == box.name for line in lines)
        assert bool(below & set("│┆├┤┬┐┌┼┘└┴")) or all(line.source != box.name for line in lines)
    assert text.count("▼") == arrows  # each points at a box


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_every_line_end_goes_on(graph: tuple[list[Box], list[Line]]) -> None:
    """No line stops in the void: what a character points at points back, or is a box, a label or an arrow."""
    rows = draw(*graph).split("\n")
    points = {
        "│": "UD",
        "┆": "UD",
        "─": "LR",
        "┄": "LR",
        "├": "UDR",
        "┤": "UDL",
        "┬": "DLR",
        "┴": "ULR",
        "┼": "UDLR",
    }
    points |= {"┌": "DR", "┐": "DL", "└": "UR", "┘": "UL"}
    back = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
    for r, line in enumerate(rows):
        for c, character in enumerate(line):
            for way in points.get(character, ""):
                dr, dc = back[way]
                assert r + dr >= 0
                assert at(rows, r + dr, c + dc) != " ", (r, c, character, "\n".join(rows))


@settings(max_examples=10, deadline=None)
@given(graphs())
def test_equal_graphs_look_the_same(graph: tuple[list[Box], list[Line]]) -> None:
    made, lines = graph
    assert draw(made, lines) == draw(list(made), list(lines))
