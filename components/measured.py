"""Solutions and what was counted at their prefixes: read side by side in whole problems, as arrays a step and a node.

Owns what the files say of each step; does not know what a step is worth, nor which of them get a label.

Shapes: S usable solutions of P problems, L steps of them, N nodes of the forest of their unfinished prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.errors import DataError
from components.forest import Forest, Ints
from components.records import PREFIX, PROBLEM, SOLUTION, iterate_table, prefix_id
from components.tasks import Task
from components.texts import Texts

_SOLUTION_COLUMNS = ["solution_id", "problem_id", "steps", "verdict", "finish_reason", "policy_digest", "verifier_digest"]
_VERDICTS = pa.array(["right", "wrong", "unknown"])
_TEXT_COLUMNS = ["right_masses", "wrong_masses", "num_repeated_right", "num_repeated_wrong"]


class Measured:
    """The usable solutions of some whole problems, step by step, with the counts of their prefixes."""

    def __init__(self, task: Task, solutions: pa.Table, prefixes: pa.Table) -> None:
        """Take rows of SOLUTION, those of a problem one behind the other, and rows of PREFIX of the same problems.

        Raises:
            DataError: a verdict or a step is none, or a prefix's counts or probabilities cannot be.
        """
        _check_solutions(solutions)
        _check_prefixes(prefixes)
        lengths = pc.list_value_length(solutions.column("steps")).fill_null(0).to_numpy()
        is_usable = pc.equal(solutions.column("finish_reason"), "stop").fill_null(False).to_numpy() & (lengths > 0)
        problem = np.cumsum(_begins(solutions)) - 1
        self.num_solutions = solutions.num_rows
        self.num_all_steps, self.num_unusable = int(lengths.sum()), int((~is_usable).sum())
        self.num_problems = int(problem[-1]) + 1 if len(problem) else 0
        self.solutions = solutions.filter(pa.array(is_usable))
        self.prefixes = prefixes
        num_steps = lengths[is_usable].astype(np.int64)
        self._problem_of_solution = problem[is_usable]
        self.solution: Ints = np.repeat(np.arange(len(num_steps)), num_steps)
        """`[L]` row of `solutions`."""
        self.problem: Ints = self._problem_of_solution[self.solution]
        """`[L]` from 0; problems without a usable solution have a number too."""
        self.num_steps: Ints = num_steps[self.solution]
        """`[L]` of the whole solution."""
        self.step: Ints = np.arange(len(self.solution)) - np.repeat(np.cumsum(num_steps) - num_steps, num_steps)
        """`[L]` from 0."""
        self.is_final: NDArray[np.bool_] = self.step == self.num_steps - 1
        """`[L]` whether the step ends its solution: it was not continued, and has the solution's verdict."""
        self.prefix_ids = [
            name
            for problem, steps in zip(*(self.solutions.column(c).to_pylist() for c in ("problem_id", "steps")), strict=True)
            for name in _prefix_ids(task, problem, steps)
        ]
        """`[L]` the prefix that ends with the step."""

    @cached_property
    def forest(self) -> Forest:
        """The unfinished prefixes of all P problems."""
        paths: list[list[tuple[Sequence[str], str]]] = [[] for _ in range(self.num_problems)]
        ends = np.flatnonzero(self.is_final)
        begins = ends - self.num_steps[ends] + 1
        verdicts = self.solutions.column("verdict").to_pylist()
        for problem, begin, end, verdict in zip(self._problem_of_solution, begins, ends, verdicts, strict=True):
            paths[problem].append((self.prefix_ids[begin:end], verdict))
        return Forest.build(paths)

    @cached_property
    def counts(self) -> dict[str, NDArray[Any]]:
        """Columns of LABEL, `[L]`: (k, n, unknown, reused, stopping rule); a final step has its solution's verdict.

        Raises:
            DataError: an unfinished step's prefix is not among the prefixes.
        """
        rows = self._rows(self.prefix_ids)
        missing = np.flatnonzero((rows < 0) & ~self.is_final)
        if missing.size:
            what = f"no prefix {self.prefix_ids[missing[0]]}, which a solution has"
            raise DataError("prefixes.parquet", what, "the two files are not of one run: run rollout again")
        verdict = np.array(self.solutions.column("verdict").to_pylist(), dtype=object)[self.solution]
        final = {
            "num_right": verdict == "right",
            "num_verdicts": verdict != "unknown",
            "num_unknown": verdict == "unknown",
            "num_reused": np.zeros(len(rows), dtype=np.int32),
        }
        counts = {name: np.where(self.is_final, own, self._column(name)[rows]) for name, own in final.items()}
        rules = np.array([*self.prefixes.column("stopping_rule").to_pylist(), None], dtype=object)
        return counts | {"stopping_rule": np.where(self.is_final, "final", rules[rows])}

    def node_counts(self, *, own: bool = False) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(k, n) of every node, `[N]` each; `own`: without the continuations that began at an earlier one."""
        right, total = self._column("num_right"), self._column("num_verdicts")
        if own:
            total = total - self._column("num_reused")
            # Labels from elsewhere do not say how many of the reused ones were right.
            right = np.minimum(right - self._column("num_reused_right"), total)
        rows = self._rows(self.forest.keys)
        return right[rows], total[rows]

    def texts(self) -> dict[int, Texts]:
        """Node -> the texts of noticeable probability behind it, where there are any."""
        lengths = [pc.list_value_length(self.prefixes.column(name)).fill_null(0) for name in _TEXT_COLUMNS[:2]]
        told = self.prefixes.filter(pc.greater(pc.add(*lengths), 0)).select(["prefix_id", *_TEXT_COLUMNS]).to_pylist()
        found = {
            row["prefix_id"]: Texts(
                row["right_masses"] or (),
                row["wrong_masses"] or (),
                row["num_repeated_right"] or 0,
                row["num_repeated_wrong"] or 0,
            )
            for row in told
        }
        return {node: found[key] for node, key in enumerate(self.forest.keys if found else ()) if key in found}

    def _rows(self, names: Sequence[Any]) -> Ints:
        """The row of each prefix; -1, where `_column` has a 0, if there is none."""
        rows = pc.index_in(pa.array(names, pa.string()), value_set=self.prefixes.column("prefix_id"))
        return np.asarray(rows.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def _column(self, name: str) -> NDArray[np.int32]:
        return np.append(self.prefixes.column(name).fill_null(0).to_numpy(), np.int32(0))


def _check_solutions(solutions: pa.Table) -> None:
    """Stop at a verdict that is none: a null taken for wrong would be a wrong label."""
    names = solutions.column("solution_id")
    steps = solutions.column("steps")
    with_null = pc.list_parent_indices(steps).filter(pc.is_null(pc.list_flatten(steps)))
    bad = np.isin(np.arange(solutions.num_rows), with_null.to_numpy())
    for what, is_bad in (
        ("a null among its steps", bad),
        ("a verdict that is neither right, wrong nor unknown", ~pc.is_in(solutions.column("verdict"), _VERDICTS).to_numpy()),
    ):
        if is_bad.any():
            raise DataError("solutions.parquet", f"solution {names[int(is_bad.argmax())]} has {what}", "run rollout again")


def _check_prefixes(prefixes: pa.Table) -> None:
    """Stop at counts and probabilities that no continuations come to."""
    columns = ("num_right", "num_verdicts", "num_reused", "num_reused_right")
    right, total, reused, reused_right = (prefixes.column(name).fill_null(0).to_numpy() for name in columns)
    bad = (right < 0) | (total < right) | (reused < 0) | (total < reused) | (reused_right < 0)
    bad |= np.minimum(right, reused) < reused_right
    for name in _TEXT_COLUMNS[:2]:
        masses = pc.list_flatten(prefixes.column(name))
        is_mass = pc.and_(pc.greater_equal(masses, 0.0), pc.less_equal(masses, 1.0)).fill_null(False).to_numpy()
        if not is_mass.all():
            bad[pc.list_parent_indices(prefixes.column(name)).to_numpy()[~is_mass]] = True
    if bad.any():
        at = int(bad.argmax())
        shown = ", ".join(f"{name} {prefixes.column(name)[at]}" for name in (*columns, *_TEXT_COLUMNS[:2]))
        what = f"prefix {prefixes.column('prefix_id')[at]} has counts that cannot be: {shown:.200}"
        raise DataError("prefixes.parquet", what, "the file was changed: run rollout again")


def _prefix_ids(task: Task, problem: str, steps: Sequence[str]) -> Iterator[str]:
    units: list[str] = []
    for step in steps:
        units += task.splitter.split(step)
        yield prefix_id(problem, units)


# --- reading -------------------------------------------------------------------------------------------------------


def measured(rollouts: Path, task: Task, *, num_solutions: int) -> Iterator[Measured]:
    """All of a folder written by rollout, in the order of the solutions and in memory that does not grow with it.

    Args:
        num_solutions: read at once, and completed to whole problems.
    """
    solutions = iterate_table(rollouts / "solutions.parquet", SOLUTION, _SOLUTION_COLUMNS, num_rows=num_solutions)
    prefixes = iterate_table(rollouts / "prefixes.parquet", PREFIX, num_rows=4 * num_solutions)
    for some, of_them in abreast(solutions, prefixes):
        yield Measured(task, some, of_them)


def check_one_run(seeds: Path, rollouts: Path) -> None:
    """Stop where seeds, solutions and prefixes are not of one run; labels would come out all the same.

    What was imported is exempt from the second rule: its counts were made elsewhere, its verdicts here.

    Raises:
        DataError: a solution's problem is no seed, or the prefixes are another policy's or verifier's.
    """
    digests = ["policy_digest", "verifier_digest"]
    problems: set[str] = set()
    made: dict[str, set[str | None]] = {name: set() for name in digests}
    for table in iterate_table(rollouts / "solutions.parquet", SOLUTION, ["problem_id", *digests], num_rows=1 << 17):
        problems.update(pc.unique(table.column("problem_id")).to_pylist())
        for name in digests:
            made[name].update(pc.unique(table.column(name)).to_pylist())
    for table in iterate_table(seeds / "seeds.parquet", PROBLEM, ["problem_id"], num_rows=1 << 17):
        problems.difference_update(table.column("problem_id").to_pylist())
    if problems:
        what = f"problem {min(map(str, problems))} is no seed of {seeds}"
        raise DataError(str(rollouts), what, "name the seeds that the rollouts are of")
    if not made["policy_digest"]:  # no solutions at all: whoever reads them says so
        return
    for table in iterate_table(rollouts / "prefixes.parquet", PREFIX, ["stopping_rule", *digests], num_rows=1 << 17):
        sampled = table.filter(pc.not_equal(table.column("stopping_rule"), "imported"))
        for name in digests:
            strange = {*pc.unique(sampled.column(name)).to_pylist()} - made[name] - {None}
            if strange:
                what = f"{name} {min(strange)}, which no solution has"
                hint = "the two files are not of one run: run rollout again, or regrade both"
                raise DataError(str(rollouts / "prefixes.parquet"), what, hint)


def measured_of(rollouts: Path, task: Task, *, num_problems: int) -> Measured:
    """Some problems of the folder, the first by their names: no order of the files decides.

    Raises:
        DataError: there are no solutions.
    """
    names: list[str] = []
    for table in iterate_table(rollouts / "solutions.parquet", SOLUTION, ["problem_id"], num_rows=1 << 20):
        found = pc.unique(table.column("problem_id"))
        if found.null_count:
            raise DataError(str(rollouts / "solutions.parquet"), "a solution without a problem_id", "run rollout again")
        names = sorted({*names, *found.to_pylist()})[:num_problems]
    if not names:
        raise DataError(str(rollouts / "solutions.parquet"), "no rows", "run rollout again")
    chosen = pa.array(names, pa.string())

    def of_chosen(name: str, schema: pa.Schema, columns: list[str]) -> pa.Table:
        tables = iterate_table(rollouts / name, schema, columns, num_rows=1 << 17)
        empty = pa.schema([schema.field(column) for column in columns]).empty_table()
        return pa.concat_tables([empty, *(t.filter(pc.is_in(t.column("problem_id"), value_set=chosen)) for t in tables)])

    solutions = of_chosen("solutions.parquet", SOLUTION, _SOLUTION_COLUMNS)
    solutions = solutions.take(pc.sort_indices(solutions, [("problem_id", "ascending")]))
    return Measured(task, solutions, of_chosen("prefixes.parquet", PREFIX, PREFIX.names))


def abreast(solutions: Iterator[pa.Table], prefixes: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Solutions of whole problems, about a table's worth at once, with the prefixes of the same problems.

    Both come with the rows of a problem one behind the other, and name problems in one order; either may have problems
    that the other lacks. Prefixes of problems without a solution are left out.
    """
    held = next(prefixes, PREFIX.empty_table())
    for some in whole_problems(solutions):
        problems = pc.unique(some.column("problem_id"))
        while not _is_behind(held, problems[-1].as_py()) and (more := next(prefixes, None)) is not None:
            held = pa.concat_tables([held, more])
        is_inside = pc.is_in(held.column("problem_id"), value_set=problems).to_numpy()
        end = int(np.flatnonzero(is_inside)[-1]) + 1 if is_inside.any() else 0
        yield some, held.slice(0, end).filter(pa.array(is_inside[:end]))
        held = held.slice(end)


def whole_problems(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, cut where a problem ends: those of a problem come one behind the other."""
    held = None
    for table in tables:
        held = table if held is None else pa.concat_tables([held, table])
        begins = np.flatnonzero(_begins(held))
        if len(begins) > 1:  # the last problem may go on in the next table
            yield held.slice(0, int(begins[-1]))
            held = held.slice(int(begins[-1]))
    if held is not None and held.num_rows:
        yield held


def _begins(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows are the first of their problem."""
    names = table.column("problem_id").combine_chunks()
    return np.append(np.ones(min(1, len(names)), dtype=bool), pc.not_equal(names[1:], names[:-1]).to_numpy(False))


def _is_behind(table: pa.Table, problem: str) -> bool:
    """Whether all rows of a problem are in the table: it is there, and another one after it."""
    names = table.column("problem_id")
    return bool(pc.index(names, problem).as_py() >= 0 and names[-1].as_py() != problem)
