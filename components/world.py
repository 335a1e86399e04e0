"""The known-truth world: generated picture problems whose every step can be checked exactly.

Owns the pictures, the questions, the planted mistakes and the checker. It is a measuring instrument. Of the
seeds and the benchmarks, policy and PRM see pictures, text and final answers only. Of the demonstrations'
pictures, which no other split shares, they also see the true readings: the policy to align its image tokens,
the PRM for its perception task.

A picture shows four coloured quantities in one of three families. A solution reads the quantities it needs
and computes with them, one step a line:

    red: 3 / blue: 5 / green: 4 / 5 * 4 = 20 / 3 + 20 = 23 / answer: 23

Demonstrations carry two sorts of mistakes. *Wrong methods* show in the text. *Confused readings* do not: a
value is mistaken for its partner (6 for 7 in bars, 3 for 8 in labels...) half of the time in either direction,
so that nothing but the picture tells which of the two is there.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from components.progress import say
from components.records import IMAGE, with_image_column, write_table

COLOURS = ("red", "blue", "green", "yellow")
FAMILIES = ("bars", "cards", "labels")
KINDS = ("total", "product", "perimeter", "range")  # in-domain question kinds
KIND_FRACS = (0.2, 0.3, 0.2, 0.3)
LONG_KIND = "grand"  # out of domain: a chain of eight steps, longer than any seen
UNSEEN = ("labels", "perimeter")  # out of domain: a family and a kind never seen together
MAX_NUMBER = 170  # largest number that is a word; 9 + 9 * 9 = 90 and slips stay below
SIZE = 32  # pixels a side

# Pairs of values that the demonstrator confuses, by family. Each is its own inverse: no direction to learn.
CONFUSED: dict[str, dict[int, int]] = {
    "bars": {6: 7, 7: 6, 8: 9, 9: 8},
    "cards": {5: 6, 6: 5, 7: 8, 8: 7},
    "labels": {3: 8, 8: 3, 5: 6, 6: 5},
}
CONFUSED_FRAC = 0.5
WRONG_METHOD_FRAC = 0.2
SLIP_FRAC = 0.01

_RGB = {"red": (0.85, 0.1, 0.1), "blue": (0.1, 0.2, 0.9), "green": (0.1, 0.65, 0.15), "yellow": (0.9, 0.75, 0.05)}
_DIGITS = {
    1: "00100 01100 00100 00100 00100 00100 01110",
    2: "01110 10001 00001 00010 00100 01000 11111",
    3: "11111 00010 00100 00010 00001 10001 01110",
    4: "00010 00110 01010 10010 11111 00010 00010",
    5: "11111 10000 11110 00001 00001 10001 01110",
    6: "00110 01000 10000 11110 10001 10001 01110",
    7: "11111 00001 00010 00100 01000 01000 01000",
    8: "01110 10001 10001 01110 10001 10001 01110",
    9: "01110 10001 10001 01111 00001 00010 01100",
}


@dataclass(frozen=True)
class Truth:
    """What a checker must know about a problem."""

    kind: str
    colours: tuple[str, ...]
    """The colours of the question, in its order."""
    values: Mapping[str, int]
    """Colour -> the quantity in the picture."""

    @property
    def answer(self) -> int:
        """The right final answer."""
        return _derivation(self, self.values)[1]


@dataclass(frozen=True)
class StepTruth:
    """The exact truth about one step."""

    kind: str
    """reading | reasoning"""
    is_right: bool
    """This step alone, granting what the solution has stated before."""
    is_right_so_far: bool
    """This step and every one before it, against the picture."""


@dataclass(frozen=True)
class _Problem:
    family: str
    order: tuple[str, ...]  # the colour in each slot of the picture
    truth: Truth
    image: bytes

    @property
    def source(self) -> str:
        return f"world/{self.family}/{self.truth.kind}"


def check(truth: Truth, steps: Sequence[str]) -> list[StepTruth]:
    """The exact truth of every step of a solution.

    A reading is right iff it states the picture's quantity; a computation, iff its arithmetic is right and the
    question's method allows it on the quantities stated so far; the answer, iff it follows from them. Readings
    and commutative operands may come in any order.
    """
    out: list[StepTruth] = []
    stated: dict[str, int] = {}
    right_so_far = True
    for step in steps:
        words = step.split()
        reading = _reading(words)
        if reading is not None:
            colour, value = reading
            is_right = truth.values.get(colour) == value and colour in truth.colours
            is_right_so_far = is_right
            stated[colour] = value
        else:
            is_right = _follows(truth, words, stated)
            is_right_so_far = _follows(truth, words, truth.values)
        right_so_far = right_so_far and is_right_so_far
        out.append(StepTruth("reading" if reading else "reasoning", is_right, right_so_far))
    return out


def write_world(out: Path, *, seed: int = 0, scale: float = 1.0) -> None:
    """Write the world's data folder; equal seeds give equal bytes.

    Args:
        scale: multiplies the number of rows; tests use a small one.
    """
    num = {name: max(8, round(count * scale)) for name, count in _NUM_ROWS.items()}
    tables = {name: _split(name, num, seed) for name in num}
    truth = [row for name in ("dev", "test", "ood") for row in _truth_rows(name, num[name], seed)]
    write_folder(out, {**tables, "truth": (truth, TRUTH)})


Table = tuple[list[dict[str, Any]], pa.Schema]


def write_folder(out: Path, tables: Mapping[str, Table]) -> None:
    """Write a world's tables as a data folder, whole or not at all."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for name, (rows, schema) in tables.items():
            write_table(part / f"{name}.parquet", rows, schema)
        shutil.rmtree(out, ignore_errors=True)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    say("world", f"{out}: " + ", ".join(f"{name} {len(rows):,}" for name, (rows, _) in tables.items() if name != "truth"))


RAW = with_image_column(
    pa.schema(
        [
            ("id", pa.string()),
            ("source", pa.string()),
            ("question", pa.string()),
            ("image", IMAGE),
            ("answer", pa.string()),
        ]
    ),
    "image",
    many=False,
)
_STEPS = pa.list_(pa.string())
DEMONSTRATION = with_image_column(
    RAW.append(pa.field("steps", _STEPS))  # with wrong methods and confused readings
    .append(pa.field("warmup_steps", _STEPS))  # with wrong methods only
    .append(pa.field("statements", _STEPS)),  # the four true readings, in the order of the picture
    "image",
    many=False,
)
STEP_ERROR = with_image_column(
    RAW.append(pa.field("steps", _STEPS))
    .append(pa.field("process_correctness", pa.list_(pa.int32())))  # 1 or -1, each step alone
    .append(pa.field("right_so_far", pa.list_(pa.bool_())))
    .append(pa.field("step_kinds", _STEPS)),  # reading | reasoning
    "image",
    many=False,
)
TRUTH = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("colours", _STEPS),  # of the question, in its order
        ("values", pa.list_(pa.int32())),  # of COLOURS, in that order
    ]
)

_NUM_ROWS = {"demonstrations": 6000, "train": 2000, "dev": 300, "test": 500, "ood": 400, "step_errors": 400}
_STREAM = {name: i for i, name in enumerate(_NUM_ROWS)}  # every split draws from its own random stream


def truth_from_row(row: Mapping[str, Any]) -> Truth:
    """A row of truth.parquet as the checker wants it."""
    return Truth(row["kind"], tuple(row["colours"]), dict(zip(COLOURS, row["values"], strict=True)))


def words() -> list[str]:
    """Every word that a question or step can hold."""
    texts = [_question(family, kind, COLOURS) for family in FAMILIES for kind in (*KINDS, LONG_KIND)]
    found = {word for text in texts for word in text.split()} | {
        "=",
        "+",
        "-",
        "*",
        "answer:",
        *(f"{colour}:" for colour in COLOURS),
    }
    return sorted(found) + [str(n) for n in range(MAX_NUMBER + 1)]


def _problems(name: str, count: int, seed: int) -> list[_Problem]:
    rng = np.random.default_rng([seed, _STREAM[name]])
    out: list[_Problem] = []
    while len(out) < count:
        if name == "ood":
            long = len(out) % 2 == 0
            family = str(rng.choice(FAMILIES)) if long else UNSEEN[0]
            kind = LONG_KIND if long else UNSEEN[1]
        else:
            family, kind = str(rng.choice(FAMILIES)), str(rng.choice(KINDS, p=KIND_FRACS))
            if (family, kind) == UNSEEN:
                continue
        order = tuple(COLOURS[i] for i in rng.permutation(4))
        values = {colour: int(value) for colour, value in zip(COLOURS, rng.integers(1, 10, 4), strict=True)}
        num_asked = int(rng.integers(2, 4)) if kind == "total" else _NUM_COLOURS[kind]
        asked = tuple(COLOURS[i] for i in rng.permutation(4))[:num_asked]
        image = png(_draw(family, order, values, rng))
        out.append(_Problem(family, order, Truth(kind, asked, values), image))
    return out


_NUM_COLOURS = {"product": 3, "perimeter": 2, "range": 4, "grand": 4}


def _question(family: str, kind: str, colours: Sequence[str]) -> str:
    a, b, c, d = (*colours, "", "", "")[:4]
    ask = {
        "total": f"total of {a} {b} and {c} ?" if c else f"total of {a} and {b} ?",
        "product": f"{a} plus {b} times {c} ?",
        "perimeter": f"perimeter with sides {a} and {b} ?",
        "range": "most minus least ?",
        "grand": f"total of {a} {b} {c} and {d} ?",
    }[kind]
    return f"{family} : {ask}"


def _derivation(
    truth: Truth, seen: Mapping[str, int], *, wrong_method: bool = False, rng: Any = None
) -> tuple[list[str], int]:
    """The steps and the answer that follow from the quantities `seen`; with `rng`, computations may slip."""
    steps: list[str] = []

    def slip(value: int, low: int, high: int) -> int:
        if rng is not None and rng.random() < SLIP_FRAC:
            value = min(max(value + int(rng.choice([-2, -1, 1, 2])), low), high)
        return value

    def read(colour: str) -> int:
        value = slip(seen[colour], 1, 9)
        steps.append(f"{colour}: {value}")
        return value

    def compute(x: int, sign: str, y: int) -> int:
        value = max(0, slip(_OPERATIONS[sign](x, y), 0, MAX_NUMBER))
        steps.append(f"{x} {sign} {y} = {value}")
        return value

    if truth.kind in ("total", "grand"):
        result = compute(read(truth.colours[0]), "+", read(truth.colours[1]))
        for colour in truth.colours[2:]:
            result = compute(result, "+", read(colour))
    elif truth.kind == "product":
        a, b, c = (read(colour) for colour in truth.colours)
        result = compute(compute(a, "+", b), "*", c) if wrong_method else compute(a, "+", compute(b, "*", c))
    elif truth.kind == "perimeter":
        a, b = (read(colour) for colour in truth.colours)
        result = compute(a, "*", b) if wrong_method else compute(compute(a, "+", b), "*", 2)
    else:
        values = [read(colour) for colour in truth.colours]
        least = min(values)
        if wrong_method:  # minus the last one, whichever it is
            least = values[-1] if values[-1] != least else sorted(values)[1]
        result = compute(max(values), "-", least)
    steps.append(f"answer: {result}")
    return steps, result


_OPERATIONS = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}


def _reading(step: Sequence[str]) -> tuple[str, int] | None:
    if len(step) == 2 and step[0].removesuffix(":") in COLOURS and step[0].endswith(":") and _is_number(step[1]):
        return step[0].removesuffix(":"), int(step[1])
    return None


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10


def _follows(truth: Truth, step: Sequence[str], seen: Mapping[str, int]) -> bool:
    """Whether a computation or answer follows by the question's method from the quantities `seen`."""
    if len(step) == 2 and step[0] == "answer:":
        return all(colour in seen for colour in truth.colours) and step[1] == str(_derivation(truth, seen)[1])
    if len(step) != 5 or step[1] not in _OPERATIONS or step[3] != "=" or not all(_is_number(step[i]) for i in (0, 2, 4)):
        return False
    x, sign, y, z = int(step[0]), step[1], int(step[2]), int(step[4])
    return _OPERATIONS[sign](x, y) == z and _is_allowed(truth, x, sign, y, seen)


def _is_allowed(truth: Truth, x: int, sign: str, y: int, seen: Mapping[str, int]) -> bool:
    values = [seen[colour] for colour in truth.colours if colour in seen]
    complete = len(values) == len(truth.colours)
    pair = tuple(sorted((x, y)))
    if truth.kind in ("total", "grand"):  # sums of two disjoint groups of the quantities
        if sign != "+":
            return False
        for size in range(1, len(values)):
            for group in itertools.combinations(range(len(values)), size):
                rest = [values[i] for i in range(len(values)) if i not in group]
                if sum(values[i] for i in group) == x and any(
                    sum(other) == y for k in range(1, len(rest) + 1) for other in itertools.combinations(rest, k)
                ):
                    return True
        return False
    if not complete:
        return False
    if truth.kind == "product":
        a, b, c = values
        return (sign == "*" and pair == tuple(sorted((b, c)))) or (sign == "+" and pair == tuple(sorted((a, b * c))))
    if truth.kind == "perimeter":
        a, b = values
        return (sign == "+" and pair == tuple(sorted((a, b)))) or (sign == "*" and pair == tuple(sorted((2, a + b))))
    return sign == "-" and x == max(values) and y == min(values)


def _seen(problem: _Problem, rng: np.random.Generator) -> dict[str, int]:
    """The quantities as the demonstrator reads them: confusable values are swapped half of the time."""
    swap = CONFUSED[problem.family]
    return {c: swap.get(v, v) if rng.random() < CONFUSED_FRAC else v for c, v in problem.truth.values.items()}


def _split(name: str, num: Mapping[str, int], seed: int) -> Table:
    problems = _problems(name, num[name], seed)
    rng = np.random.default_rng([seed, 100 + _STREAM[name]])
    rows = [_raw_row(name, i, problem) for i, problem in enumerate(problems)]
    if name == "demonstrations":
        for row, problem in zip(rows, problems, strict=True):
            for column, seen in (("warmup_steps", problem.truth.values), ("steps", _seen(problem, rng))):
                wrong = bool(rng.random() < WRONG_METHOD_FRAC)
                row[column] = _derivation(problem.truth, seen, wrong_method=wrong, rng=rng)[0]
            row["statements"] = [f"{colour}: {problem.truth.values[colour]}" for colour in problem.order]
        return rows, DEMONSTRATION
    if name == "step_errors":
        for row, problem in zip(rows, problems, strict=True):
            wrong = bool(rng.random() < WRONG_METHOD_FRAC)
            row["steps"] = _derivation(problem.truth, _seen(problem, rng), wrong_method=wrong, rng=rng)[0]
            truths = check(problem.truth, row["steps"])
            row["process_correctness"] = [1 if t.is_right else -1 for t in truths]
            row["right_so_far"] = [t.is_right_so_far for t in truths]
            row["step_kinds"] = [t.kind for t in truths]
        return rows, STEP_ERROR
    if name == "train":
        rows += dirt(rows, _split("test", num, seed)[0], rng)
    return rows, RAW


def _raw_row(name: str, index: int, problem: _Problem) -> dict[str, Any]:
    return {
        "id": f"{name}-{index:05d}",
        "source": problem.source,
        "question": _question(problem.family, problem.truth.kind, problem.truth.colours),
        "image": {"bytes": problem.image, "path": None},
        "answer": str(problem.truth.answer),
    }


def dirt(rows: list[dict[str, Any]], test: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows as a real crawl would bring them: repeated, leaked from the test set, broken, without a usable answer."""
    picks = [rows[int(i)] for i in rng.choice(len(rows), 6, replace=False)]
    leaked = dict(test[int(rng.integers(len(test)))])
    dirt = [
        dict(picks[0]),
        dict(picks[1], question=picks[1]["question"] + "  "),
        dict(leaked),
        dict(picks[2], answer=""),
        dict(picks[3], answer="any value close to the drawing is acceptable"),
        dict(picks[4], image={"bytes": picks[4]["image"]["bytes"][:40], "path": None}),
        dict(picks[5], question=" "),
    ]
    return [dict(row, id=f"dirt-{i:05d}") for i, row in enumerate(dirt)]


def _truth_rows(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}-{i:05d}",
            "kind": problem.truth.kind,
            "colours": list(problem.truth.colours),
            "values": [problem.truth.values[colour] for colour in COLOURS],
        }
        for i, problem in enumerate(_problems(name, count, seed))
    ]


def _draw(family: str, order: Sequence[str], values: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """The picture: `[32, 32, 3]` floats in about [0, 1], with jittered colours and pixel noise."""
    image = np.full((SIZE, SIZE, 3), 0.95)
    for slot, colour in enumerate(order):
        paint = np.clip(np.array(_RGB[colour]) + rng.normal(0, 0.04, 3), 0, 1)
        value = values[colour]
        if family == "bars":  # columns, 3 pixels a unit
            x = 8 * slot + int(rng.integers(0, 3))
            image[SIZE - 3 * value - 1 :, x : x + 6] = paint
            continue
        top, left = 16 * (slot // 2), 16 * (slot % 2)
        if family == "cards":  # white dots on a coloured card
            image[top : top + 15, left : left + 15] = paint
            for cell in rng.permutation(9)[:value]:
                y, x = top + 5 * (int(cell) // 3) + 1, left + 5 * (int(cell) % 3) + 1
                image[y : y + 3, x : x + 3] = 1.0
        else:  # printed digits
            y = min(max(top + 1 + int(rng.integers(-1, 2)), 0), SIZE - 14)
            x = min(max(left + 3 + int(rng.integers(-1, 2)), 0), SIZE - 10)
            glyph = np.kron(np.array([[int(c) for c in line] for line in _DIGITS[value].split()]), np.ones((2, 2)))[
                ..., None
            ]
            image[y : y + 14, x : x + 10] = image[y : y + 14, x : x + 10] * (1 - glyph) + paint * glyph
    return image + rng.normal(0, 0.1, image.shape)


def png(image: np.ndarray) -> bytes:
    """The picture as an uncompressed PNG: its bytes do not depend on the compression library."""
    pixels = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()
