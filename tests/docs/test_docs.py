"""The documentation is true: its commands run and print what it shows, its links and options exist."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import click
import pytest
from ruamel.yaml import YAML

from dataflow.cli.main import main
from tests.docs.pages import ROOT, SKIPS, anchors_of, blocks_of, links_of, mentions_of
from tests.docs.shell import Shell

PAGES = sorted(
    [*ROOT.glob("docs/**/*.md"), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"))]
)
# Guides that show what a machine of one's own would print; their commands and options are checked, not run.
NOT_FOLLOWED = frozenset({"broker.md", "tap-a-stream.md", "redrive-dead-letters.md"})
FOLLOWED = [
    page
    for page in PAGES
    if page.name not in NOT_FOLLOWED
    and (page.parent.name != "reference" or page.name == "joins.md")  # the others are generated, or lists
    and any(b.language == "console" and not b.value("skip") for b in blocks_of(page))
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def followers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Path, Future[None]]]:
    """The pages of this run, each being followed, two at a time: most of it is waiting for processes to start."""
    wanted = [
        Path(str(item.callspec.params["page"]))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_what_a_page_says_happens
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {page: pool.submit(follow, page, tmp_path_factory.mktemp(page.stem)) for page in wanted}


def follow(page: Path, folder: Path) -> None:
    with Shell(folder, free_port()) as shell:
        for block in blocks_of(page):
            shell.follow(block)


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", FOLLOWED, ids=name_of)
def test_what_a_page_says_happens(page: Path, followers: dict[Path, Future[None]]) -> None:
    followers[page].result()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for line, target in links_of(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists():
            lost.append(f"line {line}: {target}")
        elif anchor and anchor not in anchors_of(found):
            lost.append(f"line {line}: {target}: no such heading")
    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    wrong = []
    for line, words in mentions_of(page):
        fault = fault_of(words)
        if fault:
            wrong.append(f"line {line}: dataflow {' '.join(words)}: {fault}")
    assert not wrong


def fault_of(words: list[str]) -> str:
    """What is wrong with the words after `dataflow`; "" if nothing is."""
    command: click.Command = main
    context = click.Context(main)
    for position, word in enumerate(words):
        if word.startswith("[") or word.isupper():
            return ""  # a synopsis
        if isinstance(command, click.Group) and not word.startswith("-"):
            # `list | show | redrive` and the like: the first stands for all.
            found = command.get_command(context, word)
            if found is None:
                return f"no command '{word}'" if position == 0 or command is not main else ""
            command = found
            continue
        option = re.match(r"--?[a-z][a-z-]*", word)
        if option is not None:
            known = {
                o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)
            }
            known |= {o for p in main.params for o in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
            if option[0] not in known:
                return f"no option '{option[0]}'"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_declarations_shown_are_yaml(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "yaml":
            list(YAML(typ="safe").load_all(block.text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_not_run_says_why(page: Path) -> None:
    reasons = {b.value("skip") for b in blocks_of(page)} - {""}
    assert reasons <= SKIPS


def test_files_named_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Where things are")[2]
    named = re.findall(r"^\| (`[^|]+`)", section, re.MULTILINE)
    assert named
    paths = [path for cell in named for path in re.findall(r"`([^`]+)`", cell)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_matcher_knows_wildcards() -> None:
    from tests.docs.pages import pattern_of

    assert pattern_of(("a ... c", "...", "z")).fullmatch("a b c\nx\ny\nz\n")
    assert pattern_of(("a", "...")).fullmatch("a\n")
    assert not pattern_of(("a ... c",)).fullmatch("a b\nc\n")


def test_wrong_mentions_are_found() -> None:
    assert fault_of(["nonsense"])
    assert fault_of(["up", "--nonsense"])
    assert not fault_of(["up", "--port", "8080"])
