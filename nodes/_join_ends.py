"""What becomes of records that a join has late, or in no result: dropped, dead letters, or on a port of their side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

from pydantic import Field as Setting
from pydantic import field_validator

from dataflow.sdk import Batch, Codec, ContractError, Out, Row, Schema, Settings

from ._join_pairs import Held
from ._ports import check_port
from ._sides import check_side

Way: TypeAlias = Literal["drop", "fail"] | dict[str, str]


class EndsOfSides(Settings):
    """Where records go that no result has."""

    unmatched: Way = Setting(
        default="drop",
        description=(
            "What becomes of a record that is in no result: dropped, with the reason `no SIDE`, or (`fail`) a dead letter; or for "
            "a side a port, on which it goes on as it came: `{SIDE: PORT}`. Sides that are not named drop it."
        ),
    )
    late: Way = Setting(
        default="drop",
        description=(
            "What becomes of a record whose time was over when it came: dropped as `late`, or (`fail`) a dead letter; or for a "
            "side a port: `{SIDE: PORT}`. Sides that are not named drop it."
        ),
    )

    @field_validator("unmatched", "late")
    @classmethod
    def _ports_are_sound(cls, way: Way) -> Way:
        for port in way.values() if isinstance(way, dict) else ():
            if check_port(port) == "out":
                raise ValueError("the port 'out' is for what is joined: choose another name")
        return way


def way_of(way: Way, side: str) -> str:
    """`drop`, `fail`, or the port for records of a side."""
    return way if isinstance(way, str) else way.get(side, "drop")


def is_port(way: str) -> bool:
    return way not in ("drop", "fail")


def end_ports(settings: EndsOfSides) -> tuple[str, ...]:
    """Ports beside `out`, each once, in the order written."""
    return tuple(dict.fromkeys(port for _, _, port in _declared(settings)))


def end_contracts(
    settings: EndsOfSides, inputs: Mapping[str, Schema], always: Sequence[str], *, event: bool
) -> dict[str, Schema]:
    """The contract of each port: that of its side. `always`: sides whose records are in a result in any case.

    Raises ContractError for a port that nothing can reach, or of sides that differ.
    """
    made: dict[str, Schema] = {}
    first: dict[str, str] = {}
    for name, side, port in _declared(settings):
        path = ("with", name, side)
        check_side(side, inputs, path)
        if name == "unmatched" and side in always:
            raise ContractError(
                f"unmatched: a record of '{side}' that nothing matches is a result here",
                path=path,
                hint="it comes on port `out`, with null for what is missing; how: inner gives none",
            )
        if name == "late" and not event:
            raise ContractError(
                "late: the sides have no event time, so no record is late",
                path=path,
                hint="times: {SIDE: FIELD} names a timestamp of each",
            )
        if made.setdefault(port, inputs[side]) != inputs[side]:
            raise ContractError(
                f"{name}: port '{port}' has the records of side '{first[port]}', and those of '{side}' have another contract",
                path=path,
                hint=f"a port of their own, e.g. {side}_{name}",
            )
        first.setdefault(port, side)
    return made


def end_alone(held: Held, side: str, codecs: Mapping[str, Codec], out: Out, *, dead_letter: bool) -> None:
    """End a record that waited and nothing matched."""
    reason = "no " + ", ".join(other for other in codecs if other != side)
    if not dead_letter:
        out.end(held.row, reason)
        return
    codec = codecs[side]
    record = Batch(codec.schema, codec.decode([held.value]).columns, [held.row]).to_dicts()[0]
    out.end(held.row, reason, error="Unmatched", record=record, port=side)


def give_alone(found: Sequence[tuple[str, Held, int]], codecs: Mapping[str, Codec], out: Out) -> None:
    """Emit records that waited and nothing matched, as they came: (port, record, the row that caused it).

    `codecs` has those of the sides, in order.
    """
    sides = list(codecs.values())
    for port, side in dict.fromkeys((port, held.side) for port, held, _ in found):
        mine = [(held, after) for p, held, after in found if p == port and held.side == side]
        columns = sides[side].decode([held.value for held, _ in mine]).columns
        out.create(columns, [_alone(held) for held, _ in mine], port=port, after=[after for _, after in mine])


def _alone(held: Held) -> Row:
    """The record's own identity. Who waited for one of another than the first side was told that it was taken in."""
    row = held.row
    reply, deadline_ms = (row.reply, row.deadline_ms) if held.side == 0 else (b"", 0)
    return Row(row.id, row.key, row.source, row.carry, reply, deadline_ms, row.attempt, row.parents)


def _declared(settings: EndsOfSides) -> Iterator[tuple[str, str, str]]:
    """Each port that is declared: (setting, side, port)."""
    for name, way in (("unmatched", settings.unmatched), ("late", settings.late)):
        for side, port in way.items() if isinstance(way, dict) else ():
            if is_port(port):
                yield name, side, port
