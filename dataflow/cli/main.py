"""`dataflow`: the composition root. Commands are imported when they are called, so that help comes at once."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from dataflow.core.errors import DataflowError, nearest
from dataflow.core.limit_settings import PREFIX, REFUSED, SETTABLE

# Section -> command -> (where it is, what it does). The place is a command, or a list of commands that holds it.
SECTIONS: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "Declare": {
        "new": ("dataflow.cli.new:new", "Make a project that lints, tests and runs."),
        "import": (
            "dataflow.cli.import_:import_",
            "Turn declarations of Seldon, KServe or Triton into ours.",
        ),
        "lint": ("dataflow.cli.lint:lint", "Find all that is wrong with the declarations."),
        "test": ("dataflow.cli.test:test", "Run the pipelines' inline tests, without a broker."),
        "plan": ("dataflow.cli.plan:plan", "Show what a pipeline becomes: stages, topics, groups, rights."),
        "graph": ("dataflow.cli.graph:graph", "Draw a pipeline."),
        "infer": ("dataflow.cli.infer:infer", "Print the `out:` of a Python node, from sample records."),
        "nodes": ("dataflow.cli.nodes:nodes", "List node kinds, or show one."),
        "model": ("dataflow.cli.model:model", "Build and look into models."),
        "topics": ("dataflow.cli.topics:topics", "List and export the contracts of topics and edges."),
        "schema": ("dataflow.cli.schema:schema", "Print the JSON Schema of declarations, for editors."),
    },
    "Run": {
        "up": ("dataflow.cli.serve:serve_commands", "Run everything declared here, broker included."),
        "run": ("dataflow.cli.data:data_commands", "Run a pipeline over a file, and end."),
        "deploy": ("dataflow.cli.serve:serve_commands", "Put plans onto a cluster, for its workers."),
        "serve": ("dataflow.cli.serve:serve_commands", "Answer requests and run stages, in one process."),
        "worker": ("dataflow.cli.serve:serve_commands", "Run stages of the pipelines on the cluster."),
        "gateway": ("dataflow.cli.serve:serve_commands", "Run the HTTP doors."),
        "broker": ("dataflow.cli.broker:broker", "Run Apache Kafka on this machine."),
    },
    "Look and feed": {
        "status": ("dataflow.cli.status:status", "Show the running graph: rates, lag, latency."),
        "produce": ("dataflow.cli.data:data_commands", "Write records of a file to a topic."),
        "tap": ("dataflow.cli.data:data_commands", "Read any edge of a pipeline."),
        "trace": ("dataflow.cli.data:data_commands", "Follow one request over every edge."),
        "state": ("dataflow.cli.state:state", "Show what a node keeps for a key."),
        "dead-letters": ("dataflow.cli.data:data_commands", "List, show and redrive records that failed."),
        "replay": ("dataflow.cli.replay:replay", "Run a recorded stretch again, and compare."),
    },
}
HIDDEN: Final[Mapping[str, str]] = {"reference": "dataflow.cli.reference:reference"}


class Commands(click.Group):
    """Commands by name, imported on use; expected failures as one message on standard error and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        named = {name: place for section in SECTIONS.values() for name, (place, _) in section.items()}
        place = {**named, **HIDDEN}.get(cmd_name)
        return None if place is None else _load(place, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args and not args[0].startswith("-"):
                hint = nearest(args[0], self.list_commands(ctx))
                raise click.UsageError(f"no command '{args[0]}' ({hint})", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DataflowError as error:
            if ctx.params.get("debug"):
                raise
            problems = getattr(error, "problems", ())
            if problems:
                click.echo(str(error), err=True)
                click.echo(f"Error: {len(problems)} problem{'s' * (len(problems) > 1)}", err=True)
            else:
                click.echo(f"Error: {error}", err=True)
            raise click.exceptions.Exit(1) from error


def _load(place: str, name: str) -> click.Command | None:
    module, _, attribute = place.partition(":")
    if importlib.util.find_spec(module) is None:
        return None
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, click.Command):
        return found
    return next((command for command in found if command.name == name), None)


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"dataflow {version('kafka-dataflow')}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--project",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the project. Default: the nearest one upward with a dataflow.yaml, else this one.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show it."
)
def main(project: Path | None, debug: bool) -> None:
    """Streaming dataflow over Kafka: every stream durable and tappable, every caller answered."""
    del project, debug  # read by the commands and by `Commands.invoke`
    _check_limits()


def _check_limits() -> None:
    """Raises DataflowError for a limit in the environment that there is not, or whose value it cannot have."""
    for variable, value in REFUSED:
        raise DataflowError(f"{variable}='{value}'", hint="valid: a whole number of at least 1")
    for variable in sorted(os.environ):
        name = variable.removeprefix(PREFIX)
        if name != variable and name not in SETTABLE:
            known = (PREFIX + n for n in SETTABLE)
            raise DataflowError(f"{variable}: no limit that may be set", hint=nearest(variable, known))
