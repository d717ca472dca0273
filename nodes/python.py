"""`transform.python`, `logic.python`, `model.python`: your own function or class as a node."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field as Setting

from dataflow.sdk import ContractContext, Schema, node, signature_of

from ._python import PythonNode
from ._python_contract import PythonCall, PythonStateful, contract_of


class PythonModel(PythonCall):
    """Which class or function to call, and the file it predicts with."""

    model: str | None = Setting(
        default=None,
        description="A declared model: its built file is passed to the constructor as `artifact` (a Path).",
    )


TRANSFORM_EXAMPLE = """
# file: features.py
#| from typing import TypedDict
#|
#| class Speed(TypedDict):
#|     metres_per_second: float
#|
#| def speed(flight: dict, factor: float = 1.0) -> Speed | None:
#|     if flight["minutes"] == 0:
#|         return None
#|     return {"metres_per_second": factor * flight["kilometres"] * 1000 / (flight["minutes"] * 60)}
kind: Topic
name: flights
fields: {flight: string, kilometres: float64, minutes: float64}
---
kind: Pipeline
name: speeds
inputs: {flights: flights}
nodes:
  speed:
    use: transform.python
    from: flights
    with: {call: features.speed, arguments: {factor: 1.0}}
    keep: [flight]
tests:
  - name: an hour for 900 km
    given: {flights: [{flight: LH400, kilometres: 900, minutes: 60}, {flight: LH401, kilometres: 1, minutes: 0}]}
    expect: {speed: [{flight: LH400, metres_per_second: 250}]}
"""

LOGIC_EXAMPLE = """
# file: rebook.py
#| from typing import Literal, TypedDict
#| from dataflow.sdk import CallContext, Drop
#|
#| class Offer(TypedDict):
#|     action: Literal["rebook", "refund"]
#|     reference: str
#|
#| async def offer(late: dict, context: CallContext) -> Offer:
#|     if late["minutes"] < 30:
#|         raise Drop("not late enough")
#|     action = "refund" if late["minutes"] > 300 else "rebook"
#|     return {"action": action, "reference": context.id}    # the same id on a retry: book once
kind: Topic
name: delays
fields: {passenger: string, minutes: int32}
---
kind: Pipeline
name: offers
inputs: {delays: delays}
nodes:
  offer:
    use: logic.python
    from: delays
    with: {call: rebook.offer, concurrency: 8, timeout_ms: 2000}
    keep: [passenger]
tests:
  - name: a long delay is refunded
    given: {delays: [{passenger: ann, minutes: 400}, {passenger: bob, minutes: 5}]}
    expect: {offer: [{passenger: ann, action: refund}]}
"""

MODEL_EXAMPLE = """
# file: mean.py
#| import numpy as np
#| from dataflow.sdk import Batch
#|
#| class Mean:
#|     def __init__(self, bias: float = 0.0) -> None:
#|         self.bias = bias
#|
#|     def open(self) -> None:
#|         self.weights = np.full(3, 1 / 3, dtype=np.float32)
#|
#|     def process(self, batch: Batch) -> dict[str, np.ndarray]:
#|         return {"score": batch["x"] @ self.weights + self.bias}
kind: Topic
name: points
fields: {x: "float32[3]"}
---
kind: Pipeline
name: means
inputs: {points: points}
nodes:
  mean:
    use: model.python
    from: points
    with: {call: mean.Mean, arguments: {bias: 1.0}}
    out: {score: float32}
tests:
  - name: the mean of three numbers and one
    given: {points: [{x: [1, 2, 3]}]}
    expect: {mean: [{x: [1, 2, 3], score: 3}]}
"""


@node("transform.python", settings=PythonStateful, example=TRANSFORM_EXAMPLE)
class TransformPython(PythonNode):
    """Call a function per row, or per batch; each row is replaced by what it returns, `keep:` fields beside it.

    *Row-wise*: a function of one dict (Python scalars, None for null, arrays for tensors). It returns a dict (a row), None (the
    row is dropped), or a list or iterator of dicts (each a child). `raise Drop(reason)`, `Fail(reason)` and
    `Retry(reason)` end a row by intent; any other exception fails that row only. A parameter `context` is given the
    row's id, key and attempt. `async def` runs `concurrency` rows at once; order is kept.

    *Array-wise*: a function whose first parameter is annotated `Batch`. It returns a dict of columns, one row to one,
    or takes `out: Out` as a second parameter and accounts for every row itself. When it raises, its rows run again
    one by one, so that only the bad ones fail.

    *A class* is made once (`arguments` go to its constructor), with `open` and `close` if it has them and `process`
    or `__call__` as the function.

    *State and timers*: a row-wise function or class whose parameter `context` is annotated `KeyedContext` has
    `context.state` (values, maps and lists of the record's key) and `context.timer`; `on_timer(timer, context)`, a method
    or the setting, is called when one fires. A row that raises undoes its changes (`Drop` keeps them). Rows run one after
    another, an async function's too. How to: docs/how-to/keep-state.md.

    Fields come from `out:`, else from the return annotation (a TypedDict, dataclass or NamedTuple). What is returned
    is checked: a missing or unknown field, a wrong type or shape fails the row.
    """

    @staticmethod
    def contract(settings: PythonStateful, context: ContractContext) -> dict[str, Schema]:
        return contract_of(settings, context, appends=False)

    @staticmethod
    def keyed_for(settings: PythonStateful, folder: Path) -> bool:
        return signature_of(folder, settings.call).keyed


@node("logic.python", settings=PythonStateful, example=LOGIC_EXAMPLE, pure=False)
class LogicPython(PythonNode):
    """Call a function that may have effects outside; as `transform.python`, but off in replays.

    Its `context` (id, key, attempt) is the means of idempotency: the id stays the same on a retry, a replay and a
    redrive. A function annotated `-> None` takes its rows in; with `keep:` it passes those fields on. An array-wise
    function that raises is not run again: all rows of the batch fail.
    """

    pure = False

    @staticmethod
    def contract(settings: PythonStateful, context: ContractContext) -> dict[str, Schema]:
        return contract_of(settings, context, appends=False)

    @staticmethod
    def keyed_for(settings: PythonStateful, folder: Path) -> bool:
        return signature_of(folder, settings.call).keyed


@node("model.python", settings=PythonModel, example=MODEL_EXAMPLE)
class ModelPython(PythonNode):
    """Predict with a class or function of your own: as `transform.python`, its outputs appended to the row's fields.

    With `keep:` only those fields stay beside the outputs.
    """

    appends = True

    @staticmethod
    def contract(settings: PythonModel, context: ContractContext) -> dict[str, Schema]:
        return contract_of(settings, context, appends=True)

    @staticmethod
    def models(settings: PythonModel) -> tuple[str, ...]:
        return (settings.model,) if settings.model else ()
