"""Where to sample when all steps of a problem's solutions are estimated together.

Owns the placement of rollouts; the probability model is `estimation`'s. Knows no engine, file or setting.

Shapes: N nodes of a batch of problems; P problems of a batch, M nodes of its largest problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.estimation import (
    DEFAULT,
    THETA,
    UNRELATED,
    Floats,
    Ints,
    covariance,
    describe,
    messages,
)
from components.forest import Forest
from components.search import Counts, Outcome, Request, Search, State, passed
from components.texts import beyond_counts, know, texts_of

PRICE = 0.0015  # summed variance of the labels that a rollout of typical length must take away
_PROBLEMS_PER_BATCH = 256  # bounds memory; decides nothing else
_KERNELS = (DEFAULT, UNRELATED)
_SHARES = (0.97, 0.03)  # of problems whose steps are related, and whose are not
_DIGITS = 6  # gains are compared after rounding: equal ones stay equal whatever else is in the batch


@dataclass(frozen=True)
class Solution:
    """One solution to label."""

    states: Sequence[State]
    """Its unfinished prefixes, from the shortest on."""
    tail_tokens: Sequence[float]
    """Tokens the solution itself spent after each of them: what a rollout from there is expected to cost."""
    verdict: str
    """right | wrong | unknown"""
    tails: Sequence[State] = ()
    """What it wrote after each of them, so that a rollout that writes the same is known for it; empty: not told."""


def joint(
    problems: Mapping[str, Sequence[Solution]],
    *,
    price: float = PRICE,
    block: int = 2,
    max_rounds: int = 8,
    max_per_prefix: int = 64,
    positive_weight: float = 0.0,
    reuse: bool = True,
) -> Search:
    """Ask for rollouts where they say most about all labels of a problem, while that is worth their tokens.

    A block of b rollouts at prefix t is expected to take G(t) = sum_u w_u C_tu^2 / (v_t + e_t / b) off the labels'
    summed variance, with C the posterior covariance of the values, v its diagonal, e_t the variance of one verdict
    that V_t leaves, and w_u the labels at u. Each round takes the block with the largest G per cost, updates C,
    and goes on until none is worth `price`; no prefix more than doubles its rollouts in a round (plus a block).
    A problem's rollouts depend on that problem alone: the kernel and the price are fixed.

    Args:
        price: the least variance that a rollout of the problem's mean length must take away.
        positive_weight: how much more a label counts that may fall on either side of POSITIVE; 0 for soft labels,
            about 100 where only the sign matters.
        reuse: count a rollout at every known prefix it passes through.
    Yields:
        Batches of requests, one of all problems a round; send back, for each request, its outcomes.
    Source: docs/labels.md.
    """
    names = list(problems)
    batches = [
        _Batch({name: problems[name] for name in names[i : i + _PROBLEMS_PER_BATCH]})
        for i in range(0, len(names), _PROBLEMS_PER_BATCH)
    ]
    for _ in range(max_rounds):
        asked = []
        for batch in batches:
            if batch.is_new:
                batch.is_new = False
                num_N = batch.placed(price, block, max_per_prefix, positive_weight)
                asked += [(batch, int(node), int(num_N[node])) for node in np.flatnonzero(num_N)]
        if not asked:
            return
        answers = yield [batch.request(node, num) for batch, node, num in asked]
        for (batch, node, _), outcomes in zip(asked, answers, strict=True):
            batch.count(node, outcomes, reuse=reuse)


def own_texts(
    problems: Mapping[str, Sequence[Solution]], node: Mapping[tuple[int, Any], int]
) -> list[tuple[int, str, State]]:
    """Node, verdict and units of everything that solutions themselves wrote after a prefix, each once.

    Args:
        node: (number of the problem, state) -> node.
    """
    found = {
        (node[p, state], solution.verdict, tail): None
        for p, solutions in enumerate(problems.values())
        for solution in solutions
        for state, tail in zip(solution.states, solution.tails, strict=False)
        if solution.verdict in ("right", "wrong")
    }
    return list(found)


class _Batch:
    """Some problems' trees and what is known of them so far."""

    def __init__(self, problems: Mapping[str, Sequence[Solution]]) -> None:
        self.names = list(problems)
        solutions = [solution for name in self.names for solution in problems[name]]
        self.forest = Forest.build([[(s.states, s.verdict) for s in problems[name]] for name in self.names])
        num = self.forest.num_nodes
        self.right_N, self.total_N, self.asked_N = (np.zeros(num, dtype=np.int64) for _ in range(3))
        self.node = {(int(p), key): i for i, (p, key) in enumerate(zip(self.forest.problem, self.forest.keys, strict=True))}
        tails = [float(tokens) for solution in solutions for tokens in solution.tail_tokens]
        self.labels_N, self.cost_N = _labels_and_costs(self.forest, np.array(tails))
        self.seen: dict[int, Counts] = {}  # of nodes with texts to remember
        for node, verdict, units in own_texts(problems, self.node):
            know(self.seen.setdefault(node, Counts()), verdict, units)
        self.is_new = True

    def request(self, node: int, num: int) -> Request:
        """Ask for `num` more continuations of a node."""
        first = int(self.asked_N[node])
        self.asked_N[node] += num
        state: Any = self.forest.keys[node]
        return Request(self.names[self.forest.problem[node]], state, first, num)

    def count(self, node: int, outcomes: Sequence[Outcome], *, reuse: bool) -> None:
        """Count outcomes where they were sampled and, if `reuse`, at every known prefix that they passed through."""
        state: Any = self.forest.keys[node]
        problem = int(self.forest.problem[node])
        self.is_new = True
        for outcome in outcomes:
            if outcome.verdict not in ("right", "wrong"):
                continue
            nodes = {node: outcome.units}
            if reuse:
                for i, path in enumerate(passed(state, outcome.units), start=1):
                    if (problem, path) in self.node:
                        nodes[self.node[problem, path]] = outcome.units[i:]
            self.right_N[list(nodes)] += outcome.verdict == "right"
            self.total_N[list(nodes)] += 1
            if outcome.mass > 0:
                for n, units in nodes.items():
                    self.seen.setdefault(n, Counts()).add(outcome.verdict, units=units, mass=outcome.mass)

    def placed(self, price: float, block: int, max_per_prefix: int, positive_weight: float) -> Ints:
        """`[N]` how many rollouts to add at each node now."""
        nodes_PM = self.forest.by_problem
        is_real = nodes_PM >= 0
        at = np.where(is_real, nodes_PM, 0)
        mean, sd, p_positive, cov = self._beliefs()
        doubt = 1 + positive_weight * 4 * p_positive * (1 - p_positive)
        add_PM = _blocks(
            cov,
            noise=np.maximum(mean * (1 - mean) - sd**2, 1e-6)[at] / block,
            weight=np.where(is_real, (self.labels_N * doubt)[at], 0.0),
            cost=np.where(is_real, self.cost_N[at], np.inf) * block * price,
            room=np.minimum(max_per_prefix - self.asked_N, np.maximum(self.asked_N, block))[at] // block,
        )
        add_N = np.zeros(self.forest.num_nodes, dtype=np.int64)
        add_N[at[is_real]] = add_PM[is_real] * block
        return add_N

    def _beliefs(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean, sd and P(V > POSITIVE) of every node `[N]` and the covariances `[P, M, M]`.

        Each problem weighs the kernels by how well they explain what was seen of it: where its steps turn out to be
        unrelated, nothing is inferred from one to the next.
        """
        forest, nodes_PM = self.forest, self.forest.by_problem
        at = np.where(nodes_PM >= 0, nodes_PM, 0)
        beyond = beyond_counts(self.right_N, self.total_N, {node: texts_of(seen) for node, seen in self.seen.items()})
        told = [messages(forest, self.right_N, self.total_N, kernel, beyond_NG=beyond) for kernel in _KERNELS]
        log_PR = np.stack([m.log_evidence for m in told], 1) + np.log(_SHARES)
        share_PR = np.exp(log_PR - log_PR.max(1, keepdims=True))
        share_PR /= share_PR.sum(1, keepdims=True)
        cells = [m.cells() for m in told]
        known = describe(sum((share_PR[forest.problem, r, None] * cells[r] for r in range(len(told))), np.zeros(())))
        cov = np.zeros((*nodes_PM.shape, nodes_PM.shape[1]))
        for r, (m, kernel) in enumerate(zip(told, _KERNELS, strict=True)):
            off = np.where(nodes_PM >= 0, (cells[r] @ THETA - known.mean)[at], 0.0)
            cov += share_PR[:, r, None, None] * (covariance(forest, m, kernel) + off[:, :, None] * off[:, None, :])
        return known.mean, known.sd, known.p_positive, cov


def _labels_and_costs(forest: Forest, tails: Floats) -> tuple[Floats, Floats]:
    """`[N]` the labels at each node, and the tokens of a rollout from it over the problem's mean; inf at roots."""
    num = forest.num_nodes
    labels = np.bincount(forest.path, minlength=num).astype(float)
    tokens = np.bincount(forest.path, np.maximum(tails, 1.0), minlength=num)
    per_problem = np.bincount(forest.problem, tokens, minlength=forest.num_problems) / np.maximum(
        np.bincount(forest.problem, labels, minlength=forest.num_problems), 1.0
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(labels > 0, tokens / np.maximum(labels, 1.0) / per_problem[forest.problem], np.inf)
    return labels, cost


def _blocks(cov_PMM: Floats, *, noise: Floats, weight: Floats, cost: Floats, room: Ints) -> NDArray[np.int64]:
    """`[P, M]` blocks to take, greedily, each one's effect on the covariances taken into account.

    Args:
        noise: variance of a block's mean verdict beyond that of the value itself.
        weight: what the variance of each node counts.
        cost: the least gain that a block is worth.
        room: blocks that each node may still take.
    """
    cov = cov_PMM.copy()
    taken = np.zeros(noise.shape, dtype=np.int64)
    live = np.arange(len(cov))
    while len(live):
        here = cov[live]
        variance = np.maximum(here.diagonal(axis1=1, axis2=2), 1e-9)
        gain = ((here * here) @ weight[live][:, :, None])[:, :, 0] / (variance + noise[live])
        worth = np.round(np.where(taken[live] < room[live], gain / cost[live], 0.0), _DIGITS)
        best = worth.argmax(1)
        goes_on = worth[np.arange(len(live)), best] > 1
        live, best = live[goes_on], best[goes_on]
        taken[live, best] += 1
        told = cov[live, best]
        scale = np.maximum(told[np.arange(len(live)), best], 1e-9) + noise[live, best]
        cov[live] -= told[:, :, None] * told[:, None, :] / scale[:, None, None]
    return taken
