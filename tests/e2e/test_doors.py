"""What the HTTP doors of a running `dataflow up` promise: statuses, taps, metrics, descriptions."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import wait_for

pytestmark = pytest.mark.broker

AT = "2024-05-01T12:00:00Z"


def reading(celsius: object, sensor: str = "s1", **more: object) -> dict[str, object]:
    return {"sensor": sensor, "celsius": celsius, "at": AT, **more}


def column(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


def batch(*celsius: float) -> dict[str, Any]:
    rows = len(celsius)
    return {
        "inputs": [
            column("sensor", "BYTES", [f"s{i}" for i in range(rows)]),
            column("celsius", "FP64", list(celsius)),
            column("at", "INT64", list(range(rows))),
        ]
    }


def test_health_metadata_and_readiness(door: httpx.Client) -> None:
    assert door.get("/v2/health/live").status_code == 200
    assert door.get("/v2/health/ready").status_code == 200
    for server in (door.get("/v2").json(), door.get("/v2/").json()):
        assert set(server) == {"name", "version", "extensions"}
    for name in ("sort", "iris", "images", "waits", "shown"):
        described = door.get(f"/v2/models/{name}").json()
        version = described["versions"][-1]
        assert described["name"] == name
        assert described["outputs"]
        assert door.get(f"/v2/models/{name}/versions/{version}").json() == described
        assert door.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
    inputs = {i["name"]: i for i in door.get("/v2/models/images").json()["inputs"]}
    assert inputs["image"] == {"name": "image", "datatype": "UINT8", "shape": [-1, 2, 3]}
    assert inputs["signal"] == {"name": "signal", "datatype": "FP32", "shape": [-1, -1]}


def test_a_batch_is_answered_in_order_with_nulls(door: httpx.Client) -> None:
    celsius = [float((i * 37) % 90) + 0.5 for i in range(300)]
    asked = batch(*celsius) | {"id": "mine"}
    asked["inputs"].append(column("note", "BYTES", [f"n{i}" if i % 3 else None for i in range(300)]))
    answer = door.post("/v2/models/sort/infer", json=asked)
    assert answer.status_code == 200, answer.text
    outputs = {o["name"]: o for o in answer.json()["outputs"]}
    assert answer.json()["id"] == "mine"
    assert outputs["fahrenheit"]["data"] == [c * 9 / 5 + 32 for c in celsius]
    assert outputs["sensor"]["data"] == [f"s{i}" for i in range(300)]
    assert outputs["note"]["parameters"]["null_rows"] == ",".join(str(i) for i in range(0, 300, 3))
    assert outputs["note"]["data"][:4] == ["", "n1", "n2", ""]


WRONG: list[tuple[str, dict[str, Any] | str, list[str]]] = [
    ("sort", "{", ["JSON"]),
    ("sort", {"inputs": []}, ["sensor"]),
    ("sort", {"inputs": [column("sensor", "INT32", [1])]}, ["sensor", "INT32", "BYTES", "[-1]"]),
    ("sort", {"inputs": batch(1.0)["inputs"][:2]}, ["'at'", "INT64", "[-1]"]),
    ("sort", {"inputs": [*batch(1.0)["inputs"], column("nott", "BYTES", ["x"])]}, ["nott", "note"]),
    ("sort", {"inputs": [*batch(1.0)["inputs"], column("at", "INT64", [1])]}, ["'at'", "twice"]),
    ("sort", {"inputs": [column("sensor", "BYTES", ["a", "b"]), *batch(1.0)["inputs"][1:]]}, ["rows"]),
    ("sort", {"inputs": batch(1.0)["inputs"], "outputs": [{"name": "kelvin"}]}, ["kelvin", "fahrenheit"]),
    (
        "sort",
        {"inputs": [{"name": "sensor", "shape": [-1], "datatype": "BYTES", "data": ["a"]}]},
        ["sensor", "-1"],
    ),
    (
        "images",
        {
            "inputs": [{"name": "image", "shape": [1, 3, 2], "datatype": "UINT8", "data": [1] * 6}],
            "outputs": [{"name": "peak"}],
        },
        ["image", "UINT8", "[-1,2,3]"],
    ),
    (
        "images",
        {
            "inputs": [{"name": "image", "shape": [1, 2, 3], "datatype": "UINT8", "data": [1] * 5}],
            "outputs": [{"name": "peak"}],
        },
        ["image", "5", "6"],
    ),
    (
        "images",
        {
            "inputs": [{"name": "image", "shape": [1, 2, 3], "datatype": "UINT8", "data": [256] * 6}],
            "outputs": [{"name": "peak"}],
        },
        ["image", "256", "uint8"],
    ),
]


@pytest.mark.parametrize(("pipeline", "body", "told"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(
    door: httpx.Client, pipeline: str, body: dict[str, Any] | str, told: list[str]
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = door.post(f"/v2/models/{pipeline}/infer", content=content)
    message = answer.json()["error"]
    assert answer.status_code == 400
    for part in told:
        assert part.replace(" ", "") in message.replace(" ", ""), message


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (reading("warm"), ["celsius", "warm", "float64"]),
        ({"sensor": "a", "at": AT}, ["celsius", "float64"]),
        (reading(1, cesius=2), ["cesius", "celsius"]),
        (reading(1) | {"at": "yesterday"}, ["at", "yesterday", "timestamp"]),
        (reading(1) | {"sensor": None}, ["sensor", "null"]),
        ("text", ["object"]),
    ],
)
def test_a_wrong_record_is_told_what_is_wrong(door: httpx.Client, record: object, told: list[str]) -> None:
    answer = door.post("/pipelines/sort", json=record)
    assert answer.status_code == 400
    for part in told:
        assert part in answer.json()["error"], answer.text


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("/v2/models/srot", "sort"),
        ("/v2/models/srot/infer", "sort"),
        ("/pipelines/imags", "images"),
        ("/taps/srot/score", "sort"),
        ("/taps/sort/scoer", "score"),
        ("/v2/models/sort/versions/7", "version"),
        ("/nowhere", "/openapi.json"),
    ],
)
def test_what_is_not_there_is_404_with_near_names(door: httpx.Client, path: str, near: str) -> None:
    post = path.endswith("/infer") or path.startswith("/pipelines/")
    answer = door.post(path, json={}) if post else door.get(path)
    assert answer.status_code == 404
    assert near in answer.json()["error"]


def test_wrong_methods_and_too_large_bodies(door: httpx.Client) -> None:
    for path in ("/v2/models/sort/infer", "/pipelines/sort"):
        refused = door.get(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert door.post("/v2/models/sort").status_code == 405
    large = door.post("/pipelines/sort", json=reading(1, note="x" * 2_000_000))
    assert large.status_code == 413, large.text
    assert "1000000" in re.sub(r"[ ,_]", "", large.json()["error"])


def test_a_dropped_record_is_422_with_the_reason(door: httpx.Client) -> None:
    answer = door.post("/pipelines/sort", json=reading(-70))
    assert answer.status_code == 422
    assert "broken sensor" in answer.json()["error"]
    of_batch = door.post("/v2/models/sort/infer", json=batch(1, -70, 2))
    assert of_batch.status_code == 422
    assert of_batch.json()["row"] == 1


def test_a_failed_row_is_500_at_once_with_id_node_and_row(door: httpx.Client) -> None:
    answer = door.post("/v2/models/sort/infer", json=batch(1, 2, 13, 4))
    told = answer.json()
    assert answer.status_code == 500
    assert (told["node"], told["row"]) == ("score", 2)
    assert "unlucky" in told["error"]
    listed = door.post("/pipelines/sort", json=[reading(1), reading(13), reading(-80)])
    good, failed, dropped = listed.json()
    assert listed.status_code == 200
    assert good["fahrenheit"] == 33.8
    assert (failed["status"], dropped["status"]) == (500, 422)
    assert failed["id"] != dropped["id"]


def test_504_at_the_deadline_and_the_next_is_served(door: httpx.Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    late = door.post(
        "/pipelines/waits", json={"name": "a", "gate": str(gate)}, headers={"x-deadline-ms": "200"}
    )
    assert late.status_code == 504
    assert late.json()["id"]
    gate.touch()
    served = door.post("/pipelines/waits", json={"name": "b", "gate": str(gate)})
    assert served.json() == {"done": True, "name": "b"}
    for wrong in ("soon", "0", "-1"):
        refused = door.post("/pipelines/shown", json={"x": 1}, headers={"x-deadline-ms": wrong})
        assert refused.status_code == 400
        assert "x-deadline-ms" in refused.json()["error"]


def test_two_hundred_at_once_each_get_their_own_answer(url: str, tmp_path: Path) -> None:
    kinds = ("good", "dropped", "failed", "wrong", "late")
    celsius = {"good": 20.0, "dropped": -99.0, "failed": 13.0, "wrong": "hot"}
    statuses = {"good": 200, "dropped": 422, "failed": 500, "wrong": 400, "late": 504}

    async def ask(client: httpx.AsyncClient, number: int, kind: str) -> tuple[str, int, dict[str, Any]]:
        if kind == "late":
            record = {"name": f"s{number}", "gate": str(tmp_path / "late")}
            answer = await client.post("/pipelines/waits", json=record, headers={"x-deadline-ms": "1500"})
        else:
            answer = await client.post("/pipelines/sort", json=reading(celsius[kind], f"s{number}"))
        return kind, answer.status_code, answer.json() | {"asked": f"s{number}"}

    async def all_of_them() -> list[tuple[str, int, dict[str, Any]]]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(ask(client, i, kinds[i % 5]) for i in range(200)))

    answers = asyncio.run(all_of_them())
    (tmp_path / "late").touch()
    assert Counter((kind, status) for kind, status, _ in answers) == dict.fromkeys(statuses.items(), 40)
    assert all(told["sensor"] == told["asked"] for kind, _, told in answers if kind == "good")
    ids = [told["id"] for _, _, told in answers if "id" in told]
    assert len(set(ids)) == len(ids) == 120


def events(client: httpx.Client, path: str, **query: object) -> Iterator[dict[str, Any]]:
    """The records of a tap, as they come."""
    parameters = {name: str(value) for name, value in query.items()}
    with client.stream("GET", path, params=parameters) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_taps_from_the_start_by_id_and_by_expression(door: httpx.Client) -> None:
    asked = [door.post("/pipelines/sort", json=reading(c, "tap", note=f"tap{c}")) for c in (70, 71)]
    ids = [answer.headers["df-id"] for answer in asked]
    score = "/taps/sort/score"
    where = {"from": "earliest", "where": "note like 'tap7%'", "limit": 2}
    found = list(events(door, score, **where))
    assert [record["id"] for record in found] == ids
    (one,) = events(door, "/taps/sort/triage.hot", **{"from": "earliest", "id": ids[1], "limit": 1})
    assert one["value"] == {"fahrenheit": 71 * 9 / 5 + 32, "sensor": "***", "celsius": 71, "note": "tap71"}
    assert one["key"] == "***"
    (input_too,) = events(door, "/taps/sort/reading", **{"from": "earliest", "id": ids[0], "limit": 1})
    assert input_too["value"]["celsius"] == 70


def test_a_live_tap_shows_what_comes_after_it(door: httpx.Client, url: str) -> None:
    door.post("/pipelines/shown", json={"x": 1.0})
    with httpx.Client(base_url=url, timeout=60) as other:
        with other.stream("GET", "/taps/shown/times?from=latest") as tap:
            lines = tap.iter_lines()
            assert next(lines).startswith(":")  # it listens from here on
            door.post("/pipelines/shown", json={"x": 1234.0})
            data = next(line for line in lines if line.startswith("data: "))
    assert json.loads(data.removeprefix("data: "))["value"] == {"y": 2468.0}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"where": "celsus > 3"}, "celsius"),
        ({"where": "celsius >"}, "where"),
        ({"from": "yesterday"}, "earliest"),
        ({"limit": "many"}, "limit"),
        ({"frm": "earliest"}, "from"),
    ],
)
def test_a_wrong_tap_is_told_what_is_wrong(door: httpx.Client, query: dict[str, str], told: str) -> None:
    answer = door.get("/taps/sort/score", params=query)
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def samples(door: httpx.Client) -> dict[tuple[str, ...], float]:
    """Value of each sample under (name, label values in the order of label names)."""
    found = {}
    for family in text_string_to_metric_families(door.get("/metrics").text):
        for sample in family.samples:
            labels = [f"{name}={sample.labels[name]}" for name in sorted(sample.labels)]
            found[sample.name, *labels] = sample.value
    return found


def test_metrics_count_what_was_done(door: httpx.Client) -> None:
    def counts() -> dict[str, float]:
        now = samples(door)
        node = ("kind=transform.python", "node=score", "pipeline=sort")
        return {
            "records": now["dataflow_node_records_total", *node],
            "failed": sum(
                v for k, v in now.items() if k[0] == "dataflow_node_failed_total" and "node=score" in k
            ),
            "dropped": sum(
                v
                for k, v in now.items()
                if k[0] == "dataflow_node_dropped_total" and "reason=broken sensor" in k
            ),
            "edge": now["dataflow_edge_records_total", "edge=score", "pipeline=sort"],
        }

    before = counts()
    assert door.post("/v2/models/sort/infer", json=batch(1, 2, 3)).status_code == 200
    assert door.post("/pipelines/sort", json=reading(13)).status_code == 500
    assert door.post("/pipelines/sort", json=reading(-70)).status_code == 422
    after = counts()
    assert {n: after[n] - before[n] for n in after} == {"records": 4, "failed": 1, "dropped": 1, "edge": 3}


def test_openapi_describes_every_door(door: httpx.Client) -> None:
    document = door.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {"/v2/models/{name}/infer", "/pipelines/{name}", "/metrics", "/graph"} <= set(document["paths"])
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in {"get", "post"}
    ]
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(set(names)) == len(names)
    for path, _, operation in operations:
        declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), path
        assert operation["responses"], path
    for reference in re.findall(r'"\$ref":"#/([^"]+)"', door.get("/openapi.json").text):
        place = document
        for part in reference.split("/"):
            place = place[part]


def test_the_graph_has_rates_and_lag(door: httpx.Client) -> None:
    def busy() -> dict[str, Any] | None:
        door.post("/v2/models/sort/infer", json=batch(*range(20, 40)))
        graph = {p["name"]: p for p in door.get("/graph").json()["pipelines"]}["sort"]
        return graph if graph["stages"][0]["rate"] > 0 else None

    graph = wait_for(busy, "a rate in /graph")
    assert isinstance(graph, dict)
    assert [node["name"] for node in graph["nodes"]] == ["sane", "score", "triage"]
    assert graph["stages"][0]["lag"] >= 0
    edges = {edge["name"]: edge for edge in graph["edges"]}
    assert set(edges) == {"reading", "sane", "score", "triage.hot", "triage.normal"}
    assert edges["score"]["records"] > 0
