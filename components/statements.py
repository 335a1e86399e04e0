"""Pictures with what is true of them, from any data set, and how true statements are made false.

Owns the rows, the values in them that can be wrong, and the corruptions by name. Knows no model and no tokens: what is
learnt from statements is `perception`'s.

A row has pictures in `images`, `image` or `image_path`, a `question` or none, and one or more of

    statements  texts; a text's value, the part that can be wrong, is its last word, or named: {text, value}
    caption     a text or several; numbers, colours and opposites in a sentence are its values, else all of it
    qa          {question, answer}
    ocr         lines that can be read in the picture
    boxes       {label, box: [x, y, width, height]}
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import DataError
from components.records import read_rows

KINDS = ("statements", "caption", "qa", "ocr", "boxes")
QUESTION = "Is each statement about the picture true?"
"""What is asked about pictures whose rows ask nothing."""
SAME_BOX = 0.5  # boxes with so large an intersection over union show the same thing
_PICTURES = ("images", "image", "image_path")
_TRIES = 8  # values that an operator may offer before another operator is asked

_LAST_WORD = re.compile(  # with the number that it counts, such as `9 cm`; before closing tags
    r"(.*?)((?:(?<!\S)[$€£]?[0-9][0-9.,]*\s)?(?:[^\s<>]*[^\s<>.,;:!?]|[^\s<>]+))([.,;:!?]*(?:\s*</\w+>)*)", re.DOTALL
)
_NUMBER = re.compile(r"([^0-9]*?)((?<!\w)[-−])?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?([^0-9]*)", re.DOTALL)
_NUMBERS_IN_TEXT = re.compile(r"(?<![\w.,-])[0-9][0-9,]*(?:\.[0-9]+)?(?:\s?%)?(?![\w]|[.,-]?[0-9])")
_PLAIN_NUMBER = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])")
_CLAIM = re.compile(r"\b(is|are|was|were)\b")
_DENIAL = re.compile(r"\b(not|no|never|none|nothing|cannot)\b|n't\b|\?", re.IGNORECASE)

NUMBER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")  # all plural
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
_PAIRS = (
    "left right|above below|top bottom|upper lower|inside outside|before after|more less|larger smaller|largest smallest"
    "|higher lower|highest lowest|longer shorter|longest shortest|taller shorter|wider narrower|increases decreases"
    "|increasing decreasing|increased decreased|rises falls|rising falling|open closed|yes no|true false"
    "|parallel perpendicular"
)
OPPOSITES: dict[str, list[str]] = defaultdict(list)
for _pair in _PAIRS.split("|"):
    _one, _other = _pair.split()
    OPPOSITES[_one].append(_other)
    OPPOSITES[_other].append(_one)
_SIDES = (
    r"(?:(?<=\bthe )|(?<=upper )|(?<=lower )|(?<=top )|(?<=bottom ))(?:left|right)\b|\b(?:left|right)(?= (?:side|half|of)\b)"
)
_WORDS = [
    w for w in (*OPPOSITES, *COLOURS, *NUMBER_WORDS) if w not in ("left", "right", "yes", "no", "open", "before", "after")
]
_WORDS_IN_TEXT = re.compile(rf"{_SIDES}|\b(?:{'|'.join(_WORDS)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """A value in a statement: what can be wrong."""

    start: int
    end: int
    slot: str
    """What may stand here: values of spans with equal slots are taken from one pool."""


@dataclass(frozen=True)
class Box:
    """Something that is to be seen at a place."""

    label: str
    place: tuple[float, float, float, float]
    """x, y, width, height, in the data set's own unit."""


@dataclass(frozen=True)
class Statement:
    """Something true of a picture."""

    text: str
    kind: str
    """One of KINDS."""
    spans: tuple[Span, ...]
    box: Box | None = None

    def value(self, span: Span) -> str:
        """What truly stands there."""
        return self.text[span.start : span.end]

    def having(self, span: Span, value: str) -> str:
        """The text with another value."""
        return self.text[: span.start] + value + self.text[span.end :]


@dataclass(frozen=True)
class Picture:
    """A row: what is seen, what is asked, and what is true."""

    question: str
    images: tuple[bytes | Path, ...]
    statements: tuple[Statement, ...]

    def contents(self) -> list[bytes]:
        """The encoded pictures; those kept in files are read now."""
        return [image if isinstance(image, bytes) else image.read_bytes() for image in self.images]


@dataclass(frozen=True)
class Checked:
    """A statement as shown, and the truth about it."""

    shown: str
    true: str
    span: Span
    """Where the value stands in `true`."""
    is_true: bool
    operator: str | None = None
    """What made the value wrong; None: it is right."""
    is_negated: bool = False
    """Whether what is shown denies the statement, right or wrong."""


# --- rows ----------------------------------------------------------------------------------------------------------


def read_pictures(path: Path, question_of: Callable[[str], str] = str) -> list[Picture]:
    """The rows of a Parquet or JSON-lines file.

    Args:
        question_of: question -> what the model is asked; see `Task.question`.
    Raises:
        DataError: the file cannot be read, or a row has no picture, no statement or one that cannot be understood.
    """
    rows = read_rows(path, [], optional=("question", *_PICTURES, *KINDS))
    return [picture_of(row, f"{path}, row {number}", path.parent, question_of) for number, row in enumerate(rows)]


def picture_of(
    row: Mapping[str, Any], place: str = "row", folder: Path = Path(), question_of: Callable[[str], str] = str
) -> Picture:
    """A row of such a file.

    Args:
        place: what an error calls the row.
        folder: where the paths of pictures begin.
    Raises:
        DataError: no picture, no statement, or one that cannot be understood.
    """
    statements: dict[str, Statement] = {}
    for kind in KINDS:
        for number, content in enumerate(_listed(row.get(kind))):
            try:
                made = _MAKERS[kind](content)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                what = f"{kind}[{number}] is {content!r:.120}: {error}"
                raise DataError(place, what, "docs/perception.md shows every field") from None
            for one in made:
                statements.setdefault(one.text, one)
    if not statements:
        raise DataError(place, "nothing is said of the picture", f"give one of {', '.join(KINDS)}")
    question = row.get("question")
    if question is not None and not isinstance(question, str):
        raise DataError(place, f"question is {question!r:.80}", "give a text, or none")
    images = _images(row, place, folder)
    return Picture(question_of(question or QUESTION), images, tuple(statements.values()))


def _listed(content: Any) -> list[Any]:
    if content is None:
        return []
    return list(content) if isinstance(content, list | tuple) else [content]


def _images(row: Mapping[str, Any], place: str, folder: Path) -> tuple[bytes | Path, ...]:
    field = next((name for name in _PICTURES if row.get(name) not in (None, "", [])), None)
    if field is None:
        raise DataError(place, "no picture", f"give one in {', '.join(_PICTURES)}")
    images: list[bytes | Path] = []
    for picture in _listed(row[field]):
        found = (picture.get("bytes") or picture.get("path")) if isinstance(picture, Mapping) else picture
        if isinstance(found, str) and found:
            path = (folder / found).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise DataError(place, f"{field}: {found!r:.120} leaves the folder of the file", "put pictures beside it")
            if not path.is_file():
                raise DataError(place, f"{field}: {found!r:.120} does not exist", "paths begin at the file's own folder")
            images.append(path)
        elif isinstance(found, bytes) and found:
            images.append(found)
        else:
            raise DataError(place, f"{field}: no picture in {picture!r:.80}", "bytes, {bytes, path}, or a path")
    return tuple(images)


def _text(value: Any, name: str) -> str:
    if isinstance(value, bool):
        value = "yes" if value else "no"
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    if not text:
        raise ValueError(f"{name} is no text")
    return text


def _of_statement(content: Any) -> list[Statement]:
    if not isinstance(content, Mapping):
        text = _text(content, "a statement")
        found = _LAST_WORD.fullmatch(text)
        start, end = found.span(2) if found else (0, len(text))
        return [Statement(text, "statements", (_span("statements", text, start, end),))]
    text, value = _text(content["text"], "text"), _text(content["value"], "value")
    start = text.rfind(value)
    if start < 0:
        raise ValueError(f"the value {value!r} does not stand in the text")
    return [Statement(text, "statements", (_span("statements", text, start, start + len(value)),))]


def _of_caption(content: Any) -> list[Statement]:
    made = []
    for sentence in _SENTENCE_END.split(_text(content, "a caption")):
        places = sorted(m.span() for finder in (_NUMBERS_IN_TEXT, _WORDS_IN_TEXT) for m in finder.finditer(sentence))
        whole = Span(0, len(sentence.rstrip(".!?")) or len(sentence), "caption")
        made.append(
            Statement(sentence, "caption", tuple(_span("caption", sentence, *place) for place in places) or (whole,))
        )
    return made


def _of_answer(content: Any) -> list[Statement]:
    question, answer = _text(content["question"], "question"), _text(content["answer"], "answer")
    text = f"{question} {answer}"
    end = len(text.rstrip(".")) if answer.rstrip(".") else len(text)
    return [Statement(text, "qa", (_span("qa", text, len(question) + 1, end),))]


def _of_line(content: Any) -> list[Statement]:
    head = "text: "
    line = _text(content, "a line")
    return [Statement(head + line, "ocr", (Span(len(head), len(head) + len(line), "ocr"),))]


def _of_box(content: Any) -> list[Statement]:
    label, numbers = _text(content["label"], "label"), list(content["box"])
    if len(numbers) != 4 or not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers) or min(numbers[2:]) <= 0:
        raise ValueError("a box is [x, y, width, height]")
    place = _place(numbers)
    spans = (
        Span(0, len(label), "boxes\0label"),
        Span(len(label) + 2, len(label) + 2 + len(place), f"boxes\0{normal(label)}"),
    )
    return [Statement(f"{label}: {place}", "boxes", spans, Box(label, tuple(map(float, numbers))))]  # type: ignore[arg-type]


_MAKERS: dict[str, Callable[[Any], list[Statement]]] = {
    "statements": _of_statement,
    "caption": _of_caption,
    "qa": _of_answer,
    "ocr": _of_line,
    "boxes": _of_box,
}


def _place(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:.6g}' for number in numbers)}]"


def _span(kind: str, text: str, start: int, end: int) -> Span:
    return Span(start, end, "\0".join((kind, " ".join(text[:start].casefold().split()), " ".join(text[end:].split()))))


def normal(text: str) -> str:
    """The text as it is compared: `5.0 %` and `5%`, `Two dogs.` and `2 dogs` are the same."""
    flat = unicodedata.normalize("NFKC", text).casefold().replace("−", "-").replace(" percent", "%")
    flat = re.sub(rf"\b({'|'.join(NUMBER_WORDS)})\b", lambda m: str(NUMBER_WORDS.index(m[0]) + 2), flat)
    flat = _PLAIN_NUMBER.sub(lambda m: format(Decimal(m[0].replace(",", "")).normalize(), "f"), flat)
    return re.sub(r"\s+", "", flat).strip(".,;:!?'\"") or flat.strip()


# --- corruptions ---------------------------------------------------------------------------------------------------


class Corruptions:
    """What a set of pictures offers to make its statements false.

    Args:
        names: which of CORRUPTIONS may be used.
    """

    def __init__(self, pictures: Sequence[Picture], names: Sequence[str]) -> None:
        self.pictures = pictures
        self.operators = [name for name in CORRUPTIONS if name in names]
        self.negates = "negation" in names
        self.pools: dict[str, list[tuple[int, str]]] = defaultdict(list)
        """slot -> (picture, value), as often as it occurs: values that are rare when true are as rare when false"""
        self.extent = [0.0, 0.0]
        """How far right and down boxes reach."""
        self._truths: dict[int, set[str]] = {}
        for i, picture in enumerate(pictures):
            for statement in picture.statements:
                for span in statement.spans:
                    entry = (i, statement.value(span))
                    self.pools[span.slot].append(entry)
                    self.pools[_wider(statement, span)].append(entry)
                if statement.box is not None:
                    x, y, width, height = statement.box.place
                    self.extent = [max(self.extent[0], x + width), max(self.extent[1], y + height)]
        self._known: dict[str, tuple[set[str], float, float, bool]] = {}

    def draw(self, i: int, j: int, rng: np.random.Generator, *, corrupted_frac: float) -> Checked:
        """Statement j of picture i, made false with this chance; true, where nothing makes it false.

        A statement that can be denied is, half of the time, whether it is to come out true or false: the word alone
        says nothing.
        """
        statement = self.pictures[i].statements[j]
        is_true = bool(rng.random() >= corrupted_frac)
        checked = Checked(statement.text, statement.text, statement.spans[int(rng.integers(len(statement.spans)))], True)
        denies = self.negates and bool(rng.random() < 0.5) and denied(statement) is not None
        if is_true == denies:
            wrong = self.corrupt(i, statement, checked.span, rng)
            if wrong is None:
                return checked
            checked = wrong
        if denies:
            text = denied(statement, checked.shown)
            if text is not None:
                return Checked(text, checked.true, checked.span, not checked.is_true, checked.operator, True)
        return checked

    def corrupt(self, i: int, statement: Statement, span: Span, rng: np.random.Generator) -> Checked | None:
        """The statement with a value that is wrong of picture i: this one if possible, else another; None: with none.

        Every operator that can is as likely as any other.
        """
        others = [other for other in statement.spans if other is not span]
        for chosen in (span, *(others[int(k)] for k in rng.permutation(len(others)))):
            for k in rng.permutation(len(self.operators)):
                name = self.operators[int(k)]
                for value in CORRUPTIONS[name](self, i, statement, chosen, rng):
                    if not self.is_true(i, statement, chosen, value):
                        return Checked(statement.having(chosen, value), statement.text, chosen, False, name)
        return None

    def is_true(self, i: int, statement: Statement, span: Span, value: str) -> bool:
        """Whether the statement with this value is, as far as the row says, true of picture i."""
        picture = self.pictures[i]
        if i not in self._truths:
            self._truths[i] = {normal(one.text) for one in picture.statements}
        if normal(statement.having(span, value)) in self._truths[i]:
            return True
        if statement.kind == "ocr":
            lines = [normal(one.value(one.spans[0])) for one in picture.statements if one.kind == "ocr"]
            return any(normal(value) in line for line in lines)
        if statement.box is not None:
            label, place = statement.box.label, statement.box.place
            if span.start == 0:
                label = value
            else:
                place = tuple(map(float, value.strip("[]").split(",")))  # type: ignore[assignment]
            boxes = [one.box for one in picture.statements if one.box is not None]
            return any(normal(b.label) == normal(label) and overlap(b.place, place) >= SAME_BOX for b in boxes)
        return False

    def known(self, slot: str) -> tuple[set[str], float, float, bool]:
        """Of a slot: its values in normal form, the lowest and highest number, and whether several pictures have it."""
        if slot not in self._known:
            entries = self.pools.get(slot, [])
            numbers = [n.value for _, value in entries if (n := number_in(value)) is not None]
            low, high = (min(numbers), max(numbers)) if numbers else (-np.inf, np.inf)
            self._known[slot] = {normal(v) for _, v in entries}, low, high, len({i for i, _ in entries}) > 1
        return self._known[slot]

    def fits(self, slot: str, value: str) -> bool:
        """Whether a value is one that the slot might have: otherwise it were false for all to see, picture or none."""
        values, low, high, is_shared = self.known(slot)
        if not is_shared:
            return True
        number = number_in(value)
        return normal(value) in values if number is None else low <= number.value <= high


def neighbour(known: Corruptions, i: int, statement: Statement, span: Span, rng: np.random.Generator) -> Iterator[str]:
    """A number that differs by one in one of its places, written like it; of a number word, the word before or after."""
    value = statement.value(span)
    if value.casefold() in NUMBER_WORDS:
        k = NUMBER_WORDS.index(value.casefold())
        near = [_cased(NUMBER_WORDS[n], value) for n in (k - 1, k + 1) if 0 <= n < len(NUMBER_WORDS)]
    else:
        number = number_in(value)
        near = number.neighbours() if number is not None else []
    yield from (near[int(k)] for k in rng.permutation(len(near)) if known.fits(span.slot, near[int(k)]))


def elsewhere(known: Corruptions, i: int, statement: Statement, span: Span, rng: np.random.Generator) -> Iterator[str]:
    """What stands in the same place of the same statement about another picture; where there is none, of a like one."""
    for pool in (known.pools[span.slot], known.pools[_wider(statement, span)]):
        found = False
        for _ in range(_TRIES):
            k, value = pool[int(rng.integers(len(pool)))]
            if k != i:
                found = True
                yield value
        if found:
            return


def beside(known: Corruptions, i: int, statement: Statement, span: Span, rng: np.random.Generator) -> Iterator[str]:
    """The value of another statement about the same picture, as if the two were swapped."""
    sort = _sort(statement.value(span))
    is_place = statement.box is not None and span.start > 0
    values = []
    for other in known.pictures[i].statements:
        for place in other.spans:
            value = other.value(place)
            alike = is_place == (other.box is not None and place.start > 0) and _sort(value) == sort
            if other is not statement and other.kind == statement.kind and alike:
                values.append(value)
    yield from (values[int(k)] for k in rng.permutation(len(values)) if is_place or known.fits(span.slot, values[int(k)]))


def opposite(known: Corruptions, i: int, statement: Statement, span: Span, rng: np.random.Generator) -> Iterator[str]:
    """The word that says the contrary; of a colour, another colour."""
    value = statement.value(span)
    word = value.casefold()
    words = OPPOSITES.get(word) or ([c for c in COLOURS if c != word] if word in COLOURS else [])
    yield from (_cased(words[int(k)], value) for k in rng.permutation(len(words)))


def shifted(known: Corruptions, i: int, statement: Statement, span: Span, rng: np.random.Generator) -> Iterator[str]:
    """The box, moved by three quarters of its size up to one and a half, to a place where it does not leave the picture."""
    if statement.box is None or span.start == 0:
        return
    x, y, width, height = statement.box.place
    digits = max((len(part.partition(".")[2]) for part in statement.value(span).strip("[]").split(",")), default=0)
    for _ in range(_TRIES):
        right, down = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1)][int(rng.integers(8))]
        by = 0.75 + 0.75 * rng.random()
        moved = round(x + right * by * width, digits), round(y + down * by * height, digits)
        if min(moved) >= 0 and moved[0] + width <= known.extent[0] and moved[1] + height <= known.extent[1]:
            yield _place((*moved, width, height))


Operator = Callable[[Corruptions, int, Statement, Span, np.random.Generator], Iterator[str]]
"""(what is known, picture, statement, value, generator) -> other values, best first; `Corruptions` refuses the true ones"""
CORRUPTIONS: dict[str, Operator] = {
    "neighbour": neighbour,
    "elsewhere": elsewhere,
    "beside": beside,
    "opposite": opposite,
    "shifted": shifted,
}
USUAL = (*(name for name in CORRUPTIONS if name != "beside"), "negation")
"""What is used unless others are named: `beside` is for models that already tell things apart (docs/perception.md)."""


def denied(statement: Statement, text: str | None = None) -> str | None:
    """The statement, or `text` in its place, with a `not`; None where one word does not deny it."""
    text = statement.text if text is None else text
    if statement.kind not in ("statements", "caption") or _DENIAL.search(text) or len(_CLAIM.findall(text)) != 1:
        return None
    return _CLAIM.sub(r"\1 not", text)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union, in [0, 1], of two boxes x, y, width, height."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


@dataclass(frozen=True)
class Number:
    """A value that is one number, with what stands around it."""

    before: str
    sign: str
    digits: str
    """As written: thousands may be set off by commas."""
    decimals: str
    """As written, with its point; empty: a whole number."""
    after: str

    @property
    def value(self) -> float:
        """As a number, unit left aside."""
        return float(f"{'-' if self.sign else ''}{self.digits.replace(',', '')}{self.decimals}")

    def neighbours(self) -> list[str]:
        """The numbers that differ by one in one place, 0 left aside, written like this one."""
        whole = self.digits.replace(",", "")
        scale = max(len(self.decimals) - 1, 0)
        units = int(whole + self.decimals[1:])
        found = []
        for place in range(len(whole) + scale):
            for changed in (units - 10**place, units + 10**place):
                if changed <= 0:
                    continue
                text = str(changed).zfill(scale + 1)
                front, back = (text[:-scale], f".{text[-scale:]}") if scale else (text, "")
                if whole.startswith("0") and len(whole) > 1:
                    front = front.zfill(len(whole))
                elif "," in self.digits:
                    front = f"{int(front):,}"
                found.append(f"{self.before}{self.sign}{front}{back}{self.after}")
        return list(dict.fromkeys(found))


def number_in(value: str) -> Number | None:
    """The one number of a value, such as `$1,200`, `-3.5 cm` or `40 %`; None where there is none or several."""
    found = _NUMBER.fullmatch(value)
    return Number(found[1], found[2] or "", found[3], found[4] or "", found[5]) if found else None


def _sort(value: str) -> str:
    """Values of one sort may be swapped: colours, the two of a pair of opposites, else what has one shape."""
    word = value.casefold()
    if word in COLOURS:
        return "colour"
    return "\0".join(sorted({word, *OPPOSITES[word]})) if word in OPPOSITES else _shape(value)


def _shape(value: str) -> str:
    """What a value looks like: a number with its unit, or so many words."""
    if value.casefold() in NUMBER_WORDS:
        return "number word"
    number = number_in(value)
    return f"number\0{number.before}\0{number.after.strip()}" if number else f"words\0{min(len(value.split()), 4)}"


def _wider(statement: Statement, span: Span) -> str:
    """The pool of values in like places: same kind, same opening words, same shape."""
    opening = " ".join(statement.text[: span.start].casefold().split()[:2])
    return f"~{statement.kind}\0{opening}\0{_shape(statement.value(span))}"


def _cased(word: str, like: str) -> str:
    return word.upper() if like.isupper() and len(like) > 1 else word.capitalize() if like[:1].isupper() else word


def census(pictures: Sequence[Picture]) -> dict[str, int]:
    """How many statements of each kind there are."""
    counts = Counter(statement.kind for picture in pictures for statement in picture.statements)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}
