"""Stage `label`: what the continuations came to -> step labels, with counts, posterior and the rule that ended sampling.

Pure: no model, no sampling, no grading. Owns what a label is made of and which labels are kept; how values are
estimated is `estimation`'s business, how labels are learnt `train`'s. Memory does not grow with the number of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components import estimation
from components.errors import DataError, SettingsError
from components.forest import Forest
from components.lineage import SUMMARY
from components.progress import Progress, say
from components.quality import LabelsGate, enforce
from components.records import LABEL, PREFIX, SOLUTION, TableWriter, digest, iterate_table, prefix_id, write_json
from components.settings import Label, Params, Runtime
from components.tasks import Task, load_task
from components.texts import Texts, beyond_counts

SOLUTIONS_AT_ONCE = 16384
FIT_PROBLEMS = 1024  # whose outcomes teach the kernel; chosen by their names
NUM_BINS = 10
BIS_ALPHA = 0.05
_PLACES = 6  # decimals kept of an estimate: sums are rounded differently on other machines
_SOLUTION_COLUMNS = ["solution_id", "problem_id", "steps", "verdict", "finish_reason", "policy_digest", "verifier_digest"]


def run(
    params: Params, runtime: Runtime, *, seeds: Path, rollouts: Path, second: Path | None = None, out: Path
) -> dict[str, Any]:
    """Write labels.parquet into `out`.

    Args:
        second: labels of the same solutions by another completer or judge; solutions on whose first error the two
            disagree are dropped (consensus filter, "Lessons of Developing PRMs", arXiv 2501.07301).
    Raises:
        DataError: the files are not of one run, or a gate found the labels wrong.
    """
    other = _first_errors(second, right_above(params.label)) if second else None
    labeller = Labeller(params.label, load_task(params.task), other)
    gate = LabelsGate(params.label.formulation)
    with TableWriter(out / "labels.parquet", LABEL) as writer:
        for table in labelled(labeller, rollouts, scratch=out / ".labels.parquet"):
            gate.add(writer.write(table))
    enforce(gate.gate(), out)
    write_json(out / SUMMARY, labeller.summary(gate))
    return {}


def labelled(labeller: Labeller, rollouts: Path, *, scratch: Path | None = None) -> Iterator[pa.Table]:
    """The labels of a folder written by rollout, piece by piece, in the order of the solutions.

    Args:
        scratch: a file to keep labels in while others are still counted; needed if a switch looks at all of them.
    """
    labeller.learn(rollouts)
    say("label", labeller.guard_line)
    num_solutions = pq.ParquetFile(rollouts / "solutions.parquet").metadata.num_rows
    progress = Progress("label", num_solutions, unit="solutions")
    if not labeller.needs_totals:
        for solutions, prefixes in _in_step(rollouts):
            yield labeller.labels(solutions, prefixes)
            progress.advance(solutions.num_rows)
        return
    scratch = scratch or rollouts / ".labels.parquet"
    try:
        with TableWriter(scratch, LABEL) as writer:
            for solutions, prefixes in _in_step(rollouts):
                writer.write(labeller.labels(solutions, prefixes))
                progress.advance(solutions.num_rows)

        def read(columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
            return iterate_table(scratch, LABEL, columns, num_rows=8 * SOLUTIONS_AT_ONCE)

        labeller.settle(lambda: read(["label_id", "solution_id", "label"]))
        for table in read():
            yield labeller.balanced(table)
    finally:
        scratch.unlink(missing_ok=True)


# --- reading -------------------------------------------------------------------------------------------------------


def _in_step(rollouts: Path) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Solutions of whole problems with the prefixes of the same problems: both files name problems in one order."""
    prefixes = _Waiting(iterate_table(rollouts / "prefixes.parquet", PREFIX, num_rows=4 * SOLUTIONS_AT_ONCE))
    solutions = _Waiting(
        iterate_table(rollouts / "solutions.parquet", SOLUTION, _SOLUTION_COLUMNS, num_rows=SOLUTIONS_AT_ONCE)
    )
    while (some := solutions.whole_problems()) is not None:
        yield some, prefixes.of_problems(pc.unique(some.column("problem_id")))


class _Waiting:
    """Tables read ahead, handed out in whole problems."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._held: pa.Table | None = None

    def _more(self) -> bool:
        table = next(self._tables, None)
        if table is None:
            return False
        self._held = table if self._held is None else pa.concat_tables([self._held, table])
        return True

    def whole_problems(self) -> pa.Table | None:
        """About one read's worth of rows, cut where a problem ends; None at the end of the file."""
        is_more = self._more()
        while is_more and self._ends_of_problems() == 0:
            is_more = self._more()
        if self._held is None or not self._held.num_rows:
            return None
        return self._take(self._ends_of_problems() if is_more else self._held.num_rows)

    def of_problems(self, problems: pa.Array) -> pa.Table:
        """The rows of these problems, which come next; those of problems without a solution between them are skipped."""
        last = problems[-1].as_py()
        while self._held is None or not self._held.num_rows or not self._is_behind(last):
            if not self._more():
                break
        if self._held is None:
            return PREFIX.empty_table()
        inside = pc.is_in(self._held.column("problem_id"), value_set=problems).to_numpy(zero_copy_only=False)
        taken = self._take(int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 0)
        return taken.filter(pc.is_in(taken.column("problem_id"), value_set=problems))

    def _is_behind(self, problem: str) -> bool:
        """Whether all rows of a problem are held: it was seen, and another one after it."""
        assert self._held is not None
        names = self._held.column("problem_id")
        return bool(pc.index(names, problem).as_py() >= 0 and names[-1].as_py() != problem)

    def _ends_of_problems(self) -> int:
        """Rows before the last problem that is held, which may go on in the next read."""
        assert self._held is not None
        names = self._held.column("problem_id")
        other = pc.not_equal(names, names[-1]).to_numpy(zero_copy_only=False)
        return int(np.flatnonzero(other)[-1]) + 1 if other.any() else 0

    def _take(self, num_rows: int) -> pa.Table:
        assert self._held is not None
        taken, self._held = self._held.slice(0, num_rows), self._held.slice(num_rows)
        return taken


# --- labelling -----------------------------------------------------------------------------------------------------


def right_above(settings: Label) -> float:
    """A label above it counts as right: one half; with advantages, every step that does not harm."""
    return -0.5 if settings.formulation == "advantage" else 0.5


@dataclass
class _Steps:
    """The steps of some solutions as columns; L labels-to-be, S usable solutions, P problems."""

    solution: list[int] = field(default_factory=list)  # row of the solutions table
    step: list[int] = field(default_factory=list)
    prefix_ids: list[str] = field(default_factory=list)
    is_final: list[bool] = field(default_factory=list)
    problem: list[int] = field(default_factory=list)
    problems: list[list[tuple[list[str], str]]] = field(default_factory=list)  # for Forest.build
    num_unusable: int = 0  # steps of solutions that were cut off


class Labeller:
    """Makes the labels of one run: learns the kernel once, then labels solutions in any number of pieces."""

    def __init__(self, settings: Label, task: Task, second: dict[str, int] | None = None) -> None:
        self.settings, self.task, self.second = settings, task, second
        self.right_above = right_above(settings)
        self.kernel = estimation.DEFAULT
        self.prior = (0.5, 0.5)
        self.guard: estimation.Guard | None = None
        self.num_unlabelled = 0
        self.switches: dict[str, list[int]] = {}
        """Switch -> labels before and after it."""
        self._scores: list[tuple[float, str]] = []
        self._best = pa.array([], pa.string())
        self._kept_frac = 1.0  # of the right labels, so that not too many are left for each wrong one
        self._class_totals = np.zeros(2)  # wrong and right labels that are left in the end

    @property
    def estimator(self) -> str:
        """joint | beta | counts: what the settings ask for, unless the guard found single prefixes to predict better."""
        if self.settings.estimator == "counts":
            return "counts"
        return "joint" if self.guard is None or self.guard.uses_chain else "beta"

    @property
    def needs_totals(self) -> bool:
        """Whether a switch looks at all labels before the first can be kept."""
        balance = self.settings.balance
        return balance.equal_classes or balance.max_positives_per_negative is not None or self.settings.best_frac is not None

    @property
    def guard_line(self) -> str:
        """What decided on the estimator, for the user."""
        if self.guard is None:
            return f"estimator {self.estimator}"
        gain = f"{self.guard.chain:.4f} nats a rollout against {self.guard.beta:.4f} prefix by prefix"
        return f"estimator {self.estimator}: {self.guard.reason} ({gain})"

    def learn(self, rollouts: Path) -> None:
        """Fit the kernel, and ask the guard, on a fixed number of problems chosen by their names."""
        if self.settings.estimator == "counts":
            return
        names: set[str] = set()
        for table in iterate_table(rollouts / "solutions.parquet", SOLUTION, ["problem_id"], num_rows=1 << 20):
            names |= set(pc.unique(table.column("problem_id")).to_pylist())
            names = set(sorted(names)[:FIT_PROBLEMS])
        chosen = pa.array(sorted(names), pa.string())

        def of_chosen(name: str, schema: pa.Schema, columns: list[str] | None) -> pa.Table:
            tables = iterate_table(rollouts / name, schema, columns, num_rows=1 << 17)
            return pa.concat_tables([t.filter(pc.is_in(t.column("problem_id"), value_set=chosen)) for t in tables])

        solutions = of_chosen("solutions.parquet", SOLUTION, _SOLUTION_COLUMNS)
        solutions = solutions.take(pc.sort_indices(solutions, [("problem_id", "ascending")]))  # no other order decides
        if not solutions.num_rows:
            raise DataError(str(rollouts / "solutions.parquet"), "no rows", "run rollout again")
        steps = self._steps(solutions)
        forest = Forest.build(steps.problems)
        prefixes = of_chosen("prefixes.parquet", PREFIX, None)
        right, total = self._node_counts(forest, prefixes)
        rules = set(pc.unique(prefixes.column("stopping_rule")).to_pylist())
        if rules == {"imported"} and not total.sum():
            what = "hard labels made elsewhere, without counts: there is nothing to estimate from"
            raise DataError(str(rollouts), what, "train on the labels that import wrote")
        self.prior = estimation.beta_prior(right, total)
        self.guard = estimation.guard(forest, *self._node_counts(forest, prefixes, own=True))
        if "tree_search" in rules:
            self.guard = replace(self.guard, uses_chain=False, reason="a tree search keeps solutions for how they ended")
        if self.guard.uses_chain:
            beyond = beyond_counts(right, total, self._texts(forest, prefixes))
            self.kernel = estimation.fit(forest, right, total, beyond_NG=beyond)

    def labels(self, solutions: pa.Table, prefixes: pa.Table) -> pa.Table:
        """The labels of some solutions of whole problems, from their prefixes' counts."""
        steps = self._steps(solutions)
        self.num_unlabelled += steps.num_unusable
        if not steps.step:
            return LABEL.empty_table()
        counts = self._counts(steps, solutions, prefixes)
        estimate = self._estimate(steps, counts, prefixes)
        columns = self._columns(steps, solutions, counts, estimate)
        keep = self._is_labelled(columns)
        self.num_unlabelled += int((~keep).sum())
        table = pa.Table.from_pydict(columns, schema=LABEL).filter(pa.array(keep))
        table = self._switched("unique_prefixes", table, _first_of_each_prefix) if self.settings.unique_prefixes else table
        table = self._switched("consensus", table, self._agreed) if self.second is not None else table
        if self.settings.best_frac is not None:
            self._scores += _bis_scores(table, self.right_above)
        return table

    def _steps(self, solutions: pa.Table) -> _Steps:
        out = _Steps()
        columns = [solutions.column(name).to_pylist() for name in ("problem_id", "steps", "verdict", "finish_reason")]
        rows = enumerate(zip(*columns, strict=True))
        for problem, group in groupby(rows, key=lambda row: row[1][0]):
            paths: list[tuple[list[str], str]] = []
            for i, (_, texts, verdict, finish_reason) in group:
                if finish_reason != "stop" or not texts:
                    out.num_unusable += len(texts)
                    continue
                units: list[str] = []
                names = []
                for text in texts:
                    units += self.task.splitter.split(text)
                    names.append(prefix_id(problem, units))
                out.solution += [i] * len(texts)
                out.step += range(len(texts))
                out.prefix_ids += names
                out.is_final += [False] * (len(texts) - 1) + [True]
                out.problem += [len(out.problems)] * len(texts)
                paths.append((names[:-1], verdict))
            out.problems.append(paths)
        return out

    def _node_counts(self, forest: Forest, prefixes: pa.Table, *, own: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(k, n) of every node; `own`: without the continuations that began at an earlier one."""
        place = {name: i for i, name in enumerate(prefixes.column("prefix_id").to_pylist())}
        rows = np.array([place.get(key, -1) for key in forest.keys])
        known = rows >= 0
        right, total = (prefixes.column(name).to_numpy() for name in ("num_right", "num_verdicts"))
        if own:
            reused = [prefixes.column(name).fill_null(0).to_numpy() for name in ("num_reused_right", "num_reused")]
            total = total - reused[1]
            right = np.minimum(right - reused[0], total)  # labels from elsewhere do not say how many of them were right
        return np.where(known, right[rows], 0), np.where(known, total[rows], 0)

    def _texts(self, forest: Forest, prefixes: pa.Table) -> dict[int, Texts]:
        """The texts of noticeable probability behind each node that has any."""
        names = ("right_masses", "wrong_masses", "num_repeated_right", "num_repeated_wrong")
        lengths = [pc.list_value_length(prefixes.column(name)).fill_null(0) for name in names[:2]]
        told = prefixes.filter(pc.greater(pc.add(*lengths), 0))
        columns = [told.column(name).to_pylist() for name in names]
        found = dict(zip(told.column("prefix_id").to_pylist(), zip(*columns, strict=True), strict=True))
        return {
            node: Texts(right or (), wrong or (), again_right or 0, again_wrong or 0)
            for node, key in enumerate(forest.keys if found else ())
            for right, wrong, again_right, again_wrong in ([found[key]] if key in found else ())
        }

    def _counts(self, steps: _Steps, solutions: pa.Table, prefixes: pa.Table) -> dict[str, Any]:
        """(k, n, unknown, reused, stopping rule) of every step; a final one has its solution's verdict."""
        place = {name: i for i, name in enumerate(prefixes.column("prefix_id").to_pylist())}
        is_final = np.array(steps.is_final, dtype=bool)
        rows = np.array([place.get(name, -1) for name in steps.prefix_ids], dtype=np.int64)
        missing = np.flatnonzero((rows < 0) & ~is_final)
        if missing.size:
            what = f"no prefix {steps.prefix_ids[missing[0]]}, which a solution has"
            raise DataError("prefixes.parquet", what, "the two files are not of one run: run rollout again")
        verdict = np.array(solutions.column("verdict").to_pylist(), dtype=object)[np.array(steps.solution, dtype=np.int64)]
        final = {
            "num_right": verdict == "right",
            "num_verdicts": verdict != "unknown",
            "num_unknown": verdict == "unknown",
            "num_reused": np.zeros(len(rows), dtype=bool),
        }
        out: dict[str, Any] = {}
        for name, value in final.items():
            column = prefixes.column(name).to_numpy()
            out[name] = np.where(is_final, value, column[rows] if len(column) else 0).astype(np.int32)
        rules = prefixes.column("stopping_rule").to_pylist()
        out["stopping_rule"] = ["final" if f else rules[r] for f, r in zip(is_final, rows, strict=True)]
        out["is_final"] = is_final
        return out

    def _estimate(self, steps: _Steps, counts: dict[str, Any], prefixes: pa.Table) -> dict[str, np.ndarray]:
        """mean, sd, low, high, the chance of being right (above the threshold) and the problem's own value, a step each."""
        right, total, is_final = counts["num_right"], counts["num_verdicts"], counts["is_final"]
        threshold = max(self.settings.threshold, estimation.POSITIVE)
        problem = np.array(steps.problem, dtype=np.int64)
        verdict = np.where(total > 0, right, np.nan) / np.maximum(total, 1)
        forest = Forest.build(steps.problems)
        if self.estimator == "joint":
            counted = self._node_counts(forest, prefixes)
            beyond = beyond_counts(*counted, self._texts(forest, prefixes))
            found = estimation.posteriors(forest, *counted, self.kernel, beyond_NG=beyond)
            nodes = np.zeros(len(right), dtype=np.int64)
            nodes[~is_final] = forest.path
            root = found.mean[: forest.num_problems][problem]
        else:
            found = estimation.beta_shrinkage(right, total, (0.5, 0.5) if self.estimator == "counts" else self.prior)
            nodes = np.arange(len(right))
            solved, judged = (np.bincount(problem[is_final], x[is_final], len(steps.problems)) for x in (right, total))
            root = np.divide(solved, judged, out=np.full(len(solved), np.nan), where=judged > 0)[problem]
        estimate = {name: np.where(is_final, verdict, getattr(found, name)[nodes]) for name in ("mean", "low", "high")}
        if self.estimator == "counts":
            estimate["mean"] = verdict
        # k / n = 1 lies above every quantile of what it may stand for, and so may the mean of a very skew posterior.
        estimate["low"] = np.fmin(estimate["low"], estimate["mean"])
        estimate["high"] = np.fmax(estimate["high"], estimate["mean"])
        estimate["sd"] = np.where(is_final, 0.0, found.sd[nodes])
        above = _chance_above(found.cells, threshold)[nodes]
        if self.estimator == "counts":
            above = np.where(verdict > self.settings.threshold, 1.0, 0.0)
        estimate["right"] = np.where(is_final, verdict, above)
        estimate["root"] = root
        return {name: np.round(value, _PLACES) for name, value in estimate.items()}

    def _columns(
        self, steps: _Steps, solutions: pa.Table, counts: dict[str, Any], estimate: dict[str, np.ndarray]
    ) -> dict[str, Any]:
        of_solution = np.array(steps.solution, dtype=np.int64)
        of_step = np.array(steps.step, dtype=np.int32)
        ids = {name: solutions.column(name).take(pa.array(of_solution)) for name in ("solution_id", "problem_id")}
        digests = {name: solutions.column(name).take(pa.array(of_solution)) for name in ("policy_digest", "verifier_digest")}
        ends = np.flatnonzero(counts["is_final"])
        num_steps = np.repeat(of_step[ends] + 1, np.diff(np.concatenate([[-1], ends])))
        total = counts["num_verdicts"]
        targets = self._targets(estimate, counts, of_step)
        mean = estimate["mean"]
        weight = np.where(targets <= self.right_above, self.settings.balance.negative_weight, 1.0)
        names = [
            digest("label", *row)
            for row in zip(
                ids["solution_id"].to_pylist(),
                steps.step,
                counts["num_right"].tolist(),
                total.tolist(),
                np.where(np.isnan(mean), -1.0, mean).tolist(),
                np.where(np.isnan(targets), -9.0, targets).tolist(),
                digests["verifier_digest"].to_pylist(),
                strict=True,
            )
        ]
        return {
            "label_id": names,
            **ids,
            "prefix_id": steps.prefix_ids,
            "step": of_step,
            "num_steps": num_steps,
            **{name: counts[name] for name in ("num_right", "num_verdicts", "num_unknown", "num_reused", "stopping_rule")},
            "mc": pa.array(counts["num_right"] / np.maximum(total, 1), mask=total == 0),
            **{name: pa.array(estimate[name], from_pandas=True) for name in ("mean", "sd", "low", "high")},
            "label": targets,
            "weight": weight,
            **digests,
        }

    def _targets(self, estimate: dict[str, np.ndarray], counts: dict[str, Any], of_step: np.ndarray) -> np.ndarray:
        """The training target of every step; NaN where there is none."""
        settings, mean = self.settings, estimate["mean"]
        if settings.formulation in ("soft", "count"):
            if self.estimator == "counts" and "first_success" in set(counts["stopping_rule"]):
                what = f"label.formulation {settings.formulation!r} with counts that stopped at the first success"
                raise SettingsError(
                    "params.yaml", what, "such counts are biased: take formulation 'value' or estimator 'joint'"
                )
            return mean
        if settings.formulation == "value":
            right = estimate["right"]
            known = np.where(np.isnan(right), np.nan, (right > 0.5).astype(float))
            return _implied(known, counts, of_step) if self.estimator == "counts" else known
        before = np.where(of_step == 0, estimate["root"], np.concatenate([[np.nan], mean[:-1]]))
        change = mean - before
        return np.where(np.isnan(change), np.nan, np.where(np.abs(change) <= settings.min_change, 0.0, np.sign(change)))

    def _is_labelled(self, columns: dict[str, Any]) -> np.ndarray:
        settings = self.settings
        is_final = np.array([rule == "final" for rule in columns["stopping_rule"]], dtype=bool)
        keep = ~np.isnan(columns["label"])
        if self.estimator != "joint":
            by_rule = np.array([rule == "first_success" for rule in columns["stopping_rule"]], dtype=bool)
            keep &= (columns["num_verdicts"] >= settings.min_verdicts) | is_final | by_rule
        if settings.max_sd is not None:
            keep &= (columns["sd"].to_numpy(zero_copy_only=False) <= settings.max_sd) | is_final
        return np.asarray(keep)

    # --- switches --------------------------------------------------------------------------------------------------

    def _switched(self, name: str, table: pa.Table, switch: Any) -> pa.Table:
        kept = switch(table)
        seen = self.switches.setdefault(name, [0, 0])
        seen[0] += table.num_rows
        seen[1] += kept.num_rows
        return kept

    def _agreed(self, table: pa.Table) -> pa.Table:
        """Labels of the solutions on whose first error a second opinion agrees."""
        assert self.second is not None
        ours = _first_error_of(table, self.right_above)
        agree = [name for name, step in ours.items() if self.second.get(name) == step]
        return table.filter(pc.is_in(table.column("solution_id"), value_set=pa.array(agree, pa.string())))

    def settle(self, read: Callable[[], Iterable[pa.Table]]) -> None:
        """Decide what depends on all labels; each switch sees what the one before it leaves.

        Args:
            read: all labels, from the first on at every call.
        """
        if self.settings.best_frac is not None:
            ranked = sorted(self._scores, key=lambda pair: (-pair[0], pair[1]))
            names = [name for _, name in ranked[: round(self.settings.best_frac * len(ranked))]]
            self._best = pa.array(names, pa.string())
        balance = self.settings.balance
        self._class_totals = _class_totals(map(self._of_best, read()), self.right_above)
        if balance.max_positives_per_negative is not None:
            negatives, positives = self._class_totals
            self._kept_frac = min(1.0, balance.max_positives_per_negative * negatives / max(1.0, positives))
            self._class_totals = _class_totals(map(self._thinned, map(self._of_best, read())), self.right_above)

    def _of_best(self, table: pa.Table) -> pa.Table:
        if self.settings.best_frac is None:
            return table
        return table.filter(pc.is_in(table.column("solution_id"), value_set=self._best))

    def _thinned(self, table: pa.Table) -> pa.Table:
        draw = np.array([int(name[:8], 16) for name in table.column("label_id").to_pylist()]) / 2.0**32
        return table.filter(pa.array((table.column("label").to_numpy() <= self.right_above) | (draw < self._kept_frac)))

    def balanced(self, table: pa.Table) -> pa.Table:
        """What is left of some labels, and with which weights, once `settle` has seen all."""
        balance = self.settings.balance
        if self.settings.best_frac is not None:
            table = self._switched("best_frac", table, self._of_best)
        if balance.max_positives_per_negative is not None:
            table = self._switched("max_positives_per_negative", table, self._thinned)
        negatives, positives = self._class_totals
        if balance.equal_classes and negatives and positives:
            both = negatives + positives
            label, weight = table.column("label").to_numpy(), table.column("weight").to_numpy()
            scaled = weight * np.where(label > self.right_above, both / (2 * positives), both / (2 * negatives))
            table = table.set_column(
                table.schema.get_field_index("weight"), LABEL.field("weight"), pa.array(np.round(scaled, 9))
            )
        return table

    def summary(self, gate: LabelsGate) -> dict[str, Any]:
        """What summary.json says."""
        return {
            "labels": gate.num_labels,
            "unlabelled": self.num_unlabelled,
            "solutions": gate.num_solutions,
            "mean": round(gate.mean, 6),
            "formulation": self.settings.formulation,
            "estimator": self.estimator,
            "guard": None if self.guard is None else self.guard.reason,
            "switches": {name: {"before": b, "after": a} for name, (b, a) in sorted(self.switches.items())},
            "histogram": [[i / NUM_BINS, (i + 1) / NUM_BINS, count] for i, count in enumerate(gate.histogram)],
        }


def _implied(known: np.ndarray, counts: dict[str, Any], of_step: np.ndarray) -> np.ndarray:
    """Hard labels of a search that stops at the first success: what it did not sample follows from what it did.

    A success behind a longer prefix, or the solution's own, went through every shorter one: they are right. Behind
    a hopeless prefix all is wrong.
    """
    out = known.copy()
    rules = counts["stopping_rule"]
    ends = np.flatnonzero(counts["is_final"])
    for first, last in zip(np.concatenate([[0], ends[:-1] + 1]), ends, strict=True):
        part = slice(int(first), int(last) + 1)
        if "first_success" not in rules[part]:
            continue
        successes, steps = np.flatnonzero(out[part] == 1), out[part][:-1]
        last_success = int(successes[-1]) if successes.size else -1
        steps[: max(0, last_success)] = 1
        behind = np.flatnonzero(steps[last_success + 1 :] == 0)
        if behind.size:
            steps[last_success + 1 + behind[0] :] = 0
    return out


def _chance_above(cells: np.ndarray, threshold: float) -> np.ndarray:
    """`[N]` P(V > threshold) under posteriors on the estimator's grid, `[N, G]`."""
    edges = estimation.EDGES
    not_above = np.clip((threshold - edges[:-1]) / np.diff(edges), 0.0, 1.0)
    chance: np.ndarray = np.clip(1.0 - cells @ not_above, 0.0, 1.0)
    return chance


def _class_totals(tables: Iterable[pa.Table], right_above: float) -> np.ndarray:
    totals = np.zeros(2)
    for table in tables:
        positive = table.column("label").to_numpy() > right_above
        totals += [float((~positive).sum()), float(positive.sum())]
    return totals


def _first_of_each_prefix(table: pa.Table) -> pa.Table:
    _, first = np.unique(np.array(table.column("prefix_id").to_pylist(), dtype=object), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _first_error_of(table: pa.Table, right_above: float) -> dict[str, int]:
    """The first wrong step of every solution; -1 if there is none."""
    first: dict[str, int] = {}
    columns = (table.column(name).to_pylist() for name in ("solution_id", "step", "label"))
    for name, step, label in zip(*columns, strict=True):
        if first.setdefault(name, -1) < 0 and label <= right_above:
            first[name] = step
    return first


def _first_errors(second: Path, right_above: float) -> dict[str, int]:
    out: dict[str, int] = {}
    for table in iterate_table(second / "labels.parquet", LABEL, ["solution_id", "step", "label"], num_rows=1 << 17):
        for name, step in _first_error_of(table, right_above).items():
            if out.get(name, -1) < 0:
                out[name] = step
    return out


def _bis_scores(table: pa.Table, right_above: float) -> list[tuple[float, str]]:
    """What each solution is worth for training: mixed and reliable ones first.

    Source: BIS (arXiv 2602.04145): (p (1 - p) + alpha) R, p the share of right steps, R their mean value.
    """
    columns = (table.column(name).to_pylist() for name in ("solution_id", "label", "mean"))
    out = []
    for name, rows in groupby(zip(*columns, strict=True), key=lambda row: row[0]):
        steps = list(rows)
        positive = [mean for _, label, mean in steps if label > right_above]
        p = len(positive) / len(steps)
        reliability = sum(positive) / len(positive) if positive else 0.0
        out.append(((p * (1 - p) + BIS_ALPHA) * reliability, name))
    return out
