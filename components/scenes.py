"""The scene world: pictures of many small shapes, with questions about how many there are and where they stand.

Owns the pictures, the questions, the planted mistakes and the checker of the task `scene`, in the files and the
spirit of `world`. Does not know how a policy or a reward model is trained.

A picture is a grid of 4 x 4 places in one of three looks; several questions share it. A solution reads what it
needs, one tagged step each, and computes:

    <step>red: 3</step> <step>square: 4</step> <step>red-square: 2</step> <step>3 + 4 = 7</step> <step>7 - 2 = 5</step>
    <answer>5</answer>

The demonstrator's confused readings are those of ANOTHER scene, in which the count of a kind of shape (1 for 2), the
column of a shape or the number of shapes in a column is mistaken half of the time in either direction: readings
agree with each other, and nothing but the picture tells that they are wrong.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.world import DEMONSTRATION, RAW, STEP_ERROR, TRUTH, StepTruth, Table, dirt, png, write_folder

COLOURS = ("red", "blue", "green")
SHAPES = ("square", "disc")
KINDS_OF_SHAPE = tuple(f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES)
LOOKS = ("filled", "outlined", "night")
COUNTING = ("both", "apart", "either")  # question kinds, two of a group share a picture
SPATIAL = ("left", "before")
COUNTING_FRAC = 0.6  # of the pictures
LONG_KIND = "all"  # out of domain: a longer chain than any seen
UNSEEN = ("outlined", "either")  # out of domain: a look and a kind of question never seen together
GRID = 4  # places a side
CELL = 12  # pixels a side of a place
SIZE = GRID * CELL
NUM_OF_KIND = (0, 1, 2)  # equally likely
NUM_OF_REST = (2, 3, 4)  # of the kinds that no spatial question asks for

# What the demonstrator confuses, by look. Every pair is its own inverse: no direction to learn.
CONFUSED_KINDS = {
    "filled": ("red-square", "blue-disc"),
    "outlined": ("green-square", "red-disc"),
    "night": ("blue-square", "green-disc"),
}
CONFUSED_OF_KIND = {1: 2, 2: 1}
CONFUSED_COLUMN = {"filled": {2: 3, 3: 2}, "outlined": {1: 2, 2: 1}, "night": {3: 4, 4: 3}}
CONFUSED_IN_COLUMN = {1: 2, 2: 1}
CONFUSED_FRAC = 0.5
WRONG_METHOD_FRAC = 0.2
SLIP_FRAC = 0.01

_RGB = {"red": (0.85, 0.12, 0.1), "blue": (0.15, 0.3, 0.95), "green": (0.1, 0.65, 0.2)}
_NUM_ROWS = {"demonstrations": 5000, "train": 2000, "dev": 300, "test": 600, "ood": 400, "step_errors": 400}
_STREAM = {name: i for i, name in enumerate(_NUM_ROWS)}  # every split draws from its own random stream
_UNIT = re.compile(r"\s*<(step|answer)>\s*(.*?)\s*</\1>\s*", re.DOTALL)
_SIGNS = {"+": lambda x, y: x + y, "-": lambda x, y: x - y}
_ORDERS = {"<": lambda x, y: x < y, ">": lambda x, y: x > y, "=": lambda x, y: x == y}

SCENE_DEMONSTRATION = DEMONSTRATION.append(pa.field("places", pa.list_(pa.string())))
"""As in `world`, and what stands at each place, row by row."""


@dataclass(frozen=True)
class Truth:
    """What a checker must know about a problem."""

    kind: str
    """One of COUNTING, SPATIAL or LONG_KIND."""
    asked: tuple[str, ...]
    """What the question names, in its order: colours, or a colour and a shape."""
    readings: Mapping[str, int]
    """All that can be read from the picture: `red`, `square`, `red-square` -> how many; `column red` -> the column of the
    only red one; `column 1` -> how many shapes stand in it."""

    @property
    def answer(self) -> str:
        """The right final answer."""
        return _derivation(self, self.readings)[1]


def check(truth: Truth, steps: Sequence[str]) -> list[StepTruth]:
    """The exact truth of every step of a solution.

    A reading is right iff it states what the picture shows and the question needs it; a computation or comparison,
    iff it holds and the question's method allows it on what has been read so far; the answer, iff it follows.
    Readings and commutative operands may come in any order.
    """
    out: list[StepTruth] = []
    stated: dict[str, int] = {}
    right_so_far = True
    for step in steps:
        found = _UNIT.fullmatch(step)
        tag, text = (found[1], found[2]) if found else ("", "")
        reading = _reading(text) if tag == "step" else None
        if reading is not None:
            name, value = reading
            is_true = truth.readings.get(name) == value
            is_right = is_true and _is_needed(truth, name, stated)
            is_right_so_far = is_true and _is_needed(truth, name, truth.readings)
            stated[name] = value
        else:
            is_right = _follows(truth, tag, text, stated)
            is_right_so_far = _follows(truth, tag, text, truth.readings)
        right_so_far = right_so_far and is_right_so_far
        out.append(StepTruth("reading" if reading else "reasoning", is_right, right_so_far))
    return out


def truth_from_row(row: Mapping[str, Any]) -> Truth:
    """A row of truth.parquet as the checker wants it."""
    values = list(row["values"])
    of_kind = dict(zip(KINDS_OF_SHAPE, values, strict=False))
    columns = dict(zip(COLOURS, values[len(of_kind) :], strict=False))
    in_column = values[len(of_kind) + len(COLOURS) :]
    return Truth(row["kind"].removeprefix("scene/"), tuple(row["colours"]), _readings(of_kind, columns, in_column))


def write_scenes(out: Path, *, seed: int = 0, scale: float = 1.0) -> None:
    """Write the scene world's data folder; equal seeds give equal bytes.

    Args:
        scale: multiplies the number of rows; tests use a small one.
    """
    num = {name: max(8, round(count * scale)) for name, count in _NUM_ROWS.items()}
    problems = {name: _problems(name, num[name], seed) for name in num}
    tables = {name: _table(name, problems, np.random.default_rng([seed, 100 + _STREAM[name]])) for name in num}
    truth = [_truth_row(f"{name}-{i:05d}", p) for name in ("dev", "test", "ood") for i, p in enumerate(problems[name])]
    write_folder(out, {**tables, "truth": (truth, TRUTH)})


# --- scenes and questions ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """What stands where, and what can be read from it."""

    look: str
    places: tuple[str, ...]  # row by row: a kind of shape, or "" for nothing
    of_kind: Mapping[str, int]
    columns: Mapping[str, int]  # of each colour of which there is one; else 0
    in_column: tuple[int, ...]

    @property
    def readings(self) -> dict[str, int]:
        return _readings(self.of_kind, self.columns, self.in_column)


@dataclass(frozen=True)
class _Problem:
    scene: _Scene
    truth: Truth
    image: bytes


def _readings(of_kind: Mapping[str, int], columns: Mapping[str, int], in_column: Sequence[int]) -> dict[str, int]:
    out = dict(of_kind)
    for part, names in ((0, COLOURS), (1, SHAPES)):
        out |= {name: sum(n for kind, n in of_kind.items() if kind.split("-")[part] == name) for name in names}
    out |= {f"column {colour}": column for colour, column in columns.items() if column}
    return out | {f"column {i + 1}": n for i, n in enumerate(in_column)}


def _problems(name: str, count: int, seed: int) -> list[_Problem]:
    """`count` questions, two of one group to a picture; demonstrations have a picture each, for there to be many."""
    rng = np.random.default_rng([seed, 200 + _STREAM[name]])
    out: list[_Problem] = []
    while len(out) < count:
        if name == "ood":
            kinds: list[str] = [LONG_KIND, "either"]
            look = UNSEEN[0]
        else:
            group = COUNTING if rng.random() < COUNTING_FRAC else SPATIAL
            kinds = [str(kind) for kind in rng.choice(group, 1 if name == "demonstrations" else 2, replace=False)]
            look = str(rng.choice(LOOKS))
            if any((look, kind) == UNSEEN for kind in kinds):
                continue
        scene, single = _scene(look, rng, num_single=2 if kinds[0] in SPATIAL else 0)
        image = png(_draw(scene, rng))
        for kind in kinds[: count - len(out)]:
            out.append(_Problem(scene, Truth(kind, _asked(kind, single, rng), scene.readings), image))
    return out


def _scene(look: str, rng: np.random.Generator, *, num_single: int) -> tuple[_Scene, list[str]]:
    """A scene, and colours of which it has one on purpose, in columns drawn independently of each other."""
    single = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:num_single]]
    the_one = [f"{colour}-{rng.choice(SHAPES)}" for colour in single]
    numbers = NUM_OF_REST if single else NUM_OF_KIND
    drawn = {kind: int(rng.choice(numbers)) for kind in KINDS_OF_SHAPE}
    of_kind = {kind: int(kind in the_one) if kind.split("-")[0] in single else n for kind, n in drawn.items()}
    rows = rng.permutation(GRID)
    taken = {GRID * int(rows[i]) + int(rng.integers(GRID)): kind for i, kind in enumerate(the_one)}
    free = [int(place) for place in rng.permutation(GRID * GRID) if int(place) not in taken]
    for kind in KINDS_OF_SHAPE:
        for _ in range(of_kind[kind] - (kind in the_one)):
            taken[free.pop()] = kind
    places = tuple(taken.get(place, "") for place in range(GRID * GRID))
    columns = {}
    for colour in COLOURS:
        where = [i % GRID + 1 for i, kind in enumerate(places) if kind.startswith(colour)]
        columns[colour] = where[0] if len(where) == 1 else 0
    in_column = tuple(sum(bool(places[p]) for p in range(column, GRID * GRID, GRID)) for column in range(GRID))
    return _Scene(look, places, of_kind, columns, in_column), single


def _asked(kind: str, single: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))]
    if kind in ("both", "apart"):
        return tuple(colours[:2])
    if kind == "either":
        return (colours[0], SHAPES[int(rng.integers(len(SHAPES)))])
    if kind == LONG_KIND:
        return tuple(colours)
    order = [single[i] for i in rng.permutation(len(single))]
    return tuple(order if kind == "left" else order[:1])


def _question(truth: Truth) -> str:
    a, b, c = (*truth.asked, "", "")[:3]
    return {
        "both": f"how many {a} and {b} ?",
        "apart": f"difference of {a} and {b} ?",
        "either": f"how many {a} or {b} ?",
        "left": f"is {a} left of {b} ?",
        "before": f"how many left of {a} ?",
        LONG_KIND: f"how many {a} and {b} and {c} ?",
    }[truth.kind]


def _derivation(
    truth: Truth, seen: Mapping[str, int], *, wrong_method: bool = False, rng: Any = None
) -> tuple[list[str], str]:
    """The steps and the answer that follow from what is `seen`; with `rng`, computations may slip."""
    texts: list[str] = []

    def slip(value: int) -> int:
        return max(0, value + int(rng.choice([-1, 1]))) if rng is not None and rng.random() < SLIP_FRAC else value

    def read(name: str) -> int:
        value = slip(seen[name])
        texts.append(f"{name}: {value}")
        return value

    def compute(x: int, sign: str, y: int) -> int:
        value = slip(_SIGNS[sign](x, y))
        texts.append(f"{x} {sign} {y} = {value}")
        return value

    kind, asked = truth.kind, truth.asked
    if kind == "left":
        a, b = (read(f"column {name}") for name in asked)
        texts.append(f"{a} {'<' if a < b else '>' if a > b else '='} {b}")
        answer = "yes" if (a < b) != wrong_method else "no"
    elif kind == "before":
        before = range(1, min(read(f"column {asked[0]}") + wrong_method, GRID + 1))  # wrong: its own column too
        total = 0
        for column in before:
            there = read(f"column {column}")
            total = compute(total, "+", there) if column > 1 else there
        answer = str(total)
    else:
        if kind == "either":
            a, b = (read(name) for name in asked)
            overlap = read("-".join(asked))
            both = compute(a, "+", b)
            result = both if wrong_method else compute(both, "-", overlap)  # wrong: what is both is counted twice
        elif kind == "apart" or (kind == "both" and wrong_method):
            a, b = (read(name) for name in asked)
            result = compute(a, "+", b) if kind == "apart" and wrong_method else compute(max(a, b), "-", min(a, b))
        else:
            result = read(asked[0])
            for name in asked[1:]:
                result = compute(result, "+", read(name))
        answer = str(result)
    return [*(f"<step>{text}</step>" for text in texts), f"<answer>{answer}</answer>"], answer


# --- the checker ---------------------------------------------------------------------------------------------------


def _reading(text: str) -> tuple[str, int] | None:
    name, colon, value = text.rpartition(": ")
    names = name.split()
    is_name = name in (*COLOURS, *SHAPES, *KINDS_OF_SHAPE) or (
        len(names) == 2 and names[0] == "column" and (names[1] in COLOURS or _is_number(names[1]))
    )
    return (" ".join(names), int(value)) if colon and is_name and _is_number(value.strip()) else None


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10


def _is_needed(truth: Truth, name: str, seen: Mapping[str, int]) -> bool:
    """Whether the question needs this reading, given what is seen."""
    if truth.kind in SPATIAL and name in {f"column {asked}" for asked in truth.asked}:
        return True
    if truth.kind == "before":
        word = name.removeprefix("column ")
        return name.startswith("column ") and _is_number(word) and 0 < int(word) < seen.get(f"column {truth.asked[0]}", 0)
    return truth.kind not in SPATIAL and (name in truth.asked or (truth.kind == "either" and name == "-".join(truth.asked)))


def _needed(truth: Truth, seen: Mapping[str, int]) -> list[str]:
    """The readings that the question needs, given what is seen; those of `before` without the shape's own column."""
    if truth.kind == "left":
        return [f"column {name}" for name in truth.asked]
    if truth.kind == "before":
        return [f"column {i}" for i in range(1, min(seen.get(f"column {truth.asked[0]}", 1), GRID + 1))]
    return [*truth.asked, *(["-".join(truth.asked)] if truth.kind == "either" else [])]


def _follows(truth: Truth, tag: str, text: str, seen: Mapping[str, int]) -> bool:
    """Whether a computation, a comparison or the answer follows by the question's method from what is `seen`."""
    names = _needed(truth, seen)
    complete = all(name in seen for name in names)
    if truth.kind == "before":
        complete = complete and f"column {truth.asked[0]}" in seen and seen[f"column {truth.asked[0]}"] <= GRID
    if tag == "answer":
        return complete and text == _derivation(truth, seen)[1]
    words = text.split()
    if tag != "step":
        return False
    if truth.kind == "left":
        if len(words) != 3 or words[1] not in _ORDERS or not (_is_number(words[0]) and _is_number(words[2])):
            return False
        x, y = int(words[0]), int(words[2])
        return complete and _ORDERS[words[1]](x, y) and sorted((x, y)) == sorted(seen[name] for name in names)
    if len(words) != 5 or words[1] not in _SIGNS or words[3] != "=" or not all(_is_number(words[i]) for i in (0, 2, 4)):
        return False
    x, sign, y, z = int(words[0]), words[1], int(words[2]), int(words[4])
    if _SIGNS[sign](x, y) != z:
        return False
    values = [seen[name] for name in names if name in seen]
    if truth.kind == "apart":
        return complete and sign == "-" and [y, x] == sorted(values)
    if truth.kind == "either":
        if sign == "-":
            return complete and x == values[0] + values[1] and y == values[2]
        return all(name in seen for name in truth.asked) and sorted((x, y)) == sorted(seen[name] for name in truth.asked)
    return sign == "+" and _are_disjoint_sums(x, y, values)


def _are_disjoint_sums(x: int, y: int, values: Sequence[int]) -> bool:
    """Whether x and y are sums of two groups of the values that share none."""
    for size in range(1, len(values)):
        for group in itertools.combinations(range(len(values)), size):
            rest = [values[i] for i in range(len(values)) if i not in group]
            others = (sum(other) for k in range(1, len(rest) + 1) for other in itertools.combinations(rest, k))
            if sum(values[i] for i in group) == x and y in others:
                return True
    return False


# --- rows ----------------------------------------------------------------------------------------------------------


def _confused(scene: _Scene, rng: np.random.Generator) -> dict[str, int]:
    """The readings of the scene that the demonstrator takes this one for: each confusion half of the time."""

    def swapped(value: int, partners: Mapping[int, int]) -> int:
        return partners.get(value, value) if rng.random() < CONFUSED_FRAC else value

    kinds, look = CONFUSED_KINDS[scene.look], scene.look
    return _readings(
        {kind: swapped(n, CONFUSED_OF_KIND if kind in kinds else {}) for kind, n in scene.of_kind.items()},
        {colour: swapped(column, CONFUSED_COLUMN[look]) for colour, column in scene.columns.items()},
        [swapped(n, CONFUSED_IN_COLUMN) for n in scene.in_column],
    )


def _table(name: str, problems: Mapping[str, Sequence[_Problem]], rng: np.random.Generator) -> Table:
    rows = [_raw_row(f"{name}-{i:05d}", problem) for i, problem in enumerate(problems[name])]
    if name == "demonstrations":
        for row, problem in zip(rows, problems[name], strict=True):
            for column, seen in (("warmup_steps", problem.truth.readings), ("steps", _confused(problem.scene, rng))):
                wrong = bool(rng.random() < WRONG_METHOD_FRAC)
                row[column] = _derivation(problem.truth, seen, wrong_method=wrong, rng=rng)[0]
            row["statements"] = _statements(problem.truth, rng)
            row["places"] = [_place(kind, i % GRID + 1) for i, kind in enumerate(problem.scene.places)]
        return rows, SCENE_DEMONSTRATION
    if name == "step_errors":
        for row, problem in zip(rows, problems[name], strict=True):
            wrong = bool(rng.random() < WRONG_METHOD_FRAC)
            row["steps"] = _derivation(problem.truth, _confused(problem.scene, rng), wrong_method=wrong, rng=rng)[0]
            truths = check(problem.truth, row["steps"])
            row["process_correctness"] = [1 if t.is_right else -1 for t in truths]
            row["right_so_far"] = [t.is_right_so_far for t in truths]
            row["step_kinds"] = [t.kind for t in truths]
        return rows, STEP_ERROR
    if name == "train":
        test = [_raw_row(f"test-{i:05d}", problem) for i, problem in enumerate(problems["test"])]
        shared = dict(rows[int(rng.integers(len(rows)))], image=test[0]["image"])  # another question on a test picture
        rows += [*dirt(rows, test, rng), dict(shared, id="dirt-00007")]
    return rows, RAW


_NUM_STATEMENTS = 6


def _statements(truth: Truth, rng: np.random.Generator) -> list[str]:
    """True readings of the picture as steps: those that the question needs, and others."""
    own = [f"column {truth.asked[0]}"] if truth.kind == "before" else []
    needed = own + _needed(truth, truth.readings)
    others = [name for name in truth.readings if name not in needed]
    picked = [*needed, *(others[i] for i in rng.permutation(len(others)))][:_NUM_STATEMENTS]
    return [f"<step>{name}: {truth.readings[name]}</step>" for name in picked]


def _place(kind: str, column: int) -> str:
    """What stands at a place, in the words that readings ask with."""
    colour, _, shape = kind.partition("-")
    return f"{colour}: {shape}: {kind}: {column}" if kind else f"nothing nothing nothing {column}"


def _raw_row(row_id: str, problem: _Problem) -> dict[str, Any]:
    return {
        "id": row_id,
        "source": f"scene/{problem.scene.look}/{problem.truth.kind}",
        "question": _question(problem.truth),
        "image": {"bytes": problem.image, "path": None},
        "answer": problem.truth.answer,
    }


def _truth_row(row_id: str, problem: _Problem) -> dict[str, Any]:
    scene = problem.scene
    values = [*(scene.of_kind[k] for k in KINDS_OF_SHAPE), *(scene.columns[c] for c in COLOURS), *scene.in_column]
    return {"id": row_id, "kind": f"scene/{problem.truth.kind}", "colours": list(problem.truth.asked), "values": values}


# --- pictures ------------------------------------------------------------------------------------------------------


def _draw(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture: `[48, 48, 3]` floats in about [0, 1], with jittered places, sizes and colours, and pixel noise."""
    y, x = np.mgrid[:SIZE, :SIZE]
    if scene.look == "night":
        image = np.repeat((0.12 + 0.1 * ((x + y) // 3 % 2))[..., None], 3, axis=2)
    else:
        image = np.full((SIZE, SIZE, 3), 0.95)
    for place, kind in enumerate(scene.places):
        if not kind:
            continue
        colour, _, shape = kind.partition("-")
        paint = np.clip(np.array(_RGB[colour]) + rng.normal(0, 0.04, 3), 0, 1)
        middle = [CELL * i + CELL / 2 - 0.5 + rng.integers(-1, 2) for i in divmod(place, GRID)]
        radius = 4.0 + 0.5 * rng.integers(0, 2)
        dy, dx = np.abs(y - middle[0]), np.abs(x - middle[1])
        distance = np.maximum(dy, dx) if shape == "square" else np.hypot(dy, dx)
        inside = distance <= radius
        if scene.look == "outlined":
            inside &= distance > radius - 2.0
        image[inside] = paint
    return image + rng.normal(0, 0.08, image.shape)
