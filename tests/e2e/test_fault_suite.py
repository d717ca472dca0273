"""The fault suite itself: its quick run holds, and it condemns engines that are broken on purpose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import numpy as np
import pytest
from confluent_kafka.admin import MemberAssignment, MemberDescription

from faults.callers import Answer
from faults.evidence import Found
from faults.expired import Request, Step, unexplained
from faults.owners import counted, described
from faults.schedule import FULL, QUICK, schedule
from faults.story import EDGES, LATE, PARTITIONS, PIECES, Edge, Story, murmur2, word
from faults.verdicts import judge_edge
from faults.world import Waits

ROOT = Path(__file__).parent.parent.parent
broker = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(900)]


def suite(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run it in a process of its own: exit status, the last line of what it printed, and what it told."""
    ran = subprocess.run(
        [sys.executable, "-m", "faults", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stdout, ran.stderr[-6000:]
    return ran.returncode, json.loads(ran.stdout.splitlines()[-1]), ran.stderr


def broken(told: str) -> set[int]:
    """The numbers of the invariants that were found broken."""
    return {int(number) for number in re.findall(r"^ ?(\d+) .*: BROKEN$", told, re.MULTILINE)}


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_run_holds() -> None:
    seed = ["--seed", "1"] if "CI" in os.environ else []
    status, found, told = suite("--quick", *seed)
    assert status == 0, told[-8000:]
    assert (found["lost"], found["duplicated"], found["reordered"]) == (0, 0, 0)
    assert found["records"] >= 10_000
    assert not broken(told)


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("mutants", "faults", "charges"),
    [
        (
            {
                "flow": "commit before output",
                "kept": "loses a timer",
                "plain": "without contiguous tracking",
                "gateway": "passes over strangers",
            },
            [
                "kill worker at:after output, before its offsets",
                "kill plain worker at:after the offsets",
                "foreign writer",
            ],
            [
                "codes missing on flow.last",
                "codes missing on kept.loud",
                r"codes missing on plain\.",
                "requests to handed that nothing came of",
            ],
        ),
        (
            {"flow": "without fencing", "kept": "restores nothing", "plain": "loses dead letters"},
            ["freeze worker:past its session", "lose state files"],
            ["twice on flow.last", r"kept.tally\[", "records of plain.events missing in the dead letters"],
        ),
    ],
)
def test_broken_engines_are_condemned(mutants: dict[str, str], faults: list[str], charges: list[str]) -> None:
    chosen = [x for name, mutant in mutants.items() for x in ("--mutant", f"{name}:{mutant}")]
    chosen += [x for fault in faults for x in ("--only", fault)]
    status, _, told = suite("--quick", "--records", "16000", *chosen)
    assert status == 1, told[-8000:]
    for charge in charges:
        assert re.search(f"WRONG: .*{charge}", told), f"{charge} was not seen:\n{told[-8000:]}"


STORY = Story(5, 4_000)


def found_of(edge: Edge, codes: list[int]) -> Found:
    """An edge that holds these codes, in this order of its log."""
    made = Found(edge.topic)
    for offset, code in enumerate(codes):
        made.code.append(code)
        made.partition.append(int(STORY.homes[STORY.keys[code // PIECES]]))
        made.offset.append(offset)
        made.identity.append(code)
    return made


def edge_of(topic: str) -> Edge:
    return next(e for edges in EDGES.values() for e in edges if e.topic == topic)


def test_the_judge_names_each_fault() -> None:
    edge = edge_of("flow.pieces")
    right = [int(c) for c in edge.wanted(STORY, 4_000)]
    assert judge_edge(found_of(edge, right), edge, STORY, 4_000).__dict__ == {
        "topic": "flow.pieces", "lost": [], "invented": [], "again": 0, "other_ids": 0, "reordered": [], "strayed": [],
        "strange": [],
    }  # fmt: skip
    key = STORY.keys[right[10] // PIECES]
    twin = next(
        c for c in right[11:] if STORY.keys[c // PIECES] == key and c // PIECES != right[10] // PIECES
    )
    swapped = [twin if c == right[10] else right[10] if c == twin else c for c in right]
    assert judge_edge(found_of(edge, swapped), edge, STORY, 4_000).reordered
    assert judge_edge(found_of(edge, right[:7] + right[8:]), edge, STORY, 4_000).lost == [right[7]]
    assert judge_edge(found_of(edge, [*right, right[3]]), edge, STORY, 4_000).again == 1
    dropped = int(np.flatnonzero(STORY.kinds == 3)[0]) * PIECES
    assert judge_edge(found_of(edge, [*right, dropped]), edge, STORY, 4_000).invented == [dropped]
    other = found_of(edge, right)
    other.identity[5] = other.identity[4]
    assert judge_edge(other, edge, STORY, 4_000).other_ids == 1
    other = found_of(edge, right)
    other.partition[5] = (other.partition[5] + 1) % PARTITIONS
    assert judge_edge(other, edge, STORY, 4_000).strayed == [word(int(STORY.keys[right[5] // PIECES]))]


def test_the_reference_model_agrees_with_a_plain_loop() -> None:
    """Counts, silences and windows by key, worked out record by record."""
    count = 3_000
    told: list[int] = []
    last: dict[int, int] = {}
    seen: dict[int, int] = {}
    newest: dict[int, int] = {}
    for n in range(count):
        key, home = int(STORY.keys[n]), int(STORY.homes[STORY.keys[n]])
        newest[home] = n
        due = [(k, m) for k, m in last.items() if STORY.homes[k] == home and n * 10 >= m * 10 + 2_000]
        for k, m in due:
            told.append(m)
            del last[k]
        if STORY.kinds[n] != 5:
            last[key] = n
            seen[key] = seen.get(key, 0) + 1
            assert STORY.tallies[0][n] == seen[key]
    assert STORY.silences(count).tolist() == sorted(told)
    windows: dict[tuple[int, int], list[int]] = {}
    for n in range(count):
        windows.setdefault((int(STORY.keys[n]), n * 10 // 5_000), []).append(n)
    closed = {
        max(members): (len(members), sum(members))
        for (key, window), members in windows.items()
        if (window + 1) * 5_000 <= newest[int(STORY.homes[key])] * 10
    }
    assert STORY.windows(count) == closed


def test_the_hash_of_keys_is_that_of_the_clients() -> None:
    from confluent_kafka import murmur2 as theirs

    for text in (b"", b"a", b"w17", b"four", b"more than four bytes of a key"):
        assert murmur2(text) % 12 == theirs(text, 12)


def test_a_member_is_told_apart_from_what_it_is_to_have() -> None:
    """A group that stands still because a member never gave up a partition shows there, and nowhere else."""

    def places(*numbers: int) -> MemberAssignment:
        return MemberAssignment([ck.TopicPartition("t", n) for n in numbers])

    members = described(
        [
            MemberDescription("m1", "c", "h", places(), target_assignment=places(0, 1)),
            MemberDescription("m2", "c", "h", places(2)),
        ]
    )
    assert members == {
        "c m1": {"has": [], "wants": [("t", 0), ("t", 1)]},
        "c m2": {"has": [("t", 2)], "wants": None},
    }
    assert counted(members) == {("t", 2): 1}


def test_what_a_settling_waited_for_is_summed_up() -> None:
    waits = Waits()
    for offset in range(3):
        waits.add(f"group g stands at {{('t', 0): ({offset}, 9)}}", 1.5)
    waits.add("owners of h: {('t', 0): 0}", 2.5)
    waits.add("the cluster does not answer: timed out", 0.5)
    assert str(waits) == "4 s for group g, 2 s for owners of h"


def test_a_seed_decides_the_faults_and_the_input() -> None:
    assert schedule(7, FULL) == schedule(7, FULL) != schedule(8, FULL)
    assert len(schedule(1, FULL)) >= 60
    assert {f.kind for f in schedule(1, QUICK)} <= {f.kind for f in schedule(1, FULL)}
    assert (Story(3, 500).keys == Story(3, 500).keys).all()
    assert (Story(3, 500).keys != Story(4, 500).keys).any()
    assert LATE in Story(3, 20_000).kinds


NOON = 1_763_900_000.0


def told(status: int, took_s: float = 0.3) -> Answer:
    return Answer("handed", 7, status, "", None, 0.0, took_s)


@pytest.mark.parametrize("status", [0, 504])
def test_a_request_that_a_clock_overtook_is_explained(status: int) -> None:
    steps = [Step(NOON, -3600.0), Step(NOON + 2, 0.0)]
    accepted_s = NOON + 2.4 - 3600  # by a gateway that has not looked at its clock again
    assert unexplained([Request("a", 7, accepted_s + 120)], [told(status)], steps, 120.0) == []


@pytest.mark.parametrize(
    ("deadline_s", "answers", "steps"),
    [
        pytest.param(NOON + 120, [told(504)], [], id="no clock was set"),
        pytest.param(
            NOON - 3480, [told(200)], [Step(NOON - 1, -3600.0), Step(NOON, 0.0)], id="told an answer"
        ),
        pytest.param(NOON - 3480, [], [Step(NOON - 1, -3600.0), Step(NOON, 0.0)], id="nobody was told"),
        pytest.param(NOON + 119, [told(504)], [Step(NOON - 1, -30.0), Step(NOON, 0.0)], id="a small step"),
        pytest.param(NOON + 120, [told(504)], [Step(NOON, -3600.0)], id="a step back"),
        pytest.param(NOON + 720, [told(504)], [Step(NOON - 1, -3600.0), Step(NOON, 0.0)], id="long after"),
        pytest.param(0.0, [told(504)], [Step(NOON - 1, -3600.0), Step(NOON, 0.0)], id="no deadline"),
    ],
)
def test_any_other_request_that_nothing_came_of_is_lost(
    deadline_s: float, answers: list[Answer], steps: list[Step]
) -> None:
    assert len(unexplained([Request("a", 7, deadline_s)], answers, steps, 120.0)) == 1
