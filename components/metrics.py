"""What numbers mean: selection among candidates, intervals, step metrics and calibration. Pure numpy.

Knows no file, model or stage. A selector's value for a problem is the chance in [0, 1] that its pick is
right: ties are shared, never given to the first.

Shapes: P problems, N candidates a problem, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

_ROWS_AT_ONCE = 256  # resamples drawn together
Interval = dict[str, float]
"""mean, low, high"""


def best_of_n(scores: Sequence[float], is_right: Sequence[bool]) -> float:
    """The chance that a candidate with the highest score is right."""
    top = max(scores)
    tied = [right for score, right in zip(scores, is_right, strict=True) if score == top]
    return sum(tied) / len(tied)


def vote(answers: Sequence[str | None], is_right: Sequence[bool], weights: Sequence[float] | None = None) -> float:
    """The chance that the answer with the most (weighted) votes is right; a candidate without answer has no vote."""
    totals: dict[str, float] = {}
    right: dict[str, bool] = {}
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        weight = 1.0 if weights is None else weights[i]
        if not math.isfinite(weight):
            continue
        totals[answer] = totals.get(answer, 0.0) + weight
        right[answer] = right.get(answer, False) or is_right[i]
    if not totals:
        return 0.0
    top = max(totals.values())
    tied = [right[answer] for answer, total in totals.items() if math.isclose(total, top, rel_tol=1e-12)]
    return sum(tied) / len(tied)


AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "mean": lambda scores: sum(scores) / len(scores),
    "last": lambda scores: scores[-1],
    "max": max,
}


def aggregate(scores: Sequence[float], how: str) -> float:
    """One score for a solution; a solution without steps is never best.

    Args:
        how: a key of AGGREGATIONS.
    """
    return AGGREGATIONS[how](scores) if scores else -math.inf


class Bootstrap:
    """Intervals over problems; one draw of resamples for all quantities, so that differences are paired.

    Percentiles of the resampled values, with tails as much further out as Student's t is wider than the normal: resamples of
    few problems spread too little. The interval of a mean reaches at least as far as t standard errors, which holds where
    few problems differ and percentiles lie on a coarse grid. docs/evaluation.md shows how often the truth is inside.

    Source: the further tails: Hesterberg (2014, arXiv 1411.5279), section 5.3.
    Differs: an end is the outer one of percentile and t.

    Args:
        num_problems: P; each resample draws P problems with replacement.
        clusters: `[P]` names; problems of one name come and go together, and each resample draws as many clusters as there
            are, with replacement. None: every problem is one of its own.
    """

    def __init__(
        self, num_problems: int, *, num_resamples: int, confidence: float, seed: int, clusters: Sequence[str] | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        index = {name: i for i, name in enumerate(dict.fromkeys(clusters if clusters is not None else range(num_problems)))}
        cluster_P = [index[name] for name in (clusters if clusters is not None else range(num_problems))]
        self.num_clusters = len(index)
        self.weights_RP = np.empty((num_resamples, num_problems))
        for start in range(0, num_resamples, _ROWS_AT_ONCE):
            rows = self.weights_RP[start : start + _ROWS_AT_ONCE]
            drawn = rng.integers(self.num_clusters, size=(len(rows), self.num_clusters))
            drawn += self.num_clusters * np.arange(len(rows))[:, None]  # counted for all resamples at once
            counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            rows[:] = counts[:, cluster_P] / counts[:, cluster_P].sum(axis=1, keepdims=True)
        self.num_errors = _student_t(confidence, self.num_clusters - 1) * math.sqrt(
            self.num_clusters / max(1, self.num_clusters - 1)
        )
        tail = NormalDist().cdf(-self.num_errors)
        self.tails = [tail, 1 - tail]

    def mean(self, values_P: np.ndarray, *, is_difference: bool = False) -> Interval:
        """The mean over problems with its interval, which stays within [0, 1] or [-1, 1] if all values do.

        Of a single cluster it is all of that: nothing is known of the spread.

        Args:
            is_difference: the values might have been below 0 though none of these is.
        """
        resampled_R, mean = self.weights_RP @ values_P, float(values_P.mean())
        half = self.num_errors * float(resampled_R.std())
        low, high = np.quantile(resampled_R, self.tails)
        low, high = min(low, mean - half), max(high, mean + half)
        if np.abs(values_P).max() <= 1:
            least = -1.0 if is_difference or values_P.min() < 0 else 0.0
            low, high = (max(low, least), min(high, 1.0)) if self.num_clusters > 1 else (least, 1.0)
        return _rounded_interval(mean, low, high)

    def ratio(self, over_P: np.ndarray, under_P: np.ndarray) -> Interval | None:
        """mean(over) / mean(under) with its interval; None where the denominator is 0."""
        if under_P.mean() == 0:
            return None
        under_R = self.weights_RP @ under_P
        resampled = np.divide(self.weights_RP @ over_P, under_R, out=np.zeros_like(under_R), where=under_R != 0)
        return _rounded_interval(float(over_P.mean() / under_P.mean()), *np.quantile(resampled, self.tails))


def _rounded_interval(mean: float, low: float, high: float) -> Interval:
    return {"mean": round(mean, 6), "low": round(float(low), 6), "high": round(float(high), 6)}


def _student_t(confidence: float, num_freedom: int) -> float:
    """How many standard errors a two-sided interval reaches to; within 1 % from 4 degrees of freedom.

    Source: the expansion in 1 / n of Abramowitz and Stegun, 26.7.5.
    """
    z, n = NormalDist().inv_cdf((1 + confidence) / 2), max(1, num_freedom)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / n**power for power, term in enumerate(terms))


def auroc(scores: Sequence[float], is_right: Sequence[bool]) -> float | None:
    """The chance that a right step scores above a wrong one, ties counting half; None if one kind is absent."""
    positive = np.asarray(is_right, dtype=bool)
    num_right, num_wrong = int(positive.sum()), int((~positive).sum())
    if not num_right or not num_wrong:
        return None
    _, inverse, counts = np.unique(np.asarray(scores, dtype=float), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def f1_scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """F1 of the right class, of the wrong class, and their mean.

    Source: VisualProcessBench (VisualPRM, arXiv 2503.10291): macro F1 pooled over steps.
    """

    def f1(p: np.ndarray, t: np.ndarray) -> float:
        total = int(p.sum() + t.sum())
        return 2 * int((p & t).sum()) / total if total else 0.0

    right, wrong = f1(predicted, truth), f1(~predicted, ~truth)
    return {"f1_right": round(right, 6), "f1_wrong": round(wrong, 6), "macro_f1": round((right + wrong) / 2, 6)}


def best_threshold(scores: Sequence[float], is_right: Sequence[bool], *, low: float = 0.0, high: float = 1.0) -> float:
    """The threshold between `low` and `high` with the highest macro F1; of equal ones the middle."""
    values, truth = np.asarray(scores, dtype=float), np.asarray(is_right, dtype=bool)
    grid = np.round(low + (high - low) * np.round(np.arange(0.02, 0.99, 0.01), 2), 6)
    macro = np.array([f1_scores(values > t, truth)["macro_f1"] for t in grid])
    best = np.flatnonzero(macro == macro.max())
    return float(grid[best[len(best) // 2]])


def first_error_f1(
    scores: Sequence[Sequence[float]], right_so_far: Sequence[Sequence[bool]], threshold: float
) -> float | None:
    """Harmonic mean of two accuracies: the first wrong step found, and the solution without one left alone.

    Source: ProcessBench (arXiv 2412.06559).
    """
    found: list[bool] = []
    spared: list[bool] = []
    for row, truth in zip(scores, right_so_far, strict=True):
        predicted = next((i for i, score in enumerate(row) if score <= threshold), -1)
        actual = next((i for i, right in enumerate(truth) if not right), -1)
        (found if actual >= 0 else spared).append(predicted == actual)
    if not found or not spared:
        return None
    a, b = sum(found) / len(found), sum(spared) / len(spared)
    return 2 * a * b / (a + b) if a + b else 0.0


def calibration(scores: Sequence[float], is_right: Sequence[bool], num_bins: int = 10) -> dict[str, Any]:
    """Expected calibration error and its equal-width bins; None and no bins without a score."""
    if not len(scores):
        return {"ece": None, "bins": []}
    values, truth = np.asarray(scores, dtype=float), np.asarray(is_right, dtype=float)
    index = np.minimum((values * num_bins).astype(int), num_bins - 1)
    bins, error = [], 0.0
    for b in range(num_bins):
        members = index == b
        count = int(members.sum())
        mean, share = (float(values[members].mean()), float(truth[members].mean())) if count else (None, None)
        if count and mean is not None and share is not None:
            error += count / len(values) * abs(mean - share)
        bins.append(
            {"low": b / num_bins, "high": (b + 1) / num_bins, "num_steps": count, "mean_score": mean, "right_frac": share}
        )
    return {"ece": round(error, 6), "bins": bins}


def step_metrics(
    scores: Sequence[Sequence[float]],
    right_so_far: Sequence[Sequence[bool]],
    kinds: Sequence[Sequence[str]],
    threshold: float,
) -> dict[str, Any]:
    """Metrics of step scores against exact truth; `auroc_reading` looks at first readings after a right prefix.

    Args:
        scores, right_so_far, kinds: one list a solution, one entry a step.
    """
    flat = [s for row in scores for s in row]
    truth = [t for row in right_so_far for t in row]
    if not flat:
        return {"num_steps": 0}
    reading_scores, reading_truth = [], []
    for row, row_truth, row_kinds in zip(scores, right_so_far, kinds, strict=True):
        for i, kind in enumerate(row_kinds):
            if kind == "reading" and (i == 0 or row_truth[i - 1]):
                reading_scores.append(row[i])
                reading_truth.append(row_truth[i])
    predicted, actual = np.asarray(flat) > threshold, np.asarray(truth, dtype=bool)
    prior = float(actual.mean())
    coin = round((prior / (prior + 0.5) + (1 - prior) / (1.5 - prior)) / 2, 6)  # says right every second time, of any step
    return {
        "num_steps": len(flat),
        "wrong_frac": round(1 - prior, 6),
        "auroc": _rounded(auroc(flat, truth)),
        "auroc_reading": _rounded(auroc(reading_scores, reading_truth)) if reading_scores else None,
        **f1_scores(predicted, actual),
        "first_error_f1": _rounded(first_error_f1(scores, right_so_far, threshold)),
        "trivial": {"all_right_macro_f1": f1_scores(np.ones_like(actual), actual)["macro_f1"], "random_macro_f1": coin},
    }


def chosen_aggregation(accuracy: Mapping[str, float]) -> str:
    """The aggregation with the highest accuracy; of equal ones the one named first."""
    return max(accuracy, key=lambda name: accuracy[name])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
