"""`agent.faust`: an existing Faust app as a node."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from pydantic import Field as Setting
from pydantic import field_validator

from dataflow.sdk import (
    AgentPlace,
    Batch,
    ContractContext,
    ContractError,
    NodeContext,
    NodeError,
    Out,
    Schema,
    Settings,
    node,
)

EXAMPLE = """
# file: counting.py
#| import faust
#|
#| app = faust.App("counting")
#| clicks = app.topic("clicks")
#| counts = app.topic("click-counts")
#| seen = app.Table("seen", default=int)
#|
#| @app.agent(clicks)
#| async def count(stream):
#|     async for click in stream:
#|         seen[click["page"]] += 1
#|         await counts.send(key=click["page"], value={"page": click["page"], "count": seen[click["page"]]})
kind: Topic
name: web.clicks
codec: json
key: page
fields: {page: string}
---
kind: Pipeline
name: clicks
inputs: {click: web.clicks}
nodes:
  counted: {use: agent.faust, from: click, with: {app: "counting:app", reads: clicks, writes: click-counts}, out: {page: string, count: int64}}
  counts:  {use: distinct, from: counted}
tests: # the app does not run here: what it would write is given
  - name: what is counted twice
    given: {counted: [{page: home, count: 1}, {page: home, count: 2}]}
    expect: {counts: [{count: 1}, {count: 2}]}
"""
HOST: Final = Path(__file__).with_name("_faust_host.py")


class FaustApp(Settings):
    """The app, and which of its topics are the node's input and its edge."""

    app: str = Setting(
        description="`module:name` of the `faust.App`, in the pipeline's folder or the project."
    )
    reads: str = Setting(
        min_length=1, description="The topic, as the app calls it, that is the node's input."
    )
    writes: str = Setting(
        min_length=1, description="The topic, as the app calls it, that is the node's edge."
    )

    @field_validator("app")
    @classmethod
    def _names_an_app(cls, value: str) -> str:
        module, _, name = value.partition(":")
        if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise ValueError(f"'{value}' does not name a faust.App, e.g. counting:app")
        return value


@node("agent.faust", settings=FaustApp, example=EXAMPLE, pure=False)
class AgentFaust:
    """Run an existing Faust app, with its agents, tables and windows, as a process of its own.

    The app reads the node's input and writes its edge: `reads` and `writes` name its own topics for them, which are then
    read and written nowhere. Both are JSON; `out:` says what it writes. What is left of the app's settings is its own, but
    for the broker, the group and id, the commit interval, and the web server, which is off.

    At least once: after a crash what was not committed is processed again, and sent again. Put `distinct` behind it, which
    takes out what was sent twice. Needs the extra `faust`.
    """

    outside = True
    codec = "json"

    def __init__(self, settings: FaustApp, context: NodeContext) -> None:
        self._settings = settings
        self._name = context.node

    @staticmethod
    def contract(settings: FaustApp, context: ContractContext) -> dict[str, Schema]:
        del settings
        if context.out is None:
            raise ContractError(
                "agent.faust: what the app writes is not declared",
                path=("out",),
                hint="out: {field: type, ...}",
            )
        if context.keep is not None:
            raise ContractError(
                "agent.faust keeps no fields of its input", path=("keep",), hint="leave it out"
            )
        return {"out": context.out}

    def open(self) -> None:
        """Raises NodeError where Faust is not installed."""
        if PathFinder.find_spec("faust") is None:
            raise NodeError("agent.faust needs the extra faust", hint="pip install 'kafka-dataflow[faust]'")

    def command(self, place: AgentPlace) -> Sequence[str]:
        """The host, which is told by its arguments what the engine does not know of."""
        del place
        self.open()
        told = {"app": self._settings.app, "reads": self._settings.reads, "writes": self._settings.writes}
        # -P: the folder of the host, with modules named as those of the standard library, stays off the path.
        return [sys.executable, "-P", str(HOST), json.dumps(told)]

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        """Never called: the process does it."""
        raise NotImplementedError(f"node '{self._name}' runs outside")
