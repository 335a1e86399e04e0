"""The fields of a row of someone else's label file: checked, and found under the names that they usually have.

Owns the checks that every row must pass and where a problem's fields stand; knows no format, file or folder.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from components.interchange.foreign import BadRow, Mark, Problem, Solution

MAX_STEPS = 4096
_ANSWERS = ("answer", "correct_answer", "ground_truth_answer")
_IDS = ("source_id", "id", "question_id")
_IMAGES = ("images", "image", "image_path")
_IMAGE_AHEAD = re.compile(r"\A(?:\s*<image>\s*)+")


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


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def counts_of(right: Any, verdicts: Any) -> tuple[int, int]:
    """(k, n); (0, 0) where they are not given.

    Raises:
        BadRow: no whole numbers, or not 0 <= k <= n.
    """
    if right is None and verdicts is None:
        return 0, 0
    pair = []
    for value in (right, verdicts):
        if not is_number(value) or value != int(value):
            raise BadRow("bad_label", f"{right!r:.40} right of {verdicts!r:.40}: no counts")
        pair.append(int(value))
    if not 0 <= pair[0] <= pair[1] < 2**31:
        raise BadRow("bad_label", f"{pair[0]} right of {pair[1]}")
    return pair[0], pair[1]


def problem_of(row: Mapping[str, Any], question: str, *, source: str = "") -> Problem:
    """The problem of a row whose gold answer, own id and pictures stand under one of their usual names.

    The `<image>` places ahead of the question are dropped: pictures are always shown before it.

    Args:
        source: the field that says where the problem came from.
    """
    answer, name = _said(row, *_ANSWERS), _said(row, *_IDS, but=-1)
    found = next((value for key in _IMAGES if (value := row.get(key)) not in (None, "", [])), ())
    images = tuple(found) if isinstance(found, list | tuple) else (found,)
    return Problem(without_image_places(question), answer, name, _said(row, source), images)


def _said(row: Mapping[str, Any], *names: str, but: Any = None) -> str:
    """The first of these fields that says something, as text; empty if none does."""
    for name in names:
        value = row.get(name)
        if (isinstance(value, str) or is_number(value)) and value not in ("", but):
            return str(value)
    return ""


def image_field(problem: Problem) -> Any:
    """One picture as itself, several as a list, none as null."""
    return list(problem.images) if len(problem.images) > 1 else problem.images[0] if problem.images else None


def answer_field(problem: Problem) -> dict[str, str]:
    """The gold answer as a field, if there is one."""
    return {"answer": problem.answer} if problem.answer else {}


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
