"""A label -> what it rests on: its problem, its solution and every continuation that counted, counted again.

Owns how a label is found and traced, without reading more than the row groups that hold its problem; makes no
label and trusts no count. Knows nothing of how it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.errors import DataError, RefusedError, SettingsError
from components.lineage import SUMMARY, find_receipt
from components.prefixes import outcome
from components.records import CONTINUATION, LABEL, PROBLEM, SOLUTION, prefix_id, read_json
from components.search import Counts, State
from components.tasks import Task, load_task, task_names

Row = dict[str, Any]
MIN_CHARS = 6
_NEEDED = ("question", "text", "steps", "verdict")
_ROWS_AT_ONCE = 64  # of tables with pictures
_MAX_HASHED_BYTES = 4 * 10**9  # a receipt is found by the digest of the whole folder


@dataclass(frozen=True)
class Counted:
    """A continuation that counts for the label."""

    row: Row
    """Of records.CONTINUATION."""
    num_units_before: int
    """Units of the prefix it began at."""
    tail: tuple[str, ...]
    """The units it wrote behind the labelled step."""
    is_reused: bool
    """It began earlier and passed through."""


@dataclass(frozen=True)
class Explanation:
    """A label and what it rests on."""

    label: Row
    problem: Row
    solution: Row
    task: Task
    state: State
    """The units of the labelled prefix."""
    counted: tuple[Counted, ...]
    counts: Counts
    """What the listed continuations come to."""
    has_continuations: bool
    """False: the counts were made elsewhere, or the solution's own verdict is the label."""
    receipts: dict[str, Row] = field(default_factory=dict)
    """Stage -> the receipt of the run that made its folder, where there is one."""

    @property
    def is_final(self) -> bool:
        """Whether the labelled step ends its solution, whose own verdict is then its worth."""
        return bool(self.label["stopping_rule"] == "final")

    @property
    def mismatch(self) -> str | None:
        """How the listed continuations contradict the label; None if they do not."""
        if not self.has_continuations and not self.is_final:
            return None
        names = ("num_right", "num_verdicts", "num_unknown", "num_reused")
        seen = {name: getattr(self.counts, name) for name in names}
        wrong = [f"{name} {seen[name]} instead of {self.label[name]}" for name in names if seen[name] != self.label[name]]
        return f"what is listed comes to {', '.join(wrong)}" if wrong else None


def explain(
    label: str,
    *,
    seeds: Path,
    rollouts: Path,
    labels: Path,
    home: Path,
    task: str | None = None,
) -> Explanation:
    """Find a label and everything that counted for it. Reads no more than the row groups that hold its problem.

    Args:
        label: the beginning of its id, at least 6 characters.
        home: where receipts lie (STEPFORGE_HOME).
        task: its name; by default the one under which the prefix has its name.
    Raises:
        SettingsError: the id is too short or is none.
        DataError: no label or several begin so, or the folders are not of one run.
    """
    row = find_label(labels / "labels.parquet", label)
    problem = _one(seeds / "seeds.parquet", PROBLEM, row["problem_id"], {"problem_id": row["problem_id"]})
    solution = _one(rollouts / "solutions.parquet", SOLUTION, row["problem_id"], {"solution_id": row["solution_id"]})
    receipts = _receipts(home, {"rollout": rollouts, "label": labels, "import": rollouts})
    steps = solution["steps"][: row["step"] + 1]
    named = task or _task_of(receipts)
    chosen = _fitting_task(row, steps, named)
    state = chosen.units(steps)
    path = rollouts / "continuations.parquet"
    if row["stopping_rule"] == "final" or not _has_continuations(rollouts):
        counts = Counts()
        if row["stopping_rule"] == "final":
            counts.add(solution["verdict"])
        return Explanation(row, problem, solution, chosen, state, (), counts, False, receipts)
    reuse = _reuse(receipts)
    rows = list(_rows_of_problem(path, CONTINUATION, row["problem_id"]))
    counted, counts = recount(rows, row["problem_id"], chosen, state, reuse=reuse is not False)
    is_other = counts.num_reused or counts.num_unknown != row["num_unknown"]
    if reuse is None and not row["num_reused"] and is_other:  # no receipt says so, but the label does
        counted, counts = recount(rows, row["problem_id"], chosen, state, reuse=False)
    return Explanation(row, problem, solution, chosen, state, tuple(counted), counts, True, receipts)


def recount(rows: Sequence[Row], problem: str, task: Task, state: State, *, reuse: bool) -> tuple[list[Counted], Counts]:
    """The continuations that began at `state` and, if `reuse`, those that passed through it; `search.tally`'s rule."""
    begins = {prefix_id(problem, state[:cut]): cut for cut in range(len(state) + 1)}
    found, counts = [], Counts()
    for row in rows:
        before = begins.get(row["prefix_id"])
        if before is None or (before < len(state) and not reuse):
            continue
        units = outcome(task, row).units
        rest = len(state) - before
        if rest and not (rest < len(units) and units[:rest] == state[before:]):  # its end is no unfinished prefix
            continue
        counts.add(row["verdict"], is_reused=rest > 0)
        found.append(Counted(row, before, units[rest:], rest > 0))
    return found, counts


def enforce(found: Explanation) -> None:
    """Stop where the listed continuations contradict the label.

    Raises:
        RefusedError: they do.
    """
    if found.mismatch:
        hint = "the files are not of one run, or were changed: run rollout and label again"
        raise RefusedError(f"label {found.label['label_id']}", found.mismatch, hint)


def _has_continuations(rollouts: Path) -> bool:
    """Whether the folder has them, or should have: then a missing file is an error, not a label made elsewhere."""
    if (rollouts / "continuations.parquet").exists():
        return True
    summary = read_json(rollouts / SUMMARY) if (rollouts / SUMMARY).exists() else {}
    return isinstance(summary, dict) and "continuations" in summary


# --- finding rows --------------------------------------------------------------------------------------------------


def find_label(path: Path, beginning: str) -> Row:
    """The one label whose id begins so.

    Raises:
        SettingsError: too short, or no beginning of an id.
        DataError: none or several begin so.
    """
    wanted = beginning.strip().lower()
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_CHARS},32}}", wanted):
        what = f"{beginning!r:.60} is no label id"
        raise SettingsError("command line", what, f"give at least {MIN_CHARS} of its hexadecimal characters")
    file = _opened(path, LABEL)
    found: list[tuple[int, int, str]] = []
    with _readable(path):
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["label_id"]).column("label_id")
            hits = pc.indices_nonzero(pc.starts_with(ids, wanted)).to_pylist()
            found += [(group, row, ids[row].as_py()) for row in hits]
    if len(found) != 1:
        shown = ", ".join(name for _, _, name in found[:3])
        what = f"{len(found):,} labels begin with {wanted}: {shown}" if found else f"no label begins with {wanted}"
        raise DataError(str(path), what, "give more of its characters" if found else "label_id in labels.parquet names them")
    group, at, _ = found[0]
    with _readable(path):
        row: Row = file.read_row_group(group, columns=LABEL.names).slice(at, 1).to_pylist()[0]
    return row


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "name the folder that holds it, or run its stage") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "delete it and run its stage again") from error


def _opened(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    with _readable(path):
        file = pq.ParquetFile(path, read_dictionary=["problem_id"])
    missing = [name for name in schema.names if name not in file.schema_arrow.names]
    if missing:
        raise DataError(str(path), f"no column {missing[0]!r}", "was it written by an older version? run its stage again")
    return file


def _rows_of_problem(path: Path, schema: pa.Schema, problem: str) -> Iterator[Row]:
    """The rows of one problem, in the file's order; row groups without it are not read."""
    file = _opened(path, schema)
    at = file.schema_arrow.names.index("problem_id")
    with _readable(path):
        for group in range(file.num_row_groups):
            if not _may_hold(file.metadata.row_group(group), at, problem):
                continue
            ids = file.read_row_group(group, columns=["problem_id"]).column("problem_id")
            if not pc.any(pc.equal(ids, problem)).as_py():
                continue
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=schema.names, use_threads=False):
                for row in batch.filter(pc.equal(batch.column("problem_id"), problem)).to_pylist():
                    gone = next((name for name in _NEEDED if name in row and row[name] is None), None)
                    if gone is not None:
                        raise DataError(str(path), f"{gone} is null in a row of problem {problem}", "run its stage again")
                    yield row


def _may_hold(group: Any, column: int, value: str) -> bool:
    for i in range(group.num_columns):
        if group.column(i).path_in_schema == "problem_id":
            known = group.column(i).statistics
            return known is None or not known.has_min_max or known.min <= value <= known.max
    return column >= 0


def _one(path: Path, schema: pa.Schema, problem: str, wanted: dict[str, str]) -> Row:
    for row in _rows_of_problem(path, schema, problem):
        if all(row[name] == value for name, value in wanted.items()):
            return row
    name, value = next(iter(wanted.items()))
    raise DataError(str(path), f"no {name} {value}, which the label has", "seeds, rollouts and labels are not of one run")


# --- receipts ------------------------------------------------------------------------------------------------------


def _receipts(home: Path, folders: dict[str, Path]) -> dict[str, Row]:
    found = {}
    for stage, folder in folders.items():
        if not (home / "receipts" / stage).is_dir() or not folder.is_dir():
            continue
        if sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) > _MAX_HASHED_BYTES:
            continue
        receipt = find_receipt(home, stage, folder)
        if receipt is not None:
            found[stage] = receipt
    return found


def setting(receipts: dict[str, Row], stage: str, name: str) -> Any:
    """A setting of the stage that made a folder; None if no receipt says it."""
    section = receipts.get(stage, {}).get("params", {}).get(stage, {})
    return section.get(name) if isinstance(section, dict) else None


def _reuse(receipts: dict[str, Row]) -> bool | None:
    """Whether continuations counted for what they passed through; None if no receipt says so."""
    stated, search = (setting(receipts, "rollout", name) for name in ("reuse_prefixes", "search"))
    if isinstance(search, dict) and search.get("type") == "omegaprm":
        return False  # a node of its tree was chosen because of what passed through it
    return stated if isinstance(stated, bool) else None


def _task_of(receipts: dict[str, Row]) -> str | None:
    for receipt in receipts.values():
        name = receipt.get("params", {}).get("task")
        if isinstance(name, str):
            return name
    return None


def _fitting_task(label: Row, steps: Sequence[str], named: str | None) -> Task:
    """The task under which the labelled prefix has its name.

    Raises:
        DataError: under none that is known.
    """
    for task in map(load_task, [named] if named else task_names()):
        if prefix_id(label["problem_id"], task.units(steps)) == label["prefix_id"]:
            return task
    what = f"the solution's first {len(steps)} steps are not the prefix {label['prefix_id']} that the label names"
    hint = "rollouts and labels are not of one run, or the task is another: --task NAME"
    raise DataError("explain", what, hint)
