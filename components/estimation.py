"""The values of all steps of a problem's solutions, estimated together from counts and final verdicts.

Owns the probability model of docs/labels.md and its exact posterior; knows no text, engine, file or setting.

The value of a prefix is the chance that the policy, continuing it, ends right. Along a solution these values
form a martingale: V_t = E[V_t+1]. Equal prefixes of a problem are one node of a tree whose root is the problem
itself; its solutions are paths in it. Shapes: N nodes, P problems, G cells of the value's grid, Q kernel
components, B depth buckets, Z zones of the value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from components.forest import Forest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_CELLS = 32  # G
EDGES: Floats = np.sin(np.pi * np.arange(NUM_CELLS + 1) / (2 * NUM_CELLS)) ** 2
THETA: Floats = np.sin(np.pi * (np.arange(NUM_CELLS) + 0.5) / (2 * NUM_CELLS)) ** 2
"""`[G]` the values of the grid: equally spaced in arcsin(sqrt(V)), where a share k/n has the same error everywhere."""
_LOG_RIGHT: Floats = np.log(THETA)
_LOG_WRONG: Floats = np.log1p(-THETA)

CONCENTRATIONS = (60.0, 12.0, 3.0, 0.8)  # of the Beta steps, from a small change to an almost certain decision
HAZARDS = (0.1, 0.25, 0.5)  # of the drops: the chance that this step breaks the solution
NUM_COMPONENTS = 2 + len(CONCENTRATIONS) + len(HAZARDS)  # stay, Beta steps, drops, redraw
NUM_BUCKETS = 4  # quarters of the solution in which the step lies
ZONES = (0.1, 0.5, 0.85)  # of the value a step starts from
_ZONE: Ints = np.searchsorted(np.array(ZONES), THETA)
POSITIVE = 0.03  # a value above it is worth "+": no smaller one is seen in 16 rollouts more often than not
_TINY = 1e-300


# --- the kernel ----------------------------------------------------------------------------------------------------


@cache
def components() -> Floats:
    """`[Q, G, G]` the ways in which a value may change within one step; each row is a distribution.

    *stay*; four Beta steps; three drops, in which the value falls to almost nothing or rises a little because it did
    not: the mark of a step that may contain the first error; and *redraw*, which forgets the value. All but redraw
    have a mean of exactly the value they start from, and their two end cells absorb. Redraw is a guard: against
    worlds, step splitters or policies in which adjacent steps have little to do with each other.
    """
    redraw = np.full((NUM_CELLS, NUM_CELLS), 1.0 / NUM_CELLS)
    steps = [*(_beta_step(a) for a in CONCENTRATIONS), *(_drop(q) for q in HAZARDS)]
    return np.stack([np.eye(NUM_CELLS), *steps, redraw])


def _drop(hazard: float) -> Floats:
    """To below a tenth of the value with chance `hazard`, else to where the mean stays what it was."""
    matrix = np.eye(NUM_CELLS)
    for g in range(1, NUM_CELLS - 1):
        low = (THETA[g] * 0.1 >= THETA).astype(float)
        low = low / low.sum() if low.any() else np.eye(NUM_CELLS)[0]
        fallen = low @ THETA
        chance = min(hazard, (THETA[-1] - THETA[g]) / (THETA[-1] - fallen))
        matrix[g] = chance * low + (1 - chance) * _between((THETA[g] - chance * fallen) / (1 - chance))
    return matrix


def _between(value: float) -> Floats:
    """`[G]` all weight on the two cells around `value`, with that mean."""
    cell = int(np.clip(np.searchsorted(THETA, value) - 1, 0, NUM_CELLS - 2))
    share = min(max((value - THETA[cell]) / (THETA[cell + 1] - THETA[cell]), 0.0), 1.0)
    row = np.zeros(NUM_CELLS)
    row[cell], row[cell + 1] = 1 - share, share
    return row


def _beta_step(concentration: float) -> Floats:
    """Beta(a V, a (1 - V)) on the grid, tilted exponentially to the mean V; the end cells stay."""
    a, b = concentration * THETA[:, None], concentration * (1 - THETA[:, None])
    log_row = (a - 1) * _LOG_RIGHT + (b - 1) * _LOG_WRONG + np.log(np.diff(EDGES))
    log_row[:, :1] = a * np.log(EDGES[1]) - np.log(a) + (b - 1) * _LOG_WRONG[0]  # the density has a pole at either end
    log_row[:, -1:] = b * np.log1p(-EDGES[-2]) - np.log(b) + (a - 1) * _LOG_RIGHT[-1]
    tilt = np.zeros((NUM_CELLS, 1))
    row = np.eye(NUM_CELLS)
    for _ in range(200):
        row = np.exp(log_row + tilt * THETA - (log_row + tilt * THETA).max(1, keepdims=True))
        row /= row.sum(1, keepdims=True)
        mean = row @ THETA
        off = (mean - THETA)[1:-1]
        if np.abs(off).max() < 1e-13:
            break
        variance = np.maximum(row @ THETA**2 - mean**2, 1e-12)[1:-1]
        tilt[1:-1, 0] -= 0.8 * np.clip(off / variance, -50, 50)
    row[0], row[-1] = np.eye(NUM_CELLS)[0], np.eye(NUM_CELLS)[-1]
    return row


@dataclass(frozen=True, eq=False)
class Kernel:
    """How values change from one step to the next, and where they start."""

    weights: Floats
    """`[B, Z, Q]` the share of each component, by the quarter of the solution and the zone of the value before the step."""
    root: Floats
    """`[G]` the distribution of a problem's value."""

    def matrices(self) -> Floats:
        """`[B, G, G]` the distribution of the value after a step (row: the value before it), for each quarter."""
        matrices: Floats = np.einsum("bgq,qgh->bgh", self.weights[:, _ZONE], components())
        return matrices


def quarter(forest: Forest) -> Ints:
    """`[N]` in which quarter of the solution the step to each node lies, from 0."""
    quarters: Ints = np.ceil(NUM_BUCKETS * forest.progress - 1e-9).astype(np.int64) - 1
    return np.maximum(quarters, 0)


def _applied(rows: Floats, matrices: Floats, quarters: Ints) -> Floats:
    """Each row times the matrix of its quarter."""
    out = np.empty_like(rows)
    for b in range(len(matrices)):
        here = quarters == b
        if here.any():
            out[here] = rows[here] @ matrices[b]
    return out


def _same_everywhere(*shares: float) -> Kernel:
    return Kernel(np.tile(shares, (NUM_BUCKETS, len(ZONES) + 1, 1)), np.full(NUM_CELLS, 1.0 / NUM_CELLS))


DEFAULT = _same_everywhere(0.46, 0.12, 0.08, 0.06, 0.06, 0.08, 0.07, 0.05, 0.02)
"""For problems nothing is known of: often no change, else any of the changes."""
UNRELATED = _same_everywhere(0.05, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.81)
"""For problems in which a step's value says little about the next one's."""


# --- the posterior -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Posteriors:
    """What is known of every node's value."""

    mean: Floats
    """`[N]`."""
    sd: Floats
    """`[N]`."""
    low: Floats
    """`[N]` 5 % quantile."""
    high: Floats
    """`[N]` 95 % quantile."""
    p_positive: Floats
    """`[N]` P(V > POSITIVE)."""
    cells: Floats
    """`[N, G]` the whole posterior on the grid."""
    log_evidence: Floats
    """`[P]` logarithm of the probability of each problem's outcomes under the kernel."""


@dataclass(frozen=True, eq=False)
class Messages:
    """The two sweeps over the forest; all logarithms, up to a constant a row."""

    below: Floats
    """`[N, G]` of the chance of everything seen at the node and below it."""
    up: Floats
    """`[N, G]` of the same, as told to the parent; unused at roots."""
    above: Floats
    """`[N, G]` of everything else, seen from the node."""
    log_evidence: Floats
    """`[P]`."""

    def cells(self) -> Floats:
        """`[N, G]` the posterior of every node's value."""
        cells = self.above + self.below
        cells -= cells.max(1, keepdims=True)
        np.exp(cells, out=cells)
        cells /= cells.sum(1, keepdims=True)
        return cells


def messages(
    forest: Forest, right_N: NDArray, total_N: NDArray, kernel: Kernel, *, beyond_NG: Floats | None = None
) -> Messages:
    """The exact sum over all values, once upwards and once downwards; every level of all trees at once.

    Args:
        right_N: `[N]` right outcomes of rollouts from (or through) each node.
        total_N: `[N]` right and wrong ones. The solutions' own verdicts are in the forest: do not add them.
        beyond_NG: log-likelihood of what is known of the rollouts beyond their verdicts (`texts.beyond_counts`), if any.
    """
    right = right_N + forest.num_right_ends
    wrong = (total_N - right_N) + (forest.num_ends - forest.num_right_ends)
    below = right[:, None] * _LOG_RIGHT + wrong[:, None] * _LOG_WRONG
    if beyond_NG is not None:
        below += beyond_NG
    up = np.zeros_like(below)
    matrices, quarters = kernel.matrices(), quarter(forest)
    backwards = matrices.transpose(0, 2, 1)
    for level in forest.levels[:0:-1]:
        top = below[level].max(1, keepdims=True)
        up[level] = np.log(_applied(np.exp(below[level] - top), backwards, quarters[level]) + _TINY) + top
        parents, starts = forest.families(level)
        below[parents] += np.add.reduceat(up[level], starts, axis=0)
    above = np.empty_like(below)
    roots = slice(0, forest.num_problems)
    above[roots] = np.log(kernel.root + _TINY)
    for level in forest.levels[1:]:
        parent = forest.parent[level]
        around = above[parent] + below[parent] - up[level]
        around = np.exp(around - around.max(1, keepdims=True))
        above[level] = np.log(_applied(around, matrices, quarters[level]) + _TINY)
    joint = above[roots] + below[roots]
    top = joint.max(1, keepdims=True)
    return Messages(below, up, above, np.log(np.exp(joint - top).sum(1)) + top[:, 0])


def posteriors(
    forest: Forest, right_N: NDArray, total_N: NDArray, kernel: Kernel = DEFAULT, *, beyond_NG: Floats | None = None
) -> Posteriors:
    """The exact posterior of every node's value; a few thousand problems at a time keep memory small.

    Args:
        right_N, total_N, beyond_NG: see `messages`.
    """
    m = messages(forest, right_N, total_N, kernel, beyond_NG=beyond_NG)
    return describe(m.cells(), m.log_evidence)


def describe(cells: Floats, log_evidence: Floats | None = None) -> Posteriors:
    """The summary of distributions on the grid, `[N, G]`."""
    mean = cells @ THETA
    variance = np.maximum(cells @ THETA**2 - mean**2, 0.0)
    cdf = np.cumsum(cells, axis=1)
    inside = np.clip((POSITIVE - EDGES[:-1]) / np.diff(EDGES), 0.0, 1.0)  # the share of a cell that is not above
    return Posteriors(
        mean=mean,
        sd=np.sqrt(variance),
        low=_quantile(cdf, 0.05),
        high=_quantile(cdf, 0.95),
        p_positive=np.clip(1.0 - cells @ inside, 0.0, 1.0),
        cells=cells,
        log_evidence=np.zeros(0) if log_evidence is None else log_evidence,
    )


def _quantile(cdf: Floats, level: float) -> Floats:
    """Where each row's distribution function crosses `level`, linear within a cell."""
    cell = np.minimum((cdf < level).sum(1), NUM_CELLS - 1)
    rows = np.arange(len(cdf))
    before = np.where(cell > 0, cdf[rows, cell - 1], 0.0)
    share = (level - before) / np.maximum(cdf[rows, cell] - before, _TINY)
    quantile: Floats = EDGES[cell] + np.clip(share, 0.0, 1.0) * (EDGES[cell + 1] - EDGES[cell])
    return quantile


# --- how sure nodes are of each other ------------------------------------------------------------------------------


def covariance(forest: Forest, m: Messages, kernel: Kernel = DEFAULT) -> Floats:
    """`[P, M, M]` the posterior covariances of all pairs of nodes of each problem, as in `forest.by_problem`; 0 pads.

    With a = the last node that u and v share, V_u and V_v are independent given V_a, hence
    Cov(V_u, V_v) = Cov(E[V_u | V_a], E[V_v | V_a]); E[V_u | V_a] is carried up one level at a time.
    """
    backwards, quarters = kernel.matrices().transpose(0, 2, 1), quarter(forest)
    nodes = forest.by_problem
    is_real = nodes >= 0
    safe = np.where(is_real, nodes, 0)
    depth = np.where(is_real, forest.depth[safe], -1)
    cells = m.cells()
    mean = np.where(is_real, cells[safe] @ THETA, 0.0)
    below = np.exp(m.below - m.below.max(1, keepdims=True))
    out = np.zeros((*nodes.shape, nodes.shape[1]))
    is_open = np.ones_like(out, dtype=bool)
    ancestor = safe.copy()  # of each node at the level in hand
    given: Floats = np.broadcast_to(THETA, (*nodes.shape, NUM_CELLS)).copy()  # E[V_u | V_ancestor]
    for d in range(len(forest.levels) - 1, -1, -1):
        deeper = depth > d
        if deeper.any():
            a = ancestor[deeper]
            chance = np.maximum(_applied(below[a], backwards, quarters[a]), _TINY)
            given[deeper] = _applied(below[a] * given[deeper], backwards, quarters[a]) / chance
            ancestor[deeper] = forest.parent[a]
        here = depth >= d
        spread = np.where(here[..., None], np.sqrt(cells[ancestor]) * (given - mean[..., None]), 0.0)
        shared = is_open & here[:, :, None] & here[:, None, :] & (ancestor[:, :, None] == ancestor[:, None, :])
        out = np.where(shared, spread @ spread.transpose(0, 2, 1), out)
        is_open &= ~shared
    return out


# --- learning the kernel -------------------------------------------------------------------------------------------


def fit(
    forest: Forest,
    right_N: NDArray,
    total_N: NDArray,
    *,
    beyond_NG: Floats | None = None,
    start: Kernel = DEFAULT,
    num_iterations: int = 25,
    pseudo_counts: float = 10.0,
    root_pseudo_counts: float = 5.0,
) -> Kernel:
    """The kernel under which these outcomes are most likely (expectation-maximisation); no reference data.

    Args:
        beyond_NG: see `messages`.
        pseudo_counts: edges' worth of the zone's pooled shares added to every bucket; 0 for the bare likelihood.
        root_pseudo_counts: problems' worth of a flat root added; 0 also leaves out its smoothing.
    """
    kernel = start
    blur = np.exp(-0.5 * ((np.arange(NUM_CELLS)[:, None] - np.arange(NUM_CELLS)) / 1.5) ** 2)
    blur /= blur.sum(0, keepdims=True)
    for _ in range(num_iterations):
        edges_BZQ, roots_G = expected_counts(forest, right_N, total_N, kernel, beyond_NG=beyond_NG)
        if pseudo_counts:
            pooled_Q = edges_BZQ.sum((0, 1)) + 0.5
            pooled_ZQ = edges_BZQ.sum(0) + pseudo_counts * pooled_Q / pooled_Q.sum()
            edges_BZQ = edges_BZQ + pseudo_counts * pooled_ZQ / pooled_ZQ.sum(1, keepdims=True)
        sums = edges_BZQ.sum(-1, keepdims=True)
        weights = np.where(sums > 0, edges_BZQ / np.maximum(sums, _TINY), kernel.weights)
        if root_pseudo_counts:
            roots_G = blur @ roots_G + root_pseudo_counts / NUM_CELLS
        kernel = Kernel(weights, roots_G / roots_G.sum())
    return kernel


def expected_counts(
    forest: Forest, right_N: NDArray, total_N: NDArray, kernel: Kernel, *, beyond_NG: Floats | None = None
) -> tuple[Floats, Floats]:
    """`[B, Z, Q]` edges expected to have used each component, and `[G]` problems expected to start in each cell."""
    m = messages(forest, right_N, total_N, kernel, beyond_NG=beyond_NG)
    edges = np.zeros_like(kernel.weights)
    flat_components = components().reshape(-1, NUM_CELLS).T
    quarters = quarter(forest)
    for level in forest.levels[1:]:
        parent = forest.parent[level]
        around = m.above[parent] + m.below[parent] - m.up[level]
        around = np.exp(around - around.max(1, keepdims=True))
        below = np.exp(m.below[level] - m.below[level].max(1, keepdims=True))
        ways_nQG = (below @ flat_components).reshape(len(below), -1, NUM_CELLS) * around[:, None, :]
        for b in range(NUM_BUCKETS):
            here_nQG = ways_nQG[quarters[level] == b] * kernel.weights[b][_ZONE].T
            here_nQG /= here_nQG.sum((1, 2), keepdims=True)
            np.add.at(edges[b], _ZONE, here_nQG.sum(0).T)
    return edges, m.cells()[: forest.num_problems].sum(0)


# --- without the chain ---------------------------------------------------------------------------------------------


def beta_prior(right_N: NDArray, total_N: NDArray) -> tuple[float, float]:
    """The Beta(a, b) under which independent counts are most likely, searched on a grid of means and concentrations."""
    seen = total_N > 0
    if not seen.any():
        return 0.5, 0.5
    pairs, times = np.unique(np.stack([right_N[seen], total_N[seen]], 1).astype(np.int64), axis=0, return_counts=True)
    right, total = pairs[:, 0], pairs[:, 1]
    steps = np.arange(int(total.max()))
    best = (-math.inf, 0.5, 0.5)
    for concentration in np.exp(np.linspace(np.log(0.1), np.log(20), 25)):
        whole = _log_rising(concentration, steps)
        for mean in np.linspace(0.02, 0.98, 49):
            a, b = float(concentration * mean), float(concentration * (1 - mean))
            fits = _log_rising(a, steps)[right] + _log_rising(b, steps)[total - right] - whole[total]
            best = max(best, (float(times @ fits), a, b))
    return best[1], best[2]


def _log_rising(a: float, steps: Ints) -> Floats:
    """log of a (a + 1) ... (a + k - 1) for k = 0, 1, ..."""
    return np.concatenate([np.zeros(1), np.cumsum(np.log(a + steps))])


def beta_shrinkage(right_N: NDArray, total_N: NDArray, prior: tuple[float, float] | None = None) -> Posteriors:
    """Every prefix on its own: the posterior of Beta(a, b), fitted to all of them unless given, and its (k, n)."""
    a, b = prior or beta_prior(right_N, total_N)
    edges = np.sin(np.pi * np.arange(NUM_CELLS * _FINER + 1) / (2 * NUM_CELLS * _FINER)) ** 2
    middle = np.sin(np.pi * (np.arange(NUM_CELLS * _FINER) + 0.5) / (2 * NUM_CELLS * _FINER)) ** 2
    pairs, place = np.unique(np.stack([right_N, total_N], 1), axis=0, return_inverse=True)
    alpha, beta = pairs[:, :1] + a, pairs[:, 1:] - pairs[:, :1] + b
    fine = (alpha - 1) * np.log(middle) + (beta - 1) * np.log1p(-middle) + np.log(np.diff(edges))
    fine = np.exp(fine - fine.max(1, keepdims=True))
    cells = fine.reshape(len(pairs), NUM_CELLS, _FINER).sum(2)
    cells /= cells.sum(1, keepdims=True)
    on_grid = describe(cells)
    mean = (alpha / (alpha + beta))[:, 0]
    sd = np.sqrt(mean * (1 - mean) / (pairs[:, 1] + a + b + 1))
    low, high, positive = on_grid.low, on_grid.high, on_grid.p_positive
    at = place.reshape(-1)
    return Posteriors(mean[at], sd[at], low[at], high[at], positive[at], cells[at], np.zeros(0))


_FINER = 16  # cells of a Beta density for each cell of the grid


# --- may the chain be used? ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guard:
    """Which of the two estimates predicts held-out rollouts better."""

    uses_chain: bool
    chain: float
    """Mean log-probability, in nats, of a rollout given all others, under the joint estimate."""
    beta: float
    """The same under Beta shrinkage of each prefix on its own."""
    num_rollouts: int
    """How many rollouts were predicted."""
    reason: str


def guard(forest: Forest, right_N: NDArray, total_N: NDArray, *, start: Kernel = DEFAULT) -> Guard:
    """Whether the joint estimate predicts rollouts at least as well as every prefix on its own does.

    Each rollout is predicted from all others: exactly, as P(y | rest) = 1 / E[1 / P(y | V)] under the posterior.
    The kernel and the prior that predict one half of the problems were fitted to the rollouts of the other half.

    Args:
        right_N, total_N: of the rollouts that BEGAN at each node: a reused one would be predicted from itself.
    """
    half = forest.problem % 2
    chain, beta = 0.0, 0.0
    num = int(total_N.sum())
    if not num:
        return Guard(True, 0.0, 0.0, 0, "no rollouts to predict")
    for fold in (0, 1):
        there, here = half != fold, half == fold
        kernel = fit(forest, np.where(there, right_N, 0), np.where(there, total_N, 0), start=start)
        a, b = beta_prior(right_N[there], total_N[there])
        cells = posteriors(forest, right_N, total_N, kernel).cells[here]
        right, wrong = right_N[here], (total_N - right_N)[here]
        chain -= float(right @ np.log(cells @ (1 / THETA)) + wrong @ np.log(cells @ (1 / (1 - THETA))))
        beta += float(right @ np.log(np.maximum(right - 1, 0) + a) + wrong @ np.log(np.maximum(wrong - 1, 0) + b))
        beta -= float((right + wrong) @ np.log(np.maximum(right + wrong - 1, 0) + a + b))
    chain, beta = chain / num, beta / num
    if chain >= beta:
        return Guard(True, chain, beta, num, "the joint estimate predicts rollouts at least as well as single prefixes do")
    return Guard(False, chain, beta, num, "single prefixes predict rollouts better: the values form no martingale")
