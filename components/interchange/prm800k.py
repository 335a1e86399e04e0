"""PRM800K: human ratings of every step and of alternatives to it.

Owns how one labelled record becomes solutions: the path that was taken, and one more for every other rated
completion. Knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.interchange.fields import list_of, problem_of, solution_of, text_of
from components.interchange.foreign import BadRow, Format, Mark, Problem, Reading, Row, Solution, is_positive

_RATINGS = {1: 1.0, -1: 0.0, 0: None, None: None}
"""A neutral step makes no progress and no error: it has no label."""


def _read(row: Mapping[str, Any]) -> Reading:
    question, label = row.get("question"), row.get("label")
    if not isinstance(question, dict) or not isinstance(label, dict):
        raise BadRow("bad_row", "no question or no label")
    if label.get("finish_reason") == "bad_problem":
        raise BadRow("bad_problem", "the labeler reported the problem as broken")
    problem = problem_of(question, text_of(question, "problem"))
    written = question.get("pre_generated_steps")
    whole = [text for text in written if isinstance(text, str)] if isinstance(written, list) else []
    path: list[str] = []
    marks: list[Mark] = []
    found: list[Solution] = []
    for i, step in enumerate(list_of(label, "steps")):
        if not isinstance(step, dict):
            raise BadRow("bad_steps", f"step {i} is {step!r:.80}")
        rated = [_rated(completion) for completion in (list_of(step, "completions") if step.get("completions") else ())]
        taken = _taken(step, rated, whole, i)
        found += [
            solution_of([*path, text], [*marks, mark])
            for text, mark in rated
            if mark.label is not None and (taken is None or text != taken[0])
        ]
        if taken is None:
            break
        path.append(taken[0])
        marks.append(taken[1])
    if path:
        rest = whole[len(path) :] if [text.strip() for text in whole[: len(path)]] == [t.strip() for t in path] else []
        found.insert(0, solution_of([*path, *rest], [*marks, *(Mark() for _ in rest)]))
    found = [solution for solution in found if any(mark.label is not None for mark in solution.marks)]
    if not found:
        raise BadRow("no_label", f"no rated step; finish_reason {label.get('finish_reason')!r:.40}")
    return problem, found


def _rated(completion: Any) -> tuple[str, Mark]:
    if not isinstance(completion, dict):
        raise BadRow("bad_steps", f"a completion is {completion!r:.80}")
    rating = completion.get("rating")
    if isinstance(rating, bool) or not isinstance(rating, int | None) or rating not in _RATINGS:
        raise BadRow("bad_label", f"the rating {rating!r:.40} is none of -1, 0, 1")
    is_flagged = completion.get("flagged") is True  # the labeler did not know
    return text_of(completion, "text"), Mark(None if is_flagged else _RATINGS[rating])


def _taken(step: Mapping[str, Any], rated: Sequence[tuple[str, Mark]], whole: Sequence[str], i: int) -> Any:
    """The completion with which the solution went on; None where the record does not say.

    Where neither a completion nor a human's was chosen, labelling ended at the first error of a solution that
    had been written before: it is the completion that stands in that solution.
    """
    chosen = step.get("chosen_completion")
    if isinstance(chosen, int) and not isinstance(chosen, bool):
        if not 0 <= chosen < len(rated):
            raise BadRow("bad_steps", f"completion {chosen} of {len(rated)} was chosen")
        return rated[chosen]
    human = step.get("human_completion")
    if isinstance(human, dict):
        return _rated(human)
    if isinstance(human, str) and human.strip():
        return human, Mark()
    before = [one for one in rated if i < len(whole) and one[0].strip() == whole[i].strip()]
    return before[0] if before else None


def _write(problem: Problem, solution: Solution) -> Row:
    known = max((i + 1 for i, mark in enumerate(solution.marks) if mark.label is not None), default=0)
    ratings = [None if m.label is None else 1 if is_positive(m.label) else -1 for m in solution.marks[:known]]
    steps = [
        {
            "completions": [{"text": text, "rating": rating, "flagged": None}],
            "human_completion": None,
            "chosen_completion": 0,
        }
        for text, rating in zip(solution.steps, ratings, strict=False)
    ]
    asked: Row = {"problem": problem.question, "ground_truth_answer": problem.answer}
    if known < len(solution.steps):
        asked["pre_generated_steps"] = list(solution.steps)
    return {
        **dict.fromkeys(("labeler", "timestamp", "generation")),
        **dict.fromkeys(("is_quality_control_question", "is_initial_screening_question"), False),
        "question": asked,
        "label": {
            "steps": steps,
            "total_time": None,
            "finish_reason": "found_error" if ratings and ratings[-1] == -1 else "solution",
        },
    }


PRM800K = Format("prm800k", "PRM800K: ratings -1, 0, 1 of completions", _read, _write, has_signs=True, has_images=False)
