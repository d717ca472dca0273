"""Which fields feed which inputs of a model, and which fields its outputs become. Pure; errors are contract errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from dataflow.sdk import ContractError, Field, FieldType, ModelInfo, Schema, nearest

INTEGER_KINDS: Final = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOAT_KINDS: Final = frozenset({"float16", "float32", "float64"})
_ARRAY_KINDS: Final = INTEGER_KINDS | FLOAT_KINDS | {"bool"}
Place = tuple[str | int, ...]
InputsSetting = Mapping[str, str | list[str]] | Sequence[str]
OutputsSetting = Mapping[str, str] | Sequence[str]


@dataclass(frozen=True)
class Binding:
    """One model input and the fields that feed it: one as it is, or several side by side along the last axis."""

    input: Field
    fields: tuple[Field, ...]


def bind_inputs(
    setting: InputsSetting, model: Schema, fields: Schema, *, cast: bool = False
) -> tuple[Binding, ...]:
    """A binding for every input of the model. Raises ContractError where none fits.

    By rank: what `setting` says; the field of the input's own name; for a model of one input, the only field that fits.
    """
    declared = _declared(setting, model)
    for name in declared:
        if name not in model:
            hint = nearest(name, model.names)
            raise ContractError(f"the model has no input '{name}'", path=("with", "inputs", name), hint=hint)
    bindings = []
    for port in model:
        if port.name in declared:
            place: Place = (
                ("with", "inputs", port.name) if isinstance(setting, Mapping) else ("with", "inputs")
            )
            bindings.append(_bind_declared(port, declared[port.name], fields, place, cast=cast))
        elif port.name in fields:
            found = fields[port.name]
            if problem := misfit(port.type, found.type, cast=cast):
                raise ContractError(_says(port, found, problem), path=("with", "inputs"))
            bindings.append(Binding(port, (found,)))
        elif len(model) == 1:
            bindings.append(Binding(port, (_only_fit(port, fields, cast=cast),)))
        else:
            raise ContractError(
                f"no field feeds the model's input '{port.name}' ({port.type.describe()})",
                path=("with", "inputs"),
                hint=f"{nearest(port.name, fields.names)} map it: inputs: {{{port.name}: FIELD}}",
            )
    return tuple(bindings)


def bind_outputs(
    setting: OutputsSetting, info: ModelInfo, declared: Schema | None, *, squeeze: bool
) -> dict[str, Field]:
    """The field that each taken output becomes, by the output's own name, in the file's order.

    `setting` selects and renames; without it all outputs are taken. `declared` (the node's `out:`) selects by field
    name, may widen a type and says those that the file leaves open. Raises ContractError.
    """
    names = setting if isinstance(setting, Mapping) else {name: name for name in setting}
    known = (*info.outputs.names, *info.uncarryable)
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise ContractError(f"the model has no output '{name}'", path=("with", "outputs"), hint=hint)
    renamed = {name: names.get(name, name) for name in known if not names or name in names}
    if declared is not None:
        renamed = {name: field for name, field in renamed.items() if field in declared}
        for field in declared:
            if field.name not in renamed.values():
                raise ContractError(
                    f"out: no output of the model becomes '{field.name}'",
                    path=("out", field.name),
                    hint=nearest(field.name, known),
                )
    return {name: _output(name, field, info, declared, squeeze=squeeze) for name, field in renamed.items()}


def appended(base: Schema, outputs: Sequence[Field]) -> Schema:
    """`base` and the outputs. Raises ContractError where an output has the name of a field of `base`."""
    for field in outputs:
        if field.name in base:
            raise ContractError(
                f"output '{field.name}' of the model has the name of an input field",
                path=("with", "outputs"),
                hint=f"rename it: outputs: {{{field.name}: NEW_NAME}}, or leave the input field out by keep:",
            )
    return Schema((*base.fields, *outputs))


def misfit(wanted: FieldType, given: FieldType, *, cast: bool) -> str:
    """Why a field of type `given` cannot feed an input of type `wanted`; "" if it can.

    Allowed are casts of numpy's same kind that cannot wrap around: float64 to float32 and integers to floats, but
    integers only to wider ones. `cast` allows all between numbers; rows that lose value to it fail when they come.
    A null becomes NaN where the input is a float, else it is refused. [1] and a scalar are the same.
    """
    if given.nullable and (wanted.kind not in FLOAT_KINDS or given.is_tensor):
        return "it may be null: fill it before the model"
    if not _kind_fits(wanted.kind, given.kind, cast=cast):
        can = wanted.kind in _ARRAY_KINDS and given.kind in _ARRAY_KINDS
        return "the dtype does not fit" + (": `cast: true` allows it" if can else "")
    want, have = _unit(wanted.shape), _unit(given.shape)
    if len(want) == len(have) and all(w == h or -1 in {w, h} for w, h in zip(want, have, strict=True)):
        return ""
    return "the shape does not fit"


def _unit(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if shape == (1,) else shape


def _kind_fits(wanted: str, given: str, *, cast: bool) -> bool:
    if wanted == "string":
        return given in {"string", "enum"}
    if given == "decimal":
        return wanted in FLOAT_KINDS
    if given not in _ARRAY_KINDS or wanted not in _ARRAY_KINDS:
        return False
    same_kind = np.can_cast(np.dtype(given), np.dtype(wanted), "same_kind")
    safe = np.can_cast(np.dtype(given), np.dtype(wanted), "safe")
    return bool(cast or safe or (same_kind and wanted in FLOAT_KINDS))


def _says(port: Field, field: Field, problem: str) -> str:
    return (
        f"input '{port.name}' of the model is {port.type.describe()}, "
        f"field '{field.name}' is {field.type.describe()}: {problem}"
    )


def _declared(setting: InputsSetting, model: Schema) -> dict[str, list[str]]:
    if isinstance(setting, Mapping):
        return {name: [f] if isinstance(f, str) else list(f) for name, f in setting.items()}
    if not setting:
        return {}
    if len(model) != 1:
        raise ContractError(
            f"inputs: a plain list is for a model of one input; this one has {len(model)}",
            path=("with", "inputs"),
            hint=f"name them: inputs: {{{model.names[0]}: FIELD, ...}}",
        )
    return {model.names[0]: list(setting)}


def _bind_declared(port: Field, names: Sequence[str], fields: Schema, place: Place, *, cast: bool) -> Binding:
    for name in names:
        if name not in fields:
            raise ContractError(f"no field '{name}'", path=place, hint=nearest(name, fields.names))
    found = tuple(fields[name] for name in names)
    if len(found) == 1:
        if problem := misfit(port.type, found[0].type, cast=cast):
            raise ContractError(_says(port, found[0], problem), path=place)
        return Binding(port, found)
    if len(port.type.shape) != 1 or port.type.kind not in _ARRAY_KINDS:
        raise ContractError(
            f"several fields feed only an input of one axis; '{port.name}' is {port.type.describe()}",
            path=place,
        )
    width = 0
    for field in found:
        part = replace(port.type, shape=field.type.shape)
        problem = misfit(part, field.type, cast=cast)
        if len(field.type.shape) > 1 or field.type.has_free_dimension:
            problem = "only scalars and tensors of one fixed axis can stand side by side"
        if problem:
            raise ContractError(_says(port, field, problem), path=place)
        width += field.type.shape[0] if field.type.shape else 1
    if port.type.shape[0] not in {-1, width}:
        raise ContractError(
            f"input '{port.name}' of the model is {port.type.describe()}, the fields make {width} values",
            path=place,
        )
    return Binding(port, found)


def _only_fit(port: Field, fields: Schema, *, cast: bool) -> Field:
    fits = [f for f in fields if not misfit(port.type, f.type, cast=cast)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        fault, hint = "more than one field fits", f"say which: inputs: {{{port.name}: {fits[0].name}}}"
    else:
        fault = "no field fits"
        scalars = [f.name for f in fields if f.type.is_number]
        hint = f"input fields: {fields.describe() or 'none'}"
        if len(port.type.shape) == 1 and port.type.shape[0] in {-1, len(scalars)}:
            hint = f"to stack scalars: inputs: [{', '.join(scalars)}]"
    raise ContractError(
        f"{fault} the model's input '{port.name}' ({port.type.describe()})",
        path=("with", "inputs"),
        hint=hint,
    )


def _output(name: str, field: str, info: ModelInfo, declared: Schema | None, *, squeeze: bool) -> Field:
    stated = declared[field] if declared is not None else None
    if name in info.uncarryable:
        if stated is not None and "does not say its shape" in info.uncarryable[name]:
            return stated
        raise ContractError(
            f"output '{name}' of the model: {info.uncarryable[name]}",
            path=("with", "outputs"),
            hint=f"or take only the others: outputs: [{', '.join(info.outputs.names)}]",
        )
    found = info.outputs[name].type
    if squeeze and found.shape == (1,):
        found = replace(found, shape=())
    if stated is None:
        return Field(field, found)
    if not stated.type.accepts(found) and not _narrows(stated.type, found):
        raise ContractError(
            f"out: '{field}' is declared {stated.type.describe()}, the model gives {found.describe()}",
            path=("out", field),
        )
    return stated


def _narrows(stated: FieldType, found: FieldType) -> bool:
    """Whether `stated` only fixes dimensions that the file leaves free: rows of another size fail."""
    if len(stated.shape) != len(found.shape):
        return False
    sizes = tuple(s if f == -1 else f for s, f in zip(stated.shape, found.shape, strict=True))
    return stated.accepts(replace(found, shape=sizes))
