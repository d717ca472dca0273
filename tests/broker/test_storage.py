"""The data folder: state, identity, and what is refused."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from dataflow.broker import storage
from dataflow.broker.settings import Address, BrokerSettings, properties_text, server_properties
from dataflow.broker.storage import NodeState, State
from dataflow.core.errors import BrokerError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "bootstrap.checkpoint"
    path.write_bytes(b"features")
    return path


@pytest.mark.parametrize(("there", "wanted"), [(1, 3), (3, 1)])
def test_data_of_another_number_of_nodes_is_refused(tmp_path: Path, there: int, wanted: int) -> None:
    storage.check_nodes(tmp_path, wanted)
    storage.node_folder(tmp_path, 1).mkdir()
    storage.check_nodes(tmp_path, wanted)  # its first start did not come so far
    addresses = [Address(n + 1, 9_000 + n, 9_100 + n) for n in range(there)]
    text = properties_text(server_properties(BrokerSettings(tmp_path, nodes=there), addresses[0], addresses))
    (storage.node_folder(tmp_path, 1) / "server.properties").write_text(text)
    storage.check_nodes(tmp_path, there)
    with pytest.raises(BrokerError, match=f"the data of {there} node.*not of {wanted}"):
        storage.check_nodes(tmp_path, wanted)


def test_state_is_written_and_read_back(tmp_path: Path) -> None:
    state = State(str(tmp_path), "c" * 22, 123, False, 7, (NodeState(1, 10, 9092), NodeState(2, 11, 9094)))
    storage.write_state(tmp_path, state)
    assert storage.read_state(tmp_path) == state
    storage.forget_state(tmp_path, state)
    assert storage.read_state(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": 1}', '{"nodes": [{"pid": 1}]}', "\0"])
def test_a_state_file_that_is_none_proves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert storage.read_state(tmp_path) is None


def test_only_our_own_temporary_folders_are_deleted(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    storage.forget_state(tmp_path, State(str(precious), "c" * 22, 1, True, 0, ()))
    assert precious.exists()
    ours = storage.make_ephemeral()
    storage.forget_state(tmp_path, State(str(ours), "c" * 22, 1, True, 0, ()))
    assert not ours.exists()


def test_identity_is_made_once(tmp_path: Path) -> None:
    cluster_id = storage.identify(tmp_path)
    assert len(cluster_id) == 22
    assert storage.identify(tmp_path) == cluster_id


def test_formatting_is_done_once_and_checked_afterwards(tmp_path: Path, checkpoint: Path) -> None:
    node = tmp_path / "node-1"
    cluster_id = storage.random_uuid()
    storage.format_storage(node, 1, cluster_id, checkpoint)
    first = (node / "kafka" / "meta.properties").read_text()
    storage.format_storage(node, 1, cluster_id, checkpoint)
    assert (node / "kafka" / "meta.properties").read_text() == first
    assert (node / "kafka" / "bootstrap.checkpoint").read_bytes() == b"features"
    assert storage.identify(tmp_path) == cluster_id  # the file beside it was never written: the nodes know


def test_another_clusters_data_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    node = tmp_path / "node-1"
    mine, other = storage.random_uuid(), storage.random_uuid()
    storage.format_storage(node, 1, other, checkpoint)
    with pytest.raises(BrokerError, match=f"data of cluster {other}, but this folder is of {mine}") as caught:
        storage.format_storage(node, 1, mine, checkpoint)
    assert "delete" in caught.value.hint
    with pytest.raises(BrokerError, match="data of node 1, not of node 2"):
        storage.format_storage(node, 2, other, checkpoint)


def test_broken_identities_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    node, cluster_id = tmp_path / "node-1", storage.random_uuid()
    storage.format_storage(node, 1, cluster_id, checkpoint)
    meta = node / "kafka" / "meta.properties"
    meta.write_text("version=1\n")
    with pytest.raises(BrokerError, match=r"damaged: .*meta.properties lacks cluster.id, node.id"):
        storage.format_storage(node, 1, cluster_id, checkpoint)
    meta.unlink()
    (node / "kafka" / "orders-0").mkdir()
    with pytest.raises(BrokerError, match=r"damaged: .*meta.properties is missing"):
        storage.format_storage(node, 1, cluster_id, checkpoint)
    (tmp_path / "cluster-id").write_text("what?")
    with pytest.raises(BrokerError, match="not a cluster id"):
        storage.identify(tmp_path)


def test_a_full_disk_is_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage(10**9, 10**9 - 5 * 1024**2, 5 * 1024**2))
    with pytest.raises(BrokerError, match=r"5 MB are free .* 200 MB are needed") as caught:
        storage.check_space(tmp_path)
    assert "--data" in caught.value.hint


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match="cannot write its data"), storage.disk_errors(tmp_path):
        (tmp_path / "file" / "below").mkdir()
