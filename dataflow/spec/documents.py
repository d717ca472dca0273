"""The kinds of declaration: Topic, Model, Pipeline, and the project's own settings in `dataflow.yaml`.

The models check each document by itself; what needs several documents or a node kind is lint's. Durations are held
in milliseconds, sizes in bytes. Instances are frozen; their mappings must not be changed by anyone.
"""

from __future__ import annotations

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
)

from dataflow.core.errors import SpecError
from dataflow.core.limits import (
    BODY_TIMEOUT_MS,
    DEFAULT_DEADLINE_MS,
    EDGE_RETENTION_BYTES,
    EDGE_RETENTION_MS,
    HEAD_TIMEOUT_MS,
    KEEP_ALIVE_MS,
    MAX_ATTEMPTS,
    MAX_CONNECTIONS,
    MAX_DEADLINE_MS,
    RETRY_BACKOFF_MAX_MS,
    RETRY_BACKOFF_MS,
    STALL_TIMEOUT_MS,
)
from dataflow.spec.fields import Strict, or_shorthand
from dataflow.spec.problems import Fault, wrong
from dataflow.spec.topics import (
    ONE_OR_MANY,
    Codec,
    Document,
    Fields,
    Names,
    PlainName,
    TopicSpec,
    one_or_many,
)
from dataflow.spec.units import Duration, Retention, Size, Wait, format_duration_ms


def _from(value: object) -> object:
    """``from: a``, ``from: [a, b]`` and ``from: {port: a}`` as one shape: port to edges; port "" is the only one."""
    if isinstance(value, dict):
        return {port: one_or_many(edges) for port, edges in value.items()}
    return {"": one_or_many(value)}


def _switch(value: object) -> object:
    # YAML 1.2 has no `on` that means true, but people who write `true` mean it.
    if isinstance(value, bool):
        return "on" if value else "off"
    if value == "sampled":
        raise wrong("'sampled' is not possible in this version", "valid: on, off")
    return value


def _answer(value: object) -> object:
    return {"from": value} if isinstance(value, str | list) else value


Feeds = Annotated[
    dict[str, tuple[str, ...]],
    BeforeValidator(_from),
    WithJsonSchema(
        {"anyOf": [*ONE_OR_MANY["anyOf"], {"type": "object", "additionalProperties": ONE_OR_MANY}]}
    ),
]


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
    """Attempts at a record, the first included; waits grow by factors of two, and are up to `jitter` of it shorter."""

    attempts: int = Field(default=MAX_ATTEMPTS, ge=1, le=100)
    backoff_ms: Wait = Field(default=RETRY_BACKOFF_MS, alias="backoff")
    backoff_max_ms: Duration = Field(default=RETRY_BACKOFF_MAX_MS, alias="backoff_max")
    jitter: float = Field(default=0.0, ge=0, le=1)


class NodeSpec(Strict):
    """One node: the engine's words beside `use`, the kind's own settings under `with`."""

    use: str
    doc: str = ""
    feeds: Feeds = Field(default_factory=dict, alias="from")
    settings: dict[str, Any] = Field(default_factory=dict, alias="with")
    out: Fields | None = None
    keep: Names | None = None
    retry: RetrySpec | None = None
    failed: StrictBool = False
    isolate: StrictBool = False
    open: StrictBool = False
    write: Annotated[
        Literal["on", "off"],
        BeforeValidator(_switch),
        WithJsonSchema({"enum": ["on", "off", True, False]}),
    ] = "on"


class EdgesSpec(Strict):
    """Defaults of the edges that the pipeline's own nodes write."""

    retention_ms: Retention = Field(default=EDGE_RETENTION_MS, alias="retention")
    retention_bytes: Size = EDGE_RETENTION_BYTES
    codec: Codec = "avro"
    partitions: int | None = Field(default=None, ge=1)


class AnswerSpec(Strict):
    """What a waiting caller is given: the first record of the request on any of `from`. Or plainly the edges."""

    model_config = ConfigDict(json_schema_extra=or_shorthand(ONE_OR_MANY))

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

    def faults(self) -> Iterator[Fault]:
        for name, node in self.nodes.items():
            retry = node.retry
            if retry is not None and retry.backoff_ms > retry.backoff_max_ms:
                longest = format_duration_ms(retry.backoff_max_ms)
                path = ("nodes", name, "retry", "backoff")
                yield Fault(path, f"backoff: longer than backoff_max, which is {longest}")
            if node.open and node.write == "off":
                message = f"open: others are to write to '{name}', but it is `write: off`: it has no topic"
                yield Fault(("nodes", name, "open"), message, "leave one of the two out")


class KafkaSpec(Strict):
    """The cluster to use. Beside `bootstrap`, any librdkafka setting by its own name.

    A value may be ``{file: PATH}``, e.g. of a mounted secret: the file is read when the setting is used.
    """

    model_config = ConfigDict(extra="allow")

    bootstrap: str = ""

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [("bootstrap", self.bootstrap)]  # the others may be secrets

    def settings(self, folder: Path) -> dict[str, str]:
        """The settings for librdkafka; secrets read from their files, relative to `folder`. Raises SpecError."""
        found = {"bootstrap.servers": self.bootstrap} if self.bootstrap else {}
        for name, value in (self.model_extra or {}).items():
            found[name] = _setting(name, value, folder)
        return found


def _is_secret_file(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"file"} and isinstance(value["file"], str)


def _setting(name: str, value: object, folder: Path) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, dict):
        return str(value)
    try:
        return Path(folder, value["file"]).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SpecError(f"kafka: {name}: cannot read '{value['file']}': {error.strerror}") from error


class LimitsSpec(Strict):
    """What connections to the HTTP door may do; the defaults' reasons are among the limits below."""

    connections: int = Field(default=MAX_CONNECTIONS, ge=1)
    head_ms: Duration = Field(default=HEAD_TIMEOUT_MS, alias="head")
    body_ms: Duration = Field(default=BODY_TIMEOUT_MS, alias="body")
    stall_ms: Duration = Field(default=STALL_TIMEOUT_MS, alias="stall")
    keep_alive_ms: Duration = Field(default=KEEP_ALIVE_MS, alias="keep_alive")


class GatewaySpec(Strict):
    """The HTTP door and, on the same host, the gRPC door; only loopback unless a token is set."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    grpc: bool = True
    grpc_port: int = Field(default=0, ge=0, le=65_535)
    token: str = Field(default="", repr=False)
    limits: LimitsSpec = LimitsSpec()


class ProjectSpec(Document):
    """`dataflow.yaml`: what holds for everything declared in the folder."""

    kind: Literal["Project"] = "Project"
    name: str = ""
    doc: str = ""
    kafka: KafkaSpec = KafkaSpec()
    gateway: GatewaySpec = GatewaySpec()

    def faults(self) -> Iterator[Fault]:
        for name, value in (self.kafka.model_extra or {}).items():
            if not isinstance(value, str | int | float) and not _is_secret_file(value):
                yield Fault(("kafka", name), f"{name}: text, a number or {{file: PATH}} is needed")


KINDS: Final[Mapping[str, type[Document]]] = {
    "Topic": TopicSpec,
    "Model": ModelSpec,
    "Pipeline": PipelineSpec,
    "Project": ProjectSpec,
}
