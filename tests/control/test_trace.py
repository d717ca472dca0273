from __future__ import annotations

from pathlib import Path

import pytest

from dataflow.control.dead_letters import LetterFilter, read_letters, redrive
from dataflow.control.trace import trace
from dataflow.core import headers, ids
from dataflow.core.errors import SpecError
from dataflow.planner.plan import DEAD_LETTERS, REPLIES
from dataflow.transport.api import Fabric, Header
from dataflow.transport.memory import MemoryFabric
from tests.control.project import Made, make


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.broker)])
def made(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Made:
    fabric: Fabric = MemoryFabric() if request.param == "memory" else request.getfixturevalue("kafka")
    return make(tmp_path, unique, fabric)


def test_a_request_through_stages_and_pipelines(made: Made) -> None:
    others = [{"sensor": f"s{i}", "value": i + 1} for i in range(50)]
    wanted, *_ = made.produce({"sensor": "a", "value": 3}, *others)
    with made.working() as shop:
        made.settle(shop)
    found = trace(made.fabric, made.plans, wanted)
    assert [h.streams for h in found.hops] == [
        (f"{made.first}.readings",),
        (f"{made.first}.checked",),
        (f"{made.first}.doubled",),
        (f"{made.second}.doubles",),
        (f"{made.second}.parts",),
        (f"{made.second}.parts",),
    ]
    assert found.complete
    assert (found.waiting, found.ended) == ((), ())
    assert [h.node for h in found.hops] == ["", "checked", "doubled", "doubled", "parts", "parts"]
    assert [h.delta_ms for h in found.hops] == sorted(h.delta_ms for h in found.hops)
    assert found.hops[0].delta_ms == 0
    assert found.hops[1].version == made.plans[made.first].version
    first, *_, child, _ = (h.record for h in found.hops)
    assert first.value == {"sensor": "a", "value": 3.0, "owner": None}
    assert child.id != wanted
    assert child.parents == (wanted,)
    assert child.value == {"sensor": "a", "value": 3.0}

    # From a child one sees where it came from, not its sister.
    of_child = trace(made.fabric, made.plans, child.id)
    assert [h.record.id for h in of_child.hops] == [wanted] * 4 + [child.id]


def test_drops_and_work_not_yet_done_are_told(made: Made) -> None:
    (dropped,) = made.produce({"sensor": "a", "value": 0})
    found = trace(made.fabric, made.plans, dropped)
    assert [h.streams for h in found.hops] == [(f"{made.first}.readings",)]
    assert found.waiting == (f"{made.first}.checked",)
    with made.working() as shop:
        made.settle(shop)
    found = trace(made.fabric, made.plans, dropped)
    assert (found.waiting, found.ended) == ((), (f"{made.first}.checked",))


def test_dead_letters_redrives_and_replies(made: Made) -> None:
    broken = made.folder / "pipelines/all/broken"
    broken.touch()
    (bad,) = made.produce({"sensor": "a", "value": -1})
    producer = made.fabric.producer()
    said: list[Header] = [
        (headers.ID, bad),
        (headers.STATUS, "failed"),
        (headers.REASON, b'{"reason": "no"}'),
    ]
    producer.send(REPLIES, None, bad.encode(), said, 0)
    producer.flush(10)
    with made.working() as shop:
        made.settle(shop)
    broken.unlink()
    list(redrive(made.fabric, read_letters(made.fabric, LetterFilter(made.first))))
    with made.working() as shop:
        made.settle(shop)
    hops = trace(made.fabric, made.plans, bad).hops
    kinds = [(h.kind, h.status, h.record.attempt) for h in hops]
    assert kinds[0] == ("record", "written", 0)
    assert ("reply", "failed", 0) in kinds
    assert ("dead letter", "failed", 0) in kinds
    assert kinds[-1] == ("record", "written", 1)
    letter = next(h for h in hops if h.kind == "dead letter")
    assert (letter.pipeline, letter.node) == (made.first, "checked")
    assert "below zero" in letter.reason
    assert letter.record.value == {"value": "***"}


def test_a_redrive_much_later_is_found(tmp_path: Path, unique: str) -> None:
    clock = [1_700_000_000.0]
    made = make(tmp_path, unique, MemoryFabric(lambda: clock[0]))
    bad = ids.mint(1_700_000_000_000).decode()
    producer = made.fabric.producer()
    producer.send(made.readings, b"\xff", b"a", [(headers.ID, bad)], 0)
    said: list[Header] = [
        (headers.ID, bad),
        (headers.ERROR_TOPIC, made.readings),
        (headers.ERROR_PARTITION, "0"),
    ]
    producer.send(DEAD_LETTERS, b"\xff", b"a", said, 0)
    for attempt in (1, 2):
        clock[0] += 86_400
        list(redrive(made.fabric, read_letters(made.fabric)))
        producer.send(DEAD_LETTERS, b"\xff", b"a", [*said, (headers.ATTEMPT, str(attempt))], 0)
    hops = trace(made.fabric, made.plans, bad).hops
    assert [(h.kind, h.record.attempt) for h in hops] == [
        ("record", 0), ("dead letter", 0), ("record", 1), ("dead letter", 1), ("record", 2), ("dead letter", 2),
    ]  # fmt: skip


def test_a_request_of_many_rows_is_found_by_the_requests_id(made: Made) -> None:
    request = ids.mint(ids.time_ms_of(made.produce({"sensor": "x", "value": 1})[0].encode()))
    rows = [ids.child(request, "gateway", "in", row) for row in range(3)]
    producer = made.fabric.producer()
    for row in rows:
        producer.send(made.readings, b"\x02a\x00\x00\x00\x00\x00\x00\xf0?\x00", b"a", [(headers.ID, row)])
    producer.flush(10)
    found = trace(made.fabric, made.plans, request.decode())
    assert [h.record.id for h in found.hops] == [r.decode() for r in rows]
    assert {h.record.error for h in found.hops} == {""}


def test_nothing_found_and_no_id(made: Made) -> None:
    nowhere = trace(made.fabric, made.plans, ids.mint(1_700_000_000_000).decode())
    assert nowhere.hops == ()
    assert not nowhere.complete
    with pytest.raises(SpecError, match="is no record id"):
        trace(made.fabric, made.plans, "nonsense")


def test_garbage_in_headers_disturbs_no_search(made: Made) -> None:
    (record_id,) = made.produce({"sensor": "x", "value": 1})
    producer = made.fabric.producer()
    for bad in (b"", b"\xff" * 36, record_id.encode()[:20] + b"?" * 16):
        producer.send(made.readings, b"?", None, [(headers.ID, bad), (headers.PARENTS, bad + b",," + bad)])
    producer.flush(10)
    assert [h.record.id for h in trace(made.fabric, made.plans, record_id).hops] == [record_id]
