"""`sync-binary` and `sync-grpc`: an image of 150 kB over HTTP with V2's binary extension, and 32 floats over gRPC.

Ours is one process, answers are durable. The image's model is cheap on purpose: what is compared is carrying 150 kB.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import grpc
import numpy as np

from benchmarks.cluster import Cluster
from benchmarks.projects import deployed, inputs, session_of, write
from benchmarks.report import Outcome
from benchmarks.servers import catalogue
from benchmarks.servers.catalogue import V2, Model
from benchmarks.servers.duel import Duels, Goal, Length, ceiling, outcome
from benchmarks.servers.grpc_client import METHOD, grpc_body, grpc_wrong
from benchmarks.servers.load import Load, binary_body, json_body
from benchmarks.servers.running import GRPC_CLIENT, Server, await_answer, start_ours
from benchmarks.servers.sync import NAME, all_committed, ask_http, scene

SHAPE: Final = (3, 224, 224)  # uint8: 150,528 bytes
IMAGES: Final = 16

_PROJECT = """
kind: Topic
name: images
fields: {x: "uint8[3,224,224]"}
---
kind: Model
name: image
file: model.onnx
---
kind: Pipeline
name: image
inputs: {images: images}
answer: {from: predict, when: durable}
nodes:
  predict: {use: model.onnx, from: images, with: {model: image}, keep: []}
"""


def run_binary(cluster: Cluster, *, quick: bool) -> Outcome:
    """Ahead of MLServer and KServe, and near Triton's front end, each in requests/s at 32 and in p50 at 1."""
    folder = write(cluster.folder / "sync-binary", {"pipelines/image/pipeline.yaml": _PROJECT})
    model = Model("image", write_image_model(folder / "pipelines/image/model.onnx"), "UINT8", SHAPE)
    load, as_json = image_loads(model)
    # MLServer takes no binary tensors over HTTP: it gets the same images the only way it can.
    instead = {peer.name: as_json for peer in (catalogue.MLSERVER, catalogue.MLSERVER_ALONE)}
    plan = deployed(folder, cluster.fabric)["image"]
    ours = start_ours(cluster, folder, load.path)
    await_answer(ours, lambda server: ask_http(server, load))
    length = Length.of(quick=quick)
    duels = Duels(model, load, length, ask_http, instead=instead)
    client = ceiling(cluster, load, length)
    goals = (*_ahead(), Goal(catalogue.TRITON, 32, "rate", 0.8))
    found = duels.against(cluster, ours, _peers(goals))
    all_committed(cluster, plan)
    return outcome("sync-binary", goals, found, **{"ceiling of the client": client})


def run_grpc(cluster: Cluster, *, quick: bool) -> Outcome:
    """Ahead of MLServer and KServe; Triton's stands beside. The client is Python's own and slow."""
    there = scene(cluster, "durable")
    rows = inputs(len(there.load.expected))
    load = Load("", METHOD, tuple(grpc_body(NAME, row[None]) for row in rows), there.load.expected)
    duels = Duels(there.model, load, Length.of(quick=quick), ask_grpc, GRPC_CLIENT)
    await_answer(there.ours, lambda server: ask_grpc(server, load))
    goals = (*_ahead(), Goal(catalogue.TRITON, 32, "rate", 0.0))
    found = duels.against(cluster, there.ours, _peers(goals))
    all_committed(cluster, there.plan)
    return outcome("sync-grpc", goals, found)


def _ahead() -> tuple[Goal, ...]:
    return tuple(
        Goal(peer, concurrency, measure, 1.0)
        for peer in (catalogue.MLSERVER_ALONE, catalogue.MLSERVER, catalogue.KSERVE)
        for concurrency, measure in ((1, "p50"), (32, "rate"))
    )


def _peers(goals: tuple[Goal, ...]) -> list[catalogue.Peer]:
    return list({goal.peer.name: goal.peer for goal in goals}.values())


def ask_grpc(server: Server, load: Load) -> str:
    """What is wrong with the server's answer to the first message; empty for nothing."""
    with grpc.insecure_channel(server.grpc_address) as channel:
        try:
            return grpc_wrong(channel.unary_unary(load.path)(load.bodies[0], timeout=5), load.expected[0])
        except grpc.RpcError as error:
            return repr(error)


def image_loads(model: Model) -> tuple[Load, Load]:
    """Images of noise around different means, each with what the model says of it: as binary and as JSON."""
    random = np.random.default_rng(5)
    images: list[Any] = [random.integers(0, 16 * (n + 1), (1, *SHAPE), dtype=np.uint8) for n in range(IMAGES)]
    session = session_of(model.path)
    expected = tuple(float(session.run(["y"], {"x": image})[0][0, 0]) for image in images)
    made = [binary_body(image, "UINT8") for image in images]
    (head,) = {length for _, length in made}
    headers = MappingProxyType(
        {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(head)}
    )
    path = V2.format(model=model.name)
    texts = tuple(json_body(image, "UINT8") for image in images)
    return (
        Load("", path, tuple(body for body, _ in made), expected, headers),
        Load("", path, texts, expected),
    )


def write_image_model(path: Path) -> Path:
    """x uint8 [N, 3, 224, 224] -> means of the channels -> y [N, 1]: it reads every byte, and does little else."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([[0.004], [0.002], [0.001]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("GlobalAveragePool", ["f"], ["p"]),
            helper.make_node("Flatten", ["p"], ["m"]),
            helper.make_node("MatMul", ["m", "w"], ["y"]),
        ],
        "image",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path
