"""The gRPC door: messages changed field by field and byte by byte, odd metadata, streams, methods nobody knows."""

from __future__ import annotations

import asyncio
import struct
from random import Random
from typing import Any, Final

import grpc

from attacks.bodies import DATATYPES, PARAMETERS
from attacks.verdict import HUNG, Tally
from attacks.wire import BOUND_S
from dataflow.gateway.grpc_proto import SERVICE, STREAM, UNARY, Protocol

FAMILY: Final = "grpc"
_SIZES: Final = (-1, -(2**63), 0, 1, 2, 3, 2**16, 2**31, 2**32, 2**62, 2**63 - 1)
_NAMES: Final = ("x", "name", "n", "blob", "nobody", "", "é", "x" * 3_000)
_METADATA: Final[tuple[tuple[str, tuple[str | bytes, ...]], ...]] = (
    ("x-deadline-ms", ("1", "0", "-1", "9" * 40, "soon")),
    ("x-row-errors", ("entry", "maybe")),
    ("x-request-id", ("mine", "i" * 300)),
    ("traceparent", ("00-x",)),
    ("content-encoding", ("gzip",)),
    ("authorization", ("Bearer x",)),
    ("odd-bin", (b"\x00\xff",)),
)
_OTHERS: Final = (
    "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Nobody", "/nobody.Nothing/Call", f"/{SERVICE}/Nobody",
    f"/{SERVICE}/RepositoryModelLoad", *(f"/grpc.reflection.{v}.ServerReflection/ServerReflectionInfo" for v in ("v1", "v1alpha")),
)  # fmt: skip


def _good(random: Random) -> Any:
    rows = random.choice((1, 1, 2, 5))
    message = Protocol.load().message("ModelInferRequest")(model_name="sums")
    x = message.inputs.add(name="x", datatype="FP32", shape=[rows, 3])
    name = message.inputs.add(name="name", datatype="BYTES", shape=[rows])
    if random.random() < 0.5:
        message.raw_input_contents.append(struct.pack(f"<{3 * rows}f", *range(3 * rows)))
        message.raw_input_contents.append(b"\x01\0\0\0a" * rows)
    else:
        x.contents.fp32_contents.extend(float(i) for i in range(3 * rows))
        name.contents.bytes_contents.extend([b"a"] * rows)
    if random.random() < 0.8:
        message.parameters["binary_data_output"].bool_param = True
    return message


def _change(message: Any, random: Random) -> None:
    entry = random.choice(message.inputs) if message.inputs else message.inputs.add()
    match random.randrange(10):
        case 0:
            del entry.shape[:]
            entry.shape.extend(random.choice(_SIZES) for _ in range(random.choice((0, 1, 2, 3, 33))))
        case 1:
            entry.datatype = random.choice(DATATYPES)
        case 2:
            entry.name = random.choice(_NAMES)
        case 3:
            owner = random.choice((message, entry))
            value = owner.parameters[random.choice(PARAMETERS)]
            random.choice((
                lambda: setattr(value, "int64_param", random.choice(_SIZES)),
                lambda: setattr(value, "string_param", random.choice(("", "0", "[[1]]", "entry", "x" * 3_000))),
                lambda: setattr(value, "bool_param", True),
                lambda: setattr(value, "double_param", float("nan")),
            ))()  # fmt: skip
        case 4:
            message.inputs.add().CopyFrom(entry)
        case 5:
            message.raw_input_contents.append(random.randbytes(random.randrange(20)))
        case 6:
            if message.raw_input_contents:
                message.raw_input_contents[-1] = (
                    struct.pack("<I", random.choice((0, 1, 2**31, 2**32 - 1))) + b"a"
                )
        case 7:
            message.model_name = random.choice(("words", "raw", "nobody", "", "x" * 3_000))
        case 8:
            for name in random.choices(_NAMES, k=random.choice((1, 2))):
                message.outputs.add(name=name)
        case _:
            entry.contents.int64_contents.append(random.choice(_SIZES))


def message_case(random: Random) -> bytes:
    message = _good(random)
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        _change(message, random)
    body = bytearray(message.SerializeToString())
    if random.random() < 0.3:
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(body) + 1)
            body[at : at + random.randrange(3)] = random.randbytes(random.randrange(4))
    return bytes(body)


def _metadata(random: Random) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((name, random.choice(values)) for name, values in _METADATA if random.random() < 0.04)


class Callers:
    """Many calls at once over a few channels."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._tally = tally
        self._channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=(("attack", n),)) for n in range(4)
        ]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def good(self, family: str) -> None:
        """A call with which nothing is wrong."""
        sent = _good(Random(0)).SerializeToString()
        try:
            await self._channels[0].unary_unary(f"/{SERVICE}/ModelInfer")(sent, timeout=BOUND_S)
        except grpc.aio.AioRpcError as error:
            self._tally.wrong(family, error.code().name, "a good call", str(error.details()))
        else:
            self._tally.note(family, "OK", "a good call")

    async def case(self, random: Random, name: str) -> None:
        """One call or stream of a kind that chance decides."""
        channel = random.choice(self._channels)
        metadata, kind = _metadata(random), random.random()
        body = message_case(random)
        try:
            async with asyncio.timeout(BOUND_S):
                if kind < 0.06:
                    bodies = [message_case(random) for _ in range(random.randrange(5))]
                    status = await _streamed(channel, bodies, metadata)
                else:
                    method = f"/{SERVICE}/ModelInfer"
                    if kind < 0.2:
                        method = random.choice((*(f"/{SERVICE}/{n}" for n in UNARY), *_OTHERS))
                        body = random.randbytes(random.randrange(30)) if random.random() < 0.7 else body
                    compression = grpc.Compression.Gzip if random.random() < 0.05 else None
                    await channel.unary_unary(method)(body, metadata=metadata, compression=compression)
                    status = "OK"
        except grpc.aio.AioRpcError as error:
            self._tally.note(FAMILY, error.code().name, (name, body), error.details())
        except TimeoutError:
            self._tally.note(FAMILY, HUNG, (name, body))
        else:
            self._tally.note(FAMILY, status, (name, body))


async def _streamed(channel: Any, bodies: list[bytes], metadata: Any) -> str:
    answers = [
        a async for a in channel.stream_stream(f"/{SERVICE}/{STREAM}")(iter(bodies), metadata=metadata)
    ]
    return "OK" if len(answers) == len(bodies) else "INTERNAL"
