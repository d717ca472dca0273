from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.control.dead_letters import (
    LetterFilter,
    decode_letter,
    find_letter,
    read_letters,
    redrive,
)
from dataflow.control.streams import EdgeReader, find_stream, known_topics
from dataflow.core import headers
from dataflow.core.errors import SpecError
from dataflow.planner.plan import DEAD_LETTERS
from dataflow.transport.api import Fabric, Header
from dataflow.transport.memory import MemoryFabric
from tests.control.project import Made, make


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.broker)])
def made(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Made:
    fabric: Fabric = MemoryFabric() if request.param == "memory" else request.getfixturevalue("kafka")
    made = make(tmp_path, unique, fabric)
    (tmp_path / "pipelines/all/broken").touch()
    return made


def test_fix_and_redrive(made: Made) -> None:
    good, bad = made.produce({"sensor": "a", "value": 1}, {"sensor": "b", "value": -2, "owner": "Ada"})
    producer = made.fabric.producer()
    producer.send(made.readings, b"\xff garbage", b"c", [("mine", b"1"), (headers.REPLY_TO, b"t/0/x")], 1)
    producer.flush(10)
    with made.working() as shop:
        made.settle(shop)
    wanted = LetterFilter(pipeline=made.first)
    letters = {x.error: x for x in read_letters(made.fabric, wanted)}
    assert set(letters) == {"ValueError", "CodecError"}
    letter = letters["ValueError"]
    assert (letter.id, letter.node, letter.topic, letter.attempt) == (bad, "checked", made.readings, 0)
    assert "-2.0 is below zero" in letter.reason
    assert letter.version == made.plans[made.first].version
    assert [x.id for x in read_letters(made.fabric, LetterFilter(made.first, error="ValueError"))] == [bad]
    assert not list(read_letters(made.fabric, LetterFilter(made.first, node="doubled")))
    assert not list(read_letters(made.fabric, LetterFilter(made.first, since_ms=letter.failed_ms + 60_000)))

    decoded = decode_letter(made.fabric, letter, known_topics(made.plans))
    assert decoded is not None
    assert decoded[0].value == {"sensor": "b", "value": -2.0, "owner": "***"}
    decoded = decode_letter(made.fabric, letters["CodecError"], known_topics(made.plans))
    assert decoded is not None
    assert decoded[0].value is None
    assert decode_letter(made.fabric, letter, {}) is None

    (told,) = redrive(made.fabric, [letter], dry_run=True)
    assert not told.skipped
    (made.folder / "pipelines/all/broken").unlink()
    (told,) = redrive(made.fabric, [letter])
    assert not told.skipped
    with made.working() as shop:
        made.settle(shop)
    found = {r.id: r for r in EdgeReader(made.fabric, find_stream(f"{made.first}.doubled", made.plans))}
    assert set(found) == {good, bad}
    assert (found[good].attempt, found[bad].attempt) == (0, 1)
    assert found[bad].value == {"sensor": "b", "value": -4.0}
    redriven = [
        r for r in EdgeReader(made.fabric, find_stream(f"topic:{made.readings}", made.plans)) if r.attempt
    ]
    (record,) = redriven
    names = [n for n, _ in record.headers]
    assert not headers.ON_DEAD_LETTER.intersection(names)
    assert record.header(headers.REDRIVE_ID) == f"{DEAD_LETTERS}/{letter.position}".encode()
    assert record.partition == letter.source_partition

    # Not twice, unless asked to.
    again = find_letter(made.fabric, letter.position)
    assert again.redriven_ms > 0
    assert [t.skipped for t in redrive(made.fabric, [again])] == ["redriven before"]
    assert [t.skipped for t in redrive(made.fabric, [again], again=True)] == [""]


def test_a_redriven_record_that_dies_again_counts_its_attempts(made: Made) -> None:
    (bad,) = made.produce({"sensor": "b", "value": -2})
    for attempt in range(2):
        with made.working() as shop:
            made.settle(shop)
        letter = find_letter(made.fabric, bad)
        assert letter.attempt == attempt
        assert not letter.redriven_ms
        assert [
            t.skipped for t in redrive(made.fabric, read_letters(made.fabric, LetterFilter(made.first)))
        ].count("") == 1
    with made.working() as shop:
        made.settle(shop)
    assert [x.attempt for x in read_letters(made.fabric, LetterFilter(made.first))] == [0, 1, 2]
    last = find_letter(made.fabric, bad)
    assert [n for n, _ in last.headers].count(headers.REDRIVE_ID) == 1


def test_the_caller_is_not_answered_twice(made: Made) -> None:
    producer = made.fabric.producer()
    producer.send(
        made.readings,
        b"\xff",
        b"c",
        [("mine", b"1"), (headers.REPLY_TO, b"t/0/x"), (headers.DEADLINE, b"1"), (headers.CALLER_ID, b"me")],
        1,
    )
    producer.flush(10)
    with made.working() as shop:
        made.settle(shop)
    (letter,) = read_letters(made.fabric, LetterFilter(made.first))
    list(redrive(made.fabric, [letter]))
    (record,) = (
        r for r in EdgeReader(made.fabric, find_stream(f"topic:{made.readings}", made.plans)) if r.attempt
    )
    names = [n for n, _ in record.headers]
    assert headers.REPLY_TO not in names
    assert headers.DEADLINE not in names
    assert record.header("mine") == b"1"
    assert record.header(headers.CALLER_ID) == b"me"
    assert record.wire is None  # the contract has private fields
    assert record.error


def test_what_cannot_be_redriven(made: Made) -> None:
    producer = made.fabric.producer()
    producer.send(DEAD_LETTERS, b"x", None, [(headers.ERROR_NODE, f"{made.first}/n".encode())])
    gone: list[Header] = [(headers.ERROR_NODE, f"{made.first}/n".encode()), (headers.ERROR_TOPIC, b"gone")]
    producer.send(DEAD_LETTERS, b"x", None, gone)
    producer.flush(10)
    told = list(redrive(made.fabric, read_letters(made.fabric, LetterFilter(made.first))))
    assert "not read from a topic" in told[0].skipped
    assert told[1].skipped == "topic 'gone' is gone"
    for reference in ("7/99", "0192a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", "x"):
        with pytest.raises(SpecError, match="no dead letter"):
            find_letter(made.fabric, reference)


def test_no_dead_letters_before_the_first_deployment() -> None:
    assert list(read_letters(MemoryFabric())) == []
