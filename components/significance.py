"""How often a paired difference comes about by chance alone: exact tests, sign flips, and Holm's correction. Pure numpy.

Knows no file, model or stage: two selectors' values of the same problems come in, a probability goes out.

Shapes: P problems, C clusters of problems, F flips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_ALL_FLIPS = 1 << 16  # up to so many are gone through one by one
_BLOCK = 1 << 22  # signs at a time


def paired_p(a_P: np.ndarray, b_P: np.ndarray, *, clusters: Sequence[str] | None = None, num_flips: int, seed: int) -> float:
    """The chance, two-sided, of a difference this large where neither of two selectors is better.

    McNemar's exact test where all values are 0 or 1 and problems are independent, else the sign-flip test, which is the same
    test wherever both apply.

    Args:
        a_P, b_P: `[P]` values in [0, 1] of the same problems.
        clusters: `[P]` names; problems of one name are flipped together. None: each on its own.
    """
    difference_P = a_P - b_P
    is_binary = bool(np.isin(a_P, (0.0, 1.0)).all() and np.isin(b_P, (0.0, 1.0)).all())
    if is_binary and _is_apart(clusters, len(difference_P)):
        return mcnemar(int((difference_P > 0).sum()), int((difference_P < 0).sum()))
    return sign_flip(difference_P, clusters=clusters, num_flips=num_flips, seed=seed)


def against_random(
    values_P: np.ndarray, share_P: np.ndarray, *, clusters: Sequence[str] | None = None, num_flips: int, seed: int
) -> float:
    """The chance, two-sided, of a sum as far from the expected one where each pick is any of the problem's candidates.

    Exact: how many picks are right is then a sum of uneven coins. A sign flip would not do: where one candidate in eight is
    right, a random pick mostly loses an eighth and rarely wins seven, which is not as likely with the other sign.
    Problems of one cluster need not be picked from independently: theirs are flipped together all the same.

    Args:
        values_P: `[P]` values in [0, 1].
        share_P: `[P]` the share of right candidates.
        clusters: `[P]` names; see `paired_p`.
    """
    if not _is_apart(clusters, len(values_P)):
        return sign_flip(values_P - share_P, clusters=clusters, num_flips=num_flips, seed=seed)
    chance_K = np.ones(1)
    for share in share_P.tolist():
        chance_K = np.convolve(chance_K, (1 - share, share))
    observed = abs(float(values_P.sum() - share_P.sum()))
    is_as_far_K = np.abs(np.arange(len(chance_K)) - share_P.sum()) >= observed - 1e-9 * len(share_P)
    return min(1.0, float(chance_K[is_as_far_K].sum()))


def _is_apart(clusters: Sequence[str] | None, num_problems: int) -> bool:
    return clusters is None or len(set(clusters)) == num_problems


def mcnemar(num_wins: int, num_losses: int) -> float:
    """The chance that fair coins split as unevenly as this; problems on which both agree say nothing.

    Source: McNemar, Psychometrika 12 (1947), in its exact form.
    """
    num, least = num_wins + num_losses, min(num_wins, num_losses)
    if 2 * least >= num - 1:  # the two tails meet
        return 1.0
    logs = math.lgamma(num + 1) - num * math.log(2)
    tail = math.fsum(math.exp(logs - math.lgamma(k + 1) - math.lgamma(num - k + 1)) for k in range(least + 1))
    return min(1.0, 2 * tail)


def sign_flip(differences_P: np.ndarray, *, clusters: Sequence[str] | None = None, num_flips: int, seed: int) -> float:
    """The chance that the sum is as far from 0 as it is, if each cluster's difference might as well have the other sign.

    Exact where at most 16 clusters differ. Else from random flips, with the observed one counted among them: never below
    1 / (F + 1), and valid whatever F is.

    Source: Fisher's randomisation test; the count of the observed one: Phipson and Smyth (2010).
    """
    names = list(clusters) if clusters is not None else list(range(len(differences_P)))
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    sums_C = np.bincount([index[name] for name in names], weights=differences_P, minlength=len(index))
    size_C = np.abs(sums_C[np.abs(sums_C) > 1e-12])
    if not len(size_C):
        return 1.0
    observed = abs(float(sums_C.sum())) - 1e-9 * float(size_C.sum())  # sums in another order are rounded otherwise
    if 1 << len(size_C) <= _ALL_FLIPS:
        flips = np.arange(1 << len(size_C))[:, None] >> np.arange(len(size_C)) & 1
        return float(np.mean(np.abs((2 * flips - 1) @ size_C) >= observed))
    rng = np.random.default_rng(seed)
    num_rows = max(1, _BLOCK // len(size_C))
    extreme = 1
    for start in range(0, num_flips, num_rows):
        rows = min(num_rows, num_flips - start)
        bits = np.unpackbits(rng.integers(0, 256, (rows, (len(size_C) + 7) // 8), np.uint8), axis=1, count=len(size_C))
        extreme += int(np.sum(np.abs(2 * (bits @ size_C) - size_C.sum()) >= observed))
    return extreme / (num_flips + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Each probability corrected for how many were looked at: the chance of one or more false findings stays below it.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = least
    return corrected
