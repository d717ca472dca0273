"""A quick share of the attacks, and doors that are broken on purpose: the verdict must say so."""

from __future__ import annotations

import json
from random import Random

import pytest
from click.testing import CliRunner

from attacks.__main__ import main
from attacks.bodies import Case, binary_case, json_case
from attacks.doors import address_case, header_case, record_case
from attacks.heads import head_case
from attacks.messages import message_case
from attacks.mutants import MUTANTS
from attacks.run import SHARES, Settings, run
from attacks.target import Held, Options
from attacks.verdict import CLOSED, HUNG, Tally

SHORT = Options(head_ms=500, body_ms=500, stall_ms=1_000, keep_alive_ms=1_000, linger_ms=500)


@pytest.mark.slow
def test_a_quick_share_of_everything() -> None:
    told: list[str] = []
    chosen = Settings(seed=1, cases=600, crowd=200, options=SHORT)
    verdict = run(chosen, told.append)
    assert verdict["ok"], told
    assert verdict["cases"] >= 800
    assert set(verdict["families"]) == {*SHARES, "list", "frames", "crowd"}
    # What was sent was not refused at the gate: some of it was answered, at both doors.
    assert verdict["statuses"]["200"] > 60
    assert verdict["statuses"]["OK"] > 8


@pytest.mark.slow
def test_a_door_that_is_broken_in_every_way_is_condemned() -> None:
    told: list[str] = []
    broken = Options(**{**SHORT.__dict__, "mutants": tuple(MUTANTS)})
    chosen = Settings(
        seed=1,
        cases=2_000,
        crowd=0,
        families=("json",),
        bound_s=1.0,
        settle_s=0.0,
        stop_s=1.0,
        options=broken,
    )
    verdict = run(chosen, told.append)
    assert not verdict["ok"]
    assert verdict["hung"] > 0
    assert verdict["faults"] > 0
    said = "\n".join(told)
    for charge in (
        "WRONG json: 500",
        "WRONG json: hung",
        "LEAK tasks",
        "LEAK budget",
        "LEAK memory_mb",
        "did not end",
    ):
        assert charge in said, said


def test_the_exit_status_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def stand_in(chosen: Settings, _: object) -> dict[str, object]:
        seen.append(chosen)
        return {"cases": 1, "ok": chosen.seed == 3}

    monkeypatch.setattr("attacks.__main__.run", stand_in)
    good = CliRunner().invoke(main, ["--quick", "--seed", "3"])
    assert (good.exit_code, json.loads(good.stdout.splitlines()[-1])["ok"]) == (0, True)
    assert CliRunner().invoke(main, ["--seed", "4"]).exit_code == 1
    assert seen[1].cases >= 100_000


@pytest.mark.parametrize(
    ("status", "sound"),
    [(200, True), (400, True), (503, True), (504, True), (CLOSED, True), ("INVALID_ARGUMENT", True), ("UNAVAILABLE", True),
     (500, False), (501, False), (502, False), (599, False), (HUNG, False), ("INTERNAL", False), ("UNKNOWN", False)],
)  # fmt: skip
def test_what_an_outcome_means(status: int | str, sound: bool) -> None:
    tally = Tally()
    tally.note("json", 200, b"")
    tally.note("json", status, b"sent")
    assert (tally.sound, bool(tally.told)) == (sound, not sound)
    assert tally.document()["cases"] == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [({}, []), ({"pending": 1}, ["pending: 1"]), ({"budget": 7}, ["budget: 7"]), ({"streams": 1}, ["streams: 1"]),
     ({"tasks": 100}, ["tasks: 100, 9 at first"]), ({"descriptors": 99}, ["descriptors: 99, 20 at first"]),
     ({"memory_mb": 400.0}, ["memory_mb: 400, 100 at first"])],
)  # fmt: skip
def test_what_is_a_leak(more: dict[str, float], told: list[str]) -> None:
    from attacks.run import _leaks

    before = {"tasks": 9, "pending": 0, "budget": 0, "streams": 0, "descriptors": 20, "memory_mb": 100.0}
    assert _leaks(Held(**before), Held(**{**before, **more})) == told  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize("make", [json_case, binary_case, record_case, address_case, header_case])
def test_a_seed_says_which_cases(make: object) -> None:
    assert callable(make)
    first = [make(Random(f"7/{n}")) for n in range(300)]
    assert first == [make(Random(f"7/{n}")) for n in range(300)]
    assert len({case.body + case.path.encode() for case in first if isinstance(case, Case)}) > 200


def test_a_seed_says_which_bytes() -> None:
    for make in (head_case, message_case):
        first = [make(Random(f"7/{n}")) for n in range(300)]
        assert first == [make(Random(f"7/{n}")) for n in range(300)]
        assert len(set(first)) > 150
