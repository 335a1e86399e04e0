"""Our own exchange format: Parquet, one row a solution, its steps, labels and counts as lists, its pictures inside.

Owns the schema, which Hugging Face `datasets` reads as it is, pictures decoded; knows no file. Keeps everything
that a label says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from components.interchange.fields import counts_of, is_number, label_of, list_of, problem_of, solution_of, text_of
from components.interchange.foreign import BadRow, Format, Mark, Problem, Reading, Row, Solution
from components.records import IMAGE, LABEL, SOLUTION, STOPPING_RULES, with_image_column

OF_SOLUTION = ("verdict", "rule", "finish_reason", "seed", "num_tokens", "logprob", "policy_digest", "verifier_digest")
OF_LABEL = ("num_unknown", "num_reused", "stopping_rule", "mean", "sd", "low", "high", "weight")


def _schema() -> Any:
    import pyarrow as pa

    columns: list[tuple[str, Any]] = [
        ("problem_id", pa.string()),
        ("source_id", pa.string()),
        ("source", pa.string()),
        ("question", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("answer", pa.string()),
        ("options", pa.list_(pa.string())),
        ("solution_id", pa.string()),
        ("text", pa.string()),
        ("final_answer", pa.string()),
        *((name, SOLUTION.field(name).type) for name in OF_SOLUTION),
        ("steps", pa.list_(pa.string())),
        ("labels", pa.list_(pa.float64())),
        ("num_right", pa.list_(pa.int32())),
        ("num_verdicts", pa.list_(pa.int32())),
        *((name, pa.list_(LABEL.field(name).type)) for name in OF_LABEL),
    ]
    return with_image_column(pa.schema(columns), "images", many=True)


def _read(row: Mapping[str, Any]) -> Reading:
    steps, labels = list_of(row, "steps"), list_of(row, "labels")
    columns: dict[str, list[Any]] = {}
    for name in ("num_right", "num_verdicts", *OF_LABEL):
        columns[name] = row[name] if isinstance(row.get(name), list) else [None] * len(labels)
        if len(columns[name]) != len(labels):
            raise BadRow("bad_label", f"{len(columns[name])} values of {name} for {len(labels)} labels")
    marks = []
    for i, label in enumerate(labels):
        counts = counts_of(columns["num_right"][i], columns["num_verdicts"][i])
        more = _checked({name: columns[name][i] for name in OF_LABEL})
        marks.append(Mark(label_of(label), *counts, more))
    options = row.get("options")
    options = tuple(str(option) for option in options) if isinstance(options, list) else None
    question = text_of(row, "question")
    problem = replace(problem_of(row, question, source="source"), question=question, options=options)
    text = row.get("text")
    solution = solution_of(steps, marks, text if isinstance(text, str) else None)
    more = _checked({name: row.get(name) for name in ("solution_id", "final_answer", *OF_SOLUTION)})
    if "final_answer" in more:  # `answer` is the problem's
        more["answer"] = more.pop("final_answer")
    return problem, [replace(solution, more=more)]


_BITS = {"seed": 63, "num_tokens": 31, "num_unknown": 31, "num_reused": 31}
_NUMBERS = ("logprob", "mean", "sd", "low", "high", "weight")
_WORDS = {"verdict": ("right", "wrong", "unknown"), "stopping_rule": STOPPING_RULES, "finish_reason": ("stop", "length")}


def _checked(values: Row) -> Row:
    """The values that are there.

    Raises:
        BadRow: one is of another kind than its column.
    """
    there = {name: value for name, value in values.items() if value is not None}
    for name, value in there.items():
        if name in _BITS:
            is_fit = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2 ** _BITS[name]
        elif name in _NUMBERS:
            is_fit = is_number(value)
        else:
            is_fit = isinstance(value, str) and value in _WORDS.get(name, (value,))
        if not is_fit:
            raise BadRow("bad_row", f"{name} is {value!r:.80}")
    return there


def _write(problem: Problem, solution: Solution) -> Row:
    marks = solution.marks
    return {
        "source_id": problem.source_id,
        "source": problem.source,
        "question": problem.question,
        "images": list(problem.images),
        "answer": problem.answer,
        "options": None if problem.options is None else list(problem.options),
        "text": solution.text,
        "final_answer": solution.more.get("answer"),
        **{name: solution.more.get(name) for name in ("problem_id", "solution_id", *OF_SOLUTION)},
        "steps": list(solution.steps),
        "labels": [mark.label for mark in marks],
        "num_right": [mark.num_right if mark.label is not None else None for mark in marks],
        "num_verdicts": [mark.num_verdicts if mark.label is not None else None for mark in marks],
        **{name: [mark.more.get(name) for mark in marks] for name in OF_LABEL},
    }


PARQUET = Format(
    "parquet", "Parquet for `datasets`: one row a solution, everything kept", _read, _write, nested_schema=_schema
)
