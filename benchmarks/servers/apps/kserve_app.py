"""KServe's ModelServer around the model. python -m benchmarks.servers.apps.kserve_app HTTP_PORT GRPC_PORT"""

from __future__ import annotations

import os
import sys
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # type: ignore[import-not-found]

from benchmarks.servers.apps.session import session


class OnnxModel(Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(os.environ["MODEL_NAME"])
        self._session = session()
        self.ready = True

    def load(self) -> bool:
        return True

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        del headers, response_headers
        (y,) = self._session.run(None, {"x": payload.inputs[0].as_numpy()})
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=payload.use_binary_outputs)
        return InferResponse(payload.id or "", self.name, [output])


if __name__ == "__main__":
    ModelServer(
        http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), workers=1, access_log_format=None
    ).start([OnnxModel()])
