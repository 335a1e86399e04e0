"""What runs of several seeds say together: means, and intervals over seeds and over problems. Pure numpy.

Knows no file and no setting: a number or the problems' values of every (variant, seed) come in, rows go out.
Two intervals stand side by side, because they answer two questions and neither holds the other: over seeds, what other
seeds would give on these problems (Student's t); over problems, what other problems would give with these seeds' models
(bootstrap; the seeds share their problems, so a problem's seeds come and go together).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from components.ablations.declared import Shown
from components.errors import DataError
from components.metrics import Bootstrap, Interval

Value = float | Mapping[str, float] | Interval | None
"""What one run measured: a number; the values of problems by id; or a mean whose problems only its interval knows."""
Measured = Mapping[tuple[str, int], Mapping[str, Value]]
"""(variant, seed) -> shown value's name -> value; a run that failed is not there."""


def t_quantile(confidence: float, num_freedom: int) -> float:
    """How many standard errors a two-sided Student interval reaches to; exact, by bisection of the closed form.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4, for whole degrees of freedom.
    """
    low, high = 0.0, 1.0
    while _t_inside(high, num_freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, num_freedom) < confidence else (low, middle)
    return (low + high) / 2


def _t_inside(t: float, n: int) -> float:
    """P(|T| < t) with n degrees of freedom."""
    angle = math.atan2(t, math.sqrt(n))
    square = math.cos(angle) ** 2
    odd = n % 2
    term, terms = (math.cos(angle) if odd else 1.0), 0.0
    for k in range((n - 1) // 2 if odd else n // 2):
        terms += term
        term *= square * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return 2 / math.pi * (angle + math.sin(angle) * terms) if odd else math.sin(angle) * terms


def over_seeds(values: Sequence[float], confidence: float) -> Interval | None:
    """The mean with Student's interval; None of fewer than two seeds, which say nothing about others."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = t_quantile(confidence, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return _interval(mean, mean - half, mean + half)


def over_problems(of_seed: Sequence[Mapping[str, float]], *, num_resamples: int, confidence: float) -> Interval:
    """The mean over seeds and problems, with a bootstrap over problems; a problem keeps its seeds.

    Raises:
        DataError: the seeds are about other problems.
    """
    keys = sorted(of_seed[0])
    if any(sorted(one) != keys for one in of_seed):
        raise _other_problems()
    values_P = np.mean([[one[key] for key in keys] for one in of_seed], axis=0)
    return Bootstrap(len(keys), num_resamples=num_resamples, confidence=confidence, seed=0).mean(values_P)


def sweep_rows(
    measured: Measured,
    variants: Sequence[str],
    seeds: Sequence[int],
    shown: Sequence[Shown],
    *,
    num_resamples: int,
    confidence: float,
) -> list[dict[str, Any]]:
    """Rows of {variant, num_seeds, values: {shown: {mean, seeds, over_seeds, over_problems, difference, is_best}}}.

    `difference` is against the first variant, over the seeds that both have: paired, so that what a seed does to both
    alike cancels. `is_best` compares the variants that have as many seeds as any has; equal means share it. What a
    variant lacks is None.
    """
    how = {"num_resamples": num_resamples, "confidence": confidence}
    rows: list[dict[str, Any]] = []
    for variant in variants:
        values: dict[str, Any] = {}
        for one in shown:
            own = {seed: value for seed in seeds if (value := _value(measured, variant, seed, one)) is not None}
            base = {seed: value for seed in own if (value := _value(measured, variants[0], seed, one)) is not None}
            estimate = _estimate(own, how)
            if estimate is not None:
                pairs = {seed: _less(own[seed], base[seed]) for seed in base}
                estimate["difference"] = _estimate(pairs, how) if variant != variants[0] else None
            values[one.value] = estimate
        num_seeds = sum((variant, seed) in measured for seed in seeds)
        rows.append({"variant": variant, "num_seeds": num_seeds, "values": values})
    for one in shown:
        _mark_best(one, [row["values"][one.value] for row in rows])
    return rows


def check_problems(measured: Measured, found: Mapping[str, Mapping[str, Value]]) -> None:
    """That a run measured the problems that those before it did.

    Raises:
        DataError: it measured others.
    """
    for values in found.values():
        for name, value in values.items():
            before = [of_run[name] for of_run in measured.values() if name in of_run]
            if _has_problems(value) and any(_has_problems(one) and set(one) != set(value) for one in before):
                raise _other_problems()


def means(measured: Mapping[str, Mapping[str, Value]]) -> dict[str, dict[str, float]]:
    """Each value as one number; what is None is left out."""
    return {
        variant: {name: _mean(value) for name, value in values.items() if value is not None}
        for variant, values in measured.items()
    }


def _value(measured: Measured, variant: str, seed: int, one: Shown) -> Value:
    return measured.get((variant, seed), {}).get(one.value)


def _other_problems() -> DataError:
    hint = "a sweep may not change the benchmarks: their files, or what is sampled of them"
    return DataError("ablations", "the runs of a sweep measured other problems", hint)


def _estimate(of_seed: Mapping[int, Value], how: Mapping[str, Any]) -> dict[str, Any] | None:
    if not of_seed:
        return None
    means = {str(seed): round(_mean(value), 6) for seed, value in of_seed.items()}
    numbers = [_mean(value) for value in of_seed.values()]
    problems = [value for value in of_seed.values() if _has_problems(value)]
    ranges = [value for value in of_seed.values() if isinstance(value, Mapping) and _is_interval(value)]
    across: Interval | None = None
    if len(problems) == len(of_seed):
        across = over_problems(problems, **how)
    elif len(ranges) == len(of_seed):  # a mean's error is at most the mean of the errors: too wide if anything
        across = _interval(*(float(np.mean([one[end] for one in ranges])) for end in ("mean", "low", "high")))
    return {
        "mean": round(float(np.mean(numbers)), 6),
        "seeds": means,
        "over_seeds": over_seeds(numbers, how["confidence"]),
        "over_problems": across,
        "is_best": False,
        "difference": None,
    }


def _has_problems(value: Value) -> TypeGuard[Mapping[str, float]]:
    return isinstance(value, Mapping) and not _is_interval(value)


def _is_interval(value: Mapping[str, float]) -> bool:
    return set(value) == {"mean", "low", "high"}


def _mean(value: Value) -> float:
    if isinstance(value, Mapping):
        return float(value["mean"]) if _is_interval(value) else float(np.mean(list(value.values())))
    assert value is not None
    return float(value)


def _less(a: Value, b: Value) -> Value:
    """a - b, problem by problem where both know theirs."""
    if _has_problems(a) and _has_problems(b):
        if set(a) != set(b):
            raise _other_problems()
        return {key: a[key] - b[key] for key in a}
    return _mean(a) - _mean(b)


def _mark_best(one: Shown, estimates: Sequence[dict[str, Any] | None]) -> None:
    known = [e for e in estimates if e is not None]
    most = max((len(e["seeds"]) for e in known), default=0)
    whole = [e for e in known if len(e["seeds"]) == most]
    if one.better == "neither" or len(known) < 2:
        return
    top = (max if one.better == "higher" else min)(e["mean"] for e in whole)
    for e in whole:
        e["is_best"] = e["mean"] == top


def _interval(mean: float, low: float, high: float) -> Interval:
    return {"mean": round(mean, 6), "low": round(low, 6), "high": round(high, 6)}
