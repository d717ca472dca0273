"""The kinds of declaration: Topic, Model, Pipeline, and the project's own settings in `dataflow.yaml`.

The models check each document by itself; what needs several documents or a node kind is lint's. Durations are held
in milliseconds, sizes in bytes. Instances are frozen; their mappings must not be changed by anyone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    WithJsonSchema,
    model_validator,
)

from dataflow.core.errors import SpecError, nearest
from dataflow.core.limits import (
    DEFAULT_DEADLINE_MS,
    EDGE_RETENTION_BYTES,
    EDGE_RETENTION_MS,
    MAX_ATTEMPTS,
    MAX_DEADLINE_MS,
    MAX_RECORD_BYTES,
    RETRY_BACKOFF_MAX_MS,
    RETRY_BACKOFF_MS,
)
from dataflow.core.schema import INTEGERS, Schema
from dataflow.spec.fields import FIELD_NAME, FieldSpec, Strict, schema_of
from dataflow.spec.problems import Fault, wrong
from dataflow.spec.units import Duration, Retention, Size, Wait, format_duration_ms

Codec = Literal["avro", "arrow", "json", "raw"]
KeyEncoding = Literal["string", "int32", "int64", "bytes", "composite"]
Cleanup = Literal["delete", "compact", "compact,delete"]

_TOPIC_NAME: Final = r"[A-Za-z0-9._-]{1,249}"
_NAME: Final = r"[A-Za-z][A-Za-z0-9_-]{0,99}"
_KEYABLE: Final = ("string", "enum", "bytes", "bool", "timestamp", "date", "decimal", *INTEGERS)


def _names(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _topic_name(value: str) -> str:
    if not re.fullmatch(_TOPIC_NAME, value) or value in {".", ".."}:
        raise wrong(f"'{value}' is no topic name", "letters, digits and . _ -, at most 249 of them")
    return value


def _plain_name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise wrong(f"'{value}' is no valid name", "a letter, then letters, digits, _ and -")
    return value


def _field_names(value: dict[str, FieldSpec]) -> dict[str, FieldSpec]:
    for name in value:
        if not re.fullmatch(FIELD_NAME, name):
            raise wrong(f"'{name}' is no field name", "a letter or _, then letters, digits and _")
    return value


def _from(value: object) -> object:
    """``from: a``, ``from: [a, b]`` and ``from: {port: a}`` as one shape: port to edges; port "" is the only one."""
    if isinstance(value, dict):
        return {port: _names(edges) for port, edges in value.items()}
    return {"": _names(value)}


def _switch(value: object) -> object:
    # YAML 1.2 has no `on` that means true, but people who write `true` mean it.
    if isinstance(value, bool):
        return "on" if value else "off"
    if value == "sampled":
        raise wrong("'sampled' is not possible in this version", "valid: on, off")
    return value


def _answer(value: object) -> object:
    return {"from": value} if isinstance(value, str | list) else value


def _known_encoding(value: object) -> object:
    return "int64" if value == "int" else value


_ONE_OR_MANY: Final = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Names = Annotated[tuple[str, ...], BeforeValidator(_names), WithJsonSchema(_ONE_OR_MANY)]
TopicName = Annotated[str, AfterValidator(_topic_name)]
PlainName = Annotated[str, AfterValidator(_plain_name)]
Fields = Annotated[dict[str, FieldSpec], AfterValidator(_field_names)]
Feeds = Annotated[
    dict[str, tuple[str, ...]],
    BeforeValidator(_from),
    WithJsonSchema(
        {"anyOf": [*_ONE_OR_MANY["anyOf"], {"type": "object", "additionalProperties": _ONE_OR_MANY}]}
    ),
]


class Document(Strict):
    """A declaration in a file of its own or beside others."""

    def faults(self) -> Iterator[Fault]:
        """What is wrong within this document although every value by itself is valid."""
        return iter(())


class TopicSpec(Document):
    """A topic contract: what its records hold, how they are keyed and encoded, how long they stay.

    `key_encoding` is how the key's bytes are made; tools in any language can make the same:

    ============  ==============================================================  ============================
    encoding      bytes                                                           same as
    ============  ==============================================================  ============================
    string        UTF-8 of the value's text (default of a single field)           Java StringSerializer
    int32, int64  4 or 8 bytes, big-endian, two's complement (``int`` is int64)   IntegerSerializer, Long...
    bytes         the value itself (default of a bytes field)                     ByteArraySerializer
    composite     UTF-8 of a JSON array without blanks (default of many fields)   any JSON library
    ============  ==============================================================  ============================

    Text of a value: ISO 8601 for timestamps (UTC, ``Z``) and dates, ``true``/``false``, decimal digits for numbers.
    """

    kind: Literal["Topic"] = "Topic"
    name: TopicName
    doc: str = ""
    owner: str = ""
    key: Names = ()
    key_encoding: Annotated[KeyEncoding | None, BeforeValidator(_known_encoding)] = None
    partitions: int = Field(default=1, ge=1)
    retention_ms: Retention = Field(default=7 * 86_400_000, alias="retention")
    retention_bytes: Size | None = None
    cleanup: Cleanup = "delete"
    codec: Codec = "avro"
    max_record_bytes: Size = MAX_RECORD_BYTES
    fields: Annotated[Fields, Field(min_length=1)]

    def schema(self) -> Schema:  # type: ignore[override]  # pydantic's own of that name is deprecated
        """The contract of the records' values, in declared order."""
        return schema_of(self.fields)

    @property
    def key_bytes(self) -> KeyEncoding:
        """The encoding of the key, declared or by default."""
        if self.key_encoding is not None:
            return self.key_encoding
        if len(self.key) > 1:
            return "composite"
        single = self.fields.get(self.key[0]) if self.key else None
        return "bytes" if single is not None and single.field_type().kind == "bytes" else "string"

    def faults(self) -> Iterator[Fault]:
        for index, name in enumerate(self.key):
            if name not in self.fields:
                yield Fault(("key", index), f"key: no field '{name}'", nearest(name, self.fields))
                continue
            kind = self.fields[name].field_type()
            if kind.kind not in _KEYABLE or kind.shape:
                yield Fault(("key", index), f"key: field '{name}' of type {kind.describe()} cannot be a key")
        yield from self._encoding_faults()
        times = [name for name, spec in self.fields.items() if spec.event_time]
        for name in times:
            if self.fields[name].field_type().kind != "timestamp":
                yield Fault(("fields", name, "event_time"), f"event_time: field '{name}' is no timestamp")
        for name in times[1:]:
            yield Fault(("fields", name, "event_time"), f"event_time: field '{times[0]}' is it already")
        if "compact" in self.cleanup and not self.key:
            yield Fault(("cleanup",), "a compacted topic needs a key", "e.g. key: id")
        kinds = [field.type.kind for field in self.schema()]
        if self.codec == "raw" and kinds != ["bytes"]:
            yield Fault(
                ("codec",),
                "codec: 'raw' carries exactly one field, of type bytes",
                "valid: avro, arrow, json",
            )

    def _encoding_faults(self) -> Iterator[Fault]:
        encoding = self.key_encoding
        if encoding is None:
            return
        if len(self.key) != 1 and encoding != "composite":
            yield Fault(("key_encoding",), f"key_encoding: '{encoding}' needs a key of one field")
            return
        kinds = [self.fields[name].field_type().kind for name in self.key if name in self.fields]
        if encoding in {"int32", "int64"} and any(kind not in INTEGERS for kind in kinds):
            yield Fault(("key_encoding",), f"key_encoding: '{encoding}' needs a whole number, not {kinds[0]}")
        if encoding == "bytes" and any(kind != "bytes" for kind in kinds):
            yield Fault(
                ("key_encoding",), f"key_encoding: 'bytes' needs a field of type bytes, not {kinds[0]}"
            )


class ModelOptions(Strict):
    """How a model is run, wherever it is used; a node's own settings of the same names go first."""

    device: Literal["cpu", "cuda"] = "cpu"
    providers: tuple[str, ...] = ()
    intra_threads: int = Field(default=1, ge=1, le=256)
    max_batch: int = Field(default=1024, ge=1)
    warm_up: StrictBool = True


class ModelSpec(Document):
    """A named artifact; `build` makes it on first use, and again when a file that `inputs` matches has changed."""

    kind: Literal["Model"] = "Model"
    name: PlainName
    doc: str = ""
    file: str = Field(min_length=1)
    build: str = ""
    inputs: Names = ()
    options: ModelOptions = ModelOptions()

    @property
    def chosen_options(self) -> dict[str, Any]:
        """Only the options that were declared: what `ModelInfo.options` holds."""
        return self.options.model_dump(exclude_unset=True)


class RetrySpec(Strict):
    """Attempts at a record, the first included; waits grow by factors of two."""

    attempts: int = Field(default=MAX_ATTEMPTS, ge=1, le=100)
    backoff_ms: Wait = Field(default=RETRY_BACKOFF_MS, alias="backoff")
    backoff_max_ms: Duration = Field(default=RETRY_BACKOFF_MAX_MS, alias="backoff_max")


class NodeSpec(Strict):
    """One node: the engine's words beside `use`, the kind's own settings under `with`."""

    use: str
    doc: str = ""
    feeds: Feeds = Field(default_factory=dict, alias="from")
    settings: dict[str, Any] = Field(default_factory=dict, alias="with")
    out: Fields | None = None
    keep: Names | None = None
    retry: RetrySpec | None = None
    isolate: StrictBool = False
    write: Annotated[Literal["on", "off"], BeforeValidator(_switch)] = "on"


class EdgesSpec(Strict):
    """Defaults of the edges that the pipeline's own nodes write."""

    retention_ms: Retention = Field(default=EDGE_RETENTION_MS, alias="retention")
    retention_bytes: Size = EDGE_RETENTION_BYTES
    codec: Codec = "avro"
    partitions: int | None = Field(default=None, ge=1)


class AnswerSpec(Strict):
    """What a waiting caller is given: the first record of the request on any of `from`."""

    edges: Annotated[Names, Field(min_length=1)] = Field(alias="from")
    when: Literal["committed", "durable", "eager"] | None = None
    input: str | None = None


class TestSpec(Strict):
    """Records in, records expected on any edge; numbers may differ by `tolerance`, relative or absolute."""

    __test__: ClassVar[bool] = False  # not a test of pytest's

    name: str
    given: dict[str, list[dict[str, Any]]]
    expect: dict[str, list[dict[str, Any]]]
    tolerance: float = Field(default=1e-6, ge=0)


def _deadline(value: int) -> int:
    if value > MAX_DEADLINE_MS:
        longest = format_duration_ms(MAX_DEADLINE_MS)
        raise wrong(f"a deadline of {format_duration_ms(value)} is too long", f"at most {longest}")
    return value


class PipelineSpec(Document):
    """The graph, its delivery guarantee, its answer and its tests."""

    kind: Literal["Pipeline"] = "Pipeline"
    name: PlainName
    doc: str = ""
    inputs: dict[PlainName, str] = Field(default_factory=dict)
    outputs: dict[str, str] = Field(default_factory=dict)
    answer: Annotated[AnswerSpec | None, BeforeValidator(_answer)] = None
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    deadline_ms: Annotated[Duration, AfterValidator(_deadline)] = Field(
        default=DEFAULT_DEADLINE_MS, alias="deadline"
    )
    edges: EdgesSpec = EdgesSpec()
    nodes: dict[PlainName, NodeSpec]
    tests: tuple[TestSpec, ...] = ()

    @property
    def answer_when(self) -> Literal["committed", "durable", "eager"]:
        """The declared rule, else the strongest that costs nothing under this delivery."""
        if self.answer is not None and self.answer.when is not None:
            return self.answer.when
        return "committed" if self.delivery == "exactly_once" else "durable"

    @property
    def answer_input(self) -> str | None:
        """Where requests go in: as declared, else the only input, else None."""
        if self.answer is not None and self.answer.input is not None:
            return self.answer.input
        return next(iter(self.inputs)) if len(self.inputs) == 1 else None


class SecretFile(Strict):
    """A value kept in a file, e.g. a mounted secret; read when it is used, never shown."""

    file: str


class KafkaSpec(Strict):
    """The cluster to use. Beside `bootstrap`, any librdkafka setting by its own name."""

    model_config = ConfigDict(extra="allow")

    bootstrap: str = ""

    @model_validator(mode="after")
    def _settings(self) -> KafkaSpec:
        for name, value in (self.model_extra or {}).items():
            if isinstance(value, dict):
                SecretFile.model_validate(value)
            elif not isinstance(value, str | int | float | bool):
                raise wrong(f"kafka: '{name}' is no text, number or {{file: PATH}}")
        return self

    def settings(self, folder: Path) -> dict[str, str]:
        """Librdkafka settings; secrets read from their files, relative to `folder`. Raises SpecError."""
        found = {"bootstrap.servers": self.bootstrap} if self.bootstrap else {}
        for name, value in (self.model_extra or {}).items():
            found[name] = _setting(name, value, folder)
        return found


def _setting(name: str, value: object, folder: Path) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, dict):
        return str(value)
    secret = SecretFile.model_validate(value)
    try:
        return (folder / secret.file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SpecError(f"kafka: {name}: cannot read '{secret.file}': {error.strerror}") from error


class GatewaySpec(Strict):
    """The HTTP door; only loopback unless a token is set."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    token: str = Field(default="", repr=False)


class ProjectSpec(Document):
    """`dataflow.yaml`: what holds for everything declared in the folder."""

    kind: Literal["Project"] = "Project"
    name: str = ""
    doc: str = ""
    kafka: KafkaSpec = KafkaSpec()
    gateway: GatewaySpec = GatewaySpec()


KINDS: Final[Mapping[str, type[Document]]] = {
    "Topic": TopicSpec,
    "Model": ModelSpec,
    "Pipeline": PipelineSpec,
    "Project": ProjectSpec,
}
