"""The ceiling of the load generator: a server that gives everybody the same V2 answer and reads nothing but lengths.

python -m benchmarks.servers.trivial PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

Y = 0.5
_BODY = json.dumps({"outputs": [{"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [Y]}]}).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY


class Trivial(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            head = data.index(b"\r\n\r\n")
            at = data.lower().index(b"\r\ncontent-length:") + 17
            self._missing = head + 4 + int(data[at : data.index(b"\r", at)])
        self._missing -= len(data)
        if self._missing <= 0:
            self._missing = 0
            self._transport.write(_ANSWER)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
