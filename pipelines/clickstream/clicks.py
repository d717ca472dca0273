"""Makes days of clicks of a web shop, for the pipeline `clickstream`.

    python -m pipelines.clickstream.clicks --out clicks.csv [--visitors N] [--days D] [--seed S]

Visitors come back, most of them in the evening, and click through the shop by a Markov chain: home, categories, products of
which a few are seen by many (Zipf), the cart, payment. They stay on a page for a log-normal time. A click is sent at once
or, from a phone without a signal, up to a minute later: lines are in the order in which the shop gets them.
"""

from __future__ import annotations

import csv
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

FIELDS: Final = ("visitor", "action", "page", "product", "cents", "at")
FIRST_DAY: Final = datetime(2024, 5, 1, tzinfo=UTC)
LONGEST_WAIT_S: Final = 55.0
PRODUCTS: Final = 400
CATEGORIES: Final = 12
# How busy each hour of the day is, beginning at midnight.
BUSY: Final = np.array(
    [3, 2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 8, 9, 8, 7, 7, 8, 9, 11, 13, 14, 12, 9, 5], dtype=float
)
# From each page: where to, and how often. Whoever is "gone" has left the shop.
NEXT: Final = {
    "home": {"category": 0.55, "product": 0.25, "gone": 0.20},
    "category": {"category": 0.15, "product": 0.60, "home": 0.05, "gone": 0.20},
    "product": {"add": 0.16, "product": 0.30, "category": 0.26, "home": 0.04, "gone": 0.24},
    "add": {"cart": 0.40, "product": 0.30, "category": 0.20, "gone": 0.10},
    "cart": {"pay": 0.42, "remove": 0.12, "product": 0.20, "gone": 0.26},
    "remove": {"cart": 0.35, "product": 0.35, "gone": 0.30},
    "pay": {"home": 0.10, "gone": 0.90},
}  # fmt: skip


@dataclass(frozen=True)
class Shop:
    """Prices in cents and how popular each product is, most popular first."""

    cents: np.ndarray[Any, np.dtype[np.int64]]
    popularity: np.ndarray[Any, np.dtype[np.float64]]

    @staticmethod
    def open(random: np.random.Generator) -> Shop:
        cents = np.clip(np.round(random.lognormal(7.6, 0.9, PRODUCTS)) // 5 * 5, 95, 50_000).astype(np.int64)
        weights = 1 / np.arange(1, PRODUCTS + 1) ** 1.1
        return Shop(cents, weights / weights.sum())


def visit(
    visitor: str, start: datetime, shop: Shop, random: np.random.Generator
) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """The clicks of one visit: when the shop gets each, and its fields."""
    where, at, product = "home" if random.random() < 0.6 else "product", start, 0
    in_cart: list[int] = []
    offline = random.random() < 0.08
    while where != "gone":
        if where == "product":
            product = int(random.choice(PRODUCTS, p=shop.popularity))
        if where == "add":
            in_cart.append(product)
        elif where == "remove" and in_cart:
            product = in_cart.pop()
        about = where in ("product", "add", "remove")
        page = {
            "home": "/", "category": f"/c/{random.integers(CATEGORIES)}", "cart": "/cart", "pay": "/paid",
        }.get(where, f"/p/{1000 + product}")  # fmt: skip
        wait_s = float(random.uniform(0, LONGEST_WAIT_S)) if offline else float(random.exponential(0.3))
        yield (
            at + timedelta(seconds=min(wait_s, LONGEST_WAIT_S)),
            {
                "visitor": visitor,
                "action": where if where in ("add", "remove", "pay") else "view",
                "page": page,
                "product": str(1000 + product) if about else "",
                "cents": int(shop.cents[product]) if about else "",
                "at": at.isoformat(timespec="milliseconds"),
            },
        )
        stays_s = float(np.clip(random.lognormal(3.2, 1.0), 1, 1_500))
        at += timedelta(seconds=stays_s)
        places = NEXT[where]
        where = str(random.choice(list(places), p=list(places.values())))
        if where == "pay" and not in_cart:
            where = "gone"
        elif where == "remove" and not in_cart:
            where = "product"
        elif where == "pay":
            in_cart.clear()


def clicks(visitors: int, days: int, seed: int) -> list[dict[str, Any]]:
    """All clicks, in the order in which the shop gets them. Equal seeds give equal clicks."""
    random = np.random.default_rng(seed)
    shop = Shop.open(random)
    share = BUSY / BUSY.sum()
    made: list[tuple[datetime, int, dict[str, Any]]] = []
    for number in range(visitors):
        free = FIRST_DAY
        visits = []
        for _ in range(int(random.geometric(0.4))):
            day, hour = int(random.integers(days)), int(random.choice(24, p=share))
            visits.append(FIRST_DAY + timedelta(days=day, hours=hour, seconds=float(random.uniform(0, 3600))))
        for start in sorted(visits):
            if start < free:  # still in the shop
                continue
            for sent, fields in visit(f"v{number:06}", start, shop, random):
                made.append((sent, len(made), fields))
                free = sent
    heapq.heapify(made)
    return [heapq.heappop(made)[2] for _ in range(len(made))]


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="CSV to write.")
@click.option("--visitors", type=click.IntRange(1), default=2000, show_default=True, help="How many come.")
@click.option("--days", type=click.IntRange(1), default=3, show_default=True, help="Over how many days.")
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed, other clicks.")
def main(out: Path, visitors: int, days: int, seed: int) -> None:
    """Make days of clicks of a web shop."""
    with out.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, FIELDS)
        rows.writeheader()
        rows.writerows(clicks(visitors, days, seed))


if __name__ == "__main__":
    main()
