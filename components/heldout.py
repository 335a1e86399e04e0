"""What a reward model is worth on problems that it did not learn from, and what is chosen there for its contract.

Owns loss, step AUROC and calibration with their intervals over problems, and the choice of temperature, threshold and
aggregation; knows no model and no file.

Shapes: S steps that are read, C rows of the head, P problems, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components import metrics
from components.formulations import Formulation, Targets

Floats = NDArray[np.float64]

NUM_RESAMPLES = 1_000
_NUMBERS_AT_ONCE = 4_000_000  # of the resampled weights in memory
_TEMPERATURES = torch.logspace(-2, 3, 101, base=2.0, dtype=torch.float64).tolist()  # 1/4 to 8


@dataclass(frozen=True)
class Solution:
    """A solution of a problem that is kept aside; all of its steps are read, some have a label."""

    problem_id: str
    num_steps: int
    labelled: tuple[int, ...]
    """Which of its steps have targets."""
    is_right: bool | None
    """How it ended; None: unknown."""


@dataclass(frozen=True)
class HeldOut:
    """Solutions kept aside, with the targets of their labelled steps, in order."""

    solutions: Sequence[Solution]
    targets: Targets
    formulation: Formulation

    def figures(self, logits_SC: Tensor, temperature: float = 1.0) -> dict[str, Any]:
        """Loss in nats a step, step AUROC and calibration error; None what the labels do not tell."""
        labelled = self._labelled(logits_SC) / temperature
        scores, right = self._scores(labelled), self._is_right()
        label = self.targets.label.double().tolist()
        ece = metrics.calibration(scores, label)["ece"] if self.formulation.is_probability else None
        auroc = metrics.auroc(scores, right.tolist())
        return {
            "loss": round(float(self.formulation.loss(labelled, self.targets)), 6),
            "auroc": None if auroc is None else round(auroc, 6),
            "calibration_error": ece,
        }

    def intervals(self, logits_SC: Tensor, *, seed: int, confidence: float = 0.95) -> dict[str, Any]:
        """`loss` and `auroc` with percentile intervals over problems; equal seeds draw the same problems."""
        labelled = self._labelled(logits_SC)
        weight = self.targets.weight.double().numpy()
        losses = self.formulation.losses(labelled.float(), self.targets).double().numpy()
        problem_S = self._problems()
        num_problems = int(problem_S.max()) + 1
        share = np.full(num_problems, 1 / num_problems)
        drawn_RP = np.random.default_rng(seed).multinomial(num_problems, share, size=NUM_RESAMPLES).astype(float)
        over_P, under_P = (np.bincount(problem_S, w, num_problems) for w in (losses * weight, weight))
        every = np.ones((1, num_problems))
        scores, right = np.asarray(self._scores(labelled)), self._is_right()
        out: dict[str, Any] = {}
        for name, values in (
            ("loss", [(drawn @ over_P) / np.maximum(drawn @ under_P, 1e-12) for drawn in (every, drawn_RP)]),
            ("auroc", [_weighted_auroc(scores, right, drawn, problem_S) for drawn in (every, drawn_RP)]),
        ):
            mean, resampled = float(values[0][0]), values[1][np.isfinite(values[1])]
            if not np.isfinite(mean) or not len(resampled):
                out[name] = None
                continue
            low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
            out[name] = {"mean": round(mean, 6), "low": round(float(low), 6), "high": round(float(high), 6)}
        return out

    def temperature(self, logits_SC: Tensor) -> float:
        """What the logits are best divided by: the least loss on a grid from 1/4 to 8, twice refined.

        Source: Guo et al. 2017 (arXiv 1706.04599), temperature scaling.
        Differs: the loss is the formulation's own, so that of counts is their likelihood.
        """
        labelled = self._labelled(logits_SC)
        if not bool(self.targets.weight.any()):
            return 1.0  # nothing to fit it to

        def loss(value: float) -> float:
            return float(self.formulation.loss(labelled / value, self.targets))

        grid = _TEMPERATURES
        for _ in range(3):
            losses = [loss(value) for value in grid]
            best = int(np.argmin(losses))
            low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
            chosen = grid[best]
            grid = np.geomspace(low, high, 11).tolist()
        return round(float(chosen), 6)

    def threshold(self, logits_SC: Tensor, temperature: float) -> float:
        """Above it a step is best called right: the highest macro F1 against the labels."""
        scores, right = self._scores(self._labelled(logits_SC) / temperature), self._is_right()
        if right.all() or not right.any():
            return sum(self.formulation.weights) / len(self.formulation.weights)
        low, high = min(self.formulation.weights), max(self.formulation.weights)
        return metrics.best_threshold(scores, right.tolist(), low=low, high=high)

    def aggregation(self, logits_SC: Tensor, temperature: float) -> tuple[str, dict[str, float]]:
        """The aggregation that picks right solutions most often, and how often each does.

        Of those that the formulation allows, over problems with right and wrong solutions; where there are none, the
        formulation's own. Of equal ones that is taken first, then the one named first.
        """
        default = self.formulation.default_aggregation
        rows = self.formulation.scores(logits_SC / temperature).double()
        groups: dict[str, list[tuple[list[float], bool]]] = {}
        sizes = [one.num_steps for one in self.solutions]
        for one, scores in zip(self.solutions, rows.split(sizes), strict=True):
            if one.is_right is not None:
                groups.setdefault(one.problem_id, []).append((scores.tolist(), one.is_right))
        mixed = [group for group in groups.values() if len({right for _, right in group}) == 2]
        if not mixed:
            return default, {}
        accuracy = {}
        for how in (default, *(how for how in self.formulation.aggregations if how != default)):
            picks = [
                metrics.best_of_n([metrics.aggregate(scores, how) for scores, _ in group], [right for _, right in group])
                for group in mixed
            ]
            accuracy[how] = round(float(np.mean(picks)), 6)
        return metrics.chosen_aggregation(accuracy), accuracy

    def _labelled(self, logits_SC: Tensor) -> Tensor:
        """The rows of the steps that have targets."""
        places, start = [], 0
        for one in self.solutions:
            places += [start + step for step in one.labelled]
            start += one.num_steps
        return logits_SC[places].float()

    def _problems(self) -> NDArray[np.int64]:
        """`[S]` the number of each labelled step's problem."""
        index: dict[str, int] = {}
        numbers = [index.setdefault(one.problem_id, len(index)) for one in self.solutions for _ in one.labelled]
        return np.asarray(numbers, dtype=np.int64)

    def _scores(self, labelled_SC: Tensor) -> list[float]:
        scores: list[float] = self.formulation.scores(labelled_SC).double().tolist()
        return scores

    def _is_right(self) -> NDArray[np.bool_]:
        """Which labelled steps count as right: with advantages, those that do no harm."""
        above = 0.5 if self.formulation.is_probability else -0.5
        return np.asarray(self.targets.label.double().numpy() > above, dtype=bool)


def _weighted_auroc(scores: Floats, right: NDArray[np.bool_], weight_RP: Floats, problem_S: NDArray[np.int64]) -> Floats:
    """`[R]` the chance that a right step scores above a wrong one, ties half, steps counted as often as their problem."""
    order = np.argsort(scores, kind="stable")
    values, right = scores[order], right[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    out: Floats = np.empty(len(weight_RP))
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, len(scores)))
    for start in range(0, len(weight_RP), at_once):
        weight_RS = weight_RP[start : start + at_once][:, problem_S[order]]
        up = np.add.reduceat(weight_RS * right, starts, axis=1)
        down = np.add.reduceat(weight_RS * ~right, starts, axis=1)
        below = np.cumsum(down, axis=1) - down
        with np.errstate(invalid="ignore", divide="ignore"):
            out[start : start + at_once] = (up * (below + down / 2)).sum(1) / (up.sum(1) * down.sum(1))
    return out
