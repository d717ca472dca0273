"""Plans onto the cluster: topics made or compared, schemas and the plan itself published, and read back."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from dataflow.codecs.compatibility import check_compatible
from dataflow.core.errors import PlanError, TransportError
from dataflow.planner.plan import PLANS, Plan, TopicPlan
from dataflow.planner.serial import plan_from_json, plan_to_json
from dataflow.runtime.schemas import SchemaStore, read_compacted, write_compacted
from dataflow.transport.api import Admin, Fabric

log = logging.getLogger("dataflow.deploy")


@dataclass(frozen=True)
class TopicDifference:
    """A setting of an existing topic that is not as planned. `setting` may be "partitions"."""

    topic: str
    setting: str
    found: str
    planned: str

    def __str__(self) -> str:
        return f"topic '{self.topic}': {self.setting} is {self.found}, planned {self.planned}"


def compare_topics(
    admin: Admin, topics: Iterable[TopicPlan]
) -> tuple[list[TopicPlan], list[TopicDifference]]:
    """Topics that are missing, and how existing ones differ; the settings of another pipeline's are not looked at."""
    planned = {t.name: t for t in topics}
    existing = admin.describe(list(planned))
    missing = [t for n, t in planned.items() if n not in existing]
    differences = []
    for name, info in existing.items():
        topic = planned[name]
        if info.partitions != topic.partitions:
            differences.append(
                TopicDifference(name, "partitions", str(info.partitions), str(topic.partitions))
            )
        differences += [
            TopicDifference(name, setting, info.config.get(setting, "the broker's default"), value)
            for setting, value in topic.config.items()
            if info.config.get(setting) != value and topic.role != "upstream"
        ]
    return missing, differences


def prepare_topics(
    admin: Admin, topics: Iterable[TopicPlan], *, alter: bool = False
) -> list[TopicDifference]:
    """Create what is missing; report what differs, and change it only if `alter` (partitions never change).

    Raises TransportError if a partition count differs: records would be placed wrongly.
    """
    missing, differences = compare_topics(admin, topics)
    wrong = [d for d in differences if d.setting == "partitions"]
    if wrong:
        raise TransportError(
            "; ".join(map(str, wrong)), hint="declare the partitions that the topic has, or make it anew"
        )
    for topic in missing:
        admin.create(topic.name, topic.partitions, topic.config)
    if alter:
        for difference in differences:
            admin.alter(difference.topic, {difference.setting: difference.planned})
        return []
    return differences


def deploy(fabric: Fabric, plan: Plan, *, alter_topics: bool = False) -> list[TopicDifference]:
    """Make a plan known to the cluster and all it needs there: topics, schemas, then the plan itself.

    Returns how existing topics differ. Raises PlanError if a contract of a running version can no longer be read, and
    TransportError for partitions that differ: then nothing was changed.
    """
    check_state(fabric.admin(), plan)
    known = read_plans(fabric)
    before = known.get(plan.pipeline)
    if before is not None and before.version != plan.version:
        check_contracts(before, plan)
        for reader, edge in orphans(plan, known.values()):
            log.warning("pipeline '%s' reads '%s', which '%s' no longer writes", reader, edge, plan.pipeline)
    differences = prepare_topics(fabric.admin(), plan.topics.values(), alter=alter_topics)
    if before is None or before.version != plan.version:
        SchemaStore(fabric).publish(plan)
        write_compacted(fabric, PLANS, {plan.pipeline.encode(): plan_to_json(plan)})
    return differences


def orphans(plan: Plan, others: Iterable[Plan]) -> list[tuple[str, str]]:
    """Pipelines that read an edge which `plan` no longer writes, each with that edge."""
    written = {f"{plan.pipeline}.{e.name}" for e in plan.edges.values() if e.node and e.write}
    read = ((other.pipeline, e.upstream) for other in others for e in other.edges.values() if e.upstream)
    return [(p, name) for p, name in read if name.partition(".")[0] == plan.pipeline and name not in written]


def check_state(admin: Admin, plan: Plan) -> None:
    """Raise PlanError if state that is there lies on other partitions: most keys would not find theirs."""
    kept = {stage.changelog: stage for stage in plan.stages if stage.changelog}
    for name, info in admin.describe(list(kept)).items():
        stage = kept[name]
        if info.partitions != stage.partitions:
            raise PlanError(
                f"stage '{stage.name}' of pipeline '{plan.pipeline}' keeps the state of its keys on {info.partitions} "
                f"partitions (topic '{name}'), and is planned for {stage.partitions}: keys would not find their state",
                hint=f"keep {info.partitions} partitions; or rename the node, to begin without state",
            )


def check_contracts(before: Plan, after: Plan) -> None:
    """Raise PlanError if an edge's records, old or new, could not be read by old and new readers alike."""
    faults = []
    for name, edge in after.edges.items():
        old = before.edges.get(name)
        if old is None or set(old.topics).isdisjoint(edge.topics):
            continue
        if old.codec != edge.codec:
            faults.append(f"edge '{name}': codec {old.codec} became {edge.codec}")
            continue
        faults += [
            f"edge '{name}': {fault}" for fault in check_compatible(old.schema, edge.schema, edge.codec)
        ]
    if faults:
        raise PlanError(
            f"pipeline '{after.pipeline}': the change breaks readers of its streams: " + "; ".join(faults),
            hint="new fields must be nullable; or give the node (or the input's topic) another name: a new stream",
        )


def read_plans(fabric: Fabric) -> dict[str, Plan]:
    """The newest plan of every pipeline on the cluster; {} before the first deployment."""
    if PLANS not in fabric.admin().topics():
        return {}
    plans = {}
    for key, message in read_compacted(fabric, PLANS).items():
        try:
            plans[key.decode()] = plan_from_json(message.value() or b"")
        except PlanError as error:
            log.warning("pipeline '%s': %s", key.decode(errors="replace"), error)
    return plans


def forget(fabric: Fabric, pipeline: str) -> None:
    """Take a pipeline's plan off the cluster; its topics stay."""
    write_compacted(fabric, PLANS, {pipeline.encode(): None})
