"""A benchmark's official files -> its rows, and a problem file that the pipeline samples on.

Owns file layouts: hub snapshots, the repositories' own files, tables with a column a variant; knows no verdict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.benchmarks import Benchmark, answer_rule
from components.errors import DataError, SettingsError
from components.grade import read_rows
from components.problems import Quarantined, picture_bytes
from components.progress import say
from components.records import IMAGE, replacing, with_image_column

Row = dict[str, Any]
FOLDER = "folder_of_its_file"
"""The field of a row that says where its pictures' paths start."""
_VARIANT_FILE = re.compile(r"(?:trial|sample_variant)[_-]?(\d+)")
_VARIANT_COLUMN = re.compile(r"(?i)variant[\s_-]*(\d+)")


def official_rows(benchmark: Benchmark, place: Path, *, split: str | None = None, pictures: bool = False) -> list[Row]:
    """The rows of a benchmark in their official order.

    Args:
        place: one of its files, or the folder of a hub snapshot or of the repository.
        split: a key of `benchmark.files`; None: the first.
        pictures: keep the encoded pictures that Parquet files hold.
    Raises:
        DataError: there is no such file, or it cannot be read.
        SettingsError: there is no such split.
    """
    chosen = split or next(iter(benchmark.files))
    if chosen not in benchmark.files:
        raise SettingsError("command line", f"no split {chosen!r}", f"known: {', '.join(benchmark.files)}")
    rows: list[Row] = []
    for path in _files(place, benchmark.files[chosen]):
        found = _parquet_rows(path) if pictures and path.suffix == ".parquet" else read_rows(path)
        rows += rows_of(found, path)
    return rows


def _files(place: Path, patterns: Sequence[str]) -> list[Path]:
    if place.is_file():
        return [place]
    for pattern in patterns:
        found = sorted(place.glob(pattern), key=_natural)
        if found:
            return found
    what = f"holds none of {', '.join(patterns)}" if place.is_dir() else "no such file or folder"
    raise DataError(str(place), what, "name a file of the benchmark, or the folder it was downloaded to")


def _natural(path: Path) -> list[Any]:
    """Names in the order of their numbers: trial2 before trial10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def rows_of(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Row]:
    """Rows as they are meant: variants named by their file or by a column each become rows with `id` and `variant`.

    Rows of a table that hold no verdict (sums, averages, blank lines) are left out.
    """
    columns = {name: int(match[1]) for name in rows[0] if (match := _VARIANT_COLUMN.fullmatch(str(name).strip()))}
    if columns:
        return list(_unfolded(rows, columns))
    variant = next((int(m[1]) for part in reversed(path.parts) if (m := _VARIANT_FILE.match(part))), None)
    named = {} if variant is None else {"variant": variant}
    return [{**row, **({} if "variant" in row else named), FOLDER: str(path.parent)} for row in rows]


def _unfolded(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, int]) -> Iterator[Row]:
    for row in rows:
        said = {number: str(row[name]).strip().lower() for name, number in columns.items()}
        if not set(said.values()) & _VERDICTS:
            continue
        kept = {key: value for key, value in row.items() if key not in columns}
        name = next((str(row[key]) for key in row if "id" in str(key).lower().split()), str(next(iter(row.values()))))
        for number, verdict in said.items():
            yield {**kept, "id": name, "variant": number, "official": verdict}


_VERDICTS = {"correct", "fail", "wrong", "incorrect", "right", "true", "false", "failed"}


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "was its download cut short?") from error
    return rows


def row_id(benchmark: Benchmark, row: Mapping[str, Any], number: int) -> str:
    """What names a row: its id fields, or its number where it has none."""
    parts = [str(row[name]) for name in benchmark.ids if row.get(name) is not None]
    return "/".join(parts) or str(number)


# --- problem files -------------------------------------------------------------------------------------------------


def write_problems(
    name: str,
    benchmark: Benchmark,
    rows: Sequence[Row],
    out: Path,
    *,
    images: Path | None = None,
    max_image_pixels: int = 50_000_000,
) -> dict[str, int]:
    """Write a problem file for `stepforge sample --split NAME=FILE`; returns how many rows were kept and left out, and why.

    Beside what the pipeline reads, every problem keeps its official fields as JSON in `official_row`, and `cluster` names
    the question that it is a variant of.

    Args:
        images: the folder that pictures' paths start at; None: that of the row's file.
    Raises:
        DataError: no row is usable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rule = answer_rule(benchmark.rule)
    kept: list[Row] = []
    fates: dict[str, int] = {"kept": 0}
    first = ""
    for number, row in enumerate(rows):
        problem = _problem(name, benchmark, rule, row, number, images, max_image_pixels)
        if isinstance(problem, str):
            fates[problem.partition(":")[0]] = fates.get(problem.partition(":")[0], 0) + 1
            first = first or f"{row_id(benchmark, row, number)}: {problem}"
        else:
            fates["kept"] += 1
            kept.append(problem)
    if not kept:
        raise DataError(name, f"none of {len(rows):,} rows is usable; the first: {first}", "name the pictures with --images")
    if first:
        say("benchmark", f"{len(rows) - len(kept):,} of {len(rows):,} rows left out; the first: {first}")
    plain = ("id", "source", "question", "answer", "cluster", "official_row")
    fields = [(key, pa.string()) for key in plain] + [("options", pa.list_(pa.string())), ("images", pa.list_(IMAGE))]
    schema = with_image_column(pa.schema(fields), "images", many=True)
    try:
        with replacing(out) as part:
            pq.write_table(pa.Table.from_pylist(kept, schema=schema), part, compression="zstd")
    except OSError as error:
        raise DataError(str(out), f"cannot be written: {error.strerror}", "check its folder and the free space") from error
    return fates


def _problem(
    name: str, benchmark: Benchmark, rule: Any, row: Row, number: int, images: Path | None, max_pixels: int
) -> Row | str:
    """The problem, or why there is none."""
    label = row_id(benchmark, row, number)
    gold = rule.read(row)
    if gold is None:
        return f"uncheckable: {str(row.get('answer'))[:60]}"
    question = benchmark.question(row)
    if not question:
        return "no_question: the row asks nothing"
    pictures = []
    folder = images or Path(row.get(FOLDER, "."))
    for picture in row_pictures(benchmark, row):
        content = picture_bytes(picture, folder, label, max_pixels)
        if isinstance(content, Quarantined):
            return f"{content.reason}: {content.detail}"
        pictures.append({"bytes": content, "path": None})
    dropped = {*benchmark.images, FOLDER}
    return {
        "id": label,
        "source": name,
        "question": question,
        "answer": gold.answer,
        "options": list(gold.options) if gold.options and gold.kind == "choice" else None,
        "images": pictures,
        "cluster": "/".join(str(row.get(part, label)) for part in benchmark.variants) or None,
        "official_row": json.dumps({k: v for k, v in row.items() if k not in dropped}, ensure_ascii=False, default=str),
    }


def row_pictures(benchmark: Benchmark, row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row in their order: paths, or {bytes, path}."""
    found: list[Any] = []
    for name in benchmark.images:
        value = row.get(name)
        if value is None or (isinstance(value, str | list) and not value):
            continue
        found += list(value) if isinstance(value, list | tuple) else [value]
        if name == "decoded_image":
            break
    return found
