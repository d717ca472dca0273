"""A plan for people and for programs: text, a JSON-able dict, and what changed between two of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from dataflow.codecs.export import schema_from_dict
from dataflow.core.limits import MAX_PLAN_PARTITIONS
from dataflow.core.schema import Schema
from dataflow.planner.estimate import WriteEstimate, estimate_writes
from dataflow.planner.plan import EdgePlan, NodePlan, Plan, StagePlan, TopicPlan
from dataflow.planner.rights import Right, rights_of
from dataflow.planner.serial import plan_to_json
from dataflow.spec.units import format_duration_ms

ESTIMATE_NOTE: Final = (
    "estimated: one typical record of each contract, encoded; each node gives one record a port for each it gets; "
    "keys, headers, compression and replication left out"
)
_DURATIONS: Final = frozenset({"retention.ms", "segment.ms", "delete.retention.ms"})
_FIXED_TOPICS: Final = frozenset({"dead-letters", "plans", "schemas", "replies"})


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The plan itself under `plan` (what `plan_from_json` reads), and what follows from it."""
    estimate = estimate_writes(plan)
    return {
        "plan": json.loads(plan_to_json(plan)),
        "rights": [
            {"role": r.role, "resource": r.resource, "name": r.name, "operations": list(r.operations)}
            for r in rights_of(plan)
        ],
        "partitions": {"used": partitions_of(plan), "limit": MAX_PLAN_PARTITIONS},
        "bytes": {
            "read_per_input_record": estimate.read_bytes,
            "written_per_input_record": estimate.written_bytes,
            "written_per_byte_read": estimate.ratio,
            "by_edge": dict(estimate.by_edge),
            "note": ESTIMATE_NOTE,
        },
    }


def partitions_of(plan: Plan) -> int:
    """Partitions of all topics of the plan: what counts against the budget."""
    return sum(topic.partitions for topic in plan.topics.values())


def plan_as_text(plan: Plan) -> str:
    """The plan as `dataflow plan` prints it: the same text for the same plan, at any width."""
    parts = [
        _head(plan),
        _section("stages", _stages(plan)),
        _section("edges", _edges(plan)),
        _section("topics", _topics(plan.topics.values())),
        _section("tables and models", _artifacts(plan)),
        _section("rights", _rights(rights_of(plan))),
        _section("costs", _costs(plan, estimate_writes(plan))),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows of text under each other, the last cell as long as it likes."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)] if rows else []
    lines = (indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def nodes_in_order(plan: Plan) -> list[NodePlan]:
    """The nodes, each after those of its stage that feed it. A stored plan gives the same order as a fresh one."""
    return [plan.nodes[name] for stage in plan.stages for name in stage.nodes]


def edges_in_order(plan: Plan) -> list[EdgePlan]:
    """The inputs by name, then the edges of each node by name, in the order of the nodes."""
    made = [plan.edges[e] for node in nodes_in_order(plan) for e in sorted(node.outputs.values())]
    return [*(plan.edges[name] for name in sorted(plan.inputs)), *made]


def _section(title: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [title, *found] if found else []


def _head(plan: Plan) -> list[str]:
    delivery = plan.delivery.replace("_", " ")
    lines = [f"pipeline {plan.pipeline}, version {plan.version}", f"  delivery  {delivery}"]
    if plan.answer is not None:
        answer = plan.answer
        lines.append(
            f"  answer    the first record on {' or '.join(answer.edges)}, when {answer.when}, "
            f"within {format_duration_ms(plan.deadline_ms)}"
        )
        lines.append(f"  requests  go to {answer.requests_topic}, read as input '{answer.input}'")
    return lines


def _stages(plan: Plan) -> Iterator[str]:
    for stage in plan.stages:
        yield f"  {stage.name}"
        yield from columns(list(_stage(plan, stage)), indent="    ")


def _stage(plan: Plan, stage: StagePlan) -> Iterator[tuple[str, str]]:
    yield "why", stage.reason
    if stage.source:
        yield "feeds", "one process at a time runs it"
    else:
        yield "group", stage.group
        yield "tasks", str(stage.partitions)
        yield "reads", ", ".join(stage.reads)
    if stage.hears and plan.control is not None:
        yield "hears", f"which records will not come, from {plan.control.topics[0]}"
    if stage.outside:
        yield "as", "a process of its own, started anew when it ends"
    yield "runs", ", ".join(f"{name} ({plan.nodes[name].kind})" for name in stage.nodes)
    written = [e.name for e in edges_in_order(plan) if e.node in stage.nodes and (e.write or e.publish)]
    yield "writes", ", ".join(written) or "nothing"
    if stage.closes and plan.control is not None:
        yield "says", f"which records went no further, on {plan.control.topics[0]}"
    if stage.changelog:
        yield "state", f"in {stage.changelog}"
    if stage.answers:
        yield "answers", ", ".join(stage.answers)


def _edges(plan: Plan) -> Iterator[str]:
    for edge in edges_in_order(plan):
        yield f"  {edge.name}"
        yield from columns(list(_edge(edge)), indent="    ")


def _edge(edge: EdgePlan) -> Iterator[tuple[str, str]]:
    origin = f"pipeline {edge.upstream.replace('.', ', edge ', 1)}" if edge.upstream else "topics of others"
    yield (
        "from",
        f"node {edge.node}" if edge.node else f"{origin}{' and requests' if len(edge.topics) > 1 else ''}",
    )
    yield "tap", ", ".join(edge.topics) if edge.topics else "not written"
    if edge.open:
        yield "open", "outsiders may write to it, by its contract"
    for copy in edge.publish:
        yield "copy", f"{copy.topic} ({copy.codec})"
    key = f"{', '.join(edge.key)} ({edge.key_encoding})" if edge.key else "that of the record it comes from"
    yield "key", key if edge.key or edge.node else "none"
    yield "codec", edge.codec
    yield "fields", _contract(edge.schema)


def _contract(schema: Schema) -> str:
    return schema.describe() or "none"


def _topics(topics: Iterable[TopicPlan]) -> list[str]:
    rows = [("topic", "role", "partitions", "settings")]
    for topic in sorted(topics, key=lambda t: (t.role in _FIXED_TOPICS, t.name)):
        settings = ", ".join(
            f"{name}={_setting(name, value)}" for name, value in sorted(topic.config.items())
        )
        rows.append((topic.name, topic.role, str(topic.partitions), settings or "the broker's"))
    return columns(rows)


def _setting(name: str, value: str) -> str:
    if name in _DURATIONS and value != "-1":
        return f"{value} ({format_duration_ms(int(value))})"
    return value


def _artifacts(plan: Plan) -> Iterator[str]:
    rows = []
    for _, table in sorted(plan.tables.items()):
        origin = f"topic {table.topic}" if table.topic else f"file {table.file}"
        rows.append(("table", table.name, f"{origin}, by {', '.join(table.key) or 'any field'}"))
    for _, model in sorted(plan.models.items()):
        rows.append(("model", model.name, f"{model.file}, sha256 {model.digest[:12]}"))
    yield from columns(rows)


def _rights(rights: Sequence[Right]) -> list[str]:
    rows = [("role", "resource", "name", "operations")]
    rows += [(r.role, r.resource, r.name, ", ".join(r.operations)) for r in rights]
    return columns(rows)


def _costs(plan: Plan, estimate: WriteEstimate) -> Iterator[str]:
    used = partitions_of(plan)
    yield f"  {used} of {MAX_PLAN_PARTITIONS} partitions ({len(plan.topics)} topics)"
    each = f"{estimate.written_bytes:.0f} bytes written for each record"
    if estimate.ratio is not None:
        yield f"  {estimate.ratio:.2f} bytes written per input byte: {each} of {estimate.read_bytes:.0f}"
    else:
        yield f"  {each} of a source"
    yield f"  ({ESTIMATE_NOTE})"


# ---------------------------------------------------------------- differences


def diff_plans(old: Plan | None, new: Plan | None) -> list[str]:
    """What changed, a line each: ``+`` is new, ``-`` is gone, ``~`` differs. [] for equal plans."""
    if old is None and new is None:
        return []
    if old is None or new is None:
        made = new or old
        assert made is not None
        return [f"{'-' if new is None else '+'} pipeline {made.pipeline}"]
    if old.version == new.version:
        return []
    lines = [f"~ pipeline {new.pipeline}: version {old.version} -> {new.version}"]
    before, after = json.loads(plan_to_json(old)), json.loads(plan_to_json(new))
    for name in ("folder", "delivery", "deadline_ms", "inputs", "answer"):
        lines += _changed("pipeline", new.pipeline, {name: before[name]}, {name: after[name]})
    if old.code_digest != new.code_digest:
        lines.append(f"~ pipeline {new.pipeline}: its code")
    before["stages"] = {s["name"]: s for s in before["stages"]}
    after["stages"] = {s["name"]: s for s in after["stages"]}
    for section in ("stages", "nodes", "edges", "topics", "tables", "models"):
        lines += _section_changes(section.removesuffix("s"), before[section], after[section])
    return lines


def _section_changes(noun: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in [*new, *(n for n in old if n not in new)]:
        if name not in old:
            yield f"+ {noun} {name}"
        elif name not in new:
            yield f"- {noun} {name}"
        else:
            yield from _changed(noun, name, old[name], new[name])


def _changed(noun: str, name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for part in [*new, *(p for p in old if p not in new)]:
        before, after = old.get(part), new.get(part)
        if before == after:
            continue
        if part == "schema":
            yield from _contract_changes(noun, name, before, after)
        elif isinstance(before, dict) and isinstance(after, dict):
            for key in sorted({*before, *after}):
                if before.get(key) != after.get(key):
                    yield f"~ {noun} {name}: {part}.{key}: {_brief(before.get(key))} -> {_brief(after.get(key))}"
        else:
            yield f"~ {noun} {name}: {part}: {_brief(before)} -> {_brief(after)}"


def _contract_changes(noun: str, name: str, old: Any, new: Any) -> Iterator[str]:
    before, after = schema_from_dict(old), schema_from_dict(new)
    for field in [*after, *(f for f in before if f.name not in after)]:
        place = f"{noun} {name}: field {field.name}"
        if field.name not in before:
            yield f"+ {place}: {field.type.describe()}"
        elif field.name not in after:
            yield f"- {place}: {field.type.describe()}"
        elif before[field.name] != after[field.name]:
            was, becomes = before[field.name].type.describe(), after[field.name].type.describe()
            yield f"~ {place}: {was} -> {becomes}" if was != becomes else f"~ {place}: its notes"
    if set(before.names) == set(after.names) and before.names != after.names:
        yield f"~ {noun} {name}: the order of its fields"


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return "none" if value is None else text if len(text) <= 100 else text[:97] + "..."
