"""Which solutions to label next: convincing wrong ones, and those whose steps are uncertain, for a budget of tokens.

Owns the choice and the verb `choose`. Samples nothing and labels nothing: `rollout` runs on the seeds it writes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from components import metrics
from components.errors import DataError, EngineError, SettingsError
from components.lineage import SUMMARY
from components.prefixes import is_usable
from components.progress import Progress
from components.records import LABEL, PROBLEM, SOLUTION, iterate_table, read_table, row_images, write_json, write_table
from components.settings import Params, Runtime
from components.tasks import load_task

Row = dict[str, Any]
CONVINCING, UNCERTAIN = "convincing", "uncertain"

CHOSEN = pa.schema(
    [
        ("solution_id", pa.string()),
        ("problem_id", pa.string()),
        ("reason", pa.string()),  # convincing | uncertain
        ("verdict", pa.string()),
        ("score", pa.float64()),  # the reward model's for the whole solution
        ("variance", pa.float64()),  # summed over its unfinished prefixes, see `variances`
        ("expected_tokens", pa.float64()),  # of labelling it
    ]
)


@dataclass(frozen=True)
class Option:
    """A solution that could be labelled."""

    solution_id: str
    problem_id: str
    verdict: str
    """right | wrong | unknown"""
    score: float
    """In [0, 1], the reward model's for the whole solution."""
    variance: float
    """What is not known about its unfinished prefixes: their variances, summed."""
    expected_tokens: float
    """What labelling it is expected to cost."""


@dataclass(frozen=True)
class Choice:
    """An option that was chosen, and what for."""

    option: Option
    reason: str
    """convincing | uncertain"""


def choose(
    options: Iterable[Option],
    *,
    budget_tokens: float,
    convincing_frac: float = 0.8,
    max_per_problem: int = 2,
) -> tuple[list[Choice], dict[str, int]]:
    """The choices, best first within each reason, and how many options each limit left out.

    Convincing: wrong, and scored no lower than half of the right solutions are; the highest score first. Uncertain:
    whatever brings most variance a token. What one kind cannot spend of its share goes to the other; a share of 0 or 1
    leaves one kind out. The order of the options decides nothing.

    Args:
        budget_tokens: the choices' expected tokens do not exceed it.
        convincing_frac: share of the budget that convincing wrong solutions get first.
    Returns: choices, and counts by limit: per_problem, budget.
    Raises:
        SettingsError: a number is out of its range.
    Source: Let's Verify Step by Step (arXiv 2305.20050) section 4.2: 80 % convincing wrong answers.
    Differs: the remaining share follows posterior variance, not the score; the budget counts tokens, not solutions.
    """
    check_limits(budget_tokens=budget_tokens, convincing_frac=convincing_frac, max_per_problem=max_per_problem)
    every = sorted(options, key=lambda o: o.solution_id)
    right_scores = [o.score for o in every if o.verdict == "right"]
    bar = median(right_scores) if right_scores else 0.0
    convincing = sorted((o for o in every if o.verdict == "wrong" and o.score >= bar), key=lambda o: -o.score)
    uncertain = sorted(every, key=lambda o: -round(o.variance / max(o.expected_tokens, 1.0), 15))
    chosen: dict[str, Choice] = {}
    per_problem: Counter[str] = Counter()
    spent = 0.0

    def take(ranked: Sequence[Option], reason: str, limit: float) -> None:
        nonlocal spent
        for option in ranked:
            is_open = option.solution_id not in chosen and per_problem[option.problem_id] < max_per_problem
            if is_open and spent + option.expected_tokens <= limit:
                chosen[option.solution_id] = Choice(option, reason)
                per_problem[option.problem_id] += 1
                spent += option.expected_tokens

    take(convincing, CONVINCING, convincing_frac * budget_tokens)
    take(uncertain if convincing_frac < 1 else [], UNCERTAIN, budget_tokens)
    take(convincing if convincing_frac > 0 else [], CONVINCING, budget_tokens)
    left = Counter({"per_problem": 0, "budget": 0})
    for option in every:
        if option.solution_id not in chosen:
            left["per_problem" if per_problem[option.problem_id] >= max_per_problem else "budget"] += 1
    found = sorted(chosen.values(), key=lambda c: c.reason)  # stable: each reason stays in its own order
    return found, dict(left)


def check_limits(*, budget_tokens: float, convincing_frac: float, max_per_problem: int) -> None:
    """Stop at limits of a choice that make no sense.

    Raises:
        SettingsError: a number is out of its range.
    """
    if not (budget_tokens > 0 and 0 <= convincing_frac <= 1 and max_per_problem >= 1):
        what = f"budget {budget_tokens}, convincing share {convincing_frac}, {max_per_problem} a problem"
        raise SettingsError("choose", what, "a positive budget, a share in [0, 1], at least 1 a problem")


def variances(step_scores: Sequence[float], measured: Mapping[int, float]) -> list[float]:
    """The variance of the value of every unfinished prefix of a solution: `[num_steps - 1]`.

    Unmeasured ones have p (1 - p) for the score p, the largest variance that a value with this mean can have.

    Args:
        step_scores: the reward model's, one a step, in [0, 1].
        measured: step -> the variance of its label, see `label_variance`.
    """
    return [measured.get(step, p * (1 - p)) for step, p in enumerate(step_scores[:-1])]


def label_variance(num_right: int, num_verdicts: int, sd: float | None) -> float | None:
    """The variance of a label's value, or None if nothing was measured.

    Where counts came without an estimate, that of a Beta(k + 1/2, n - k + 1/2).
    """
    if sd is not None:
        return sd**2
    if not num_verdicts:
        return None
    a, b = num_right + 0.5, num_verdicts - num_right + 0.5
    return a * b / ((a + b) ** 2 * (a + b + 1))


def tail_tokens(steps: Sequence[str], num_tokens: int) -> list[float]:
    """The tokens that a solution itself spent behind each of its unfinished prefixes, by characters: `[num_steps - 1]`."""
    lengths = [len(step) for step in steps]
    total = max(1, sum(lengths))
    return [num_tokens * sum(lengths[cut:]) / total for cut in range(1, len(lengths))]


def run(
    params: Params,
    runtime: Runtime,
    *,
    seeds: Path,
    rollouts: Path,
    labels: Path | None,
    prm: Path,
    out: Path,
    budget_tokens: int,
    convincing_frac: float = 0.8,
    max_per_problem: int = 2,
    max_sd: float = 0.1,
    num_continuations: int = 16,
    aggregation: str = "min",
) -> None:
    """Write chosen.parquet and seeds.parquet (the problems of the chosen solutions) into `out`; print a short table.

    Args:
        labels: folder written by `label`, if there is one.
        prm: folder written by `train`.
        max_sd: a solution whose unfinished prefixes are all labelled with at most this sd needs no more.
        num_continuations: what labelling spends on a prefix; 16 is brute force.
        aggregation: of step scores, a key of metrics.AGGREGATIONS.
    Raises:
        SettingsError: a number is out of its range, or the budget pays for no solution.
        DataError: the folders do not belong together, or lack what a choice needs.
        EngineError: the reward model cannot be loaded.
    """
    limits: dict[str, Any] = {"convincing_frac": convincing_frac, "max_per_problem": max_per_problem}
    check_limits(budget_tokens=budget_tokens, **limits)
    if not (0 <= max_sd <= 1 and num_continuations >= 1):
        what = f"an sd of {max_sd}, {num_continuations} continuations"
        raise SettingsError("choose", what, "--max-sd in [0, 1], --num-continuations at least 1")
    problems = {row["problem_id"]: row for row in read_table(seeds / "seeds.parquet", PROBLEM)}
    columns = ["solution_id", "problem_id", "steps", "verdict", "finish_reason", "num_tokens"]
    solutions = read_table(rollouts / "solutions.parquet", SOLUTION, columns)
    strange = next((row for row in solutions if row["problem_id"] not in problems), None)
    if strange is not None:
        what = f"solution {strange['solution_id']} is of problem {strange['problem_id']}, which is not among the seeds"
        raise DataError(str(rollouts), what, "name the seeds that rollout read")
    known = _measured(labels, {row["solution_id"] for row in solutions}) if labels is not None else defaultdict(dict)
    usable = [row for row in solutions if is_usable(row) and len(row["steps"]) > 1]
    unsettled = [row for row in usable if not _is_settled(row, known[row["solution_id"]], max_sd)]
    for row in unsettled:
        _check(row, problems[row["problem_id"]], seeds, rollouts)
    scores = _step_scores(params, runtime, prm, problems, unsettled)
    options = [
        Option(
            row["solution_id"],
            row["problem_id"],
            row["verdict"],
            metrics.aggregate(step_scores, aggregation),
            sum(variances(step_scores, known[row["solution_id"]])),
            num_continuations * sum(tail_tokens(row["steps"], row["num_tokens"])),
        )
        for row, step_scores in zip(unsettled, scores, strict=True)
    ]
    choices, left = choose(options, budget_tokens=budget_tokens, **limits)
    cheapest = min((o.expected_tokens for o in options), default=0.0)
    if cheapest > budget_tokens:
        what = f"a budget of {budget_tokens:,} tokens pays for no solution: the cheapest needs {cheapest:,.0f}"
        raise SettingsError("choose", what, "raise --budget-tokens")
    left = {"unusable": len(solutions) - len(usable), "labelled": len(usable) - len(unsettled), **left}
    rows = [{name: getattr(c.option, name) for name in CHOSEN.names if name != "reason"} for c in choices]
    write_table(out / "chosen.parquet", [r | {"reason": c.reason} for r, c in zip(rows, choices, strict=True)], CHOSEN)
    of_chosen = {c.option.problem_id for c in choices}
    write_table(out / "seeds.parquet", [row for key, row in problems.items() if key in of_chosen], PROBLEM)
    whole = [o for o in options if o.problem_id in of_chosen]
    summary = {
        "budget_tokens": budget_tokens,
        "chosen": {reason: _sum(c.option for c in choices if c.reason == reason) for reason in (CONVINCING, UNCERTAIN)},
        "problems": len(of_chosen),
        "of_these_problems": _sum(whole),
        "left_out": left,
    }
    write_json(out / SUMMARY, summary)
    print("\n".join(table(summary)))


def table(summary: Mapping[str, Any]) -> list[str]:
    """What was chosen and what was left out, as lines to print."""
    lines = [f"{'':24}{'solutions':>10}{'tokens':>14}"]
    total = {"solutions": 0, "expected_tokens": 0}
    for reason, count in summary["chosen"].items():
        lines.append(f"{reason:24}{count['solutions']:>10,}{count['expected_tokens']:>14,}")
        total = {name: total[name] + count[name] for name in total}
    lines.append(f"{'chosen':24}{total['solutions']:>10,}{total['expected_tokens']:>14,}")
    whole = summary["of_these_problems"]
    name = f"all of {summary['problems']:,} problems"
    lines.append(f"{name:24}{whole['solutions']:>10,}{whole['expected_tokens']:>14,}")
    words = {
        "unusable": "cut off or without a step to label",
        "labelled": "labelled well enough",
        "per_problem": "their problem has enough",
        "budget": "beyond the budget",
    }
    parts = [f"{count:,} {words[name]}" for name, count in summary["left_out"].items() if count]
    lines.append(f"left out: {', '.join(parts) or 'none'}")
    return lines


def _check(solution: Row, problem: Row, seeds: Path, rollouts: Path) -> None:
    """Stop where a solution cannot be priced, or its pictures cannot be seen."""
    if solution["num_tokens"] is None:
        what = f"solution {solution['solution_id']} has no num_tokens, so labelling it has no price"
        raise DataError(str(rollouts), what, "it was imported: name a folder written by rollout")
    if len(row_images(problem)) != len(problem["images"] or ()):
        what = f"a picture of problem {problem['problem_id']} has no bytes"
        raise DataError(str(seeds), what, "run curate: its seeds hold the pictures themselves")


def _measured(labels: Path, solutions: set[str]) -> defaultdict[str, dict[int, float]]:
    """Solution -> step -> the variance of its label.

    Raises:
        DataError: a label is of none of these solutions.
    """
    wanted = ["solution_id", "step", "num_right", "num_verdicts", "sd"]
    known: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for table in iterate_table(labels / "labels.parquet", LABEL, wanted, num_rows=1 << 16):
        for solution, step, *counted in zip(*(table.column(name).to_pylist() for name in wanted), strict=True):
            if solution not in solutions:
                what = f"labels of solution {solution}, which the rollouts lack"
                raise DataError(str(labels), what, "name the labels made of these rollouts")
            variance = label_variance(*counted)
            if variance is not None:
                known[solution][step] = variance
    return known


def _is_settled(solution: Row, measured: Mapping[int, float], max_sd: float) -> bool:
    """Whether every unfinished prefix has a label that is narrow enough."""
    return all(measured.get(step, 1.0) <= max_sd**2 for step in range(len(solution["steps"]) - 1))


def _sum(options: Iterable[Option]) -> dict[str, int]:
    every = list(options)
    return {"solutions": len(every), "expected_tokens": round(sum(o.expected_tokens for o in every))}


def _step_scores(
    params: Params, runtime: Runtime, prm: Path, problems: Mapping[str, Row], solutions: Sequence[Row]
) -> list[list[float]]:
    import torch

    from components.contract import read_contract
    from components.prm import Reading, RewardModel

    torch.set_num_threads(runtime.num_threads)
    folder = prm / "prm"
    if not folder.exists():
        raise DataError(str(prm), "no folder prm: not what train writes", "name the folder written by train")
    task = load_task(params.task)
    contract = read_contract(folder)
    if contract.get("task_digest", task.digest) != task.digest:
        what = f"trained on task {contract['task']!r}, asked to score task {task.name!r}"
        raise EngineError(str(folder), what, "set `task` in params.yaml to the one it was trained on")
    readings: dict[Reading, int] = {}  # equal solutions of a problem are read once
    places = []
    for row in solutions:
        problem = problems[row["problem_id"]]
        reading = Reading(task.question(problem["question"]), row_images(problem), tuple(row["steps"]))
        places.append(readings.setdefault(reading, len(readings)))
    progress = Progress("choose", len(readings), unit="solutions")
    scores = RewardModel.load(folder, device=runtime.device).score(list(readings), progress.advance)
    return [scores[place] for place in places]
