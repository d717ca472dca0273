"""What the data commands share: the cluster as a stranger sees it, and standard output that may be a pipe."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dataflow.planner.plan import Plan
    from dataflow.spec import Project
    from dataflow.transport.kafka import KafkaFabric


@dataclass(frozen=True)
class Outside:
    """A cluster, the plans deployed there, and the project in whose folder we are."""

    fabric: KafkaFabric
    plans: dict[str, Plan]
    project: Project


@contextmanager
def cluster(project: Path, bootstrap: str) -> Iterator[Outside]:
    """Connect. Raises BrokerError where no broker is known."""
    from dataflow.control.connect import connect
    from dataflow.control.deploy import read_plans
    from dataflow.spec import load_project

    with quiet_client():
        fabric = connect(project, bootstrap or None, os.environ)
        try:
            yield Outside(fabric, read_plans(fabric), load_project(project, environ=os.environ))
        finally:
            fabric.close()


@contextmanager
def quiet_client() -> Iterator[None]:
    """What librdkafka tries again by itself is no news for a person at a prompt."""
    log = logging.getLogger("dataflow.kafka")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def tell(message: str) -> None:
    """Everything that is no data goes to standard error."""
    click.echo(message, err=True)


@contextmanager
def pipe() -> Iterator[None]:
    """Standard output for data: a reader who leaves (``| head``) or Ctrl-C ends the command quietly."""
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Python flushes standard output at its end, and would tell of the closed pipe there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
