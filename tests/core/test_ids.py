"""Ids: the layout of RFC 9562, uniqueness, and the same id for the same record."""

from __future__ import annotations

import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core import ids

TIMES = st.integers(0, 2**48 - 1)


def check_layout(record_id: bytes, time_ms: int) -> None:
    parsed = uuid.UUID(record_id.decode())
    assert str(parsed).encode() == record_id
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert ids.time_ms_of(record_id) == time_ms


@given(TIMES, st.integers(0, 2**64 - 1), st.integers(0, 2**62))
def test_every_kind_of_id_is_a_uuid7_of_its_time(time_ms: int, seed: int, offset: int) -> None:
    positioned = ids.of_positions(seed, [time_ms], [offset])[0]
    for made in (
        positioned,
        ids.mint(time_ms),
        ids.child(positioned, "n", "out", 3),
        ids.joined("n", time_ms, b"a", b"b"),
    ):
        check_layout(made, time_ms)
    assert ids.malformed([positioned]) == []


def test_a_million_positions_have_a_million_ids() -> None:
    count = 500_000
    seeds = [ids.seed_of("c", "t", n) for n in range(2)]
    found = {i for seed in seeds for i in ids.of_positions(seed, [0] * count, range(count))}
    assert len(found) == 2 * count


@given(st.lists(st.tuples(TIMES, st.integers(0, 2**40)), min_size=1, max_size=20), st.data())
def test_a_position_has_one_id_in_whatever_batch(
    positions: list[tuple[int, int]], data: st.DataObject
) -> None:
    times, offsets = [t for t, _ in positions], [o for _, o in positions]
    whole = ids.of_positions(7, times, offsets)
    cut = data.draw(st.integers(0, len(positions)))
    assert whole == ids.of_positions(7, times[:cut], offsets[:cut]) + ids.of_positions(
        7, times[cut:], offsets[cut:]
    )


def test_where_a_record_is_decides_its_seed() -> None:
    seeds = {
        ids.seed_of(c, t, p) for c in ("a", "b") for t in ("t", "u") for p in range(3)
    } | {ids.seed_of("a\0t", "", 0)}  # fmt: skip
    assert len(seeds) == 13


def test_children_differ_by_all_that_names_them() -> None:
    parent = ids.mint(5)
    made = [
        ids.child(parent, "n", "out", 0), ids.child(parent, "n", "out", 1), ids.child(parent, "n", "side", 0),
        ids.child(parent, "m", "out", 0), ids.child(ids.mint(5), "n", "out", 0), ids.child(parent, "nou", "t", 0),
        ids.joined("n", 5, parent),
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    assert ids.child(parent, "n", "out", 0) == made[0]


def test_times_before_the_epoch_are_the_epoch() -> None:
    assert [ids.time_ms_of(i) for i in ids.of_positions(1, [-1, 0], [0, 1])] == [0, 0]
    assert ids.time_ms_of(ids.mint(-5)) == 0


def test_minted_ids_differ() -> None:
    assert len({ids.mint(1) for _ in range(10_000)}) == 10_000


def test_threads_and_forks_mint_ids_of_their_own() -> None:
    """What was drawn of the system's randomness for many ids is used once."""
    with ThreadPoolExecutor(4) as pool:
        minted = list(pool.map(lambda _: ids.mint(1), range(20_000), chunksize=50))
    assert len(set(minted)) == 20_000
    script = (
        "import os; from dataflow.core import ids; ids.mint(1); child = os.fork();"
        "os.write(1, ids.mint(1) + b' '); child and os.waitpid(child, 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    first, second = done.stdout.split()
    assert first != second


def test_no_positions_have_no_ids() -> None:
    assert ids.of_positions(1, [], []) == []


@given(st.lists(st.one_of(st.uuids().map(lambda u: str(u).encode()), st.binary(max_size=40)), max_size=8))
def test_what_is_malformed_is_what_uuid_would_write_otherwise(texts: list[bytes]) -> None:
    def canonical(text: bytes) -> bool:
        try:
            return str(uuid.UUID(text.decode("ascii"))).encode() == text
        except ValueError:
            return False

    assert ids.malformed(texts) == [i for i, text in enumerate(texts) if not canonical(text)]


def test_the_time_of_no_id_is_an_error() -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        ids.time_ms_of(b"x" * 36)
