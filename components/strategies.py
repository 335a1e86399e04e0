"""Ways to spend tokens at inference: each strategy for one problem is a generator that yields requests and is sent replies.

Owns what is asked next, when it is enough and what it cost; knows no engine, no model and no file.

Shapes: N budget of candidates, W prefixes that are kept, M next steps of each, G points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components import metrics

MAX_ROUNDS = 64  # steps of a solution that is built step by step; only a runaway text has more
_NUM_POINTS = 1024  # of the grid on which beliefs are compared

Units = tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """Continue a prefix, once for each index."""

    units: Units
    """What stands already; `()` is the problem itself."""
    indices: tuple[int, ...]
    """Which of the prefix's continuations: equal indices are equal texts, whoever asks."""
    greedy: bool = False


@dataclass(frozen=True)
class Continuation:
    """A prefix written to its end."""

    units: Units
    """What was written after the prefix."""
    tokens: tuple[int, ...]
    """Generated tokens of each unit; of a text without units one number."""
    is_right: bool
    """Whether prefix and continuation together are a right solution; unknown is not."""
    answer: str | None


@dataclass(frozen=True)
class Read:
    """Score a solution, or the beginning of one."""

    units: Units


@dataclass(frozen=True)
class Judged:
    """What the reward model says of what it read."""

    scores: tuple[float, ...]
    """A score a step; none: not read, never chosen."""
    concentrations: tuple[float, ...] = ()
    """Of the `count` formulation: how many continuations each score is worth; else nothing is known of it."""


@dataclass(frozen=True)
class Outcome:
    """What a strategy came to on one problem."""

    value: float
    """The chance in [0, 1] that its answer is right; ties are shared."""
    num_tokens: float
    """Generated tokens; a mean where several runs are one result."""


Strategy = Generator[list[Draw] | list[Read], Any, Outcome]
"""Yields draws and is sent `[draws][indices]` continuations, or yields reads and is sent a Judged each."""


# --- whole solutions ------------------------------------------------------------------------------------------------


def best_of_n(indices: Sequence[int], how: str) -> Strategy:
    """The candidate with the highest score.

    Args:
        how: of step scores to one score, a key of metrics.AGGREGATIONS.
    """
    drawn, scores = yield from _scored(indices, how)
    return Outcome(metrics.best_of_n(scores, [c.is_right for c in drawn]), _num_tokens(drawn))


def weighted_vote(indices: Sequence[int], how: str) -> Strategy:
    """The answer with the most score behind it.

    Source: VisualPRM (arXiv 2503.10291); Let's Verify Step by Step (2305.20050) calls it RM-weighted voting.
    """
    drawn, scores = yield from _scored(indices, how)
    return Outcome(metrics.vote([c.answer for c in drawn], [c.is_right for c in drawn], scores), _num_tokens(drawn))


def majority(indices: Sequence[int], how: str) -> Strategy:
    """The answer that most candidates give; no reward model is asked."""
    del how
    (drawn,) = yield [Draw((), tuple(indices))]
    return Outcome(metrics.vote([c.answer for c in drawn], [c.is_right for c in drawn]), _num_tokens(drawn))


def early_stop(indices: Sequence[int], how: str, *, confidence: float) -> Strategy:
    """Best-of-N that draws one candidate after the other and stops when the leader's lead is clear.

    The leader is the candidate with the highest score. As the chance that a solution is right counts what the reward model
    says at its last step, where nothing is left to go wrong: a Beta variable. The leader's must exceed, all at once and
    with probability `confidence`, that of every candidate with another answer, and that of one more, not drawn yet, of
    which nothing is known: it is uniform. A reward model that gives scores without a spread is taken at its word, so that
    the rule becomes: stop at a leader whose last step is worth `confidence`, and no rival's more.

    Source: BetaPRM (arXiv 2605.15529), early stopping on the posterior.
    Differs: the candidate not drawn yet is ours: without it the first one has nothing to beat, however bad it is.
    """
    drawn: list[Continuation] = []
    scores: list[float] = []
    beliefs: list[tuple[float, float]] = []
    for index in indices:
        (more,) = yield [Draw((), (index,))]
        (judged,) = yield [Read(more[0].units)]
        drawn += more
        scores.append(metrics.aggregate(judged.scores, how))
        beliefs.append(belief(judged))
        leader = max(range(len(drawn)), key=lambda i: scores[i])
        answer = drawn[leader].answer
        rivals = [b for i, b in enumerate(beliefs) if i != leader and (answer is None or drawn[i].answer != answer)]
        if lead(beliefs[leader], rivals) >= confidence:
            break
    return Outcome(metrics.best_of_n(scores, [c.is_right for c in drawn]), _num_tokens(drawn))


def _scored(
    indices: Sequence[int], how: str
) -> Generator[list[Draw] | list[Read], Any, tuple[list[Continuation], list[float]]]:
    (drawn,) = yield [Draw((), tuple(indices))]
    judged = yield [Read(c.units) for c in drawn]
    return drawn, [metrics.aggregate(one.scores, how) for one in judged]


def _num_tokens(drawn: Sequence[Continuation]) -> int:
    return sum(sum(c.tokens) for c in drawn)


# --- beliefs --------------------------------------------------------------------------------------------------------


def belief(judged: Judged) -> tuple[float, float]:
    """(mean, variance) of the score at the last step; variance 0 where only a score is known."""
    if not judged.scores:
        return -math.inf, 0.0
    mean = judged.scores[-1]
    return mean, mean * (1 - mean) / (judged.concentrations[-1] + 1) if judged.concentrations else 0.0


def lead(leader: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    """The probability that the leader exceeds all others and one that is uniform on [0, 1].

    Args:
        leader, others: (mean, variance) of Beta variables; variance 0: a number that is known.
    """
    if not math.isfinite(leader[0]):
        return 0.0
    grid_G = (np.arange(_NUM_POINTS) + 0.5) / _NUM_POINTS
    weight_G = _mass(leader, grid_G)
    below_G = grid_G if leader[1] > 0 else np.full(_NUM_POINTS, min(max(leader[0], 0.0), 1.0))
    for mean, variance in others:
        if not math.isfinite(mean):
            continue
        if variance <= 0:
            below_G = below_G * (grid_G >= mean if leader[1] > 0 else leader[0] >= mean)
            continue
        mass_G = _mass((mean, variance), grid_G)
        below_G = below_G * (np.cumsum(mass_G) - mass_G / 2)
    return float((weight_G * below_G).sum())


def _mass(moments: tuple[float, float], grid_G: np.ndarray) -> np.ndarray:
    """`[G]` the shares of a Beta variable with these moments around the points of the grid; they add up to 1."""
    mean, variance = moments
    most = mean * (1 - mean)
    if variance <= 0 or variance >= most:  # known, or all of it at the two ends
        ends_G = np.zeros(len(grid_G))
        if variance <= 0:
            ends_G[min(int(max(mean, 0.0) * len(grid_G)), len(grid_G) - 1)] = 1.0
        else:
            ends_G[0], ends_G[-1] = 1 - mean, mean
        return ends_G
    size = most / variance - 1
    logs_G = (mean * size - 1) * np.log(grid_G) + ((1 - mean) * size - 1) * np.log1p(-grid_G)
    density_G = np.exp(logs_G - logs_G.max())
    shares: np.ndarray = density_G / density_G.sum()
    return shares


# --- step by step ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Node:
    """A prefix, or a whole solution, and the continuation that it is read off."""

    units: Units
    source: Continuation
    at: int
    """How many units of `source` are part of it."""
    num_tokens: int
    """Of the prefix itself, without what was tried beside it."""
    is_final: bool


def beam(num: int, how: str, *, width: int, max_tokens: int, num_ahead: int = 0, rounds: int = MAX_ROUNDS) -> Strategy:
    """Step-wise beam search: N first steps, then M = N / W next steps of each of the best W prefixes.

    Whole solutions keep their place among the W. Equal prefixes are one. The search ends when all that is kept is whole;
    the best of it is the answer.

    Args:
        num: N. With N = W nothing is ever chosen between: W = 1 is then one sample.
        width: W, at most N.
        max_tokens: a solution that becomes longer is cut off, hence never right.
        num_ahead: lookahead search: so many further steps are rolled out at temperature 0, and the prefix is worth what
            the reward model says of both together. 0: of the prefix alone.
        rounds: steps of a solution at most.
    Source: Snell et al. (arXiv 2408.03314), section 5.2: beam search with N beams and beam width M, lookahead with k steps.
    Differs: they go on until N answers are whole and weigh these against each other; here the best of the W that are kept
        is the answer. Their M is our N / W. One of the M next steps is the one that the prefix's own continuation goes on
        with, which the choice between prefixes has not seen: a fair draw that needs no new one. Only what is kept is
        counted: a server that stops at the end of a step generates no more.
    """
    width = min(width, num)
    num_next = num // width
    (drawn,) = yield [Draw((), tuple(range(num)))]
    new = [_next((), c, 0, 0, max_tokens) for c in drawn]
    spent = 0
    kept: list[tuple[float, _Node]] = []
    for _ in range(rounds):
        spent += sum(tokens for _, tokens in new)
        distinct: dict[tuple[Units, bool], _Node] = {}
        for node, _ in new:
            distinct.setdefault((node.units, node.is_final), node)
        nodes = list(distinct.values())
        is_choice = len(kept) + len(nodes) > width
        values, num_tokens = yield from _values(nodes, how, num_ahead, is_choice=is_choice)
        spent += num_tokens
        pairs = [*kept, *zip(values, nodes, strict=True)]
        pairs.sort(key=lambda pair: -pair[0])  # of equal ones those that came first; seeds decide who does
        kept = [pair for pair in pairs[:width] if pair[1].is_final]
        unfinished = [node for _, node in pairs[:width] if not node.is_final]
        if not unfinished:
            break
        more: Sequence[Sequence[Continuation]] = [()] * len(unfinished)
        if num_next > 1:
            more = yield [Draw(node.units, tuple(range(1, num_next))) for node in unfinished]
        new = []
        for node, others in zip(unfinished, more, strict=True):
            new.append(_next(node.units, node.source, node.at, node.num_tokens, max_tokens))
            new += [_next(node.units, c, 0, node.num_tokens, max_tokens) for c in others]
    if not kept:
        return Outcome(0.0, spent)
    rights = [node.source.is_right and node.num_tokens <= max_tokens for _, node in kept]
    return Outcome(metrics.best_of_n([value for value, _ in kept], rights), spent)


def _next(units: Units, source: Continuation, at: int, num_tokens: int, max_tokens: int) -> tuple[_Node, int]:
    """The prefix with one more unit, and the tokens of that unit."""
    cost = source.tokens[min(at, len(source.tokens) - 1)]
    longer = (*units, *source.units[at : at + 1])
    is_final = at + 1 >= len(source.units) or num_tokens + cost > max_tokens
    return _Node(longer, source, at + 1, num_tokens + cost, is_final), cost


def _values(
    nodes: Sequence[_Node], how: str, num_ahead: int, *, is_choice: bool
) -> Generator[list[Draw] | list[Read], Any, tuple[list[float], int]]:
    """What each prefix is worth, and the tokens that this took; without a choice only what is whole is read."""
    ahead: dict[int, Continuation] = {}
    unfinished = [i for i, node in enumerate(nodes) if not node.is_final]
    if num_ahead and unfinished and is_choice:
        drawn = yield [Draw(nodes[i].units, (0,), greedy=True) for i in unfinished]
        ahead = {i: rows[0] for i, rows in zip(unfinished, drawn, strict=True)}
    values = [0.0] * len(nodes)
    wanted = [i for i, node in enumerate(nodes) if is_choice or node.is_final]
    if wanted:
        judged = yield [Read((*nodes[i].units, *(ahead[i].units[:num_ahead] if i in ahead else ()))) for i in wanted]
        for i, one in zip(wanted, judged, strict=True):
            values[i] = metrics.aggregate(one.scores, how)
    return values, sum(sum(c.tokens[:num_ahead]) for c in ahead.values())


# --- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the strategies may be told."""

    how: str
    max_tokens: int
    width: int | None = None
    """W of the searches by steps; None: the square root of the budget (Snell et al. try it, and M = 4)."""
    num_ahead: int = 2
    confidence: float = 0.8

    def width_of(self, num: int) -> int:
        """W at a budget of N."""
        return min(num, self.width or max(1, math.isqrt(num)))


def _in_blocks(call: Callable[..., Strategy]) -> Callable[[int, int, Options], list[Strategy]]:
    """At budget n the N candidates are N / n runs, of which the mean is taken: less chance at no price."""
    return lambda num, most, said: [call(range(i, i + num), said) for i in range(0, most - num + 1, num)]


STRATEGIES: dict[str, Callable[[int, int, Options], list[Strategy]]] = {
    "best_of_n": _in_blocks(lambda indices, said: best_of_n(indices, said.how)),
    "vote": _in_blocks(lambda indices, said: weighted_vote(indices, said.how)),
    "majority": _in_blocks(lambda indices, said: majority(indices, said.how)),
    "early_stop": _in_blocks(lambda indices, said: early_stop(indices, said.how, confidence=said.confidence)),
    "beam": lambda num, most, said: [beam(num, said.how, width=said.width_of(num), max_tokens=said.max_tokens)],
    "lookahead": lambda num, most, said: [
        beam(num, said.how, width=said.width_of(num), max_tokens=said.max_tokens, num_ahead=said.num_ahead)
    ],
}
"""name -> (budget, largest budget, options) -> the runs whose mean is the result at this budget"""


def budgets(num: int) -> list[int]:
    """1, 2, 4, .. and N itself."""
    return sorted({*(2**i for i in range(num.bit_length()) if 2**i <= num), num})
