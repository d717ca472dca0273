"""MLServer's model: it has no runtime for ONNX of its own."""

from __future__ import annotations

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from benchmarks.servers.apps.session import session


class OnnxModel(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        self._session = session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (y,) = self._session.run(None, {"x": NumpyCodec.decode_input(payload.inputs[0])})
        return InferenceResponse(
            id=payload.id, model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)]
        )
