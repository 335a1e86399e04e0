"""What step scores are worth on labelled steps: F1, first errors, AUROC and trivial baselines, each with its interval.

Owns the metrics and how a threshold is chosen; does not know where cases or scores come from.

Shapes: P cases, R bootstrap resamples, S steps of all cases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from components.errors import DataError
from components.metrics import Bootstrap, Interval
from components.records import digest
from components.step_benchmarks import Case, StepBenchmark

METRICS = {
    "macro_f1": "macro F1",
    "prm_score": "PRMScore",
    "first_error_f1": "first-error F1",
}
"""Name -> as it is printed. macro_f1 and prm_score are one: the mean F1 of right and of wrong steps, pooled over steps."""


class Counts:
    """What predictions come to, case by case, so that resamples are weighted sums.

    Args:
        scores: one list a case, one score a step.
        threshold_P: a step with a score at or below its case's threshold counts as wrong.
    """

    def __init__(self, cases: Sequence[Case], scores: Sequence[Sequence[float]], threshold_P: np.ndarray) -> None:
        num = len(cases)
        self.tp, self.fp, self.tn, self.fn = (np.zeros(num) for _ in range(4))
        self.found, self.erring, self.spared, self.clean = (np.zeros(num) for _ in range(4))
        for i, (case, row) in enumerate(zip(cases, scores, strict=True)):
            said = [score > threshold_P[i] for score in row]
            for claim, label in zip(said, case.labels, strict=True):
                if label is not None:
                    counter = (self.tp if label else self.fp) if claim else (self.fn if label else self.tn)
                    counter[i] += 1
            at = next((j for j, claim in enumerate(said) if not claim), -1)
            if case.error_at >= 0:
                self.erring[i], self.found[i] = 1, at == case.error_at
            else:
                self.clean[i], self.spared[i] = 1, at == -1

    def f1_right(self, weights: np.ndarray) -> Any:
        """F1 of right steps under weights `[.., P]` of the cases."""
        return _share(2 * weights @ self.tp, weights @ (2 * self.tp + self.fp + self.fn))

    def f1_wrong(self, weights: np.ndarray) -> Any:
        """F1 of wrong steps."""
        return _share(2 * weights @ self.tn, weights @ (2 * self.tn + self.fp + self.fn))

    def macro_f1(self, weights: np.ndarray) -> Any:
        """The mean of both. Source: VisualPRM (arXiv 2503.10291); PRMBench (arXiv 2501.03124) calls it PRMScore."""
        return (self.f1_right(weights) + self.f1_wrong(weights)) / 2

    def accuracy_erring(self, weights: np.ndarray) -> Any:
        """Share of the wrong solutions whose first error is found; NaN without any."""
        return _share(weights @ self.found, weights @ self.erring, empty=np.nan)

    def accuracy_clean(self, weights: np.ndarray) -> Any:
        """Share of the right solutions in which none is found; NaN without any."""
        return _share(weights @ self.spared, weights @ self.clean, empty=np.nan)

    def first_error_f1(self, weights: np.ndarray) -> Any:
        """Their harmonic mean, 0 where both are 0. Source: ProcessBench (arXiv 2412.06559)."""
        a, b = self.accuracy_erring(weights), self.accuracy_clean(weights)
        return np.where(np.isnan(a + b), np.nan, _share(2 * a * b, a + b))

    def metric(self, name: str, weights: np.ndarray) -> Any:
        """A key of METRICS."""
        return self.first_error_f1(weights) if name == "first_error_f1" else self.macro_f1(weights)


def _share(over: Any, under: Any, *, empty: float = 0.0) -> Any:
    """over / under, `empty` where that is 0 / 0."""
    over, under = np.asarray(over, dtype=float), np.asarray(under, dtype=float)
    return np.divide(over, under, out=np.full_like(under, empty), where=under > 0)


def weighted_aurocs(scores_S: np.ndarray, is_right_S: np.ndarray, case_S: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """`[R]` the chance that a right step scores above a wrong one, ties counting half, under each row of weights.

    NaN where one kind is absent.
    """
    values, group_S = np.unique(scores_S, return_inverse=True)
    found = np.full(len(weights_RP), np.nan)
    for r, weights_P in enumerate(weights_RP):
        weight_S = weights_P[case_S]
        right = np.bincount(group_S, weight_S * is_right_S, minlength=len(values))
        wrong = np.bincount(group_S, weight_S * ~is_right_S, minlength=len(values))
        if right.sum() > 0 and wrong.sum() > 0:
            found[r] = (right * (np.cumsum(wrong) - wrong / 2)).sum() / (right.sum() * wrong.sum())
    return found


def trivial(cases: Sequence[Case], metric: str) -> dict[str, float]:
    """What needs no model: every step right, a fair coin, and a guess by the share of right steps, in expectation.

    A coin with chance p of "right" on a share q of right steps: F1 2pq / (p + q), taken as the ratio of expectations.
    """
    labels = [label for case in cases for label in case.labels if label is not None]
    prior = sum(labels) / len(labels) if labels else 0.0
    return {
        name: _coin_first_error(cases, p) if metric == "first_error_f1" else _coin_macro_f1(prior, p)
        for name, p in (("all right", 1.0), ("coin", 0.5), ("prior", prior))
    }


def _coin_macro_f1(prior: float, p: float) -> float:
    right = 2 * prior * p / (prior + p) if prior + p else 0.0
    below = (1 - prior) + (1 - p)
    return (right + (2 * (1 - prior) * (1 - p) / below if below else 0.0)) / 2


def _coin_first_error(cases: Sequence[Case], p: float) -> float:
    found = [p**case.error_at * (1 - p) for case in cases if case.error_at >= 0]
    spared = [p ** len(case.steps) for case in cases if case.error_at < 0]
    a, b = (sum(part) / len(part) if part else 0.0 for part in (found, spared))
    return 2 * a * b / (a + b) if a + b else 0.0


def chosen_threshold(cases: Sequence[Case], scores: Sequence[Sequence[float]], metric: str) -> float:
    """The threshold with the best value of the metric on these cases; of equally good ones the middle."""
    values = np.unique(np.concatenate([np.asarray(row, dtype=float) for row in scores if len(row)]))
    if len(values) < 2:
        return float(values[0]) - 0.5 if len(values) else 0.5
    middles = (values[1:] + values[:-1]) / 2
    if len(middles) > _MAX_THRESHOLDS:
        flat = np.sort(np.concatenate([np.asarray(row, dtype=float) for row in scores]))
        wanted = np.quantile(flat, np.linspace(0, 1, _MAX_THRESHOLDS + 2)[1:-1])
        middles = np.unique(middles[np.clip(np.searchsorted(middles, wanted), 0, len(middles) - 1)])
    ones = np.ones(len(cases))
    found = np.array([float(Counts(cases, scores, np.full(len(cases), t)).metric(metric, ones)) for t in middles])
    found = np.nan_to_num(found, nan=0.0)  # no solution with an error, or none without: every threshold is as good
    best = np.flatnonzero(found == found.max())
    return float(middles[best[len(best) // 2]])


_MAX_THRESHOLDS = 99


def crossed_thresholds(cases: Sequence[Case], scores: Sequence[Sequence[float]], metric: str) -> np.ndarray:
    """`[P]` a threshold for each case, chosen on the half of the problems to which it does not belong.

    The halves are drawn by digest, so that the order of the rows and what else is in the file change nothing.
    """
    half_P = np.array([int(digest("half-1", case.problem)[:8], 16) % 2 for case in cases])
    if len(set(half_P.tolist())) < 2:
        raise DataError("threshold", "all cases are of one problem", "name a --threshold")
    threshold_P = np.zeros(len(cases))
    for half in (0, 1):
        other = np.flatnonzero(half_P != half).tolist()
        chosen = chosen_threshold([cases[i] for i in other], [scores[i] for i in other], metric)
        threshold_P[half_P == half] = chosen
    return threshold_P


# --- the whole -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """What scores are worth on the cases of one group, or on all."""

    group: str
    num_cases: int
    num_steps: int
    """Steps with a label."""
    wrong_frac: float
    numbers: Mapping[str, Interval | None]
    """The metric, its two parts and the AUROC with their intervals; None where it is not defined."""
    trivial: Mapping[str, float]


def standings(
    benchmark: StepBenchmark,
    cases: Sequence[Case],
    scores: Sequence[Sequence[float]],
    threshold_P: np.ndarray,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Standing]:
    """Overall first, then every group; intervals by bootstrap over problems, the same resamples for all.

    Raises:
        DataError: a case has another number of scores than of steps, or a score is no number.
    """
    for case, row in zip(cases, scores, strict=True):
        if len(row) != len(case.steps) or not all(math.isfinite(score) for score in row):
            what = f"{len(row)} scores for {len(case.steps)} steps, or one is no number"
            raise DataError(f"case {case.id}", what, "give a finite score a step")
    draws = Bootstrap(
        len(cases),
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
        clusters=[case.problem for case in cases],
    )
    weights_RP, tails = draws.weights_RP, draws.tails
    counts = Counts(cases, scores, threshold_P)
    flat = [
        (score, label, i)
        for i, (case, row) in enumerate(zip(cases, scores, strict=True))
        for score, label in zip(row, case.labels, strict=True)
        if label is not None
    ]
    scores_S = np.array([one[0] for one in flat], dtype=float)
    right_S = np.array([one[1] for one in flat], dtype=bool)
    case_S = np.array([one[2] for one in flat], dtype=int)
    members: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        members[case.group].append(i)
    counted = [i for i, case in enumerate(cases) if not case.is_extra]
    groups = {"all": counted or list(range(len(cases)))}
    groups |= {name: members[name] for name in sorted(members) if name and len(members) > 1}

    def masked(kept: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        mask = np.zeros(len(cases))
        mask[list(kept)] = 1.0
        return mask, weights_RP * mask

    def interval(value: Any, drawn: np.ndarray) -> Interval | None:
        drawn = drawn[np.isfinite(drawn)]
        if not np.isfinite(value) or not len(drawn):
            return None
        low, high = np.quantile(drawn, tails)
        return {"mean": round(float(value), 6), "low": round(float(low), 6), "high": round(float(high), 6)}

    parts: dict[str, Callable[[np.ndarray], Any]] = {"f1_right": counts.f1_right, "f1_wrong": counts.f1_wrong}
    if benchmark.metric == "first_error_f1":
        parts = {"accuracy_erring": counts.accuracy_erring, "accuracy_clean": counts.accuracy_clean}
    found, per_group = [], {}
    for name, kept in groups.items():
        mask, drawn = masked(kept)
        value, values_R = counts.metric(benchmark.metric, mask), counts.metric(benchmark.metric, drawn)
        per_group[name] = (value, values_R)
        numbers = {benchmark.metric: interval(value, values_R)}
        numbers |= {part: interval(compute(mask), compute(drawn)) for part, compute in parts.items()}
        inside = mask[case_S] > 0
        aurocs = weighted_aurocs(scores_S[inside], right_S[inside], case_S[inside], np.vstack([mask, drawn]))
        numbers["auroc"] = interval(aurocs[0], aurocs[1:])
        chosen = [cases[i] for i in kept]
        found.append(
            Standing(
                name,
                len(kept),
                int(inside.sum()),
                round(float(1 - right_S[inside].mean()), 6) if inside.any() else 0.0,
                numbers,
                trivial(chosen, benchmark.metric),
            )
        )
    inner = [name for name in groups if name != "all" and np.isfinite(per_group[name][0])]
    if benchmark.is_mean_of_groups and len(inner) > 1:
        value = np.mean([per_group[name][0] for name in inner])
        values_R = np.mean([per_group[name][1] for name in inner], axis=0)
        found[0] = replace(found[0], numbers={**found[0].numbers, benchmark.metric: interval(value, values_R)})
    return found
