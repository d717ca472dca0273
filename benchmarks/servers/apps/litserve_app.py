"""LitServe around the model. python -m benchmarks.servers.apps.litserve_app PORT"""

# No postponed annotations: LitServe reads that of `request`.
import sys
from typing import Any

import litserve  # type: ignore[import-not-found]
from starlette.requests import Request  # type: ignore[import-not-found]

from benchmarks.servers.apps.session import answer, session, tensor


class OnnxModel(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        del device
        self._session = session()

    def decode_request(self, request: Request) -> Any:
        return tensor(request)

    def predict(self, x: Any) -> Any:
        return self._session.run(None, {"x": x})[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return answer({}, output)


if __name__ == "__main__":
    litserve.LitServer(OnnxModel(), accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
