"""Step benchmarks: a row of a table each, and their rows in the official layouts as cases with labelled steps.

Owns how labels and scores of other people's files are read; does not know what scores are worth.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.errors import DataError, SettingsError, one_line
from components.grade import read_rows
from components.interchange.foreign import BadRow
from components.interchange.prm800k import PRM800K
from components.progress import say
from components.records import digest

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A solution whose steps somebody has judged."""

    id: str
    question: str
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]
    """One a step: right, wrong, or None where it is neutral or nobody said."""
    group: str = ""
    """Source, subset or class."""
    images: tuple[Any, ...] = ()
    """Paths, or {bytes, path}."""
    first_error: int | None = None
    """The first wrong step from 0, -1 for none; None: it follows from the labels."""
    is_extra: bool = False
    """Left out of the overall numbers: PRMBench's untouched originals."""

    @property
    def error_at(self) -> int:
        """The first wrong step from 0, -1 for none."""
        if self.first_error is not None:
            return self.first_error
        return next((i for i, label in enumerate(self.labels) if label is False), -1)

    @property
    def problem(self) -> str:
        """What cases of one problem share: intervals are drawn over problems."""
        pictures = [one if isinstance(one, str) else digest("picture", str(one)) for one in self.images]
        return digest("case-problem-1", self.question, pictures)


@dataclass(frozen=True)
class StepBenchmark:
    """One benchmark of steps."""

    hub: str
    """The dataset's id on the hub, or its repository."""
    files: tuple[str, ...]
    """Its files below the folder of the distribution."""
    cases: Callable[[Row], list[Case]]
    """The cases of a row. Raises: BadRow."""
    metric: str = "macro_f1"
    """What is reported: a key of METRICS."""
    is_mean_of_groups: bool = False
    """The overall number is the plain mean of the groups' ones; else it is pooled."""
    note: str = ""


# --- rows ----------------------------------------------------------------------------------------------------------


def _texts(row: Row, name: str) -> tuple[str, ...]:
    value = row.get(name)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(step, str) for step in value):
        raise BadRow("bad_steps", f"{name} is {value!r:.60}")
    return tuple(value)


def _question(row: Row, *names: str) -> str:
    text = next((row[name] for name in names if isinstance(row.get(name), str)), "")
    if not text.strip():
        raise BadRow("missing_question", f"none of {', '.join(names)}")
    return str(text)


def _images(row: Row, *names: str) -> tuple[Any, ...]:
    value = next((row[name] for name in names if row.get(name)), ())
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRow("bad_label", f"{value!r:.40} is no whole number")
    return value


def _visualprocessbench(row: Row) -> list[Case]:
    response = row.get("response")
    if isinstance(response, str):
        try:
            response = json.loads(response)
        except ValueError as error:
            raise BadRow("bad_row", f"response is {response!r:.40}") from error
    if not isinstance(response, Mapping):
        raise BadRow("bad_row", f"response is {response!r:.40}")
    steps = _texts(response, "steps")
    marks = [_whole(mark) for mark in response.get("process_correctness") or ()]
    if len(marks) != len(steps):
        raise BadRow("bad_label", f"{len(marks)} labels for {len(steps)} steps")
    if not set(marks) <= {-1, 0, 1}:
        raise BadRow("bad_label", f"labels {sorted(set(marks))}")
    labels = tuple(None if mark == 0 else mark == 1 for mark in marks)
    group = str(row.get("data_source") or row.get("source") or "")
    return [Case(str(row.get("id", "")), _question(row, "question"), steps, labels, group, _images(row, "image", "images"))]


def _processbench(row: Row) -> list[Case]:
    steps, at = _texts(row, "steps"), _whole(row.get("label"))
    if not -1 <= at < len(steps):
        raise BadRow("bad_label", f"label {at} of {len(steps)} steps")
    labels = tuple(True if at < 0 or i < at else False if i == at else None for i in range(len(steps)))
    name = str(row.get("id", ""))
    group = str(row.get("subset") or (name.rpartition("-")[0] if "-" in name else row.get("file", "")))
    return [Case(name, _question(row, "problem", "question"), steps, labels, group, first_error=at)]


def _prmbench(row: Row) -> list[Case]:
    steps, kind = _texts(row, "modified_process"), str(row.get("classification", ""))
    name = str(row.get("idx", "")).removeprefix(f"{kind}_")  # the hub's file has it in front, the repository's has not
    wrong = {_whole(step) - 1 for step in row.get("error_steps") or ()}  # they count from 1
    labels = tuple(i not in wrong for i in range(len(steps)))
    cases = [Case(f"{kind}_{name}", _question(row, "modified_question", "question"), steps, labels, kind)]
    if kind == "redundency":  # as it is spelt there
        original = _texts(row, "original_process")
        question = _question(row, "original_question", "question")
        cases.append(Case(f"correct_{name}", question, original, (True,) * len(original), "correct", is_extra=True))
    return cases


def _prm800k(row: Row) -> list[Case]:
    problem, solutions = PRM800K.read(row)
    cases = []
    for number, solution in enumerate(solutions):
        labels = [None if mark.label is None else mark.label > 0 for mark in solution.marks]
        if number:  # another last step on the same path, whose steps have been counted
            labels = [*(None for _ in labels[:-1]), labels[-1]]
        name = f"{row.get('timestamp', '')}/{digest('prm800k', problem.question)[:12]}/{number}"
        group = str(row["label"].get("finish_reason") or "")
        cases.append(Case(name, problem.question, tuple(solution.steps), tuple(labels), group))
    return cases


def _vlrmbench(row: Row) -> list[Case]:
    text = row.get("reasoning_error")
    if not isinstance(text, str):
        raise BadRow("bad_steps", f"reasoning_error is {text!r:.40}")
    steps = tuple(part.strip() for part in re.split(r"(?=STEP\s*\d+\s*:)", text) if part.strip())
    marks = [_whole(mark) for mark in row.get("task_gt") or ()]
    if len(marks) != len(steps):
        raise BadRow("bad_label", f"{len(marks)} labels for {len(steps)} steps")
    images = _images(row, "local_image", "image")
    labels = tuple(mark == 0 for mark in marks)  # 1 marks a wrong step
    return [Case(str(row.get("id", "")), _question(row, "question"), steps, labels, str(row.get("category", "")), images)]


def _known_truth(row: Row) -> list[Case]:
    steps = _texts(row, "steps")
    labels = row.get("right_so_far")
    if not isinstance(labels, list | tuple) or len(labels) != len(steps):
        raise BadRow("bad_label", f"right_so_far is {labels!r:.40}")
    group = str(row.get("source", ""))
    truth = tuple(bool(label) for label in labels)
    return [Case(str(row.get("id", "")), _question(row, "question"), steps, truth, group, _images(row, "image", "images"))]


def _audit(field: str, meaning: Mapping[Any, bool | None]) -> Callable[[Row], list[Case]]:
    def cases(row: Row) -> list[Case]:
        steps, said = _texts(row, "steps"), row.get(field)
        if not isinstance(said, list | tuple) or len(said) != len(steps):
            raise BadRow("bad_label", f"{field} is {said!r:.40} for {len(steps)} steps")
        strange = next((one for one in said if not isinstance(one, str | bool | None) or one not in meaning), None)
        if strange is not None:
            raise BadRow("bad_label", f"{field} holds {strange!r:.40}")
        labels = tuple(meaning[one] for one in said)
        group, question = str(row.get("source", "")), _question(row, "question")
        return [Case(str(row.get("id", "")), question, steps, labels, group, _images(row, "images"))]

    return cases


STEP_BENCHMARKS: dict[str, StepBenchmark] = {
    "visualprocessbench": StepBenchmark(
        hub="OpenGVLab/VisualProcessBench",
        files=("test.jsonl", "data/test-*.parquet"),
        cases=_visualprocessbench,
        note="neutral steps dropped; there is no official threshold",
    ),
    "processbench": StepBenchmark(
        hub="Qwen/ProcessBench",
        files=("data/*.json*", "data/*.parquet", "gsm8k.json", "*.json"),
        cases=_processbench,
        metric="first_error_f1",
        is_mean_of_groups=True,
        note="the paper chooses the threshold on gsm8k: --tune-on gsm8k",
    ),
    "prmbench": StepBenchmark(
        hub="hitsmy/PRMBench_Preview",
        files=("prmtest_preview.jsonl", "data/*.jsonl", "*.jsonl"),
        cases=_prmbench,
        metric="prm_score",
        note="overall without the untouched originals",
    ),
    "prm800k": StepBenchmark(
        hub="openai/prm800k",
        files=("data/phase2_test.jsonl", "phase2_test.jsonl", "*.jsonl"),
        cases=_prm800k,
        note="neutral ratings dropped; every rated completion counts once",
    ),
    "vlrmbench": StepBenchmark(
        hub="JCruan519/VLRMBench",
        files=("benchmark_data/location_error.jsonl", "location_error.jsonl"),
        cases=_vlrmbench,
        note="injected errors only",
    ),
    "known-truth": StepBenchmark(
        hub="written by `stepforge world`",
        files=("step_errors.parquet",),
        cases=_known_truth,
        note="a step is right as long as all before it is",
    ),
    "audit": StepBenchmark(
        hub="written by `stepforge annotate freeze`",
        files=("*.parquet",),
        cases=_audit("marks", {"+": True, "-": False, "0": None, None: None}),
        note="each step for itself, neutral ones dropped; unweighted: drawn to be hard, annotate freeze weights it back",
    ),
    "audit-so-far": StepBenchmark(
        hub="written by `stepforge annotate freeze`",
        files=("*.parquet",),
        cases=_audit("so_far", {True: True, False: False, None: None}),
        note="a step is right as long as all before it is; unweighted: drawn to be hard, annotate freeze weights it back",
    ),
}
"""One row a benchmark."""


def step_benchmark(name: str) -> StepBenchmark:
    """The step benchmark of that name.

    Raises:
        SettingsError: there is none.
    """
    found = STEP_BENCHMARKS.get(name)
    if found is None:
        raise SettingsError("command line", f"no step benchmark named {name!r}", f"known: {', '.join(STEP_BENCHMARKS)}")
    return found


def read_cases(benchmark: StepBenchmark, place: Path) -> list[Case]:
    """The cases of a file, or of a folder that holds the distribution; each once, in order. Bad rows are counted aloud.

    Raises:
        DataError: a file cannot be read, or no row is usable.
    """
    paths = [place] if place.is_file() else next((f for p in benchmark.files if (f := sorted(place.glob(p)))), [])
    if not paths:
        what = f"holds none of {', '.join(benchmark.files)}" if place.is_dir() else "no such file or folder"
        raise DataError(str(place), what, "name a file of the benchmark, or the folder it was downloaded to")
    cases: dict[str, Case] = {}
    bad: list[str] = []
    for path in paths:
        rows = _with_pictures(path) if path.suffix == ".parquet" else _records(path) or read_rows(path)
        for number, row in enumerate(rows):
            try:
                found = benchmark.cases({"file": path.stem, **row})
            except BadRow as error:
                bad.append(f"{path.name} row {number}: {error}")
                continue
            for case in found:
                cases.setdefault(case.id or f"{path.stem}/{number}", replace(case, id=case.id or f"{path.stem}/{number}"))
    if not cases:
        raise DataError(str(place), f"none of {len(bad):,} rows is usable; the first: {bad[0]}", "is it that benchmark?")
    if bad:
        say("benchmark", f"{len(bad):,} rows left out; the first: {one_line(bad[0], 200)}")
    return list(cases.values())


def _records(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that holds them one after another over many lines; none if it holds a list or a line each."""
    if path.suffix != ".json":
        return []
    found: list[dict[str, Any]] = []
    decoder = json.JSONDecoder()
    try:
        text, at = path.read_text(encoding="utf-8-sig").strip(), 0
        while at < len(text):
            value, end = decoder.raw_decode(text, at)
            found += [value] if isinstance(value, dict) else []
            at = end + len(text[end:]) - len(text[end:].lstrip())
    except (OSError, ValueError, RecursionError):
        return []  # read_rows says what is wrong with it
    return found


def _with_pictures(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "was its download cut short?") from error
    return rows


# --- scores made elsewhere ------------------------------------------------------------------------------------------


def scores_of_rows(cases: Sequence[Case], rows: Iterable[Row]) -> dict[str, list[float]]:
    """Case id -> step scores, from rows made elsewhere: `scores`, `step_scores`, `prm_scores`, `rewards`,
    `predictions`, or what PRMBench writes.

    Rows are joined by `id`; rows without ids by their order, if there are as many as cases. Lists of another length than the
    steps are left out and counted aloud.

    Raises:
        DataError: no row fits.
    """
    given = list(rows)
    known = {case.id: case for case in cases}
    by_order = not any(row.get("id") is not None or row.get("idx") is not None for row in given)
    if by_order and len(given) != len(cases):
        what = f"{len(given):,} rows without ids for {len(cases):,} cases"
        raise DataError("scores", what, "give every row the id of its case")
    found: dict[str, list[float]] = {}
    fates: Counter[str] = Counter()
    for number, row in enumerate(given):
        name = cases[number].id if by_order else str(row.get("id") if row.get("id") is not None else row.get("idx"))
        held = row["scores"] if isinstance(row.get("scores"), Mapping) else row  # PRMBench's own output
        values = next((held[key] for key in _SCORE_FIELDS if isinstance(held.get(key), list)), None)
        if name not in known:
            fates["of no case"] += 1
        elif values is None or len(values) != len(known[name].steps):
            fates["of another length"] += 1
        elif not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            fates["no numbers"] += 1
        else:
            found[name] = [float(value) for value in values]
    if not found:
        what = f"none of {len(given):,} rows fits: {dict(fates)}"
        raise DataError("scores", what, f"an object a line: id, and one of {', '.join(_SCORE_FIELDS)}")
    if fates:
        say("benchmark", "rows left out: " + ", ".join(f"{count:,} {why}" for why, count in fates.items()))
    return found


_SCORE_FIELDS = (
    "scores",
    "step_scores",
    "prm_scores",
    "rewards",
    "predictions",
    "step_level_validity_scores",
    "step_level_validity_labels",
)
