"""Cases for the other doors: records, V1, streams, events, requests come back for, state, taps, and odd headers."""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

from attacks.bodies import INFER, Case, inputs, nodes, odd, packed, torn

_NAMES: Final = (
    "sums", "raw", "words", "nobody", "", ".", "..", "%2e%2e", "%00", "%ff", "a" * 3_000, "sums%2Finfer", "{name}", "sum s",
    "%F0%9F%92%A9", "-1", "null",
)  # fmt: skip
_PATHS: Final = (
    "/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/config", "/v2/models/{}/stats", "/v2/models/{}/versions/{}",
    "/v2/models/{}/versions/{}/infer", "/v2/models/{}/infer", "/v1/models/{}", "/v1/models/{}:predict", "/pipelines/{}",
    "/state/{}/{}", "/state/{}/{}/{}", "/taps/{}/{}?limit={}", "/taps/{}/{}?from={}&limit=1", "/taps/{}/nothing?where={}",
    "/requests/{}", "/{}/{}", "/v2/repository/index", "/v2/repository/models/{}/load", "/openapi.json", "/graph", "/metrics",
    "/v2", "/v2/health/{}", "/{}", "/state/{}/{}?key={}&raw={}", "/v2/models/stats",
)  # fmt: skip
_METHODS: Final = ("GET", "GET", "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
_HEADERS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("X-Deadline-Ms", ("1", "0", "-1", "2000", "9" * 40, "soon", "1e3", "", "1.5")),
    ("X-Row-Errors", ("entry", "request", "maybe", "")),
    ("X-Request-Id", ("mine", "i" * 300, "", "a/b", "é")),
    ("Prefer", ("respond-async", "respond-async, wait=0", "wait=1", "wait=-1", "wait=" + "9" * 30, ";;;,", "a" * 3_000)),
    ("Idempotency-Key", ("a", '"a"', "", "k" * 300, '"', "é")),
    ("Content-Type", ("application/json", "text/html", "application/cloudevents+json", "application/cloudevents-batch+json",
                      "a" * 900, "multipart/form-data; boundary=x", ";", "application/json; charset=utf-16")),
    ("Authorization", ("Bearer x", "Basic eDp5", "Bearer", "")),
    ("Traceparent", ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "00-x", "f" * 2_000)),
    ("Ce-Specversion", ("1.0", "0.3", "")),
    ("Ce-Id", ("1", "")),
    ("Ce-Source", ("/here", "%zz")),
    ("Ce-Type", ("t", "")),
    ("Origin", ("https://evil.example", "null", "http://localhost:1")),
    ("Inference-Header-Content-Length", ("0", "1", "-1", "99999999999999999999")),
    ("Accept", ("text/html", "*/*;q=" + "1" * 500)),
    ("Expect", ("100-continue", "200-ok")),
    ("Range", ("bytes=0-1,2-3",)),
    ("Connection", ("close", "upgrade", "keep-alive, Upgrade, x")),
    ("Upgrade", ("h2c", "websocket")),
)  # fmt: skip


def _record(random: Random) -> dict[str, Any]:
    optional = {
        "n": 7, "at": "2024-05-01T12:00:00Z", "price": "1.50", "tags": ["a"], "half": [1.5],
        "place": {"lat": 1, "tag": "x"}, "blob": "aGk=", "colour": "red", "stranger": 1,
    }  # fmt: skip
    chosen = {name: value for name, value in optional.items() if random.random() < 0.15}
    return {"x": [1, 2, 3], "name": "a", **chosen}


def _value(random: Random) -> tuple[str, Any]:
    """A door and what it takes, when nothing is wrong."""
    rows = [_record(random) for _ in range(random.choice((0, 1, 2, 3)))]
    match random.randrange(7):
        case 0:
            return "/pipelines/sums", _record(random)
        case 1:
            return "/pipelines/sums", rows
        case 2:
            return "/v1/models/sums:predict", {"instances": rows}
        case 3:
            columns = {"x": [[1, 2, 3]], "name": ["a"]}
            return "/v1/models/sums:predict", {"inputs": columns}
        case 4:
            words = [{"word": random.choice(("a", "b"))} for _ in range(random.randrange(4))]
            return "/v2/models/words/generate", {"words": words, "parameters": {}}
        case 5:
            event = {"specversion": "1.0", "id": "1", "source": "/", "type": "t", "data": _record(random)}
            return "/pipelines/sums", event if random.random() < 0.5 else [event, event]
        case _:
            return "/v2/repository/index", {"ready": random.choice((True, False, None, "x"))}


def _headers(random: Random, share: float) -> list[tuple[str, str]]:
    return [(name, random.choice(values)) for name, values in _HEADERS if random.random() < share]


def record_case(random: Random) -> Case:
    """A record, a list or an event, changed, at any door that takes them."""
    path, value = _value(random)
    holder = {"value": value}
    for _ in range(random.choice((0, 1, 1, 2))):
        where, key = random.choice(list(nodes(holder)))
        where[key] = odd(random)
    body = json.dumps(holder.get("value")).encode()
    if random.random() < 0.1:
        body = torn(body, random)
    headers = _headers(random, 0.04)
    if "specversion" in str(value) and random.random() < 0.8:
        kind = "cloudevents-batch" if isinstance(value, list) else "cloudevents"
        headers = [("Content-Type", f"application/{kind}+json")]
    case = Case(path, body, headers)
    return packed(case, random) if random.random() < 0.04 else case


def address_case(random: Random) -> Case:
    """Any address with any name, by any method, with odd headers."""
    path = random.choice(_PATHS)
    while "{}" in path:
        path = path.replace("{}", random.choice(_NAMES), 1)
    method = random.choice(_METHODS)
    body = b"" if method != "POST" or random.random() < 0.3 else json.dumps(inputs(random)).encode()
    return Case(path.replace(" ", "%20"), body, _headers(random, 0.08), method)


def header_case(random: Random) -> Case:
    """A good request with odd headers."""
    return Case(INFER, json.dumps(inputs(random)).encode(), _headers(random, 0.12))
