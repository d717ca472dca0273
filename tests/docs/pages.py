"""The parts of a page that can be checked: code blocks, links, and mentions of commands.

What the info string of a block means, beside its language:

====================  =================================================================================
``file=PATH``         the block is the file PATH (from the folder the page starts in)
``append=PATH``       the block is added at the end of PATH
``console``           commands after ``$ `` (continued after ``> ``), each followed by what it prints
``console exit=N``    ... of which the last one exits with N
``console background``  one command that goes on; the lines are what it prints until it is ready
``console after``     ... once all commands in the background were ended with Ctrl-C
``text background``   more lines that the last command in the background prints by now, or soon
``python``            a program; run where the last command was
``skip=WHY``          shown and not run, for one of the reasons in `SKIPS`
====================  =================================================================================

In what is expected ``...`` stands for anything: within a line, or for any number of lines. Two blanks and more stand for
any number of blanks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent

# Reasons not to run a block. There is no container engine and no second machine where tests run.
SKIPS: Final = frozenset({"docker", "cluster", "excerpt", "make"})

_FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
_LINK: Final = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
_INLINE: Final = re.compile(r"`([^`]+)`")
_MENTION: Final = re.compile(r"(?:^|[\s(|;&])dataflow +(?P<rest>[a-z][^|;&)#>]*)")


@dataclass(frozen=True)
class Block:
    """A fenced block. `words` are what follows the language, as given; `line` is that of the fence."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def value(self, name: str) -> str:
        """What follows ``name=``; "" if it is not there."""
        return next((w.partition("=")[2] for w in self.words if w.startswith(f"{name}=")), "")


@dataclass(frozen=True)
class Command:
    """A command of a console block and the lines expected after it."""

    text: str
    expected: tuple[str, ...]


def blocks_of(page: Path) -> tuple[Block, ...]:
    return tuple(_blocks(page))


def _blocks(page: Path) -> Iterator[Block]:
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            continue
        indent = len(fence["indent"])
        body = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            body.append(inner[indent:])
        language, *words = fence["info"].split() or [""]
        yield Block(page, number, language, tuple(words), "\n".join(body) + "\n")


def commands_of(block: Block) -> tuple[Command, ...]:
    """The commands of a console block, in order."""
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            assert found, f"{block.place}: a console block starts with a command after '$ '"
            found[-1][1].append(line.rstrip())
    return tuple(Command("\n".join(text), tuple(expected)) for text, expected in found)


def pattern_of(expected: tuple[str, ...]) -> re.Pattern[str]:
    """What the output must match from its first line to its last; blank lines at the end do not count."""
    parts = []
    for line in "\n".join(expected).rstrip().split("\n"):
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            # How wide a column is depends on what is in it: two blanks and more are any number of them.
            texts = [re.sub(r"(\\ ){2,}", " +", re.escape(t)) for t in line.rstrip().split("...")]
            parts.append(r"[^\n]*?".join(texts) + r"[ \t]*\n")
    return re.compile("".join(parts))


def links_of(page: Path) -> tuple[tuple[int, str], ...]:
    """Targets inside the project, with their lines; addresses of other sites are not looked at."""
    found = []
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        inside ^= bool(_FENCE.match(line))
        if not inside:
            targets = (m["target"] for m in _LINK.finditer(line))
            found += [(number, t) for t in targets if "://" not in t and not t.startswith("mailto:")]
    return tuple(found)


def anchors_of(page: Path) -> frozenset[str]:
    """The anchors that GitHub makes of a page's headings."""
    found = set()
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        inside ^= bool(_FENCE.match(line))
        if line.startswith("#") and not inside:
            heading = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            found.add(heading.replace(" ", "-"))
    return frozenset(found)


def mentions_of(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Every ``dataflow COMMAND ...`` in code, as line and words after `dataflow`; expected output is not code."""
    language = ""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is not None:
            inside = not inside
            language = (fence["info"].split() or [""])[0] if inside else ""
            continue
        if not inside:
            codes = _INLINE.findall(line)
        elif language == "console":
            codes = [line[2:]] if line.startswith(("$ ", "> ")) else []
        else:
            codes = [line] if language in {"bash", "sh"} else []
        for code in codes:
            for mention in _MENTION.finditer(code):
                yield number, mention["rest"].split()
