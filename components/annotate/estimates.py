"""A share of a whole population from a stratified sample, with an interval that also holds where nothing wrong was seen.

Owns the weighting back; does not know what is counted.

Shapes: P solutions of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from components.metrics import Interval

_Z = 1.959963984540054  # 95 %


def weighted_ratio(
    over_P: np.ndarray, under_P: np.ndarray, strata: Sequence[str], sizes: Mapping[str, int]
) -> Interval | None:
    """sum(over) / sum(under) over the population, 95 % interval; None where nothing of it was seen.

    Every solution of the sample counts as often as its stratum is larger than what was drawn of it: both sums are unbiased.
    The interval joins, stratum by stratum, Wilson limits of the share within (on an effective number of steps:
    those of one solution are no independent ones) and the spread of how much each stratum has of the denominator.

    Args:
        over_P: of each solution in the sample, `0 <= over <= under`: for instance right labels that people call right.
        under_P: for instance right labels.
        strata: `[P]` the stratum of each.
        sizes: stratum -> solutions in the population.
    Source: Korn & Graubard 1998 (effective size); Zou & Donner 2008 (limits of a sum from the limits of its parts).
    """
    names = sorted(set(strata))
    index_P = np.array([names.index(name) for name in strata])
    parts = []
    for i, name in enumerate(names):
        over, under = over_P[index_P == i].astype(float), under_P[index_P == i].astype(float)
        parts.append((over, under, sizes[name]))
    total = sum(size * under.mean() for _, under, size in parts)
    if total <= 0:
        return None
    value = sum(size * over.mean() for over, _, size in parts) / total
    found = [_Part(over, under, size, total, value) for over, under, size in parts if under.sum()]
    # the strata's own degrees of freedom, joined as Satterthwaite joins them: many small strata know each other's spread
    squares = [(sum(part.margins(_Z)), part.freedom) for part in found]
    against = sum(square**2 / freedom for square, freedom in squares)
    freedom = sum(square for square, _ in squares) ** 2 / against if against else 1.0
    below, above = (sum(one) for one in zip(*(part.margins(_t(freedom)) for part in found), strict=True))
    low, high = max(0.0, value - math.sqrt(below)), min(1.0, value + math.sqrt(above))
    return {"mean": round(float(value), 6), "low": round(float(low), 6), "high": round(float(high), 6)}


class _Part:
    """What one stratum adds to the uncertainty of the whole."""

    def __init__(self, over: np.ndarray, under: np.ndarray, size: int, total: float, value: float) -> None:
        num = len(under)
        # a few long solutions say most of what there is to say: as many as would weigh alike
        self.freedom = max(1.0, float(under.sum() ** 2 / (under**2).sum()) - 1)
        self._left_frac = 1 - num / size
        self._weight, self._share = size * float(under.mean()) / total, float(over.sum() / under.sum())
        self._effective = _effective_num(over, under, self._share)
        spread = float(under.var(ddof=1)) if num > 1 else float(under.mean()) ** 2
        self._moved = (size / total * (self._share - value)) ** 2 * self._left_frac * spread / num

    def margins(self, t: float) -> tuple[float, float]:
        """Squared distances from the estimate to its limits, below and above, at `t` standard errors."""
        low, high = _wilson(self._share, self._effective, self._left_frac, t)
        moved = t * t * self._moved
        return (self._weight * (self._share - low)) ** 2 + moved, (self._weight * (high - self._share)) ** 2 + moved


def _effective_num(over: np.ndarray, under: np.ndarray, share: float) -> float:
    """Independent steps that would tell as much about the share as these do in their solutions."""
    as_units = float(under.sum() ** 2 / (under**2).sum())  # no step tells more than its solution
    residuals = over - share * under
    num = len(under)
    variance = num / max(1, num - 1) * float((residuals**2).sum()) / float(under.sum()) ** 2
    if variance <= 0:
        return as_units
    return min(float(under.sum()), max(1.0, share * (1 - share) / variance))


def _wilson(share: float, effective: float, left_frac: float, t: float) -> tuple[float, float]:
    """Wilson's limits; `left_frac` of the stratum was not drawn, and only that is uncertain."""
    if left_frac <= 0:
        return share, share
    n = effective / left_frac
    centre = (share + t * t / (2 * n)) / (1 + t * t / n)
    half = t / (1 + t * t / n) * math.sqrt(share * (1 - share) / n + t * t / (4 * n * n))
    return min(share, centre - half), max(share, centre + half)


def _t(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, within 0.03 from 3 degrees of freedom on; fewer are taken for 3."""
    v, z = max(3.0, freedom), _Z
    terms = (
        z,
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return sum(terms)
