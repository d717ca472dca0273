"""State by key over the life of tasks: restarts, rebalances, broken commits; timers, and records made from state."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflow.codecs import codec_for
from dataflow.control.dead_letters import read_letters, redrive
from dataflow.core import headers, limits
from dataflow.core.errors import FencedError, PlanError, TransportError
from dataflow.runtime import restore
from dataflow.runtime.stage import StageLoop
from dataflow.transport.memory_log import MemoryConsumer
from tests.runtime.keyed import COUNT, KEYED, Keyed, keyed, reply_to
from tests.runtime.kit import RECORD, make_plan

pytestmark = pytest.mark.usefixtures("seldom")
BOTH = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])


def counts(run: Keyed, partition: int = 0) -> dict[str, int]:
    """The last count of each key."""
    return {key: count for key, count, _ in run.seen(partition=partition)}


# ---------------------------------------------------------------- restarts


@BOTH
@pytest.mark.parametrize("kept", ["file", "changelog", "memory"])
def test_state_survives_a_restart(tmp_path: Path, delivery: str, kept: str) -> None:
    run = keyed(tmp_path, delivery, files=kept != "memory")
    run.run([("a", "count"), ("b", "count"), ("a", "count")])
    if kept == "changelog":
        shutil.rmtree(tmp_path / "state")
    run.run([("a", "count"), ("b", "count")])
    assert run.seen() == [
        ("a", 1, "count"),
        ("b", 1, "count"),
        ("a", 2, "count"),
        ("a", 3, "count"),
        ("b", 2, "count"),
    ]


def test_another_machines_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    run = keyed(tmp_path, files=True)
    run.run([("a", "count")])
    shutil.copytree(tmp_path / "state", tmp_path / "other")
    run.run([("a", "count"), ("b", "count")])
    run.files = tmp_path / "other"
    run.run([("a", "count"), ("b", "count")])
    assert counts(run) == {"a": 3, "b": 2}


def test_a_changelog_made_anew_begins_without_state(tmp_path: Path) -> None:
    run = keyed(tmp_path, files=True)
    run.run([("a", "count"), ("a", "count")])
    run.fabric.delete([run.stage.changelog])
    topic = run.plan.topics[run.stage.changelog]
    run.fabric.create(topic.name, topic.partitions, topic.config)
    run.run([("a", "count")])
    assert counts(run) == {"a": 1}


def test_no_record_runs_before_its_state_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = keyed(tmp_path, partitions=2)
    run.run([(f"k{n}", "count") for n in range(20)])
    run.run([("last", "count")])
    run.write([("last", "count"), ("k0", "count")])
    monkeypatch.setattr(restore, "RESTORE_RECORDS", 3)
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        loop.turn(0)
        assert loop.tasks == 1  # the other partition has nothing to restore
        before = len(run.seen())
        turns = 0
        while loop.tasks < 2:
            assert len(run.seen()) == before
            loop.turn(0)
            turns += 1
        assert turns > 5
        run.settle(loop)
    assert run.seen()[before:] == [("last", 2, "count"), ("k0", 2, "count")]


@BOTH
def test_a_crash_before_the_commit_leaves_state_as_it_was(tmp_path: Path, delivery: str) -> None:
    run = keyed(tmp_path, delivery, files=True)
    run.run([("a", "count")])
    run.write([("a", "count"), ("a", "count")])
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        loop.turn(0)
        loop.turn(0)
        loop.abandon()
    assert run.committed() == 1
    run.run()
    assert counts(run) == {"a": 3}
    assert run.committed() == 3


def test_an_aborted_transaction_leaves_state_as_it_was(tmp_path: Path) -> None:
    run = keyed(tmp_path, "exactly_once", files=True)
    run.run([("a", "count")])
    run.write([("a", "count")])
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        loop.turn(0)
        loop.turn(0)
        run.fabric.transactional(f"{run.stage.group}.0").close()  # somebody else takes over
        with pytest.raises(FencedError):
            loop.commit_now()
        loop.abandon()
    assert len(run.seen()) == 1
    changes = len(run.records(run.stage.changelog))
    run.run()
    assert run.seen() == [("a", 1, "count"), ("a", 2, "count")]
    assert len(run.records(run.stage.changelog)) > changes


def test_at_least_once_a_refused_commit_counts_twice_and_never_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = keyed(tmp_path)
    run.write([("a", "count"), ("a", "count")])
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        loop.turn(0)
        loop.turn(0)

        def refused(self: MemoryConsumer, offsets: object, *, wait: bool) -> None:
            raise TransportError("not now")

        with monkeypatch.context() as patch:
            patch.setattr(MemoryConsumer, "commit", refused)
            with pytest.raises(TransportError):
                loop.commit_now()
            loop.abandon()
    run.run()
    assert counts(run) == {"a": 4}
    assert run.committed() == 2


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["at_least_once", "exactly_once"]),
    st.lists(
        st.one_of(
            st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["count", "retry"])), max_size=4),
            st.sampled_from(["turn", "commit", "crash", "restart", "wait"]),
        ),
        max_size=25,
    ),
    st.booleans(),
)
def test_state_and_offsets_agree_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, delivery: str, steps: list[object], files: bool
) -> None:
    run = keyed(tmp_path_factory.mktemp("run"), delivery, files=files)
    wanted: Counter[str] = Counter()
    with ExitStack() as outer, pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "DRAIN_TIMEOUT_MS", 0)  # a retry is not waited for: the clock stands still
        stack = ExitStack()
        outer.push(stack)

        def begin() -> StageLoop:
            loop = run.loop()
            loop.open(stack)
            return loop

        loop = begin()
        for step in [*steps, "restart"]:
            if isinstance(step, list):
                run.write(step)
                wanted.update(key for key, _ in step)
            elif step in {"crash", "restart"}:
                if step == "crash":
                    loop.abandon()
                stack.close()
                loop = begin()
            elif step == "commit":
                loop.commit_now()
            elif step == "wait":
                run.clock.advance(5)
            else:
                loop.turn(0)
        run.settle(loop, 60)
        run.write([(key, "count") for key in "abc"])
        run.settle(loop)
    last = counts(run)
    assert last == {key: wanted[key] + 1 for key in "abc"}
    assert run.committed() == len(run.records("records"))


# ---------------------------------------------------------------- rebalance


@BOTH
def test_state_moves_with_its_partition(tmp_path: Path, delivery: str) -> None:
    run = keyed(tmp_path, delivery, partitions=2, files=True)
    with ExitStack() as stack:
        first = run.loop()
        first.open(stack)
        run.write([("a", "count")], partition=0)
        run.write([("b", "count"), ("b", "count")], partition=1)
        run.settle(first)
        assert first.tasks == 2
        second = run.loop()
        second.open(stack)
        for _ in range(4):
            first.turn(0)
            second.turn(0)
        assert (first.tasks, second.tasks) == (1, 1)
        run.write([("a", "count")], partition=0)
        run.write([("b", "count")], partition=1)
        for loop in (first, second):
            run.settle(loop)
        assert counts(run, 0) == {"a": 2}
        assert counts(run, 1) == {"b": 3}
        first.abandon()
        first.lost([("records", 0)])
        assert first.tasks == 0
    run.run()
    run.write([("a", "count")], partition=0)
    run.write([("b", "count")], partition=1)
    run.run()
    assert (counts(run, 0), counts(run, 1)) == ({"a": 3}, {"b": 4})


def test_a_revoked_partition_that_is_being_restored_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = keyed(tmp_path, files=True)
    run.run([(f"k{n}", "count") for n in range(10)])
    shutil.rmtree(tmp_path / "state")
    monkeypatch.setattr(restore, "RESTORE_RECORDS", 1)
    with ExitStack() as stack:
        loop = run.loop()
        loop.open(stack)
        loop.turn(0)
        restoring = not loop.idle
        loop.revoked([("records", 0)])
        assert (restoring, loop.idle) == (True, True)
    run.run([("k0", "count")])
    assert counts(run)["k0"] == 2


# ---------------------------------------------------------------- rows


def test_a_row_that_raises_fails_its_batch_and_leaves_no_trace_in_state(tmp_path: Path) -> None:
    run = keyed(tmp_path)
    run.run([("a", "count")])
    run.run([("a", "count"), ("b", "raise")])
    assert len(run.letters()) == 2
    run.run([("a", "count"), ("b", "count")])
    assert counts(run) == {"a": 2, "b": 1}


def test_later_rows_of_a_key_wait_for_its_retry_and_others_do_not(tmp_path: Path) -> None:
    run = keyed(tmp_path)
    run.run([("a", "count"), ("a", "retry"), ("b", "count"), ("a", "count"), ("a", "retry"), ("b", "count")])
    seen = run.seen()
    assert [s for s in seen if s[0] == "b"] == [("b", 1, "count"), ("b", 2, "count")]
    assert [s for s in seen if s[0] == "a"] == [
        ("a", 1, "count"), ("a", 2, "retried"), ("a", 3, "count"), ("a", 4, "retried"),
    ]  # fmt: skip
    assert seen.index(("b", 2, "count")) < seen.index(("a", 2, "retried"))
    assert run.letters() == []


ANSWERING = """
inputs: {{records: records}}
answer: {{from: [after], when: {when}}}
delivery: {delivery}
nodes:
  count: {{use: test.count, from: records}}
  after: {{use: test.pass, from: count}}
"""


def answering(folder: Path, when: str, delivery: str) -> Keyed:
    plan = make_plan(folder, ANSWERING.format(when=when, delivery=delivery), registry=KEYED)
    return Keyed(folder, plan)


ANSWERS = pytest.mark.parametrize(
    ("when", "delivery"),
    [("eager", "at_least_once"), ("durable", "at_least_once"), ("committed", "exactly_once")],
)


@ANSWERS
def test_a_record_made_from_state_answers_who_waited_for_a_held_one(
    tmp_path: Path, when: str, delivery: str
) -> None:
    run = answering(tmp_path, when, delivery)
    run.run([("a", "hold")], head=reply_to("one"))
    assert run.replies() == []
    run.run([("a", "flush")], head=reply_to("two"))
    found = {name: (status, value) for name, status, value in run.replies()}
    assert {name: status for name, (status, _) in found.items()} == {"one": "ok", "two": "ok"}
    value = codec_for("avro", RECORD).decode([found["one"][1]]).columns["do"].tolist()
    assert value == ["held 0"]


@ANSWERS
def test_a_held_row_that_ends_is_refused(tmp_path: Path, when: str, delivery: str) -> None:
    run = answering(tmp_path, when, delivery)
    run.run([("a", "hold")], head=reply_to("one"))
    run.run([("a", "end")])
    assert [(name, status) for name, status, _ in run.replies()] == [("one", "dropped")]
    assert run.letters() == []


def test_a_held_row_that_fails_is_dead_lettered_as_it_was_and_can_be_redriven(tmp_path: Path) -> None:
    run = answering(tmp_path, "durable", "at_least_once")
    run.run([("a", "hold")], head=[*reply_to("one"), ("mine", b"1")])
    run.run([("a", "lose")])
    assert [(name, status) for name, status, _ in run.replies()] == [("one", "failed")]
    (letter,) = run.letters()
    original = run.records("records")[0]
    assert (letter.key(), letter.value()) == (original.key(), original.value())
    told = dict(letter.headers() or ())
    assert told["mine"] == b"1"
    assert (told[headers.ERROR], told[headers.ERROR_TOPIC]) == (b"Lost", b"records")
    (done,) = redrive(run.fabric, list(read_letters(run.fabric)))
    assert done.skipped == ""
    again = run.records("records")[-1]
    assert (again.key(), again.value()) == (b"a", original.value())


def test_a_made_record_that_fails_further_on_is_dead_lettered_by_itself(tmp_path: Path) -> None:
    text = """
inputs: {records: records}
nodes:
  count: {use: test.count, from: records}
  after: {use: test.script, from: count}
"""
    plan = make_plan(tmp_path, text, registry=KEYED)
    run = Keyed(tmp_path, plan)
    run.run([("a", "timer:1000")])
    run.clock.advance(2)
    run.run()  # "fired timer" is nothing that test.script knows: it raises
    (letter,) = [x for x in run.letters() if x.key() == b"a" and b"fired" in (x.value() or b"")]
    assert letter.value() == run.records("p.count")[-1].value()
    skipped = [done.skipped for done in redrive(run.fabric, list(read_letters(run.fabric)))]
    assert any("not read from a topic" in text for text in skipped)


# ---------------------------------------------------------------- planning


def test_partitions_under_state_do_not_change(tmp_path: Path) -> None:
    from dataflow.control.deploy import deploy

    run = keyed(tmp_path, partitions=2)
    more = make_plan(tmp_path, COUNT.format(delivery="at_least_once"), partitions=3, registry=KEYED)
    with pytest.raises(PlanError, match=r"keeps the state of its keys on 2 partitions .* planned for 3"):
        deploy(run.fabric, more)
