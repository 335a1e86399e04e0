"""What a reward model learns from: labelled solutions as the model reads them, and which problems are kept aside.

Owns how the files of a run become examples; knows no loss and no loop.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import DataError
from components.progress import say
from components.records import LABEL, PROBLEM, SOLUTION, digest, read_table, row_images
from components.render import Rendered
from components.tasks import Task

if TYPE_CHECKING:  # torch comes with it
    from components.prm import RewardModel


@dataclass(frozen=True)
class Example:
    """A solution to learn from, or to look at."""

    problem_id: str
    question: str
    images: tuple[bytes, ...]
    rendered: Rendered
    """Its markers are those of the labelled steps; of a problem kept aside, of all steps."""
    targets: list[tuple[float, int, int, float]]
    """(label, k, n, weight) of each labelled step."""
    labelled: tuple[int, ...]
    """Which of the markers have a target."""
    is_right: bool | None = None
    """How the solution ended; None: unknown."""
    is_dev: bool = False
    """Whether its problem is kept aside."""


def read_examples(
    model: RewardModel, task: Task, seeds: Path, rollouts: Path, labels: Path, dev_frac: float = 0.0
) -> list[Example]:
    """A row a solution with a labelled step that fits into the model; what does not fit is counted and said.

    Raises:
        DataError: the files are not of one run, or a weight is no number from 0 on.
    """
    problems = {row["problem_id"]: row for row in read_table(seeds / "seeds.parquet", PROBLEM)}
    of_solution: dict[str, dict[int, tuple[float, int, int, float]]] = defaultdict(dict)
    columns = ["solution_id", "step", "label", "num_right", "num_verdicts", "weight"]
    for row in read_table(labels / "labels.parquet", LABEL, columns):
        if not (math.isfinite(row["weight"]) and row["weight"] >= 0):
            what = f"step {row['step']} of solution {row['solution_id']} has weight {row['weight']}"
            raise DataError(str(labels), what, "weights are numbers from 0 on: run label again")
        of_solution[row["solution_id"]][row["step"]] = tuple(row[name] for name in columns[2:])  # type: ignore[assignment]
    examples = []
    num_cut = 0
    for row in read_table(rollouts / "solutions.parquet", SOLUTION, ["solution_id", "problem_id", "steps", "verdict"]):
        known = of_solution.get(row["solution_id"])
        if not known:
            continue
        if row["problem_id"] not in problems or max(known) >= len(row["steps"]):
            what = f"the labels of solution {row['solution_id']} do not fit its problem or its steps"
            raise DataError(str(labels), what, "seeds, rollouts and labels are not of one run: run label again")
        problem = problems[row["problem_id"]]
        question, images = task.question(problem["question"]), row_images(problem)
        prompt = model.renderer.prompt(question, images)
        rendered = model.renderer.solution(row["steps"]).within(model.max_tokens - len(prompt.ids))
        steps = [step for step in sorted(known) if step < len(rendered.markers)]
        num_cut += len(known) - len(steps)
        if not steps:
            continue
        targets = [known[step] for step in steps]
        is_right = {"right": True, "wrong": False}.get(row["verdict"])
        if is_kept_aside(row["problem_id"], dev_frac):
            whole = is_right if len(rendered.markers) == len(row["steps"]) else None
            examples.append(
                Example(row["problem_id"], question, images, rendered, targets, tuple(steps), whole, is_dev=True)
            )
            continue
        markers = [rendered.markers[step] for step in steps]
        shown = Rendered(rendered.ids[: markers[-1] + 1], markers)
        examples.append(Example(row["problem_id"], question, images, shown, targets, tuple(range(len(steps))), is_right))
    if num_cut:
        say("train", f"{num_cut:,} labelled steps lie behind {model.max_tokens:,} tokens (train.max_tokens): not learnt")
    return examples


def is_kept_aside(problem_id: str, dev_frac: float) -> bool:
    """Whether a problem is watched instead of learnt; decided by its name alone, so that it never changes sides."""
    return int(digest("dev", problem_id)[:8], 16) < dev_frac * 2**32


def by_problem(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples by problem."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.problem_id, []).append(example)
    return list(groups.values())


def with_other_pictures(examples: Sequence[Example]) -> list[Example]:
    """The same solutions, each problem with the pictures of another; none where there are no two different ones."""
    pictures = list(dict.fromkeys(e.images for e in examples if e.images))
    if len(pictures) < 2:
        return []
    other = dict(zip(pictures, [*pictures[1:], pictures[0]], strict=True))
    return [replace(e, images=other[e.images] if e.images else ()) for e in examples]
