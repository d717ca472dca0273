"""What the process of a node that runs outside its stage is told: see `outside` of a node's class in the sdk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AgentPlace:
    """Where such a process works.

    project, folder   of the project and of the pipeline: where user modules are
    bootstrap         address of the cluster; `security` the client's settings for it (librdkafka's names)
    group             its consumer group, which nobody else is in
    inputs            by input port the topics to read; `seeds` are those of the ids of records without one, by
                      ``topic/partition`` (see `ids.of_positions`)
    output            the topic to write, of `partitions` partitions: the node's edge
    origin            value of header df-origin of what it writes
    """

    pipeline: str
    node: str
    origin: str
    project: str
    folder: str
    bootstrap: str
    security: Mapping[str, str]
    group: str
    inputs: Mapping[str, tuple[str, ...]]
    seeds: Mapping[str, int]
    output: str
    partitions: int
