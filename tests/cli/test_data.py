"""The data commands on the real broker: files, pipes, redrive, trace, and a bounded run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dataflow.cli.letters import hexdump
from dataflow.cli.main import main
from dataflow.transport.kafka import KafkaFabric
from tests.control.project import Made, make

pytestmark = pytest.mark.broker


@pytest.fixture
def made(tmp_path: Path, unique: str, kafka: KafkaFabric) -> Made:
    return make(tmp_path, unique, kafka)


def call(made: Made, *arguments: str, stdin: str | None = None, code: int = 0) -> Result:
    assert isinstance(made.fabric, KafkaFabric)
    options = ["--project", str(made.folder), "--bootstrap", made.fabric.bootstrap]
    result = CliRunner().invoke(main, [*arguments, *options], input=stdin, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def process(made: Made, *arguments: str) -> list[str]:
    """The command line of a process of its own."""
    assert isinstance(made.fabric, KafkaFabric)
    start = "from dataflow.cli.main import main; main()"
    options = ["--project", str(made.folder), "--bootstrap", made.fabric.bootstrap]
    return [sys.executable, "-c", start, *arguments, *options]


def lines(result: Result) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in result.stdout.splitlines()]


def test_produce_and_tap(made: Made) -> None:
    rows = made.folder / "rows.csv"
    rows.write_text("sensor,value,more\na,1,x\nb,nope,x\nc,3,x\n")
    result = call(made, "produce", made.readings, str(rows), code=1)
    assert "rows.csv:3: field 'value'" in result.stderr
    assert "2 records sent" in result.stderr
    assert "ignored: more" in result.stderr
    assert result.stdout == ""

    found = lines(call(made, "tap", f"topic:{made.readings}", "--from", "earliest"))
    assert [r["value"] for r in found] == [
        {"sensor": "a", "value": 1.0, "owner": None},
        {"sensor": "c", "value": 3.0, "owner": None},
    ]
    assert [r["key"] for r in found] == ["a", "c"]
    where = call(made, "tap", f"{made.first}.readings", "--from", "-1h", "--where", "value > 2")
    assert [r["key"] for r in lines(where)] == ["c"]
    by_id = call(made, "tap", f"{made.first}.readings", "--id", str(found[0]["id"]))
    assert [r["key"] for r in lines(by_id)] == ["a"]
    table = call(
        made, "tap", f"topic:{made.readings}", "--from", "earliest", "--format", "table", "--limit", "1"
    )
    head, row = table.stdout.splitlines()
    assert head.split() == ["time", "position", "key", "sensor", "value", "owner"]
    assert row.split()[2:] == ["a", "a", "1"]
    assert call(made, "tap", f"topic:{made.readings}", "--no-follow").stdout == ""


def test_strict_sends_nothing(made: Made) -> None:
    text = '{"sensor":"a","value":1}\n{"sensor":"a"}\n'
    result = call(made, "produce", made.readings, "--strict", stdin=text, code=1)
    assert "nothing sent" in result.stderr
    assert "stdin:2: field 'value' is missing" in result.stderr
    assert call(made, "tap", f"topic:{made.readings}", "--from", "earliest").stdout == ""


def test_rate_key_and_ids(made: Made) -> None:
    text = "".join(f'{{"sensor":"s{i}","value":{i},"owner":"o{i}"}}\n' for i in range(4))
    sent = call(made, "produce", made.readings, "--rate", "1000", "--key", "owner", "--print-ids", stdin=text)
    found = lines(call(made, "tap", f"topic:{made.readings}", "--from", "earliest", "--show-private"))
    assert {str(r["key"]) for r in found} == {f"o{i}" for i in range(4)}
    assert {str(r["id"]) for r in found} == set(sent.stdout.split())


def test_files_out(made: Made) -> None:
    made.produce({"sensor": "a", "value": 1, "owner": "Ada"}, {"sensor": "b", "value": 2})
    target = made.folder / "out.parquet"
    result = call(made, "tap", f"topic:{made.readings}", "--from", "earliest", "--to", str(target))
    assert "2 records" in result.stderr
    assert pq.read_table(target).column("owner").to_pylist() == ["***", None]
    raw = call(made, "tap", f"topic:{made.readings}", "--from", "earliest", "--format", "raw", code=1)
    assert "--show-private" in raw.stderr
    call(made, "tap", f"topic:{made.readings}", "--from", "earliest", "--format", "raw", "--show-private")
    again = call(made, "produce", f"{made.name}.doubles", str(target))
    assert "2 records sent" in again.stderr


def test_pipes(made: Made) -> None:
    """`tap | head` ends quietly; `tap --follow` hands records on at once and ends quietly at SIGINT."""
    made.produce(*({"sensor": f"s{i}", "value": i} for i in range(5_000)))
    tap = subprocess.Popen(
        process(made, "tap", f"topic:{made.readings}", "--from", "earliest"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert tap.stdout is not None
    assert tap.stderr is not None
    with tap:
        assert orjson.loads(tap.stdout.readline())["topic"] == made.readings
        tap.stdout.close()
        assert tap.stderr.read() == b""
        assert tap.wait(60) == 0
    follow = subprocess.Popen(
        process(made, "tap", f"topic:{made.readings}", "--from", "-1h", "--where", "value < 0", "--follow"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with follow:
        made.produce({"sensor": "late", "value": -1})
        assert follow.stdout is not None
        assert orjson.loads(follow.stdout.readline())["key"] == "late"
        follow.send_signal(2)
        out, err = follow.communicate(timeout=60)
        assert (out, err, follow.returncode) == (b"", b"", 0)


def test_what_failed_is_listed_shown_fixed_and_redriven(made: Made) -> None:
    broken = made.folder / "pipelines/all/broken"
    broken.touch()
    (bad,) = made.produce({"sensor": "a", "value": -1, "owner": "Ada"})
    with made.working() as shop:
        made.settle(shop)
    mine = ["--pipeline", made.first]
    (letter,) = lines(call(made, "dead-letters", "list", *mine, "--format", "json"))
    assert (letter["id"], letter["node"], letter["error"]) == (bad, "checked", "ValueError")
    shown = call(made, "dead-letters", "show", str(letter["position"])).stdout
    assert "-1.0 is below zero" in shown
    assert '"owner":"***"' in shown
    trace = call(made, "trace", bad)
    assert f"{made.first}.readings" in trace.stdout
    assert "dead letter: ValueError" in trace.stdout

    broken.unlink()
    dry = call(made, "dead-letters", "redrive", *mine, "--dry-run")
    assert "1 dead letter would be redriven" in dry.stderr
    call(made, "dead-letters", "redrive", bad)
    assert "0 dead letters; 1 redriven" in call(made, "dead-letters", "list", *mine).stderr
    assert "redriven before" in call(made, "dead-letters", "redrive", bad, code=1).stderr
    call(made, "dead-letters", "redrive", code=2)
    with made.working() as shop:
        made.settle(shop)
    (hop,) = (
        h for h in orjson.loads(call(made, "trace", bad, "--format", "json").stdout)["hops"]
        if h["streams"] == [f"{made.first}.doubled"]
    )  # fmt: skip
    assert (hop["id"], hop["attempt"], hop["value"]["value"]) == (bad, 1, -2.0)
    nothing = call(made, "trace", "0192a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", code=1)
    assert "no record of it" in nothing.stderr


def test_a_letter_that_does_not_decode_is_dumped(made: Made) -> None:
    producer = made.fabric.producer()
    producer.send(made.readings, b"\xff garbage", b"c")
    producer.flush(10)
    with made.working() as shop:
        made.settle(shop)
    (letter,) = lines(call(made, "dead-letters", "list", "--pipeline", made.first, "--format", "json"))
    hidden = call(made, "dead-letters", "show", str(letter["position"])).stdout
    assert "hidden" in hidden
    assert "garbage" not in hidden.partition("headers:")[2]
    shown = call(made, "dead-letters", "show", str(letter["position"]), "--show-private").stdout
    assert "ff 20 67 61 72 62 61 67 65" in shown


def test_hexdump_is_cut() -> None:
    dumped = list(hexdump(bytes(range(40)), limit=32))
    assert dumped[0].startswith("  000000  00 01 02")
    assert dumped[-1] == "  ... 8 more bytes"


def test_run_on_the_cluster(made: Made) -> None:
    rows = made.folder / "rows.jsonl"
    rows.write_text("".join(f'{{"sensor":"s{i % 7}","value":{i}}}\n' for i in range(1_000)))
    out = made.folder / "out.parquet"
    result = call(made, "run", made.first, "--in", str(rows), "--out", str(out), "--rows")
    assert "in 1000, out 999, dropped 1, dead-lettered 0" in result.stderr
    assert "dropped by checked:" in result.stderr
    table = pq.read_table(out)
    assert table.column("row").to_pylist() == list(range(2, 1_001))  # row 1 holds 0, which is dropped
    assert table.column("value").to_pylist() == [2.0 * i for i in range(1, 1_000)]
    # Once more: what was there before is nobody's answer.
    again = call(made, "run", made.first, "--in", f"readings={rows}", "--edge", "checked", "--out", str(out))
    assert "in 1000, out 999" in again.stderr
    assert pq.read_table(out).num_rows == 999


def test_run_on_a_broker_of_its_own(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAFLOW_BOOTSTRAP", raising=False)
    (made.folder / "pipelines/all/broken").touch()
    rows = made.folder / "rows.csv"
    rows.write_text("sensor,value\na,1\nb,-1\nc\nd,0\ne,5\n")
    options = ["run", made.first, "--in", str(rows), "--project", str(made.folder)]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 1, result.output
    assert [orjson.loads(line) for line in result.stdout.splitlines()] == [
        {"sensor": "a", "value": 2.0},
        {"sensor": "e", "value": 10.0},
    ]
    assert "in 4, out 2, dropped 1, dead-lettered 1" in result.stderr
    assert "-1.0 is below zero" in result.stderr
    assert "rows.csv:4" in result.stderr
    assert not (made.folder / ".dataflow").exists()


def test_errors_are_one_line(made: Made) -> None:
    for arguments, message in (
        (["tap", f"{made.first}.chekced"], "did you mean 'checked'"),
        (["tap", f"{made.first}.checked", "--from", "noon"], "no place to start"),
        (["tap", f"{made.first}.checked", "--where", "valeu > 1"], "valeu"),
        (["produce", f"{made.readings}x"], f"did you mean '{made.readings}'"),
        (["produce", f"{made.first}.checked"], "its node 'checked' writes it, and nobody else"),
        (["produce", made.readings, "nothing.csv"], "cannot read 'nothing.csv'"),
        (["run", made.first, "--in", "x=y.csv"], "has no input 'x'"),
        (["run", made.first, "--in", "y.csv", "--edge", "x"], "has no edge 'x'"),
        (["dead-letters", "show", "9/9"], "no dead letter '9/9'"),
    ):
        result = call(made, *arguments, code=1)
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_no_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAFLOW_BOOTSTRAP", raising=False)
    result = CliRunner().invoke(main, ["tap", "a.b", "--project", str(tmp_path)])
    assert result.exit_code == 1
    assert "dataflow broker start" in result.stderr
    assert list(tmp_path.iterdir()) == []
