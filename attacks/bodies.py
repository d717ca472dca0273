"""Bodies for the doors over HTTP: good ones, and what becomes of them when a stranger changes them. Pure, by seed."""

from __future__ import annotations

import copy
import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

INFER: Final = "/v2/models/sums/infer"
# What is put where something else belongs.
ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, "",
    "0", "null", "\x00", "é", "\u202e", "x" * 5_000, [], [[]], {}, [None], {"a": 1}, [1, "a", None, []], "9" * 400,
)  # fmt: skip
SIZES: Final = (
    -1,
    -(2**63),
    0,
    1,
    2,
    3,
    7,
    2**16,
    2**31,
    2**32,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    10**40,
)
DATATYPES: Final = (
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64", "BF16", "BYTES",
    "fp32", "FP8", "", "STRING",
)  # fmt: skip
WIDTHS: Final = {"UINT8": 1, "FP16": 2, "BF16": 2, "FP32": 4, "INT64": 8, "FP64": 8, "BOOL": 1, "INT32": 4}
PARAMETERS: Final = (
    "binary_data_size", "null_rows", "row_shapes", "content_type", "classification", "shared_memory_region", "timeout",
    "priority", "row_errors", "binary_data_output", "binary_data", "sequence_id",
)  # fmt: skip


@dataclass
class Case:
    """One request: where to, with which headers and body."""

    path: str
    body: bytes
    headers: list[tuple[str, str]] = field(default_factory=list)
    method: str = "POST"


def inputs(random: Random) -> dict[str, Any]:
    """A good V2 request, with some of the inputs that need not be there."""
    rows = random.choice((1, 1, 1, 2, 5))
    every: list[dict[str, Any]] = [
        {"name": "x", "datatype": "FP32", "shape": [rows, 3], "data": [float(i) for i in range(3 * rows)]},
        {"name": "name", "datatype": "BYTES", "shape": [rows], "data": ["a"] * rows},
    ]
    optional: list[dict[str, Any]] = [
        {"name": "n", "datatype": "INT64", "data": [7] * rows},
        {"name": "small", "datatype": "UINT8", "data": [255] * rows},
        {"name": "at", "datatype": "BYTES", "data": ["2024-05-01T12:00:00Z"] * rows},
        {"name": "day", "datatype": "BYTES", "data": ["2024-05-01"] * rows},
        {"name": "price", "datatype": "BYTES", "data": ["12.50"] * rows},
        {"name": "colour", "datatype": "BYTES", "data": ["red"] * rows},
        {"name": "blob", "datatype": "BYTES", "data": ["aGk="] * rows, "parameters": {"content_type": "base64"}},
        {"name": "tags", "datatype": "BYTES", "data": ['["a"]'] * rows},
        {"name": "place", "datatype": "BYTES", "data": ['{"lat":1.5,"tag":"x"}'] * rows},
    ]  # fmt: skip
    for entry in random.sample(optional, random.randrange(4)):
        every.append({"shape": [rows], **entry})
    made: dict[str, Any] = {"inputs": every}
    if random.random() < 0.3:
        names = random.sample(("x", "name", "n", "half", "place"), 2)
        made["outputs"] = [{"name": n, "parameters": {"binary_data": random.random() < 0.5}} for n in names]
    else:
        made["parameters"] = {"binary_data_output": True}  # FP16 has no JSON form
    return made


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: its container and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from nodes(item)


def odd(random: Random) -> Any:
    """A value that belongs nowhere; the caller's to change."""
    return copy.deepcopy(random.choice(ODD))


def _odd(document: dict[str, Any], random: Random) -> None:
    holder, key = random.choice(list(nodes(document)))
    holder[key] = odd(random)


def _gone(document: dict[str, Any], random: Random) -> None:
    holder, key = random.choice(list(nodes(document)))
    del holder[key]


def _twice(document: dict[str, Any], random: Random) -> None:
    name = random.choice(("inputs", "outputs"))
    entries = document.get(name)
    if isinstance(entries, list) and entries:
        entries.append(copy.deepcopy(random.choice(entries)))
    elif name == "outputs":
        document[name] = [{"name": "x"}, {"name": "x"}]


def _entry(document: dict[str, Any], random: Random) -> dict[str, Any]:
    entries = document.get("inputs")
    found = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    return random.choice(found) if found else {}


def _shape(document: dict[str, Any], random: Random) -> None:
    _entry(document, random)["shape"] = [
        random.choice(SIZES) for _ in range(random.choice((0, 1, 2, 2, 3, 33)))
    ]


def _datatype(document: dict[str, Any], random: Random) -> None:
    _entry(document, random)["datatype"] = random.choice(DATATYPES)


def _parameter(document: dict[str, Any], random: Random) -> None:
    owner = random.choice((document, _entry(document, random)))
    parameters = owner.setdefault("parameters", {})
    if isinstance(parameters, dict):
        texts = ("0,1", "[[1],[2]]", "[[-1]]", "[[99999999999999]]", "base64", "entry")
        value = odd(random) if random.random() < 0.6 else random.choice(texts)
        parameters[random.choice(PARAMETERS)] = value


def _deep(document: dict[str, Any], random: Random) -> None:
    value: Any = random.choice((1, "a", None))
    for _ in range(random.choice((3, 40, 200))):
        value = [value] if random.random() < 0.8 else {"a": value}
    holder, key = random.choice(list(nodes(document)))
    holder[key] = value


_CHANGES: Final[tuple[Callable[[dict[str, Any], Random], None], ...]] = (
    _odd, _odd, _odd, _gone, _twice, _shape, _datatype, _parameter, _deep,
)  # fmt: skip


def changed(random: Random) -> dict[str, Any]:
    """A V2 request that is changed up to three times; one in ten stays good."""
    document = inputs(random)
    for _ in range(random.choice((0, 1, 1, 1, 1, 2, 2, 2, 3, 3))):
        if list(nodes(document)):
            random.choice(_CHANGES)(document, random)
    return document


def torn(text: bytes, random: Random) -> bytes:
    """Text that is no JSON any more, or just so."""
    at = random.randrange(len(text) + 1)
    match random.randrange(9):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + random.randbytes(random.randrange(1, 5)) + text[at:]
        case 2:
            return text[:at] + b"\xff\xfe" + text[at:]
        case 3:
            return text.decode("utf-8").encode("utf-16")
        case 4:
            return b"\xef\xbb\xbf" + text
        case 5:
            return b'{"inputs":' + b"[" * 2_000 + b"]" * 2_000 + b"}"
        case 6:
            return text.replace(b"1.0", random.choice((b"NaN", b"1e999", b"-Infinity", b"0x1", b"1" * 5_000)))
        case 7:
            return text[:-1] + b',"inputs":[]' + text[-1:]
        case _:
            return text[:at] + text[at + random.randrange(1, 6) :]


def json_case(random: Random) -> Case:
    body = json.dumps(changed(random)).encode()
    if random.random() < 0.2:
        body = torn(body, random)
    case = Case(random.choice((INFER, INFER, INFER, "/v2/pipelines/sums/infer")), body)
    return packed(case, random) if random.random() < 0.06 else case


def packed(case: Case, random: Random) -> Case:
    """The body compressed, or said to be."""
    body = gzip.compress(case.body, 1) if random.random() < 0.5 else zlib.compress(case.body)
    kind = random.choice(("gzip", "deflate", "br", "identity", "gzip, gzip", "GZIP", ""))
    match random.randrange(4):
        case 0:
            body = body[: random.randrange(len(body))]
        case 1:
            body += random.choice((b"\x00", body, b"junk"))
        case _:
            pass
    return Case(case.path, body, [*case.headers, ("Content-Encoding", kind)])


def binary_case(random: Random) -> Case:
    """Binary tensors of which sizes, lengths and elements may be wrong."""
    rows = random.choice((1, 1, 2, 4))
    names = b"".join(
        struct.pack("<I", random.choice((1, 1, 1, 0, 2**32 - 1, 2**31))) + b"a" for _ in range(rows)
    )
    datatype = random.choice(("FP32", "FP32", "FP32", *WIDTHS))
    blobs = [random.randbytes(WIDTHS[datatype] * 3 * rows), names]
    shapes: list[Any] = [[rows, 3], [rows]]
    if random.random() < 0.3:
        index = random.randrange(2)
        shapes[index] = [random.choice(SIZES) for _ in range(random.choice((1, 2, 2, 3)))]
    sizes: list[Any] = [len(blob) for blob in blobs]
    if random.random() < 0.3:
        sizes[random.randrange(2)] += random.choice((-1, 1, 4, 2**31, 2**63, -(2**40)))
    document: dict[str, Any] = {
        "inputs": [
            {"name": "x", "datatype": datatype, "shape": shapes[0], "parameters": {"binary_data_size": sizes[0]}},
            {"name": "name", "datatype": "BYTES", "shape": shapes[1], "parameters": {"binary_data_size": sizes[1]}},
        ],
        "parameters": {"binary_data_output": random.random() < 0.9},
    }  # fmt: skip
    if random.random() < 0.2:
        random.choice(_CHANGES)(document, random)
    text = json.dumps(document).encode()
    if random.random() < 0.1:
        text = torn(text, random)
    body = text + b"".join(blobs)
    length: Any = len(text)
    if random.random() < 0.2:
        length = random.choice(
            (
                0,
                1,
                -1,
                length + 1,
                length - 1,
                len(body),
                len(body) + 1,
                2**31,
                2**64,
                "9" * 30,
                "x",
                "1 ",
                "+1",
                "0x10",
                "",
            )
        )
    if random.random() < 0.1:
        body = body[: random.randrange(len(body))]
    headers = [("Inference-Header-Content-Length", str(length))]
    if random.random() < 0.5:
        headers.append(("Content-Type", "application/octet-stream"))
    path = INFER if random.random() < 0.95 else "/v2/models/raw/infer"
    case = Case(path, body, headers)
    return packed(case, random) if random.random() < 0.05 else case
