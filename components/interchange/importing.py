"""Verb `import`: a file of labels from elsewhere -> a folder that stands in for seeds, rollouts and labels.

Owns how foreign rows are checked, named, grouped by problem and written; what a row means is its format's business.
Rows pass through files on disk, a share of the problems each, so memory does not grow with the input.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from components.errors import DataError, SettingsError, one_line
from components.grading import VERIFIER_DIGEST, Gold, answer_type, grade
from components.interchange import FORMATS
from components.interchange.files import label_files, read_rows_of
from components.interchange.foreign import BadRow, Format, Mark, Row, Solution
from components.lineage import SUMMARY, publishing
from components.problems import Quarantined, normal_text, picture_bytes
from components.progress import say
from components.records import (
    LABEL,
    PREFIX,
    PROBLEM,
    QUARANTINE,
    SOLUTION,
    TableWriter,
    bytes_digest,
    digest,
    prefix_id,
    problem_id,
    write_json,
)
from components.tasks import Task, load_task

MAX_IMAGE_PIXELS = 40_000_000
MAX_QUARANTINED_FRAC = 0.1
_BYTES_PER_SHARE = 128 * 2**20
_MAX_SHARES = 128  # files open at once
_PICTURES_REMEMBERED = 100_000
_SAY_EVERY = 50_000
_LABELS_AT_ONCE = 8192


def format_named(name: str) -> Format:
    """The format of this name.

    Raises:
        SettingsError: there is none.
    """
    if name not in FORMATS:
        close = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(FORMATS)}"
        raise SettingsError("command line", f"--as {name!r} is no label format", hint)
    return FORMATS[name]


def _format_of(row: Mapping[str, Any]) -> str:
    """The first format that can read a row; empty if none can."""
    for form in FORMATS.values():
        with suppress(BadRow):
            form.read(row)
            return form.name
    return ""


def import_labels(
    files: list[Path],
    *,
    fmt: str,
    out: Path,
    images: Path | None = None,
    task: str = "maths",
    max_quarantined_frac: float = MAX_QUARANTINED_FRAC,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> Row:
    """Write seeds, solutions, prefixes, labels and quarantine (all .parquet) and summary.json into `out`.

    The folder stands in for `--seeds`, `--rollouts` and `--labels` of `label` and `train`. Equal rows of a problem
    are kept once. Of several measurements of one prefix the tally is the one with the most verdicts; labels keep
    what their own row says.

    Args:
        fmt: a name in FORMATS.
        images: folder below which pictures are looked for; the file's own if None. No path leaves it.
        task: decides what the units of a prefix are, hence its name.
        max_quarantined_frac: with a larger share of bad rows, nothing is written.
    Returns: what summary.json says.
    Raises:
        SettingsError: an unknown format or task.
        DataError: a file cannot be read, no row is usable, or too many are not.
    """
    form, paths = format_named(fmt), label_files(files)
    with publishing(out) as part:
        run = _Import(form, load_task(task), part, images, max_image_pixels)
        run.read(paths)
        run.refuse_too_many(max_quarantined_frac)
        run.write()
        summary = run.summary(paths)
        write_json(part / SUMMARY, summary)
    return summary


class _Import:
    """One run: rows are read into shares by problem, then each share is written."""

    def __init__(self, form: Format, task: Task, out: Path, images: Path | None, max_image_pixels: int) -> None:
        self.form, self.task, self.out = form, task, out
        self.images, self.max_image_pixels = images, max_image_pixels
        self.origin = f"imported/{form.name}"
        self.count: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.first_bad = ""
        self.other_format = ""
        self._spill = out / ".spill"
        self._pictures: dict[tuple[str, str], str | Quarantined] = {}
        self._num_shares = 1

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, paths: list[Path]) -> None:
        """Read all rows into shares on disk; bad ones into quarantine.parquet."""
        num_bytes = sum(p.stat().st_size * (4 if p.suffix == ".parquet" else 1) for p in paths)
        self._num_shares = min(_MAX_SHARES, 1 + num_bytes // _BYTES_PER_SHARE)
        self._spill.mkdir()
        shares = [(self._spill / f"{i}.jsonl").open("w", encoding="utf-8") for i in range(self._num_shares)]
        try:
            with TableWriter(self.out / "quarantine.parquet", QUARANTINE) as quarantine:
                for path in paths:
                    for number, row in enumerate(read_rows_of(path)):
                        self.count["rows"] += 1
                        if not self.count["rows"] % _SAY_EVERY:
                            say("import", f"{self.count['rows']:,} rows read")
                        try:
                            line = self._line(row, path, number)
                        except BadRow as bad:
                            self._set_aside(quarantine, row, path, number, bad)
                            continue
                        shares[int(line["problem_id"][:8], 16) % self._num_shares].write(json.dumps(line) + "\n")
        finally:
            for share in shares:
                share.close()

    def _line(self, row: Mapping[str, Any] | BadRow, path: Path, number: int) -> Row:
        """The row, checked and named, as it waits on disk."""
        if isinstance(row, BadRow):
            raise row
        problem, solutions = self.form.read(row)
        question, answer = normal_text(problem.question), normal_text(problem.answer)
        if not question:
            raise BadRow("missing_question", "no question")
        if not any(mark.label is not None for solution in solutions for mark in solution.marks):
            raise BadRow("no_label", f"none of {sum(len(s.marks) for s in solutions)} steps has a label")
        source_id = problem.source_id or f"{path.stem}/{number}"
        texts = [question, answer, source_id, problem.source, *(problem.options or ())]
        texts += [text for s in solutions for text in (*s.steps, s.text, *s.more.values())]
        try:
            "".join(text for text in texts if isinstance(text, str)).encode()
        except UnicodeEncodeError as error:
            raise BadRow("bad_row", "half a character (a lone surrogate) in its text") from error
        pictures = [self._picture(picture, path, source_id) for picture in problem.images]
        return {
            "problem_id": problem_id(question, answer or "", [name for name, _ in pictures]),
            "source_id": source_id,
            "source": problem.source or path.stem,
            "question": question,
            "answer": answer or "",
            "options": problem.options,
            "pictures": pictures,
            "solutions": [
                [s.steps, s.text, dict(s.more), [[m.label, m.num_right, m.num_verdicts, dict(m.more)] for m in s.marks]]
                for s in solutions
            ],
        }

    def _picture(self, picture: Any, path: Path, source_id: str) -> tuple[str, str]:
        """(digest, where the bytes are) of a sound picture; bytes from inside a row wait on disk."""
        folder = self.images or path.parent
        if isinstance(picture, Mapping) and not picture.get("bytes"):
            picture = picture.get("path")
        if isinstance(picture, str):
            key = (str(folder), picture)
            if key not in self._pictures:
                content = picture_bytes(picture, folder, source_id, self.max_image_pixels)
                if len(self._pictures) >= _PICTURES_REMEMBERED:
                    self._pictures.clear()
                self._pictures[key] = content if isinstance(content, Quarantined) else bytes_digest(content)
            known = self._pictures[key]
            if isinstance(known, Quarantined):
                raise BadRow(known.reason, known.detail)
            return known, str((folder / picture).resolve())
        content = picture_bytes(picture, folder, source_id, self.max_image_pixels)
        if isinstance(content, Quarantined):
            raise BadRow(content.reason, content.detail)
        name = bytes_digest(content)
        kept = self._spill / name
        if not kept.exists():
            kept.write_bytes(content)
        return name, str(kept)

    def _set_aside(self, quarantine: TableWriter, row: Any, path: Path, number: int, bad: BadRow) -> None:
        self.reasons[bad.reason] += 1
        if not self.first_bad:
            self.first_bad = f"{path.name}, row {number}: {bad}"
            self.other_format = _format_of(row) if isinstance(row, Mapping) else ""
        name = row.get("id") if isinstance(row, Mapping) else None
        quarantine.write(
            [
                {
                    "source_id": one_line(ascii(name), 200) if name is not None else "",
                    "file": path.name,
                    "row": number,
                    "reason": bad.reason,
                    "detail": one_line(bad.detail.encode("ascii", "backslashreplace").decode(), 200),
                }
            ]
        )

    def refuse_too_many(self, max_frac: float) -> None:
        """Stop where too few rows are usable.

        Raises:
            DataError: none is, or more than `max_frac` are not.
        """
        num_bad, num_rows = sum(self.reasons.values()), self.count["rows"]
        hint = f"is it really {self.form.name}? ({self.form.help}); --max-quarantined-frac raises the limit"
        if self.other_format:
            hint = f"it reads as {self.other_format}: --as {self.other_format}"
        if num_bad == num_rows:
            raise DataError("import", f"none of {num_rows:,} rows is usable; the first: {self.first_bad}", hint)
        if num_bad > max_frac * num_rows:
            what = f"{num_bad:,} of {num_rows:,} rows are unusable, more than {max_frac:.0%}; the first: {self.first_bad}"
            raise DataError("import", what, hint)

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write the tables, one share of the problems after the other, each in the order of the input."""
        with (
            TableWriter(self.out / "seeds.parquet", PROBLEM) as seeds,
            TableWriter(self.out / "solutions.parquet", SOLUTION) as solutions,
            TableWriter(self.out / "prefixes.parquet", PREFIX) as prefixes,
            TableWriter(self.out / "labels.parquet", LABEL) as labels,
        ):
            writers = (solutions, prefixes, labels)
            waiting: tuple[list[Row], ...] = ([], [], [])
            for share in range(self._num_shares):
                for lines in self._problems(self._spill / f"{share}.jsonl"):
                    seed, *rows = self._tables(lines)
                    seeds.write(seed)
                    for held, some in zip(waiting, rows, strict=True):
                        held.extend(some)
                    if len(waiting[2]) >= _LABELS_AT_ONCE:
                        _write_all(writers, waiting)
            _write_all(writers, waiting)
        shutil.rmtree(self._spill)

    def _problems(self, share: Path) -> Iterator[list[Row]]:
        grouped: dict[str, list[int]] = {}
        with share.open("rb") as file:
            at = 0
            for line in file:
                grouped.setdefault(json.loads(line)["problem_id"], []).append(at)
                at += len(line)
            for places in grouped.values():
                lines = []
                for place in places:
                    file.seek(place)
                    lines.append(json.loads(file.readline()))
                yield lines

    def _tables(self, lines: list[Row]) -> tuple[list[Row], list[Row], list[Row], list[Row]]:
        """(seed, solutions, prefixes, labels) of one problem."""
        first = lines[0]
        problem = first["problem_id"]
        options = next((line["options"] for line in lines if line["options"]), None)
        kind, _ = answer_type(first["answer"], tuple(options or ())) if first["answer"] else (None, "")
        gold = Gold(first["answer"], kind, tuple(options or ())) if kind else None
        seed = {
            **{name: first[name] for name in ("problem_id", "source_id", "source", "question", "answer")},
            "images": [{"bytes": Path(where).read_bytes(), "path": None} for _, where in first["pictures"]],
            "answer_type": kind,
            "options": options,
        }
        solutions: list[Row] = []
        labels: list[Row] = []
        tallies: dict[str, Row] = {}
        seen: Counter[str] = Counter()
        for solution in (s for line in lines for s in map(_solution, line["solutions"])):
            said = [[m.label, m.num_right, m.num_verdicts] for m in solution.marks]
            same = digest("same", solution.steps, said, solution.more.get("solution_id"))
            self.count["repeated"] += same in seen
            if same in seen:
                continue
            seen[same] += 1
            text = digest("steps", solution.steps)
            row = self._solution_row(problem, solution, len(solutions), seen[text], gold)
            seen[text] += 1
            solutions.append(row)
            self._add_steps(row, solution, tallies, labels)
        self.count["problems"] += 1
        self.count["solutions"] += len(solutions)
        self.count["prefixes"] += len(tallies)
        self.count["labels"] += len(labels)
        self.count["steps"] += sum(len(row["steps"]) for row in solutions)
        return [seed], solutions, list(tallies.values()), labels

    def _solution_row(self, problem: str, solution: Solution, index: int, repeat: int, gold: Gold | None) -> Row:
        text = solution.text if solution.text is not None else self.task.splitter.separator.join(solution.steps)
        more = dict(solution.more)
        row = {
            "solution_id": digest("solution", problem, self.origin, solution.steps, repeat),
            "problem_id": problem,
            "index": index,
            "steps": list(solution.steps),
            "seed": None,
            "text": text,
            "answer": None,
            "finish_reason": "stop",
            "num_tokens": None,
            "logprob": None,
            "policy_digest": self.origin,
            "verifier_digest": VERIFIER_DIGEST,
            "verdict": "unknown",
            "rule": "imported",
            **more,
        }
        if gold is not None and not {"verdict", "verifier_digest"} <= set(more):
            verdict = grade(text, gold, finish_reason=str(row["finish_reason"]))
            row |= {"verdict": verdict.value, "rule": verdict.rule, "answer": verdict.answer}
        return row

    def _add_steps(self, row: Row, solution: Solution, tallies: dict[str, Row], labels: list[Row]) -> None:
        units: list[str] = []
        for i, (step, mark) in enumerate(zip(solution.steps, solution.marks, strict=True)):
            units += self.task.splitter.split(step)
            prefix = prefix_id(row["problem_id"], units)
            more = mark.more
            tally = {
                "problem_id": row["problem_id"],
                "prefix_id": prefix,
                "num_units": len(units),
                "num_right": mark.num_right,
                "num_verdicts": mark.num_verdicts,
                "num_unknown": more.get("num_unknown", 0),
                "num_reused": more.get("num_reused", 0),
                "stopping_rule": more.get("stopping_rule", "imported"),
                "policy_digest": row["policy_digest"],
                "verifier_digest": row["verifier_digest"] if more else self.origin,
            }
            is_final = i + 1 == len(solution.steps)
            if not is_final or (mark.num_verdicts and tally["stopping_rule"] != "final"):
                known = tallies.setdefault(prefix, tally)
                if known is not tally and (known["num_right"], known["num_verdicts"]) != (mark.num_right, mark.num_verdicts):
                    self.count["remeasured"] += bool(known["num_verdicts"] and mark.num_verdicts)
                    if mark.num_verdicts > known["num_verdicts"]:
                        tallies[prefix] = tally
            if mark.label is not None:
                labels.append(_label_row(row, tally, mark, i))

    def summary(self, paths: list[Path]) -> Row:
        """What summary.json says."""
        names = ("rows", "problems", "solutions", "steps", "labels", "prefixes")
        return {
            "format": self.form.name,
            "files": [path.name for path in paths],
            **{name: self.count[name] for name in names},
            "repeated_solutions": self.count["repeated"],
            "prefixes_measured_again": self.count["remeasured"],
            "quarantined": dict(sorted(self.reasons.items())),
            "task": self.task.name,
        }


def _solution(packed: list[Any]) -> Solution:
    steps, text, more, marks = packed
    return Solution(tuple(steps), tuple(Mark(label, k, n, extra) for label, k, n, extra in marks), text, more)


def _label_row(row: Row, tally: Row, mark: Mark, step: int) -> Row:
    k, n, label = mark.num_right, mark.num_verdicts, mark.label
    assert label is not None
    mean = mark.more.get("mean", k / n if n else label if label >= 0 else None)
    named = (row["solution_id"], step, k, n, -1.0 if mean is None else mean, label, tally["verifier_digest"])
    return {
        "label_id": digest("label", *named),
        **{name: row[name] for name in ("problem_id", "solution_id")},
        "prefix_id": tally["prefix_id"],
        "step": step,
        "num_steps": len(row["steps"]),
        **{name: tally[name] for name in ("num_right", "num_verdicts", "num_unknown", "num_reused", "stopping_rule")},
        "mc": k / n if n else None,
        "mean": mean,
        **{name: mark.more.get(name) for name in ("sd", "low", "high")},
        "label": label,
        "weight": mark.more.get("weight", 1.0),
        **{name: tally[name] for name in ("policy_digest", "verifier_digest")},
    }


def _write_all(writers: tuple[TableWriter, ...], waiting: tuple[list[Row], ...]) -> None:
    _add_posteriors(waiting[2])
    for writer, rows in zip(writers, waiting, strict=True):
        writer.write(rows)
        rows.clear()


def _add_posteriors(labels: list[Row]) -> None:
    """Counts without a posterior get the one of each step on its own; bare labels have none."""
    bare = [row for row in labels if row["num_verdicts"] and row["sd"] is None]
    if not bare:
        return
    import numpy as np

    from components.estimation import beta_shrinkage

    pairs, place = np.unique([[row["num_right"], row["num_verdicts"]] for row in bare], axis=0, return_inverse=True)
    found = beta_shrinkage(pairs[:, 0], pairs[:, 1], (0.5, 0.5))
    known = [{name: round(float(getattr(found, name)[i]), 6) for name in ("sd", "low", "high")} for i in range(len(pairs))]
    for row, i in zip(bare, place.ravel().tolist(), strict=True):
        low, high = min(known[i]["low"], row["mean"]), max(known[i]["high"], row["mean"])  # k / n may be 0 or 1
        row.update(known[i] | {"low": low, "high": high})
