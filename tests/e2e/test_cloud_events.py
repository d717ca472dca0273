"""CloudEvents on Kafka, written and read by the specification's own SDK."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings import kafka as binding
from cloudevents.core.v1.event import CloudEvent

from dataflow.transport.api import Message
from dataflow.transport.kafka import KafkaFabric
from tests.conftest import wait_for
from tests.e2e.test_flows import Flow

pytestmark = pytest.mark.broker

YAML = """
kind: Topic
name: {p}.readings
codec: cloudevents
fields: {{sensor: string, celsius: float64}}
---
kind: Topic
name: {p}.alarms
codec: json
event_type: plant.alarm
fields: {{sensor: string, fahrenheit: float64}}
---
kind: Topic
name: {p}.told
codec: cloudevents
key: sensor
fields: {{sensor: string, fahrenheit: float64}}
---
kind: Pipeline
name: {p}
inputs: {{reading: {p}.readings}}
outputs: {{{p}.alarms: hot, {p}.told: hot}}
nodes:
  hot: {{use: transform.select, from: reading, with: {{set: {{fahrenheit: celsius * 9 / 5 + 32}}, drop: [celsius]}}}}
"""


def event(celsius: float) -> CloudEvent:
    attributes = {
        "specversion": "1.0", "id": f"e-{celsius}", "source": "/roof", "type": "reading",
        "datacontenttype": "application/json",
    }  # fmt: skip
    return CloudEvent(attributes, {"sensor": "s1", "celsius": celsius})


def event_of(message: Message) -> Any:
    """As the SDK reads it off a topic."""
    found = {name: value if isinstance(value, bytes) else b"" for name, value in message.headers() or ()}
    return binding.from_kafka_event(binding.KafkaMessage(found, message.key(), message.value() or b""))


def test_events_of_both_modes_come_in_and_go_out(tmp_path: Path, kafka: KafkaFabric) -> None:
    p = f"events-{uuid.uuid4().hex[:8]}"
    flow = Flow(tmp_path, kafka, YAML.format(p=p))
    producer = kafka.producer()
    for made in (binding.to_structured_event(event(40)), binding.to_binary_event(event(50))):
        producer.send(f"{p}.readings", made.value, None, [*made.headers.items()])
    producer.send(f"{p}.readings", b'{"sensor": "s1", "celsius": 60}', None)  # no event at all
    producer.send(f"{p}.readings", b'{"specversion": "1.0", "id": "1"}', None)
    assert producer.flush(30) == 0
    producer.close()
    with flow.working():
        wait_for(lambda: len(flow.messages(f"{p}.told")) >= 3, "what is told")
        wait_for(lambda: flow.messages("dataflow.dead-letters"), "the event without data")
    binary, structured = flow.messages(f"{p}.alarms"), flow.messages(f"{p}.told")
    wanted = [{"sensor": "s1", "fahrenheit": f} for f in (104.0, 122.0, 140.0)]
    for mode in (binary, structured):
        events = [event_of(m) for m in mode]
        assert [e.get_data() for e in events] == wanted
        assert {e.get_source() for e in events} == {f"/pipelines/{p}/hot"}
        assert [e.get_id().encode() for e in events] == [dict(m.headers() or ())["df-id"] for m in mode]
    assert {event_of(m).get_type() for m in binary} == {"plant.alarm"}
    assert {event_of(m).get_type() for m in structured} == {f"{p}.told"}
    # The data alone is the value in binary mode, and one of each header is there: none of the event that came in.
    assert json.loads(binary[1].value() or b"") == wanted[1]
    names = [name for name, _ in binary[1].headers() or ()]
    assert len(names) == len(set(names))
    # Structured events are read back by ours as the records that they hold.
    assert flow.plans[p].edges["reading"].codec == "cloudevents"
    letters = [
        m
        for m in flow.messages("dataflow.dead-letters")
        if dict(m.headers() or ()).get("df-error-topic") == f"{p}.readings".encode()
    ]
    assert [dict(m.headers() or ())["df-error-message"] for m in letters] == [b"an event without data"]
