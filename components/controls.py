"""Controls: what else a reward model may reward - a picture unseen, the answer alone, length, format, saying nothing.

Owns how a solution is altered and what each comparison says; knows no model, file or stage, and nothing of what a text
means. What is too much is the policy's to say (mlflow/policy.yaml).

Shapes: P problems, N candidates a problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from components import metrics, selection
from components.records import row_images, seed_for
from components.selection import Pool, Row, Scores

if TYPE_CHECKING:
    from components.prm import Reading

Scorer = Callable[[list["Reading"]], list[list[float]]]
"""Solutions -> the score of each step of each; no scores: it could not be read."""
Steps = tuple[str, ...]
Alteration = Callable[[str, Steps, np.random.Generator], tuple[str, Steps] | None]
"""(question, steps, rng) -> what is read instead; None: this solution cannot be altered so."""

_SAME = 1e-4  # scores closer than this are equal: they depend on the company by as much as rounding does


# --- alterations -------------------------------------------------------------------------------------------------


def only_last(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps] | None:
    """The last step alone."""
    return (question, steps[-1:]) if len(steps) > 1 else None


def reordered(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps] | None:
    """The steps before the last in another order."""
    before = steps[:-1]
    if len(set(before)) < 2:
        return None
    while True:  # at most every second order of texts that are not all equal is the same one
        other = tuple(before[i] for i in rng.permutation(len(before)))
        if other != before:
            return question, (*other, steps[-1])


def padded(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps]:
    """A step before the last is said again, just before the last; a single step is said twice."""
    again = steps[int(rng.integers(max(len(steps) - 1, 1)))]
    return question, (*steps[:-1], again, steps[-1])


def numbered(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps] | None:
    """`Step 1:` before each step."""
    return _with_heads(question, steps, "Step {}: ")


def bold(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps] | None:
    """`**Step 1**` before each step."""
    return _with_heads(question, steps, "**Step {}** ")


def boxed(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps] | None:
    """The last step in a box, its words whole."""
    return None if "\\boxed" in steps[-1] else (question, (*steps[:-1], f"$\\boxed{{ {steps[-1]} }}$"))


def _with_heads(question: str, steps: Steps, head: str) -> tuple[str, Steps] | None:
    heads = [head.format(i) for i in range(1, len(steps) + 1)]
    if any(step.startswith(start.rstrip()) for start, step in zip(heads, steps, strict=True)):
        return None
    return question, tuple(start + step for start, step in zip(heads, steps, strict=True))


def dots(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps]:
    """As many steps, each a dot: an aggregation that falls with every step must not decide."""
    return question, (".",) * len(steps)


def one_dot(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps]:
    """One step of one dot. (A step without a character never comes out of a splitter.)"""
    return question, (".",)


def truncated(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps] | None:
    """All but the last step."""
    return (question, steps[:-1]) if len(steps) > 1 else None


def framed(question: str, steps: Steps, rng: np.random.Generator) -> tuple[str, Steps]:
    """The question with another sentence around it that asks the same."""
    frames = ("Question: {}", "Solve this problem.\n\n{}", "{}\n\nThink step by step.")
    return frames[int(rng.integers(len(frames)))].format(question), steps


# --- comparisons: a problem's candidates -> (sum, number) -------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """A problem's candidates as they were read."""

    steps: list[Steps]
    is_right: list[bool]
    step_scores: list[list[float]]
    scores: list[float]
    """The steps' scores as one; -inf: not read."""
    early: list[float]
    """The scores of the steps before the last as one; -inf: there are none."""
    has_picture: bool


Compared = tuple[float, float]
"""What the comparisons of one problem add up to, and how many they are."""
Comparison = Callable[[Group, Sequence[float | None]], Compared]
"""(group, scores of the altered candidates; None: not altered, or not read) -> sum and number."""


def best_of_n_lost(group: Group, others: Sequence[float | None]) -> Compared:
    """Best-of-N as read, less Best-of-N as altered; what could not be altered keeps its score."""
    if all(other is None for other in others):
        return 0.0, 0.0
    altered = [score if other is None else other for score, other in zip(group.scores, others, strict=True)]
    return metrics.best_of_n(group.scores, group.is_right) - metrics.best_of_n(altered, group.is_right), 1.0


def picture_lost(group: Group, others: Sequence[float | None]) -> Compared:
    """As `best_of_n_lost`, of problems with a picture."""
    return best_of_n_lost(group, others) if group.has_picture else (0.0, 0.0)


def unseen_gain(group: Group, others: Sequence[float | None]) -> Compared:
    """Best-of-N as altered, less a random pick, of problems with a picture."""
    if not group.has_picture or any(other is None for other in others):
        return 0.0, 0.0
    altered = [other for other in others if other is not None]
    return metrics.best_of_n(altered, group.is_right) - sum(group.is_right) / len(group.is_right), 1.0


def early_gain(group: Group, others: Sequence[float | None]) -> Compared:
    """Best-of-N by the steps before the last, less a random pick, among candidates that have some."""
    kept = [(score, right) for score, right in zip(group.early, group.is_right, strict=True) if math.isfinite(score)]
    if not kept:
        return 0.0, 0.0
    scores, is_right = zip(*kept, strict=True)
    return metrics.best_of_n(scores, is_right) - sum(is_right) / len(is_right), 1.0


def rises(group: Group, others: Sequence[float | None]) -> Compared:
    """Which wrong candidates score higher as altered."""
    pairs = [pair for pair, right in zip(_pairs(group, others), group.is_right, strict=True) if pair and not right]
    return float(sum(other > score + _SAME for score, other in pairs)), float(len(pairs))


def beats(group: Group, others: Sequence[float | None]) -> Compared:
    """Which right candidates score higher than as altered, an equal score counting half."""
    pairs = [pair for pair, right in zip(_pairs(group, others), group.is_right, strict=True) if pair and right]
    won = [0.5 if abs(score - other) <= _SAME else float(score > other) for score, other in pairs]
    return math.fsum(won), float(len(pairs))


def moves(group: Group, others: Sequence[float | None]) -> Compared:
    """By how much the candidates' scores differ."""
    apart = [abs(pair[0] - pair[1]) for pair in _pairs(group, others) if pair]
    return math.fsum(apart), float(len(apart))


def last_is_lowest(group: Group, others: Sequence[float | None]) -> Compared:
    """Which wrong candidates of several steps have their lowest score at the last, ties shared."""
    rows = [row for row, right in zip(group.step_scores, group.is_right, strict=True) if len(row) > 1 and not right]
    shares = [(row[-1] <= min(row) + _SAME) / sum(score <= min(row) + _SAME for score in row) for row in rows]
    return math.fsum(shares), float(len(rows))


def longer_is_higher(group: Group, others: Sequence[float | None]) -> Compared:
    """Rank correlation of score and characters among the right and among the wrong candidates, a text counting once.

    The correlation of m candidates counts m - 1 times, as the inverse of its variance where there is none.
    """
    total, weight = 0.0, 0.0
    for kind in (True, False):
        texts = {
            steps: score
            for steps, score, right in zip(group.steps, group.scores, group.is_right, strict=True)
            if right == kind and math.isfinite(score)
        }
        sizes = [sum(map(len, steps)) for steps in texts]
        if len(set(sizes)) > 1:
            total += (len(sizes) - 1) * _rank_correlation(sizes, list(texts.values()))
            weight += len(sizes) - 1
    return total, weight


def _pairs(group: Group, others: Sequence[float | None]) -> list[tuple[float, float] | None]:
    """(score as read, as altered) of each candidate that was read both ways."""
    return [
        None if other is None or not math.isfinite(score) else (score, other)
        for score, other in zip(group.scores, others, strict=True)
    ]


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, ties with their mean rank; 0 where one side is constant."""
    ranks = np.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / size if size else 0.0


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """One row of the suite."""

    name: str
    says: str
    """What the number is, in a sentence."""
    compare: Comparison
    lacks: str
    """Why it may be absent."""
    alterations: Mapping[str, Alteration] = field(default_factory=dict)
    """The candidates as read again; of several the one with the highest mean is told, by name."""
    of: tuple[bool, ...] = (True, False)
    """Whether right or wrong candidates are read again."""
    scorer: str | None = None
    """Or, instead of altered solutions: the same candidates as this scorer read them."""


_ONE_STEP = "no problem has a solution of several steps"
_NO_WRONG = "no wrong solution could be read both ways"
_NO_RIGHT = "no right solution could be read both ways"
_NO_PICTURE = "no problem has a picture"
_ALONE = "all comparisons are of one problem, or of problems that belong together: there is no interval"

CONTROLS = (
    Control(
        "answer_only",
        "Best-of-N points that the steps before the last are worth: 0 if the last step alone is judged.",
        best_of_n_lost,
        _ONE_STEP,
        {"last step": only_last},
    ),
    Control(
        "before_last",
        "Best-of-N points over a random pick by the steps before the last: 0 if only the last score says anything.",
        early_gain,
        _ONE_STEP,
    ),
    Control(
        "steps_shuffled",
        "Best-of-N points lost when the steps before the last are read in another order: 0 if order says nothing.",
        best_of_n_lost,
        "no problem has a solution with two different steps before its last",
        {"shuffled": reordered},
    ),
    Control(
        "blind",
        "Best-of-N points over the same reward model trained and asked without pictures.",
        picture_lost,
        _NO_PICTURE,
        scorer="blind",
    ),
    Control(
        "picture",
        "Best-of-N points lost when another problem's picture is shown: 0 if the picture is not looked at.",
        picture_lost,
        _NO_PICTURE,
        scorer="shuffled",
    ),
    Control(
        "shuffled",
        "Best-of-N points over a random pick with another problem's picture: what text alone achieves.",
        unseen_gain,
        _NO_PICTURE,
        scorer="shuffled",
    ),
    Control(
        "length",
        "Rank correlation of score and characters among equally right solutions of a problem: 1 if longer is better.",
        longer_is_higher,
        "no problem has equally right solutions of different lengths",
    ),
    Control(
        "padding",
        "Share of wrong solutions that score higher when one of their steps is said again.",
        rises,
        _NO_WRONG,
        {"said again": padded},
        of=(False,),
    ),
    Control(
        "format",
        "Share of wrong solutions that score higher when the same words are numbered, under bold heads or boxed.",
        rises,
        _NO_WRONG,
        {"numbered": numbered, "bold": bold, "boxed": boxed},
        of=(False,),
    ),
    Control(
        "empty",
        "Share of right solutions that score higher than as many steps of a single dot, equal scores counting half.",
        beats,
        _NO_RIGHT,
        {"dots": dots},
        of=(True,),
    ),
    Control(
        "one_dot",
        "Share of right solutions that score higher than a single dot, equal scores counting half.",
        beats,
        _NO_RIGHT,
        {"dot": one_dot},
        of=(True,),
    ),
    Control(
        "truncated",
        "Share of right solutions that score higher than themselves without the last step, equal scores counting half.",
        beats,
        "no right solution of several steps could be read both ways",
        {"cut": truncated},
        of=(True,),
    ),
    Control(
        "paraphrase",
        "Mean difference of a solution's score when the question stands in another frame of words.",
        moves,
        "no solution could be read both ways",
        {"framed": framed},
    ),
    Control(
        "last_minimum",
        "Share of wrong solutions of several steps whose lowest score is the last one, ties shared: drift to the outcome.",
        last_is_lowest,
        "no wrong solution has several steps",
    ),
)
NAMES = tuple(control.name for control in CONTROLS)


def measure(
    scorer: Scorer,
    pool: Pool,
    problems: Mapping[str, Row],
    scores: Mapping[str, Scores],
    *,
    aggregations: Mapping[str, str],
    num_problems: int,
    num_resamples: int,
    confidence: float,
    seed: int,
    clusters: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Every control of a reward model on one frozen pool, with intervals over problems.

    What needs no further reading looks at all problems, the rest at a sample of them.

    Args:
        scorer: the reward model, which reads the altered candidates.
        scores: candidate id -> step scores by the reward model itself, "prm", and by those of "blind" and
            "shuffled" (it, shown another problem's picture) that are known.
        aggregations: how each of them makes one score of a solution's steps; those not named do as "prm".
        num_problems: size of the sample; 0: nothing is read again.
        clusters: `[P]` names of what problems belong together; see `metrics.Bootstrap`.

    Returns: `num_problems` of the sample, `measures`, and `absent`: name -> why there is no number.
    """
    keys = list(pool)
    rng = np.random.default_rng(seed_for(seed, "controls"))
    drawn = sorted(rng.permutation(len(keys))[:num_problems].tolist())
    how = aggregations["prm"]
    groups = [_group(pool[key]["sample"], problems[key], scores["prm"], how) for key in keys]
    names = list(clusters) if clusters is not None else keys
    everything, some = (
        (
            of,
            metrics.Bootstrap(
                len(of),
                num_resamples=num_resamples,
                confidence=confidence,
                seed=seed_for(seed, "bootstrap", "controls"),
                clusters=[names[i] for i in of],
            ),
        )
        for of in (list(range(len(keys))), drawn or [0])
    )
    read = _read_again(scorer, drawn, groups, [problems[key] for key in keys], how, seed)
    measures: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for control in CONTROLS:
        known = scores.get(control.scorer) if control.scorer else None
        if control.scorer and (
            known is None or not all(row["candidate_id"] in known for key in keys for row in pool[key]["sample"])
        ):
            absent[control.name] = f"these candidates were not scored by {control.scorer!r}"
            continue
        if control.alterations and not drawn:
            absent[control.name] = "evaluate.control_problems is 0"
            continue
        of, bootstrap = some if control.alterations else everything
        variants: dict[str, list[list[float | None]]] = {}
        if known is not None:
            mine = aggregations.get(str(control.scorer), how)
            variants = {
                "": [[metrics.aggregate(known[row["candidate_id"]], mine) for row in pool[key]["sample"]] for key in keys]
            }
        elif control.alterations:
            variants = {name: [read[control.name, name, i] for i in of] for name in control.alterations}
        else:
            variants = {"": [[] for _ in of]}
        found, most_units = {}, 0
        for name, others in variants.items():
            values_P2 = np.array([control.compare(groups[i], other) for i, other in zip(of, others, strict=True)])
            num_units = len({names[i] for i, number in zip(of, values_P2[:, 1].tolist(), strict=True) if number})
            most_units = max(most_units, num_units)
            interval = bootstrap.ratio(values_P2[:, 0], values_P2[:, 1])
            if interval is not None and num_units > 1:
                found[name] = {**interval, "num": round(float(values_P2[:, 1].sum()))}
        if not found:
            absent[control.name] = _ALONE if most_units else control.lacks
            continue
        name = max(found, key=lambda variant: found[variant]["mean"])
        variant = {"variant": name} if len(control.alterations) > 1 else {}
        measures.append({"name": control.name, **found[name], **variant, "says": control.says})
    return {"num_problems": len(drawn), "measures": measures, "absent": absent}


def _group(rows: Sequence[Row], problem: Row, known: Scores, how: str) -> Group:
    step_scores = [list(known[row["candidate_id"]]) for row in rows]
    return Group(
        [tuple(row["steps"]) for row in rows],
        selection.is_right(rows),
        step_scores,
        [metrics.aggregate(one, how) for one in step_scores],
        [metrics.aggregate(one[:-1], how) for one in step_scores],
        bool(row_images(problem)),
    )


def _read_again(
    scorer: Scorer, drawn: Sequence[int], groups: Sequence[Group], problems: Sequence[Row], how: str, seed: int
) -> dict[tuple[str, str, int], list[float | None]]:
    """(control, alteration, problem) -> the score of each of its candidates as altered; equal ones are read once."""
    from components.prm import Reading

    places: dict[Reading, list[tuple[list[float | None], int]]] = {}
    read: dict[tuple[str, str, int], list[float | None]] = {}
    for i in drawn:
        group, problem = groups[i], problems[i]
        as_read = Reading(problem["question"], row_images(problem), ())
        for control in CONTROLS:
            for name, alter in control.alterations.items():
                row: list[float | None] = [None] * len(group.steps)
                read[control.name, name, i] = row
                for j, (steps, right) in enumerate(zip(group.steps, group.is_right, strict=True)):
                    if not steps or right not in control.of or not math.isfinite(group.scores[j]):
                        continue  # what is too long to be read is no better for being cut
                    # Equal solutions are altered alike, in whatever company.
                    rng = np.random.default_rng(seed_for(seed, control.name, name, problem["problem_id"], *steps))
                    altered = alter(problem["question"], steps, rng)
                    if altered is not None:
                        one = replace(as_read, question=altered[0], steps=altered[1])
                        places.setdefault(one, []).append((row, j))
    for scored, where in zip(scorer(list(places)) if places else [], places.values(), strict=True):
        score = round(metrics.aggregate(scored, how), 6) if scored else None
        for row, j in where:
            row[j] = score
    return read
