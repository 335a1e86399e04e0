"""Reads a number with or without a unit, exactly, and compares two of them. Knows nothing of verdicts or responses."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from components.formulas import Unreadable, read
from components.identities import exact

_BASE: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, units in {
        "length": {
            "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100", "dm decimeter decimetre": "1/10",
            "m meter metre": "1", "km kilometer kilometre": "1000", "in inch inches": "127/5000", "ft foot feet": "381/1250",
            "yd yard": "1143/1250", "mi mile": "201168/125",
        },
        "length^2": {"ha hectare": "10000"},
        "length^3": {"mL ml milliliter millilitre": "1/1000000", "L l liter litre": "1/1000"},
        "mass": {"mg milligram": "1/1000000", "g gram": "1/1000", "kg kilogram": "1", "t ton tonne": "1000"},
        "time": {
            "ms millisecond": "1/1000", "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400",
            "week": "604800",
        },
        "month": {"month": "1", "year": "12"},
        "angle": {"degree deg": "1"},
        "celsius": {"°C": "1"},
        "yuan": {"yuan": "1"},
        "dollar": {"dollar": "1", "cent": "1/100"},
        "euro": {"euro": "1"},
        "pound sterling": {"GBP": "1"},
        "force": {"N newton": "1", "kN": "1000"},
        "energy": {"J joule": "1", "kJ": "1000"},
        "power": {"W watt": "1", "kW": "1000"},
        "voltage": {"V volt": "1"},
        "current": {"A ampere amp": "1"},
        "resistance": {"ohm": "1"},
        "length/time": {"mph": "1397/3125", "kmh kph": "5/18"},
        "consumption": {"mpg": "1"},
        "frequency": {"Hz hertz": "1"},
    }.items()
    for names, factor in units.items()
    for name in names.split()
}  # fmt: skip
_NOT_UNITS = re.findall(  # after a number they change it, or say that it is not one number
    r"\w+",
    "hundred thousand million billion trillion dozen score gross pair couple half halves third quarter fourth"
    " fifth sixth seventh eighth ninth tenth hundredth thousandth percent percentage permille fold factorial pi"
    " root sqrt minus plus over mod base or and to than more less at about not is are most least through until but"
    " if as x times radian rad gradian approximately remainder inclusive exclusive repeating recurring infinity"
    " inf bp bps one two three four five six seven eight nine ten lakh crore sin cos",
)
_WORDS = {
    word: number
    for number, word in enumerate(
        re.findall(
            r"\w+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
            " eighteen nineteen",
        )
    )
}
_WORDS |= {
    word: 10 * tens
    for tens, word in enumerate(re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety"), 2)
}
_PARTS = {
    name: n for n, name in enumerate(re.findall(r"\w+", "half third fourth fifth sixth seventh eighth ninth tenth"), 2)
}
_PARTS |= {"halve": 2, "quarter": 4}
_PART = re.compile(r"(?:\w*(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|teen|tie|hundred|thousand|lion)th|halve|th)s?")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER_WORD = "|".join([*_WORDS, *_SCALES])
_WORDED = re.compile(
    rf"(?i)^(?P<body>(?:{_NUMBER_WORD})(?:(?:\s+and\s+|[\s-]+)(?:{_NUMBER_WORD}))*)(?P<unit>\s+[A-Za-z]+(?:\s[A-Za-z]+)?)?$"
)
_WORDED_PART = re.compile(rf"(?i)(?P<sign>[+-]?)(?P<over>{'|'.join(_WORDS)})[\s-]+(?P<under>{'|'.join(_PARTS)})s?")
_SCALED = re.compile(
    r"^(?P<body>.+?)\s*(?:\\text\s*\{\s*)?(?P<scale>hundred|thousand|million|billion|trillion)(?:\s*\})?(?P<unit>\s.*)?$"
)
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]\d{1,3}|(?<=\.\d[eE])\d{1,3})")
_PERCENT = re.compile(r"^(?P<body>.+?)\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|percent)$")
_DEGREE = re.compile(r"^(?P<body>.+?)\s*\\degree(?P<scale>\s*(?:\\(?:text|mathrm)\s*\{\s*C\s*\}|C))?$")
_WRAPPER = r"\\(?:text|mathrm|mbox|unit|rm|operatorname)\s*\{[^{}]*\}"
_WRAPPED = re.compile(rf"^(?P<body>.+?)\s*(?P<unit>{_WRAPPER}(?:\s*(?:{_WRAPPER}|/|\\times|\^\s*\{{?-?\d\}}?))*)$")
_PLAIN = re.compile(r"^(?P<body>.*[\d)}\]])(?P<unit>\s*[A-Za-z]+(?:[ /]+[A-Za-z]+){0,3}(?:\s*\^\s*\{?[23]\}?)?)$")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_MIXED = re.compile(r"([+-]?\d+) +(\d+)/(\d+)")
_POWER = re.compile(r"\^\s*\{?(-?\d)\}?")


@dataclass(frozen=True)
class Quantity:
    """An exact number, and what it counts."""

    value: Fraction
    unit: str = ""  # as written; "" for none
    is_percent: bool = False


@lru_cache(maxsize=65536)
def read_quantity(text: str) -> Quantity | None:
    """The number in `text` (see `formulas.normal_text`), or None if it is not exactly one rational number.

    A single letter counts as a unit only inside \\text{..}: elsewhere it may be a variable.
    """
    if match := _PERCENT.match(text):
        value = _value(match["body"])
        return None if value is None else Quantity(value, is_percent=True)
    if match := _DEGREE.match(text):
        value = _value(match["body"])
        return None if value is None else Quantity(value, "°C" if match["scale"] else "degree")
    value = _value(text)
    if value is not None:
        return Quantity(value)
    if match := _WORDED.match(text):
        unit = (match["unit"] or "").strip()
        value = _worded(match["body"])
        return None if value is None or _is_no_unit(unit) else Quantity(value, unit)
    if match := _SCALED.match(text):
        inner = read_quantity(match["body"])
        if inner is None or inner.unit or inner.is_percent:
            return None
        unit = _flat(match["unit"] or "")
        return None if _is_no_unit(unit) else Quantity(inner.value * _SCALES[match["scale"]], unit)
    for pattern in (_WRAPPED, _PLAIN):
        match = pattern.match(text)
        if not match:
            continue
        unit = _flat(match["unit"])
        words = [word for word in re.split(r"[^A-Za-z]+", unit) if word]
        is_short = len(unit.split("^")[0]) < (3 if pattern is _PLAIN else 2)
        if not words or _is_no_unit(unit):
            return None
        is_letter = pattern is _PLAIN and len(words[0]) == 1 and "/" not in unit
        if is_letter or (known_unit(unit) is None and (is_short or "/" in unit)):
            continue
        value = _value(match["body"])
        return None if value is None else Quantity(value, unit)
    return None


def _is_no_unit(unit: str) -> bool:
    """Whether words behind a number change it: thirds, dozens, percent, .."""
    words = re.findall("[A-Za-z]+", unit.lower())
    return any(word in _NOT_UNITS or word.removesuffix("s") in _NOT_UNITS or _PART.fullmatch(word) for word in words)


def known_unit(text: str) -> tuple[str, Fraction] | None:
    """(dimension, factor to its base unit) of a unit of measure, or None for any other word."""
    text = text.strip()
    over, slash, under = text.replace(" per ", "/").partition("/")
    if slash:
        a, b = known_unit(over), known_unit(under)
        return (f"{a[0]}/{b[0]}", a[1] / b[1]) if a and b else None
    power = 1
    if match := _POWER.search(text):
        power, text = int(match[1]), text[: match.start()].strip()
    for word, exponent in (("square ", 2), ("sq ", 2), ("cubic ", 3)):
        if text.lower().startswith(word):
            power, text = exponent, text[len(word) :]
    for word, exponent in ((" squared", 2), (" cubed", 3)):
        if text.lower().endswith(word):
            power, text = exponent, text[: -len(word)]
    name = text if text in _BASE else text.lower()
    found = _BASE.get(name) or (_BASE.get(name.removesuffix("s")) if len(name) > 3 else None)
    if found is None or (power != 1 and found[0] != "length"):
        return None
    return (found[0] if power == 1 else f"length^{power}", found[1] ** power)


def same_quantity(gold: Quantity, other: Quantity, equal: Callable[[Fraction, Fraction], bool] = operator.eq) -> bool | None:
    """Whether two quantities are the same; None where that hangs on units that cannot be compared.

    A missing unit is taken for the other's: the question names it. 50 % is the number 0.5, and 50 where a percentage was
    asked for; what is known of a number of percent that was not asked for in percent, is nothing (3 % beside 3).

    Args:
        equal: compares the gold number with the other one; by default exactly.
    """
    if gold.is_percent or other.is_percent:
        return _same_percentage(gold, other, equal)
    if gold.unit == other.unit or not other.unit:
        return equal(gold.value, other.value)
    unit = known_unit(other.unit)
    if not gold.unit:
        if equal(gold.value, other.value):
            return True if unit is not None or other.unit.endswith("s") else None  # 5 apples
        in_base = other.value * unit[1] if unit else None
        converted = (
            in_base is not None
            and unit is not None
            and any(dimension == unit[0] and equal(gold.value, in_base / factor) for dimension, factor in _BASE.values())
        )
        return None if converted else False  # 50 mm, where 5 was perhaps asked for in cm
    wanted = known_unit(gold.unit)
    if wanted and unit:
        return wanted[0] == unit[0] and equal(gold.value, other.value * unit[1] / wanted[1])
    if _stem(gold.unit) == _stem(other.unit):
        return equal(gold.value, other.value)
    return None if equal(gold.value, other.value) else False


def _same_percentage(gold: Quantity, other: Quantity, equal: Callable[[Fraction, Fraction], bool]) -> bool | None:
    if gold.is_percent and other.is_percent:
        return equal(gold.value, other.value)
    if gold.is_percent:
        if other.unit:
            return None if equal(gold.value, other.value) else False
        if equal(gold.value / 100, other.value):
            return True
        return equal(gold.value, other.value) and (True if abs(gold.value) > 1 else None)
    if not gold.unit and equal(gold.value, other.value / 100):
        return True
    return None if equal(gold.value, other.value) else False


def _stem(unit: str) -> str:
    unit = unit.lower().strip()
    return "" if unit in ("unit", "units") else unit.removesuffix("s")


def _value(text: str) -> Fraction | None:
    text = text.strip()
    if match := re.fullmatch(rf"(?i)([+-]?)((?:{_NUMBER_WORD})(?:[\s-]+(?:and\s+)?(?:{_NUMBER_WORD}))*)", text):
        number = _worded(match[2])
        return -number if number is not None and match[1] == "-" else number
    if match := _WORDED_PART.fullmatch(text):
        return Fraction(int(match["sign"] + "1") * _WORDS[match["over"].lower()], _PARTS[match["under"].lower()])
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    elif match := _SCIENTIFIC.fullmatch(text):
        text = rf"{match[1]}\times 10^{{{match[2].lstrip('+')}}}"
    elif match := _MIXED.fullmatch(text):
        text = rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}"
    try:
        return exact(read(text))
    except Unreadable:
        return None


def _worded(text: str) -> Fraction | None:
    """`two hundred and fifty-three` -> 253; None if the words do not fall in that order."""
    total, group, last = 0, 0, 10**13
    for word in re.findall(r"[a-z]+", text.lower()):
        if word == "and":
            continue
        if word == "hundred":
            if not 0 < group < 10:
                return None
            group *= 100
        elif word in _SCALES:
            if not group or _SCALES[word] >= last:
                return None
            last = _SCALES[word]
            total, group = total + group * last, 0
        else:
            number = _WORDS[word]
            fits = group % 100 == 0 or (group % 10 == 0 and group % 100 >= 20 and 0 < number < 10)
            if not fits or (group and not number):
                return None
            group += number
    return Fraction(total + group)


def _flat(unit: str) -> str:
    r"""`\mathrm{m}/\mathrm{s}^{2}` -> `m/s^2`."""
    flat = re.sub(r"\\(?:text|mathrm|mbox|unit|rm|operatorname)\s*\{([^{}]*)\}", r"\1", unit)
    return (
        re.sub(r"\s+", " ", flat.replace(r"\times", " ").replace("{", "").replace("}", ""))
        .strip()
        .replace(" /", "/")
        .replace("/ ", "/")
    )
