r"""Reads answers of several values: lists, tuples, intervals and inequalities, ratios, times, matrices, numbers in a base.

Splits text and names the shape; knows nothing of what a value is worth or of which answer is right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MAX_VALUES = 40


@dataclass(frozen=True)
class Structure:
    """The shape of an answer and the texts of its values."""

    kind: str
    """tuple | interval | set | ratio | time | matrix | base"""
    parts: tuple[Any, ...]
    """tuple, set, ratio: texts · interval: (opening, low, high, closing) of each · matrix: rows of texts ·
    time: minutes after midnight, "am" or "pm" or "" · base: digits, base"""
    name: str = ""
    """interval: the variable of an inequality."""
    names: tuple[str, ...] = ()
    """set: `x`, `y` of `x = 1, y = 2`."""
    is_bare: bool = False
    """set: values listed without braces · ratio: written `2 to 3`, which may also be a range."""


def read_structure(text: str) -> Structure | None:
    r"""The structure that `text` (see `formulas.normal_text`) is written as; None for one value, or what is not clear."""
    return (
        _matrix(text)
        or _based(text)
        or _time(text)
        or _ratio(text)
        or _inequality(text)
        or _framed(text)
        or _list(text)
        or _plus_minus(text)
    )


# --- splitting -----------------------------------------------------------------------------------------------------


def split(text: str, separator: str) -> list[str]:
    """`text` cut at the separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == separator and depth <= 0 and text[max(0, at - 1)] not in "<>!":
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


_CONNECTIVE = re.compile(
    r"\\(?:text|mathrm|mbox)\s*\{\s*(?:,?\s*or|,?\s*and)\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|\\(?:lor|vee|land)(?![A-Za-z])|或|和|、|;"
)
_OR = re.compile(
    r"\\(?:text|mathrm|mbox)\s*\{\s*,?\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee|cup)(?![A-Za-z])|或"
)
_AND = re.compile(
    r"\\(?:text|mathrm|mbox)\s*\{\s*,?\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])|\\(?:land|wedge)(?![A-Za-z])|且"
)


# --- the shapes ----------------------------------------------------------------------------------------------------

_MATRIX = re.compile(
    r"^(?:[A-Za-z]\w?\s*=\s*)?[(\[]?\s*\\begin\s*\{\s*([pbB]?matrix|array|smallmatrix)\s*\}(?:\{[lcr| ]*\})?"
    r"(.*)\\end\s*\{\s*\1\s*\}\s*[)\]]?$",
    re.DOTALL,
)
_TEXT = r"(?:\\(?:text|mathrm)\s*\{\s*)?"
_BASE_NAMES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "sixteen": 16,
}
_BASED = re.compile(
    r"^(\(\s*)?([0-9A-F]+(?:\.[0-9A-F]+)?)\s*(?(1)\)\s*)"
    rf"(?:_\s*\{{?\s*{_TEXT}\(?(?:base\s*)?|{_TEXT}\(?\s*(?:in\s+)?base\s*\}}?\s*(?:-\s*|_\s*\{{?)?)(\d{{1,2}}|{'|'.join(_BASE_NAMES)})\s*\)?\s*\}}?\s*\}}?$"
)
_TIME = re.compile(r"^(\d{1,2}):(\d{2})(?::00)?\s*(?:\\?(?:text|mathrm)?\s*\{?\s*([AaPp])\.?\s*[Mm]\.*\s*\}?)?$")
_RELATION = re.compile(r"\\(?:le|ge|lt|gt|leq|geq)(?![A-Za-z])|<=|>=|=<|<|>|≤|≥")
_BUILDER = re.compile(r"^\\?\{\s*([A-Za-z])\s*(?:\\in\s*\\?[A-Za-z]+\s*)?(?:\||\\mid|:)\s*(.*?)\\?\}$", re.DOTALL)
_VARIABLE = re.compile(
    r"(?:\\(?:angle|triangle)\s*)?(?:[A-Za-z]{1,2}'?(?:_\s*(?:\w|\{\w+\}))?|\\[a-z]+|[a-z]\s*\(\s*x\s*\))"
)
_CONSTANT = re.compile(r"\\(?:pi|infty|sqrt|frac)")
_FRAMED = re.compile(r"(\\\{|[(\[])(.*?)(\\\}|[)\]])", re.DOTALL)
_HEAD = re.compile(
    r"^[A-Z]\w?'?\s*(?=\()|^\(?[A-Za-z]\w?'?(?:\s*,\s*[A-Za-z]\w?)*\)?\s*=\s*(?=\(|\[|\\\{)|^\\?[A-Za-z]+\s*\\in\s*"
)
_NAMED_PART = re.compile(
    r"^\s*((?:\\angle\s*)?[A-Za-z](?:[A-Za-z ]{0,5}|\s*_\s*(?:\w|\{\w+\}))(?:\(x\))?|\\[a-z]+)\s*=\s*(?!=)(.*)$", re.DOTALL
)


def _matrix(text: str) -> Structure | None:
    match = _MATRIX.match(text.strip())
    if not match:
        return None
    rows = [row for row in re.split(r"\\cr(?![a-z])", match[2]) if row.strip()]
    cells = tuple(tuple(cell.strip() for cell in row.split("&")) for row in rows)
    if not cells or len({len(row) for row in cells}) != 1 or not all(all(row) for row in cells) or len(cells) > MAX_VALUES:
        return None
    return Structure("matrix", cells)


def _based(text: str) -> Structure | None:
    match = _BASED.match(text.strip())
    if not match:
        return None
    base = _BASE_NAMES.get(match[3]) or int(match[3])
    digits = match[2]
    if not 2 <= base <= 16 or any(int(digit, 16) >= base for digit in digits if digit != "."):
        return None
    return Structure("base", (digits.lstrip("0") or "0", base))


def _time(text: str) -> Structure | None:
    match = _TIME.match(text.strip())
    if not match or int(match[2]) > 59 or int(match[1]) > 24:
        return None
    half = f"{match[3]}m".lower() if match[3] else ""
    return Structure("time", (int(match[1]) * 60 + int(match[2]), half))


_IN_WORDS = re.compile(r"\d+(?:\s*(?:\\(?:text|mathrm)\s*\{\s*to\s*\}|(?<=\s)to(?=\s))\s*\d+)+")


def _ratio(text: str) -> Structure | None:
    parts = [part.strip() for part in split(re.sub(r"\\(?:colon|ratio)(?![a-z])|∶", ":", text), ":")]
    if len(parts) == 1 and _IN_WORDS.fullmatch(text):
        return Structure("ratio", tuple(re.findall(r"\d+", text)), is_bare=True)
    if not 2 <= len(parts) <= 6 or not all(parts):
        return None
    head = re.fullmatch(r"[^=]*:[^=]*=(.*)", text)  # AB : BC = 2 : 3
    return Structure("ratio", tuple(parts)) if "=" not in text else (_ratio(head[1]) if head else None)


def _inequality(text: str) -> Structure | None:
    if not _RELATION.search(text):
        return None
    builder = _BUILDER.match(text.strip())
    if builder:
        text = builder[2]
    unions = []
    name = ""
    for piece in _OR.split(text):
        bounds = [_bounds(part) for part in _AND.split(piece)]
        if len(bounds) > 2 or any(bound is None for bound in bounds):
            return None
        merged = bounds[0]
        if len(bounds) == 2 and merged is not None and bounds[1] is not None:
            merged = _intersection(merged, bounds[1])
        if merged is None or name not in ("", merged[0]):
            return None
        name = merged[0]
        unions.append(merged[1])
    return Structure("interval", tuple(unions), name=name)


Bounds = tuple[str, tuple[str, str, str, str]]  # variable, (opening, low, high, closing)


def _bounds(text: str) -> Bounds | None:
    """`1 < x \\le 2` -> ("x", ("(", "1", "2", "]"))."""
    relations = [_direction(match.group()) for match in _RELATION.finditer(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    if not all(sides) or len(relations) not in (1, 2):
        return None
    if len(relations) == 2:
        if relations[0][0] != relations[1][0] or not _is_variable(sides[1]):
            return None
        if relations[0][0] == ">":
            sides, relations = sides[::-1], relations[::-1]
        return _flat(sides[1]), ("(["[relations[0][1]], sides[0], sides[2], ")]"[relations[1][1]])
    (sign, is_closed), (left, right) = relations[0], sides
    if _is_variable(left) == _is_variable(right):
        return None
    if _is_variable(right):
        left, right, sign = right, left, "<" if sign == ">" else ">"
    if sign == "<":
        return _flat(left), ("(", r"-\infty", right, ")]"[is_closed])
    return _flat(left), ("(["[is_closed], right, r"\infty", ")")


def _intersection(a: Bounds, b: Bounds) -> Bounds | None:
    if a[0] != b[0]:
        return None
    if a[1][2] == r"\infty" and b[1][1] == r"-\infty":
        return a[0], (*a[1][:2], *b[1][2:])
    if b[1][2] == r"\infty" and a[1][1] == r"-\infty":
        return a[0], (*b[1][:2], *a[1][2:])
    return None


def _direction(relation: str) -> tuple[str, bool]:
    relation = relation.strip("\\ ")
    sign = "<" if relation[0] in "<l≤" or relation == "=<" else ">"
    return sign, relation not in ("<", ">", "lt", "gt")


def _is_variable(text: str) -> bool:
    return _VARIABLE.fullmatch(text) is not None and not _CONSTANT.match(text)


def _flat(text: str) -> str:
    return re.sub(r"\s|\(x\)", "", text)


def _framed(text: str) -> Structure | None:
    """A tuple, an interval, a union of intervals or a set."""
    text = _HEAD.sub("", text.strip())
    if re.fullmatch(r"[a-z]\s*(?:\(.*\]|\[.*[)\]])", text):  # t(0,4]: no function is called so
        text = text[1:].lstrip()
    intervals: list[tuple[str, str, str, str]] = []
    pieces = re.split(r"\\cup(?![a-z])", text)
    for piece in pieces:
        match = _FRAMED.fullmatch(piece.strip())
        if match is None or not closes_at_end(piece.strip()):
            return None
        opening, closing = match[1].strip("\\"), match[3].strip("\\")
        values = tuple(value.strip() for value in split(match[2], ","))
        if not all(values) or len(values) > MAX_VALUES:
            return None
        if "{" in (opening,) or "}" in (closing,):
            is_set = opening == "{" and closing == "}" and len(pieces) == 1
            return Structure("set", tuple(value for part in values for value in expanded(part))) if is_set else None
        if len(values) < 2:
            return None
        if len(pieces) == 1 and opening == "(" and closing == ")" and not any("infty" in value for value in values):
            return Structure("tuple", values)
        if len(values) != 2:
            is_list = len(pieces) == 1 and opening == "[" and closing == "]"
            return Structure("tuple", values) if is_list else None
        intervals.append((opening, values[0], values[1], closing))
    return Structure("interval", tuple(intervals))


def closes_at_end(text: str) -> bool:
    """Whether the bracket that opens `text` is the one that closes it."""
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if not depth and sign in ")]}" and at < len(text) - 1:
            return False
    return depth == 0


def _list(text: str) -> Structure | None:
    """`3, 5 and 7`, `x = 1 or x = 2`, `(1,2), (3,4)`."""
    parts = [part.strip() for piece in split(text, ",") for part in _CONNECTIVE.split(piece)]
    parts = [part for at, part in enumerate(parts) if part or at not in (0, len(parts) - 1)]
    filled = [part for part in parts if part]
    if len(filled) < 2 or len(filled) < len(parts) - text.count("and") - text.count("or") or len(filled) > MAX_VALUES:
        return None
    names, values = [], []
    for part in filled:
        match = _NAMED_PART.match(part)
        names.append(re.sub(r"\s", "", match[1]) if match else "")
        values.append(match[2].strip() if match else part)
    if not all(values):
        return None
    own = set(filter(None, names))
    if len(own) > 1 and len(own) < len(filled):
        return None
    expansions = [value for part in values for value in expanded(part)]
    return Structure("set", tuple(expansions), names=tuple(names) if len(own) > 1 else (), is_bare=True)


def _plus_minus(text: str) -> Structure | None:
    match = _NAMED_PART.match(text)
    values = expanded(match[2].strip() if match else text)
    return Structure("set", tuple(values), is_bare=True) if len(values) > 1 else None


def expanded(text: str) -> list[str]:
    r"""`1 \pm 2` -> [`1 + 2`, `1 - 2`]; any other text alone."""
    if not re.search(r"\\(?:pm|mp)(?![a-z])", text) or len(re.findall(r"\\(?:pm|mp)(?![a-z])", text)) > 4:
        return [text]
    upper = re.sub(r"\\mp(?![a-z])", "-", re.sub(r"\\pm(?![a-z])", "+", text))
    lower = re.sub(r"\\mp(?![a-z])", "+", re.sub(r"\\pm(?![a-z])", "-", text))
    return [upper, lower]


# --- several parts -------------------------------------------------------------------------------------------------

_MARKER = re.compile(r"[(（]\s*(\d)\s*[)）]|([①②③④⑤⑥⑦⑧⑨])")
_CIRCLED = "①②③④⑤⑥⑦⑧⑨"
_NUMBERS = re.compile(r"[-−]?\d+(?:\.\d+)?(?:\s+[-−]?\d+(?:\.\d+)?)+")
_LABELS = re.compile(r"(?:\(\d\)|[①②③④⑤⑥⑦⑧⑨]|\d(?:\.|(?!\d))|[\s,，、;]|and|&|\$)+")


def read_parts(text: str) -> list[str] | None:
    """The texts of an answer in ordered parts: `(1) 3; (2) 5`, lines, `3; 5`, `$3$ $5$`; None if it is one answer."""
    text = text.strip()
    marks = list(_MARKER.finditer(text))
    if len(marks) > 1 and marks[0].start() == 0:
        labels = [int(mark[1]) if mark[1] else _CIRCLED.index(mark[2]) + 1 for mark in marks]
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        parts = [text[mark.end() : end].strip(" \t\n,;，；.。") for mark, end in zip(marks, ends, strict=True)]
        if labels == list(range(1, len(marks) + 1)) and all(parts):
            return parts
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return lines
    if ";" in text or "；" in text:
        parts = [part.strip() for part in re.split("[;；]", text) if part.strip()]
        return parts if len(parts) > 1 else None
    if _NUMBERS.fullmatch(text):
        return text.split()
    pieces = re.split(r"\$+", text)
    if len(pieces) % 2 and len(pieces) > 4 and not any(piece.strip(" \t.") for piece in pieces[::2]):
        return [piece.strip() for piece in pieces[1::2]]
    return None


def read_labels(text: str) -> frozenset[str] | None:
    """The numbers of the statements that an answer names: `(1)(3)`, `①③`, `1.3.`; None if it is no such list."""
    text = text.strip()
    if not text or not _LABELS.fullmatch(text):
        return None
    labels: list[str] = re.findall(rf"\d|[{_CIRCLED}]", text)
    labels = [str(_CIRCLED.index(label) + 1) if label in _CIRCLED else label for label in labels]
    return frozenset(labels) if labels and len(set(labels)) == len(labels) else None
