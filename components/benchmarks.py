r"""What a benchmark's rows say of the right answer: one row of a table each, by name.

Knows nothing of models, files or scores; every rule turns the gold fields of one row into a Gold.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import DataError, SettingsError
from components.grading import Gold, answer_type

Row = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerRule:
    """How the rows of a benchmark are graded."""

    read: Callable[[Row], Gold | None]
    """The gold answer of a row; None where none of our rules can check it."""
    responses: tuple[str, ...] = ("response", "prediction", "output", "answer_text")
    """Fields that may hold the response, the first that a row has."""
    said: Callable[[str], str] = str
    """The response as a text that states its answer: some prompts ask for JSON."""
    note: str = ""
    """What the official scorer does differently."""


def answer_rule(name: str) -> AnswerRule:
    """The rule of that name.

    Raises:
        SettingsError: there is none.
    """
    rule = ANSWER_RULES.get(name)
    if rule is None:
        raise SettingsError("command line", f"no answer rule named {name!r}", f"known: {', '.join(ANSWER_RULES)}")
    return rule


# --- fields --------------------------------------------------------------------------------------------------------

_MAX_OPTIONS_CHARS = 20_000


def field(row: Row, *names: str) -> Any:
    """The first of these fields that the row has.

    Raises:
        DataError: it has none of them.
    """
    for name in names:
        if row.get(name) is not None and row[name] == row[name]:  # NaN: a missing value of a data frame
            return row[name]
    shown = ", ".join(list(row)[:8])
    what = f"no field {' or '.join(map(repr, names))}; the row has: {shown}"
    raise DataError("gold", what, "join the gold rows with --gold")


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts, also when it comes as the text of a list: `['a', 'b']`."""
    if value is None or value == "":
        return ()
    if isinstance(value, Mapping):
        return tuple(str(value[key]) for key in sorted(value))
    if isinstance(value, str) and value.lstrip().startswith("[") and len(value) <= _MAX_OPTIONS_CHARS:
        try:
            value = ast.literal_eval(value)  # reads literals, runs nothing
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return (str(value),)
    if isinstance(value, str):
        return (value,)
    return tuple(str(part) for part in value) if isinstance(value, Sequence) else (str(value),)


_LISTED_OPTION = re.compile(
    r"(?:^|[\s;,(])\(?([A-J])\s*[.:：)）]\s*(.*?)(?=(?:[\s;,]+\(?[A-J]\s*[.:：)）]\s*)|$)", re.DOTALL
)


def listed_options(text: str) -> tuple[str, ...]:
    """The texts of the options in `A. 12; B. 13; ..` or of lines `A:40°`; empty unless they run A, B, C, .. in order."""
    found = [(match[1], match[2].strip(" \t\n;,")) for match in _LISTED_OPTION.finditer(text[:_MAX_OPTIONS_CHARS])]
    start = max((at for at, (letter, _) in enumerate(found) if letter == "A"), default=len(found))
    found = found[start:]
    letters = "".join(letter for letter, _ in found)
    return tuple(option for _, option in found) if len(found) > 1 and "ABCDEFGHIJ".startswith(letters) else ()


def _free(answer: str, *, options: tuple[str, ...] = (), **details: Any) -> Gold | None:
    kind, _ = answer_type(answer, options)
    return None if kind is None else Gold(answer, kind, options, **details)


# --- the benchmarks ------------------------------------------------------------------------------------------------


def _auto(row: Row) -> Gold | None:
    options = texts(row.get("options") or row.get("choices"))
    answer = field(row, "answer", "correct_answer", "gold", "gt", "ground_truth", "label")
    answers = texts(answer)
    if len(answers) > 1:
        return Gold(answers[0], "any", answers[1:])
    return _free(answers[0] if answers else "", options=options)


def _mathvision(row: Row) -> Gold | None:
    options, answer = texts(row.get("options")), str(field(row, "answer"))
    if not options:
        return _free(answer)
    if [option.strip() for option in options] == list("ABCDEFGHIJ"[: len(options)]):  # the choices are in the picture
        options = ()
    return Gold(answer.strip(), "choice", options) if answer_type(answer, options)[0] == "choice" else None


def _mathvista(row: Row) -> Gold | None:
    options, answer = texts(row.get("choices")), str(field(row, "answer"))
    kind = row.get("answer_type")
    unit = str(row.get("unit") or "") or _percent(row)
    if options:
        return _free(answer, options=options, is_prose=True)
    if kind == "list":
        parts = answer.strip("[] ")
        return Gold(f"({parts})", "any", (f"[{parts}]",))
    if kind == "float" and row.get("precision") not in (None, ""):
        precision = min(30, max(0, int(_number(row["precision"], "precision"))))
        return Gold(answer, "number", precision=precision, unit=unit, is_prose=True)
    return _free(answer, unit=unit, is_prose=kind in ("integer", "float"))


def _mathverse(row: Row) -> Gold | None:
    answer = str(field(row, "answer"))
    if row.get("question_type") == "multi-choice":
        question = str(row.get("question_for_eval") or row.get("question") or "")
        options = listed_options(question.partition("Choices:")[2])
        return _free(answer, options=options) or _free(answer)
    return _free(answer)


def _olympiadbench(row: Row) -> Gold | None:
    answer = ", ".join(texts(field(row, "final_answer", "GT")))
    error = row.get("error") or row.get("precision")
    bounds = [_number(part, "error") for part in re.split(r"[,\s]+", ",".join(texts(error))) if part] if error else []
    tolerance = min(bounds) if bounds else None
    unit = str(row.get("unit") or "") or None
    return _free(answer, unit=unit, tolerance=tolerance)


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError("gold", f"{name} {value!r} is no number", "correct the row")
    return number


def _percent(row: Row) -> str | None:
    """`%` where the question asks for a percentage: 25 % is then 25."""
    return "%" if _ASKS_PERCENT.search(str(row.get("question") or "")) else None


_ASKS_PERCENT = re.compile(
    r"(?i)\b(?:what|which)\s+(?:(?:is|was)\s+(?:the\s+)?)?(?:approximate\s+)?(?:percent(?:age)?\b|%)|\b(?:as a|in) percent"
)


def _gsm8k(row: Row) -> Gold | None:
    answer = str(field(row, "answer", "ground_truth"))
    found = re.findall(r"(?:####|\bA:)\s*([^\n]+)", answer)
    value = (found[-1] if found else answer).replace(",", "").strip()
    return _free(value, unit=_percent(row))


def _math(row: Row) -> Gold | None:
    return _free(str(field(row, "gt", "answer", "ground_truth")))


def _mmk12(row: Row) -> Gold | None:
    return _free(str(field(row, "answer", "correct_answer")))


def _dynamath(row: Row) -> Gold | None:
    answer, kind = str(field(row, "ground_truth", "answer")), row.get("answer_type")
    if kind == "multiple choice":
        options = listed_options(str(row.get("question", "")))
        return _free(answer, options=options) or _free(answer)
    if kind == "float":
        return _free(answer, tolerance=0.001)
    return _free(answer)


def _wemath(row: Row) -> Gold | None:
    answer = str(field(row, "answer"))
    options = listed_options(str(row.get("option") or ""))
    return _free(answer, options=options) or _free(answer)


def _logicvista(row: Row) -> Gold | None:
    answer = ", ".join(texts(field(row, "answer", "true answer"))).upper()
    if not re.search("[A-J]", answer):
        return _free(answer)
    return Gold(answer, "choices", is_prose=True) if answer_type(answer)[0] in ("choice", "choices") else None


def _mmmu(row: Row) -> Gold | None:
    options = texts(row.get("options") or row.get("index2ans"))
    answers = texts(field(row, "answer", "ground_truth"))
    if answers and (options or row.get("question_type") == "multiple-choice"):
        return _free(answers[0], options=options) or _free(answers[0])
    if len(answers) > 1:
        return Gold(answers[0], "any", answers[1:])
    return _free(answers[0], is_prose=True) if answers else None


def _short_answer(text: str) -> str:
    """DynaMath asks for JSON; its `short answer` is what counts."""
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end and end - start <= _MAX_OPTIONS_CHARS:
        try:
            said = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            said = None
        if isinstance(said, dict) and said.get("short answer") is not None:
            return f"Answer: {said['short answer']}"
    match = re.search(r'"short answer"\s*:\s*"?([^"\n}]*)', text)
    return f"Answer: {match[1]}" if match else text


ANSWER_RULES: dict[str, AnswerRule] = {
    "auto": AnswerRule(_auto, ("response", "responses", "output", "pred", "prediction")),
    "mathvision": AnswerRule(
        _mathvision, ("response", "model_answer"), note="rounds to two decimals; evaluates the model's text"
    ),
    "mathvista": AnswerRule(
        _mathvista, ("response", "extraction"), note="GPT-4 extracts; the nearest option; 3.9 counts as 3"
    ),
    "mathverse": AnswerRule(_mathverse, ("model_answer", "response"), note="GPT judges"),
    "olympiadbench": AnswerRule(
        _olympiadbench, ("response", "model_output", "answer"), note="also accepts 100 times the number and a hundredth"
    ),
    "gsm8k": AnswerRule(_gsm8k, ("solution", "response")),
    "math": AnswerRule(_math, ("response", "pred", "solution"), note="also accepts 100 times the number and a hundredth"),
    "mmk12": AnswerRule(_mmk12, note="GPT-4o judges"),
    "dynamath": AnswerRule(_dynamath, said=_short_answer, note="a gold text that occurs anywhere in the answer is accepted"),
    "wemath": AnswerRule(_wemath, note="the first letter after the last `Answer`"),
    "logicvista": AnswerRule(_logicvista, note="GPT-4 extracts; a lone letter after E is lost"),
    "mmmu": AnswerRule(_mmmu, note="guesses at random where nothing is found; numbers to two decimals; substrings"),
}
"""One row a benchmark."""
