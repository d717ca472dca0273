"""What a customer is told, from what the shop's last count said."""

from __future__ import annotations

from typing import Literal, TypedDict


class Promise(TypedDict):
    when: Literal["today", "this week", "we ask the shop"]
    short: int


def promise(order: dict[str, int | None]) -> Promise:
    """An order that the shelf covers goes out today; what is short comes from the warehouse."""
    pieces, level = order["pieces"], order["level"]
    assert pieces is not None, "the contract says so"
    if level is None:
        return {"when": "we ask the shop", "short": 0}
    short = max(pieces - max(level, 0), 0)
    return {"when": "this week" if short else "today", "short": short}
