"""Contracts held against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dataflow.core.schema import INTEGERS, Schema
from dataflow.sdk import NodeKind, Settings


@dataclass(frozen=True)
class Repartition:
    """How a node's records are keyed anew; no `key`: they stay as they are. 0 partitions: as many as its input."""

    key: tuple[str, ...] = ()
    encoding: str = ""
    partitions: int = 0


def repartition_of(kind: NodeKind, settings: Settings) -> Repartition:
    """What a kind says by its static method ``repartition(settings) -> (key, encoding, partitions)``."""
    said = getattr(kind.target, "repartition", None)
    return Repartition(*said(settings)) if said is not None else Repartition()


def loop_of(kind: NodeKind) -> str:
    """The output port that may lead back to an earlier node, as a kind says by its class attribute `loop`; "" for none."""
    return str(getattr(kind.target, "loop", ""))


def cut_of(
    placed: Repartition, *, open_to_others: bool, outside: bool = False, loop: Sequence[str] = ()
) -> str:
    """Why an edge of a node is always read from Kafka; "" where it need not be."""
    if outside:
        return "a process outside writes it"
    if loop:
        return f"it leads back to {', '.join(loop)}"
    if placed.key:
        return f"it is keyed anew, by {', '.join(placed.key)}"
    return "it is open, others write to it too" if open_to_others else ""


def default_encoding(schema: Schema, key: tuple[str, ...]) -> str:
    """The encoding of a key whose contract names none, as for a topic (see `spec.topics`); "" without a key."""
    if len(key) != 1:
        return "composite" if key else ""
    kind = schema[key[0]].type.kind
    return "bytes" if kind == "bytes" else "int64" if kind in (*INTEGERS, "timestamp") else "string"


def labelled(schema: Schema, labels: Mapping[str, str]) -> Schema:
    """A field that has the name of a private one of the input is as private, whoever made it: nobody unlabels by accident."""
    if not any(f.name in labels and not f.privacy for f in schema):
        return schema
    return Schema(tuple(replace(f, privacy=f.privacy or labels.get(f.name, "")) for f in schema))


def difference_of(name: str, schema: Schema, other_name: str, other: Schema) -> str:
    """In words, what one contract has that the other has not; "" for equal fields and types."""
    for one, these, two, those in ((name, schema, other_name, other), (other_name, other, name, schema)):
        alone = [f"'{n}'" for n in these.names if n not in those]
        if alone:
            return f"{', '.join(alone)} only in '{one}', not in '{two}'"
    for found in schema:
        theirs = other[found.name].type
        if theirs != found.type:
            return f"'{found.name}' is {found.type.describe()} in '{name}', {theirs.describe()} in '{other_name}'"
    return ""
