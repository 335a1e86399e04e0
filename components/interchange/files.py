"""The rows of label files, read one at a time.

Knows JSON, JSON lines and Parquet, and nothing of what a row means. Memory does not grow with a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.interchange.foreign import BadRow
from components.lineage import SUMMARY

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_CHUNK_CHARS = 1 << 20
_PROBE_LINES = 5
_ROWS_PER_BATCH = 256
_decoder = json.JSONDecoder()


def label_files(paths: list[Path]) -> list[Path]:
    """The files that are named, and those in folders that are named, sorted.

    Raises:
        DataError: one is missing, empty or of an unknown kind, or a folder holds none.
    """
    files: list[Path] = []
    for path in paths:
        below = path.rglob("*") if path.is_dir() else ()
        inside = sorted(p for p in below if p.is_file() and p.suffix.lower() in SUFFIXES and p.name != SUMMARY)
        if path.is_dir() and not inside:
            raise DataError(str(path), "holds no label file", f"known: {' '.join(SUFFIXES)}")
        files += inside or [path]
    for path in files:
        if not path.is_file():
            raise DataError(str(path), "no such file", "check the path")
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(str(path), f"unknown kind of file {path.suffix!r}", f"known: {' '.join(SUFFIXES)}")
        if not path.stat().st_size:
            raise DataError(str(path), "is empty", "was its download cut short?")
    return files


def read_rows_of(path: Path) -> Iterator[Mapping[str, Any] | BadRow]:
    """Every row of a file as a mapping, or why it is none.

    A bad line of a JSON-lines file is one bad row. A JSON list that breaks off has no rows behind the break.

    Raises:
        DataError: no readable JSON or Parquet.
    """
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _json_rows(path)
    for row in rows:
        if isinstance(row, dict | BadRow):
            yield row
        else:
            yield BadRow("bad_row", f"a {type(row).__name__} instead of an object: {row!r:.80}")


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS_PER_BATCH, use_threads=False):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "was its download cut short?") from error


def _json_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        start = file.tell()
        probe = [line for line, _ in zip((line for line in file if line.strip()), range(_PROBE_LINES), strict=False)]
        file.seek(start)
        has_lines = bool(probe) and not probe[0].lstrip().startswith(b"[") and any(_is_object(line) for line in probe)
        if has_lines:
            for line in file:
                if line.strip():
                    yield _line(line)
            return
    yield from _json_values(path)


def _is_object(line: bytes) -> bool:
    return isinstance(_line(line), dict)


def _line(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("bad_row", f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}")
    except (ValueError, RecursionError) as error:
        return BadRow("bad_row", f"not JSON: {error}")


def _json_values(path: Path) -> Iterator[Any]:
    """The elements of one list, or objects one after the other, however they are broken into lines."""
    buffer, at, num_read, size, in_list = "", 0, 0, _CHUNK_CHARS, False
    with path.open(encoding="utf-8-sig") as file:
        while True:
            try:
                chunk = file.read(size)
            except UnicodeDecodeError as error:
                raise DataError(str(path), f"not UTF-8: {error}", "save it as UTF-8") from error
            buffer, at = buffer[at:] + chunk, 0
            while True:
                while at < len(buffer) and buffer[at] in " \t\r\n,":
                    at += 1
                if at == len(buffer):
                    size = _CHUNK_CHARS
                    break
                if buffer[at] == "[" and not in_list and not num_read:
                    in_list, at = True, at + 1
                    continue
                if buffer[at] == "]" and in_list:
                    return
                try:
                    value, at = _decoder.raw_decode(buffer, at)
                except (ValueError, RecursionError) as error:
                    if chunk and not isinstance(error, RecursionError):
                        size = max(size, len(buffer))  # a long element: read as much again
                        break
                    what = f"not JSON behind row {num_read}: {error}"
                    raise DataError(
                        str(path), what, "give one object a line, or a list; was its download cut short?"
                    ) from error
                num_read += 1
                yield value
            if not chunk:
                if in_list:
                    raise DataError(
                        str(path), f"the list ends nowhere: {num_read:,} rows were read", "was its download cut short?"
                    )
                return
