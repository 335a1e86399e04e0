"""The one training loop: seeded batches, schedule, progress, and checkpoints that continue to the bit.

Knows nothing of what is learnt: the caller gives parameters and a loss for each step. A step's batch depends
on the seed and the step number alone, so that an interrupted run ends where an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from components.errors import DataError
from components.progress import Progress
from components.records import replacing
from components.settings import Optimiser

CHECKPOINT_STEPS = 100

LossAt = Callable[[int], tuple[torch.Tensor, str]]
"""step -> (loss, a note for the progress line)"""


def fit(
    module: torch.nn.Module, loss_at: LossAt, settings: Optimiser, *, name: str, checkpoint: Path | None = None
) -> float:
    """Train the parameters of `module` that require gradients; returns the mean loss of the last 20 steps.

    Args:
        checkpoint: where unfinished work is kept; found there, it is continued.
    Raises:
        DataError: the loss is not finite.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    progress = Progress(name, settings.num_steps, unit="steps")
    losses: list[float] = []
    start = 0
    if checkpoint is not None and checkpoint.exists():
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
            raise DataError(
                str(checkpoint), f"unfinished work cannot be read: {error}", "delete it to start from the beginning"
            ) from error
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        start, losses = int(state["step"]), list(state["losses"])
        progress.skip(start)
    for step in range(start, settings.num_steps):
        rate = learning_rate(step, settings)
        for group in optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(step)  # noise such as dropout depends on the step, not on what happened before
        loss, note = loss_at(step)
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(
                name, f"the loss is {value} at step {step}", "lower the learning rate, or look for broken labels"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimiser.step()
        losses.append(value)
        progress.advance(1, note or f"loss {value:.3f}")
        if checkpoint is not None and (step + 1) % CHECKPOINT_STEPS == 0:
            _save(checkpoint, module, optimiser, step + 1, losses)
    return float(np.mean(losses[-20:])) if losses else float("nan")


def learning_rate(step: int, settings: Optimiser) -> float:
    """Linear warm-up, then a cosine from the peak to 5 % of it."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / settings.num_steps))
    return settings.learning_rate * warm * cosine


def batch_rows(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The rows of one step's batch: slices of an endless sequence of seeded permutations."""
    wanted = range(step * batch_size, (step + 1) * batch_size)
    epochs = {position // num_rows for position in wanted}
    orders = {epoch: np.random.default_rng([seed & 0xFFFFFFFF, epoch]).permutation(num_rows) for epoch in epochs}
    return [int(orders[position // num_rows][position % num_rows]) for position in wanted]


def freeze_vision(model: Any) -> int:
    """Keep the vision encoder as it is: no gradients, and evaluation mode for good. Returns frozen parameters."""
    frozen = 0
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("vision_tower", "visual", "vision_model"):
            module.eval()
            module.train = lambda mode=True, module=module: module  # drop-path noise in a frozen tower is only noise
            for parameter in module.parameters():
                frozen += parameter.numel() if parameter.requires_grad else 0
                parameter.requires_grad_(False)
    return frozen


def _save(path: Path, module: torch.nn.Module, optimiser: torch.optim.Optimizer, step: int, losses: list[float]) -> None:
    state = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "losses": losses}
    with replacing(path) as part:
        torch.save(state, part)
