"""Half of the baseline of `sync-plain`: V2 infer by hand, one ASGI function over one onnxruntime session.

python -m benchmarks.raw_server MODEL PORT
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn

from benchmarks.projects import session_of

Message = MutableMapping[str, Any]


async def keep_nothing(question: bytes, answer: bytes) -> None:
    """What this server does about durability; `raw_durable` does something."""
    del question, answer


def application(
    model: Path, keep: Callable[[bytes, bytes], Awaitable[None]] = keep_nothing
) -> Callable[..., Awaitable[None]]:
    """`keep` has the floats of the request and of its answer before the caller has them."""
    session = session_of(model)

    async def answer(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        del scope
        asked = orjson.loads((await receive())["body"])
        given = asked["inputs"][0]
        x = np.array(given["data"], dtype=np.float32).reshape(given["shape"])
        (y,) = session.run(["y"], {"x": x})
        await keep(x.tobytes(), y.tobytes())
        output = {"name": "y", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel()}
        body = orjson.dumps(
            {"model_name": "mlp", "id": asked.get("id"), "outputs": [output]},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return answer


def serve(app: Callable[..., Awaitable[None]], port: int) -> None:
    uvicorn.run(
        app, port=port, loop="uvloop", http="httptools", ws="none", lifespan="off",
        access_log=False, log_level="warning", server_header=False, date_header=False,
    )  # fmt: skip


if __name__ == "__main__":
    serve(application(Path(sys.argv[1])), int(sys.argv[2]))
