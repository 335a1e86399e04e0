"""Is this answer right? One strict rule for each type of answer, and a verdict with the rule that decided.

Knows nothing of who wrote the response. Three values: what cannot be read or decided is unknown, never wrong.
No text is ever evaluated as code, no rule can hang, and every rule may run on any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata

from components.choices import ONE_LETTER, RUN_OF_LETTERS, SEVERAL_LETTERS, option_of, same_choice, same_choices
from components.comparison import (
    Closeness,
    NoSuchAnswer,
    UnitOpen,
    clean,
    conjunction,
    same_as_equation,
    same_expression,
    same_number,
    same_structure,
    unwrapped,
)
from components.errors import DataError
from components.extraction import extract_answer
from components.formulas import MAX_CHARS, TooComplex, Unreadable
from components.quantities import read_quantity
from components.records import digest
from components.structures import read_labels, read_parts, read_structure, split

VERIFIER_VERSION = 4  # raise it with every change of a rule: stored verdicts name the verifier that gave them
KINDS = (
    "choice",
    "choices",
    "integer",
    "number",
    "expression",
    "equation",
    "tuple",
    "interval",
    "set",
    "ratio",
    "time",
    "matrix",
    "base",
    "word",
    "parts",
    "any",
)


def _verifier_digest() -> str:
    try:
        mpmath = metadata.version("mpmath")
    except metadata.PackageNotFoundError:
        mpmath = "absent"
    return digest("verifier", VERIFIER_VERSION, {"mpmath": mpmath})


VERIFIER_DIGEST: str = _verifier_digest()
"""Names the rules and the libraries that a verdict depends on."""


@dataclass(frozen=True)
class Gold:
    """What a response is compared with."""

    answer: str
    kind: str
    """One of KINDS: what `answer_type(answer, options)` said."""
    options: tuple[str, ...] = ()
    """The texts of options A, B, ..; empty if there are none, or if they are in the picture. Kind `any`: texts as good as
    `answer`."""
    precision: int | None = None
    """Decimals to which a number is rounded before it is compared."""
    tolerance: float | None = None
    """Largest absolute difference of a right number."""
    unit: str | None = None
    """The unit that the question asks for, where `answer` does not state it; `%` for a percentage."""
    is_prose: bool = False
    """The prompt asks for no form: the closing sentence's one number, or one option, counts as the answer."""


@dataclass(frozen=True)
class Verdict:
    """Whether a response is right, and why we think so."""

    value: str
    """right | wrong | unknown"""
    rule: str
    """The kind of the answer if its rule decided; else truncated | no_answer | unreadable | too_complex | open | unit.
    open: read, but equality stays open · unit: the numbers may agree, what they count or their base cannot be compared"""
    answer: str | None
    """The answer as extracted, an option as its letter; None if there is none."""


_TRUNCATED = Verdict("unknown", "truncated", None)
_NO_ANSWER = Verdict("unknown", "no_answer", None)


def grade(response_text: str, gold: Gold, *, finish_reason: str = "stop") -> Verdict:
    """The verdict on one response.

    Args:
        finish_reason: `length` is always unknown: nobody knows what the text was about to say.
    Raises:
        DataError: `gold.kind` is unknown, or `gold.answer` is no answer of that kind.
    """
    if finish_reason == "length":
        return _TRUNCATED
    answer = extract_answer(
        response_text,
        is_choice=gold.kind in ("choice", "choices"),
        options=gold.options if gold.kind != "any" else (),
        is_prose=gold.is_prose,
    )
    if answer is None:
        return _NO_ANSWER
    if len(answer) > MAX_CHARS:
        return Verdict("unknown", "unreadable", answer)
    return _judged(answer, gold)


# --- which rule will compare answers with this gold answer ---------------------------------------------------------

_ANY_VALUE = re.compile(
    r"(?i)not unique|any (?:value|answer|number|one)|acceptable|choose (?:any )?one|answers? (?:may|can|will)? ?var"
    r"|for example|or fill in|or equivalent|open[- ]ended|e\.g\.|答案不唯一"
)
_WORD = re.compile(r"(?<![A-Za-z\\])(?!and|\d)[A-Za-z]?[a-z]{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’\-]+(?: [A-Za-z0-9][A-Za-z0-9'’\-]*){0,4}")


@lru_cache(maxsize=65536)
def answer_type(answer: str, options: tuple[str, ...] = ()) -> tuple[str | None, str]:
    """The rule that can compare answers with this gold answer, or None and the reason.

    Args:
        options: the texts of options A, B, ..: a gold answer that is a letter, or one of them, is then a choice.
    Returns: (one of KINDS, "") or (None, "empty" | "any value accepted" | "several parts" | "prose" | "no rule reads it").
    """
    if not answer.strip():
        return None, "empty"
    if options and option_of(answer, options) is not None:
        return "choice", ""
    if _ANY_VALUE.search(answer):
        return None, "any value accepted"
    text = clean(answer)
    if not text:
        return None, "empty"
    if len(answer) > MAX_CHARS:
        return None, "prose"
    kinds = ("parts",) if read_parts(answer) else (*_kinds(text, options), "parts")
    for kind in ("choices", *kinds) if _is_selection(answer) else kinds:
        if _is_right_against_itself(Gold(answer, kind, options)):
            return kind, ""
    plain = _COMMAND.sub(" ", text)
    words = _WORD.findall(plain)
    if len(words) > 3:
        return None, "prose"
    structure = read_structure(text)
    if read_parts(answer) or (structure is not None and structure.kind == "set"):
        return None, "several parts"
    return None, "prose" if words else "no rule reads it"


def _is_right_against_itself(gold: Gold) -> bool:
    try:
        return _judged(gold.answer, gold).value == "right"
    except DataError:
        return False


_SELECTION = re.compile(r"(?:\(\d\)[\s,，、]*){2,}|(?:[①-⑨][\s,，、]*){2,}|(?:\d\.\s*){3,}")


def _is_selection(answer: str) -> bool:
    """Whether a gold answer names statements by their numbers: (1)(3), ①③, 1.2.4."""
    return _SELECTION.fullmatch(answer.strip().rstrip("。")) is not None and read_labels(answer) is not None


def _kinds(text: str, options: tuple[str, ...]) -> tuple[str, ...]:
    """The rules that may read this gold answer, the likeliest first."""
    if ONE_LETTER.fullmatch(text):
        return ("choice",)
    if SEVERAL_LETTERS.fullmatch(text) or (options and RUN_OF_LETTERS.fullmatch(text)):
        return ("choices",)
    if read_quantity(text) is not None:
        return ("integer",) if re.fullmatch(r"[+-]?\d+", text) else ("number",)
    structure = read_structure(text)
    if structure is not None:
        return (structure.kind,)
    if text.count("=") == 1:
        return ("equation", "number", "expression")
    word = ("word",) if _WORDS.fullmatch(unwrapped(text)) else ()
    return ("expression", *word)


# --- the verdict ---------------------------------------------------------------------------------------------------


Rule = Callable[[str, Gold], tuple[bool | None, str]]
"""(answer, gold) -> (whether they are the same, or None if that stays open; the answer as it is to be remembered)."""


@lru_cache(maxsize=65536)
def _judged(answer: str, gold: Gold) -> Verdict:
    rule = _RULES.get(gold.kind)
    if rule is None:
        raise DataError("grading", f"no rule named {gold.kind!r}", f"known: {', '.join(KINDS)}")
    try:
        is_same, said = rule(answer, gold) if clean(answer) else (None, answer)
    except NoSuchAnswer as error:
        what = f"{gold.answer!r} is no answer of kind {gold.kind!r}"
        raise DataError("grading", what, "give the answer type that answer_type() names") from error
    except TooComplex:
        return Verdict("unknown", "too_complex", answer)
    except UnitOpen:
        return Verdict("unknown", "unit", answer)
    except Unreadable:
        return Verdict("unknown", "unreadable", answer)
    if is_same is None:
        return Verdict("unknown", "open", answer)
    return Verdict("right" if is_same else "wrong", gold.kind, said)


def _closeness(gold: Gold) -> Closeness:
    return Closeness(gold.precision, gold.tolerance, gold.unit)


def _compared(rule: Callable[[str, str, Closeness], bool | None]) -> Rule:
    """A rule for two texts in normal form."""
    return lambda answer, gold: (rule(clean(gold.answer), clean(answer), _closeness(gold)), answer)


def _same_structure(answer: str, gold: Gold) -> tuple[bool | None, str]:
    return same_structure(clean(gold.answer), clean(answer), _closeness(gold), kind=gold.kind), answer


def _same_choice(answer: str, gold: Gold) -> tuple[bool | None, str]:
    return same_choice(gold.answer, answer, gold.options, _closeness(gold))


def _same_choices(answer: str, gold: Gold) -> tuple[bool | None, str]:
    return same_choices(gold.answer, answer)


# --- words and parts -----------------------------------------------------------------------------------------------

_CLASSES = [
    names_of.split()
    for names_of in (
        "yes no",
        "true false",
        "even odd",
        "increase decrease",
        "increasing decreasing",
        "monday tuesday wednesday thursday friday saturday sunday",
        "january february march april may june july august september october november december",
        "north east south west northeast northwest southeast southwest",
        "red orange yellow green blue purple black white brown pink gray",
        "acute obtuse right",
    )
]
_SHORT = {
    word[:length]: word
    for names_of in (_CLASSES[5], _CLASSES[6])
    for word in names_of
    for length in (3, 4)
    if len(word) > length
} | {"grey": "gray"}
_DENIAL = re.compile(r"(?i)\b(?:not|neither|nor|never|no longer|cannot)\b|n't\b")


def _same_word(answer: str, gold: Gold) -> tuple[bool | None, str]:
    wanted, said = _folded_words(gold.answer), _folded_words(answer)
    if not wanted:
        raise NoSuchAnswer
    if wanted == said:
        return True, answer
    own = next((names_of for names_of in _CLASSES if wanted[0] in names_of), None) if len(wanted) == 1 else None
    if own is None or _DENIAL.search(answer):
        return None, answer
    if said and said[0] in own and own[0] == "yes":
        is_clear = len(said) == 1 or ("yes" not in said[1:] and said[-1] != "no")  # not "no, wait, yes"
        return (said[0] == wanted[0], said[0]) if is_clear else (None, answer)
    found = {word for word in said if word in own}
    if len(found) != 1 or len(said) > (1 if "may" in found else 2):  # "an even function", but not "it may rain"
        return None, answer
    if said[0] not in (*own, "on", "in", "is"):  # partially true, dark blue, no increase
        return None, answer
    return found == {wanted[0]}, found.pop()


def _folded_words(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", unwrapped(clean(text)).casefold())
    while words and words[0] in ("the", "a", "an"):
        words = words[1:]
    return [_SHORT.get(word, word) for word in words]


def _same_parts(answer: str, gold: Gold) -> tuple[bool | None, str]:
    wanted = read_parts(gold.answer)
    if wanted is None:
        raise NoSuchAnswer
    found = read_parts(answer)
    if found is None:
        found = [part.strip() for part in split(clean(answer), ",")]
    if len(found) != len(wanted):
        raise Unreadable(f"{len(found)} parts, {len(wanted)} were asked for")
    results: list[bool | None] = []
    for part, text in zip(wanted, found, strict=True):
        kind, _ = answer_type(part)
        if kind is None or kind in ("parts", "choices"):
            raise Unreadable(part)
        verdict = _judged(text, replace(gold, answer=part, kind=kind))
        results.append({"right": True, "wrong": False}.get(verdict.value))
    return conjunction(results), answer


def _same_as_any(answer: str, gold: Gold) -> tuple[bool | None, str]:
    results: list[bool | None] = []
    for text in (gold.answer, *gold.options):
        kind, _ = answer_type(text)
        if kind is not None and kind != "any":
            verdict = _judged(answer, replace(gold, answer=text, kind=kind, options=()))
            results.append({"right": True, "wrong": False}.get(verdict.value))
    if not results:
        raise NoSuchAnswer
    return (True if True in results else None if None in results else False), answer


_RULES: dict[str, Rule] = {
    "choice": _same_choice,
    "choices": _same_choices,
    "integer": _compared(same_number),
    "number": _compared(same_number),
    "expression": _compared(same_expression),
    "equation": _compared(same_as_equation),
    **dict.fromkeys(("tuple", "interval", "set", "ratio", "time", "matrix", "base"), _same_structure),
    "word": _same_word,
    "parts": _same_parts,
    "any": _same_as_any,
}
