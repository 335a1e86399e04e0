"""Formats of one JSON object a solution: VisualPRM400K and its raw form, MM-PRM's training rows, Math-Shepherd, stepwise.

Owns how each writes a question, steps and labels; knows no file and no picture. Written after the public
descriptions of the data sets; what a format cannot say is lost when written, and is named in docs/labels-elsewhere.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from components.interchange.fields import (
    answer_field,
    counts_of,
    image_field,
    label_of,
    list_of,
    problem_of,
    solution_of,
    text_of,
    with_image_places,
)
from components.interchange.foreign import BadRow, Format, Mark, Problem, Reading, Row, Solution, is_positive

_SIGNS = {"+": 1.0, "-": 0.0}


def _sign(mark: Mark) -> str:
    assert mark.label is not None
    return "+" if is_positive(mark.label) else "-"


def _conversation(problem: Problem, turns: list[Row]) -> Row:
    return {"id": problem.source_id, "image": image_field(problem), "conversations": turns} | answer_field(problem)


# --- VisualPRM400K: a conversation, one step a turn ----------------------------------------------------------------

_QUESTION, _PROCESS = "### Question:\n", "\n\n### Solution Process:\n"
_SYSTEM = (
    "You judge solutions step by step. The first turn holds a problem and the first step of its solution, every "
    "further turn the next step. Answer + if the solution is right up to this step, and - if it is not."
)


def _read_visualprm400k(row: Mapping[str, Any]) -> Reading:
    turns = [turn for turn in list_of(row, "conversations") if isinstance(turn, dict) and turn.get("from") != "system"]
    asked, answered = turns[::2], turns[1::2]
    if not turns or len(asked) != len(answered):
        raise BadRow("bad_row", f"{len(turns)} turns: not a step and a sign in turn")
    if {str(t.get("from")) for t in asked} - {"human", "user"} or {str(t.get("from")) for t in answered} - {
        "gpt",
        "assistant",
    }:
        raise BadRow("bad_row", "human and gpt do not take turns")
    steps = [text_of(turn, "value") for turn in asked]
    head, is_there, first = steps[0].partition(_PROCESS)
    _, is_asked, question = head.partition(_QUESTION)
    if not (is_there and is_asked):
        raise BadRow("bad_row", f"no question and solution process in {steps[0]!r:.80}")
    marks = []
    for turn in answered:
        sign = turn.get("value")
        if not isinstance(sign, str) or sign.strip() not in _SIGNS:
            raise BadRow("bad_label", f"{sign!r:.80} is neither + nor -")
        marks.append(Mark(_SIGNS[sign.strip()]))
    return problem_of(row, question), [solution_of([first, *steps[1:]], marks)]


def _write_visualprm400k(problem: Problem, solution: Solution) -> Row:
    question = with_image_places(problem.question, len(problem.images))
    turns = [{"from": "system", "value": _SYSTEM}]
    for i, (step, mark) in enumerate(zip(solution.steps, solution.marks, strict=True)):
        text = f"{_QUESTION}{question}{_PROCESS}{step}" if i == 0 else step
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": _sign(mark)}]
    return _conversation(problem, turns)


VISUALPRM400K = Format(
    "visualprm400k",
    "VisualPRM400K: conversations, a step a turn, answered + or -",
    _read_visualprm400k,
    _write_visualprm400k,
    has_signs=True,
    has_gaps=False,
)


# --- VisualPRM400K-v1.1-Raw: steps with counts ---------------------------------------------------------------------


def _read_visualprm_raw(row: Mapping[str, Any]) -> Reading:
    steps, marks = [], []
    for step in list_of(row, "steps_with_score"):
        if not isinstance(step, dict):
            raise BadRow("bad_steps", f"a step is {step!r:.80}")
        steps.append(step.get("step"))
        right, total = counts_of(step.get("num_mc_correct"), step.get("num_mc_total"))
        is_unmeasured = total == 0 and step.get("num_mc_total") is not None  # behind an early stop: not the same as 0
        marks.append(Mark(None if is_unmeasured else label_of(step.get("score")), right, total))
    response = row.get("response")
    text = response if isinstance(response, str) and response.strip() else None
    return problem_of(row, text_of(row, "question_orig", "question")), [solution_of(steps, marks, text)]


def _write_visualprm_raw(problem: Problem, solution: Solution) -> Row:
    steps = []
    for step, mark in zip(solution.steps, solution.marks, strict=True):
        has_counts = mark.num_verdicts or mark.label is None
        counts = (mark.num_right, mark.num_verdicts) if has_counts else (None, None)
        steps.append({"step": step, "score": mark.label, "num_mc_correct": counts[0], "num_mc_total": counts[1]})
    return {
        "id": problem.source_id,
        "image": image_field(problem),
        "question": with_image_places(problem.question, len(problem.images)),
        "question_orig": problem.question,
        "answer": problem.answer,
        "response": solution.text if solution.text is not None else "\n\n".join(solution.steps),
        "steps_with_score": steps,
        "num_mc_sequences": max(mark.num_verdicts for mark in solution.marks),
    }


VISUALPRM_RAW = Format(
    "visualprm_raw", "VisualPRM400K-v1.1-Raw: steps_with_score, with the counts", _read_visualprm_raw, _write_visualprm_raw
)


# --- MM-PRM training rows: a marker behind every step, soft labels -------------------------------------------------

_MARKER = "<prm>"


def _read_mmprm_rows(row: Mapping[str, Any]) -> Reading:
    if "conversations" in row:
        turns = list_of(row, "conversations")
        if len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
            raise BadRow("bad_row", f"{len(turns)} turns instead of 2")
        asked = text_of(turns[0], "value")
        head, is_there, process = asked.partition("\nProcess: ")
        _, is_asked, question = head.partition("Question: ")
        if not (is_there and is_asked):
            raise BadRow("bad_row", f"no Question and Process in {asked!r:.80}")
        labels = list_of(turns[1], "value")
    else:
        question, process, labels = text_of(row, "question"), text_of(row, "process"), list_of(row, "labels")
    steps = process.split(_MARKER)
    marks = [Mark(label_of(label)) for label in labels]
    if len(marks) != len(steps) - 1:
        raise BadRow("bad_label", f"{len(marks)} labels for {len(steps) - 1} markers")
    tail = [steps[-1]] if steps[-1].strip() else []
    solution = solution_of([*steps[:-1], *tail], [*marks, *(Mark() for _ in tail)])
    return problem_of(row, question), [solution]


def _write_mmprm_rows(problem: Problem, solution: Solution) -> Row:
    process = "\n\n".join(step + _MARKER for step in solution.steps)
    asked = {"from": "human", "value": f"Question: {problem.question}\nProcess: {process}"}
    return _conversation(problem, [asked, {"from": "gpt", "value": [mark.label for mark in solution.marks]}])


MMPRM_ROWS = Format(
    "mmprm_rows",
    "MM-PRM training rows: <prm> behind every step, soft labels",
    _read_mmprm_rows,
    _write_mmprm_rows,
    has_gaps=False,
)


# --- Math-Shepherd: numbered steps, the marker replaced by a sign --------------------------------------------------

_KI = "ки"  # the data set's marker
_STEP = re.compile(r"\A\s*Step \d+:[ \t]*")
_FIRST_STEP = re.compile(r"(?:\A|\s+)(?=Step 1:)")


def _read_math_shepherd(row: Mapping[str, Any]) -> Reading:
    text, labelled = text_of(row, "input"), text_of(row, "label")
    if _KI in labelled:  # as on the data set's page: "ки ?" against "ки +"
        text, labelled = re.sub(rf"{_KI}[ \t]*\?", _KI, text), re.sub(rf"{_KI}[ \t]*(?=[+-])", "", labelled)
    parts, signs, at = [""], [], 0
    for i, part in enumerate(pieces := text.split(_KI)):
        parts[-1] += part
        if i + 1 == len(pieces):
            break
        if labelled.startswith(part, at):
            at += len(part)
        else:
            raise BadRow("bad_label", f"label is another text than input at {labelled[at : at + 40]!r}")
        if labelled.startswith(_KI, at):  # these letters are part of a word
            parts[-1] += _KI
            at += len(_KI)
        elif at < len(labelled) and labelled[at] in _SIGNS:
            signs.append(labelled[at])
            parts.append("")
            at += 1
        else:
            raise BadRow("bad_label", f"{labelled[at : at + 10]!r} is neither + nor -")
    if not signs:
        raise BadRow("no_label", "no marker")
    head = _FIRST_STEP.search(parts[0])
    if head is None:
        raise BadRow("bad_steps", "no 'Step 1:'")
    question, parts[0] = parts[0][: head.start()], parts[0][head.end() :]
    tail = [parts[-1]] if parts[-1].strip() else []
    steps = [_STEP.sub("", part) for part in (*parts[:-1], *tail)]
    marks = [*(Mark(_SIGNS[sign]) for sign in signs), *(Mark() for _ in tail)]
    return problem_of(row, question, source="task"), [solution_of(steps, marks)]


def _write_math_shepherd(problem: Problem, solution: Solution) -> Row:
    both = []
    for signs in ([_KI] * len(solution.marks), [_sign(mark) for mark in solution.marks]):
        pairs = enumerate(zip(solution.steps, signs, strict=True), start=1)
        both.append(f"{problem.question} " + "\n".join(f"Step {i}: {step} {sign}" for i, (step, sign) in pairs))
    return {"input": both[0], "label": both[1], "task": problem.source} | answer_field(problem)


MATH_SHEPHERD = Format(
    "math_shepherd",
    "Math-Shepherd: input with markers, label with + and - in their places",
    _read_math_shepherd,
    _write_math_shepherd,
    has_signs=True,
    has_gaps=False,
    has_images=False,
)


# --- stepwise: prompt, completions, labels -------------------------------------------------------------------------


def _read_stepwise(row: Mapping[str, Any]) -> Reading:
    steps, labels = list_of(row, "completions"), list_of(row, "labels")
    solution = solution_of(steps, [Mark(label_of(label)) for label in labels])
    return problem_of(row, text_of(row, "prompt")), [solution]


def _write_stepwise(problem: Problem, solution: Solution) -> Row:
    labels = [mark.label for mark in solution.marks]
    row: Row = {"prompt": problem.question, "completions": list(solution.steps), "labels": labels}
    return row | ({"images": list(problem.images)} if problem.images else {}) | answer_field(problem)


STEPWISE = Format("stepwise", "prompt, completions, labels (formerly of TRL); floats stay", _read_stepwise, _write_stepwise)
