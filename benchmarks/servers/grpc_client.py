"""The caller over gRPC: the same for every server, in a process of its own, one channel, a closed loop.

python -m benchmarks.servers.grpc_client LOAD.json      # `path` is the method, `bodies` are serialised messages

A client in Python is itself slow: compare servers under it, and read its rates as lower bounds.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt

from benchmarks.servers.load import TOLERANCE, Load, window_end
from dataflow.gateway.grpc_proto import Protocol

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def grpc_body(model: str, rows: npt.NDArray[np.float32]) -> bytes:
    """A ModelInferRequest with the rows as raw contents."""
    request = Protocol.load().message("ModelInferRequest")(model_name=model)
    given = request.inputs.add(name="x", datatype="FP32")
    given.shape.extend(rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    return bytes(request.SerializeToString())


def grpc_wrong(answer: bytes, wanted: float) -> str:
    """What is wrong with a ModelInferResponse; empty if it says `wanted`."""
    said = Protocol.load().message("ModelInferResponse").FromString(answer)
    if said.raw_output_contents:
        (given,) = struct.unpack("<f", said.raw_output_contents[0])
    else:
        given = said.outputs[0].contents.fp32_contents[0]
    return "" if abs(given - wanted) <= TOLERANCE else f"{given} where the model gives {wanted}"


async def measure(load: Load) -> dict[str, Any]:
    numbers = count()
    found: list[tuple[float, float, int, bytes]] = []
    async with grpc.aio.insecure_channel(load.address) as channel:
        infer = channel.unary_unary(load.path)
        started = time.perf_counter()
        end = started + load.warm_up_s + load.seconds

        async def caller() -> None:
            since = time.perf_counter()
            while since < end:
                number = next(numbers)
                answer = await infer(load.bodies[number % len(load.bodies)])
                now = time.perf_counter()
                found.append((now, now - since, number, answer))
                since = now

        await asyncio.gather(*(caller() for _ in range(load.concurrency)))
    for _, _, number, answer in found:
        problem = grpc_wrong(answer, load.expected_of(number))
        if problem:
            raise SystemExit(f"answer {number}: {problem}")
    first = started + load.warm_up_s
    end = window_end(first, end, (at for at, *_ in found))
    return {
        "seconds": round(end - first, 4),
        "asked": len(found),
        "latencies_ms": [round(took * 1e3, 4) for at, took, *_ in found if first <= at <= end],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Load.read(Path(sys.argv[1]))))))
