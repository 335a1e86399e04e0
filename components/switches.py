"""Which labels are kept, and with which weights: every switch, with the number of labels before and after it.

Owns the order of the switches and what they say they kept; does not know how a label was estimated. Memory does not
grow with the number of labels, but for the names of the solutions where one is kept for what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.measured import whole_problems
from components.records import LABEL, TableWriter, iterate_table
from components.settings import Label

BIS_ALPHA = 0.05
ROWS_AT_ONCE = 1 << 17
_UNLABELLED = ("usable_solutions", "known_value", "min_verdicts", "max_sd")  # what makes a step one without a label
Kept = Callable[[pa.Table], NDArray[np.bool_]]
"""Which rows of a table of labels a switch keeps; the table has whole solutions, as far as switches before left them."""


def right_above(settings: Label) -> float:
    """A label above it counts as right: one half; with advantages, every step that does not harm."""
    return -0.5 if settings.formulation == "advantage" else 0.5


class Switches:
    """The switches of one run: each sees what the one before it leaves."""

    def __init__(self, settings: Label, second: Mapping[str, int] | None = None) -> None:
        """Take the settings, and the first errors by a second opinion if there is one."""
        self.settings, self.second = settings, second
        self.right_above = right_above(settings)
        self.counts: dict[str, dict[str, int]] = {}
        """Switch -> `before` and `after`, in labels; of those that change weights also `weighted`, how many labels'."""

    @property
    def num_unlabelled(self) -> int:
        """Steps without a label, of all solutions; not those that had one which was not kept."""
        return sum(count["before"] - count["after"] for name, count in self.counts.items() if name in _UNLABELLED)

    def note(self, name: str, before: int, after: int, **more: int) -> None:
        """Add to what a switch kept."""
        seen = self.counts.setdefault(name, {})
        for key, number in {"before": before, "after": after, **more}.items():
            seen[key] = seen.get(key, 0) + number

    def kept(self, tables: Iterable[pa.Table], *, needs_verdicts: bool, scratch: Path) -> Iterator[pa.Table]:
        """The labels that all switches keep, in their order and in whole problems.

        Args:
            tables: labels of whole problems, also steps whose label is NaN because their value is unknown.
            needs_verdicts: whether a step needs `min_verdicts`: not where the estimate learns from its neighbours.
            scratch: a file to keep labels in, if a switch has to see all of them before the first can be kept.
        """
        first = self._of_single_problems(needs_verdicts=needs_verdicts)
        tables = (self._through(first, table) for table in tables)
        settings, balance = self.settings, self.settings.balance
        if settings.best_frac is None and balance.max_positives_per_negative is None and not balance.equal_classes:
            yield from (self._weighted(table, None) for table in tables)
            return
        try:
            with TableWriter(scratch, LABEL) as writer:
                for table in tables:
                    writer.write(table)

            def read(columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
                return iterate_table(scratch, LABEL, columns, num_rows=ROWS_AT_ONCE)

            then: dict[str, Kept] = {}
            if settings.best_frac is not None:
                best = _best(read(["solution_id", "label", "mean"]), settings.best_frac, self.right_above)
                then["best_frac"] = lambda table: _is_of(table, best)
            if balance.max_positives_per_negative is not None:
                wrong, right = self._classes(read(["solution_id", "label"]), then)
                share = balance.max_positives_per_negative * wrong / max(1, right)
                then["max_positives_per_negative"] = lambda table: self._is_wrong(table) | (_draws(table) < share)
            classes = None
            if balance.equal_classes:
                classes = self._classes(read(["label_id", "solution_id", "label"]), then)
            for table in whole_problems(read()):
                yield self._weighted(self._through(then, table), classes)
        finally:
            scratch.unlink(missing_ok=True)

    def _of_single_problems(self, *, needs_verdicts: bool) -> dict[str, Kept]:
        """The switches that need to see no other problem's labels, in their order."""
        settings, second, max_sd = self.settings, self.second, self.settings.max_sd
        out: dict[str, Kept] = {"known_value": lambda table: ~np.isnan(_column(table, "label"))}
        if needs_verdicts and settings.min_verdicts:
            # A search that stops at the first success has its own measure of enough.
            out["min_verdicts"] = lambda table: (
                (_column(table, "num_verdicts") >= settings.min_verdicts) | _ended_by(table, "final", "first_success")
            )
        if max_sd is not None:
            out["max_sd"] = lambda table: (_column(table, "sd") <= max_sd) | _ended_by(table, "final")
        if settings.unique_prefixes:
            out["unique_prefixes"] = _is_first_of_its_prefix
        if second is not None:
            out["consensus"] = lambda table: _is_of(table, _agreed(table, second, self.right_above))
        return out

    def _through(self, switches: Mapping[str, Kept], table: pa.Table, *, is_noted: bool = True) -> pa.Table:
        for name, kept in switches.items():
            before = table.num_rows
            table = table.filter(pa.array(kept(table)))
            if is_noted:
                self.note(name, before, table.num_rows)
        return table

    def _classes(self, tables: Iterable[pa.Table], switches: Mapping[str, Kept]) -> tuple[int, int]:
        """Wrong and right labels that switches leave, without counting it as theirs."""
        wrong = num = 0
        for table in tables:
            is_wrong = self._is_wrong(self._through(switches, table, is_noted=False))
            wrong, num = wrong + int(is_wrong.sum()), num + len(is_wrong)
        return wrong, num - wrong

    def _weighted(self, table: pa.Table, classes: tuple[int, int] | None) -> pa.Table:
        """The table with its weights.

        Args:
            classes: how many wrong and right labels there are, if both shall weigh the same.
        """
        factor, num = self.settings.balance.negative_weight, table.num_rows
        is_wrong = self._is_wrong(table)
        weight = np.where(is_wrong, factor, 1.0)
        if factor != 1:
            self.note("negative_weight", num, num, weighted=int(is_wrong.sum()))
        if classes is not None:
            wrong, right = classes
            if wrong and right:
                weight = np.round(
                    weight * np.where(is_wrong, (wrong + right) / (2 * wrong), (wrong + right) / (2 * right)), 9
                )
            self.note("equal_classes", num, num, weighted=num if wrong and right else 0)
        return table.set_column(LABEL.get_field_index("weight"), LABEL.field("weight"), pa.array(weight))

    def _is_wrong(self, table: pa.Table) -> NDArray[np.bool_]:
        return _column(table, "label") <= self.right_above


def first_errors(tables: Iterable[pa.Table], right_above: float) -> dict[str, int]:
    """The first wrong step of every solution; -1 if there is none.

    Args:
        tables: solution_id, step and label, in the order of the steps.
    """
    first: dict[str, int] = {}
    for table in tables:
        columns = (table.column(name).to_pylist() for name in ("solution_id", "step", "label"))
        for name, step, label in zip(*columns, strict=True):
            if first.setdefault(name, -1) < 0 and label <= right_above:
                first[name] = step
    return first


def _agreed(table: pa.Table, second: Mapping[str, int], right_above: float) -> pa.Array:
    """The solutions on whose first error a second opinion agrees."""
    ours = first_errors([table], right_above)
    return pa.array([name for name, step in ours.items() if second.get(name) == step], pa.string())


def bis(labels: Sequence[float], means: Sequence[float | None], right_above: float) -> float:
    """What a solution is worth for training, in [0, 0.3]: mixed and reliable ones most.

    Args:
        means: the value of each labelled step; null where it was not measured but follows from other steps.
    Source: BIS (arXiv 2602.04145): (p (1 - p) + alpha) R, p the share of right steps, R their mean value.
    """
    right = [label if mean is None else mean for label, mean in zip(labels, means, strict=True) if label > right_above]
    p = len(right) / len(labels)
    reliability = sum(right) / len(right) if right else 0.0
    return (p * (1 - p) + BIS_ALPHA) * reliability


def _best(tables: Iterable[pa.Table], share: float, right_above: float) -> pa.Array:
    """The names of a share of the solutions, the best by `bis`; equals in the order of their names."""
    columns = ("solution_id", "label", "mean")
    rows = chain.from_iterable(zip(*(t.column(name).to_pylist() for name in columns), strict=True) for t in tables)
    scores = []
    for name, steps in groupby(rows, key=lambda row: row[0]):
        _, labels, means = zip(*steps, strict=True)
        scores.append((-bis(labels, means, right_above), name))
    return pa.array([name for _, name in sorted(scores)[: round(share * len(scores))]], pa.string())


def _draws(table: pa.Table) -> NDArray[np.float64]:
    """A number in [0, 1) for each label, from its name."""
    return np.array([int(name[:8], 16) for name in table.column("label_id").to_pylist()], dtype=np.float64) / 2.0**32


def _is_first_of_its_prefix(table: pa.Table) -> NDArray[np.bool_]:
    _, first = np.unique(np.array(table.column("prefix_id").to_pylist(), dtype=object), return_index=True)
    return np.isin(np.arange(table.num_rows), first)


def _is_of(table: pa.Table, solutions: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.is_in(table.column("solution_id"), value_set=solutions).to_numpy())


def _ended_by(table: pa.Table, *rules: str) -> NDArray[np.bool_]:
    return np.asarray(pc.is_in(table.column("stopping_rule"), value_set=pa.array(rules)).to_numpy())


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table.column(name).to_numpy())
