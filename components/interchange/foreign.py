"""What a row of someone else's label file says, in words that all formats share.

Owns these words and the checks that every row must pass; knows no format, file or folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

REASONS = ("bad_row", "bad_label", "bad_steps", "missing_question", "no_label", "bad_problem")
"""Why a row may be set aside, beside problems.READ_REASONS for its pictures."""
MAX_STEPS = 4096
SIGN_THRESHOLD = 0.03
_IMAGE_AHEAD = re.compile(r"\A(?:\s*<image>\s*)+")


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


Reader = Callable[[Mapping[str, Any]], tuple[Problem, list[Solution]]]
Writer = Callable[[Problem, Sequence[Solution]], Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Format:
    """One file format of step labels."""

    name: str
    help: str
    read: Reader
    """A row -> its problem and solutions. Raises: BadRow."""
    write: Writer
    """A problem with solutions -> rows. `images` are then paths, or {bytes, path}."""
    has_signs: bool = False
    """A label is only right or wrong: others are rounded when written."""
    has_gaps: bool = True
    """A step may go without a label."""
    has_images: bool = True
    has_answer: bool = True
    nested_schema: Any = None
    """Written as Parquet with this schema (a function that returns it) instead of JSON lines."""


class BadRow(Exception):
    """A row that cannot be used: a reason of the closed list, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


# --- checks --------------------------------------------------------------------------------------------------------


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The text under the first of these names that is there and is one.

    Raises:
        BadRow: none of them is a text.
    """
    for name in names:
        if isinstance(row.get(name), str):
            return str(row[name])
    raise BadRow("bad_row", f"{names[0]} is {row.get(names[0])!r:.80}, no text")


def list_of(row: Mapping[str, Any], name: str) -> list[Any]:
    """The list under this name.

    Raises:
        BadRow: it is none.
    """
    value = row.get(name)
    if not isinstance(value, list):
        raise BadRow("bad_row", f"{name} is {value!r:.80}, no list")
    return value


def label_of(value: Any) -> float | None:
    """A label as a number; None for none. True and False are 1 and 0, floats stay what they are.

    Raises:
        BadRow: no number in [0, 1], and not -1.
    """
    if value is None:
        return None
    if isinstance(value, bool | int | float) and (value == -1 or 0 <= value <= 1):  # false for NaN too
        return float(value)
    raise BadRow("bad_label", f"{value!r:.80} is no label: a number in [0, 1], or -1")


def counts_of(right: Any, verdicts: Any) -> tuple[int, int]:
    """(k, n); (0, 0) where they are not given.

    Raises:
        BadRow: no whole numbers, or not 0 <= k <= n.
    """
    if right is None and verdicts is None:
        return 0, 0
    pair = []
    for value in (right, verdicts):
        is_whole = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_whole or value != int(value):
            raise BadRow("bad_label", f"{right!r:.40} right of {verdicts!r:.40}: no counts")
        pair.append(int(value))
    if not 0 <= pair[0] <= pair[1] < 2**31:
        raise BadRow("bad_label", f"{pair[0]} right of {pair[1]}")
    return pair[0], pair[1]


def images_of(row: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    """The pictures under the first of these names that holds any."""
    for name in names or ("images", "image", "image_path"):
        value = row.get(name)
        if value not in (None, "", []):
            return tuple(value) if isinstance(value, list | tuple) else (value,)
    return ()


def image_field(problem: Problem) -> Any:
    """One picture as itself, several as a list, none as null."""
    return list(problem.images) if len(problem.images) > 1 else problem.images[0] if problem.images else None


def name_of(row: Mapping[str, Any], *names: str) -> str:
    """The row's own id, if it has one that says something."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value not in ("", -1):
            return str(value)
    return ""


def answer_of(row: Mapping[str, Any], *names: str) -> str:
    """The gold answer as text; empty if there is none."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
    return ""


def without_image_places(question: str) -> str:
    """The question without the `<image>` places ahead of it: pictures are always shown before the question."""
    return _IMAGE_AHEAD.sub("", question)


def with_image_places(question: str, num_images: int) -> str:
    """The question with an `<image>` place for every picture that has none."""
    return "<image>\n" * max(0, num_images - question.count("<image>")) + question


def solution_of(texts: Sequence[Any], marks: Sequence[Mark], text: str | None = None) -> Solution:
    """A checked solution: its steps stripped, a mark each.

    Raises:
        BadRow: no steps, an empty one, too many, or another number of labels.
    """
    if len(texts) != len(marks):
        raise BadRow("bad_label", f"{len(marks)} labels for {len(texts)} steps")
    if not texts or len(texts) > MAX_STEPS:
        raise BadRow("bad_steps", f"{len(texts)} steps")
    steps = []
    for i, step in enumerate(texts):
        if not isinstance(step, str) or not step.strip():
            raise BadRow("bad_steps", f"step {i} is {step!r:.80}")
        steps.append(step.strip())
    return Solution(tuple(steps), tuple(marks), text)


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
