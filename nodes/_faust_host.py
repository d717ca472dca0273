"""The process of an `agent.faust` node: an existing Faust app, run on the node's topics. Started by the engine only.

The app is not changed and does not know. Its settings, and the names of the two topics, are set before it starts; what
it sends while it processes an event is marked with where that event came from, so that what it sends again after a
crash can be told. Standard input begins with an `AgentPlace`, the argument is ``{"app", "reads", "writes"}``, both JSON.
Faust is imported inside functions: the parts that do without it are tested in processes that must not hold it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dataflow.sdk import headers, ids

# Faust commits this often, in s: what it processes again after a kill -9.
COMMIT_S: Final = 1.0
# A killed member's partitions move after so long, in s. Kafka's own default is 45.
SESSION_S: Final = 6.0
HEARTBEAT_S: Final = 1.0
FAILED: Final = 70
# Older names of settings that are made here.
OLD_NAMES: Final = frozenset({"commit_interval", "default_partitions"})

# What a record has of its own; everything else of an input record's headers goes on with what comes of it.
_OWN: Final = headers.PER_HOP | headers.REQUEST | {headers.SOURCE}


@dataclass
class Sends:
    """What was sent while one event was in hand, by topic: the ordinals of outputs."""

    event: weakref.ReferenceType[Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)


class Marker:
    """Headers of what an app sends: where it came from, which output of that it is, and an id that follows from both.

    Ordinals count for each agent, partition and topic sent to; with one event at a time (concurrency 1) they are the
    same when the event is processed again.
    """

    def __init__(self, node: str, origin: str, seeds: Mapping[str, int]) -> None:
        self._node = node
        self._origin = origin.encode()
        self._seeds = seeds
        self._sends: dict[tuple[str, str, int], Sends] = {}

    def headers(self, event: Any, agent: str, topic: str, given: Mapping[str, bytes]) -> dict[str, bytes]:
        """The headers of a record that `agent` sends to `topic` with `event` in hand; `given` are the app's own."""
        message = event.message
        carried = _named(message.headers)
        source, parent = self._origin_of(message, carried)
        if not parent:
            return dict(given)
        ordinal = self._ordinal(event, agent, topic)
        place = f"{source}/{agent}:{ordinal}"
        made = ids.child(parent, self._node, f"{topic}/{agent}", ordinal)
        passed = {n: v for n, v in carried.items() if n not in _OWN}
        ours = {
            headers.ID: made,
            headers.PARENTS: parent,
            headers.SOURCE: place.encode(),
            headers.ORIGIN: self._origin,
        }
        return {**passed, **given, **ours}

    def _origin_of(self, message: Any, carried: Mapping[str, bytes]) -> tuple[str, bytes]:
        """Where an event comes from, and its id; b"" for an event of a topic of the app's own that bears none."""
        position = f"{message.topic}/{message.partition}"
        record_id = carried.get(headers.ID, b"")
        if position not in self._seeds:  # between two of the app's agents: what it was marked with there
            return carried.get(headers.SOURCE, b"").decode("ascii", "replace"), record_id
        if ids.malformed([record_id]):
            time_ms = round(message.timestamp * 1_000)
            (record_id,) = ids.of_positions(self._seeds[position], [time_ms], [message.offset])
        return f"{position}/{message.offset}", record_id

    def _ordinal(self, event: Any, agent: str, topic: str) -> int:
        key = agent, event.message.topic, event.message.partition
        sends = self._sends.get(key)
        if sends is None or sends.event is None or sends.event() is not event:
            sends = self._sends[key] = Sends(weakref.ref(event))
        ordinal = sends.counts.get(topic, 0)
        sends.counts[topic] = ordinal + 1
        return ordinal


def _named(found: Any) -> dict[str, bytes]:
    """Headers by name, of whichever form; those without a value are left out."""
    pairs = found.items() if isinstance(found, Mapping) else found or ()
    return {n: v.encode() if isinstance(v, str) else bytes(v) for n, v in pairs if v is not None}


def renaming(topic: Callable[..., Any], names: Mapping[str, Sequence[str]]) -> Callable[..., Any]:
    """`App.topic`, by the names that the engine has for the app's topics."""

    def renamed(app: Any, *topics: str, **options: Any) -> Any:
        return topic(app, *(new for old in topics for new in names.get(old, (old,))), **options)

    return renamed


def marking(send: Callable[..., Any], marker: Marker, output: str, partitions: int) -> Callable[..., Any]:
    """`Topic.as_future_message`, which every send of a record goes through, with the marks."""
    import faust
    from faust.agents import current_agent

    def marked(self: Any, *arguments: Any, **options: Any) -> Any:
        names = ("key", "value", "partition", "timestamp", "headers")
        options |= dict(zip(names, arguments, strict=False))
        rest = arguments[len(names) :]
        event = faust.current_event()
        name = self.get_topic_name()
        if event is not None and not name.endswith("-changelog"):
            agent = current_agent()
            own = _named(options.get("headers"))
            told = getattr(agent, "name", "") or ""
            options["headers"] = marker.headers(event, told, name, own)
            if name == output and options.get("key") is None and options.get("partition") is None:
                # Without a key it would go anywhere, and elsewhere the second time.
                options["partition"] = event.message.partition % partitions
        ordered = [options.pop(n, None) for n in names]
        return send(self, *ordered, *rest, **options)

    return marked


def load(place: Mapping[str, Any]) -> Any:
    """The app of ``module:name``, made with the node's topics and settings in place of its own."""
    import faust
    from faust.tables.recovery import Recovery
    from faust.topics import Topic

    for folder in (place["project"], place["folder"]):
        sys.path.insert(0, folder)
    security = place["security"].get("security.protocol", "plaintext")
    if security.lower() != "plaintext":
        raise SystemExit(f"agent.faust speaks to clusters without TLS and SASL only, this one is {security}")
    (inputs,) = place["inputs"].values()
    names = {place["reads"]: tuple(inputs), place["writes"]: (place["output"],)}
    marker = Marker(f"{place['pipeline']}/{place['node']}", place["origin"], place["seeds"])
    ours = settings_of(place)
    mark = marking(Topic.as_future_message, marker, place["output"], place["partitions"])
    Topic.as_future_message = mark  # type: ignore[method-assign]  # the one way that every record goes
    Recovery.on_recovery_completed = holding(Recovery.on_recovery_completed)  # type: ignore[method-assign]
    faust.App.topic = renaming(faust.App.topic, names)  # type: ignore[method-assign]  # before the app is made
    faust.App.__init__ = settled(faust.App.__init__, place["group"], ours)  # type: ignore[method-assign]  # likewise
    module, _, attribute = place["app"].partition(":")
    app = getattr(importlib.import_module(module), attribute)
    if not isinstance(app, faust.App):
        raise SystemExit(f"{place['app']} is no faust.App")
    app.finalize()
    app.discover()
    refuse(app, place["group"])
    guard(app)
    return app


def settings_of(place: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are the engine's to make; all others stay as the app has them."""
    brokers = [f"kafka://{address.strip()}" for address in place["bootstrap"].split(",")]
    return {
        "broker": brokers,
        "broker_consumer": brokers,
        "broker_producer": brokers,
        "datadir": tempfile.mkdtemp(prefix="dataflow-faust-"),
        "web_enabled": False,
        "topic_partitions": place["partitions"],
        "consumer_auto_offset_reset": "earliest",
        "broker_commit_interval": COMMIT_S,
        "broker_session_timeout": SESSION_S,
        "broker_heartbeat_interval": HEARTBEAT_S,
    }


def settled(make: Callable[..., None], group: str, ours: Mapping[str, Any]) -> Callable[..., None]:
    """`App.__init__` with the engine's settings, and its id, which is the consumer group."""

    def made(self: Any, id: str, **options: Any) -> None:  # noqa: A002  (Faust's own name)
        del id
        kept = {n: v for n, v in options.items() if n not in OLD_NAMES}
        make(self, group, **{**kept, **ours})

    return made


def refuse(app: Any, group: str) -> None:
    """End with a reason where the app cannot be what the engine promises."""
    conf = app.conf
    if conf.id != group:
        raise SystemExit(f"the app's settings set its id to '{conf.id}': it must leave id and broker alone")
    if not str(conf.processing_guarantee).lower().endswith("at_least_once"):
        raise SystemExit(
            "processing_guarantee must be at_least_once: Faust's exactly_once loses and doubles records"
        )
    wrong = [a.name for a in app.agents.values() if (a.concurrency or 1) != 1]
    if wrong:
        raise SystemExit(f"agents with concurrency beyond 1 lose records when they end: {', '.join(wrong)}")


def holding(completed: Callable[..., Any]) -> Callable[..., Any]:
    """`Recovery.on_recovery_completed`, with nothing fetched until it is over.

    Faust 0.15 lets input records into the agents' queues while it still looks up the committed offsets, and then clears
    the queues: those records are never processed, and sometimes committed all the same.
    """

    async def held(self: Any, generation_id: int = 0) -> None:
        self.app.flow_control.suspend()
        self.app.consumer.stop_flow()
        await completed(self, generation_id)

    return held


def guard(app: Any) -> None:
    """A record that was refused ends the process before offsets beyond it are committed: Faust itself only logs it."""
    refused: list[str] = []
    app.monitor.on_send_error = lambda _producer, error, _state: refused.append(str(error))
    flush = app.producer.flush

    async def flushed() -> None:
        await flush()
        await asyncio.sleep(0)  # the callbacks of what was just settled
        if refused:
            sys.stderr.write(f"a record was not sent: {refused[0]}\n")
            sys.stderr.flush()
            os._exit(FAILED)

    app.producer.flush = flushed


def watch_input() -> None:
    """Stop when standard input ends: whoever started us is gone, or wants us to be."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    import faust

    place = {**json.loads(sys.stdin.readline()), **json.loads(sys.argv[1])}
    app = load(place)
    watch_input()
    faust.Worker(app, loglevel="warning", redirect_stdouts=False, quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main()
