"""The typed rows, their Parquet schemas and the digests that name them.

Owns how a row is written, read and named; does not know what any stage does with it.
A table is a list of dicts in memory and one Parquet file on disk; equal rows give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import DataError

DIGEST_CHARS = 32  # 128 bits of SHA-256: no accidental clash in 1e15 rows
ROWS_PER_GROUP = 8192
PICTURE_BYTES_PER_GROUP = 32 * 2**20

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def with_image_column(schema: pa.Schema, column: str, *, many: bool) -> pa.Schema:
    """`schema` marked so that Hugging Face `datasets` decodes `column` as picture(s)."""
    image: dict[str, Any] = {"_type": "Image"}
    features = {column: {"feature": image, "_type": "List"} if many else image}
    for field in schema:
        if field.name != column:
            features[field.name] = _hf_feature(field.type)
    ordered = {field.name: features[field.name] for field in schema}
    info = json.dumps({"info": {"features": ordered}}, sort_keys=False)
    return schema.with_metadata({"huggingface": info})


def _hf_feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _hf_feature(kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}


PROBLEM = with_image_column(
    pa.schema(
        [
            ("problem_id", pa.string()),  # digest of question, answer and picture bytes
            ("source_id", pa.string()),  # the id the problem came with
            ("source", pa.string()),  # where it came from; '/' separates levels
            ("question", pa.string()),
            ("images", pa.list_(IMAGE)),  # none, one or several, shown before the question
            ("answer", pa.string()),
            ("answer_type", pa.string()),  # the grading rule that will compare answers
            ("options", pa.list_(pa.string())),  # the texts of options A, B, ..; null if there are none
        ]
    ),
    "images",
    many=True,
)

_COMPLETION = [  # what is kept of every text that an engine wrote and the verifier judged
    ("seed", pa.int64()),
    ("text", pa.string()),  # as generated; after the prefill, if there was one
    ("answer", pa.string()),  # extracted; null if none
    ("verdict", pa.string()),  # right | wrong | unknown
    ("rule", pa.string()),  # the grading rule that decided
    ("finish_reason", pa.string()),  # stop | length
    ("num_tokens", pa.int32()),
    ("logprob", pa.float64()),  # sum over the generated tokens, natural log, at temperature 1
    ("policy_digest", pa.string()),
    ("verifier_digest", pa.string()),
]

SOLUTION = pa.schema(
    [
        ("solution_id", pa.string()),
        ("problem_id", pa.string()),
        ("index", pa.int32()),  # which of the problem's solutions, from 0
        ("steps", pa.list_(pa.string())),  # of the whole solution
        *_COMPLETION,
    ]
)

CONTINUATION = pa.schema(
    [
        ("continuation_id", pa.string()),
        ("problem_id", pa.string()),
        ("prefix_id", pa.string()),  # digest of the problem and the units it continues
        ("num_prefix_units", pa.int32()),  # 0: a solution from the start
        ("index", pa.int32()),  # which continuation of this prefix, from 0
        *_COMPLETION,
    ]
)

PREFIX = pa.schema(  # what the continuations of one unfinished prefix came to
    [
        ("problem_id", pa.string()),
        ("prefix_id", pa.string()),
        ("num_units", pa.int32()),
        ("num_right", pa.int32()),  # k
        ("num_verdicts", pa.int32()),  # n: right + wrong; unknown is in neither
        ("num_unknown", pa.int32()),
        ("num_reused", pa.int32()),  # of the verdicts, those of continuations that began at an earlier prefix
        ("num_reused_right", pa.int32()),  # the right ones among them
        ("right_masses", pa.list_(pa.float64())),  # probabilities of the distinct right texts seen, where at all noticeable
        ("wrong_masses", pa.list_(pa.float64())),
        ("num_repeated_right", pa.int32()),  # of the right ones, how often one of these texts came again
        ("num_repeated_wrong", pa.int32()),
        ("stopping_rule", pa.string()),  # one of STOPPING_RULES
        ("policy_digest", pa.string()),
        ("verifier_digest", pa.string()),
    ]
)
STOPPING_RULES = ("fixed", "adaptive", "first_success", "tree_search", "early_stop", "unmeasured", "final", "imported")
"""Why sampling ended: a fixed count; where the price was right; at the first success (k/n is biased upward); a fixed
count in a tree whose solutions are kept for how they ended; never begun behind a step worth 0, or by choice; the
solution's own verdict; counts made elsewhere."""

LABEL = pa.schema(
    [
        ("label_id", pa.string()),
        ("problem_id", pa.string()),
        ("solution_id", pa.string()),
        ("prefix_id", pa.string()),  # the prefix that ENDS with this step
        ("step", pa.int32()),  # from 0
        ("num_steps", pa.int32()),  # steps of the whole solution
        ("num_right", pa.int32()),  # k
        ("num_verdicts", pa.int32()),  # n
        ("num_unknown", pa.int32()),
        ("num_reused", pa.int32()),
        ("stopping_rule", pa.string()),
        ("mc", pa.float64()),  # k / n; null where n is 0
        ("mean", pa.float64()),  # the estimate of the prefix's value, in [0, 1]
        ("sd", pa.float64()),  # its posterior standard deviation
        ("low", pa.float64()),  # 5 % quantile of the posterior
        ("high", pa.float64()),  # 95 % quantile
        ("label", pa.float64()),  # the training target, by the formulation
        ("weight", pa.float64()),  # of this label in the loss
        ("policy_digest", pa.string()),
        ("verifier_digest", pa.string()),
    ]
)

CANDIDATE = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("split", pa.string()),
        ("problem_id", pa.string()),
        ("decoding", pa.string()),  # sample | greedy
        ("index", pa.int32()),
        ("steps", pa.list_(pa.string())),
        *_COMPLETION,
    ]
)

SCORE = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("scorer", pa.string()),
        ("step_scores", pa.list_(pa.float64())),
    ]
)

SELECTION = pa.schema(
    [
        ("split", pa.string()),
        ("problem_id", pa.string()),
        ("selector", pa.string()),
        ("value", pa.float64()),  # the chance in [0, 1] that the selector's pick is right
    ]
)

QUARANTINE = pa.schema(
    [
        ("source_id", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),  # from 0, in the order of the file
        ("reason", pa.string()),  # one word from a closed list, see problems.REASONS
        ("detail", pa.string()),  # what was seen, with the value
    ]
)


def digest(*parts: Any) -> str:
    """The name of whatever `parts` determine: hex SHA-256 of their canonical JSON, cut to 128 bits."""
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()[:DIGEST_CHARS]


def bytes_digest(content: bytes) -> str:
    """The name of raw bytes, a picture's for instance."""
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARS]


def file_sha256(path: Path) -> str:
    """SHA-256 of one file, read in blocks."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def tree_sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder's sorted (relative path, SHA-256) pairs."""
    if path.is_file():
        return file_sha256(path)
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    if not names:
        raise DataError(str(path), "no such file, or an empty folder", "run the stage that makes it, or check the path")
    listing = "".join(f"{file_sha256(path / name)}  {name}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def problem_id(question: str, answer: str, image_digests: Sequence[str]) -> str:
    """The name of a problem: its question, answer and pictures, wherever it came from."""
    return digest("problem", question, answer, list(image_digests))


def prefix_id(problem: str, units: Sequence[str]) -> str:
    """The name of a prefix: equal units (`Task.units`) of one problem are one prefix, whoever wrote them; others never are.

    Units are named by their text, one paragraph each; as a list where that text would fall apart into others.
    """
    text = "\n\n".join(units)
    is_plain = (text.split("\n\n") if text else []) == list(units)
    return digest("prefix", problem, text if is_plain else list(units))


def seed_for(seed: int, *parts: Any) -> int:
    """A 63-bit seed for one piece of work, the same on every machine and in every order."""
    return int(digest("seed", seed, *parts)[:16], 16) >> 1


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Write `rows` to `path` whole or not at all; the bytes depend on the rows alone.

    Returns: the number of rows.
    Raises:
        DataError: a value does not fit its column.
    """
    table = _table(path, rows, schema)
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=ROWS_PER_GROUP, store_schema=True)
    return int(table.num_rows)


class TableWriter:
    """Writes a table row group by row group in bounded memory; the bytes depend on the rows alone, not on how they came.

    A group ends with ROWS_PER_GROUP rows, or with the row that brings its pictures to PICTURE_BYTES_PER_GROUP.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._num_picture_bytes = 0
        self.num_rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", store_schema=True)

    def write(self, rows: Sequence[Mapping[str, Any]] | pa.Table) -> pa.Table:
        """Append rows; returns them as a table.

        Raises:
            DataError: a value does not fit its column.
        """
        table = rows if isinstance(rows, pa.Table) else _table(self._path, rows, self._schema)
        self.num_rows += table.num_rows
        start = 0
        for end in self._heavy_ends(table):
            self._add(table.slice(start, end - start))
            self._flush(everything=True)
            start = end
        self._add(table.slice(start))
        if self._num_waiting >= 8 * ROWS_PER_GROUP:
            self._flush(everything=False)
        return table

    def _heavy_ends(self, table: pa.Table) -> Iterator[int]:
        """Behind which rows a group ends because its pictures are many bytes."""
        if "images" not in self._schema.names:
            return
        for end, row in enumerate(table.select(["images"]).to_pylist(), start=1):
            self._num_picture_bytes += sum(map(len, row_images(row)))
            if self._num_picture_bytes >= PICTURE_BYTES_PER_GROUP:
                self._num_picture_bytes = 0
                yield end

    def _add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._num_waiting += table.num_rows

    def _flush(self, *, everything: bool) -> None:
        table = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        ready = table.num_rows if everything else table.num_rows - table.num_rows % ROWS_PER_GROUP
        if ready:
            self._writer.write_table(table.slice(0, ready).combine_chunks(), row_group_size=ROWS_PER_GROUP)
        rest = table.slice(ready)
        self._waiting = [rest.combine_chunks()] if rest.num_rows else []
        self._num_waiting = rest.num_rows

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush(everything=True)
        finally:
            self._writer.close()
            if kind is not None:
                self._path.unlink(missing_ok=True)


def _table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError) as error:
        raise DataError(str(path), f"a value does not fit its column: {error}", "see components/records.py") from error


def iterate_table(
    path: Path, schema: pa.Schema, columns: Sequence[str] | None = None, *, num_rows: int
) -> Iterator[pa.Table]:
    """As `read_arrow`, in slices of `num_rows` rows: memory does not grow with the file."""
    file, wanted = _open_table(path, schema, columns)
    try:
        for batch in file.iter_batches(num_rows, columns=wanted, use_threads=False):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "delete it and run its stage again") from error


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one Parquet file written with `schema`.

    Raises:
        DataError: the file is missing, is no Parquet file or lacks a column.
    """
    rows: list[dict[str, Any]] = read_arrow(path, schema, columns).to_pylist()
    return rows


def read_arrow(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """As `read_table`, but the Arrow table itself."""
    file, wanted = _open_table(path, schema, columns)
    try:
        return file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "delete it and run its stage again") from error


def _open_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None) -> tuple[Any, list[str]]:
    wanted = list(columns) if columns is not None else list(schema.names)
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "run the stage that makes it: stepforge retrain") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "delete it and run its stage again") from error
    missing = [name for name in wanted if name not in file.schema_arrow.names]
    if missing:
        raise DataError(str(path), f"no column {missing[0]!r}", "was it written by an older version? run its stage again")
    for name in wanted:
        seen, known = file.schema_arrow.field(name).type, schema.field(name).type
        if seen != known:
            raise DataError(str(path), f"column {name!r} is {seen}, not {known}", "run its stage again")
    return file, wanted


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a Parquet or JSON-lines file from outside: the named columns, and its pictures.

    Args:
        optional: columns that are read where the file has them.
    Raises:
        DataError: the file is missing, cannot be read, lacks a column or has no rows.
    """
    kind = "JSON-lines" if path.suffix.lower() in (".jsonl", ".ndjson") else "Parquet"
    try:
        found: Any = _json_lines(path) if kind == "JSON-lines" else pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "check the path") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(str(path), f"not a readable {kind} file: {error}", "write it again") from error
    if not len(found):
        raise DataError(str(path), "no rows", "at least one is needed")
    names = list(dict.fromkeys(name for row in found for name in row)) if isinstance(found, list) else found.column_names
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(str(path), f"no column {missing[0]!r}", f"it has {', '.join(names)}")
    pictures = [name for name in ("images", "image") if name in names][:1]
    wanted = list(dict.fromkeys([*columns, *pictures, *(name for name in optional if name in names)]))
    if isinstance(found, list):
        return [{name: row.get(name) for name in wanted} for row in found]
    rows: list[dict[str, Any]] = found.select(wanted).to_pylist()
    return rows


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    rows = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not UTF-8: {error}", "save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}", f"not JSON: {error}", "one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}", f"no object but {line.strip()!r:.80}", "one object a line")
        rows.append(row)
    return rows


def row_images(row: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The encoded pictures of a row that keeps them in `images` (several) or `image` (one or none)."""
    pictures = row["images"] if "images" in row else [row.get("image")]
    return tuple(picture["bytes"] for picture in pictures or () if picture is not None and picture["bytes"])


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, with sorted keys, so that equal content gives equal bytes."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "run the stage that makes it: stepforge retrain") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(str(path), f"not JSON: {error}", "delete it and run its stage again") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
