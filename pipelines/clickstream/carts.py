"""What became of each cart: paid, or left behind. State and timers by visitor."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict

from dataflow.sdk import KeyedContext, Timer


class Cart(TypedDict):
    visitor: str
    outcome: Literal["paid", "left"]
    products: list[str]
    cents: int
    seconds: float
    remind: bool


class Carts:
    """A cart that nothing happened to for `patience` was left; its visitor is reminded once in `pause`."""

    def __init__(self, patience_minutes: float = 45, pause_days: float = 7) -> None:
        self._patience = timedelta(minutes=patience_minutes)
        self._pause = timedelta(days=pause_days)

    def process(self, click: dict[str, Any], context: KeyedContext) -> Cart | None:
        cart = context.state.map("cart")
        match click["action"]:
            case "add" if click["product"] is not None:
                cart[click["product"]] = click["cents"]
            case "remove":
                cart.pop(click["product"], None)
            case "pay" if cart:
                context.timer.cancel("left")
                return self._ended(click["visitor"], "paid", click["at"], context)
            case _:
                return None
        if cart:
            since = context.state.get("since", click["at"])
            last = max(context.state.get("last", click["at"]), click["at"])
            context.state.set("since", min(since, click["at"]))
            context.state.set("last", last)
            context.timer.at_event_time(last + self._patience, name="left")
        else:
            context.timer.cancel("left")
            self._forget(context)
        return None

    def on_timer(self, timer: Timer, context: KeyedContext) -> Cart:
        del timer
        return self._ended(context.key.decode(), "left", context.state.get("last"), context)

    def _ended(
        self, visitor: str, outcome: Literal["paid", "left"], at: datetime, context: KeyedContext
    ) -> Cart:
        cart = context.state.map("cart")
        since = context.state.get("since", at)
        reminded = context.state.get("reminded")
        remind = outcome == "left" and (reminded is None or at - reminded >= self._pause)
        if remind:
            context.state.set(
                "reminded", at, ttl="30d"
            )  # longer than the pause: visitors' clocks are not ours
        made = Cart(
            visitor=visitor,
            outcome=outcome,
            products=list(cart),
            cents=sum(cart.values()),
            seconds=(at - since).total_seconds(),
            remind=remind,
        )
        self._forget(context)
        return made

    @staticmethod
    def _forget(context: KeyedContext) -> None:
        context.state.map("cart").clear()
        context.state.delete("since")
        context.state.delete("last")
