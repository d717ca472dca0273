"""What an ONNX file takes and gives, read without running it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from dataflow.core.errors import ModelError
from dataflow.core.schema import Field, FieldType, Schema
from dataflow.sdk import Lease, ModelInfo

ZIPMAP_HINT: Final = (
    'export without ZipMap, for scikit-learn: convert_sklearn(model, options={id(model): {"zipmap": False}})'
)
_KINDS: Final = {
    "bool": "bool", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "uint8": "uint8",
    "uint16": "uint16", "uint32": "uint32", "uint64": "uint64", "float16": "float16", "float": "float32",
    "double": "float64", "string": "string",
}  # fmt: skip


@dataclass(frozen=True)
class Port:
    """One input or output as the file states it: `shape` with the batch axis, names or None for free sizes.

    `type` is the field type of one record, None where no contract can carry it; `problem` then says why.
    """

    name: str
    onnx_type: str
    shape: tuple[int | str | None, ...]
    type: FieldType | None
    problem: str = ""


@dataclass(frozen=True)
class Signature:
    """The ports of an ONNX file and where it comes from.

    `batch` is the number of rows one run takes: -1 is any number (a free first axis). `metadata` is the exporter's
    own; `opset` that of the default ONNX domain.
    """

    ports_in: tuple[Port, ...]
    ports_out: tuple[Port, ...]
    batch: int
    opset: int
    producer: str
    metadata: Mapping[str, str]
    size_bytes: int

    @property
    def inputs(self) -> Schema:
        """The inputs that a field can feed, per record."""
        return Schema(tuple(Field(p.name, p.type) for p in self.ports_in if p.type is not None))

    @property
    def outputs(self) -> Schema:
        """The outputs that a field can carry, per record."""
        return Schema(tuple(Field(p.name, p.type) for p in self.ports_out if p.type is not None))

    @property
    def uncarryable(self) -> dict[str, str]:
        """Why each output that is not in `outputs` cannot be carried."""
        return {p.name: p.problem for p in self.ports_out if p.type is None}


def read_signature(path: Path) -> Signature:
    """Read the signature of an ONNX file. Raises ModelError when it is missing, broken or onnxruntime is not there.

    The graph is not optimised and nothing is run; weights are mapped by onnxruntime and let go again.
    """
    runtime = import_onnxruntime()
    if not path.is_file():
        raise ModelError(f"no model file at {path}")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no common base below Exception
        raise ModelError(f"{path} is not a model that onnxruntime reads: {first_line(error)}") from error
    ports_in = [_port(p.name, p.type, p.shape) for p in session.get_inputs()]
    batch = _batch(ports_in)
    meta = session.get_modelmeta()
    return Signature(
        tuple(_checked_input(p, batch) for p in ports_in),
        tuple(_checked_output(_port(p.name, p.type, p.shape), batch) for p in session.get_outputs()),
        batch,
        read_opset(path),
        meta.producer_name,
        dict(meta.custom_metadata_map),
        path.stat().st_size,
    )


def model_info(
    name: str,
    path: Path,
    *,
    options: Mapping[str, Any] | None = None,
    digest: str = "",
    share: Callable[[Hashable, Callable[[], Any]], Lease] | None = None,
) -> ModelInfo:
    """What a node is told about a model. Schemas are empty when the artifact is not there or is not ONNX.

    Raises ModelError for a broken file and for an input that no field can feed.
    """
    empty = Schema(())
    if path.suffix != ".onnx" or not path.is_file():
        return ModelInfo(name, path, empty, empty, options or {}, digest, {}, share)
    signature = read_signature(path)
    for port in signature.ports_in:
        if port.type is None:
            raise ModelError(f"model '{name}': input '{port.name}': {port.problem}")
    return ModelInfo(
        name, path, signature.inputs, signature.outputs, options or {}, digest, signature.uncarryable, share
    )


def import_onnxruntime() -> ModuleType:
    """The onnxruntime module, imported late because it costs start-up time and is an extra."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "onnxruntime is not installed",
            hint="pip install 'kafka-dataflow[cpu]', or 'kafka-dataflow[gpu]' on a machine with CUDA",
        ) from error
    module: ModuleType = onnxruntime
    return module


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without onnxruntime's bracketed prefix."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rsplit("[ONNXRuntimeError] : ", 1)[-1]


def _port(name: str, onnx_type: str, shape: Sequence[int | str | None] | None) -> Port:
    axes = tuple(shape or ())
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    if not onnx_type.startswith("tensor("):
        hint = ZIPMAP_HINT if "map(" in onnx_type else "export the model with plain tensors"
        return Port(name, onnx_type, axes, None, f"a contract cannot carry {onnx_type}; {hint}")
    kind = _KINDS.get(inner)
    if kind is None:
        return Port(name, onnx_type, axes, None, f"no field type holds {inner}; cast it in the model")
    if not axes:
        problem = "it has no batch axis, or the file does not say its shape; export with a free first axis"
        return Port(name, onnx_type, axes, None, problem)
    sizes = tuple(size if isinstance(size, int) and size > 0 else -1 for size in axes[1:])
    if kind == "string":
        if sizes not in {(), (1,)}:
            return Port(name, onnx_type, axes, None, "a field holds one string, not a tensor of strings")
        sizes = ()
    return Port(name, onnx_type, axes, FieldType(kind, sizes))


def _batch(ports: Sequence[Port]) -> int:
    """The common first axis: a fixed size where one input has it, else -1."""
    fixed = [p.shape[0] for p in ports if p.shape and isinstance(p.shape[0], int) and p.shape[0] > 0]
    return int(fixed[0]) if fixed else -1


def _checked_input(port: Port, batch: int) -> Port:
    if port.type is None or batch == -1:
        return port
    first = port.shape[0]
    if isinstance(first, int) and first > 0 and first != batch:
        problem = f"first axis of size {first} where another input has {batch}: no common batch axis"
    elif len(port.shape) == 1 and batch > 1:
        # One vector per run rather than a batch of scalars: feeding rows to it would give wrong answers silently.
        problem = f"shape [{batch}] has no batch axis; export the model with a free first axis"
    else:
        return port
    return Port(port.name, port.onnx_type, port.shape, None, problem)


def _checked_output(port: Port, batch: int) -> Port:
    first = port.shape[0] if port.shape else None
    if port.type is None or not isinstance(first, int) or first <= 0 or first == batch:
        return port
    problem = f"first axis of fixed size {first} is no batch axis: it gives no value per record"
    return Port(port.name, port.onnx_type, port.shape, None, problem)


def read_opset(path: Path) -> int:
    """Version of the default operator set; 0 if the file states none.

    Walks the top level of the protobuf message (wire format: tag = number << 3 | type), skipping the graph:
    ModelProto.opset_import is field 8, OperatorSetIdProto has domain = 1 and version = 2.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, value in _wire_fields(data, 0, len(data)):
            if number == 8 and isinstance(value, slice):
                found = dict(_wire_fields(data, value.start, value.stop))
                domain = found.get(1)
                name = data[domain] if isinstance(domain, slice) else b""
                if name in {b"", b"ai.onnx"} and isinstance(version := found.get(2), int):
                    return version
    return 0


def _wire_fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int | slice]]:
    """(field number, integer value or slice of the bytes) of one protobuf message."""
    position = start
    while position < stop:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        else:
            size = 8 if kind == 1 else 4
        yield tag >> 3, slice(position, position + size)
        position += size


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
