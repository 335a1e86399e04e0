"""How far people agree beyond chance: Cohen's and Fleiss' kappa, Krippendorff's alpha, with intervals over solutions.

Owns these three numbers; does not know who the people are or what they read.

Shapes: P solutions, R rows of weights, C marks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from components.annotate.estimates import weighted_ratio
from components.metrics import Bootstrap, Interval

MARKS = ("+", "0", "-")
"""Right, neutral, wrong."""
NUM_RESAMPLES = 2000
CONFIDENCE = 0.95

Marks = Mapping[str, Sequence[str | None]]
"""Solution -> one mark a step; None where nothing was said."""
_INDEX = {mark: i for i, mark in enumerate(MARKS)}


def cohen(tables_PCC: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """`[R]` Cohen's kappa of two people; NaN where both used one mark alone.

    Args:
        tables_PCC: how often in a solution the first said c and the second k.
        weights_RP: how often each solution counts.
    Source: Cohen 1960, A coefficient of agreement for nominal scales.
    """
    table = np.einsum("rp,pck->rck", weights_RP, tables_PCC)
    total = table.sum(axis=(1, 2))
    observed = _ratio(np.trace(table, axis1=1, axis2=2), total)
    expected = _ratio((table.sum(axis=1) * table.sum(axis=2)).sum(axis=1), total**2)
    return _ratio(observed - expected, 1 - expected)


def fleiss(shares_PC: np.ndarray, agreeing_P: np.ndarray, units_P: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """`[R]` Fleiss' kappa of people who all judged the same steps; NaN where there is one mark alone.

    Args:
        shares_PC: sum over a solution's steps of the share of people who said c.
        agreeing_P: sum over its steps of the share of pairs of people who agree.
        units_P: its steps.
    Source: Fleiss 1971, Measuring nominal scale agreement among many raters.
    """
    units = weights_RP @ units_P
    observed = _ratio(weights_RP @ agreeing_P, units)
    expected = (_ratio(weights_RP @ shares_PC, units[:, None]) ** 2).sum(axis=1)
    return _ratio(observed - expected, 1 - expected)


def krippendorff(coincidences_PCC: np.ndarray, weights_RP: np.ndarray) -> np.ndarray:
    """`[R]` Krippendorff's alpha of nominal marks, any number of people, gaps allowed; NaN where there is one mark alone.

    Args:
        coincidences_PCC: of a solution's steps; ordered pairs of marks within a step, each over (people there - 1).
    Source: Krippendorff 2011, Computing Krippendorff's alpha-reliability.
    """
    table = np.einsum("rp,pck->rck", weights_RP, coincidences_PCC)
    marginal = table.sum(axis=2)
    total = marginal.sum(axis=1)
    differing = total - np.trace(table, axis1=1, axis2=2)
    expected = total**2 - (marginal**2).sum(axis=1)
    alpha: np.ndarray = 1 - _ratio((total - 1) * differing, expected)
    return alpha


def _ratio(over: Any, under: Any) -> np.ndarray:
    over, under = np.broadcast_arrays(np.asarray(over, dtype=float), np.asarray(under, dtype=float))
    out: np.ndarray = np.divide(over, under, out=np.full(over.shape, np.nan), where=np.abs(under) > 1e-12)
    return out


def agreement(people: Mapping[str, Marks], *, seed: int = 0) -> dict[str, Any]:
    """What people with at least one step in common agree on: numbers, each with its 95 % interval, or None.

    Returns: `num_steps` judged by two or more, `num_differing` of them, `share` of them on which all agree, `kappa` for each
        pair ("ann, bob"), `alpha`, and `fleiss` on the steps that all judged where there are more than two people.
    """
    names = list(people)
    solutions = sorted({key for marks in people.values() for key in marks})
    units = [_units(people, names, key) for key in solutions]
    shared = [[unit for unit in steps if sum(mark is not None for mark in unit) > 1] for steps in units]
    kept = [i for i, steps in enumerate(shared) if steps]
    shared = [shared[i] for i in kept]
    found: dict[str, Any] = {
        "num_steps": sum(map(len, shared)),
        "num_differing": sum(_differs(unit) for steps in shared for unit in steps),
        "share": None,
        "kappa": {f"{names[a]}, {names[b]}": None for a, b in combinations(range(len(names)), 2)},
        "alpha": None,
        "fleiss": None,
    }
    if not shared:
        return found
    draws = Bootstrap(len(shared), num_resamples=NUM_RESAMPLES, confidence=CONFIDENCE, seed=seed)
    weights_RP = np.vstack([np.ones(len(shared)), draws.weights_RP * len(shared)])
    same_P = np.array([sum(not _differs(unit) for unit in steps) for steps in shared], dtype=float)
    units_P = np.array([len(steps) for steps in shared], dtype=float)
    marks_PC = np.array([[sum(unit.count(mark) for unit in steps) for mark in MARKS] for steps in shared], dtype=float)
    found["share"] = _share(same_P, units_P)
    for a, b in combinations(range(len(names)), 2):
        tables = np.zeros((len(shared), len(MARKS), len(MARKS)))
        for i, steps in enumerate(shared):
            for unit in steps:
                if unit[a] is not None and unit[b] is not None:
                    tables[i, _INDEX[str(unit[a])], _INDEX[str(unit[b])]] += 1
        share = _share(np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2)))
        marks_C = tables.sum(axis=(0, 1)) + tables.sum(axis=(0, 2))
        found["kappa"][f"{names[a]}, {names[b]}"] = _interval(cohen(tables, weights_RP), draws.tails, share, marks_C)
    alpha_R = krippendorff(_coincidences(shared), weights_RP)
    found["alpha"] = _interval(alpha_R, draws.tails, found["share"], marks_PC.sum(axis=0))
    if len(names) > 2:
        shares_PC, agreeing_P, all_P = _fleiss_sums(shared)
        fleiss_R = fleiss(shares_PC, agreeing_P, all_P, weights_RP)
        found["fleiss"] = _interval(fleiss_R, draws.tails, _share(agreeing_P, all_P), shares_PC.sum(axis=0))
    return found


def _units(people: Mapping[str, Marks], names: Sequence[str], key: str) -> list[list[str | None]]:
    """Of one solution, step by step what each person said."""
    num = max(len(people[name].get(key, ())) for name in names)
    rows = [people[name].get(key) or [None] * num for name in names]
    return [list(unit) for unit in zip(*rows, strict=True)]


def _differs(unit: Sequence[str | None]) -> bool:
    return len({mark for mark in unit if mark is not None}) > 1


def _coincidences(shared: Sequence[Sequence[Sequence[str | None]]]) -> np.ndarray:
    out = np.zeros((len(shared), len(MARKS), len(MARKS)))
    for i, steps in enumerate(shared):
        for unit in steps:
            counts = Counter(_INDEX[mark] for mark in unit if mark is not None)
            num = sum(counts.values())
            for c, first in counts.items():
                for k, second in counts.items():
                    out[i, c, k] += first * (second - (c == k)) / (num - 1)
    return out


def _fleiss_sums(shared: Sequence[Sequence[Sequence[str | None]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shares, agreeing, units = np.zeros((len(shared), len(MARKS))), np.zeros(len(shared)), np.zeros(len(shared))
    for i, steps in enumerate(shared):
        for unit in steps:
            if all(mark is not None for mark in unit):
                counts = Counter(_INDEX[str(mark)] for mark in unit)
                units[i] += 1
                agreeing[i] += sum(n * (n - 1) for n in counts.values()) / (len(unit) * (len(unit) - 1))
                for c, n in counts.items():
                    shares[i, c] += n / len(unit)
    return shares, agreeing, units


def _share(same_P: np.ndarray, units_P: np.ndarray) -> Interval | None:
    """Of the steps, the share with one mark."""
    return weighted_ratio(same_P, units_P, ["all"] * len(units_P), {"all": sys.maxsize})


def _interval(values_R: np.ndarray, tails: Sequence[float], share: Interval | None, marks_C: np.ndarray) -> Interval | None:
    """The first value with the quantiles of the others; None where it is not defined.

    Where people never differed, or there is one solution, resamples are all alike and say nothing of others: then the ends
    are those of `share`, the share of steps with one mark, over what chance does with `marks_C`, how often each was given.
    """
    drawn = values_R[1:][np.isfinite(values_R[1:])]
    if not np.isfinite(values_R[0]) or not len(drawn) or share is None:
        return None
    low, high = np.quantile(drawn, tails)
    if np.ptp(drawn) < 1e-9:
        is_differing = share["mean"] < 1
        by_chance = (1 - share["mean"]) / (1 - values_R[0]) if is_differing else 1 - ((marks_C / marks_C.sum()) ** 2).sum()
        low, high = (max(-1.0, 1 - (1 - share[end]) / by_chance) for end in ("low", "high"))
    return {"mean": round(float(values_R[0]), 6), "low": round(float(low), 6), "high": round(float(high), 6)}
