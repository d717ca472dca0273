from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.core.errors import GatewayError
from dataflow.core.limits import IDEMPOTENCY_LEASE_MS
from dataflow.gateway.ledger import Accepted, Claims, digest, parse_key, parse_prefer

FIRST = Accepted("a", "accepted", "p", "v1", 2, "list", key="k", body="b", time_ms=1_000)
TTL = 60_000


def claims(*steps: Accepted) -> Claims:
    made = Claims(TTL)
    for offset, step in enumerate(steps):
        made.take(step, offset)
    return made


def test_steps_are_written_and_read() -> None:
    step = replace(FIRST, outputs=(("x", True), ("y", False)))
    assert Accepted.read(step.written()) == step
    assert Accepted.read(FIRST.written()) == FIRST


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"7", b"{}", b'{"id": 7, "step": "sent"}', b'{"id": "a", "step": "sent", "x": 1}',
              b'{"id": "a", "step": "sent", "rows": -1}', b'{"id": "a", "step": "sent", "outputs": [1]}'],
)  # fmt: skip
def test_what_strangers_wrote_is_no_step(value: bytes | None) -> None:
    assert Accepted.read(value) is None


def test_the_first_claim_counts() -> None:
    made = claims(FIRST, replace(FIRST, id="b"), replace(FIRST, id="c", key="other"))
    claim = made.of("k", 2_000)
    assert claim is not None
    assert (claim.accepted.id, claim.offset) == ("a", 0)
    assert len(made) == 2


def test_a_claim_counts_for_its_time() -> None:
    late = replace(FIRST, id="b", time_ms=1_000 + TTL)
    made = claims(FIRST, replace(late, id="x", time_ms=999 + TTL))
    assert made.of("k", 999 + TTL)
    assert made.of("k", 1_000 + TTL) is None
    made.take(late, 2)
    found = made.of("k", 1_000 + TTL)
    assert found is not None
    assert found.accepted.id == "b"


def test_what_was_not_sent_may_be_tried_again_once() -> None:
    again = replace(FIRST, id="b", attempt=1, time_ms=30_000)
    made = claims(FIRST)
    claim = made.of("k", 2_000)
    assert claim is not None
    assert not claim.left_over(1_000 + IDEMPOTENCY_LEASE_MS - 1)
    assert claim.left_over(1_000 + IDEMPOTENCY_LEASE_MS)
    made.take(again, 1)
    made.take(again, 2)  # another gateway had the same thought
    found = made.of("k", 30_000)
    assert found is not None
    assert (found.offset, found.accepted.attempt) == (1, 1)


def test_what_was_sent_is_not_sent_again() -> None:
    sent = replace(FIRST, step="sent")
    made = claims(FIRST, sent, replace(FIRST, attempt=1))
    claim = made.of("k", 2_000)
    assert claim is not None
    assert (claim.offset, claim.step) == (0, "sent")
    assert not claim.left_over(10**9)


def test_what_failed_may_be_tried_at_once() -> None:
    made = claims(FIRST, replace(FIRST, step="failed"))
    claim = made.of("k", 1_001)
    assert claim is not None
    assert claim.left_over(1_001)


def test_a_step_of_an_earlier_attempt_changes_nothing() -> None:
    made = claims(FIRST, replace(FIRST, attempt=1), replace(FIRST, step="sent"))
    claim = made.of("k", 1_001)
    assert claim is not None
    assert claim.step == "accepted"


def test_claims_are_forgotten_when_their_time_is_over() -> None:
    made = claims(FIRST, replace(FIRST, id="b", key="l", time_ms=5_000))
    made.forget(1_000 + TTL)
    assert len(made) == 1
    made.forget(5_000 + TTL)
    assert len(made) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["accepted", "sent", "failed"]), st.integers(0, 2))
    )
)
def test_all_who_read_the_log_agree_whenever_they_began_to_write(steps: list[tuple[str, str, int]]) -> None:
    log = [replace(FIRST, id=i, step=s, attempt=a) for i, s, a in steps]  # type: ignore[arg-type]
    whole, winners = Claims(TTL), []
    for offset, step in enumerate(log):
        before = whole.of("k", 2_000)
        whole.take(step, offset)
        after = whole.of("k", 2_000)
        if after is not None and (before is None or before.offset != after.offset):
            winners.append(after)
        if before is not None and before.step == "sent":  # what was sent is never taken over
            assert after is not None
            assert after.offset == before.offset
    assert [w.accepted.attempt for w in winners] == sorted({w.accepted.attempt for w in winners})


@pytest.mark.parametrize(
    ("header", "key"), [(b"abc", "abc"), (b' "a b" ', "a b"), (rb'"a\"\\"', 'a"\\'), (b"x" * 255, "x" * 255)]
)
def test_keys(header: bytes, key: str) -> None:
    assert parse_key(header) == key


@pytest.mark.parametrize("header", [b"", b'""', b"x" * 256, b"\xe9", b"a\tb"])
def test_bad_keys(header: bytes) -> None:
    with pytest.raises(GatewayError, match="Idempotency-Key"):
        parse_key(header)


def test_preferences() -> None:
    assert parse_prefer(b'Respond-Async, wait="10"; x=1,, foo') == {
        "respond-async": "",
        "wait": "10",
        "foo": "",
    }


def test_digests_know_where_parts_end() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
