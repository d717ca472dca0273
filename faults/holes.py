"""Holes in the log: records that were compacted away, and retention that overtakes a committed offset.

Two small pipelines beside the others, `holes` and `doomed`, each with a worker of its own: the second is meant to fail.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import confluent_kafka as ck
import fastavro
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from faults.wire import QUIET, Schemas, consumer, end_of, read_all

if TYPE_CHECKING:
    from faults.world import World

_WAIT_S: Final = 90.0
_KEYS: Final = 20
_COMPACTED: Final = 2_000
_BEFORE, _LOST, _AFTER = 300, 100, 100
# Of the compacted topic: segments so short that the cleaner has something to do at once.
_EAGER: Final = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "500"}


def make_holes(world: World) -> str:
    """Do both; what is wrong is added to `world.wrong`. What was tried."""
    bootstrap = world.brokers.bootstrap
    schemas = Schemas(bootstrap)
    compacted = _compaction(world, bootstrap, schemas)
    overtaken = _retention(world, bootstrap, schemas)
    world.holes = f"{compacted}; {overtaken}"
    return world.holes


def _compaction(world: World, bootstrap: str, schemas: Schemas) -> str:
    """A topic with holes is read to its end, and what is left comes out."""
    admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})
    entries = [ConfigEntry(k, v, incremental_operation=AlterConfigOpType.SET) for k, v in _EAGER.items()]
    resource = ConfigResource(ConfigResource.Type.TOPIC, "holes.events", incremental_configs=entries)
    admin.incremental_alter_configs([resource])[resource].result(20)
    first = 0
    while True:  # the last segment is never compacted: more comes until a hole is there
        _produce(bootstrap, schemas, "holes.events", range(first, first + _COMPACTED))
        first += _COMPACTED
        time.sleep(1)
        left = _numbers(bootstrap, schemas, "holes.events")
        if len(left) < first - _COMPACTED // 2 or first > 40 * _COMPACTED:
            break
    end = end_of(consumer(bootstrap), ("holes.events", 0))
    agent = world.stable.start("holes", _worker(world, "holes"))
    reached = _wait(lambda: _committed(bootstrap, "dataflow.holes.seen", "holes.events") >= end)
    agent.kill()
    found, left = _numbers(bootstrap, schemas, "holes.seen"), _numbers(bootstrap, schemas, "holes.events")
    if not reached or not set(left) <= set(found):
        world.wrong.append(
            f"holes: of {len(left)} records left after compaction {len(found)} came out of the pipeline"
        )
    return f"{first - len(left)} of {first} records compacted away"


def _retention(world: World, bootstrap: str, schemas: Schemas) -> str:
    """A committed offset that leaves the log ends the worker with words, and loses nothing more than was deleted."""
    topic, group = "doomed.events", "dataflow.doomed.seen"
    _produce(bootstrap, schemas, topic, range(_BEFORE))
    agent = world.stable.start("doomed", _worker(world, "doomed"))
    if not _wait(lambda: _committed(bootstrap, group, topic) >= _BEFORE):
        world.wrong.append(f"doomed: the pipeline never ran:\n{agent.output()[-600:]}")
    agent.kill()
    _produce(bootstrap, schemas, topic, range(_BEFORE, _BEFORE + _LOST + _AFTER))
    admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})
    cut = ck.TopicPartition(topic, 0, _BEFORE + _LOST)
    admin.delete_records([cut])[cut].result(20)
    agent = world.stable.start("doomed", _worker(world, "doomed"))
    if not agent.wait(_WAIT_S) or not agent.process.returncode:
        world.wrong.append(
            f"doomed: the worker of an offset that left the log runs on:\n{agent.output()[-600:]}"
        )
    agent.kill()
    if "no longer in the log" not in agent.output():
        world.wrong.append(f"doomed: the worker did not say why it ended:\n{agent.output()[-600:]}")
    if _committed(bootstrap, group, topic) != _BEFORE:
        world.wrong.append("doomed: the committed offset moved over what was deleted")
    moved = ck.ConsumerGroupTopicPartitions(group, [cut])
    admin.alter_consumer_group_offsets([moved])[group].result(20)
    agent = world.stable.start("doomed", _worker(world, "doomed"))
    _wait(lambda: _committed(bootstrap, group, topic) >= _BEFORE + _LOST + _AFTER)
    agent.kill()
    found = sorted(_numbers(bootstrap, schemas, "doomed.seen"))
    wanted = [*range(_BEFORE), *range(_BEFORE + _LOST, _BEFORE + _LOST + _AFTER)]
    if found != wanted:
        world.wrong.append(f"doomed: {len(found)} records came out, {len(wanted)} were left by retention")
    return f"retention overtook a committed offset by {_LOST} records: the worker ended and said so"


def _worker(world: World, pipeline: str) -> list[str]:
    return ["worker", "--bootstrap", world.brokers.bootstrap, "--pipeline", pipeline]


def _produce(bootstrap: str, schemas: Schemas, topic: str, numbers: Sequence[int]) -> None:
    fingerprint, schema = schemas.like({"word", "n"})
    producer = ck.Producer(
        {**QUIET, "bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5}
    )
    for n in numbers:
        body = io.BytesIO()
        fastavro.schemaless_writer(body, schema, {"word": f"w{n % _KEYS}", "n": n})
        producer.produce(
            topic, body.getvalue(), f"w{n % _KEYS}".encode(), headers=[("df-schema", fingerprint)]
        )
        producer.poll(0)
    if producer.flush(60):
        raise RuntimeError(f"records for {topic} were not taken")


def _numbers(bootstrap: str, schemas: Schemas, topic: str) -> list[int]:
    found: list[int] = []
    read_all(bootstrap, [topic], lambda messages: found.extend(schemas.decode(m)["n"] for m in messages))
    return found


def _committed(bootstrap: str, group: str, topic: str) -> int:
    asking = consumer(bootstrap, group=group)
    try:
        return max(int(asking.committed([ck.TopicPartition(topic, 0)], timeout=10)[0].offset), 0)
    except ck.KafkaException:
        return -1
    finally:
        asking.close()


def _wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False
