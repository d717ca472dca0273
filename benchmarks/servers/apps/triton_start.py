"""Triton's own server, out of the wheel of PyTriton but without it: its C++ front end and the python backend.

python -m benchmarks.servers.apps.triton_start FOLDER TYPE DIMS HTTP_PORT GRPC_PORT METRICS_PORT

Its stub of Python needs the interpreter's shared library (libpython3.N.so).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytriton  # type: ignore[import-not-found]

_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [ {{ name: "x" data_type: TYPE_{type} dims: [ {dims} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
"""


def main(folder: str, type_: str, dims: str, http_port: str, grpc_port: str, metrics_port: str) -> None:
    package = Path(pytriton.__file__).parent
    server = package / "tritonserver"
    backends, models = Path(folder) / "backends", Path(folder) / "models"
    name = os.environ["MODEL_NAME"]
    shutil.copytree(server / "backends", backends, dirs_exist_ok=True)
    stub = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(server / "python_backend_stubs" / stub / "triton_python_backend_stub", backends / "python")
    (models / name / "1").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("triton_model.py"), models / name / "1" / "model.py")
    (models / name / "config.pbtxt").write_text(_CONFIG.format(name=name, type=type_, dims=dims))
    libraries = (package.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    os.environ["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = {
        "model-repository": models, "backend-directory": backends, "http-port": http_port,
        "grpc-port": grpc_port, "metrics-port": metrics_port,
        **{f"{door}-address": "127.0.0.1" for door in ("http", "grpc", "metrics")},
    }  # fmt: skip
    binary = str(server / "bin" / "tritonserver")
    os.execv(binary, [binary, *(f"--{k}={v}" for k, v in options.items())])


if __name__ == "__main__":
    main(*sys.argv[1:])
