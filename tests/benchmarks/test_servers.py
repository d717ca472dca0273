"""The comparison with other servers: its parts, and those benchmarks that need no other server installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.cluster import Cluster, started
from benchmarks.page import PAGE, page
from benchmarks.projects import inputs, session_of, write_model
from benchmarks.report import RESULTS, BenchmarkError, Outcome, Result, save
from benchmarks.servers import open_loop, tensors
from benchmarks.servers.catalogue import ALL, HAND_WRITTEN, HAND_WRITTEN_DURABLE, V2, Model, Peer
from benchmarks.servers.duel import Duels, Goal, Length, ceiling, outcome, ratios, result_of
from benchmarks.servers.grpc_client import grpc_body, grpc_wrong
from benchmarks.servers.load import Load, binary_body, json_body, window_end, wrong
from benchmarks.servers.running import HTTP_CLIENT, Server, await_answer, call, start_peer
from benchmarks.servers.sync import ask_http
from dataflow.gateway.grpc_proto import Protocol

LOAD = Load("127.0.0.1:1", "/", (b"{}", b"[]"), (0.5,))
QUICK = Length(1, 0.1, 0.05)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Cluster]:
    """Processes without a broker."""
    with ExitStack() as stack:
        yield Cluster("127.0.0.1:1", tmp_path, stack)


def answer(body: bytes, *heads: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 200 OK", *heads, "", "")).encode() + body


def test_a_load_survives_its_file(tmp_path: Path) -> None:
    assert Load.read(LOAD.write(tmp_path / "load.json")) == LOAD


def test_requests_have_their_lengths() -> None:
    request = Load("host:1", "/x", (b"abc",), (0.0,), {"A": "b"}).requests()[0]
    assert request == b"POST /x HTTP/1.1\r\nHost: host:1\r\nA: b\r\nContent-Length: 3\r\n\r\nabc"


def test_a_slow_server_has_at_least_one_answer_that_counts() -> None:
    assert window_end(1.0, 2.0, [0.5, 1.5, 2.5]) == 2.0
    assert window_end(1.0, 2.0, [0.5, 4.0, 3.0]) == 3.0
    assert window_end(1.0, 2.0, [0.5]) == 2.0


@pytest.mark.parametrize("data", [[0.25], [[0.25]]])
def test_answers_are_checked(data: list[Any]) -> None:
    body = json.dumps({"outputs": [{"name": "z", "data": [9]}, {"name": "y", "data": data}]}).encode()
    whole = answer(body, f"Content-Length: {len(body)}")
    assert not wrong(whole, 0.25)
    assert wrong(whole, 0.26) == "0.25 where the model gives 0.26"
    chunked = b"%x\r\n%s\r\n%x;e=1\r\n%s\r\n0\r\n\r\n" % (3, body[:3], len(body) - 3, body[3:])
    assert not wrong(answer(chunked, "transfer-encoding: chunked"), 0.25)


def test_binary_answers_are_checked() -> None:
    head = json.dumps({"outputs": [{"name": "y", "parameters": {"binary_data_size": 4}}]}).encode()
    body = head + np.float32(0.25).tobytes()
    whole = answer(body, f"content-length: {len(body)}", f"inference-header-content-length: {len(head)}")
    assert not wrong(whole, 0.25)
    assert wrong(whole, 0.5)


def test_bodies_say_what_they_hold() -> None:
    tensor = np.arange(6, dtype=np.uint8).reshape(1, 6)
    body, head = binary_body(tensor, "UINT8")
    assert json.loads(body[:head])["inputs"][0]["shape"] == [1, 6]
    assert body[head:] == bytes(range(6))
    given = json.loads(json_body(tensor, "UINT8"))["inputs"][0]
    assert (given["datatype"], given["data"]) == ("UINT8", list(range(6)))
    asked = (
        Protocol.load().message("ModelInferRequest").FromString(grpc_body("m", np.ones((1, 2), np.float32)))
    )
    assert (asked.model_name, list(asked.inputs[0].shape)) == ("m", [1, 2])


def test_answers_over_grpc_are_checked_raw_and_typed() -> None:
    raw = Protocol.load().message("ModelInferResponse")(raw_output_contents=[np.float32(0.25).tobytes()])
    typed = Protocol.load().message("ModelInferResponse")()
    typed.outputs.add(name="y").contents.fp32_contents.append(0.25)
    for message in (raw, typed):
        assert not grpc_wrong(message.SerializeToString(), 0.25)
        assert grpc_wrong(message.SerializeToString(), 0.5)


def test_the_image_is_150_kb_and_its_model_reads_all_of_it(tmp_path: Path) -> None:
    model = Model("image", tensors.write_image_model(tmp_path / "model.onnx"), "UINT8", tensors.SHAPE)
    binary, text = tensors.image_loads(model)
    assert len(set(binary.expected)) == tensors.IMAGES
    assert binary.expected == text.expected
    assert all(150_000 < len(body) < 151_000 for body in binary.bodies)


@pytest.mark.slow
def test_the_client_has_a_ceiling_in_a_closed_and_an_open_loop(alone: Cluster) -> None:
    found = ceiling(alone, LOAD, QUICK, (4,))["at 4"]
    assert found["requests"]
    assert found["asked"] >= found["requests"]
    port = _trivial(alone)
    given = QUICK.lasting(Load(f"127.0.0.1:{port}", "/", LOAD.bodies, LOAD.expected, rate=500.0), 2)
    measured = call(alone, HTTP_CLIENT, given)
    assert measured["statuses"] == {"200": measured["asked"]}
    assert (measured["unanswered"], measured["in_time"]) == (0, measured["asked"])


def _trivial(alone: Cluster) -> int:
    from benchmarks.calls import free_port
    from benchmarks.cluster import wait_until
    from benchmarks.servers.duel import _listens

    port = free_port()
    process = alone.start("trivial", "-m", "benchmarks.servers.trivial", str(port))
    wait_until(lambda: not _listens(Server("trivial", process, "", ""), port), "the server")
    return port


@pytest.mark.slow
def test_a_wrong_answer_ends_the_client(alone: Cluster) -> None:
    load = Load(f"127.0.0.1:{_trivial(alone)}", "/", (b"{}",), (0.75,))
    with pytest.raises(BenchmarkError, match=r"0\.5 where the model gives 0\.75"):
        call(alone, HTTP_CLIENT, QUICK.lasting(load, 1))


@pytest.mark.slow
def test_a_peer_that_does_not_start_is_told_and_not_beaten(alone: Cluster) -> None:
    peer = Peer("Broken", lambda _: ("-c", "raise SystemExit('no licence')"))
    port = _trivial(alone)
    idle = alone.start("idle", "-c", "import time; time.sleep(60)")
    ours = Server("ours", idle, f"127.0.0.1:{port}", "/")
    duels = Duels(Model("m", Path("m.onnx")), LOAD, QUICK, lambda *_: "not there")
    found = duels.against(alone, ours, [peer])
    assert "no licence" in found["Broken"]["not measured"]
    result, told = result_of(Goal(peer, 1, "p50", 1.0), found)
    assert not result.holds
    assert "no licence" in told["not measured"]


@pytest.mark.slow
def test_peers_are_measured_in_turn_with_ours(alone: Cluster, tmp_path: Path) -> None:
    """The server by hand stands for both sides."""
    model = Model("mlp", write_model(tmp_path / "model.onnx"))
    rows = inputs(4)
    expected = tuple(float(y) for y in session_of(model.path).run(["y"], {"x": rows})[0][:, 0])
    load = Load("", V2.format(model="mlp"), tuple(json_body(row[None]) for row in rows), expected)
    ours = start_peer(alone, HAND_WRITTEN, model)
    await_answer(ours, lambda server: ask_http(server, load))
    found = Duels(model, load, QUICK, ask_http, concurrencies=(2,)).against(alone, ours, [HAND_WRITTEN])
    made = outcome(
        "sync-eager", [Goal(HAND_WRITTEN, 2, "p50", 1.0), Goal(HAND_WRITTEN, 2, "rate", 1.0)], found
    )
    assert made.result.ratio > 0
    save(made, tmp_path, quick=False)
    assert f"| {HAND_WRITTEN.name} | 2 |" in page(tmp_path, BENCHMARKS)


def test_ratios_grow_when_we_are_better() -> None:
    fast, slow = {"p50_ms": 1.0, "per_second": 100.0}, {"p50_ms": 4.0, "per_second": 50.0}
    pairs = {"at 1": {"ours": [fast, slow], "theirs": [slow, slow]}}
    assert ratios(pairs, Goal(HAND_WRITTEN, 1, "p50", 1.0)) == [4.0, 1.0]
    assert ratios(pairs, Goal(HAND_WRITTEN, 1, "rate", 1.0)) == [2.0, 1.0]


def test_peers_are_told_apart_and_of_fixed_versions() -> None:
    assert len({peer.name for peer in ALL}) == len(ALL) == 10
    ours = (HAND_WRITTEN, HAND_WRITTEN_DURABLE)
    assert all("==" in peer.requirement for peer in ALL if peer not in ours)


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize("name", ["five-nodes", "many-pipelines", "sync-rf3"])
def test_it_measures_ours(name: str, bootstrap: str, tmp_path: Path) -> None:
    with started(bootstrap) as cluster:
        outcome = BENCHMARKS[name](cluster, quick=True)
    document = json.loads(save(outcome, tmp_path, quick=True).read_text())
    assert document["ratio"] > 0
    assert document["raw"]["goals"]
    (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert f"## {name}" in page(tmp_path, BENCHMARKS)


@pytest.mark.broker
@pytest.mark.slow
def test_an_open_loop_measures_both(bootstrap: str, tmp_path: Path) -> None:
    with started(bootstrap) as cluster:
        outcome = open_loop.compare(cluster, HAND_WRITTEN, quick=True)
    assert set(outcome.raw["capacity"]) == {"ours", "theirs"}
    assert len(outcome.raw["goals"]) == 2
    save(outcome, tmp_path, quick=False)
    assert "### At the same rates" in page(tmp_path, BENCHMARKS)


def test_the_page_is_what_the_results_make_of_it() -> None:
    assert PAGE.read_text() == page(RESULTS, BENCHMARKS), "python -m benchmarks report"


def test_the_page_shows_engines_that_did_not_finish(tmp_path: Path) -> None:
    run = {"rate": 5_000, "cpu_us": 200.0, "pss_mb": 80.0, "complete": False}
    engines = {"Faust": {"runs": {"ours": [run], "theirs": [run]}}, "Other": {"not measured": "no jars"}}
    result = Result.of("passthrough-peers", 1.0, 1.0, 1.0, 1.2)
    save(Outcome(result, "records/s", {"engines": engines}), tmp_path, quick=False)
    told = page(tmp_path, BENCHMARKS)
    assert "| Faust | 5,000 / 5,000 | 200 / 200 | 80 / 80 | stopped before its end |" in told
    assert "| Other | not measured: no jars |" in told


def test_a_miss_stays_a_miss(tmp_path: Path) -> None:
    made = outcome(
        "sync-eager",
        [Goal(HAND_WRITTEN, 1, "p50", 1.0)],
        {"hand-written ASGI": {"not measured": "no | way\nat all"}},
    )
    save(made, tmp_path, quick=False)
    told = page(tmp_path, BENCHMARKS)
    assert "| not measured: no / way |" in told
    assert "**missed**" in told
