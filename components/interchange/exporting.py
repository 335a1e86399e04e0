"""Verb `export`: seeds, rollouts and labels -> a file in someone else's format.

Owns how the three are brought together, problem by problem, and the check that what was written reads back the
same. Memory holds one problem at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from components.errors import DataError, one_line
from components.interchange.foreign import BadRow, Format, Mark, Problem, Row, Solution, grouped, rounded
from components.interchange.importing import format_named
from components.interchange.nested import OF_LABEL, OF_SOLUTION
from components.lineage import SUMMARY, publishing
from components.problems import normal_text
from components.progress import say
from components.records import (
    LABEL,
    PROBLEM,
    SOLUTION,
    TableWriter,
    bytes_digest,
    iterate_table,
    replacing,
    row_images,
    write_json,
)

_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


def export_labels(*, seeds: Path, rollouts: Path, labels: Path, fmt: str, out: Path) -> Row:
    """Write the labelled solutions in a format of `interchange.FORMATS`.

    Every row is read back before it counts as written: one that would come back otherwise (its text holds the
    format's own marks) is left out, and counted.

    Args:
        out: a folder (labels.jsonl or labels.parquet, images/, summary.json), or a .jsonl or .parquet file, which
            holds no pictures beside it.
    Returns: what is in summary.json, or would be.
    Raises:
        SettingsError: an unknown format.
        DataError: the three are not of one run, or the format cannot hold what they say.
    """
    form = format_named(fmt)
    kind = ".parquet" if form.nested_schema else ".jsonl"
    if out.suffix in (".jsonl", ".json", ".parquet"):
        if out.suffix != kind:
            raise DataError(str(out), f"{form.name} is written as {kind[1:]}", f"name a file that ends in {kind}")
        with replacing(out) as part:
            return _Export(form, part, None).write(seeds, rollouts, labels)
    with publishing(out) as part:
        summary = _Export(form, part / f"labels{kind}", part / "images").write(seeds, rollouts, labels)
        write_json(part / SUMMARY, summary)
    return summary


class _Export:
    def __init__(self, form: Format, path: Path, images: Path | None) -> None:
        self.form, self.path, self.images = form, path, images
        self.count: Counter[str] = Counter()
        self.first_left_out = ""

    def write(self, seeds: Path, rollouts: Path, labels: Path) -> Row:
        with ExitStack() as stack:
            if self.form.nested_schema:
                table = stack.enter_context(TableWriter(self.path, self.form.nested_schema()))
                put: Callable[[list[Row]], Any] = table.write
            else:
                file = stack.enter_context(self.path.open("w", encoding="utf-8"))

                def put(rows: list[Row]) -> None:
                    file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

            for problem, solutions in labelled_problems(seeds, rollouts, labels):
                rows = self._rows(problem, solutions)
                put(rows)
                self.count["rows"] += len(rows)
        if not self.count["rows"]:
            hint = self.first_left_out or "are seeds, rollouts and labels of one run?"
            raise DataError(str(labels), "no label to write", hint)
        if self.count["left_out"]:
            say("export", f"{self.count['left_out']:,} solutions left out; the first: {self.first_left_out}")
        names = ("rows", "problems", "solutions", "labels", "grouped_solutions", "left_out", "rounded_labels")
        return {"format": self.form.name, **{name: self.count[name] for name in names}}

    def _rows(self, problem: Problem, solutions: list[Solution]) -> list[Row]:
        """The rows of one problem that read back as they were written."""
        form, kept = self.form, []
        if problem.images and not form.has_images:
            hint = "take a format with pictures, such as parquet or visualprm_raw"
            raise DataError("export", f"problem {problem.source_id!r} has a picture, which {form.name} cannot hold", hint)
        for solution in solutions:
            shown = self._fitting(solution)
            if shown is not None:
                kept.append(shown)
        if not kept:
            return []
        shown_problem = replace(problem, images=tuple(self._image(picture) for picture in problem.images))
        rows: list[Row] = []
        for some in form.shares(kept):
            written = form.write(shown_problem, some)
            wanted = [solution for solution in some if self._reads_back(written, problem, solution)]
            if wanted:
                rows += written if len(wanted) == len(some) else form.write(shown_problem, wanted)
            self.count["solutions"] += len(wanted)
            self.count["labels"] += sum(mark.label is not None for solution in wanted for mark in solution.marks)
        self.count["problems"] += bool(rows)
        return rows

    def _fitting(self, solution: Solution) -> Solution | None:
        """The solution as the format can say it."""
        form = self.form
        if form.has_signs:
            if any(mark.label is not None and mark.label < 0 for mark in solution.marks):
                what = f"advantage labels (-1, 0, 1), which {form.name} cannot hold"
                raise DataError("export", what, "take a format with numbers, such as parquet or stepwise")
            self.count["rounded_labels"] += sum(mark.label not in (None, 0.0, 1.0) for mark in solution.marks)
            solution = rounded(solution)
        if not form.has_gaps:
            shown = grouped(solution)
            self.count["grouped_solutions"] += shown is not solution
            return shown
        return solution if any(mark.label is not None for mark in solution.marks) else None

    def _reads_back(self, rows: list[Row], problem: Problem, solution: Solution) -> bool:
        why = "it would come back as another text"
        try:
            for row in rows:
                read, found = self.form.read(row)
                for one in found:
                    same_labels = [m.label for m in one.marks] == [m.label for m in solution.marks]
                    if normal_text(read.question) == problem.question and one.steps == solution.steps and same_labels:
                        return True
        except BadRow as bad:
            why = str(bad)
        self.count["left_out"] += 1
        self.first_left_out = self.first_left_out or one_line(f"{problem.source_id!r}: {why}", 200)
        return False

    def _image(self, content: bytes) -> Any:
        """What stands in a row for a picture; its bytes go beside the file, or into it."""
        name = bytes_digest(content)
        suffix = next((s for head, s in _SUFFIXES.items() if content.startswith(head)), ".png")
        if self.form.nested_schema:
            return {"bytes": content, "path": f"{name}{suffix}"}
        if self.images is None:
            raise DataError("export", "the problems have pictures, which stand beside the rows", "name a folder for --out")
        path = self.images / f"{name}{suffix}"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return f"images/{path.name}"


# --- bringing seeds, solutions and labels together -----------------------------------------------------------------


def labelled_problems(seeds: Path, rollouts: Path, labels: Path) -> Iterator[tuple[Problem, list[Solution]]]:
    """Problems with their labelled solutions, in the files' order, which is one: problem by problem.

    Raises:
        DataError: a file is missing, or the three are not of one run.
    """
    problems = _rows(seeds / "seeds.parquet", PROBLEM, 64)
    of_solution = groupby(_rows(labels / "labels.parquet", LABEL, 4096), key=lambda row: row["solution_id"])
    held = next(((name, list(rows)) for name, rows in of_solution), None)
    for name, rows in groupby(_rows(rollouts / "solutions.parquet", SOLUTION, 4096), key=lambda row: row["problem_id"]):
        solutions = []
        for row in rows:
            if held is not None and held[0] == row["solution_id"]:
                solutions.append(_labelled(row, held[1]))
                held = next(((key, list(some)) for key, some in of_solution), None)
        if not solutions:
            continue
        problem = next((row for row in problems if row["problem_id"] == name), None)
        if problem is None:
            what = f"problem {name} has solutions but is no seed, or stands in another order"
            raise DataError(str(seeds), what, "seeds, rollouts and labels are not of one run")
        yield _problem(problem), solutions
    if held is not None:
        what = f"labels of solution {held[0]}, which the rollouts lack or have in another order"
        raise DataError(str(labels), what, "seeds, rollouts and labels are not of one run: run label again")


def _rows(path: Path, schema: Any, num_rows: int) -> Iterator[Row]:
    return chain.from_iterable(table.to_pylist() for table in iterate_table(path, schema, num_rows=num_rows))


def _problem(row: Row) -> Problem:
    question, answer, source_id, source = (row[name] or "" for name in ("question", "answer", "source_id", "source"))
    options = None if row["options"] is None else tuple(row["options"])
    return Problem(question, answer, source_id, source, row_images(row), options)


def _labelled(row: Row, labels: list[Row]) -> Solution:
    marks = [Mark()] * len(row["steps"])
    for label in labels:
        if label["step"] >= len(marks):
            what = f"a label of step {label['step']} of solution {row['solution_id']}, which has {len(marks)}"
            raise DataError("labels.parquet", what, "rollouts and labels are not of one run: run label again")
        more = _there(label, OF_LABEL)
        marks[label["step"]] = Mark(label["label"], label["num_right"], label["num_verdicts"], more)
    more = _there(row, ("problem_id", "solution_id", "answer", *OF_SOLUTION))
    return Solution(tuple(row["steps"]), tuple(marks), row["text"], more)


def _there(row: Row, names: tuple[str, ...]) -> Row:
    """What is neither null nor NaN."""
    return {name: row[name] for name in names if row[name] is not None and row[name] == row[name]}
