"""Ray Serve around the model, one replica behind its HTTP proxy. python -m benchmarks.servers.apps.ray_app PORT"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import ray  # type: ignore[import-not-found]
from ray import serve

from benchmarks.servers.apps.session import answer, session, tensor

QUIET = {"log_level": "WARNING", "enable_access_log": False}


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class OnnxModel:
    def __init__(self) -> None:
        self._session = session()

    async def __call__(self, request: Any) -> dict[str, Any]:
        asked = await request.json()
        return answer(asked, self._session.run(None, {"x": tensor(asked)})[0])


def main(port: str) -> None:
    stop = threading.Event()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
             _node_ip_address="127.0.0.1")  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config=QUIET)
    bound = OnnxModel.bind()  # type: ignore[attr-defined]  # the decorator's
    serve.run(bound, route_prefix="/", logging_config=QUIET)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
