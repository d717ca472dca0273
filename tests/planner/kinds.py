"""Small node kinds, so that tests of the planner do not depend on ours."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dataflow.core.errors import ExpressionError
from dataflow.registry import Registry
from dataflow.sdk import (
    Batch,
    ContractContext,
    ContractError,
    FieldType,
    NodeContext,
    Out,
    Schema,
    Settings,
    nearest,
    node,
)  # fmt: skip


class Base:
    def __init__(self, settings: Any, context: NodeContext) -> None: ...

    def process(self, batch: Batch, out: Out, port: str = "in") -> None:
        out.emit(batch)


class Need(Settings):
    field: str


@node("test.pass")
class Pass(Base):
    """Passes on; `out:` replaces the contract."""


@node("test.need", settings=Need)
class NeedField(Base):
    """Needs a field."""

    @staticmethod
    def contract(settings: Need, context: ContractContext) -> dict[str, Schema]:
        if settings.field not in context.input:
            hint = nearest(settings.field, context.input.names)
            raise ContractError(
                f"no field '{settings.field}' in the input", path=("with", "field"), hint=hint
            )
        return {"out": context.input}


class Split(Settings):
    by: dict[str, str]


@node("test.split", settings=Split)
class SplitPorts(Base):
    """A port for each name."""

    @staticmethod
    def ports(settings: Split) -> tuple[str, ...]:
        return tuple(settings.by)


class Condition(Settings):
    when: str


@node("test.filter", settings=Condition, outputs=("out", "rest"))
class FilterRows(Base):
    """Fails on every expression, at its fourth character."""

    @staticmethod
    def contract(settings: Condition, context: ContractContext) -> dict[str, Schema]:
        if settings.when == "bare":
            raise ExpressionError("with.when: odd", column=2)
        if settings.when == "good":
            return {"out": context.input, "rest": context.input}
        try:
            raise ExpressionError("column 4: odd", column=4)
        except ExpressionError as error:
            raise ContractError("when: column 4: odd", path=("with", "when")) from error


class Two(Settings):
    pass


@node("test.join", settings=Two, inputs=("left", "right"))
class Join(Base):
    """Joins partition by partition."""

    copartitioned = True

    @staticmethod
    def contract(settings: Two, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.inputs["left"].merged(context.inputs["right"])}


class Key(Settings):
    key: str
    encoding: str = ""
    partitions: int = 0


@node("test.rekey", settings=Key)
class KeyedAnew(Base):
    """Keyed anew by one field."""

    @staticmethod
    def repartition(settings: Key) -> tuple[tuple[str, ...], str, int]:
        return (settings.key,), settings.encoding, settings.partitions


@node("test.gather", inputs=("*",))
class Gather(Base):
    """Takes all its sides at once."""

    gathers = True

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": next(iter(context.inputs.values()))}


@node("test.loop", outputs=("again", "out"))
class Looping(Base):
    """Bounds its rounds."""

    loop = "again"

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return dict.fromkeys(("again", "out"), context.input)


class Uses(Settings):
    model: str = ""
    table: str = ""
    rows: int = Field(default=1, ge=1)


@node("test.uses", settings=Uses)
class UsesThings(Base):
    """Needs a model of one input x: float32, or a table."""

    @staticmethod
    def models(settings: Uses) -> tuple[str, ...]:
        return (settings.model,) if settings.model else ()

    @staticmethod
    def tables(settings: Uses) -> tuple[str, ...]:
        return (settings.table,) if settings.table else ()

    @staticmethod
    def contract(settings: Uses, context: ContractContext) -> dict[str, Schema]:
        if settings.model:
            for needed in context.models(settings.model).inputs:
                if not needed.type.accepts(context.input[needed.name].type):
                    given = context.input[needed.name].type.describe()
                    raise ContractError(
                        f"model '{settings.model}' needs '{needed.name}' as {needed.type.describe()}, not {given}",
                        path=("with", "model"),
                    )
            return {"out": context.input.merged(context.models(settings.model).outputs)}
        return {"out": context.input.merged(context.topics(settings.table))}


@node("test.source", source=True, inputs=())
class Source(Base):
    """Makes records."""

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": Schema.of(id="string", x=FieldType("float32"))}


@node("test.broken")
class Broken(Base):
    """A kind with a fault of its own."""

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {"out": context.inputs["nowhere"]}


@node("test.mute")
class Mute(Base):
    """A kind that forgets a port."""

    @staticmethod
    def contract(settings: Settings, context: ContractContext) -> dict[str, Schema]:
        return {}


REGISTRY = Registry.of(
    Pass, NeedField, SplitPorts, FilterRows, Join, KeyedAnew, Gather, Looping, UsesThings, Source, Broken, Mute
)  # fmt: skip
