"""The servers that people would pick instead: what each needs, how it is started, and where it takes a V2 request.

Settings are each peer's defaults less access logs, one model in one instance; the program around the model is in `apps`,
written as the peer's documentation does. Versions are fixed: newer ones are taken over by hand, with a look at the results.
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.peers import python_of, versions_in

_APPS: Final = "benchmarks.servers.apps"
V2: Final = "/v2/models/{model}/infer"


@dataclass(frozen=True)
class Model:
    """An ONNX file with input x (its shape without the rows) and output y [N, 1]."""

    name: str
    path: Path
    datatype: str = "FP32"
    shape: tuple[int, ...] = (32,)


@dataclass(frozen=True)
class Place:
    """Where a peer runs: a folder of its own and ports for HTTP, gRPC and metrics."""

    folder: Path
    ports: tuple[int, int, int]
    model: Model

    @property
    def numbers(self) -> tuple[str, str, str]:
        http, grpc, metrics = map(str, self.ports)
        return http, grpc, metrics


@dataclass(frozen=True)
class Peer:
    """`arguments` may write files into the place's folder. Without a requirement it runs in our own environment."""

    name: str
    arguments: Callable[[Place], tuple[str, ...]]
    requirement: str = ""
    more: tuple[str, ...] = ()
    path: str = V2
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def installed(self) -> tuple[str | None, dict[str, str]]:
        """The interpreter (None: ours) and the versions of what is measured. Raises PeerError."""
        if not self.requirement:
            return None, {}
        python = python_of(self.requirement, f"onnxruntime=={version('onnxruntime')}", *self.more)
        package = self.requirement.partition("==")[0].partition("[")[0]
        return python, versions_in(python, [package, "onnxruntime", "numpy"])

    def variables(self, place: Place, python: str | None) -> dict[str, str]:
        """What it finds in its environment; its own commands are on the path."""
        found = {"MODEL": str(place.model.path), "MODEL_NAME": place.model.name, "OMP_NUM_THREADS": "1"}
        if python:
            found["PATH"] = f"{Path(python).parent}:{os.environ['PATH']}"
            # Triton's stub embeds Python: it must find this one's library, not the system's.
            found["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
        return {**found, **self.environment}


def _mlserver(place: Place) -> tuple[str, ...]:
    http, grpc, metrics = place.ports
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics,
    }  # fmt: skip
    model = {"name": place.model.name, "implementation": f"{_APPS}.mlserver_model.OnnxModel"}
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "model-settings.json").write_text(json.dumps(model))
    return "-c", "from mlserver.cli import main; main()", "start", str(place.folder)


def _bentoml(place: Place) -> tuple[str, ...]:
    start = "from bentoml_cli.cli import cli; cli()"
    where = ("--host", "127.0.0.1", "--port", place.numbers[0])
    return "-c", start, "serve", f"{_APPS}.bentoml_app:OnnxModel", *where


def _triton(place: Place) -> tuple[str, ...]:
    dims = ", ".join(map(str, place.model.shape))
    return "-m", f"{_APPS}.triton_start", str(place.folder), place.model.datatype, dims, *place.numbers


def _app(name: str, ports: int) -> Callable[[Place], tuple[str, ...]]:
    return lambda place: ("-m", f"{_APPS}.{name}", *place.numbers[:ports])


HAND_WRITTEN: Final = Peer(
    "hand-written ASGI",
    lambda place: ("-m", "benchmarks.raw_server", str(place.model.path), place.numbers[0]),
)
HAND_WRITTEN_DURABLE: Final = Peer(
    "hand-written ASGI, durable",
    lambda place: ("-m", "benchmarks.raw_durable", str(place.model.path), place.numbers[0]),
)
# With the uvloop that it allows, 0.23, its worker process dies at its start under Python 3.11.
MLSERVER: Final = Peer("MLServer", _mlserver, "mlserver==1.7.1", ("uvloop<0.22",))
MLSERVER_ALONE: Final = Peer(
    "MLServer, no workers", _mlserver, "mlserver==1.7.1", ("uvloop<0.22",),
    environment={"MLSERVER_PARALLEL_WORKERS": "0"},
)  # fmt: skip
KSERVE: Final = Peer("KServe", _app("kserve_app", 2), "kserve==0.21.0")
LITSERVE: Final = Peer("LitServe", _app("litserve_app", 1), "litserve==0.2.19", path="/predict")
BENTOML: Final = Peer(
    "BentoML", _bentoml, "bentoml==1.4.39", path="/infer", environment={"BENTOML_DO_NOT_TRACK": "True"}
)
RAY: Final = Peer(
    "Ray Serve", _app("ray_app", 1), "ray[serve]==2.60.0", path="/",
    environment={"RAY_USAGE_STATS_ENABLED": "0"},
)  # fmt: skip
PYTRITON: Final = Peer("PyTriton", _app("pytriton_app", 3), "nvidia-pytriton==0.7.0")
TRITON: Final = Peer("Triton", _triton, "nvidia-pytriton==0.7.0")

ALL: Final = (
    HAND_WRITTEN, HAND_WRITTEN_DURABLE, TRITON, PYTRITON, MLSERVER_ALONE, MLSERVER, KSERVE, LITSERVE, BENTOML, RAY,
)  # fmt: skip
