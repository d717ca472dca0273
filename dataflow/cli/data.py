"""Commands about records: `produce`, `tap`, `trace`, `dead-letters`, `run`."""

from __future__ import annotations

from typing import Final

import click

from dataflow.cli.produce import produce
from dataflow.cli.tap import tap

data_commands: Final[list[click.Command]] = [produce, tap]
