"""Plans as JSON and back: what the topic of plans holds, and what the digest of a plan is taken over."""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import orjson

from dataflow.codecs.export import schema_from_dict, schema_to_dict
from dataflow.core.errors import PlanError
from dataflow.core.schema import Schema
from dataflow.planner.plan import NodePlan, Plan


def plan_to_json(plan: Plan) -> bytes:
    """Canonical JSON without blanks: keys are sorted, but for those whose order a node may mean (see `_IN_ORDER`)."""
    return orjson.dumps(_plain(plan))


def plan_from_json(data: bytes) -> Plan:
    """The plan of `plan_to_json`. Raises PlanError for anything else."""
    try:
        made = _revive(Plan, orjson.loads(data))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"not a stored plan: {error}", hint="was it written by another version?") from error
    assert isinstance(made, Plan)
    return made


def digest(plan: Plan) -> str:
    """Version of a plan: 12 hex digits over all but the version itself."""
    return hashlib.sha256(plan_to_json(dataclasses.replace(plan, version=""))).hexdigest()[:12]


# The conditions of a route are tried, and the sides of a join preferred, in the order written.
_IN_ORDER: Final = frozenset({"settings", "inputs"})


def _plain(value: Any, *, in_order: bool = False) -> Any:
    if isinstance(value, Schema):
        return schema_to_dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        meant = _IN_ORDER if isinstance(value, NodePlan) else frozenset()
        names = sorted(f.name for f in dataclasses.fields(value))
        return {n: _plain(getattr(value, n), in_order=n in meant) for n in names}
    if isinstance(value, Mapping):
        keys = value if in_order else sorted(value)
        return {k: _plain(value[k], in_order=in_order) for k in keys}
    if isinstance(value, tuple | list):
        return [_plain(v, in_order=in_order) for v in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Annotations of a dataclass, resolved: slow, and workers read all plans every few seconds."""
    return typing.get_type_hints(kind)


def _revive(kind: Any, value: Any) -> Any:
    """Rebuild a value of the annotated type `kind` (the few shapes that plans use)."""
    if kind is Schema:
        return schema_from_dict(value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _hints(kind)
        return kind(
            **{
                f.name: _revive(hints[f.name], value[f.name])
                for f in dataclasses.fields(kind)
                if f.name in value
            }
        )
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        chosen = next(a for a in arguments if a is not type(None))
        return None if value is None else _revive(chosen, value)
    if origin is tuple:
        return tuple(_revive(arguments[0], v) for v in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {k: _revive(arguments[1], v) for k, v in value.items()}
    return value
