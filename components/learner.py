"""Examples and statements as parts of a training step: each process its share, each part what memory holds.

Owns how a step is cut and put together again; the losses are `formulations`' and `perception`'s, the loop `optim`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from components.examples import Example
from components.formulations import Targets
from components.heldout import HeldOut, Solution
from components.packing import Batch, Tree
from components.prm import BATCH_TOKENS, RewardModel
from components.processes import Crew


@dataclass(frozen=True)
class Labels:
    """A part of a step: places that are read, and what should be read there."""

    batch: Batch
    targets: Targets
    total_weight: float
    """Of all of the step's targets, over parts and processes; infinite: to be computed, and not learnt."""


@dataclass(frozen=True)
class Statements:
    """A part of a step: a share of pictures with statements."""

    num_pictures: int
    seed: int
    share: int
    num_shares: int
    weight: float = 1.0


class Learner:
    """What a reward model learns from, part by part. Numbers: the loss, that of the labels, and how well it sees."""

    def __init__(self, model: RewardModel, perception: Any, tokens_at_once: int) -> None:
        self.model, self.perception, self.tokens_at_once = model, perception, tokens_at_once

    def loss_of(self, part: Any) -> Tensor:
        """The numbers of a part; of a bare batch its logits."""
        if isinstance(part, Labels):
            loss = self.model.formulation.loss(self.model(part.batch), part.targets, part.total_weight)
            return torch.stack([loss, loss.detach(), torch.zeros_like(loss)])
        if isinstance(part, Statements):
            loss, accuracy = self.perception.loss(part.num_pictures, part.seed, (part.share, part.num_shares))
            return torch.stack([part.weight * loss, torch.zeros_like(loss), torch.full_like(loss, accuracy).detach()])
        logits: Tensor = self.model(part)
        return logits

    def statements(self, num_pictures: int, seed: int, crew: Crew, weight: float = 1.0) -> list[Any]:
        """This process's parts of the pictures of a step; every process has as many."""
        num = self.perception.num_parts(num_pictures, crew.size, self.tokens_at_once)
        shares = range(crew.rank * num, crew.rank * num + num)
        return [Statements(num_pictures, seed, share, crew.size * num, weight) for share in shares]

    def parts(self, examples: Sequence[Example], crew: Crew) -> list[Any]:
        """This process's parts of the examples of a step; every process has as many."""
        trees, order = trees_of(self.model, examples, self.tokens_at_once)
        starts = _starts(trees)
        total = sum(target[3] for e in examples for target in e.targets)
        mine = crew.share([len(t) for t in trees])
        chosen = mine or [0]
        device = str(self.model.head.device)
        parts = []
        for batch in self.model.batches([trees[i] for i in chosen], self.tokens_at_once):
            read = [e for i in batch.trees for e in order[starts[chosen[i]] : starts[chosen[i] + 1]]]
            parts.append(Labels(batch, targets_of(read, device), total if mine else math.inf))
        idle = replace(parts[-1], total_weight=math.inf)
        return [*parts, *[idle] * (crew.most(len(parts)) - len(parts))]

    def read(self, examples: Sequence[Example], crew: Crew, module: Callable[[Any], Tensor]) -> Tensor:
        """Logits `[S, C]` of all places of the examples, in their order, on the CPU; every process reads a share."""
        modes = [(m, m.training) for m in self.model.modules()]
        self.model.eval()
        trees, order = trees_of(self.model, examples, self.tokens_at_once)
        starts = _starts(trees)
        mine = crew.share([len(t) for t in trees])
        chosen = mine or [0]
        batches = self.model.batches([trees[i] for i in chosen], self.tokens_at_once)
        known: dict[int, Tensor] = {}
        with torch.no_grad():
            for b in range(crew.most(len(batches))):
                batch = batches[min(b, len(batches) - 1)]
                rows = module(batch).float().cpu()
                numbers = [n for i in batch.trees for n in range(starts[chosen[i]], starts[chosen[i] + 1])]
                sizes = [len(order[n].rendered.markers) for n in numbers]
                known |= dict(zip(numbers, rows.split(sizes), strict=True))
        for module_in, training in modes:
            module_in.training = training
        for other in crew.gathered(known):
            known |= other
        place = {id(e): n for n, e in enumerate(order)}
        return torch.cat([known[place[id(e)]] for e in examples])


def trees_of(
    model: RewardModel, examples: Sequence[Example], max_tokens: int = BATCH_TOKENS
) -> tuple[list[Tree], list[Example]]:
    """The examples as trees, one prompt a tree, and the examples in the order of the trees' places."""
    trees: list[Tree] = []
    order: list[Example] = []
    groups: dict[tuple[str, tuple[bytes, ...]], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.question, example.images), []).append(example)
    for (question, images), group in groups.items():
        trees += model.trees(model.renderer.prompt(question, images), [e.rendered for e in group], max_tokens)
        order += group
    return trees, order


def targets_of(examples: Sequence[Example], device: str) -> Targets:
    """The targets of examples, step by step, as tensors."""
    columns = torch.tensor([t for e in examples for t in e.targets], device=device).reshape(-1, 4).T
    return Targets(*columns)


def watched_of(examples: Sequence[Example], model: RewardModel) -> HeldOut:
    """What is watched of these examples while training, and measured on them at its end."""
    solutions = [Solution(e.problem_id, len(e.rendered.markers), e.labelled, e.is_right) for e in examples]
    return HeldOut(solutions, targets_of(examples, "cpu"), model.formulation)


def _starts(trees: Sequence[Tree]) -> list[int]:
    """Which of the solutions, in the order of the trees, is each tree's first; and how many there are."""
    starts = [0]
    for one in trees:
        starts.append(starts[-1] + len(one.places))
    return starts
