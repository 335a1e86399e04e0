r"""What the benchmarks' own scorers say of an answer, one response at a time.

Owns the official rules as they are, dubious ones included; does not know our verdicts, models or files.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.extraction import extract_answer
from components.grading import Gold, answer_type, grade

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Official:
    """What the official scorer says of one response."""

    is_right: bool | None
    """None: its rule needs something that the row does not have."""
    said: str | None = None
    """The answer as it reads it."""
    is_guess: bool = False
    """It found nothing, and drew an option at random."""


Scorer = Callable[[Sequence[Row], Sequence[str]], list[Official]]
"""(rows, their responses) -> a verdict each, in order: one scorer draws from one random stream as it goes."""


def each(judge: Callable[[Row, str], Official]) -> Scorer:
    """A scorer that looks at one row at a time."""
    return lambda rows, responses: [judge(row, text) for row, text in zip(rows, responses, strict=True)]


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _listed(value: Any) -> list[Any]:
    """A list, also where a file holds it as text: `['a', 'b']`."""
    import ast

    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())  # reads literals, runs nothing
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [value]
    return list(value) if isinstance(value, list | tuple) else [] if _is_missing(value) else [value]


# --- MMMU ----------------------------------------------------------------------------------------------------------

MMMU_SEED = 42
_ENDS = ",.!?;:'"
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def mmmu_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that MMMU reads from a response, None where it would guess.

    The last `(A)`; else the last ` A `; else, in more than five words, the option whose text stands last.

    Args:
        options: letter -> text, in the order of the letters.
    Source: MMMU, mmmu/utils/eval_utils.py, parse_multi_choice_response.
    """
    padded = _padded(response)
    for shape in ("({})", " {} "):
        found = {letter: padded.rfind(shape.format(letter)) for letter in options}
        found = {letter: at for letter, at in found.items() if at >= 0}
        if found:
            return max(found, key=lambda letter: found[letter])
    return _last_option(padded, options)


def mmmu_pro_choice(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that MMMU-Pro reads from a response, None where it would guess.

    The only letter of an option, even inside a word, behind the last `Answer:`; else the last `(A)`, `A ` or `A.`, of these
    the last that stands between blanks; else an option's text.

    Source: MMMU, mmmu-pro/evaluate.py, parse_multi_choice_response.
    """
    _, marker, behind = response.rpartition("Answer:")
    inside = [letter for letter in options if letter in behind] if marker else []
    if len(inside) == 1:
        return inside[0]
    padded = _padded(response)
    for shape, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        seen = [letter for letter in options if shape.format(letter) in padded]
        if seen:
            return max(seen, key=lambda letter, place=place: padded.rfind(place.format(letter)))  # type: ignore[misc]
    return _last_option(padded, options)


def _padded(response: str) -> str:
    for end in _ENDS:
        response = response.strip(end)
    return f" {response} "


def _last_option(padded: str, options: Mapping[str, str]) -> str | None:
    """The option whose text stands last in a response of more than five words."""
    if len(padded.split()) > 5:
        folded = padded.lower()
        found = {letter: folded.rfind(text.lower()) for letter, text in options.items() if text.lower() in folded}
        if found:
            return max(found, key=lambda letter: found[letter])
    return None


def mmmu_open(response: str) -> set[str | float]:
    """Everything that MMMU takes for the answer to an open question: tails of its clauses and the numbers in them.

    Source: MMMU, parse_open_response; it lower-cases before it splits at capitals, so sentences are not split.
    """
    text = response.strip().strip(".").lower()
    lines = re.split(r"\.\s(?=[A-Z])|\n", text)
    tails = []
    for number, line in enumerate(lines):
        keys = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        cut = [line.split(key)[-1].strip() for key in keys if key in line]
        kept = ""  # an empty tail is forgotten when the next one comes, and drops the line if it is the last
        for one in cut:
            if not kept or len(one) < len(kept):
                kept = one
        if kept and kept not in (*_ENDS, ""):
            tails.append(kept)
    tails = tails or [text]
    numbers = [number for tail in tails for pattern in _NUMBERS for number in pattern.findall(tail)]
    return {value for part in (*tails, *numbers) for value in _mmmu_normal(part)}


def _mmmu_normal(text: str) -> list[str | float]:
    """A number to two decimals, or the lower-case text; one letter alone only beside a blank."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def mmmu_open_is_right(gold: Sequence[str], said: set[str | float]) -> bool:
    """Whether a number equals a gold number, or a gold text stands anywhere inside what was said."""
    wanted = [value for answer in gold for value in _mmmu_normal(answer)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in one for text in texts) if isinstance(one, str) else one in wanted for one in said)


def mmmu(rows: Sequence[Row], responses: Sequence[str]) -> list[Official]:
    """MMMU's verdicts; what it cannot read it guesses, from one stream of random numbers over all rows.

    Source: MMMU, mmmu/utils/eval_utils.py with random seed 42, rows in the order of its sorted output files.
    """
    stream = random.Random(MMMU_SEED)
    verdicts = []
    for row, text in zip(rows, responses, strict=True):
        options = mmmu_options(row)
        gold = [str(part) for part in _listed(_first(row, "answer", "ground_truth"))]
        if options:
            said = mmmu_choice(text, options)
            letter = said or stream.choice(list(options))
            verdicts.append(Official(letter in gold, letter, is_guess=said is None))
        else:
            open_said = mmmu_open(text)
            verdicts.append(Official(mmmu_open_is_right(gold, open_said), " | ".join(sorted(map(str, open_said)))))
    return verdicts


def mmmu_pro(rows: Sequence[Row], responses: Sequence[str]) -> list[Official]:
    """MMMU-Pro's verdicts. Differs: the original draws its guesses without a seed."""
    stream = random.Random(MMMU_SEED)
    verdicts = []
    for row, text in zip(rows, responses, strict=True):
        options = mmmu_options(row)
        said = mmmu_pro_choice(text, options)
        letter = said or (stream.choice(list(options)) if options else None)
        verdicts.append(Official(letter is not None and letter == row.get("answer"), letter, is_guess=said is None))
    return verdicts


def mmmu_options(row: Row) -> dict[str, str]:
    """letter -> text of a multiple-choice row of any of its layouts; empty for an open question."""
    named = row.get("index2ans")
    if isinstance(named, Mapping):
        letters = row.get("all_choices") or sorted(named)
        return {letter: str(named[letter]) for letter in letters if named.get(letter) is not None}
    if row.get("question_type") in ("open", "short-answer"):
        return {}
    return {chr(65 + i): str(text) for i, text in enumerate(_listed(row.get("options")))}


# --- MathVista -----------------------------------------------------------------------------------------------------


def mathvista_answer(said: Any, row: Row) -> str | None:
    """The extracted answer in the form in which MathVista compares it; None if it has none.

    A choice is the option of the letter, else the option with the smallest edit distance, even to nothing; an integer is
    cut off towards 0; a float is rounded to the row's precision.

    Source: MathVista, evaluation/calculate_score.py, normalize_extracted_answer.
    """
    choices = [str(choice) for choice in _listed(row.get("choices"))]
    if row.get("question_type") == "multi_choice" or (choices and not row.get("question_type")):
        text = said.strip() if isinstance(said, str) else str(said)
        letter = re.search(r"\(([a-zA-Z])\)", text)
        text = letter[1].upper() if letter else text
        if len(text) == 1 and text.isascii() and 0 <= ord(text) - 65 < len(choices):
            return choices[ord(text) - 65]
        return min(choices, key=lambda choice: edit_distance(text, choice)) if choices else None
    kind = row.get("answer_type")
    try:
        if kind == "integer":
            return str(int(float(said)))
        if kind == "float":
            return str(round(float(said), int(float(row["precision"]))))
    except (ValueError, TypeError, OverflowError, KeyError):
        return None
    return None if said is None else str(said)


def mathvista(row: Row, response: str) -> Official:
    """MathVista's verdict on the extraction that a model made; where the row has none, on ours."""
    said = row.get("extraction")
    if said is None:
        options = tuple(str(choice) for choice in _listed(row.get("choices")))
        said = extract_answer(response, is_choice=bool(options), options=options, is_prose=True) or ""
    form = mathvista_answer(said, row)
    return Official(form is not None and form == str(row.get("answer")), form)


def edit_distance(one: str, other: str) -> int:
    """Fewest insertions, deletions and replacements of a character. Source: Levenshtein (1966)."""
    before = list(range(len(other) + 1))
    for i, char in enumerate(one, start=1):
        row = [i]
        for j, wanted in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (char != wanted)))
        before = row
    return before[-1]


# --- the others ----------------------------------------------------------------------------------------------------


def wemath_letter(response: str) -> str | None:
    """The first letter behind the last `Answer`, None unless it is one of A to H.

    Source: We-Math, evaluation/four_dimensional_metrics.py.
    """
    tail = re.sub(r"[><:.]", "", response.rpartition("Answer")[2].strip()).strip()
    return tail[0] if tail and tail[0] in "ABCDEFGH" else None


def wemath(row: Row, response: str) -> Official:
    """We-Math's verdict."""
    said = wemath_letter(response)
    return Official(said == row.get("answer"), said)


def logicvista(row: Row, response: str) -> Official:
    """LogicVista's verdict: the letters that GPT-4 extracted, as a sorted list, equal the known ones.

    Source: LogicVista, eval/extract_accuracy.py. Differs: where a row has no extraction, ours stands in for GPT-4's.
    """
    gold = _listed(_first(row, "true answer", "answer"))
    wanted = sorted(letter.lower() for part in gold for letter in str(part).split(", "))
    field = next((name for name in row if str(name).endswith(("answer extracted", "answers extracted"))), None)
    if field is not None:
        said = [str(part) for part in _listed(row[field])]
    else:
        found = extract_answer(response, is_choice=True, is_prose=True) or ""
        said = re.findall(r"\b[A-Za-z]\b", found) or (list(found) if re.fullmatch("[A-J]{2,5}", found) else [found])
    said = sorted(letter.lower() for letter in said)
    return Official(said == wanted, ", ".join(said))


def dynamath(row: Row, response: str) -> Official:
    """DynaMath's verdict on the `short answer` of the JSON that it asks for.

    A float within 0.001 (`2.5 π` and `2.5 cm` are read); the letter within the first three characters; a text anywhere.

    Source: DynaMath, evaluation/gpt4o/gpt_4o_json_eval.py.
    """
    gold, kind, said = str(_first(row, "ground_truth", "answer")), row.get("answer_type"), dynamath_short(response)
    if kind == "float":
        value = _dynamath_number(said)
        return Official(value is not None and abs(value - float(gold)) <= 0.001, said)
    if kind == "multiple choice":
        return Official(said == gold if len(said) == 1 else gold in said[:3], said)
    return Official(gold in said, said)


def dynamath_short(response: str) -> str:
    """The `short answer` of a response in JSON; the official stand-in text where it is none."""
    start, end = response.find("{"), response.rfind("}")
    body = response[start : end + 1]
    for text in (response, body, body.replace("\\", "")):
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(said, dict):
            return str(said.get("short answer"))
    return "wait for check"


def _dynamath_number(said: str) -> float | None:
    first = said if said.isdigit() else said.partition(" ")[0]
    try:
        return float(first.partition("π")[0]) * math.pi if "π" in first else float(first)
    except ValueError:
        return None


def mathvision(row: Row, response: str) -> Official:
    """MATH-Vision's verdict on its own extraction (`model_answer`), else on ours: the letter, the option's text, or numbers
    that agree to two decimals.

    Source: MATH-V, evaluation/evaluate.py and utils.py. Differs: our grammar reads formulas, no code runs.
    """
    options, gold = [str(option) for option in _listed(row.get("options"))], str(row.get("answer", ""))
    said = row.get("model_answer")
    if said is None:
        said = extract_answer(response, is_choice=bool(options), options=tuple(options)) or ""
    said = str(said)
    letter = gold.strip()
    at = ord(letter) - 65 if len(letter) == 1 else -1
    wanted = [gold, options[at]] if options and 0 <= at < len(options) else [gold]
    return Official(any(_same_to_two_decimals(said, one) for one in wanted), said)


def _same_to_two_decimals(said: str, gold: str) -> bool:
    if said.strip().lower() == gold.strip().lower():
        return bool(gold.strip())
    kind, _ = answer_type(gold)
    if kind in (None, "choice", "choices", "word") or not said.strip():
        return False
    if any(sign in one for sign in (r"\mathrm", r"\circ", r"\text") for one in (said, gold)):
        return False  # units are unknown letters to it
    kind = "number" if kind == "integer" else kind
    precision = 2 if kind == "number" else None
    return grade(rf"\boxed{{{said}}}", Gold(gold, kind or "", precision=precision)).value == "right"


# --- OlympiadBench -------------------------------------------------------------------------------------------------

_OLYMPIAD_SIGNS = {
    r"\left": "", r"\right": "", "∶": ":", "，": ",", "$": "", r"\approx": "=", r"\simeq": "=", r"\sim": "=",
    r"^\prime": "'", r"^{\prime}": "'", r"^\circ": "", r"^{\circ}": "", "%": "",
}  # fmt: skip
_OLYMPIAD_ENDS = "\n$,.:;^_=+`!@#%&*~，。"
DEFAULT_TOLERANCE = 1e-8


def olympiad_parts(text: str) -> list[str]:
    r"""The answers that OlympiadBench reads: every \boxed, else the last line's $..$; commas outside of brackets part
    them, and \pm stands for both signs.

    Source: OlympiadBench, eval/auto_scoring_judge.py. Differs: also `^{\circ}` is dropped, as `^\circ` is there.
    """
    boxed = _boxed(text)
    if not boxed:
        boxed = re.findall(r"\$(.*?)\$", text.strip().split("\n")[-1]) or [text]
    joined = ",".join(boxed)
    joined = joined.split(r"\in ", 1)[1] if r"\in " in joined else joined
    for sign, instead in _OLYMPIAD_SIGNS.items():
        joined = joined.replace(sign, instead)
    joined = re.sub(r"\\(?:mathrm|mathbf)\{~?([^}]*)\}", r"\1", joined.strip(_OLYMPIAD_ENDS))
    parts, depth, start = [], 0, 0
    for at, char in enumerate(joined):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(joined[start:at].strip())
            start = at + 1
    parts.append(joined[start:].strip())
    return [signed for part in parts for signed in _both_signs(part)]


def _both_signs(part: str) -> list[str]:
    return [part.replace(r"\pm", "+"), part.replace(r"\pm", "-")] if r"\pm" in part else [part]


def _boxed(text: str) -> list[str]:
    found, start = [], 0
    while (at := text.find(r"\boxed{", start)) >= 0:
        depth, end = 1, at + 7
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        if depth:
            return []
        found.append(text[at + 7 : end - 1])
        start = end
    return found


def tolerances(error: Any) -> list[float]:
    """Largest absolute differences of the answers, one each, from `1e-1` or `1e-1,,0.01`; the default where none is."""
    if isinstance(error, list | tuple):
        named: list[Any] = [part for one in error for part in str(one).split(",")]
    else:
        named = [] if _is_missing(error) else str(error).split(",")
    bounds = []
    for part in named:
        try:
            bounds.append(float(part) if str(part).strip() else DEFAULT_TOLERANCE)
        except ValueError:
            bounds.append(DEFAULT_TOLERANCE)
    return bounds or [DEFAULT_TOLERANCE]


def olympiad_is_right(gold: str, said: str, *, error: Any = None) -> bool:
    """Whether the answers can be paired: equal as texts; numbers within the tolerance of the gold one, a hundredth or
    a hundred times of it; else equal as formulas.

    Source: OlympiadBench, eval/auto_scoring_judge.py. Differs: our grammar decides on equality of formulas, not sympy, so
    that no answer can hang or run code; each gold answer keeps its own tolerance.
    """
    wanted, given = olympiad_parts(gold), olympiad_parts(said)
    if wanted == given:
        return True
    if len(wanted) != len(given):
        return False
    bounds = tolerances(error)
    bounds = bounds * len(wanted) if len(bounds) == 1 else bounds + [DEFAULT_TOLERANCE] * (len(wanted) - len(bounds))
    for want, bound in zip(wanted, bounds, strict=False):
        match = next((one for one in given if _olympiad_equal(want, one, bound)), None)
        if match is None:
            return False
        given.remove(match)
    return True


def _olympiad_equal(want: str, said: str, bound: float) -> bool:
    if want == said:
        return want != ""
    try:
        value, other = float(want), float(said)
    except ValueError:
        kind, _ = answer_type(want)
        if kind is None:
            return False
        tolerance = bound * 1.01 if kind in ("integer", "number") else None
        return grade(rf"\boxed{{{said}}}", Gold(want, kind, tolerance=tolerance)).value == "right"
    return any(abs(known - other) <= bound * 1.01 for known in (value / 100, value, value * 100))


def olympiadbench(row: Row, response: str) -> Official:
    """OlympiadBench's verdict."""
    gold = ", ".join(str(part) for part in _listed(_first(row, "final_answer", "GT")))
    error = row.get("error") if not _is_missing(row.get("error")) else row.get("precision")
    return Official(olympiad_is_right(gold, response, error=error), ", ".join(olympiad_parts(response))[:200])


def _first(row: Row, *names: str) -> Any:
    return next((row[name] for name in names if not _is_missing(row.get(name))), "")
