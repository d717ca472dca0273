"""Black and Scholes' price of a call, and one step of Newton's method towards the volatility that explains a price."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from dataflow.sdk import Batch

Column = np.ndarray[Any, np.dtype[Any]]

# Below it a step would be longer than any volatility; then the price says nothing about it.
LEAST_VEGA: Final = 1e-12
# No share is calmer or wilder a year; a step that leads out of it ends at the border.
CALMEST, WILDEST = 1e-6, 50.0
# The start of Manaster and Koehler is 0 where the share stands at the strike's present value.
LEAST_START: Final = 0.05

_erf: Final = np.frompyfunc(math.erf, 1, 1)


def guess(batch: Batch) -> dict[str, Column]:
    """Where to start: `sigma` from which Newton's method rises or falls without overshooting, and how far off it is.

    Manaster and Koehler, "The calculation of implied variances from the Black-Scholes model: a note", Journal of Finance
    37 (1982): the volatility at which the price bends.
    """
    spot, strike, years, rate = (batch[name] for name in ("spot", "strike", "years", "rate"))
    sigma = np.sqrt(2 * np.abs(np.log(spot / strike) + rate * years) / years)
    sigma = np.clip(sigma, LEAST_START, WILDEST)
    return {"sigma": sigma, "miss": _price(batch, sigma) - batch["price"]}


def step(batch: Batch) -> dict[str, Column]:
    """One step: a better `sigma`, and `miss`, by how much its price is too high."""
    sigma, miss = batch["sigma"], batch["miss"]
    vega = _vega(batch, sigma)
    flat = vega < LEAST_VEGA
    sigma = np.where(flat, sigma, sigma - miss / np.where(flat, 1.0, vega))
    sigma = np.clip(sigma, CALMEST, WILDEST)
    return {"sigma": sigma, "miss": _price(batch, sigma) - batch["price"]}


def _price(batch: Batch, sigma: Column) -> Column:
    """The price of a call: Black and Scholes, "The pricing of options and corporate liabilities" (1973), equation 13."""
    above, below = _distances(batch, sigma)
    discounted: Column = batch["strike"] * np.exp(-batch["rate"] * batch["years"])
    price: Column = batch["spot"] * _normal(above) - discounted * _normal(below)
    return price


def _vega(batch: Batch, sigma: Column) -> Column:
    """How fast the price rises with the volatility."""
    above, _ = _distances(batch, sigma)
    density = np.exp(-above * above / 2) / math.sqrt(2 * math.pi)
    return batch["spot"] * density * np.sqrt(batch["years"])


def _distances(batch: Batch, sigma: Column) -> tuple[Column, Column]:
    deviation = sigma * np.sqrt(batch["years"])
    drift = np.log(batch["spot"] / batch["strike"]) + batch["rate"] * batch["years"]
    above = drift / deviation + deviation / 2
    return above, above - deviation


def _normal(x: Column) -> Column:
    """The standard normal distribution function."""
    return (1 + np.asarray(_erf(x / math.sqrt(2)), dtype=np.float64)) / 2
