"""The rights (Kafka ACLs) that each part of the system needs for one plan: nothing more, so that they can be granted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from dataflow.planner.plan import ACCEPTED, DEAD_LETTERS, PLANS, REPLIES, RESULTS, SCHEMAS, Plan

Role = Literal["deploy", "worker", "gateway", "outsider"]
_OPERATIONS: Final = ("CREATE", "DESCRIBE", "DESCRIBE_CONFIGS", "READ", "WRITE")


@dataclass(frozen=True, order=True)
class Right:
    """Operations of one role on one resource. Kafka's READ and WRITE of a topic imply DESCRIBE; it is said anyway.

    role   deploy: `up`, `plan --compare`; worker: stages; gateway: HTTP doors and taps; outsider: producers of others
    """

    role: Role
    resource: Literal["topic", "group"]
    name: str
    operations: tuple[str, ...]


def rights_of(plan: Plan) -> tuple[Right, ...]:
    """All rights of one pipeline, by role, resource and name."""
    wanted: dict[tuple[Role, Literal["topic", "group"], str], set[str]] = {}

    def allow(role: Role, resource: Literal["topic", "group"], name: str, *operations: str) -> None:
        wanted.setdefault((role, resource, name), set()).update(operations)

    for name in plan.topics:
        allow("deploy", "topic", name, "CREATE", "DESCRIBE", "DESCRIBE_CONFIGS")
    for name in (PLANS, SCHEMAS):
        allow("deploy", "topic", name, "READ", "WRITE")
        allow("worker", "topic", name, "READ", "DESCRIBE")
        allow("gateway", "topic", name, "READ", "DESCRIBE")
    for stage in plan.stages:
        if not stage.source:
            allow("worker", "group", stage.group, "READ", "DESCRIBE")
        if stage.changelog:
            allow("worker", "topic", stage.changelog, "READ", "WRITE", "DESCRIBE")
        for edge in plan.fetched(stage):
            for topic in edge.topics:
                allow("worker", "topic", topic, "READ", "DESCRIBE")
    for edge_plan in plan.streams:
        written = edge_plan.topics if edge_plan.node else ()
        for topic in (*written, *(p.topic for p in edge_plan.publish)):
            allow("worker", "topic", topic, "WRITE", "DESCRIBE")
        for topic in edge_plan.topics:
            allow("gateway", "topic", topic, "READ", "DESCRIBE")
        # The first topic of an input is its public one; what others may not write to is not open to outsiders.
        outside = edge_plan.open or not (edge_plan.node or edge_plan.upstream)
        for topic in edge_plan.topics[:1] if outside else ():
            allow("outsider", "topic", topic, "WRITE", "DESCRIBE")
    for table in plan.tables.values():
        if table.topic:
            allow("worker", "topic", table.topic, "READ", "DESCRIBE")
    allow("worker", "topic", DEAD_LETTERS, "WRITE", "DESCRIBE")
    if plan.answer is not None:
        allow("worker", "topic", REPLIES, "WRITE", "DESCRIBE")
        allow("gateway", "topic", REPLIES, "READ", "DESCRIBE")
        allow("worker", "topic", RESULTS, "WRITE", "DESCRIBE")
        allow("gateway", "topic", RESULTS, "READ", "DESCRIBE")
        allow("gateway", "topic", ACCEPTED, "READ", "WRITE", "DESCRIBE")
        allow("gateway", "topic", plan.answer.requests_topic, "WRITE", "DESCRIBE")
    made = (
        Right(role, resource, name, tuple(o for o in _OPERATIONS if o in operations))
        for (role, resource, name), operations in wanted.items()
    )
    return tuple(sorted(made))
