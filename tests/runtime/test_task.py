"""One task against a producer whose acknowledgements come late, out of order, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.core import headers, limits
from dataflow.core.errors import TransportError
from dataflow.planner.plan import DEAD_LETTERS, REPLIES, AnswerWhen
from dataflow.runtime.program import StageProgram
from dataflow.runtime.task import Task
from tests.runtime.kit import RECORD, HandProducer, Sent, built, encoded, fetched, make_plan, message

POSITION = ("records", 0)
PIPELINE = """
inputs: {{records: records}}
answer: {{from: [a, b], when: {when}}}
nodes:
  a: {{use: test.script, from: records, retry: {{attempts: 3, backoff: 10ms, backoff_max: 10ms}}}}
  b: {{use: test.pass, from: a.side}}
"""
ACTIONS = (
    "pass",
    "side",
    "both",
    "children",
    "drop",
    "fail",
    "never",
    "retry",
    "consume",
    "forget",
    "raise me",
)
CODEC = codec_for("avro", RECORD)


def reply_to(n: int) -> list[tuple[str, Any]]:
    return [(headers.REPLY_TO, f"{REPLIES}/3/r{n}".encode())]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return {
        w: (tmp_path_factory.mktemp(w), PIPELINE.format(when=w)) for w in ("durable", "committed", "eager")
    }


def stage_of(programs: dict[str, tuple[Path, str]], when: AnswerWhen = "durable") -> StageProgram:
    folder, text = programs[when]
    return built(folder, make_plan(folder, text))[1].program


def offset_of(sent: Sent) -> int:
    """The offset of the record that `sent` comes from."""
    if sent.topic == DEAD_LETTERS:
        return int(sent.headers[headers.ERROR_OFFSET])
    return int(CODEC.decode([sent.value]).columns["n"][0])


class Driven:
    """A task, its producer, and what must hold after every step of it."""

    def __init__(self, program: StageProgram, when: AnswerWhen) -> None:
        self.producer = HandProducer()
        self.task = Task(program, 0, self.producer)
        self.when = when
        self.now_ms = 1_000
        self.taken = 0
        self.batch_end: dict[int, int] = {}
        self.committed = 0

    def take(self, actions: Sequence[str]) -> None:
        self.task.take(POSITION, fetched(actions, self.taken, reply_to))
        for n in range(self.taken, self.taken + len(actions)):
            self.batch_end[n] = self.taken + len(actions)
        self.taken += len(actions)

    def step(self) -> None:
        self.now_ms += 10
        self.task.step(self.now_ms)

    def collect(self) -> None:
        self.task.collect()
        self.check()

    def commit(self) -> None:
        offsets = self.task.offsets.committable()
        if offsets:
            assert offsets[POSITION] > self.committed
            self.committed = offsets[POSITION]
        self.task.committed()
        self.check()

    def check(self) -> None:
        unacknowledged = {offset_of(s) for s in self.producer.waiting}
        assert all(n >= self.committed for n in unacknowledged)
        answered = self.answered()
        assert max(answered.values(), default=1) == 1
        if self.when != "eager":
            assert not {self.batch_end[n] for n in answered} & {self.batch_end[n] for n in unacknowledged}
        if self.when == "committed":
            assert all(n < self.committed for n in answered)

    def answered(self) -> Counter[int]:
        return Counter(int((s.key or b"r-1")[1:]) for s in self.producer.to(REPLIES))

    def finish(self) -> None:
        while not self.task.idle:
            self.step()
            self.producer.acknowledge_all()
            self.collect()
        self.commit()


@pytest.mark.parametrize("when", ["durable", "committed", "eager"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_whatever_happens_offsets_replies_and_letters_are_right(
    programs: dict[str, tuple[Path, str]], when: AnswerWhen, data: st.DataObject
) -> None:
    driven = Driven(stage_of(programs, when), when)
    actions: list[str] = []
    for _ in range(data.draw(st.integers(1, 12), "operations")):
        operation = data.draw(
            st.sampled_from(["take", "step", "acknowledge", "collect", "commit"]), "operation"
        )
        if operation == "take":
            batch = data.draw(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=5), "batch")
            actions += batch
            driven.take(batch)
        elif operation == "acknowledge" and driven.producer.waiting:
            driven.producer.acknowledge(data.draw(st.integers(0, len(driven.producer.waiting) - 1), "which"))
        elif operation != "acknowledge":
            getattr(driven, operation)()
    driven.finish()
    assert driven.committed == driven.taken
    assert driven.answered() == Counter(range(driven.taken))
    judge_outputs(driven, actions)


def judge_outputs(driven: Driven, actions: Sequence[str]) -> None:
    """Every record is where its action says, exactly once."""
    where = {
        "pass": ["p.a"], "retry": ["p.a"], "side": ["p.a.side", "p.b"], "both": ["p.a", "p.a.side", "p.b"],
        "children": ["p.a", "p.a"], "drop": [], "consume": [],
    }  # fmt: skip
    expected = Counter((t, n) for n, a in enumerate(actions) for t in where.get(a, [DEAD_LETTERS]))
    found = Counter((s.topic, offset_of(s)) for s in driven.producer.sent if s.topic != REPLIES)
    assert found == expected
    for topic in ("p.a", "p.a.side", "p.b"):
        for key in range(3):
            of_key = [n for s in driven.producer.to(topic) if (n := offset_of(s)) % 3 == key]
            assert of_key == sorted(of_key), f"order of key {key} on {topic}"
    status = {"drop": b"dropped", "consume": b"dropped"} | dict.fromkeys(
        ("fail", "never", "forget", "raise me"), b"failed"
    )
    for sent in driven.producer.to(REPLIES):
        action = actions[int((sent.key or b"")[1:])]
        assert sent.headers[headers.STATUS] == status.get(action, b"ok")
        assert sent.partition == 3


def test_a_refused_record_raises_and_commits_nothing_of_its_batch(
    programs: dict[str, tuple[Path, str]],
) -> None:
    driven = Driven(stage_of(programs), "durable")
    driven.take(["pass"])
    driven.take(["pass", "pass"])
    driven.step()
    driven.step()
    driven.producer.acknowledge(0)
    driven.producer.acknowledge(1)
    driven.producer.acknowledge(0, error="no space left")
    with pytest.raises(TransportError, match="no space left"):
        driven.collect()
    driven.commit()
    assert driven.committed == 1
    assert driven.answered() == {0: 1}


def test_a_refused_record_of_a_later_batch_is_not_waited_for(
    programs: dict[str, tuple[Path, str]],
) -> None:
    driven = Driven(stage_of(programs), "durable")
    for _ in range(2):
        driven.take(["pass"])
        driven.step()
    driven.producer.acknowledge(1, error="no space left")
    with pytest.raises(TransportError, match="no space left"):
        driven.collect()
    assert (driven.committed, driven.answered()) == (0, {})


def test_dead_letters_carry_the_original_and_the_cause(programs: dict[str, tuple[Path, str]]) -> None:
    driven = Driven(stage_of(programs), "durable")
    head: list[tuple[str, Any]] = [("mine", b"1"), ("none", None), (headers.ERROR, b"of an earlier death")]
    garbage = message(5, b"\xff\x00garbage", head, key=b"\x00key")
    driven.task.take(POSITION, [garbage])
    driven.step()
    letter = driven.producer.to(DEAD_LETTERS)[0]
    assert (letter.value, letter.key) == (b"\xff\x00garbage", b"\x00key")
    assert letter.headers["mine"] == b"1"
    found = {name: letter.headers[name] for name in letter.headers if name.startswith("df-error")}
    assert found[headers.ERROR] == b"CodecError"
    assert found[headers.ERROR_TOPIC] == b"records"
    assert (found[headers.ERROR_PARTITION], found[headers.ERROR_OFFSET]) == (b"0", b"5")
    assert found[headers.ERROR_NODE] == b"p/"
    assert found[headers.ERROR_VERSION].startswith(b"p@")
    assert letter.id


def test_a_record_whose_children_all_fail_is_buried_once(tmp_path: Path) -> None:
    text = """
inputs: {records: records}
nodes:
  a: {use: test.script, from: records}
  b: {use: test.script, from: a}
"""
    program = built(tmp_path, make_plan(tmp_path, text))[1].program
    producer = HandProducer()
    task = Task(program, 0, producer)
    task.take(POSITION, fetched(["a:children", "a:children,b:fail"]))
    task.step(0)
    assert [offset_of(s) for s in producer.to("p.b")] == [0, 0]
    assert [offset_of(s) for s in producer.to(DEAD_LETTERS)] == [1]


def test_an_expired_request_is_told_so_and_not_run(programs: dict[str, tuple[Path, str]]) -> None:
    stage = stage_of(programs)
    driven = Driven(stage, "durable")
    late = fetched(["pass"], 0, lambda n: [*reply_to(n), (headers.DEADLINE, b"1005")])
    driven.task.take(POSITION, late)
    driven.task.step(1_005)
    driven.task.collect()
    assert driven.producer.to("p.a") == []
    sent = driven.producer.to(REPLIES)[0]
    assert sent.headers[headers.STATUS] == b"expired"
    assert orjson.loads(sent.headers[headers.REASON])["reason"] == "expired"
    assert stage.metrics.expired == 1


@pytest.mark.parametrize(
    "stranger",
    [b"", b"/", b"records/0/x", b"p.a/0/x", b"nowhere/0/x", b"dataflow.replies/99/x", b"\xff\xfe/0/x",
     b"dataflow.replies/-1/x", b"dataflow.replies/" + b"9" * 30 + b"/x", b"dataflow.replies"],
)  # fmt: skip
def test_a_strangers_reply_address_harms_nobody(tmp_path: Path, stranger: bytes) -> None:
    shop, parts = built(tmp_path, make_plan(tmp_path, PIPELINE.format(when="durable")))
    producer = shop.fabric.producer()
    task = Task(parts.program, 0, producer)
    before = shop.fabric.admin().offsets([("records", 0)], -1)
    task.take(POSITION, fetched(["pass", "drop"], 0, lambda _: [(headers.REPLY_TO, stranger)]))
    task.step(0)
    producer.flush(1)
    task.collect()
    assert task.offsets.committable() == {POSITION: 2}
    assert shop.fabric.admin().offsets([("records", 0)], -1) == before
    assert shop.fabric.admin().offsets([("p.a", 0)], -1) == {("p.a", 0): 1}


def test_an_oversized_output_is_a_failed_row_and_goes_no_further(tmp_path: Path) -> None:
    others = "kind: Topic\nname: small\nkey: n\nmax_record_bytes: 40\nfields: {n: int64, do: string}\n"
    text = """
inputs: {records: records}
outputs: {small: a}
answer: {from: [b], when: durable}
nodes:
  a: {use: test.pass, from: records}
  b: {use: test.pass, from: a}
"""
    program = built(tmp_path, make_plan(tmp_path, text, others=others))[1].program
    producer = HandProducer()
    task = Task(program, 0, producer)
    task.take(POSITION, fetched(["pass", "pass" * 20, "pass"], 0, reply_to))
    task.step(0)
    # The edge itself holds it: only the copy cannot be.
    assert [offset_of(s) for s in producer.to("p.a")] == [0, 1, 2]
    assert [offset_of(s) for s in producer.to("small")] == [0, 2]
    letter = producer.to(DEAD_LETTERS)[0]
    assert letter.headers[headers.ERROR] == b"RecordTooLargeError"
    assert b"limit 40" in letter.headers[headers.ERROR_MESSAGE]


@pytest.mark.parametrize("where", ["key", "header"])
def test_key_and_headers_count_too(tmp_path: Path, where: str) -> None:
    """A stranger's record may fill the input's topic to the brim: with our headers it does not fit its edge."""
    program = built(tmp_path, make_plan(tmp_path, ONE_NODE))[1].program
    producer = HandProducer()
    task = Task(program, 0, producer)
    brim = b"x" * (limits.MAX_RECORD_BYTES + limits.MAX_HEADER_BYTES - 500)
    plain = fetched(["pass"])[0]
    heavy = (
        message(1, plain.value(), [("mine", brim)])
        if where == "header"
        else message(1, plain.value(), key=brim)
    )
    task.take(POSITION, [plain, heavy])
    task.step(0)
    assert len(producer.to("p.a")) == 1
    letter = producer.to(DEAD_LETTERS)[0]
    assert letter.headers[headers.ERROR] == b"RecordTooLargeError"
    assert b"of key and headers" in letter.headers[headers.ERROR_MESSAGE]


ONE_NODE = "inputs: {records: records}\nnodes:\n  a: {use: test.pass, from: records}\n"


def test_in_hand_is_bounded_and_time_is_told(programs: dict[str, tuple[Path, str]]) -> None:
    driven = Driven(stage_of(programs), "durable")

    def told() -> tuple[bool, bool, int | None, bool]:
        task = driven.task
        return task.idle, task.full, task.work_ms, task.caller_waits

    assert told() == (True, False, None, False)
    for _ in range(limits.MAX_BATCHES_IN_FLIGHT):
        assert not told()[1]
        driven.take(["pass"])
    assert told() == (False, True, 0, False)
    for _ in range(limits.MAX_BATCHES_IN_FLIGHT):
        driven.step()
    assert told() == (False, True, None, True)
    driven.producer.acknowledge(0)
    driven.collect()
    assert told() == (False, False, None, True)


def test_a_waiting_retry_holds_back_its_key_and_no_other(programs: dict[str, tuple[Path, str]]) -> None:
    driven = Driven(stage_of(programs), "durable")
    driven.take(["retry", "pass"])  # keys 0, 1
    driven.take(["pass", "pass"])  # keys 2, 0
    driven.take(["pass", "pass", "pass"])  # keys 1, 2, 0
    for _ in range(4):
        driven.task.step(1_000)
    assert [offset_of(s) for s in driven.producer.to("p.a")] == [1, 2, 4, 5]
    assert driven.task.work_ms == 1_010
    driven.producer.acknowledge_all()
    driven.collect()
    driven.commit()
    assert driven.committed == 0, "what was overtaken is not done"
    for now_ms in (1_010, 1_020, 1_020, 1_020):  # the second and the third attempt
        driven.task.step(now_ms)
    assert [offset_of(s) for s in driven.producer.to("p.a")] == [1, 2, 4, 5, 0, 3, 6]
    driven.finish()
    assert driven.committed == 7


def test_a_retry_that_waits_by_a_clock_that_is_set_back_waits_no_longer(
    programs: dict[str, tuple[Path, str]],
) -> None:
    driven = Driven(stage_of(programs), "durable")
    driven.take(["retry", "pass"])
    driven.take(["retry", "pass"])
    for _ in range(4):
        driven.task.step(3_600_000)
    assert [offset_of(s) for s in driven.producer.to("p.a")] == [1], "the last has the key of the first"
    for now_ms in (1_000, 1_010, 1_020, 1_020, 1_030, 1_030):
        driven.task.step(now_ms)
    assert sorted(offset_of(s) for s in driven.producer.to("p.a")) == [0, 1, 2, 3]


def test_not_more_than_so_much_overtakes_a_retry(
    programs: dict[str, tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_RECORDS_WAITING", 3)
    driven = Driven(stage_of(programs), "durable")
    for actions in (["retry", "pass"], ["pass", "pass"], ["pass", "pass"]):
        driven.take(actions)
    for _ in range(4):
        driven.task.step(1_000)
    assert [offset_of(s) for s in driven.producer.to("p.a")] == [1, 2]
    assert driven.task.work_ms == 1_010
    driven.finish()
    assert sorted(offset_of(s) for s in driven.producer.to("p.a")) == list(range(6))


def test_who_gives_up_behind_a_retry_is_not_worked_for(programs: dict[str, tuple[Path, str]]) -> None:
    driven = Driven(stage_of(programs), "durable")
    driven.take(["retry"])
    (value,) = encoded([(3, "pass")])
    late = [*reply_to(3), (headers.DEADLINE, b"1005")]
    driven.task.take(POSITION, [message(3, value, late, key=b"k0")])
    for now_ms in (1_000, 1_000, 1_010, 1_020, 1_020):
        driven.task.step(now_ms)
    driven.producer.acknowledge_all()
    driven.task.collect()
    assert [offset_of(s) for s in driven.producer.to("p.a")] == [0]
    told = {s.key: s.headers[headers.STATUS] for s in driven.producer.to(REPLIES)}
    assert told == {b"r0": b"ok", b"r3": b"expired"}


def test_a_step_runs_one_batch_so_that_the_loop_keeps_polling(programs: dict[str, tuple[Path, str]]) -> None:
    driven = Driven(stage_of(programs), "durable")
    driven.take(["pass"])
    driven.take(["pass"])
    driven.step()
    assert [offset_of(s) for s in driven.producer.to("p.a")] == [0]
    assert driven.task.work_ms == 0
