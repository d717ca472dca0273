"""The data folder of an embedded broker: lock, state file, identity, and the formatting of Kafka's own folder.

data/lock                     held by every JVM of this folder (inherited), so it dies with them
data/state.json               who runs, where; only believed while its processes are really ours
data/cluster-id
data/node-1/server.properties, broker.log, kafka/ (Kafka's log folder), tmp/
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dataflow.broker.settings import parse_properties, properties_text
from dataflow.core.errors import BrokerError

MINIMUM_FREE_BYTES = 200 * 1024 * 1024
_EPHEMERAL_PREFIX = "dataflow-broker-"
_UUID = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, slots=True)
class NodeState:
    """One running node, as written to the state file."""

    node_id: int
    pid: int
    port: int


@dataclass(frozen=True, slots=True)
class State:
    """What `state.json` says. `folder` is where the nodes' files are: `data` itself, or a temporary folder.

    `owner_pid` is the process whose end is the broker's end, 0 for a detached one.
    """

    folder: str
    cluster_id: str
    started_at_ms: int
    ephemeral: bool
    owner_pid: int
    nodes: tuple[NodeState, ...]


def node_folder(folder: Path, node_id: int) -> Path:
    return folder / f"node-{node_id}"


def write_state(data: Path, state: State) -> None:
    """Replace the state file in one step: a reader sees the old or the new one."""
    fresh = data / f"state.json.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(state), indent=2) + "\n")
    fresh.replace(data / "state.json")


def read_state(data: Path) -> State | None:
    """What the state file says, None if there is none or it is not readable as one (it proves nothing then)."""
    try:
        fields = json.loads((data / "state.json").read_text())
        nodes = tuple(NodeState(**node) for node in fields.pop("nodes"))
        return State(nodes=nodes, **fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def forget_state(data: Path, state: State | None) -> None:
    """Remove the state file and, of an ephemeral broker, its files."""
    if state is not None and state.ephemeral:
        remove_ephemeral(Path(state.folder))
    (data / "state.json").unlink(missing_ok=True)


def make_ephemeral() -> Path:
    return Path(tempfile.mkdtemp(prefix=_EPHEMERAL_PREFIX)).resolve()


def remove_ephemeral(folder: Path) -> None:
    """Delete a temporary folder of ours, and nothing else: the name comes from a file that anyone may have edited."""
    if folder.name.startswith(_EPHEMERAL_PREFIX) and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` in a block that writes below `folder` into a message with the way out."""
    try:
        yield
    except OSError as error:
        raise BrokerError(
            f"the broker cannot write its data in {folder}: {error.strerror or error}",
            hint="free some space, or choose another folder with --data DIR",
        ) from error


def check_nodes(folder: Path, nodes: int) -> None:
    """Refuse data of another number of nodes: a quorum that was one knows nothing of three, and the other way round."""
    written = node_folder(folder, 1) / "server.properties"
    if not written.exists():
        return
    voters = parse_properties(written.read_text()).get("controller.quorum.voters", "")
    found = voters.count(",") + 1
    if voters and found != nodes:
        raise BrokerError(
            f"{folder} holds the data of {found} node{'s' if found > 1 else ''}, not of {nodes}",
            hint=f"start it with {found}, or choose another folder with --data DIR",
        )


def check_space(folder: Path) -> None:
    """Refuse to start on a full disk: Kafka would stop in the middle of a write."""
    free = shutil.disk_usage(folder).free
    if free < MINIMUM_FREE_BYTES:
        raise BrokerError(
            f"no space for the broker's data: {free // 1024**2} MB are free at {folder},"
            f" {MINIMUM_FREE_BYTES // 1024**2} MB are needed",
            hint="free some space, or choose another folder with --data DIR",
        )


def identify(folder: Path) -> str:
    """The cluster id of a data folder, made up and written on first use."""
    path = folder / "cluster-id"
    if not path.exists():
        path.write_text(_known_cluster_id(folder) or random_uuid())
    cluster_id = path.read_text().strip()
    if not _UUID.fullmatch(cluster_id):
        raise BrokerError(f"{path} holds {cluster_id[:40]!r}, not a cluster id", hint=_start_empty(folder))
    return cluster_id


def _known_cluster_id(folder: Path) -> str | None:
    """The id that formatted nodes agree on: a data folder may have lost the file beside them."""
    metas = sorted(folder.glob("node-*/kafka/meta.properties"))
    return parse_properties(metas[0].read_text(errors="replace")).get("cluster.id") if metas else None


def format_storage(node: Path, node_id: int, cluster_id: str, checkpoint: Path) -> None:
    """Make Kafka's log folder if there is none, without a JVM: identity, and the checkpoint of initial features.

    An existing one must belong to this cluster and node.
    """
    kafka = node / "kafka"
    meta = kafka / "meta.properties"
    if meta.exists():
        _check_identity(meta, node_id, cluster_id)
        return
    if kafka.exists() and any(entry.is_dir() for entry in kafka.iterdir()):
        raise BrokerError(f"the broker's data is damaged: {meta} is missing", hint=_start_empty(kafka))
    kafka.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint, kafka / "bootstrap.checkpoint")
    identity = {
        "version": "1",
        "cluster.id": cluster_id,
        "node.id": str(node_id),
        "directory.id": random_uuid(),
    }
    fresh = kafka / "meta.properties.tmp"
    fresh.write_text(properties_text(identity))
    fresh.replace(meta)


def _check_identity(meta: Path, node_id: int, cluster_id: str) -> None:
    found = parse_properties(meta.read_text(errors="replace"))
    missing = [name for name in ("version", "cluster.id", "node.id") if not found.get(name)]
    if missing:
        raise BrokerError(
            f"the broker's data is damaged: {meta} lacks {', '.join(missing)}", hint=_start_empty(meta.parent)
        )
    if found["cluster.id"] != cluster_id:
        raise BrokerError(
            f"{meta.parent} holds the data of cluster {found['cluster.id']}, but this folder is of {cluster_id}",
            hint=_start_empty(meta.parent),
        )
    if found["node.id"] != str(node_id):
        raise BrokerError(
            f"{meta.parent} holds the data of node {found['node.id']}, not of node {node_id}",
            hint=_start_empty(meta.parent),
        )


def _start_empty(folder: Path) -> str:
    return f"bring back the right files, choose another folder with --data DIR, or delete {folder} to start empty"


def random_uuid() -> str:
    """A Kafka id: a random UUID as 22 characters of URL-safe base64, without a leading dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text
