"""Commands about records: `produce`, `tap`, `trace`, `dead-letters`, `run`."""

from __future__ import annotations

from typing import Final

import click

from dataflow.cli.letters import dead_letters
from dataflow.cli.produce import produce
from dataflow.cli.run_file import run
from dataflow.cli.tap import tap
from dataflow.cli.trace import trace

data_commands: Final[list[click.Command]] = [produce, tap, trace, dead_letters, run]
