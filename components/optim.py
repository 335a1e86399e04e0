"""The one training loop: seeded batches, schedule, progress, and checkpoints that continue to the bit.

Knows nothing of what is learnt: the caller gives a loss and the parts of each step. A step's parts depend on the
seed and the step number alone, so that an interrupted run ends where an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.errors import DataError
from components.processes import ALONE, Crew, Prepared
from components.progress import Progress
from components.records import replacing
from components.settings import Optimiser

CHECKPOINT_STEPS = 100

LossOf = Callable[[Any], Tensor]
"""part -> its share of the step's loss; of several numbers the first is that, and the others are watched: each number,
summed over parts and processes, is the step's."""
PartsAt = Callable[[int], Sequence[Any]]
"""step -> the parts of it that this process learns from; as many on every process"""
Note = Callable[[Sequence[float]], str]
"""a step's numbers -> what the progress line says of them"""


@dataclass(frozen=True)
class Watch:
    """A look, now and then, at what is not learnt."""

    every: int
    """Steps between two looks; the last step is looked at too."""
    at: Callable[[torch.nn.Module], dict[str, Any]]
    """The module as it is wrapped -> what was seen; its `loss` decides. Called by every process."""
    patience: int | None = None
    """End after so many looks without a lower loss, and keep the weights of the best; None: go on to the end."""
    number: int = 0
    """Which of the steps' numbers is set beside that loss, as `train_loss`."""


@dataclass
class Fitted:
    """What became of a training."""

    numbers: list[list[float]] = field(default_factory=list)
    """Of every step: its loss, and what was watched."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Every look: its step, `train_loss`, the mean of the steps since the last one, and what was seen."""
    best_step: int | None = None
    """Whose weights were kept; None: the last one's."""

    @property
    def final_loss(self) -> float:
        """The mean loss of the last 20 steps; NaN of none."""
        return self.final(0)

    def final(self, place: int) -> float:
        """The mean of one of the numbers over the last 20 steps."""
        last = [numbers[place] for numbers in self.numbers[-20:]]
        return float(np.mean(last)) if last else float("nan")


class _Learner(torch.nn.Module):
    """A module whose forward is the loss of a part, so that a wrapper sees every pass."""

    def __init__(self, module: torch.nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.module = module
        self.loss_of = loss_of

    def forward(self, part: Any) -> Tensor:
        return self.loss_of(part)


def fit(
    module: torch.nn.Module,
    loss_of: LossOf,
    parts_at: PartsAt,
    settings: Optimiser,
    *,
    name: str,
    checkpoint: Path | None = None,
    crew: Crew = ALONE,
    watch: Watch | None = None,
    note: Note = lambda numbers: f"loss {numbers[0]:.3f}",
    outside: Iterable[torch.nn.Parameter] = (),
) -> Fitted:
    """Train the parameters of `module` that require gradients.

    Args:
        checkpoint: where unfinished work is kept; found there, it is continued.
        outside: parameters of `module` that `loss_of` reads itself, not in the forward of the module they belong to.
    Raises:
        DataError: the loss is not finite.
    """
    learner = _Learner(module, loss_of)
    prepared = crew.prepare(learner, settings, outside)
    progress = Progress(name, settings.num_steps, unit="steps") if crew.is_first else None
    fitted, start = Fitted(), 0
    state = prepared.load(checkpoint) if checkpoint is not None else None
    if state is not None:
        start = int(state["step"])
        fitted = Fitted(list(state["numbers"]), list(state["history"]), state["best_step"])
        if progress is not None:
            progress.skip(start)
    best = checkpoint.with_name(f"{checkpoint.name}.best") if checkpoint is not None else None
    for step in range(start, settings.num_steps):
        if watch is not None and _has_waited(watch, fitted):
            break
        prepared.set_rate(learning_rate(step, settings))
        torch.manual_seed(step * crew.size + crew.rank)  # noise such as dropout depends on the step, not on what was before
        parts = parts_at(step)
        said = [prepared.learn(part, is_last=i == len(parts) - 1) for i, part in enumerate(parts)]
        numbers = crew.summed(torch.stack([one.reshape(-1).float() for one in said]).sum(0)).tolist()
        if not math.isfinite(numbers[0]):
            raise DataError(
                name, f"the loss is {numbers[0]} at step {step}", "lower the learning rate, or look for broken labels"
            )
        prepared.step()
        fitted.numbers.append(numbers)
        if progress is not None:
            progress.advance(1, note(numbers))
        is_end = step + 1 == settings.num_steps
        if watch is not None and ((step + 1) % watch.every == 0 or is_end):
            _look(watch, fitted, prepared, step + 1, best)
        if checkpoint is not None and (step + 1) % CHECKPOINT_STEPS == 0:
            kept = {"numbers": fitted.numbers, "history": fitted.history, "best_step": fitted.best_step}
            prepared.save(checkpoint, {"step": step + 1, **kept})
    prepared.finish()
    if fitted.best_step not in (None, len(fitted.numbers)) and best is not None:
        crew.wait()
        learner.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
    return fitted


def _look(watch: Watch, fitted: Fitted, prepared: Prepared, step: int, best: Path | None) -> None:
    before = fitted.history[-1]["step"] if fitted.history else 0
    seen = watch.at(prepared.module)
    learnt = float(np.mean([numbers[watch.number] for numbers in fitted.numbers[before:step]]))
    lowest = min((look["loss"] for look in fitted.history), default=math.inf)
    fitted.history.append({"step": step, "train_loss": learnt, **seen})
    if watch.patience is not None and best is not None and seen["loss"] < lowest:
        fitted.best_step = step
        weights = prepared.whole()
        if weights:
            with replacing(best) as part:
                torch.save(weights, part)


def _has_waited(watch: Watch, fitted: Fitted) -> bool:
    """Whether the loss has not become lower for so many looks."""
    if watch.patience is None or fitted.best_step is None:
        return False
    return len([look for look in fitted.history if look["step"] > fitted.best_step]) >= watch.patience


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


def batch_groups(sizes: Sequence[int], batch_size: int, num_steps: int, seed: int) -> list[list[int]]:
    """The groups of every step's batch, `[steps][groups]`: whole groups in seeded order, until they have so many rows.

    The order is that of `batch_rows`; each epoch shows every group once.
    """
    out: list[list[int]] = []
    position = 0
    order: list[int] = []
    for _ in range(num_steps):
        batch: list[int] = []
        num_rows = 0
        while num_rows < batch_size:
            if position % len(sizes) == 0:
                epoch = position // len(sizes)
                order = np.random.default_rng([seed & 0xFFFFFFFF, epoch]).permutation(len(sizes)).tolist()
            batch.append(order[position % len(sizes)])
            num_rows += sizes[batch[-1]]
            position += 1
        out.append(batch)
    return out
