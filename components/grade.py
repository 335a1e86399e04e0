"""Grades any file of gold fields and responses by a named rule, and compares with official verdicts where there are some.

Knows the shapes of rows and files; what is right is grading's business.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.benchmarks import AnswerRule, Row, answer_rule
from components.errors import DataError, SettingsError, one_line
from components.grading import Verdict, grade

_IDS = ("id", "pid", "ID", "idx", "sample_index", "question_id", "problem_id")
_TRUE = ("true", "1", "1.0", "yes", "correct", "right", "pass", "y", "t")
_FALSE = ("false", "0", "0.0", "no", "wrong", "incorrect", "fail", "failed", "n", "f", "-1")


@dataclass(frozen=True)
class Graded:
    """One response with its verdict, and the official one."""

    id: str
    index: int
    """Which of a row's several responses; 0 if there is one."""
    gold: str
    kind: str
    """The grading rule; "" where none can check this gold answer."""
    answer: str | None
    verdict: str
    rule: str
    official: bool | None = None

    @property
    def is_disagreement(self) -> bool:
        """Whether the official verdict is another one; unknown counts as not right."""
        return self.official is not None and (self.verdict == "right") != self.official


def graded_rows(
    rows: Iterable[Row],
    rule: AnswerRule,
    *,
    response: str | None = None,
    official: str | None = None,
    inverted: bool = False,
) -> Iterator[Graded]:
    """Every response of every row with its verdict; a row may hold a list of responses.

    Args:
        response: field of the response; by default the first of the rule's that the row has. `a.b` is b inside a.
        official: field of the official verdict, one a response or one a row.
        inverted: the official field says 0 or "no" for right.
    Raises:
        DataError: a row lacks a field, or an official verdict cannot be read.
    """
    for number, row in enumerate(rows):
        place = f"row {number}"
        gold = _placed(place, rule.read, row)
        responses = _response(row, response, rule, place)
        officials = [None] * len(responses) if official is None else _officials(row, official, len(responses), place)
        name = next((str(row[key]) for key in _IDS if row.get(key) is not None), str(number))
        for index, (text, said) in enumerate(zip(responses, officials, strict=True)):
            verdict = Verdict("unknown", "no_rule", None) if gold is None else grade(rule.said(text), gold)
            yield Graded(
                name,
                index,
                gold.answer if gold else one_line(str(row.get("answer", "")), 80),
                gold.kind if gold else "",
                verdict.answer,
                verdict.value,
                verdict.rule,
                said if said is None else said != inverted,
            )


def _placed(place: str, read: Any, row: Row) -> Any:
    try:
        return read(row)
    except DataError as error:
        raise DataError(place, error.what, error.hint) from error


def _inside(row: Any, dotted: str) -> Any:
    """What a field holds, a missing one None; `a.b` looks inside `a`."""
    if isinstance(row, Mapping) and dotted in row:
        return row[dotted]
    first, dot, rest = dotted.partition(".")
    return _inside(row.get(first), rest) if dot and isinstance(row, Mapping) else None


def _has(row: Row, dotted: str) -> bool:
    first, dot, rest = dotted.partition(".")
    return dotted in row or (bool(dot) and isinstance(row.get(first), Mapping) and _has(row[first], rest))


def _response(row: Row, name: str | None, rule: AnswerRule, place: str) -> list[str]:
    names = (name,) if name else rule.responses
    for wanted in names:
        if _has(row, wanted):
            value = _inside(row, wanted)
            return (
                ["" if _is_missing(v) else str(v) for v in value]
                if isinstance(value, list)
                else ["" if _is_missing(value) else str(value)]
            )
    shown = ", ".join(list(row)[:8])
    raise DataError(place, f"no field {' or '.join(map(repr, names))}; it has: {shown}", "name the field with --response")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _officials(row: Row, name: str, count: int, place: str) -> list[bool | None]:
    if not _has(row, name):
        raise DataError(place, f"no field {name!r}; it has: {', '.join(list(row)[:8])}", "name the field with --official")
    value = _inside(row, name)
    values = list(value) if isinstance(value, list) else [value]
    if len(values) != count:
        raise DataError(place, f"{len(values)} official verdicts for {count} responses", "give one a response")
    return [official_verdict(v) for v in values]


def official_verdict(value: Any) -> bool | None:
    """True for right: true, 1, yes, correct, ..; False for false, 0, no, wrong, fail, ..; None if it says neither."""
    text = str(value).strip().strip("[]'\"").lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    return None


# --- files ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON (list, or object of objects), JSON lines, CSV or Parquet file.

    Raises:
        DataError: the file is missing, empty, or no such file.
    """
    if not path.is_file():
        raise DataError(
            str(path), "is a folder" if path.is_dir() else "no such file", "name a JSON, JSONL, CSV or Parquet file"
        )
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = _parquet_rows(path)
    elif suffix in (".json", ".jsonl", ".ndjson", ".csv"):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(str(path), f"not UTF-8 at byte {error.start}", "save it as UTF-8") from error
        rows = _csv_rows(text, path) if suffix == ".csv" else _json_rows(text, path)
    else:
        raise DataError(str(path), f"unknown kind of file {suffix!r}", "known: .json .jsonl .csv .parquet")
    if not rows:
        raise DataError(str(path), "has no rows", "was its download cut short?")
    return rows


def _csv_rows(text: str, path: Path) -> list[dict[str, Any]]:
    csv.field_size_limit(1 << 30)  # by default 128 KiB: a response may be longer
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise DataError(str(path), f"no CSV: {error}", "quote the cells that hold line ends") from error


def _json_rows(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                content.append(_json_line(line, number, path))
    if isinstance(content, dict):
        if content and all(isinstance(value, dict) for value in content.values()):
            content = [{"id": key, **value} for key, value in content.items()]
        else:
            content = [content]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(str(path), "holds no list of objects", "give a list of objects, or one object a line")
    return content


def _json_line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        what = f"line {number} is not JSON: {one_line(str(error), 120)}"
        raise DataError(str(path), what, "give a list of objects, or one object a line") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "was its download cut short?") from error
    keep = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if not pa.types.is_struct(kind)]
    keep += [name for name in table.column_names if name not in keep and not name.startswith(("image", "decoded"))]
    rows: list[dict[str, Any]] = table.select(keep).to_pylist()
    return rows


def joined(rows: Sequence[Row], golds: Sequence[Row], on: str | None) -> list[dict[str, Any]]:
    """Every row with the fields of the gold row of the same id; a row's own fields win.

    Raises:
        DataError: no common id field, an id is missing, or two gold rows have one id.
    """
    name = on or next((key for key in _IDS if key in rows[0] and key in golds[0]), None)
    if name is None:
        raise DataError("--gold", "the two files have no id field in common", "name it with --on")
    by_id: dict[str, Row] = {}
    for gold in golds:
        if name not in gold:
            raise DataError("--gold", f"a gold row has no field {name!r}", "name the id field with --on")
        if str(gold[name]) in by_id:
            raise DataError("--gold", f"two gold rows have the {name} {gold[name]!r}", "an id is given once")
        by_id[str(gold[name])] = gold
    merged = []
    for number, row in enumerate(rows):
        if str(row.get(name)) not in by_id:
            raise DataError(f"row {number}", f"no gold row has the {name} {row.get(name)!r}", "give the gold rows of all")
        merged.append({**by_id[str(row[name])], **row})
    return merged


# --- the report ----------------------------------------------------------------------------------------------------


def agreement(rows: Sequence[Graded]) -> tuple[int, int, tuple[float, float]]:
    """(number that agree, number with an official verdict, 95 % interval of the share by Wilson); unknown is not right."""
    judged = [row for row in rows if row.official is not None]
    num_same = sum(not row.is_disagreement for row in judged)
    return num_same, len(judged), wilson(num_same, len(judged))


def wilson(k: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of k in n; (0, 1) for n = 0. Source: Wilson (1927)."""
    if not n:
        return 0.0, 1.0
    z = 1.959964
    centre, spread = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def report(rows: Sequence[Graded], *, num_shown: int | None = None) -> list[str]:
    """The lines of the table: verdicts by the rule that decided, then agreement and every disagreement."""
    values = ("right", "wrong", "unknown")
    table: dict[str, Counter[str]] = {}
    for row in rows:
        table.setdefault(row.rule, Counter())[row.verdict] += 1
    lines = [f"{'rule':<12}" + "".join(f"{value:>9}" for value in values)]
    for name in sorted(table, key=lambda rule: -table[rule].total()):
        lines.append(f"{name:<12}" + "".join(f"{table[name][value]:>9,}" for value in values))
    total = Counter(row.verdict for row in rows)
    lines.append(f"{'all':<12}" + "".join(f"{total[value]:>9,}" for value in values))
    decided = total["right"] + total["wrong"]
    lines.append(f"decided   {decided:,} of {len(rows):,} = {100 * decided / len(rows):.1f} %")
    num_same, num_judged, (low, high) = agreement(rows)
    if 0 < num_judged < len(rows):
        lines.append(f"official  {len(rows) - num_judged:,} verdicts say neither right nor wrong and are left out")
    if num_judged:
        share = f"{100 * num_same / num_judged:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
        lines.append(f"agreement {num_same:,} of {num_judged:,} = {share}; unknown counts as not right")
        differing = [row for row in rows if row.is_disagreement]
        if differing:
            lines.append(f"{len(differing):,} disagreements: id, gold, extracted, ours, theirs")
        for row in differing[:num_shown]:
            name = f"{row.id}/{row.index}" if row.index else row.id
            theirs = "right" if row.official else "wrong"
            said = f"{one_line(row.gold, 40):<24} {one_line(str(row.answer), 60):<32}"
            lines.append(f"  {name:<8} {said} {row.verdict} ({row.rule})  {theirs}")
        if num_shown is not None and len(differing) > num_shown:
            lines.append(f"  and {len(differing) - num_shown:,} more: --out keeps them all")
    return lines


def run(args: argparse.Namespace) -> int:
    """The verb: read, grade, print; 0 whatever the verdicts are."""
    rule = answer_rule(args.rule)
    if args.inverted and not args.official:
        raise SettingsError("command line", "--inverted without --official", "name the official field")
    path, out = Path(args.file), Path(args.out) if args.out else None
    if out is not None and (not out.name or out.is_dir()):
        raise SettingsError("command line", f"--out {args.out} is a folder", "name a file")
    if out is not None and out.resolve() in (path.resolve(), Path(args.gold).resolve() if args.gold else None):
        raise SettingsError("command line", f"--out {args.out} is a file that is read", "name another file")
    rows = read_rows(path)
    if args.gold:
        rows = joined(rows, read_rows(Path(args.gold)), args.on)
    graded = list(graded_rows(rows, rule, response=args.response, official=args.official, inverted=args.inverted))
    if args.official and not any(row.official is not None for row in graded):
        what = f"no verdict in {args.official!r} says right or wrong"
        raise DataError(str(path), what, "known: true/false, 1/0, yes/no, correct/fail")
    if out is not None:
        _write(out, graded)
    print("\n".join(report(graded)).encode(errors="replace").decode())
    return 0


def _write(path: Path, rows: Sequence[Graded]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", errors="replace") as file:  # half a surrogate pair is no UTF-8
            for row in rows:
                file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(str(path), f"cannot be written: {error.strerror}", "check its folder and the free space") from error
