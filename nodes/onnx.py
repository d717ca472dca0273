"""`model.onnx`: run an ONNX model over batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field as Setting

from dataflow.sdk import (
    Batch,
    Column,
    ContractContext,
    FieldType,
    Lease,
    ModelError,
    ModelInfo,
    NodeContext,
    NotKnownYetError,
    Out,
    Schema,
    Settings,
    node,
)

from ._onnx_binding import appended, bind_inputs, bind_outputs
from ._onnx_feed import Feeder, feeder, output_column, scatter, shapes_of
from ._onnx_session import PROVIDERS, first_line, open_session

_MODEL_OPTIONS: Final = ("device", "providers", "intra_threads", "max_batch", "warm_up")


class Onnx(Settings):
    """Which model, and how its inputs and outputs meet the fields."""

    model: str = Setting(description="Name of the model.")
    inputs: dict[str, str | list[str]] | list[str] = Setting(
        default_factory=dict,
        description=(
            "Field for each model input, or a list of fields put side by side along the last axis; a plain list is "
            "for a model of one input. Inputs not named take the field of their own name; a model of one input takes "
            "the only field that fits."
        ),
    )
    outputs: dict[str, str] | list[str] = Setting(
        default_factory=dict,
        description="Outputs to take, with their new names or as a list. Default: all, under their own names.",
    )
    squeeze: bool = Setting(default=True, description="Outputs of shape [1] per record become scalars.")
    cast: bool = Setting(
        default=False,
        description="Allow casts that may lose value, such as float to integer; a row that does lose value fails.",
    )
    device: Literal["cpu", "cuda"] = Setting(
        default="cpu", description="Where to run. It is there, or loading fails."
    )
    providers: tuple[str, ...] = Setting(
        default=(),
        description="onnxruntime execution providers by rank, in place of `device`; each must be active.",
    )
    intra_threads: int = Setting(default=1, ge=1, le=256, description="Threads inside one run.")
    max_batch: int = Setting(
        default=1024, ge=1, description="Most rows of one run; larger batches are split."
    )
    warm_up: bool = Setting(default=True, description="Run one row of zeros when opened.")


EXAMPLE = """
kind: Topic
name: iris.flowers
fields:
  sepal_length: {type: float32, unit: cm}
  sepal_width:  {type: float32, unit: cm}
  petal_length: {type: float32, unit: cm}
  petal_width:  {type: float32, unit: cm}
---
kind: Model
name: iris
file: iris.onnx
build: |
  python -c "
  from sklearn.datasets import load_iris
  from sklearn.linear_model import LogisticRegression
  from skl2onnx import to_onnx
  x, y = load_iris(return_X_y=True)
  model = LogisticRegression(max_iter=500).fit(x, y)
  made = to_onnx(model, x[:1].astype('float32'), options={'zipmap': False})
  open('iris.onnx', 'wb').write(made.SerializeToString())
  "
---
kind: Pipeline
name: iris
inputs: {flowers: iris.flowers}
answer: {from: classify}
nodes:
  classify:
    use: model.onnx
    from: flowers
    with:
      model: iris
      inputs: [sepal_length, sepal_width, petal_length, petal_width]
      outputs: {label: species, probabilities: probabilities}
"""


@node("model.onnx", settings=Onnx, example=EXAMPLE)
class OnnxNode:
    """Run an ONNX model: the batch in one run, its outputs appended to the fields (or to those named by `keep:`).

    Names, dtypes and shapes come from the file. A field feeds an input if their shapes agree ([1] and a scalar are
    the same) and its values fit: float64 goes to float32 and integers to floats or wider integers by themselves,
    the rest needs `cast: true`. Null is NaN for a float input. NaN and infinity that the model gives are data.

    A model exported with a fixed batch runs in chunks of that size, the last one filled up with copies of its last
    row. Rows with tensors of free dimensions run together with those of equal shape. When a run fails, its rows run
    one by one, so that only the bad ones fail.
    """

    def __init__(self, settings: Onnx, context: NodeContext) -> None:
        self._context = context
        self._info = context.model(settings.model)
        self._settings = _with_options(settings, self._info)
        self._lease: Lease | None = None
        self._session: Any = None
        self._feeders: dict[str, Feeder] = {}
        self._names: list[str] = []
        self._outputs: list[tuple[str, str, FieldType]] = []
        self._kept: tuple[str, ...] = ()
        self._free: tuple[str, ...] = ()
        self._fixed_batch = 0
        self._chunk = self._settings.max_batch

    @staticmethod
    def models(settings: Onnx) -> tuple[str, ...]:
        return (settings.model,)

    @staticmethod
    def contract(settings: Onnx, context: ContractContext) -> dict[str, Schema]:
        info = context.models(settings.model)
        kept = context.kept() if context.keep is not None else context.input
        if not len(info.inputs):
            if context.out is None:
                raise NotKnownYetError(
                    f"model '{info.name}' is not built yet, so its outputs are not known: no {info.artifact}",
                    path=("with", "model"),
                    hint=f"build it: dataflow model build {info.name}, or declare its outputs under out:",
                )
            return {"out": appended(kept, context.out.fields)}
        bind_inputs(settings.inputs, info.inputs, context.input, cast=settings.cast)
        outputs = bind_outputs(settings.outputs, info, context.out, squeeze=settings.squeeze)
        return {"out": appended(kept, list(outputs.values()))}

    def open(self) -> None:
        settings, info, context = self._settings, self._info, self._context
        providers = settings.providers or (PROVIDERS[settings.device],)

        def load() -> Any:
            return open_session(info.name, info.artifact, providers, settings.intra_threads)

        if info.share is not None:
            self._lease = info.share((providers, settings.intra_threads), load)
            self._session = self._lease.value
        else:
            self._session = load()
        bindings = bind_inputs(settings.inputs, info.inputs, context.input, cast=settings.cast)
        outputs = bind_outputs(settings.outputs, info, context.out, squeeze=settings.squeeze)
        shapes = {port.name: port.shape for port in self._session.get_inputs()}
        self._feeders = {b.input.name: feeder(b, len(shapes[b.input.name])) for b in bindings}
        self._free = tuple(
            f.name for b in bindings for f in b.fields if f.type.is_tensor and f.type.column_dtype.hasobject
        )
        self._names = list(outputs)
        self._outputs = [(name, field.name, field.type) for name, field in outputs.items()]
        self._kept = context.keep if context.keep is not None else context.input.names
        fixed = [s[0] for s in shapes.values() if isinstance(s[0], int) and s[0] > 0]
        if fixed:
            self._fixed_batch = self._chunk = fixed[0]
        if settings.warm_up:
            self._warm_up(shapes)

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()
        self._lease = self._session = None

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        del port
        if len(batch) <= self._chunk and not self._free:
            try:
                made = self._run(batch)
            except Exception as error:  # noqa: BLE001  (whatever a run raises, one row is to blame)
                if len(batch) == 1:
                    self._fail(out, 0, error)
                    return
            else:
                columns = {name: batch.columns[name] for name in self._kept}
                columns.update(made)
                out.emit(columns)
                return
        self._process_parts(batch, out)

    def _process_parts(self, batch: Batch, out: Out) -> None:
        """Run in groups of equal shape and bounded size; row by row where that fails."""
        parts: list[tuple[Sequence[int], dict[str, Column]]] = []
        for rows in self._groups(batch):
            try:
                parts.append((rows, self._run(batch if len(rows) == len(batch) else batch.take(rows))))
            except Exception as error:  # noqa: BLE001  (as in process)
                if len(rows) == 1:
                    self._fail(out, rows[0], error)
                else:
                    self._run_singly(batch, rows, parts, out)
        if not parts:
            return
        done, made = scatter(parts)
        kept = batch.take(done) if len(done) < len(batch) else batch
        out.emit({**{name: kept.columns[name] for name in self._kept}, **made}, rows=done)

    def _run_singly(
        self,
        batch: Batch,
        rows: Sequence[int],
        parts: list[tuple[Sequence[int], dict[str, Column]]],
        out: Out,
    ) -> None:
        for row in rows:
            try:
                parts.append(([row], self._run(batch.take([row]))))
            except Exception as error:  # noqa: BLE001  (as in process)
                self._fail(out, row, error)

    def _groups(self, batch: Batch) -> Iterator[list[int]]:
        rows_by_shape: dict[Hashable, list[int]] = defaultdict(list)
        if self._free:
            for row, shape in enumerate(shapes_of(batch, self._free)):
                rows_by_shape[shape].append(row)
        else:
            rows_by_shape[()] = list(range(len(batch)))
        for rows in rows_by_shape.values():
            for start in range(0, len(rows), self._chunk):
                yield rows[start : start + self._chunk]

    def _run(self, batch: Batch) -> dict[str, Column]:
        feed = {name: feeds(batch) for name, feeds in self._feeders.items()}
        count = len(batch)
        missing = self._fixed_batch - count
        if missing > 0:
            feed = {n: np.concatenate([v, np.repeat(v[-1:], missing, axis=0)]) for n, v in feed.items()}
        results = self._session.run(self._names, feed)
        if missing > 0:
            results = [values[:count] for values in results]
        return {
            field: output_column(name, values, wanted, count)
            for (name, field, wanted), values in zip(self._outputs, results, strict=True)
        }

    def _fail(self, out: Out, row: int, error: Exception) -> None:
        reason = f"model '{self._info.name}': {first_line(error)}"
        out.fail([row], reason, error=ModelError.__name__)

    def _warm_up(self, shapes: dict[str, list[int | str | None]]) -> None:
        """Pay for the first run's allocations now. Zeros may lie outside the model's domain: a failure says nothing."""
        feed = {}
        for field in self._info.inputs:
            sizes = [size if isinstance(size, int) and size > 0 else 1 for size in shapes[field.name]]
            kind = field.type.kind
            feed[field.name] = np.full(sizes, "", object) if kind == "string" else np.zeros(sizes, kind)
        try:
            self._session.run(self._names, feed)
        except Exception:  # noqa: BLE001, S110
            pass


def _with_options(settings: Onnx, info: ModelInfo) -> Onnx:
    """The settings with what the Model declaration says where the node says nothing."""
    options = {name: info.options[name] for name in _MODEL_OPTIONS if name in info.options}
    return (
        Onnx.model_validate({**options, **settings.model_dump(exclude_unset=True)}) if options else settings
    )
