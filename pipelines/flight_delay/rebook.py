"""What an airline does about a flight that will arrive late: offers to passengers, a notice to the crew.

Plain functions of a row: no clock, no chance, so a replay says the same again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

# A delay of so much breaks every plan on board, not only connections.
EVERYONE_MINUTES = 120.0
CONNECTING_SHARE = 0.3
# Aircraft missing from the register of planes get the year's median.
TYPICAL_SEATS = 149
# A house rule of this example. The law (14 CFR part 117) looks at the crew's whole day, which the data do not tell.
CREW_LIMIT_MINUTES = 8 * 60.0
MINIMUM_TURNAROUND_MINUTES = 30.0


class Offer(TypedDict):
    """What to do about one late flight. `offers` is the number of passengers to ask, 0 in a notice to the crew.

    Which flight it is, the pipeline keeps beside it: a field that is kept also keeps its contract, private labels
    included.
    """

    action: Literal["rebook", "crew_notice"]
    delay_minutes: float
    offers: int
    text: str


def offer(row: Mapping[str, Any]) -> Offer:
    """Offer another flight to those who will miss a connection, or to everyone when the delay is long.

    `row` needs carrier, flight, dest, seats (None if unknown) and delay (predicted, minutes).
    """
    delay_minutes = float(row["delay"])
    seats = TYPICAL_SEATS if row["seats"] is None else int(row["seats"])
    everyone = delay_minutes >= EVERYONE_MINUTES
    offers = seats if everyone else round(seats * CONNECTING_SHARE)
    whom = f"all {offers} seats" if everyone else f"about {offers} connecting passengers"
    return _notice(row, "rebook", offers, f"offer {whom} another flight")


def crew_notice(row: Mapping[str, Any]) -> Offer:
    """Tell the crew how late they will be, and whether the aircraft's next flight needs another crew.

    `row` needs what `offer` needs but seats, and sched_dep and sched_arr (datetimes) for the time in the air.
    """
    delay_minutes = float(row["delay"])
    block_minutes = (row["sched_arr"] - row["sched_dep"]).total_seconds() / 60
    on_duty_minutes = block_minutes + delay_minutes
    if on_duty_minutes > CREW_LIMIT_MINUTES:
        advice = f"{on_duty_minutes / 60:.1f} hours since the scheduled departure: call a relief crew"
    else:
        advice = f"be ready to leave again {MINIMUM_TURNAROUND_MINUTES:.0f} minutes after arrival"
    return _notice(row, "crew_notice", 0, advice)


def _notice(
    row: Mapping[str, Any], action: Literal["rebook", "crew_notice"], offers: int, advice: str
) -> Offer:
    delay_minutes = round(float(row["delay"]), 1)
    name = f"{row['carrier']} {row['flight']} to {row['dest']}"
    return Offer(
        action=action,
        delay_minutes=delay_minutes,
        offers=offers,
        text=f"{name} is expected {delay_minutes:.0f} minutes late: {advice}.",
    )
