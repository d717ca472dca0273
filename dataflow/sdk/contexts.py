"""What a node's author is given: contracts and resources where it is planned, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dataflow.core.errors import ContractError, nearest
from dataflow.core.schema import Schema


class Lease(Protocol):
    """Something loaded that others may hold too. `close` gives it back; the last to do so lets it be freed."""

    @property
    def value(self) -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ModelInfo:
    """A model as declared and as read from its artifact: fields in and out with the free batch axis removed.

    `inputs`/`outputs` are empty when the artifact is not built yet; `artifact` may not exist then.
    `uncarryable` are outputs that no contract can carry: name and the reason, with the way out. `share(variant,
    load)` lends what `load` made, once per process for all holders of an equal variant; None: nothing is shared.
    """

    name: str
    artifact: Path
    inputs: Schema
    outputs: Schema
    options: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    uncarryable: Mapping[str, str] = field(default_factory=dict)
    share: Callable[[Hashable, Callable[[], Any]], Lease] | None = field(
        default=None, compare=False, repr=False
    )


class Table(Protocol):
    """A broadcast table, loaded to its end before the stage starts and kept current by the engine.

    Fields are those of the topic or file; the newest record of a key wins. Reads see one row or None.
    """

    @property
    def schema(self) -> Schema: ...

    def index(
        self, fields: Sequence[str], as_of: str = ""
    ) -> Callable[[tuple[Any, ...]], tuple[Any, ...] | None]:
        """A function from the values of `fields` (in that order) to the row's values in schema order, or None.

        Call once in `open`; the function stays current. A value is compared as the column's Python scalar
        (datetime for timestamps, str, int, ...); of several rows with equal values the newest is found. With `as_of`, a
        field, the last value given is a time: of the rows with equal values the one that is latest there and not after it
        is found.
        """
        ...


@dataclass(frozen=True)
class ContractContext:
    """What a kind's `contract` may look at. Pure: user code is never run here.

    inputs   contract of each input port
    out      fields declared under the node's `out:`, None if there is no such declaration
    keep     input fields to keep beside the outputs: None if not declared, else names
    folder   the pipeline's folder, where user modules and files are
    """

    node: str
    inputs: Mapping[str, Schema]
    out: Schema | None
    keep: tuple[str, ...] | None
    folder: Path
    models: Callable[[str], ModelInfo]
    topics: Callable[[str], Schema]

    @property
    def input(self) -> Schema:
        """The contract of the only input port."""
        return self.inputs["in"]

    def kept(self) -> Schema:
        """The input fields named by `keep:`; raises ContractError at ("keep", i) for an unknown one."""
        for index, name in enumerate(self.keep or ()):
            if name not in self.input:
                raise ContractError(
                    f"keep: no field '{name}' in the input",
                    path=("keep", index),
                    hint=nearest(name, self.input.names),
                )
        return self.input.select(self.keep or ())


@dataclass(frozen=True)
class NodeContext:
    """What a running node is given at construction.

    `outputs` are the contracts that the columns it emits must meet, by port. `model(name)` gives a built artifact
    (it is built by then), `table(name)` a broadcast table by topic or file name, `random_seed` is stable per node.
    """

    pipeline: str
    node: str
    folder: Path
    inputs: Mapping[str, Schema]
    outputs: Mapping[str, Schema]
    model: Callable[[str], ModelInfo]
    table: Callable[[str], Table]
    out: Schema | None = None
    keep: tuple[str, ...] | None = None

    @property
    def input(self) -> Schema:
        return self.inputs["in"]

    @property
    def output(self) -> Schema:
        return self.outputs["out"]
