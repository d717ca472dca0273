from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dataflow.cli.context import find_project
from dataflow.cli.main import SECTIONS, Commands, main
from dataflow.core.errors import BrokerError
from tests.cli.project import call, make


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from dataflow.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_help_lists_every_command(tmp_path: Path) -> None:
    done = run("--help", folder=tmp_path)
    assert done.returncode == 0
    for commands in SECTIONS.values():
        for name, (_, text) in commands.items():
            assert f"{name}" in done.stdout
            assert text.split()[0] in done.stdout


def test_help_imports_nothing_that_takes_time() -> None:
    code = (
        "import sys; from dataflow.cli.main import main; main(['--help'], standalone_mode=False); "
        "print(sorted(m for m in ('numpy', 'pydantic', 'confluent_kafka', 'pyarrow', 'rich') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "name",
    [
        "new",
        "lint",
        "test",
        "plan",
        "graph",
        "infer",
        "nodes",
        "model",
        "topics",
        "schema",
        "broker",
        "reference",
    ],
)
def test_commands_are_where_they_are_said_to_be(name: str) -> None:
    assert isinstance(main, Commands)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name


def test_an_unknown_command_gets_the_nearest_name(tmp_path: Path) -> None:
    done = run("lnit", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "Error: no command 'lnit' (did you mean 'lint'?)"


def test_a_failure_is_one_message_and_no_traceback(tmp_path: Path) -> None:
    make(tmp_path)
    done = run("plan", "helo", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "Error: no pipeline 'helo' (did you mean 'hello'?)\n"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    make(tmp_path)
    done = run("--debug", "plan", "helo", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_problems_are_listed_by_every_command_that_plans(tmp_path: Path) -> None:
    make(tmp_path, "kind: Pipeline\nname: hello\ninputs: {a: b}\nnodes: {n: {use: route.wen, from: a}}\n")
    done = run("plan", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "pipelines/hello/pipeline.yaml:3:13: unknown topic 'b' (valid: readings)\n"
        "pipelines/hello/pipeline.yaml:4:18: unknown node kind 'route.wen' (did you mean 'route.when'?)\n"
        "Error: 2 problems\n"
    )


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("dataflow 0.")


def test_errors_of_groups_are_told_the_same_way() -> None:
    class Failing(Commands):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            def fail() -> None:
                raise BrokerError("no broker", hint="start one")

            return click.Command(cmd_name, callback=fail)

    group = Failing("x", params=[click.Option(["--debug"], is_flag=True)])
    result = CliRunner().invoke(group, ["x"])
    assert (result.exit_code, result.stderr) == (1, "Error: no broker (start one)\n")
    assert isinstance(CliRunner().invoke(group, ["--debug", "x"]).exception, BrokerError)


def test_the_project_is_the_nearest_folder_upward(tmp_path: Path) -> None:
    make(tmp_path)
    assert find_project(tmp_path / "pipelines" / "hello") == tmp_path.resolve()
    (tmp_path / "dataflow.yaml").unlink()
    assert find_project(tmp_path / "topics") == (tmp_path / "topics").resolve()


def test_a_command_finds_the_project_from_within(tmp_path: Path) -> None:
    make(tmp_path)
    done = run("lint", folder=tmp_path / "pipelines" / "hello")
    assert done.stdout == "1 pipeline, 1 topic: no problems\n"


def test_a_commands_own_project_goes_first(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), tmp_path / "other"
    other.mkdir()
    result = call(other, "lint", "--project", str(one))
    assert result.output == "1 pipeline, 1 topic: no problems\n"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = call(tmp_path / "gone", "lint")
    assert result.exit_code == 1
    assert result.stderr == f"Error: no folder '{tmp_path / 'gone'}' (dataflow new NAME makes a project)\n"
