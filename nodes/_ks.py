"""Two-sample Kolmogorov-Smirnov test against a sorted reference, an effect size, and corrections for many tests.

Sources: the statistic and its limit are Kolmogorov's and Smirnov's (N. Smirnov, "Table for estimating the goodness
of fit of empirical distributions", Annals of Mathematical Statistics 19, 1948; J. L. Hodges, "The significance
probability of the Smirnov two-sample test", Arkiv foer Matematik 3, 1958). The p-value takes the limit at
(sqrt(n) + 0.12 + 0.11 / sqrt(n)) D with the effective n = n1 n2 / (n1 + n2) (M. A. Stephens, JRSS B 32, 1970, as in
Press et al., Numerical Recipes, section 14.3). It is conservative where values are tied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LEAST_VALUES: Final = 20  # on each side; below it the asymptotic p-value says little


@dataclass(frozen=True)
class Reference:
    """The finite values of one feature, sorted, prepared once so that each window costs O(m log n).

    `sums[i]` is the sum of the i smallest values less `center`, `scale` their standard deviation.
    """

    values: Floats
    sums: Floats
    center: float
    scale: float


@dataclass(frozen=True)
class Comparison:
    """One feature in one window. `missing` is the share of values that are NaN or infinite: they are left out.

    Where either side has fewer than `LEAST_VALUES` values, `tested` is false and the p-value 1.
    """

    statistic: float
    p_value: float
    effect: float
    missing: float
    tested: bool


def reference_of(values: Floats) -> Reference:
    """Prepare a reference from values in any order."""
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return Reference(finite, np.zeros(1), 0.0, 0.0)
    constant = finite[0] == finite[-1]  # its mean and deviation would be off by rounding
    center = float(finite[0] if constant else finite.mean())
    sums = np.concatenate([[0.0], np.cumsum(finite - center)])
    return Reference(finite, sums, center, 0.0 if constant else float(finite.std()))


def compare(reference: Reference, window: Floats) -> Comparison:
    """Test one window of a feature against its reference."""
    finite = np.sort(window[np.isfinite(window)])
    missing = 1.0 - len(finite) / len(window) if len(window) else 0.0
    if min(len(finite), len(reference.values)) < LEAST_VALUES:
        return Comparison(0.0, 1.0, 0.0, missing, tested=False)
    statistic = ks_statistic(reference.values, finite)
    p_value = ks_p_value(statistic, len(reference.values), len(finite))
    return Comparison(statistic, p_value, standardised_distance(reference, finite), missing, tested=True)


def ks_statistic(reference: Floats, window: Floats) -> float:
    """Largest distance between two empirical distribution functions; both samples sorted and finite.

    Between two neighbouring values of the window its function is constant and the reference's rises, so the largest
    distance lies at, or just before, a value of the window.
    """
    n, m = len(reference), len(window)
    at = np.searchsorted(reference, window, "right") / n - np.searchsorted(window, window, "right") / m
    before = np.searchsorted(reference, window, "left") / n - np.searchsorted(window, window, "left") / m
    return float(max(np.abs(at).max(), np.abs(before).max()))


def ks_p_value(statistic: float, n: int, m: int) -> float:
    """Asymptotic two-sided p-value of the two-sample statistic for sample sizes n and m."""
    root = np.sqrt(n * m / (n + m))
    return kolmogorov_survival(float((root + 0.12 + 0.11 / root) * statistic))


def kolmogorov_survival(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution.

    Two series for the same function, each where it converges in a few terms: 2 sum (-1)^(j-1) exp(-2 j^2 x^2), and
    1 - sqrt(2 pi) / x sum exp(-(2j-1)^2 pi^2 / (8 x^2)).
    """
    if x <= 0.04:  # the second series is below the smallest float here
        return 1.0
    j = np.arange(1, 8)
    if x < 1.18:
        terms = np.exp(-((2 * j - 1) ** 2) * np.pi**2 / (8 * x * x))
        return float(1.0 - np.sqrt(2 * np.pi) / x * terms.sum())
    signs = np.where(j % 2 == 1, 2.0, -2.0)
    return float(min(1.0, max(0.0, (signs * np.exp(-2.0 * j**2 * x * x)).sum())))


def standardised_distance(reference: Reference, window: Floats) -> float:
    """Wasserstein-1 distance to a sorted window, in standard deviations of the reference.

    A shift of all values by a tenth of the standard deviation gives 0.1. It is the integral of the distance between
    the quantile functions: the window's is constant on each of its m steps, the reference's is integrated by its
    running sums, split where it crosses the window's value. A constant reference gives 0 or infinity.
    """
    n, m = len(reference.values), len(window)
    edges = np.linspace(0.0, 1.0, m + 1)
    low, high = edges[:-1], edges[1:]
    crossing = np.clip(np.searchsorted(reference.values, window, "right") / n, low, high)

    def area(share: Floats) -> Floats:
        made: Floats = np.interp(share * n, np.arange(n + 1), reference.sums) / n
        return made

    value = window - reference.center
    below = value * (crossing - low) - (area(crossing) - area(low))
    above = (area(high) - area(crossing)) - value * (high - crossing)
    distance = max(0.0, float((below + above).sum()))
    if reference.scale > 0.0:
        return distance / reference.scale
    return float("inf") if distance > 0.0 else 0.0


def holm(p_values: Floats) -> Floats:
    """Holm's step-down adjustment: controls the chance of any false alarm, under any dependence."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(count, 0, -1))
    return _unsorted(adjusted, order)


def bonferroni(p_values: Floats) -> Floats:
    """Every p-value times their number."""
    return np.minimum(1.0, p_values * len(p_values))


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Step-up adjustment: controls the expected share of false alarms among the alarms."""
    order = np.argsort(p_values, kind="stable")
    count = len(p_values)
    scaled = p_values[order] * count / np.arange(1, count + 1)
    return _unsorted(np.minimum.accumulate(scaled[::-1])[::-1], order)


def _unsorted(values: Floats, order: npt.NDArray[np.intp]) -> Floats:
    made = np.empty_like(values)
    made[order] = np.minimum(1.0, values)
    return made


def uncorrected(p_values: Floats) -> Floats:
    return p_values


CORRECTIONS: Final[Mapping[str, Callable[[Floats], Floats]]] = {
    "holm": holm,
    "bonferroni": bonferroni,
    "benjamini-hochberg": benjamini_hochberg,
    "none": uncorrected,
}
