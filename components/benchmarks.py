r"""What a benchmark is: where its rows come from, what they ask, what is right, which number counts. A row of a table each.

Knows nothing of models, and opens no file; every rule turns the fields of one row into a question or a Gold.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components import measures, scorers
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


# --- what is asked ---------------------------------------------------------------------------------------------------


def _asked(*fields: str) -> Callable[[Row], str]:
    """The first of these fields with the options below it, unless they stand in the question or in the picture."""

    def question(row: Row) -> str:
        text = next((str(row[name]) for name in fields if row.get(name)), "")
        options = texts(row.get("options") or row.get("choices"))
        if options and [option.strip() for option in options] != list("ABCDEFGHIJ"[: len(options)]):
            text += "\n" + "\n".join(f"({chr(65 + i)}) {option}" for i, option in enumerate(options))
        return _IMAGE_TAG.sub(r"[picture \1]", text).strip()

    return question


_IMAGE_TAG = re.compile(r"<(?:image|img)[\s_]*(\d+)>")


def _asked_wemath(row: Row) -> str:
    return f"{row.get('question', '')}\n{row.get('option') or ''}".strip()


def _asked_mathverse(row: Row) -> str:
    return str(row.get("question") or "") or "Solve the problem in the picture."


def _asked_mmmu_pro(row: Row) -> str:
    return _asked("question")(row) if row.get("question") else "Answer the question in the picture."


def _asked_mathvista(row: Row) -> str:
    unit = f" (unit: {row['unit']})" if row.get("unit") else ""
    places = f" Give {row['precision']:.0f} decimal(s)." if isinstance(row.get("precision"), int | float) else ""
    return _asked("question")(row) + unit + places


def _asked_olympiadbench(row: Row) -> str:
    context = f"{row['context']}\n" if row.get("context") else ""
    unit = f" (unit: {row['unit']})" if row.get("unit") else ""
    return context + _asked("question")(row) + unit


# --- the table -------------------------------------------------------------------------------------------------------


_ACCURACY = measures.accuracy()


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of answers."""

    rule: str
    """The answer rule that gives our verdicts; a key of ANSWER_RULES."""
    hub: str
    """The dataset's id on the hub."""
    files: Mapping[str, tuple[str, ...]]
    """split -> names of its files below the folder of the distribution, the hub's layout first, then the repository's."""
    question: Callable[[Row], str]
    """What a policy is asked."""
    images: tuple[str, ...] = ("decoded_image", "image")
    """Fields that may hold its pictures; all that a row has count, `decoded_image` instead of the path beside it."""
    numbers: measures.Measures = _ACCURACY
    """What its numbers are."""
    overall: str = "accuracy"
    """The measure that the papers report."""
    official: scorers.Scorer | None = None
    """The official verdict; None where a hosted model gives it."""
    ids: tuple[str, ...] = ("id",)
    """The fields that name a row."""
    variants: tuple[str, ...] = ()
    """The fields that variants of one question share: `evaluate` never counts these as independent."""


_MMMU_PICTURES = tuple(f"image_{i}" for i in range(1, 8))

BENCHMARKS: dict[str, Benchmark] = {
    "mmk12": Benchmark(
        rule="mmk12",
        hub="Cierra0506/MM-K12",
        files={"test": ("data/test-*.parquet", "*test*.jsonl", "k12.json", "eval/k12/k12.json")},
        question=_asked("question"),
        images=("image", "image_path"),
    ),
    "mathvista": Benchmark(
        rule="mathvista",
        hub="AI4Math/MathVista",
        files={"testmini": ("data/testmini-*.parquet", "data/testmini.json", "testmini*.json")},
        question=_asked_mathvista,
        numbers=measures.accuracy("question_type", "answer_type", "metadata.source", "metadata.task"),
        official=scorers.each(scorers.mathvista),
        ids=("pid", "id"),
    ),
    "mathverse": Benchmark(
        rule="mathverse",
        hub="AI4Math/MathVerse",
        files={
            "testmini": ("testmini.parquet", "data/testmini-*.parquet", "testmini.json", "data/testmini.json"),
            "text_only": ("testmini_text_only.parquet", "testmini_text_only*.json", "data/testmini_text_only*.json"),
        },
        question=_asked_mathverse,
        numbers=measures.accuracy("problem_version", "metadata.subject", unit="problem_index"),
        overall="problem_version Vision Only",
        ids=("sample_index",),
        variants=("problem_index",),
    ),
    "mathvision": Benchmark(
        rule="mathvision",
        hub="MathLLMs/MathVision",
        files={
            "test": ("data/test-*.parquet", "data/test.jsonl", "test*.jsonl"),
            "testmini": ("data/testmini-*.parquet", "data/testmini.jsonl", "testmini*.jsonl"),
        },
        question=_asked("question"),
        numbers=measures.accuracy("level", "subject"),
        official=scorers.each(scorers.mathvision),
    ),
    "mmmu": Benchmark(
        rule="mmmu",
        hub="MMMU/MMMU",
        files={
            "validation": ("*/validation-*.parquet", "data/validation-*.parquet", "*/output.json"),
            "dev": ("*/dev-*.parquet",),
        },
        question=_asked("question"),
        images=(*_MMMU_PICTURES, "images"),
        numbers=measures.accuracy("question_type", "subject", "subfield"),
        official=scorers.mmmu,
    ),
    "mmmu-pro": Benchmark(
        rule="mmmu",
        hub="MMMU/MMMU_Pro",
        files={
            "standard": ("standard (10 options)/test-*.parquet", "data/standard*.parquet"),
            "vision": ("vision/test-*.parquet", "data/vision*.parquet"),
        },
        question=_asked_mmmu_pro,
        images=(*_MMMU_PICTURES, "images", "image"),
        numbers=measures.accuracy("subject", "topic_difficulty"),
        official=scorers.mmmu_pro,
    ),
    "dynamath": Benchmark(
        rule="dynamath",
        hub="DynaMath/DynaMath_Sample",
        files={"test": ("data/sample_variant*-*.parquet", "trial*/dataset.json", "*/10trials/trial*/dataset.json")},
        question=_asked("question"),
        numbers=measures.worst_case,
        overall="worst case",
        official=scorers.each(scorers.dynamath),
        ids=("id", "variant"),
        variants=("id",),
    ),
    "wemath": Benchmark(
        rule="wemath",
        hub="We-Math/We-Math",
        files={"testmini": ("data/testmini-*.parquet", "testmini*.json", "data/testmini*.json")},
        question=_asked_wemath,
        images=("image", "image_path"),
        numbers=measures.four_states,
        overall="score strict",
        official=scorers.each(scorers.wemath),
        ids=("ID", "key"),
        variants=("ID",),
    ),
    "logicvista": Benchmark(
        rule="logicvista",
        hub="lscpku/LogicVista",
        files={"test": ("data/test-*.parquet", "data/dataset.json", "dataset*.json")},
        question=_asked("question"),
        images=("image", "imagename"),
        numbers=measures.accuracy("skill", "reasoning skill"),
        official=scorers.each(scorers.logicvista),
    ),
    "olympiadbench": Benchmark(
        rule="olympiadbench",
        hub="Hothan/OlympiadBench",
        files={
            "mm_maths_en": ("OE_MM_maths_en_COMP/*.parquet", "OE_MM_maths_en_COMP*.json"),
            "to_maths_en": ("OE_TO_maths_en_COMP/*.parquet", "OE_TO_maths_en_COMP*.json"),
            "mm_physics_en": ("OE_MM_physics_en_COMP/*.parquet", "OE_MM_physics_en_COMP*.json"),
            "to_physics_en": ("OE_TO_physics_en_COMP/*.parquet", "OE_TO_physics_en_COMP*.json"),
        },
        question=_asked_olympiadbench,
        images=tuple(f"image_{i}" for i in range(1, 10)),
        numbers=measures.accuracy("subfield", "answer_type"),
        official=scorers.each(scorers.olympiadbench),
    ),
    "gsm8k": Benchmark(
        rule="gsm8k",
        hub="openai/gsm8k",
        files={"test": ("main/test-*.parquet", "test*.jsonl", "grade_school_math/data/test.jsonl")},
        question=_asked("question"),
    ),
    "math": Benchmark(
        rule="math",
        hub="HuggingFaceH4/MATH-500",
        files={"test": ("test.jsonl", "math500*.jsonl", "*.jsonl")},
        question=_asked("problem", "question"),
        numbers=measures.accuracy("level", "subject"),
        ids=("unique_id", "idx"),
    ),
}
"""One row a benchmark: the papers' seven and MM-PRM's five, and two without pictures."""

SUITES: dict[str, tuple[str, ...]] = {
    "visualprm": ("mmmu", "mathvista", "mathvision", "mathverse", "dynamath", "wemath", "logicvista"),
    "mm-prm": ("mmk12", "olympiadbench", "mathvista", "mathverse", "mathvision"),
}
"""What the papers average: the plain mean of these benchmarks' overall measures."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        SettingsError: there is none.
    """
    found = BENCHMARKS.get(name)
    if found is None:
        raise SettingsError("command line", f"no benchmark named {name!r}", f"known: {', '.join(BENCHMARKS)}")
    return found
