"""The user files that a kind's example needs, written into the example itself as comments.

A block starts with ``# file: features.py``; its lines follow behind ``#|`` (and one blank, where there is more)::

    # file: features.py
    #| def build(row: dict) -> dict:
    #|     return {"x": row["y"]}

The example stays one YAML text that can be read, printed and parsed as it is.
"""

from __future__ import annotations

from pathlib import Path

_FILE = "# file: "
_LINE = "#|"


def example_files(example: str) -> dict[str, str]:
    """File name -> content of the blocks in an example."""
    lines: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in example.splitlines():
        if line.startswith(_FILE):
            current = lines.setdefault(line.removeprefix(_FILE).strip(), [])
        elif line.startswith(_LINE) and current is not None:
            current.append(line.removeprefix(_LINE).removeprefix(" "))
        else:
            current = None
    return {name: "\n".join(content) + "\n" for name, content in lines.items()}


def write_example_files(example: str, folder: Path) -> list[Path]:
    """Write those files below `folder` and return them."""
    written = []
    for name, content in example_files(example).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        written.append(path)
    return written
