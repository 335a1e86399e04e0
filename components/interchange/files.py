"""The rows of label files, read one at a time, and tables with pictures, written a few megabytes at a time.

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
_GROUP_BYTES = 32 * 2**20
_GROUP_ROWS = 8192
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


class PictureTableWriter:
    """Writes a table whose rows hold pictures; a row group ends where its pictures are some megabytes."""

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._path, self._schema = path, schema
        self._rows: list[Mapping[str, Any]] = []
        self._num_bytes = 0
        self.num_rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", store_schema=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row with `images`."""
        self._rows.append(row)
        self.num_rows += 1
        self._num_bytes += sum(len(picture["bytes"]) for picture in row["images"] or ())
        if len(self._rows) >= _GROUP_ROWS or self._num_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        try:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
        except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError) as error:
            raise DataError(
                str(self._path), f"a value does not fit its column: {error}", "look at the file's rows"
            ) from error
        if table.num_rows:
            self._writer.write_table(table, row_group_size=_GROUP_ROWS)
        self._rows, self._num_bytes = [], 0

    def __enter__(self) -> PictureTableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()
