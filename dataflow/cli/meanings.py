"""What each setting of a declaration means, in a few words: the last column of docs/reference/settings.md.

A test holds that every setting of every declaration is here, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_KIND: Final = "What is declared."
_DOC: Final = "What it is for, in words."

MEANINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "TopicSpec": {
        "kind": _KIND,
        "name": "Name of the Kafka topic.",
        "doc": _DOC,
        "owner": "Who answers for it.",
        "key": "Fields that make the record key; none: records have no key.",
        "key_encoding": "How the key becomes bytes. Default: by the key's fields, see above.",
        "partitions": "Partitions of the topic; edges that follow from it have as many.",
        "retention": "How long records are kept; `forever` keeps them.",
        "retention_bytes": "How much of a partition is kept. Default: no limit.",
        "cleanup": "What happens to old records: `compact` keeps the newest of each key, as lookup tables need.",
        "codec": "How records become bytes. `cloudevents`: JSON, as the data of structured events.",
        "event_type": "What is published here are CloudEvents of this type, in binary mode unless the codec says otherwise. "
        "Default: plain records; with codec `cloudevents` the topic's name.",
        "max_record_bytes": "Largest record; a larger one fails by itself.",
        "fields": "Name and type of each field.",
    },
    "FieldSpec": {
        "type": "What the field holds; `?` at the end allows null.",
        "shape": "Sizes of a tensor; -1 is a free dimension.",
        "nullable": "Whether null is a value: as `?` behind the type.",
        "doc": _DOC,
        "unit": "Unit of a number, for readers.",
        "privacy": "A label such as `identifier`: the field is masked in taps and traces for those without the scope.",
        "event_time": "Whether this timestamp says when the event happened.",
        "items": "Type of a list's items.",
        "fields": "Members of a record.",
        "symbols": "Values of an enum.",
        "precision": "Digits of a decimal.",
        "scale": "Digits of a decimal behind the point.",
    },
    "ModelSpec": {
        "kind": _KIND,
        "name": "What nodes call it.",
        "doc": _DOC,
        "file": "The artifact, relative to this file.",
        "build": "Command that makes the artifact, run in this file's folder.",
        "inputs": "Files (globs) that the artifact is made from: it is built again when one changes. Default: `*.py`.",
        "options": "How it is run.",
    },
    "ModelOptions": {
        "device": "Where it runs; it is there, or loading fails.",
        "providers": "onnxruntime execution providers by rank, in place of `device`.",
        "intra_threads": "Threads inside one run.",
        "max_batch": "Most rows of one run.",
        "warm_up": "Whether one row is run when it is loaded.",
    },
    "PipelineSpec": {
        "kind": _KIND,
        "name": "Name of the pipeline; its topics and groups begin with it.",
        "doc": _DOC,
        "inputs": "Topics, or edges of other pipelines as `PIPELINE.EDGE`, each under a name for this pipeline.",
        "outputs": "Edges whose records are copied to topics of others: topic to edge.",
        "answer": "Which edges answer a waiting caller. Default: nobody waits.",
        "delivery": "What a crash may do: run records again, or not even show that.",
        "deadline": "How long a caller waits unless the request says otherwise.",
        "edges": "Defaults of the edges that its nodes write.",
        "nodes": "The nodes by name.",
        "tests": "Records in, records expected: what `dataflow test` runs.",
    },
    "NodeSpec": {
        "use": "The node's kind.",
        "doc": _DOC,
        "from": "The edges that feed it, of other pipelines too (`PIPELINE.EDGE`); by input port where it has several.",
        "with": "The kind's own settings.",
        "out": "The fields that it makes, where its code does not say them.",
        "keep": "Fields of the input that stay beside them. Default: as the kind does.",
        "retry": "How often a record that failed is tried again, where it may be. Default: 3 attempts.",
        "failed": "Whether records that failed for good go out on a port of that name, not to the dead letters.",
        "isolate": "Whether it is a stage of its own, with its own consumer group.",
        "open": "Whether others may write to its edges' topics, by their contract.",
        "write": "Whether its edges are topics; `off` for what nobody is to read.",
    },
    "RetrySpec": {
        "attempts": "Attempts, the first included.",
        "backoff": "Wait before the second one; it doubles each time.",
        "backoff_max": "Longest wait.",
        "jitter": "Share of it, 0 to 1, by which a wait may be shorter, so that not all come back at once.",
    },
    "EdgesSpec": {
        "retention": "How long anyone may come and look.",
        "retention_bytes": "How much of a partition is kept.",
        "codec": "How records become bytes; `json` shows text in any Kafka tool.",
        "partitions": "Partitions of each edge: as many as the input (the default), or a number that divides those.",
    },
    "AnswerSpec": {
        "from": "Edges: the first record of the request on any of them is the answer.",
        "when": "When the caller is told. Default: `committed` under exactly_once, else `durable`.",
        "input": "The input that requests go to. Default: the only one.",
    },
    "TestSpec": {
        "name": "What it shows.",
        "given": "Records by input, or by table.",
        "expect": "Records by edge, in order and as many; only the fields named are compared.",
        "tolerance": "By how much numbers may differ.",
    },
    "ProjectSpec": {
        "kind": _KIND,
        "name": "Name of the project.",
        "doc": _DOC,
        "kafka": "The cluster to use. Default: a broker that `dataflow up` starts.",
        "gateway": "The HTTP door.",
    },
    "KafkaSpec": {
        "bootstrap": "Address of the cluster, host:port.",
        "...": "Any setting of librdkafka, such as `security.protocol`.",
    },
    "GatewaySpec": {
        "host": "Address to listen on.",
        "port": "Port of the HTTP door; 0 takes a free one.",
        "grpc": "Whether the gRPC door is opened as well, where grpcio is installed.",
        "grpc_port": "Port of the gRPC door; 0 takes a free one.",
        "token": "What callers must send as `Authorization: Bearer`; needed off loopback.",
        "limits": "What connections may do.",
    },
    "LimitsSpec": {
        "connections": "Connections at once; fewer where the system allows fewer open files.",
        "head": "How long the line and the headers of a request may take.",
        "body": "How long a body may take, and a second more for each 16 KiB of it.",
        "stall": "How long a caller may take nothing of an answer.",
        "keep_alive": "How long an idle connection is kept, in whole seconds.",
    },
}
