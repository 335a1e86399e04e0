r"""Is this answer right? Extraction, one strict rule for each type of answer, and a verdict with the rule that decided.

Knows nothing of who wrote the response. Three values: what cannot be read or decided is unknown, never wrong.
No text is ever evaluated as code, no rule can hang, and every rule may run on any thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

from components.errors import DataError
from components.formulas import MAX_CHARS, TooComplex, Tree, Unreadable, normal_text, read
from components.identities import names, same, same_equation
from components.quantities import Quantity, read_quantity, same_quantity
from components.records import digest

VERIFIER_VERSION = 1  # raise it with every change of a rule: stored verdicts name the verifier that gave them
KINDS = ("choice", "integer", "number", "expression", "tuple", "interval", "set", "equation")


def _verifier_digest() -> str:
    try:
        mpmath = metadata.version("mpmath")
    except metadata.PackageNotFoundError:
        mpmath = "absent"
    return digest("verifier", VERIFIER_VERSION, {"mpmath": mpmath})


VERIFIER_DIGEST: str = _verifier_digest()
"""Names the rules and the libraries that a verdict depends on."""


@dataclass(frozen=True)
class Verdict:
    """Whether a response is right, and why we think so."""

    value: str
    """right | wrong | unknown"""
    rule: str
    """The kind of the answer if its rule decided; else truncated | no_answer | unreadable | too_complex | open"""
    answer: str | None
    """The answer as extracted; None if there is none."""


_TRUNCATED = Verdict("unknown", "truncated", None)
_NO_ANSWER = Verdict("unknown", "no_answer", None)


def grade(response_text: str, gold: str, kind: str, *, finish_reason: str = "stop") -> Verdict:
    """The verdict on one response.

    Args:
        gold: the known answer.
        kind: what `answer_type(gold)` said.
        finish_reason: `length` is always unknown: nobody knows what the text was about to say.
    Raises:
        DataError: `kind` is unknown, or `gold` is no answer of that kind.
    """
    if finish_reason == "length":
        return _TRUNCATED
    answer = extract_answer(response_text)
    if answer is None:
        return _NO_ANSWER
    if len(answer) > MAX_CHARS:
        return Verdict("unknown", "unreadable", answer)
    return _judged(answer, gold, kind)


# --- which part of a response is the answer ------------------------------------------------------------------------

_STATED = re.compile(r"(?i:answer)\**\s*(?:is\b\s*[:：]?|[:：=＝])[ \t]*([^\n]+)")
_NEXT_SENTENCE = re.compile(r"(?<=[\w)}\]$°%*])\.\s+[A-Z]")


def extract_answer(text: str) -> str | None:
    r"""The answer that a response states: its last \boxed{..}, else <answer>..</answer>, else its last "answer is ..".

    Never the whole text, never just its last number. What a model says inside <think> does not count.
    """
    if "<think>" in text:
        if "</think>" not in text:
            return None
        text = text[text.rfind("</think>") + len("</think>") :]
    start = text.rfind("\\boxed")
    if start >= 0:
        return _braced(text, start + len("\\boxed"))
    end = text.rfind("</answer>")
    if end >= 0:
        start = text.rfind("<answer>", 0, end)
        return (_trimmed(text[start + len("<answer>") : end]) or None) if start >= 0 else None
    end = len(text)
    while end > 0:
        end = max(text.rfind("answer", 0, end), text.rfind("Answer", 0, end), text.rfind("ANSWER", 0, end))
        if end < 0:
            return None
        match = _STATED.match(text, end)
        if match:
            stated = match[1]
            after = _NEXT_SENTENCE.search(stated)
            return _trimmed(stated[: after.start()] if after else stated) or None
    return None


def _braced(text: str, start: int) -> str | None:
    """What the brace group at `start` holds; None if it is empty or never closed."""
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text) or text[start] != "{":
        return None
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "{" and text[at - 1] != "\\":
            depth += 1
        elif text[at] == "}" and text[at - 1] != "\\":
            depth -= 1
            if not depth:
                return _trimmed(text[start + 1 : at]) or None
    return None


def _trimmed(text: str) -> str:
    return text.strip().strip("*").rstrip(" .。;；,，").strip()


# --- which rule will compare answers with this gold answer ---------------------------------------------------------

_ANY_VALUE = re.compile(
    r"(?i)not unique|any (?:value|answer|number|one)|acceptable|choose (?:any )?one|answers? (?:may|can|will)? ?var"
    r"|for example|or fill in|or equivalent|open[- ]ended|e\.g\.|答案不唯一"
)
_LETTER = re.compile(r"\(?([A-H])\)?[.:]?")
_OPTION = re.compile(r"(?:option|choice|answer)?\s*\(?([A-Ha-h])\)?[.:]?|\(?([A-H])(?:\)|[.:])\s*\S.*", re.DOTALL)
_OTHER_OPTION = re.compile(r"(?<![A-Za-z])[B-H](?![A-Za-z'])|\([A-H]\)")
_LISTED = re.compile(r"^\s*\(\d\)\s*[^\s,)]|[①②③④⑤⑥]|^\s*\d\.(?:\d\.)+\s*$|^\s*\d\.\s*\d\.(?:\s*\d\.)*\s*$|^\(\d\)$")
_NUMBERS = re.compile(r"[-−]?[\d.]+(?:\s+[-−]?[\d.]+)+")
_ALTERNATIVES = re.compile(r"(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|\\text\s*\{\s*(?:or|and)\s*\}|或|和")
_AND_OR = re.compile(r",|\\text\s*\{\s*(?:or|and)\s*\}| or | and ")
_WORD = re.compile(r"(?<![A-Za-z\\])(?!and|\d)[A-Za-z]?[a-z]{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")


@lru_cache(maxsize=65536)
def answer_type(answer: str) -> tuple[str | None, str]:
    """The rule that can compare answers with this gold answer, or None and the reason.

    Returns: (one of KINDS, "") or (None, "empty" | "any value accepted" | "several parts" | "several answers" | "prose" |
        "no rule reads it").
    """
    if not answer.strip():
        return None, "empty"
    if _ANY_VALUE.search(answer):
        return None, "any value accepted"
    if _is_several(answer):
        return None, "several parts"
    text = _clean(answer)
    if not text:
        return None, "empty"
    kind = _kind(text)
    if kind and _judged(answer, answer, kind).value == "right":
        return kind, ""
    plain = _COMMAND.sub(" ", text)
    words = _WORD.findall(plain)
    if len(words) > 3:
        return None, "prose"
    if _ALTERNATIVES.search(plain):
        return None, "several answers"
    if _top_level(text, ",") > 1 or _top_level(text, ";") > 1:
        return None, "several parts"
    return None, "prose" if words else "no rule reads it"


def _is_several(answer: str) -> bool:
    if (
        len([line for line in answer.splitlines() if line.strip()]) > 1
        or _LISTED.search(answer)
        or _NUMBERS.fullmatch(answer.strip())
    ):
        return True
    parts = re.split(r"\$+", answer)  # outside, inside, outside, ...
    between = parts[2:-1:2] if len(parts) % 2 else []
    return any(not part.strip(" \t,;，；、.") for part in between)


def _kind(text: str) -> str | None:
    if _LETTER.fullmatch(text):
        return "choice"
    quantity = read_quantity(text)
    if quantity is not None:
        is_plain = re.fullmatch(r"[+-]?\d+", text) is not None
        return "integer" if is_plain else "number"
    if text.count("=") == 1:
        return "equation"
    structure = _structure(text)
    return structure[0] if structure else "expression"


def _clean(text: str) -> str:
    """`text` without mathematics delimiters, emphasis, a closing full stop and an outer box, in normal form."""
    text = text.strip().strip("*").strip()
    if text.lstrip("$ ").startswith("\\boxed"):
        text = _braced(text, text.find("\\boxed") + len("\\boxed")) or text
    for sign, unit in (("\\$", "dollars"), ("¥", "yuan"), ("￥", "yuan"), ("€", "euros"), ("£", "GBP")):
        if text.lstrip("$ ").startswith(sign):
            text = text.replace(sign, "", 1) + rf" \text{{{unit}}}"
    text = re.sub(r"(?<=[^\s$])\s*\$\s*([A-Za-z][A-Za-z ]*)[.\s]*$", r"$ \\text{\1}", text)
    if "$" not in text and "\\" not in text:  # in plain words, `5 m` is no product
        text = re.sub(r"(?<=\d)\s+([gLmst])[.\s]*$", r"\\text{\1}", text)
    text = re.sub(r"\\[()\[\]]", " ", text).replace("$", " ")
    text = re.sub(r"(?i)(?<=[\d}])\s*\{?textdegree\}?", r"\\degree ", normal_text(text))
    text = re.sub(r"(?i)(?<=[\d}\s])\s*degrees?$", r"\\degree", text.rstrip(" .;,:。"))
    return re.sub(r"\s+", " ", text.removeprefix(r"\approx")).strip(" .;,:。")


# --- the rules -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=65536)
def _judged(answer: str, gold: str, kind: str) -> Verdict:
    rule = _RULES.get(kind)
    if rule is None:
        raise DataError("grading", f"no rule named {kind!r}", f"known: {', '.join(KINDS)}")
    text = _clean(answer)
    try:
        is_same = rule(_clean(gold), text) if text else None
    except TooComplex:
        return Verdict("unknown", "too_complex", answer)
    except Unreadable:
        return Verdict("unknown", "unreadable", answer)
    if is_same is None:
        return Verdict("unknown", "open", answer)
    return Verdict("right" if is_same else "wrong", kind, answer)


def _same_choice(gold: str, answer: str) -> bool:
    wanted = _LETTER.fullmatch(gold)
    if wanted is None:
        raise DataError("grading", f"{gold!r} is no choice", "give the answer type that answer_type() names")
    text = re.sub(r"^\\(?:text|mathrm|mathbf|bf|rm)\s*\{(.*)\}$", r"\1", answer).strip()
    match = _OPTION.fullmatch(text)
    if match is None or (match[2] and _OTHER_OPTION.search(text, match.end(2))):
        raise Unreadable(text)
    return bool((match[1] or match[2]).upper() == wanted[1])


def _same_number(gold: str, answer: str) -> bool | None:
    wanted = _quantity(gold)
    value = _right_side(answer)
    found = read_quantity(value)
    if found is not None:
        return same_quantity(wanted, found)
    tree = read(value)
    if names(tree):
        if names(tree) <= set("mghstL"):
            raise Unreadable(f"{value!r}: a unit, or a variable?")
        return False
    if wanted.unit == "degree" or wanted.is_percent:
        raise Unreadable(f"{value!r} beside {gold!r}")
    return same(("num", wanted.value), tree)


def _same_expression(gold: str, answer: str) -> bool | None:
    return _same_value(gold, _right_side(answer))


def _same_value(gold: str, answer: str) -> bool | None:
    """Whether two texts name the same number or formula."""
    a, b = read_quantity(gold), read_quantity(answer)
    if a is not None and b is not None:
        return same_quantity(a, b)
    (gold, unit_a), (answer, unit_b) = _without_unit(gold), _without_unit(answer)
    if unit_a and unit_b and unit_a != unit_b:
        raise Unreadable(f"{unit_a} beside {unit_b}")
    first = same(read(gold), read(answer))
    if first is False and same(read(gold, segments=False), read(answer, segments=False)):
        return None  # AB and A * B: which was meant?
    return first


def _same_equation(gold: str, answer: str) -> bool | None:
    left, right = _sides(gold)
    if "=" not in answer:
        if left[0] != "name":
            raise Unreadable(answer)
        return same(right, read(answer))
    return same_equation((left, right), _sides(answer))


def _same_structure(gold: str, answer: str) -> bool | None:
    wanted = _structure(gold)
    if wanted is None:
        raise DataError("grading", f"{gold!r} is no tuple, interval or set", "give the answer type that answer_type() names")
    found = _structure(answer)
    if found is None and wanted[0] == "set":  # x = 1 or x = 2
        found = "set", [("{", [re.sub(r"^[a-z]\s*=\s*", "", part.strip()) for part in _AND_OR.split(answer)], "}")]
    if found is None:
        raise Unreadable(answer)
    if wanted[0] == "set":
        return _same_in_any_order(wanted[1][0][1], found[1][0][1]) if found[0] == "set" else None
    if found[0] == "set":
        return None
    if [part[0] + part[2] for part in wanted[1]] != [part[0] + part[2] for part in found[1]]:
        return False
    golds = [text for part in wanted[1] for text in part[1]]
    answers = [text for part in found[1] for text in part[1]]
    return len(golds) == len(answers) and _all_same(golds, answers)


def _all_same(golds: list[str], answers: list[str]) -> bool | None:
    results = [_same_end(gold, answer) for gold, answer in zip(golds, answers, strict=True)]
    return False if False in results else (None if None in results else True)


def _same_in_any_order(golds: list[str], answers: list[str]) -> bool | None:
    if len(golds) != len(answers):
        return False if all(_same_end(a, b) is False for i, a in enumerate(answers) for b in answers[:i]) else None
    left = list(answers)
    is_open = False
    for gold in golds:
        results = [_same_end(gold, answer) for answer in left]
        if True in results:
            left.pop(results.index(True))
        elif None in results:
            is_open = True
        else:
            return False
    return None if is_open else True


def _same_end(gold: str, answer: str) -> bool | None:
    ends = [re.fullmatch(r"([+-]?)\s*\\infty", text.strip()) for text in (gold, answer)]
    if ends[0] or ends[1]:
        return bool(ends[0] and ends[1] and (ends[0][1] or "+") == (ends[1][1] or "+"))
    return _same_value(gold.strip(), answer.strip())


_RULES = {
    "choice": _same_choice,
    "integer": _same_number,
    "number": _same_number,
    "expression": _same_expression,
    "tuple": _same_structure,
    "interval": _same_structure,
    "set": _same_structure,
    "equation": _same_equation,
}


# --- reading -------------------------------------------------------------------------------------------------------

_FRAMED = re.compile(r"(\\\{|[(\[])(.*?)(\\\}|[)\]])", re.DOTALL)
_TRAILING_UNIT = re.compile(
    r"(?<=[^\s\\])\s*(?:\\(?:text|mathrm|unit|mbox)\s*\{\s*[a-zμ]{1,2}\s*\}|(?<![A-Za-z\\])(?:cm|mm|km|dm))(?:\^\s*\{?[23]\}?)?$"
)
_NAMED = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z∠()|'+\- ]|\{|\})+")


def _quantity(gold: str) -> Quantity:
    quantity = read_quantity(gold)
    if quantity is None:
        raise DataError("grading", f"{gold!r} is no number", "give the answer type that answer_type() names")
    return quantity


def _right_side(answer: str) -> str:
    """`x = 8`, `S_{ABC} = 4 + 4 = 8`, `3 + 5 = 8` -> `8`; but `5x = 5` stays, it is no statement of a value."""
    parts = _split(answer, "=")
    if len(parts) == 1:
        return answer
    head = re.sub(r"_\s*(?:\{[^{}]*\}|\w)|\^\s*(?:\{\d\}|\d)|\\angle\s*\d", "", parts[0])
    if not _NAMED.fullmatch(head) and read_quantity(parts[0].strip()) is None:
        raise Unreadable(answer)
    for part in parts[1:-1]:  # "a = 3, b = 8" states two values
        if read_quantity(part.strip()) is None:
            read(_without_unit(part.strip())[0])
    return parts[-1].strip()


def _without_unit(text: str) -> tuple[str, str]:
    r"""`4\sqrt{3}\text{ cm}` -> (`4\sqrt{3}`, `cm`): a formula, and the unit behind it or ""."""
    match = _TRAILING_UNIT.search(text)
    return (text[: match.start()], re.sub(r"\\[a-z]+|[\s{}^]", "", match.group())) if match else (text, "")


def _sides(text: str) -> tuple[Tree, Tree]:
    parts = _split(text, "=")
    if len(parts) != 2:
        raise Unreadable(text)
    left = re.sub(r"^\s*[fghFG]\s*\(\s*x\s*\)\s*$", "y", parts[0])
    return read(left), read(parts[1])


def _structure(text: str) -> tuple[str, list[tuple[str, list[str], str]]] | None:
    """(kind, framed parts) of a tuple, an interval, a union of intervals or a set."""
    text = re.sub(r"^[A-Z]\w?'?\s*(?=\()|^[A-Za-z]\w?'?\s*=\s*(?=\()|^[A-Za-z]\s*\\in\s*", "", text)  # A(3, 4), x in [0, 1)
    parts = []
    for piece in re.split(r"\\cup", text):
        match = _FRAMED.fullmatch(piece.strip())
        if match is None or _top_level(match[2], ",") < 2 or not _closes_at_end(piece.strip()):
            return None
        parts.append((match[1].strip("\\"), _split(match[2], ","), match[3].strip("\\")))
    opening, inside, closing = parts[0]
    if opening == "{":
        return ("set", parts) if closing == "}" and len(parts) == 1 else None
    if any(part[0] == "{" or part[2] == "}" for part in parts):
        return None
    is_interval = len(parts) > 1 or opening == "[" or closing == "]" or any("infty" in end for end in inside)
    if not is_interval:
        return "tuple", parts
    return ("interval", parts) if all(len(part[1]) == 2 for part in parts) else None


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens `text` is the one that closes it."""
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if not depth and sign in ")]}" and at < len(text) - 1:
            return False
    return depth == 0


def _split(text: str, separator: str) -> list[str]:
    """`text` cut at the separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == separator and depth <= 0 and text[max(0, at - 1)] not in "<>!":
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _top_level(text: str, separator: str) -> int:
    return len(_split(text, separator))
