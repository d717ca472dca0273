"""Small drawings of figures over time, as SVG, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

import numpy as np

WIDTH: Final = 760
HEIGHT: Final = 70
LEFT: Final = 230
GAP: Final = 22

Panel = tuple[str, str, Any, Any, bool]


def draw(panels: Sequence[Panel]) -> str:
    """An SVG document of (name, unit, seconds, values, whether it is flat)."""
    height = len(panels) * (HEIGHT + GAP) + GAP
    body = "".join(_panel(panel, GAP + n * (HEIGHT + GAP)) for n, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#ffffff"/>{body}</svg>\n'
    )


def _panel(panel: Panel, top: int) -> str:
    name, unit, at_s, values, flat = panel
    x = LEFT + _scaled(np.asarray(at_s, dtype=float)) * (WIDTH - LEFT - 20)
    y = top + HEIGHT - _from_zero(np.asarray(values, dtype=float)) * HEIGHT
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    colour = "#2f6f4f" if flat else "#b3261e"
    most = float(np.max(values)) if len(values) else 0.0
    shown = f"{most / 1e6:,.0f} MB" if unit == "bytes" else f"{most:,.0f} {unit}"
    return (
        f'<text x="12" y="{top + 14}">{escape(name)}</text>'
        f'<text x="12" y="{top + 30}" fill="#666666">at most {escape(shown)}</text>'
        f'<line x1="{LEFT}" y1="{top + HEIGHT}" x2="{WIDTH - 20}" y2="{top + HEIGHT}" stroke="#cccccc"/>'
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    )


def _scaled(values: Any) -> Any:
    span = float(np.ptp(values)) if len(values) else 0.0
    return (values - values.min()) / span if span else np.zeros(len(values))


def _from_zero(values: Any) -> Any:
    most = float(values.max()) if len(values) else 0.0
    return values / most if most > 0 else np.zeros(len(values))
