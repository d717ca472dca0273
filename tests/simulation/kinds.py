"""The two kinds that only a simulation needs: one that fails as its records say, one that counts by key."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from dataflow.registry import Registry
from dataflow.sdk import Batch, ContractContext, KeyedState, NodeContext, Out, Schema, Settings, node
from nodes import batching, each, join, rekey, route, select, window
from nodes.filter import FilterWhen

# Of the retry policy that a flaky node is declared with: what fails so often always does.
ATTEMPTS: Final = 4


@node("sim.flaky")
class Flaky:
    """`do` in a record: ``flaky:NODE:TIMES`` fails so often and then passes, ``poison:NODE`` fails for good."""

    def __init__(self, settings: Settings, context: NodeContext) -> None:
        self._name = context.node
        self._tries: Counter[str] = Counter()

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.input}

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        good = []
        for index, (record_id, text) in enumerate(zip(batch.ids, batch["do"].tolist(), strict=True)):
            what, _, rest = text.partition(":")
            name, _, times = rest.partition(":")
            if name != self._name:
                good.append(index)
            elif what == "poison":
                out.fail([index], "it is poison", error="Poison")
            elif int(times) >= ATTEMPTS or self._tries[record_id] < int(times):
                self._tries[record_id] += 1
                out.fail([index], "not now", error="Busy", retryable=True)
            else:
                good.append(index)
        if good:
            out.emit(batch.take(good), rows=good)


@node("sim.count")
class Counted:
    """Counts the records of a key: `c` becomes the count."""

    keyed = True

    def __init__(self, settings: Settings, context: NodeContext) -> None:
        del settings, context

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.input}

    def process(self, batch: Batch, out: Out, port: str, state: KeyedState) -> None:
        counts = []
        for row in batch.rows:
            key = row.key or b""
            counts.append(state.get(key, "count", 0) + 1)
            state.put(key, "count", counts[-1])
        out.emit({**batch.columns, "c": np.array(counts, dtype=np.int64)})


REGISTRY = Registry.of(
    Flaky,
    Counted,
    select.TransformSelect,
    FilterWhen,
    route.RouteWhen,
    each.EachSplit,
    each.EachGather,
    join.JoinById,
    rekey.RekeyRecords,
    window.WindowTumbling,
    batching.BatchWindow,
)
