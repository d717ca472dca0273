"""`passthrough-peers`: the pipeline of `passthrough` beside Kafka Streams (one thread), Quix Streams, bytewax and Faust.

All copy the same 200-byte records from a topic of four partitions to another, at least once, committing each 100 ms (bytewax
does not commit). Outputs of those who finish in time must be the same records, in whatever order.
"""

from __future__ import annotations

from typing import Final

from benchmarks.cluster import Cluster, Process
from benchmarks.engines.beside import Engine, Work, compare, outcome_of
from benchmarks.engines.streams import class_path
from benchmarks.passthrough import PARTITIONS, SOURCE, fill, project
from benchmarks.peers import QUIX, python_of
from benchmarks.projects import deployed
from benchmarks.report import Outcome

BYTEWAX: Final = "bytewax[kafka]==0.21.1"


def run(cluster: Cluster, *, quick: bool) -> Outcome:
    records, pairs, limit_s = (10_000, 1, 8.0) if quick else (400_000, 3, 20.0)
    folder = project(cluster.folder / "passthrough", len(ENGINES) * pairs)
    plans = deployed(folder, cluster.fabric)
    fill(cluster, records)
    work = Work(folder, list(plans), "same", PARTITIONS, records, pairs, limit_s)
    return outcome_of("passthrough-peers", ENGINES, compare(cluster, work, ENGINES))


def start_streams(cluster: Cluster, source: str, sink: str, group: str) -> Process:
    """Kafka Streams, one thread, passing bytes on."""
    arguments = ("-cp", class_path(), "Passthrough", cluster.bootstrap, source, sink, group)
    return cluster.start("kafka-streams", *arguments, python="java")


def _start_quix(cluster: Cluster, sink: str, group: str) -> Process:
    module = ("-m", "benchmarks.engines.quix_app", cluster.bootstrap, SOURCE, sink, group)
    return cluster.start("quix", *module, python=python_of(QUIX))


def _start_bytewax(cluster: Cluster, sink: str, group: str) -> Process:
    del group
    flow = f"benchmarks.engines.bytewax_app:flow({cluster.bootstrap!r}, {SOURCE!r}, {sink!r})"
    return cluster.start("bytewax", "-m", "bytewax.run", flow, python=python_of(BYTEWAX))


def _start_faust(cluster: Cluster, sink: str, group: str) -> Process:
    return cluster.start(
        "faust", "-m", "benchmarks.engines.faust_app", cluster.bootstrap, SOURCE, sink, group
    )


ENGINES: Final = (
    Engine("Kafka Streams", 1.2, lambda cluster, sink, group: start_streams(cluster, SOURCE, sink, group)),
    Engine("Quix Streams", 3.5, _start_quix),
    Engine("bytewax", 0.0, _start_bytewax),
    Engine("Faust", 25.0, _start_faust),
)
