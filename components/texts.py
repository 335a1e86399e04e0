"""What the texts of a prefix's rollouts say of its value beyond their verdicts: the probability they cover is settled.

Owns that likelihood, for `estimation` to add; does not know the texts themselves, nor how values hang together.

Shapes: N nodes of a forest, H of them with texts, G cells of the value's grid, F points of a finer one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.estimation import EDGES, NUM_CELLS, THETA, Floats
from components.search import Counts, State

LONELINESS = 0.75  # in [0, 1): how likely a right text is the only one; 0 leaves it open
_POINTS = 8  # of the fine grid in each cell: texts tell values apart that one cell holds
_FINE: Floats = (EDGES[:-1, None] + np.diff(EDGES)[:, None] * (np.arange(_POINTS) + 0.5) / _POINTS).reshape(-1)
_NODES_AT_ONCE = 4096  # bounds memory; decides nothing else
_LEAST = 0.001  # probabilities are known to three places
_IMPOSSIBLE = 1e-30  # a grader that contradicts itself must not empty the posterior; no neighbour may outvote a bound


@dataclass(frozen=True)
class Texts:
    """The distinct texts of noticeable probability among the rollouts of one node."""

    right: Sequence[float]
    """At least how probable each right one is, given the node; the most probable first."""
    wrong: Sequence[float]
    num_repeated_right: int = 0
    """Of the node's right outcomes, how often one of these texts came again, or was what a solution itself wrote."""
    num_repeated_wrong: int = 0


def texts_of(counts: Counts) -> Texts:
    """The texts that a prefix's continuations came to, as the estimate takes them."""
    (right, num_right), (wrong, num_wrong) = counts.seen("right"), counts.seen("wrong")
    return Texts([m for m in right if m > 0], [m for m in wrong if m > 0], num_right, num_wrong)


def know(counts: Counts, verdict: str, units: State) -> None:
    """Remember what a solution itself wrote after this prefix: its verdict counts already, at the solution's end.

    A continuation that writes the same comes again; counted as new, it would pull the value to the solution's own
    verdict a second time. Call once for each distinct text.
    """
    mass, times = counts.texts.get((verdict, units), (0.0, 0))
    counts.texts[verdict, units] = mass, times + 1


def beyond_counts(right_N: NDArray, total_N: NDArray, texts: Mapping[int, Texts]) -> Floats | None:
    """`[N, G]` log-likelihood of the rollouts with their texts, less that of their verdicts alone; None without texts.

    Right texts that have probability R together, and wrong ones that have W, bound the value: R <= V <= 1 - W. A text
    that comes again says nothing more. A new right one had the chance V - R of coming, a new wrong one 1 - V - W, with R
    and W of those before it. Ways to be right are few: a right text of probability p also counts
    (1 - p / (V - R))^-LONELINESS, as what is left to right texts is likely it alone. Texts of no noticeable probability
    come last, and are verdicts as ever. More texts than new outcomes: so many, the most probable, are what solutions
    themselves wrote; their verdicts count at the solutions' ends, here they but bound the value.

    Args:
        right_N, total_N: as given to `messages`: the texts' outcomes are among them.
        texts: of the nodes that have any.
    Source: the power is that of stick-breaking weights in size-biased order, GEM(1 - LONELINESS) (Ewens 1990).
    Differs: without their factor 1 / (V - R), so that in the limit of small p only the verdict counts.
    """
    told = [(node, t) for node, t in texts.items() if t.right or t.wrong]
    if not told:
        return None
    wrong_N = total_N - right_N
    beyond = np.zeros((len(right_N), NUM_CELLS))
    for start in range(0, len(told), _NODES_AT_ONCE):
        some = told[start : start + _NODES_AT_ONCE]
        nodes = np.array([node for node, _ in some], dtype=np.int64)
        whole = _of_texts([t for _, t in some], right_N[nodes], wrong_N[nodes])
        beyond[nodes] = whole - right_N[nodes, None] * np.log(THETA) - wrong_N[nodes, None] * np.log1p(-THETA)
    return beyond


def _of_texts(told: Sequence[Texts], right_H: NDArray, wrong_H: NDArray) -> Floats:
    """`[H, G]` log-likelihood of the rollouts of nodes with texts."""
    num_right = right_H - np.array([t.num_repeated_right for t in told])
    num_wrong = wrong_H - np.array([t.num_repeated_wrong for t in told])
    log_right, low = _one_side([t.right for t in told], num_right, _FINE, loneliness=LONELINESS)
    log_wrong, wrong = _one_side([t.wrong for t in told], num_wrong, 1 - _FINE, loneliness=0.0)
    over = np.maximum(low + wrong, 1.0)  # probabilities that do not fit one distribution, from a server for instance
    low, high = low / over, 1 - wrong / over
    off = np.maximum(np.maximum(low[:, None] - _FINE, _FINE - high[:, None]), 0.0)
    fine = log_right + log_wrong
    is_inside = off <= off.min(1, keepdims=True)
    best = np.where(is_inside, fine, -np.inf).max(1, keepdims=True)  # however many texts there are
    fine = np.where(is_inside, fine, np.minimum(fine, best) + np.log(_IMPOSSIBLE)).reshape(len(told), NUM_CELLS, _POINTS)
    top = fine.max((1, 2), keepdims=True)
    log_mean: Floats = np.log(np.exp(fine - top).mean(2) + 1e-300) + top[:, :, 0]
    return log_mean


def _one_side(
    masses: Sequence[Sequence[float]], num_new: NDArray, value_F: Floats, *, loneliness: float
) -> tuple[Floats, Floats]:
    """Log-likelihood of new texts of one verdict, `[H, F]`, and the probability of all of them `[H]`.

    Args:
        num_new: of the outcomes of this verdict, those that are no repeated texts; solutions wrote the texts beyond.
        value_F: the chance of this verdict at each point of the fine grid.
    """
    longest = max(len(row) for row in masses)
    mass_HL = np.array([[*row, *([0.0] * (longest - len(row)))] for row in masses]).reshape(len(masses), longest)
    seen = np.zeros(len(masses))
    out = np.zeros((len(masses), len(value_F)))
    num_own = np.maximum((mass_HL > 0).sum(1) - num_new, 0)
    for i, mass in enumerate(mass_HL.T):
        here = mass > 0
        left = np.maximum(value_F - seen[here, None], _LEAST)
        out[here] += np.where(num_own[here, None] > i, 0.0, np.log(left))
        if loneliness:
            out[here] -= loneliness * np.log(np.clip(1 - mass[here, None] / left, _LEAST, 1.0))
        seen += mass
    num_light = np.maximum(num_new - (mass_HL > 0).sum(1), 0)
    out += num_light[:, None] * np.log(np.maximum(value_F - seen[:, None], _LEAST))
    return out, seen
