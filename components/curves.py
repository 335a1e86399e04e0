"""Accuracy against the number of candidates: what a selector is worth on average over all subsets of n. Pure numpy.

Knows no file, model or stage. A selector's value is the chance in [0, 1] that its pick is right, as in `metrics`.

Shapes: P problems, N candidates a problem, L sizes n, S subsets, A distinct answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

NUM_SUBSETS = 256  # of one size; all of them where there are no more


def sizes(num_candidates: int) -> list[int]:
    """1, 2, 4, 8, .. and N itself."""
    doubled = [1 << i for i in range(num_candidates.bit_length()) if 1 << i < num_candidates]
    return [*doubled, num_candidates]


def best_of_n_curve(scores_PN: np.ndarray, is_right_PN: np.ndarray, sizes_L: Sequence[int]) -> np.ndarray:
    """`[L, P]` the expected chance that the best of n is right, over all subsets of n candidates; ties are shared.

    A group of equal scores holds the best of a subset if the subset has some of it and none above, and whoever of the group
    is in the subset is as likely to be any of its members: so the group's share of right candidates is what it adds. With
    constant scores this is the random pick, with `is_right_PN` for scores pass@n.

    Args:
        scores_PN: `[P, N]` higher is better; -inf is allowed.
        is_right_PN: `[P, N]` booleans.
        sizes_L: each at least 1; larger than N counts as N.
    Source: pass@n without bias: Chen et al. (arXiv 2107.03374).
    Differs: any order of the candidates instead of right before wrong.
    """
    num_problems, num = scores_PN.shape
    order_PN = np.argsort(-scores_PN, axis=1, kind="stable")
    sorted_PN = np.take_along_axis(scores_PN, order_PN, axis=1)
    right_PN = np.take_along_axis(is_right_PN, order_PN, axis=1).astype(float)
    is_new_PN = np.concatenate([np.ones((num_problems, 1), bool), sorted_PN[:, 1:] != sorted_PN[:, :-1]], axis=1)
    above_PN = np.maximum.accumulate(np.where(is_new_PN, np.arange(num), 0), axis=1)
    is_last_PN = np.concatenate([is_new_PN[:, 1:], np.ones((num_problems, 1), bool)], axis=1)
    until_PN = np.minimum.accumulate(np.where(is_last_PN, np.arange(1, num + 1), num)[:, ::-1], axis=1)[:, ::-1]
    share_PN = right_PN / (until_PN - above_PN)
    none_LN = np.stack([_none_of(num, min(n, num)) for n in sizes_L])
    value_LP: np.ndarray = np.sum((none_LN[:, above_PN] - none_LN[:, until_PN]) * share_PN, axis=2)
    return value_LP


def _none_of(num: int, size: int) -> np.ndarray:
    """`[N + 1]` for each k the chance that a subset of `size` of `num` candidates holds none of k given ones."""
    return np.array([math.comb(num - k, size) / math.comb(num, size) for k in range(num + 1)])


def subsets(num: int, size: int, *, seed: int) -> np.ndarray:
    """`[S, N]` booleans: all subsets of `size` of `num` candidates, or NUM_SUBSETS random ones where there are more."""
    if math.comb(num, size) <= NUM_SUBSETS:
        chosen = np.array(list(combinations(range(num), size)))
    else:
        chosen = np.random.default_rng([seed, num, size]).random((NUM_SUBSETS, num)).argsort(axis=1)[:, :size]
    members_SN = np.zeros((len(chosen), num), bool)
    np.put_along_axis(members_SN, chosen, True, axis=1)
    return members_SN


def mean_vote(
    answers: Sequence[str | None], is_right: Sequence[bool], weights: Sequence[float] | None, members_SN: np.ndarray
) -> float:
    """The mean over subsets of the chance that the answer with the most (weighted) votes is right; see `metrics.vote`."""
    weight_N = np.ones(len(answers)) if weights is None else np.asarray(weights, dtype=float)
    voting = [i for i, answer in enumerate(answers) if answer is not None and math.isfinite(weight_N[i])]
    if not voting:
        return 0.0
    index = {answer: a for a, answer in enumerate(dict.fromkeys(answers[i] for i in voting))}
    column = [index[answers[i]] for i in voting]
    voices_VA = np.zeros((len(voting), 3 * len(index)))  # for each answer: how many, how many of them right, their weight
    for part, values in enumerate((np.ones(len(voting)), np.asarray(is_right, dtype=float)[voting], weight_N[voting])):
        voices_VA[np.arange(len(voting)), np.add(column, part * len(index))] = values
    count_SA, right_SA, total_SA = np.split(members_SN[:, voting] @ voices_VA, 3, axis=1)
    total_SA = np.where(count_SA > 0, total_SA, -np.inf)
    top_S1 = total_SA.max(axis=1, keepdims=True)
    size_SA = np.maximum(np.abs(total_SA), np.abs(top_S1))
    with np.errstate(invalid="ignore"):  # of subsets that nobody votes in
        is_tied_SA = (count_SA > 0) & (np.abs(total_SA - top_S1) <= 1e-12 * size_SA)
    num_tied_S = is_tied_SA.sum(axis=1)
    return float(np.mean((is_tied_SA & (right_SA > 0)).sum(axis=1) / np.maximum(1, num_tied_S)))
