"""Servers that run: a peer out of the catalogue, or ours as a user starts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.calls import free_port, summary
from benchmarks.cluster import Cluster, Process, wait_until
from benchmarks.peers import PeerError
from benchmarks.report import BenchmarkError
from benchmarks.servers.catalogue import Model, Peer, Place
from benchmarks.servers.load import Load

# One process that is gateway and worker at once, as a user starts it on a cluster that has the plan.
OURS: Final[tuple[str, ...]] = ("serve",)
START_S: Final = 120.0
HTTP_CLIENT: Final = "benchmarks.servers.client"
GRPC_CLIENT: Final = "benchmarks.servers.grpc_client"


@dataclass
class Server:
    """One that was started; CPU time and memory are those of its process and of what that has started."""

    name: str
    process: Process
    address: str
    path: str
    grpc_address: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def start_ours(cluster: Cluster, project: Path, path: str) -> Server:
    """Ours for the deployed plans of a project; not yet asked whether it answers."""
    http, grpc = free_port(), free_port()
    name, *more = OURS
    process = cluster.start_command(name, project, *more, "--port", str(http), "--grpc-port", str(grpc))
    return Server("ours", process, f"127.0.0.1:{http}", path, f"127.0.0.1:{grpc}")


def start_peer(cluster: Cluster, peer: Peer, model: Model) -> Server:
    """Install it if need be, and start it. Raises PeerError."""
    python, versions = peer.installed()
    name = "".join(c if c.isalnum() else "-" for c in peer.name.lower())
    folder = cluster.folder / f"peer-{name}-{model.name}-{time.monotonic_ns()}"
    folder.mkdir()
    place = Place(folder, (free_port(), free_port(), free_port()), model)
    variables = {**peer.variables(place, python), "BOOTSTRAP": cluster.bootstrap}
    options: dict[str, Any] = {"python": python} if python else {}
    process = cluster.start(name, *peer.arguments(place), environment=variables, **options)
    http, grpc, _ = place.ports
    path = peer.path.format(model=model.name)
    return Server(peer.name, process, f"127.0.0.1:{http}", path, f"127.0.0.1:{grpc}", versions)


def await_answer(server: Server, ask: Callable[[Server], str]) -> None:
    """Until it gives the right answer; `ask` says what is wrong with it. Raises PeerError."""
    problem = "nothing yet"

    def answered() -> bool:
        nonlocal problem
        server.process.check()
        problem = ask(server)
        return not problem

    try:
        wait_until(answered, f"the first answer of {server.name}", START_S)
    except BenchmarkError as error:
        told = server.process.output()[-1500:]
        raise PeerError(f"{server.name}: {error}: {problem}\n{told}") from error


def call(cluster: Cluster, client: str, load: Load) -> dict[str, Any]:
    """Run the client to its end; quantiles, rate, and all else that it printed. Raises BenchmarkError."""
    path = load.write(cluster.folder / f"load-{time.monotonic_ns()}.json")
    printed = cluster.start("client", "-m", client, str(path)).wait()
    path.unlink()
    return summary(printed)


def measure(cluster: Cluster, server: Server, client: str, load: Load) -> dict[str, Any]:
    """What `call` gives, and what a request cost the server."""
    address = server.grpc_address if client == GRPC_CLIENT else server.address
    path = load.path if client == GRPC_CLIENT else server.path
    before = server.process.family_cpu_s()
    found = call(cluster, client, load.at(address, path))
    spent = server.process.family_cpu_s() - before
    return {
        **found,
        "cpu_us": round(spent / max(found["asked"], 1) * 1e6, 1),
        "pss_mb": round(server.process.family_pss_mb(), 1),
    }
