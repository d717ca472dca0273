"""PyTriton around the model. python -m benchmarks.servers.apps.pytriton_app HTTP_PORT GRPC_PORT METRICS_PORT"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

from benchmarks.servers.apps.session import session


def main(http_port: str, grpc_port: str, metrics_port: str) -> None:
    opened = session()

    @batch  # type: ignore[untyped-decorator]
    def infer(x: Any) -> Any:
        return opened.run(None, {"x": x})

    here = "127.0.0.1"
    config = TritonConfig(
        http_port=int(http_port), grpc_port=int(grpc_port), metrics_port=int(metrics_port),
        http_address=here, grpc_address=here, metrics_address=here, log_verbose=0,
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            model_name=os.environ["MODEL_NAME"], infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float32, shape=(32,))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(1,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )  # fmt: skip
        triton.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
