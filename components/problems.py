"""Reads problem files of any usual shape, row by row; what cannot be used comes back with a reason, not as an exception.

Knows nothing of duplicates, difficulty or what the problems are for: that is the curator's business.

    JSON (a list), JSON lines, Parquet, Arrow: id, question, answer or correct_answer, and a picture or none in
    images | image | image_path: bytes, {bytes, path}, a path below the file's own folder, or a list of these; options, where
    there are some: a list of the texts of A, B, .., by which an answer may name its choice too.
"""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.choices import ALL_LETTERS
from components.errors import DataError, one_line
from components.grading import answer_type
from components.progress import say
from components.records import bytes_digest, problem_id

READ_REASONS = (
    "bad_row",
    "missing_question",
    "missing_answer",
    "missing_image",
    "path_outside",
    "broken_image",
    "huge_image",
    "uncheckable_answer",
)
REASONS = (
    *READ_REASONS,
    "duplicate_id",
    "exact_duplicate",
    "near_duplicate",
    "holdout_overlap",
    "too_easy",
    "too_hard",
)
"""Why a row may be quarantined: a closed list, the reader's and the curator's."""
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO")  # no format whose decoder starts other programs
_ANSWERS = ("answer", "correct_answer")
_PICTURES = ("images", "image", "image_path")
_ROWS_PER_BATCH = 1024
_EATEN = {"\x07": r"\a", "\x08": r"\b", "\x0b": r"\v", "\x0c": r"\f"}  # what JSON makes of \alpha, \beta, \vec, \frac


@dataclass(frozen=True)
class Quarantined:
    """A row that is no usable problem, and why."""

    source_id: str
    reason: str
    """One of READ_REASONS."""
    detail: str
    """What was seen, with the value."""
    problem: dict[str, Any] | None = None
    """The problem, where only its answer cannot be checked."""


def load_benchmark(path: Path, *, max_image_pixels: int) -> list[dict[str, Any]]:
    """The usable problems of a benchmark file, in its order, each once; how many rows are left out is said aloud.

    Raises:
        DataError: the file cannot be read, or none of its rows is usable.
    """
    problems: dict[str, dict[str, Any]] = {}
    unused: list[str] = []
    for row, problem in load_problems(path, max_image_pixels=max_image_pixels):
        if isinstance(problem, Quarantined):
            unused.append(f"row {row}, {problem.reason}: {problem.detail}")
        elif problem["problem_id"] in problems:
            unused.append(f"row {row} is the same problem as {problems[problem['problem_id']]['source_id']}")
        else:
            problems[problem["problem_id"]] = problem
    if not problems:
        raise DataError(str(path), f"none of {len(unused)} rows is usable; the first: {unused[0]}", "correct the file")
    if unused:
        say("read", f"{path}: {len(unused):,} of {len(unused) + len(problems):,} rows left out; the first: {unused[0]}")
    return list(problems.values())


def load_problems(path: Path, *, max_image_pixels: int) -> Iterator[tuple[int, dict[str, Any] | Quarantined]]:
    """(row number from 0, problem in the layout of records.PROBLEM or Quarantined), one for every row of the file.

    Texts are in Unicode NFC with plain line ends and no blanks at line ends; LaTeX is kept. A picture keeps its
    bytes once it is known to decode; its size is read from its header first.

    Raises:
        DataError: the file is missing, empty, not UTF-8, no JSON / Parquet / Arrow, or lacks a column.
    """
    count = 0
    for count, row in enumerate(_rows(path), start=1):
        yield count - 1, _problem(row, path, max_image_pixels)
    if not count:
        raise DataError(str(path), "has no rows", "give a file with at least one problem")


# --- rows of a file ------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[Any]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError(str(path), what, "name a JSON, JSONL, Parquet or Arrow file")
    if not path.stat().st_size:
        raise DataError(str(path), "is empty", "was its download cut short?")
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl", ".ndjson"):
        rows: Iterable[Any] = _json_rows(path)
    elif suffix in (".parquet", ".arrow", ".feather", ".ipc"):
        rows = _arrow_rows(path)
    else:
        raise DataError(str(path), f"unknown kind of file {suffix!r}", "known: .json .jsonl .parquet .arrow")
    yield from rows


def _json_rows(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}"
        raise DataError(str(path), what, "save it as UTF-8, for example with iconv -t UTF-8") from error
    try:
        content = json.loads(text)
        rows = content if isinstance(content, list) else [content]
    except (ValueError, RecursionError) as error:
        rows = [_json_line(line) for line in text.split("\n") if line.strip()]
        if sum(isinstance(row, _NotJson) for row in rows) * 2 >= len(rows):
            raise DataError(str(path), f"not JSON: {error}", "give a list of objects, or one object a line") from error
    keys = {key for row in rows if isinstance(row, dict) for key in row}
    _check_columns(path, keys, rows)
    return rows


@dataclass(frozen=True)
class _NotJson:
    error: str


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return _NotJson(str(error))


def _arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path)
            names, batches = file.schema_arrow.names, None
        else:
            batches = list(_ipc_batches(path))
            names = batches[0].schema.names if batches else []
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            str(path), f"not a readable {path.suffix[1:]} file: {error}", "was its download cut short?"
        ) from error
    _check_columns(path, names, [{}])
    wanted = [name for name in ("id", "source", "question", "options", *_ANSWERS, *_PICTURES) if name in names]
    if batches is None:
        batches = file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=wanted)
    try:
        for batch in batches:
            yield from batch.select(wanted).to_pylist()
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read to its end: {error}", "was its download cut short?") from error


def _ipc_batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with path.open("rb") as file:
        is_file_format = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file_format else pa.ipc.open_stream(file)
        table = reader.read_all()
    yield from table.to_batches(max_chunksize=_ROWS_PER_BATCH)


def _check_columns(path: Path, names: Iterable[str], rows: list[Any]) -> None:
    present = set(names)
    if not rows:
        return
    for wanted in (("id",), ("question",), _ANSWERS):
        if not present & set(wanted):
            shown = ", ".join(sorted(present)[:8]) or "none"
            raise DataError(str(path), f"no column {' or '.join(wanted)!r}; it has: {shown}", "rename the columns")


# --- one row -------------------------------------------------------------------------------------------------------


def _problem(row: Any, path: Path, max_image_pixels: int) -> dict[str, Any] | Quarantined:
    if isinstance(row, _NotJson):
        return Quarantined("", "bad_row", f"not JSON: {row.error}")
    if not isinstance(row, Mapping):
        return Quarantined("", "bad_row", f"a {type(row).__name__} instead of an object: {row!r:.80}")
    source_id = normal_text(row.get("id"))
    if not source_id:
        return Quarantined("", "bad_row", f"id is {row.get('id')!r:.80}")
    try:
        source_id.encode()
    except UnicodeEncodeError:
        return Quarantined(ascii(source_id), "bad_row", "id has half a character (a lone surrogate)")
    question, answer = (
        normal_text(row.get("question")),
        normal_text(next((row[key] for key in _ANSWERS if row.get(key) is not None), None)),
    )
    for name, text in (("question", question), ("answer", answer)):
        if text is None:
            return Quarantined(source_id, "bad_row", f"{name} is {row.get(name)!r:.80}, no text")
        if not text:
            return Quarantined(source_id, f"missing_{name}", f"no {name}")
        try:
            text.encode()
        except UnicodeEncodeError:
            return Quarantined(source_id, "bad_row", f"{name} has half a character (a lone surrogate)")
    assert question is not None and answer is not None
    images: list[dict[str, Any]] = []
    digests = []
    for picture in _pictures(row):
        content = picture_bytes(picture, path.parent, source_id, max_image_pixels)
        if isinstance(content, Quarantined):
            return content
        images.append({"bytes": content, "path": None})
        digests.append(bytes_digest(content))
    options = _options(row)
    kind, why = answer_type(answer, options)
    problem = {
        "problem_id": problem_id(question, answer, digests),
        "source_id": source_id,
        "source": normal_text(row.get("source")) or path.stem,
        "question": question,
        "images": images,
        "answer": answer,
        "answer_type": kind,
        "options": list(options) or None,
    }
    if kind is None:
        return Quarantined(source_id, "uncheckable_answer", f"{why}: {one_line(answer, 120)}", problem)
    return problem


def normal_text(value: Any) -> str | None:
    """A text in normal form; "" for nothing, None for what is no text."""
    if value is None:
        return ""
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | float)
        or (isinstance(value, float) and math.isnan(value))
    ):
        return None
    text = unicodedata.normalize("NFC", str(value)).replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x07\x08\x0b\x0c](?=[a-z])", lambda eaten: _EATEN[eaten.group()], text)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of options A, B, ..; none where they are letters themselves, because the choices are in the picture."""
    value = row.get("options")
    told = [normal_text(option) for option in value] if isinstance(value, list | tuple) else []
    letters = list(ALL_LETTERS[: len(told)])
    options = tuple(option for option in told if option)
    return options if len(options) == len(told) > 1 and list(options) != letters else ()


def _pictures(row: Mapping[str, Any]) -> list[Any]:
    for name in _PICTURES:
        value = row.get(name)
        if value is not None and value not in ("", []):
            return list(value) if isinstance(value, list | tuple) else [value]
    return []


def picture_bytes(picture: Any, folder: Path, source_id: str, max_pixels: int) -> bytes | Quarantined:
    """The verified bytes of one picture, or why it has none."""
    if isinstance(picture, Mapping):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, str) and picture:
        found = _picture_file(picture, folder, source_id, max_pixels)
        if isinstance(found, Quarantined):
            return found
        picture = found
    if not isinstance(picture, bytes) or not picture:
        return Quarantined(source_id, "missing_image", f"no picture in {picture!r:.80}")
    if why := picture_fault(picture, max_pixels=max_pixels):
        return Quarantined(source_id, *why)
    return picture


def _picture_file(name: str, folder: Path, source_id: str, max_pixels: int) -> bytes | Quarantined:
    try:
        home = folder.resolve()
        path = (home / name).resolve()
        if Path(name).is_absolute() or not path.is_relative_to(home):
            return Quarantined(source_id, "path_outside", f"{name!r:.200} leaves the folder of the problem file")
        if not path.is_file():
            return Quarantined(source_id, "missing_image", f"{name!r:.200} does not exist")
        if path.stat().st_size > 8 * max_pixels + 65536:
            return Quarantined(source_id, "huge_image", f"{name!r:.200} has {path.stat().st_size:,} bytes")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        return Quarantined(source_id, "missing_image", f"{name!r:.200} cannot be read: {error}")


def picture_fault(content: bytes, *, max_pixels: int) -> tuple[str, str] | None:
    """(reason, detail) if a picture is too large by its header, or does not decode to its end; None if it is sound."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; our own limit is lower
            picture = Image.open(io.BytesIO(content), formats=PICTURE_FORMATS)
        width, height = picture.size
        if width * height > max_pixels:
            return "huge_image", f"{width} x {height} = {width * height:,} pixels, more than {max_pixels:,}"
        if width < 2 or height < 2:
            return "broken_image", f"{width} x {height} pixels"
        picture.load()
    except Image.DecompressionBombError as error:
        return "huge_image", str(error)
    except Exception as error:  # decoders raise anything on damaged bytes
        return "broken_image", f"{type(error).__name__}: {error}"
    return None
