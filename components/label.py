"""Stage `label`: what the continuations came to -> step labels, with counts, posterior and the rule that ended sampling.

Pure: no model, no sampling, no grading. Owns what a label is made of; how values are estimated is `estimation`'s business,
which labels are kept `switches`', how they are learnt `train`'s. Memory does not grow with the number of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components import estimation
from components.errors import DataError, SettingsError
from components.estimation import Floats
from components.lineage import SUMMARY
from components.measured import Measured, check_one_run, measured, measured_of
from components.progress import Progress, say
from components.quality import LabelsGate, enforce
from components.records import LABEL, TableWriter, digest, iterate_table, read_json, write_json
from components.settings import Label, Params, Runtime
from components.switches import Switches, first_errors, right_above
from components.tasks import Task, load_task
from components.texts import beyond_counts

SOLUTIONS_AT_ONCE = 16384
FIT_PROBLEMS = 1024  # whose outcomes teach the kernel; chosen by their names
NUM_BINS = 10
_PLACES = 6  # decimals kept of an estimate: sums are rounded differently on other machines


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
    check_one_run(seeds, rollouts)
    other = None
    if second is not None:
        _check_second(second, params.label)
        columns = ["solution_id", "step", "label"]
        tables = iterate_table(second / "labels.parquet", LABEL, columns, num_rows=1 << 17)
        other = first_errors(tables, right_above(params.label))
    labeller = Labeller(params.label, load_task(params.task), other)
    gate = LabelsGate(params.label.formulation)
    with TableWriter(out / "labels.parquet", LABEL) as writer:
        for table in labelled(labeller, rollouts, scratch=out / ".labels.parquet"):
            gate.add(writer.write(table))
    enforce(gate.gate(), out)
    write_json(out / SUMMARY, labeller.summary(gate))
    return {}


def _check_second(second: Path, settings: Label) -> None:
    """Stop where the other labels do not mean the same: a drop is no low value, and an outcome is of the end alone."""
    summary = read_json(second / SUMMARY) if (second / SUMMARY).exists() else {}
    other = summary.get("formulation") if isinstance(summary, dict) else None  # imported labels do not say
    if isinstance(other, str) and other != settings.formulation and {other, settings.formulation} & {"advantage", "outcome"}:
        what = f"labels of formulation {other!r}, for a first error by {settings.formulation!r}"
        raise SettingsError(str(second), what, "make both labels with the same label.formulation")


def labelled(labeller: Labeller, rollouts: Path, *, scratch: Path | None = None) -> Iterator[pa.Table]:
    """The labels of a folder written by rollout, piece by piece, in the order of the solutions.

    Args:
        scratch: a file to keep labels in while others are still counted, if a switch looks at all of them.
    """
    labeller.learn(rollouts)
    say("label", labeller.guard_line)
    num_solutions = pq.ParquetFile(rollouts / "solutions.parquet").metadata.num_rows
    progress = Progress("label", num_solutions, unit="solutions")

    def tables() -> Iterator[pa.Table]:
        for some in measured(rollouts, labeller.task, num_solutions=SOLUTIONS_AT_ONCE):
            yield labeller.labels(some)
            progress.advance(some.num_solutions)

    yield from labeller.switches.kept(
        tables(), needs_verdicts=labeller.estimator != "joint", scratch=scratch or rollouts / ".labels.parquet"
    )


class Labeller:
    """Makes the labels of one run: learns the kernel once, then labels solutions in any number of pieces."""

    def __init__(self, settings: Label, task: Task, second: Mapping[str, int] | None = None) -> None:
        self.settings, self.task = settings, task
        self.switches = Switches(settings, second)
        self.kernel = estimation.DEFAULT
        self.prior = (0.5, 0.5)
        self.guard: estimation.Guard | None = None
        self.num_unusable = 0

    @property
    def estimator(self) -> str:
        """joint | beta | counts: what the settings ask for, unless the guard found single prefixes to predict better."""
        if self.settings.estimator == "counts":
            return "counts"
        return "joint" if self.guard is None or self.guard.uses_chain else "beta"

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
        some = measured_of(rollouts, self.task, num_problems=FIT_PROBLEMS)
        right, total = some.node_counts()
        rules = set(some.prefixes.column("stopping_rule").to_pylist())
        if rules == {"imported"} and not total.sum():
            what = "labels made elsewhere, without counts: there is nothing to estimate from"
            raise DataError(str(rollouts), what, "train on the labels that import wrote")
        self.prior = estimation.beta_prior(right, total)
        self.guard = estimation.guard(some.forest, *some.node_counts(own=True))
        if "tree_search" in rules:
            self.guard = replace(self.guard, uses_chain=False, reason="a tree search keeps solutions for how they ended")
        if self.guard.uses_chain:
            self.kernel = estimation.fit(some.forest, right, total, beyond_NG=beyond_counts(right, total, some.texts()))

    def labels(self, some: Measured) -> pa.Table:
        """The labels of some solutions, of weight 1 and before any switch; NaN where a step has no known value.

        Raises:
            DataError: the prefixes are not those of the solutions.
            SettingsError: the counts do not fit the formulation.
        """
        self.num_unusable += some.num_unusable
        self.switches.note("usable_solutions", some.num_all_steps, len(some.step))
        if not len(some.step):
            return LABEL.empty_table()
        counts, estimate = some.counts, self._estimate(some)
        targets = self._targets(some, estimate)
        of_solution = {
            name: some.solutions.column(name).take(pa.array(some.solution))
            for name in ("solution_id", "problem_id", "policy_digest", "verifier_digest")
        }
        names = zip(
            of_solution["solution_id"].to_pylist(),
            some.step.tolist(),
            counts["num_right"].tolist(),
            counts["num_verdicts"].tolist(),
            np.nan_to_num(estimate["mean"], nan=-1.0).tolist(),
            np.nan_to_num(targets, nan=-9.0).tolist(),
            of_solution["verifier_digest"].to_pylist(),
            strict=True,
        )
        columns = {
            "label_id": [digest("label", *row) for row in names],
            **of_solution,
            "prefix_id": some.prefix_ids,
            "step": some.step,
            "num_steps": some.num_steps,
            **counts,
            "mc": _shares(counts),
            **{name: estimate[name] for name in ("mean", "sd", "low", "high")},
        }
        shown = {name: pa.array(c, from_pandas=True) if isinstance(c, np.ndarray) else c for name, c in columns.items()}
        # A target stays NaN, which the switches look for and no label that is kept has.
        return pa.Table.from_pydict(shown | {"label": targets, "weight": np.ones(len(targets))}, schema=LABEL)

    def _estimate(self, some: Measured) -> dict[str, Floats]:
        """mean, sd, low, high, the chance of being right (above the threshold) and the problem's own value, a step each."""
        right, total, is_final = some.counts["num_right"], some.counts["num_verdicts"], some.is_final
        verdict = _shares(some.counts)
        if self.estimator == "joint":
            counted = some.node_counts()
            found = estimation.posteriors(
                some.forest, *counted, self.kernel, beyond_NG=beyond_counts(*counted, some.texts())
            )
            nodes = np.zeros(len(right), dtype=np.int64)
            nodes[~is_final] = some.forest.path
            root = found.mean[: some.num_problems]
        else:
            found = estimation.beta_shrinkage(right, total, self.prior)
            nodes = np.arange(len(right))
            solved, judged = (np.bincount(some.problem[is_final], x[is_final], some.num_problems) for x in (right, total))
            root = np.divide(solved, judged, out=np.full(len(solved), np.nan), where=judged > 0)
        estimate: dict[str, Any] = {}
        for name in ("mean", "low", "high"):
            estimate[name] = np.where(is_final, verdict, getattr(found, name)[nodes])
        above = _chance_above(found.cells, max(self.settings.threshold, estimation.POSITIVE))[nodes]
        if self.estimator == "counts":
            estimate["mean"] = verdict
            above = np.where(verdict > self.settings.threshold, 1.0, 0.0)
        # k / n = 1 lies above every quantile of what it may stand for, and so may the mean of a very skew posterior.
        estimate["low"] = np.fmin(estimate["low"], estimate["mean"])
        estimate["high"] = np.fmax(estimate["high"], estimate["mean"])
        estimate["sd"] = np.where(is_final, 0.0, found.sd[nodes])
        estimate["right"] = np.where(is_final, verdict, above)
        estimate["root"] = root[some.problem]
        return {name: np.round(value, _PLACES) for name, value in estimate.items()}

    def _targets(self, some: Measured, estimate: Mapping[str, Floats]) -> Floats:
        """The training target of every step; NaN where there is none."""
        settings, mean = self.settings, estimate["mean"]
        if settings.formulation == "outcome":
            return np.where(some.is_final, mean, np.nan)
        is_share = settings.formulation in ("soft", "count", "advantage")
        if is_share and self.estimator == "counts" and "first_success" in some.counts["stopping_rule"]:
            what = f"label.formulation {settings.formulation!r} with counts that stopped at the first success"
            raise SettingsError("params.yaml", what, "such counts are biased: take formulation 'value' or estimator 'joint'")
        if settings.formulation in ("soft", "count"):
            return mean
        if settings.formulation == "value":
            right = estimate["right"]
            known = np.where(np.isnan(right), np.nan, (right > 0.5).astype(float))
            return _implied(known, some) if self.estimator == "counts" else known
        before = np.where(some.step == 0, estimate["root"], np.concatenate([[np.nan], mean[:-1]]))
        change = mean - before
        return np.where(np.isnan(change), np.nan, np.where(np.abs(change) <= settings.min_change, 0.0, np.sign(change)))

    def summary(self, gate: LabelsGate) -> dict[str, Any]:
        """What summary.json says."""
        return {
            "labels": gate.num_labels,
            "unlabelled": self.switches.num_unlabelled,
            "solutions": gate.num_solutions,
            "unusable_solutions": self.num_unusable,
            "mean": round(gate.mean, 6),
            "formulation": self.settings.formulation,
            "estimator": self.estimator,
            "guard": None if self.guard is None else self.guard.reason,
            "switches": self.switches.counts,
            "histogram": [[i / NUM_BINS, (i + 1) / NUM_BINS, count] for i, count in enumerate(gate.histogram)],
        }


def _shares(counts: Mapping[str, Any]) -> Floats:
    """k / n; NaN where n is 0."""
    right, total = counts["num_right"], counts["num_verdicts"]
    share: Floats = np.where(total > 0, right, np.nan) / np.maximum(total, 1)
    return share


def _implied(known: Floats, some: Measured) -> Floats:
    """Hard labels of a search that stops at the first success: what it did not sample follows from what it did.

    A success behind a longer prefix, or the solution's own, went through every shorter one: they are right. Behind
    a hopeless prefix all is wrong.
    """
    out = known.copy()
    is_searched = some.counts["stopping_rule"] == "first_success"
    ends = np.flatnonzero(some.is_final) + 1
    for end, num_steps in zip(ends.tolist(), some.num_steps[ends - 1].tolist(), strict=True):
        part = slice(end - num_steps, end)
        if not is_searched[part].any():
            continue
        successes, steps = np.flatnonzero(out[part] == 1), out[part][:-1]
        last_success = int(successes[-1]) if successes.size else -1
        steps[: max(0, last_success)] = 1
        behind = np.flatnonzero(steps[last_success + 1 :] == 0)
        if behind.size:
            steps[last_success + 1 + behind[0] :] = 0
    return out


def _chance_above(cells: Floats, threshold: float) -> Floats:
    """`[N]` P(V > threshold) under posteriors on the estimator's grid, `[N, G]`."""
    edges = estimation.EDGES
    not_above = np.clip((threshold - edges[:-1]) / np.diff(edges), 0.0, 1.0)
    chance: Floats = np.clip(1.0 - cells @ not_above, 0.0, 1.0)
    return chance
