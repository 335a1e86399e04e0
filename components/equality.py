r"""What math-verify says of two answers, believed only where a second reading of ours agrees. Runs inside a killable worker.

Knows nothing of verdicts, responses or processes. math-verify alone calls 1/2004! and 1/2006! equal, reads 2(3) as 5 and
drops what it cannot read; so it gets formulas that we have read ourselves, written out without any choice of reading.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

from components.algebra import is_discrete, latex, names, read, value
from components.errors import SettingsError
from components.formulas import MAX_CHARS, Tree, Unreadable, normal_text

EQUALITY_VERSION = 2  # raise it with every change of what is read or believed
VERSIONS = {
    "math-verify": "0.9.0",
    "latex2sympy2_extended": "1.11.0",
    "antlr4-python3-runtime": "4.9.3",  # the one that DVC's hydra needs; others change verdicts
    "sympy": "1.14.0",
    "mpmath": "1.3.0",
}
"""The libraries whose verdicts were tested; others are refused at the start."""
KINDS = ("integer", "number", "expression", "tuple", "interval", "set")
"""Kinds of answers that are compared here."""

_DIGITS = 60
_SAME = 40  # values that agree to so many digits are the same
_DIFFERENT = 12  # values that differ within so many digits are not
_NUM_POINTS = 5


def check_versions() -> None:
    """Refuse libraries other than the tested ones.

    Raises:
        SettingsError: one of them is absent or has another version.
    """
    for name, wanted in VERSIONS.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found != wanted:
            hint = f"pip install {name}=={wanted} (the extra 'verify'), or set verify.math_verify to false"
            raise SettingsError("verify.math_verify", f"{name} is {found}, tested is {wanted}", hint)


def comparer() -> Callable[[Any], str]:
    """The function that compares one `{"kind": .., "gold": .., "answer": ..}`: right | wrong | unknown.

    Raises:
        SettingsError: as `check_versions`.
    """
    check_versions()
    logging.disable(logging.CRITICAL)  # math-verify logs every answer that it cannot compare
    is_same = _math_verify()
    return lambda job: compare(job["kind"], job["gold"], job["answer"], is_same)


Same = Callable[[Tree, Tree], "bool | None"]
"""Whether two formulas are equal; None: not sure."""


def compare(kind: str, gold: str, answer: str, is_same: Same) -> str:
    """right | wrong | unknown, for two answers of that kind."""
    if kind not in KINDS or max(len(gold), len(answer)) > MAX_CHARS:
        return "unknown"
    try:
        result = _same_answer(kind, _plain(gold), _plain(answer), is_same)
    except (Unreadable, RecursionError):
        return "unknown"
    return {True: "right", False: "wrong", None: "unknown"}[result]


def _same_answer(kind: str, gold: str, answer: str, is_same: Same) -> bool | None:
    if kind in ("integer", "number", "expression"):
        if any(re.search(r"[(\[{][^()]*\d,\d{3}", text) for text in (gold, answer)):
            return None  # (1,234): one number, or two?
        if "=" not in gold:
            answer = re.sub(r"^[A-Za-z](?:_\w|_\{\w+\})?\s*=\s*", "", answer)
        gold, answer = (re.sub(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])", _joined, text) for text in (gold, answer))
        return is_same(read(gold), read(answer, choices=kind != "expression"))
    answer = re.sub(r"^[A-Za-z]\s*(?:\\in(?![A-Za-z])|=)\s*", "", answer)
    golds, answers = _parts(gold), _parts(answer)
    if [frame for frame, _ in golds] != [frame for frame, _ in answers]:
        return None  # of another form, or in another order
    if kind == "set":
        return _same_in_any_order(golds[0][1], answers[0][1], is_same) if len(golds) == 1 and golds[0][0] == "{}" else None
    if any(frame == "{}" or len(ends) != len(others) for (frame, ends), (_, others) in zip(golds, answers, strict=True)):
        return None
    pairs = [pair for (_, ends), (_, others) in zip(golds, answers, strict=True) for pair in zip(ends, others, strict=True)]
    results = [_same_end(a, b, is_same) for a, b in pairs]
    return None if None in results else all(results)


def _joined(match: re.Match[str]) -> str:
    return match[0].replace(",", "")


def _same_in_any_order(golds: list[str], answers: list[str], is_same: Same) -> bool | None:
    """Only a clear case is decided: every pair is, and each element has exactly one partner, or one has none."""
    if len(golds) != len(answers):
        return None
    results = [[_same_end(gold, answer, is_same) for answer in answers] for gold in golds]
    if any(None in row for row in results):
        return None
    if all(sum(map(bool, row)) == 1 for row in [*results, *zip(*results, strict=True)]):
        return True
    return False if any(not any(row) for row in results) else None


def _same_end(gold: str, answer: str, is_same: Same) -> bool | None:
    ends = [re.fullmatch(r"([+-]?)\s*\\infty", text) for text in (gold, answer)]
    if ends[0] and ends[1]:
        return (ends[0][1] or "+") == (ends[1][1] or "+")
    return None if ends[0] or ends[1] else is_same(read(gold), read(answer))


def _plain(text: str) -> str:
    text = re.sub(r"\\[()\[\]]", " ", text).replace("$", " ")
    return re.sub(r"\s+", " ", normal_text(text)).strip(" .;,")


def _parts(text: str) -> list[tuple[str, list[str]]]:
    r"""`(1,2] \cup \{3\}` -> [("(]", ["1", "2"]), ("{}", ["3"])]."""
    parts = []
    for part in re.split(r"\\cup(?![A-Za-z])", text):
        match = re.fullmatch(r"\s*(\\\{|[(\[])(.*)(\\\}|[)\]])\s*", part)
        if match is None:
            raise Unreadable(part)
        elements, depth = [""], 0
        for sign in match[2]:
            depth += (sign in "([{") - (sign in ")]}")
            if depth < 0:
                raise Unreadable(part)
            if sign == "," and not depth:
                elements.append("")
            else:
                elements[-1] += sign
        if re.search(r"\d,\d{3}(?!\d)", part):
            raise Unreadable(part)  # one number, or two?
        frame = match[1][-1] + match[3][-1]
        if ("{" in frame or "}" in frame) and frame != "{}":
            raise Unreadable(part)
        parts.append((frame, [element.strip() for element in elements]))
    return parts


# --- our opinion ---------------------------------------------------------------------------------------------------


def _points(mp: Any, variables: list[str], *, discrete: bool) -> list[dict[str, Any]]:
    if not variables:
        return [{}]
    return [
        {
            name: mp.mpf(3 + 2 * place + point) if discrete else mp.mpf(13 + 11 * place + 7 * point) / (5 + 2 * point)
            for place, name in enumerate(variables)
        }
        for point in range(_NUM_POINTS)
    ]


def _agreement(mp: Any, gold: Tree, answer: Tree) -> bool | None:
    """Whether both have the same values, to 40 digits, wherever we look; False only if they differ within 12 digits."""
    variables = sorted(names(gold))
    if set(variables) != names(answer):
        return None
    num_same = num_different = 0
    for at in _points(mp, variables, discrete=is_discrete(gold) or is_discrete(answer)):
        try:
            a, b = value(mp, gold, at), value(mp, answer, at)
        except (ArithmeticError, ValueError, mp.NoConvergence):
            continue
        largest = max(abs(a), abs(b))
        num_same += bool(abs(a - b) <= largest * mp.mpf(10) ** -_SAME)
        num_different += bool(abs(a - b) > largest * mp.mpf(10) ** -_DIFFERENT)
    needed = 3 if variables else 1
    if num_same >= needed and not num_different:
        return True
    return False if num_different >= needed and not num_same else None


# --- math-verify's opinion -----------------------------------------------------------------------------------------


def _math_verify() -> Same:
    """The comparison of two formulas that believes math-verify only with proof."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from math_verify import verify
    from mpmath.ctx_mp import MPContext
    from sympy import Expr, simplify

    mp = MPContext()
    mp.dps = _DIGITS
    config = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)

    def parsed(tree: Tree) -> Any:
        try:
            found = latex2sympy(latex(tree), is_real=True, normalization_config=None, conversion_config=config)
        except Exception as error:  # its grammar raises bare exceptions
            raise Unreadable("math-verify cannot read it") from error
        if not isinstance(found, Expr):
            raise Unreadable("math-verify takes it for something else than a value")
        return found

    def says_same(a: Any, b: Any) -> bool:
        return bool(verify(a, b, float_rounding=15, timeout_seconds=None))

    def is_same(gold: Tree, answer: Tree) -> bool | None:
        ours = _agreement(mp, gold, answer)
        if ours is None:
            return None
        a, b = parsed(gold), parsed(answer)
        theirs = {says_same(a, b), says_same(b, a)}
        if not ours:
            return False if theirs == {False} else None
        return True if theirs == {True} and simplify((a - b).doit()) == 0 else None

    return is_same
