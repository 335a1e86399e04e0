"""What a reward model says about a step: the loss of its rows against a label, and the score they give.

Owns the five formulations and nothing else: no model, no file. Losses are in nats a step, in float32.

Shapes: S steps, C rows of the head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from components.errors import DataError
from components.metrics import AGGREGATIONS

_LEAST = 1e-3  # of alpha and beta: the likelihood of counts stays finite


@dataclass(frozen=True)
class Targets:
    """What is known of S steps."""

    label: Tensor
    """`[S]` the label: a probability; of `advantage` one of 1, 0, -1."""
    num_right: Tensor
    """`[S]` k of the step's continuations."""
    num_verdicts: Tensor
    """`[S]` n of the step's continuations; 0: none."""
    weight: Tensor
    """`[S]` how much each step counts."""

    @classmethod
    def of(cls, label: Tensor, weight: Tensor | None = None) -> Targets:
        """Targets without counts."""
        none = torch.zeros_like(label)
        return cls(label, none, none, torch.ones_like(label) if weight is None else weight)


@dataclass(frozen=True)
class Formulation:
    """One way to teach and to read a reward model."""

    name: str
    weights: tuple[float, ...]
    """What each class counts in the score; as many as the head has rows (VisualPRM, section 3.2)."""
    losses: Callable[[Tensor, Targets], Tensor]
    """(`[S, C]` logits, targets) -> `[S]` losses."""
    scores: Callable[[Tensor], Tensor]
    """`[S, C]` logits -> `[S]` scores between the least and the largest weight."""
    last_only: bool = False
    """Learnt at the last step alone, from the verdict on the solution."""
    default_aggregation: str = "min"
    """How the steps' scores become one where no dev split chose."""

    @property
    def is_probability(self) -> bool:
        """Whether a score estimates the chance that a step is right."""
        return min(self.weights) == 0.0

    @property
    def aggregations(self) -> tuple[str, ...]:
        """By which its steps' scores may become one: what is learnt at the last step is read there alone, and a product
        of numbers below 0 would turn two bad steps into a good one."""
        if self.last_only:
            return ("last",)
        return tuple(how for how in AGGREGATIONS if self.is_probability or how != "product")

    def loss(self, logits_SC: Tensor, targets: Targets, total_weight: float | None = None) -> Tensor:
        """The weighted mean loss.

        Args:
            total_weight: of all steps that the mean goes over, where these are a part; None: these are all.
        Raises:
            DataError: a target that no label can have.
        """
        losses = self.losses(logits_SC.float(), targets) * targets.weight
        total = targets.weight.sum() if total_weight is None else torch.as_tensor(total_weight, device=losses.device)
        return losses.sum() / total.clamp(min=1e-9)


def concentration(logits_S2: Tensor) -> Tensor:
    """`[S]` alpha + beta of the `count` formulation: how many continuations the score is worth."""
    alpha, beta = _beta(logits_S2)
    return alpha + beta


def _soft(logits: Tensor, targets: Targets) -> Tensor:
    label = targets.label
    _inside(label, 0.0, 1.0)
    return cross_entropy(logits, torch.stack([label, 1 - label], -1).float(), reduction="none")


def _advantage(logits: Tensor, targets: Targets) -> Tensor:
    _inside(targets.label, -1.0, 1.0)
    return cross_entropy(logits, (1 - targets.label).round().long(), reduction="none")


def _count(logits: Tensor, targets: Targets) -> Tensor:
    """Negative log-likelihood of k right of n, without the constant log of the binomial coefficient."""
    k, n = targets.num_right.float(), targets.num_verdicts.float()
    if bool((k > n).any()) or bool((k < 0).any()):
        raise DataError("labels", "a step with more right continuations than verdicts", "run label again")
    alpha, beta = _beta(logits)
    return _log_beta(alpha, beta) - _log_beta(alpha + k, beta + n - k)


def _beta(logits: Tensor) -> tuple[Tensor, Tensor]:
    alpha, beta = softplus(logits.float()).clamp(min=_LEAST).unbind(-1)
    return alpha, beta


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def _inside(label: Tensor, low: float, high: float) -> None:
    if label.numel() and not bool(((label >= low) & (label <= high)).all()):
        what = f"a label lies outside [{low:g}, {high:g}]: {float(label.min())} .. {float(label.max())}"
        raise DataError("labels", what, "run label again")


def _weighted(weights: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    def scores(logits: Tensor) -> Tensor:
        return logits.float().softmax(-1) @ torch.tensor(weights, device=logits.device)

    return scores


def _mean(logits: Tensor) -> Tensor:
    alpha, beta = _beta(logits)
    return alpha / (alpha + beta)


FORMULATIONS = {
    f.name: f
    for f in (
        # Soft labels: the Monte-Carlo value itself (MM-PRM, section 3.3).
        Formulation("soft", (1.0, 0.0), _soft, _weighted((1.0, 0.0))),
        # Hard labels: whether the value exceeds a threshold (VisualPRM, section 3.2).
        Formulation("value", (1.0, 0.0), _soft, _weighted((1.0, 0.0))),
        # Whether the value rose, stayed or fell with the step (VisualPRM, section 3.2): classes +, =, -.
        Formulation("advantage", (1.0, 0.0, -1.0), _advantage, _weighted((1.0, 0.0, -1.0)), default_aggregation="mean"),
        # Counts under a Beta-Binomial likelihood: a mean, and how sure it is (BetaPRM, arXiv 2605.15529).
        Formulation("count", (1.0, 0.0), _count, _mean),
        # The outcome reward model, the papers' baseline: one verdict, read at the last step.
        Formulation("outcome", (1.0, 0.0), _soft, _weighted((1.0, 0.0)), last_only=True, default_aggregation="last"),
    )
}
