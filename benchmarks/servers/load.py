"""What a caller is to send, and what must come back: written by a benchmark, read by its client processes."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy.typing as npt

TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class Load:
    """Requests go round the bodies; `expected` is the model's y of each. `rate` 0: a closed loop of `concurrency` callers,
    else so many requests a second on average, at random, over at first `concurrency` connections."""

    address: str
    path: str
    bodies: tuple[bytes, ...]
    expected: tuple[float, ...]
    headers: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"Content-Type": "application/json"})
    )
    concurrency: int = 1
    warm_up_s: float = 1.0
    seconds: float = 3.0
    rate: float = 0.0
    seed: int = 7

    def at(self, address: str, path: str = "") -> Load:
        """The same at another server."""
        return replace(self, address=address, path=path or self.path)

    def requests(self) -> list[bytes]:
        """Each request as it goes over the wire."""
        head = f"POST {self.path} HTTP/1.1\r\nHost: {self.address}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in self.bodies]

    def expected_of(self, number: int) -> float:
        return self.expected[number % len(self.expected)]

    def write(self, path: Path) -> Path:
        bodies = [base64.b64encode(body).decode() for body in self.bodies]
        # Not asdict at once: it cannot copy a mapping proxy.
        plain = {**asdict(replace(self, headers={}, bodies=())), "headers": dict(self.headers)}
        path.write_text(json.dumps({**plain, "bodies": bodies}))
        return path

    @staticmethod
    def read(path: Path) -> Load:
        said = json.loads(path.read_text())
        said["bodies"] = tuple(base64.b64decode(body) for body in said["bodies"])
        said["expected"] = tuple(said["expected"])
        return Load(**said)


def json_body(rows: npt.NDArray[Any], datatype: str = "FP32") -> bytes:
    """A V2 JSON request with one input."""
    data = [round(value, 4) for value in rows.ravel().tolist()]
    given = {"name": "x", "shape": list(rows.shape), "datatype": datatype, "data": data}
    return json.dumps({"inputs": [given]}, separators=(",", ":")).encode()


def binary_body(tensor: Any, datatype: str) -> tuple[bytes, int]:
    """A V2 request with the tensor behind its JSON head, which asks for a binary answer; and the head's length."""
    raw = tensor.tobytes()
    given = {
        "name": "x", "shape": list(tensor.shape), "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    head = json.dumps(
        {"inputs": [given], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        separators=(",", ":"),
    ).encode()
    return head + raw, len(head)


def wrong(answer: bytes, wanted: float) -> str:
    """What is wrong with an HTTP answer in V2, JSON or binary; empty if it says `wanted`."""
    head, _, body = answer.partition(b"\r\n\r\n")
    names = {
        k.strip().lower(): v.strip() for k, _, v in (line.partition(b":") for line in head.split(b"\r\n"))
    }
    if b"content-length" not in names:
        body = _joined(body)
    length = int(names.get(b"inference-header-content-length", len(body)))
    output = next(o for o in json.loads(body[:length])["outputs"] if o["name"] == "y")
    given = output["data"][0] if "data" in output else struct.unpack_from("<f", body, length)[0]
    while isinstance(given, list):
        given = given[0]
    return "" if abs(given - wanted) <= TOLERANCE else f"{given} where the model gives {wanted}"


def window_end(first: float, end: float, answered: Iterable[float]) -> float:
    """Where what is measured from `first` on ends: at `end`, or with the first answer where it takes longer than that."""
    return max(end, min((at for at in answered if at >= first), default=end))


def _joined(chunked: bytes) -> bytes:
    """The body of chunked transfer encoding."""
    parts = []
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        parts.append(rest[:length])
        chunked = rest[length + 2 :] if length else b""
    return b"".join(parts)
