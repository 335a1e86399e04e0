"""What a row of someone else's label file says, in words that all formats share.

Owns these words, and what signs and formats without gaps can say; knows no format, field, file or folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

REASONS = ("bad_row", "bad_label", "bad_steps", "missing_question", "no_label", "bad_problem")
"""Why a row may be set aside, beside problems.READ_REASONS for its pictures."""
SIGN_THRESHOLD = 0.03
Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A problem as a file names it."""

    question: str
    answer: str = ""
    """The gold answer; empty where the format has none."""
    source_id: str = ""
    source: str = ""
    images: tuple[Any, ...] = ()
    """Paths, encoded bytes, or {bytes, path}."""
    options: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Mark:
    """What a file says of one step."""

    label: float | None = None
    """In [0, 1], or -1 for a step that makes things worse; None: the step has no label."""
    num_right: int = 0
    num_verdicts: int = 0
    """k and n; 0 of 0 where only the label is known."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of records.LABEL, where the format has them."""


@dataclass(frozen=True)
class Solution:
    """A solution and what is said of its steps."""

    steps: tuple[str, ...]
    marks: tuple[Mark, ...]
    text: str | None = None
    """As it was generated, where that is more than its steps."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of records.SOLUTION, where the format has them."""


Reading = tuple[Problem, list[Solution]]
Reader = Callable[[Mapping[str, Any]], Reading]


@dataclass(frozen=True)
class Format:
    """One file format of step labels."""

    name: str
    help: str
    read: Reader
    """A row -> its problem and solutions. Raises: BadRow."""
    write_row: Callable[..., Row]
    """A problem, and the solution of a row (of a tree: all of them) -> the row. `images`: paths, or {bytes, path}."""
    has_signs: bool = False
    """A label is only right or wrong: others are rounded when written."""
    has_gaps: bool = True
    """A step may go without a label."""
    has_images: bool = True
    has_trees: bool = False
    """A row holds all solutions of its problem; otherwise one."""
    nested_schema: Any = None
    """Written as Parquet with this schema (a function that returns it) instead of JSON lines."""

    def shares(self, solutions: Sequence[Solution]) -> list[Sequence[Solution]]:
        """The solutions of every row."""
        return [solutions] if self.has_trees else [[solution] for solution in solutions]

    def write(self, problem: Problem, solutions: Sequence[Solution]) -> list[Row]:
        """The rows that say this."""
        return [self.write_row(problem, *some) for some in self.shares(solutions)]


class BadRow(Exception):
    """A row that cannot be used: a reason of the closed list, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def is_positive(label: float) -> bool:
    """Which sign a label gets where only signs can be written.

    Source: VisualPRM (arXiv 2503.10291) section 3, mc > 0.
    Differs: an estimated value is never quite 0, so what is hardly ever seen right in 16 continuations is wrong.
    """
    return label > SIGN_THRESHOLD


def rounded(solution: Solution) -> Solution:
    """The solution with labels 1 and 0 only, and no counts: what signs say."""
    marks = [Mark(None if m.label is None else float(is_positive(m.label))) for m in solution.marks]
    return replace(solution, marks=tuple(marks))


def grouped(solution: Solution) -> Solution | None:
    """The solution whose every step has a label: one without goes into the next, those behind the last are dropped.

    A label is about the whole text up to the end of its step, so it stays true. None if no step has a label.
    """
    steps: list[str] = []
    waiting: list[str] = []
    for step, mark in zip(solution.steps, solution.marks, strict=True):
        waiting.append(step)
        if mark.label is not None:
            steps.append("\n\n".join(waiting))
            waiting = []
    if len(steps) == len(solution.steps):
        return solution
    marks = tuple(mark for mark in solution.marks if mark.label is not None)
    return replace(solution, steps=tuple(steps), marks=marks, text=None) if steps else None
