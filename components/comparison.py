"""Are two texts the same answer? Numbers with units, formulas, equations, lists, intervals, matrices, .., each by its rule.

Works on texts in normal form (`clean`); knows nothing of options, verdicts or responses. True, False, or None where it
stays open; what cannot be read is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from components.extraction import braced
from components.formulas import TooComplex, Tree, Unreadable, normal_text, read
from components.identities import approximation, names, same, same_equation
from components.quantities import Quantity, known_unit, read_quantity, same_quantity
from components.structures import Structure, read_structure, split


class UnitOpen(Unreadable):
    """The numbers may agree; what they count, or the base they are written in, cannot be compared."""


class NoSuchAnswer(ValueError):
    """The gold text is no answer of the kind it is said to be."""


@dataclass(frozen=True)
class Closeness:
    """How near a number must be to the gold number, and what it counts."""

    precision: int | None = None
    """Decimals to which both are rounded."""
    tolerance: float | None = None
    """Largest absolute difference."""
    unit: str | None = None
    """What the question asks for, where the gold text does not state it; `%` for a percentage."""


EXACTLY = Closeness()


# --- normal form ---------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """`text` without mathematics delimiters, emphasis, a closing full stop and an outer box, in normal form."""
    text = text.strip().strip("*").strip()
    if text.lstrip("$ ").startswith("\\boxed"):
        text = braced(text, text.find("\\boxed") + len("\\boxed")) or text
    if re.fullmatch(r"\$\s*[\d.,]*\d(?:\s+(?:thousand|million|billion|trillion))?[.\s]*", text):  # it never closes: money
        text = f"\\{text}"
    for sign, unit in (("\\$", "dollars"), ("¥", "yuan"), ("￥", "yuan"), ("€", "euros"), ("£", "GBP")):
        if text.lstrip("$ ").startswith(sign):
            text = text.replace(sign, "", 1) + rf" \text{{{unit}}}"
    text = re.sub(r"(?<=[^\s$])\s*\$\s*([A-Za-z][A-Za-z ]*)[.\s]*$", r"$ \\text{\1}", text)
    if match := _CHINESE_UNIT.search(text):
        text = f"{text[: match.start()]} \\text{{{_CHINESE_UNITS[match[2]]}{_POWERS[match[1] or '']}}}"
    if "$" not in text and "\\" not in text:  # in plain words, `5 m` is no product
        text = re.sub(r"(?<=\d)\s+([gLmst](?:\^[23]|[²³])?)[.\s]*$", r"\\text{\1}", text)
    if "\\begin" not in text:
        text = re.sub(r"\\[()\[\]]", " ", text)
    text = text.replace("\\$", " ").replace("$", " ")
    text = re.sub(r"\\text\s*\{\s*([-+]?[\d.,]*\d)\s*([A-Za-z .]*)\}", r"\1\\text{\2}", text).replace(r"\text{}", "")
    text = re.sub(r"(?i)(?<=[\d}])\s*\{?textdegree\}?", r"\\degree ", normal_text(text))
    text = re.sub(r"(?i)(?<=[\d}\s])\s*degrees?$", r"\\degree", text.rstrip(" .;,:。"))
    text = re.sub(r"^\\text\s*\{([^{}]*)\}$", r"\1", text.strip())
    text = re.sub(r"^(?i:negative|minus)\s+(?=\w)", "-", text)
    text = re.sub(r"(?<=\d)\.(?=\s*\\(?:mathrm|text)\b)", "", text)
    text = re.sub(r"(?<=[\d})i])\{\s*([A-Za-z ]{2,})\s*\}$", r"\\text{\1}", text)  # 8\sqrt{3}{squareinches}
    text = re.sub(r"\s+", " ", text.removeprefix(r"\approx")).rstrip(" .;,:。").lstrip(" ;,:。")
    return _LEAD.sub("", text)


_CHINESE_UNITS = {
    "毫米": "mm", "厘米": "cm", "分米": "dm", "千米": "km", "公里": "km", "米": "m",
    "千克": "kg", "公斤": "kg", "克": "g", "元": "yuan", "小时": "h", "分钟": "min", "秒": "s",
}  # fmt: skip
_POWERS = {"": "", "平方": "^2", "立方": "^3"}
_CHINESE_UNIT = re.compile(rf"(?<=[\d}})$])\s*(平方|立方)?({'|'.join(_CHINESE_UNITS)})\$?[.。\s]*$")
_LEAD = re.compile(r"^(?i:(?:is|are|approximately|about|roughly|exactly|equal to|equals|around)\s+|[=≈:]\s*)+")


def unwrapped(text: str) -> str:
    r"""`text` without \text{..} and closing punctuation."""
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf|bf|rm)\s*\{([^{}]*)\}", r"\1", text).strip(" .,")


# --- numbers and formulas ------------------------------------------------------------------------------------------


def _equal_for(how: Closeness) -> Callable[[Fraction, Fraction], bool]:
    """How this gold answer's numbers are compared: exactly, rounded to its precision, or within its tolerance."""
    if how.precision is not None:
        digits = how.precision
        return lambda a, b: _rounded(a, digits) == _rounded(b, digits)
    if how.tolerance is not None:
        distance = Fraction(str(how.tolerance))
        return lambda a, b: abs(a - b) <= distance
    return lambda a, b: a == b


def _rounded(value: Fraction, digits: int) -> float | Fraction:
    return round(float(value), digits) if abs(value) < 10**15 else value


def _same_quantities(gold: Quantity, other: Quantity, how: Closeness) -> bool:
    if how.unit and not gold.unit and not gold.is_percent:
        is_percent = how.unit.strip().lower().strip("\\") in ("%", "percent")
        gold = replace(gold, is_percent=True) if is_percent else replace(gold, unit=_plain_unit(how.unit))
    found = same_quantity(gold, other, _equal_for(how))
    if found is None:
        raise UnitOpen(f"{other} beside {gold}")
    return found


def _plain_unit(unit: str) -> str:
    unit = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°", "degree", unwrapped(unit.replace("$", "")))
    return re.sub(r"[\\{}\s]+$|^[\\{}\s]+", "", unit)


def same_number(gold: str, answer: str, how: Closeness = EXACTLY) -> bool | None:
    """Whether an answer is the gold number, with or without its unit; of a value beside its rounding, either may be."""
    if (stated := _value_and_rounding(answer)) is not None:
        return _same_as_either(gold, stated, lambda text: same_number(gold, text, how))
    wanted = read_quantity(gold)
    if wanted is None:
        wanted = read_quantity(_right_side(gold))
        if wanted is None:
            raise NoSuchAnswer
    if (listed := _is_other_list(gold, answer, how)) is not None:
        return listed
    value = _in_base_ten(_right_side(answer))
    found = read_quantity(value)
    if found is not None:
        return _same_quantities(wanted, found, how)
    if read_structure(value) is not None and _based_or_time(value):
        raise UnitOpen(f"{value!r} beside {gold!r}")
    value, unit = _without_unit(value)
    tree = read(value)
    if names(tree):
        if names(tree) <= set("mghstLN"):
            raise Unreadable(f"{value!r}: a unit, or a variable?")
        return False
    if wanted.is_percent:
        raise UnitOpen(f"{value!r} beside {gold!r}")
    if wanted.unit == "degree":
        return _same_angle(wanted.value, tree, value)
    if unit and wanted.unit and known_unit(unit) != known_unit(wanted.unit):
        raise UnitOpen(f"{unit} beside {wanted.unit}")
    return _same_trees(("num", wanted.value), tree, how)


def _in_base_ten(text: str) -> str:
    r"""`52_{10}` -> `52`."""
    structure = read_structure(text) if text[:1].isdigit() or text[:1] == "(" else None
    return (
        str(structure.parts[0]) if structure is not None and structure.kind == "base" and structure.parts[1] == 10 else text
    )


def _based_or_time(text: str) -> bool:
    structure = read_structure(text)
    return structure is not None and structure.kind in ("base", "time", "ratio")


def _same_angle(degrees: Fraction, tree: Tree, text: str) -> bool | None:
    if r"\pi" not in text and r"\degree" not in text:
        return same(("num", degrees), tree)
    return same(("mul", ("num", degrees), ("div", ("pi",), ("num", Fraction(180)))), tree)


def _same_trees(gold: Tree, other: Tree, how: Closeness) -> bool | None:
    """Whether two formulas are the same; within precision or tolerance if they are numbers."""
    if (how.precision is not None or how.tolerance is not None) and not names(gold) and not names(other):
        a, b = approximation(gold), approximation(other)
        return None if a is None or b is None else _equal_for(how)(a, b)
    return same(gold, other)


def _is_other_list(gold: str, answer: str, how: Closeness) -> bool | None:
    """False for several different values where one was asked for; None if the answer is no such list."""
    if "," not in answer and r"\pm" not in answer and not re.search(r"\b(?:or|and)\b|或|和", answer):
        return None
    if re.search(r"\d\s+and\s+\d+/\d", answer):
        raise Unreadable(f"{answer!r}: two values, or a mixed number?")
    structure = None if read_quantity(answer) is not None else read_structure(answer)
    if structure is None or structure.kind != "set" or structure.names:
        return None
    values = structure.parts
    if len(values) > 8 or all(_same_value(values[0], value, EXACTLY) for value in values[1:]):
        raise Unreadable(answer)
    for value in values:
        if read_quantity(value) is None:
            read(value)
    return False


def same_expression(gold: str, answer: str, how: Closeness = EXACTLY) -> bool | None:
    """Whether an answer is the gold formula, or states it as a right side; of a value beside its rounding, either may be."""
    if (given := _value_and_rounding(gold)) is not None:
        results = (same_expression(given.value, answer, how), same_expression(given.decimal, answer, how))
        return True if True in results else None if None in results else False
    if (stated := _value_and_rounding(answer)) is not None:
        return _same_as_either(gold, stated, lambda text: same_expression(gold, text, how))
    if (listed := _is_other_list(gold, answer, how)) is not None:
        return listed
    return _same_value(_right_side(gold), _right_side(answer), how)


def _same_value(gold: str, answer: str, how: Closeness) -> bool | None:
    """Whether two texts name the same number or formula."""
    a, b = read_quantity(gold), read_quantity(answer)
    if a is not None and b is not None:
        return _same_quantities(a, b, how)
    if a is not None and a.unit == "degree" and (r"\pi" in answer):
        return _same_angle(a.value, read(answer), answer)
    if _based_or_time(answer) and not _based_or_time(gold):
        raise UnitOpen(f"{answer!r} beside {gold!r}")
    (gold, unit_a), (answer, unit_b) = _without_unit(gold), _without_unit(answer)
    if unit_a and unit_b and unit_a != unit_b and (known_unit(unit_a) is None or known_unit(unit_a) != known_unit(unit_b)):
        raise UnitOpen(f"{unit_a} beside {unit_b}")
    first = _same_trees(read(gold), read(answer), how)
    if first is False and same(read(gold, segments=False), read(answer, segments=False)):
        return None  # AB and A * B: which was meant?
    return first


def same_as_equation(gold: str, answer: str, how: Closeness = EXACTLY) -> bool | None:
    """Whether an answer is the gold equation, or the right side of one for a single name."""
    left, right = _sides(gold)
    if "=" not in answer:
        if left[0] != "name":
            raise Unreadable(answer)
        value = split(gold, "=")[1].strip()
        return same_expression(value, answer, how) if _ABOUT.search(answer) else _same_value(value, answer, how)
    if left[0] == "name" and _ABOUT.search(answer) and _halves(gold)[0] == _halves(answer)[0]:
        return same_expression(split(gold, "=")[1].strip(), answer, how)
    return same_equation((left, right), _sides(answer))


# --- a value and its rounding --------------------------------------------------------------------------------------

_ABOUT = re.compile(
    r"\s*\(?\s*(?:\\(?:approx(?:eq)?|simeq|doteq)(?![A-Za-z])|,?\s*(?:\\(?:text|mathrm)\s*\{\s*)?,?\s*"
    r"(?:\b(?:or|which\s+is|that\s+is|i\.e\.,?)\s+)?\b(?:approximately|about|roughly)\b(?:\s+equal\s+to\b)?\s*\}?)\s*"
)
_DECIMAL = re.compile(
    r"(?P<number>[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.(?P<places>\d+))?)(?<=\d)"
    r"(?P<unit>\s*(?:\\?%|\\degree|\\(?:text|mathrm|mbox|unit|rm)\s*\{[^=]*|[A-Za-z]{2}[^=\\]*))?"
)


@dataclass(frozen=True)
class _Rounded:
    """A value and the decimal that it rounds to, as written."""

    value: str
    decimal: str
    worth: Fraction
    """The value's, to 30 digits, in the decimal's unit."""


def _value_and_rounding(text: str) -> _Rounded | None:
    r"""What `2\sqrt{3} \approx 3.46`, or `2\sqrt{3} = 3.46`, states; None if nothing is rounded there.

    Raises:
        Unreadable: the decimal is not that value rounded to as many places as it is given, or it is not clear what is which.
    """
    about = list(_ABOUT.finditer(text))
    if len(about) == 1 and (value := text[: about[0].start()].strip()):
        decimal = text[about[0].end() :].strip()
        if about[0].group().lstrip().startswith("("):
            if not decimal.endswith(")"):
                raise Unreadable(text)
            decimal = decimal[:-1].strip()
        if (inner := _value_and_rounding(value)) is not None:  # 2\sqrt{3} = 3.464 \approx 3.46
            value = inner.value
        return _rounding(_right_side(value), decimal)
    if len(about) > 1:
        raise Unreadable(f"{text!r}: rounded twice")
    sides = [side.strip() for side in split(text, "=")]
    if (
        about
        or len(sides) < 2
        or "." not in sides[-1]
        or _DECIMAL.fullmatch(sides[-1]) is None
        or _DECIMAL.fullmatch(sides[-2])
    ):
        return None
    try:
        found = _rounding(sides[-2], sides[-1])
    except Unreadable:
        return None  # 3 + 5 = 9.0 states 9
    return None if found.worth == _worth(found.decimal)[0] else found


def _rounding(value: str, decimal: str) -> _Rounded:
    if _DECIMAL.fullmatch(decimal) is None:
        value, decimal = decimal, value  # 3.46 \approx 2\sqrt{3}
    written = _DECIMAL.fullmatch(decimal)
    if written is None:
        raise Unreadable(f"{value!r} beside {decimal!r}: which is the rounding?")
    rounded, unit = _worth(decimal)
    worth, own = _worth(value)
    if unit and not own and unit != "%":
        if unit == "degree" and re.search(r"\\pi|arc|\^\s*\{?\s*-\s*1", value):
            worth = worth * 180 / _PI
        else:
            value += written["unit"] if written["unit"].lstrip().startswith("\\") else rf"\text{{{written['unit']}}}"
    elif own not in ("", "%", unit):
        raise UnitOpen(f"{value!r} beside {decimal!r}")
    step = Fraction(1, 10 ** len(written["places"] or "")) / (100 if unit == "%" else 1)
    if abs(worth - rounded) > step / 2:
        raise Unreadable(f"{decimal!r} is not {value!r} rounded")
    return _Rounded(value, decimal, worth)


_PI = Fraction("3.14159265358979323846264338328")


def _worth(text: str) -> tuple[Fraction, str]:
    """(The value of a text to 30 digits, its unit): 5 % is worth 0.05."""
    quantity = read_quantity(text)
    if quantity is not None:
        return (quantity.value / 100, "%") if quantity.is_percent else (quantity.value, quantity.unit)
    text, unit = _without_unit(text)
    worth = approximation(read(text))
    if worth is None:
        raise Unreadable(text)
    return worth, unit


_MIN_DIGITS = 3


def _same_as_either(gold: str, stated: _Rounded, is_same: Callable[[str], bool | None]) -> bool | None:
    """Whether the value, or its rounding, is the gold answer: a rounding only for a decimal that is as precise.

    3.46 is right for 3.46 if the value rounds to it. What rounds to 3 need not be the integer 3, so that stays open.
    """
    first, second = is_same(stated.value), is_same(stated.decimal)
    if first:
        return True
    written = _DECIMAL.fullmatch(_right_side(gold))
    if written is None:
        return None if second or first is None else False
    worth, unit = _worth(_right_side(gold))
    half = Fraction(1, 2 * 10 ** len(written["places"] or "")) / (100 if unit == "%" else 1)
    is_its_rounding = abs(worth - stated.worth) <= half
    if second and is_its_rounding and (written["places"] or len(re.sub(r"\D", "", written["number"])) >= _MIN_DIGITS):
        return True
    return None if second or is_its_rounding or first is None or second is None else False


# --- several values ------------------------------------------------------------------------------------------------


def same_structure(gold: str, answer: str, how: Closeness = EXACTLY, *, kind: str) -> bool | None:
    """Whether an answer is the gold structure of this kind: tuple, interval, set, ratio, time, matrix or base."""
    wanted = read_structure(gold)
    if wanted is None or wanted.kind != kind:
        raise NoSuchAnswer
    found = read_structure(answer) or read_structure(_right_side(answer))
    return _structure_rule(wanted, found, answer, how)


def _structure_rule(wanted: Structure, found: Structure | None, answer: str, how: Closeness) -> bool | None:
    kind = wanted.kind
    if kind == "interval" or (kind == "tuple" and found is not None and found.kind == "interval"):
        return _same_intervals(wanted, found, answer, how)
    if kind == "set":
        return _same_sets(wanted, found, answer, how)
    if kind == "ratio":
        return _same_ratios(wanted, found, answer, how)
    if found is not None and found.kind == "matrix" and kind in ("tuple", "matrix"):
        return _same_matrices(wanted, found, how)
    if kind == "matrix" and found is not None and found.kind == "tuple" and 1 in (len(wanted.parts), len(wanted.parts[0])):
        return _all_same([cell for row in wanted.parts for cell in row], found.parts, how)
    if kind == "tuple":
        return _same_tuples(wanted, found, answer, how)
    if kind == "time" and found is not None and found.kind == "time":
        return _same_times(wanted, found)
    if kind == "base":
        return _same_in_base(wanted, found, answer)
    raise Unreadable(answer)


_EITHER = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])|或")


def _same_tuples(wanted: Structure, found: Structure | None, answer: str, how: Closeness) -> bool | None:
    if found is None:
        raise Unreadable(answer)
    if found.kind == "tuple":
        return _all_same(wanted.parts, found.parts, how)
    if (
        found.kind == "set" and found.names and not _EITHER.search(answer) and list(found.names) == sorted(found.names)
    ):  # x = 1, y = 2
        return True if _all_same(wanted.parts, found.parts, how) else None
    return None


def _same_intervals(wanted: Structure, found: Structure | None, answer: str, how: Closeness) -> bool | None:
    golds = wanted.parts if wanted.kind == "interval" else (("(", *wanted.parts, ")"),)
    if found is None or found.kind not in ("interval", "tuple"):
        raise Unreadable(answer)
    parts = found.parts if found.kind == "interval" else (("(", *found.parts, ")"),)
    if any(len(part) != 4 for part in (*golds, *parts)):
        return None
    if wanted.name and found.name and wanted.name != found.name:
        return None
    if len(golds) != len(parts):
        return False if len(golds) == 1 or len(parts) == 1 else None

    def same_interval(a: tuple[str, ...], b: tuple[str, ...]) -> bool | None:
        ends = _all_same(a[1:3], b[1:3], how)
        return False if (a[0], a[3]) != (b[0], b[3]) and ends is not None else ends

    return _matched(golds, parts, same_interval)


def _same_sets(wanted: Structure, found: Structure | None, answer: str, how: Closeness) -> bool | None:
    if found is not None and found.kind == "tuple" and wanted.is_bare:
        return True if _all_same(wanted.parts, found.parts, how) else None
    if found is not None and found.kind not in ("set", "interval"):
        return None
    if found is not None and found.kind == "interval":
        raise Unreadable(answer)
    if found is None and wanted.names:
        raise Unreadable(answer)
    if wanted.names and found is not None and found.names:
        if len(wanted.names) != len(found.names) or set(wanted.names) != set(found.names):
            return None
        by_name = dict(zip(found.names, found.parts, strict=True))
        return _all_same(wanted.parts, [by_name[name] for name in wanted.names], how)
    if wanted.names and found is not None:
        return True if _all_same(wanted.parts, found.parts, how) else None
    if found is not None and len({name[:1] for name in found.names}) > 1:  # a = 5, b = 3: each has its own
        return True if _all_same(wanted.parts, found.parts, how) else None
    return _in_any_order(wanted.parts, found.parts if found else (_right_side(answer),), how)


def _in_any_order(golds: Sequence[str], answers: Sequence[str], how: Closeness) -> bool | None:
    if max(len(golds), len(answers)) > 6 and any(read_quantity(text) is None for text in (*golds, *answers)):
        raise TooComplex("many formulas to compare with many")
    if len(golds) != len(answers):
        for text in answers:
            if read_quantity(text) is None and read_structure(text) is None:
                read(_without_unit(text)[0])  # prose is no value
        different = len(golds) < len(answers) or _all_different(golds, how)
        return False if different and (len(golds) > len(answers) or _all_different(answers, how)) else None
    return _matched(golds, answers, lambda a, b: _same_end(a, b, how))


def _all_different(values: Sequence[str], how: Closeness) -> bool:
    return all(_same_end(a, b, how) is False for at, a in enumerate(values) for b in values[:at])


def _matched(golds: Sequence[Any], answers: Sequence[Any], equal: Callable[[Any, Any], bool | None]) -> bool | None:
    """Whether each gold value has an answer of its own, in any order."""
    left = list(answers)
    is_open = False
    for gold in golds:
        results = [equal(gold, answer) for answer in left]
        if True in results:
            left.pop(results.index(True))
        elif None in results:
            is_open = True
        else:
            return False
    return None if is_open else True


def _same_ratios(wanted: Structure, found: Structure | None, answer: str, how: Closeness) -> bool | None:
    golds = [approximation(read(part)) for part in wanted.parts]
    if any(not gold for gold in golds):
        raise NoSuchAnswer
    if wanted.is_bare and (found is None or (found.is_bare and found.parts != wanted.parts)):
        raise Unreadable(answer)  # 20 to 40 is another range than 10 to 20
    if found is None and len(golds) == 2:
        return same(("div", read(wanted.parts[0]), read(wanted.parts[1])), read(_right_side(answer)))
    if found is None or found.kind not in ("ratio", "time"):
        raise Unreadable(answer)
    texts = found.parts if found.kind == "ratio" else split(answer, ":")
    if len(texts) != len(golds):
        return False
    first = [read(part) for part in wanted.parts]
    other = [read(part.strip()) for part in texts]
    return conjunction([same(("mul", first[0], b), ("mul", a, other[0])) for a, b in zip(first[1:], other[1:], strict=True)])


def _same_times(wanted: Structure, found: Structure) -> bool | None:
    (minutes, half), (other, other_half) = wanted.parts, found.parts
    exact = [
        value % 720 + 720 * (name == "pm") if name and value < 780 else value
        for value, name in ((minutes, half), (other, other_half))
    ]
    if half and other_half:
        return bool(exact[0] == exact[1])
    if half or other_half:
        return bool(exact[0] == exact[1] or (minutes == other))
    return bool(minutes == other)


def _same_in_base(wanted: Structure, found: Structure | None, answer: str) -> bool | None:
    digits, base = wanted.parts
    if found is not None and found.kind == "base":
        if found.parts[1] == base:
            return bool(found.parts[0] == digits)
        raise UnitOpen(f"base {found.parts[1]} beside base {base}")
    quantity = read_quantity(answer)
    if quantity is None:
        raise Unreadable(answer)
    raise UnitOpen(f"{answer!r} beside a number in base {base}")


def _same_matrices(wanted: Structure, found: Structure, how: Closeness) -> bool | None:
    if wanted.kind == "tuple":
        if 1 not in (len(found.parts), len(found.parts[0])):
            return False
        return _all_same(wanted.parts, [cell for row in found.parts for cell in row], how)
    if len(wanted.parts) != len(found.parts):
        return False
    rows = [_all_same(a, b, how) for a, b in zip(wanted.parts, found.parts, strict=True)]
    return conjunction(rows)


def _all_same(golds: Sequence[str], answers: Sequence[str], how: Closeness) -> bool | None:
    if len(golds) != len(answers):
        return False
    return conjunction([_same_end(gold, answer, how) for gold, answer in zip(golds, answers, strict=True)])


def conjunction(results: Sequence[bool | None]) -> bool | None:
    """False if one is false, else None if one is open, else True."""
    return False if False in results else (None if None in results else True)


def _same_end(gold: str, answer: str, how: Closeness) -> bool | None:
    ends = [re.fullmatch(r"([+-]?)\s*\\infty", text.strip()) for text in (gold, answer)]
    if ends[0] or ends[1]:
        return bool(ends[0] and ends[1] and (ends[0][1] or "+") == (ends[1][1] or "+"))
    return same_answers(gold.strip(), answer.strip(), how)


def same_answers(gold: str, answer: str, how: Closeness = EXACTLY) -> bool | None:
    """Whether two texts in normal form are the same answer, whatever their kind; None where that stays open."""
    try:
        wanted = None if read_quantity(gold) is not None else read_structure(gold)
        if wanted is not None:
            found = read_structure(answer)
            return _structure_rule(wanted, found, answer, how)
        if "=" in gold and "=" in answer:
            (left, right), (other_left, other_right) = _halves(gold), _halves(answer)
            if re.sub(r"[\s{}]", "", left) == re.sub(r"[\s{}]", "", other_left):
                return _same_value(right, other_right, how)
            return same_equation(_sides(gold), _sides(answer))
        if _ABOUT.search(gold) or _ABOUT.search(answer):
            return same_expression(gold, answer, how)
        return _same_value(_right_side(gold), _right_side(answer), how)
    except TooComplex:
        raise
    except Unreadable:
        return None


# --- reading -------------------------------------------------------------------------------------------------------

_UNIT_WORDS = "inches|inch|feet|foot|yards|meters|metres|centimeters|units|squareunits|squareinches|litres|liters|miles"
_UNIT_PHRASE = rf"(?:sq(?:uare)?\s*|cubic\s*)?(?:{_UNIT_WORDS}|cm|mm|km|dm)"
_TRAILING_UNIT = re.compile(
    rf"(?<=[^\s\\])\s*(?:\\(?:text|mathrm|unit|mbox|rm)\s*\{{\s*(?:[a-zμ]{{1,2}}|{_UNIT_PHRASE})\s*\}}"
    rf"|(?<![A-Za-z\\]){_UNIT_PHRASE})(?:\^\s*\{{?[23]\}}?)?$"
)
_NAMED = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z∠()|'+\- ]|\{|\})+")


def _right_side(answer: str) -> str:
    """`x = 8`, `S_{ABC} = 4 + 4 = 8`, `3 + 5 = 8` -> `8`; but `5x = 5` stays, it is no statement of a value."""
    parts = split(answer, "=")
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
    if not match:
        return text, ""
    unit = re.sub(r"\\[a-z]+|[{}]", "", match.group()).strip()
    unit = re.sub(r"^square(?=[a-z])", "square ", unit)
    if len(unit) < 3 and known_unit(unit) is None:  # 3 + 4\mathrm{i}
        return text, ""
    return text[: match.start()], "" if unit in ("units", "square units") else unit


def _halves(text: str) -> tuple[str, str]:
    left, _, right = text.partition("=")
    return left.strip(), right.strip()


def _sides(text: str) -> tuple[Tree, Tree]:
    parts = split(text, "=")
    if len(parts) != 2:
        raise Unreadable(text)
    left = re.sub(r"^\s*[fghFG]\s*\(\s*x\s*\)\s*$", "y", parts[0])
    return read(left), read(parts[1])
