"""How verdicts on rows become the numbers that papers print: accuracies, worst cases, states of mastery, Best-of-N.

Owns what is divided by what, as sums over units that can be resampled; does not know who gave the verdicts.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of a benchmark as sums over its units, so that intervals can be drawn over them."""

    name: str
    over: tuple[float, ...]
    """One a unit: a row, a seed question or a group."""
    under: tuple[float, ...] | None = None
    """The measure is sum(over) / sum(under); None: the mean of `over`."""
    clusters: tuple[str, ...] | None = None
    """Units of one name are drawn together; None: each alone."""

    @property
    def value(self) -> float | None:
        """The number, None where nothing counts."""
        below = float(len(self.over)) if self.under is None else sum(self.under)
        return sum(self.over) / below if below else None


Measures = Callable[[Sequence[Row], Sequence[float]], list[Measure]]
"""(rows, whether each is right as 1 or 0) -> the benchmark's numbers, the overall one first."""


def accuracy(*by: str, unit: str | None = None) -> Measures:
    """The share of right rows, over all and by the values of these fields.

    Args:
        unit: field that names what rows belong together; None: none do.
    """

    def measures(rows: Sequence[Row], right: Sequence[float]) -> list[Measure]:
        names = [str(row.get(unit, i)) for i, row in enumerate(rows)] if unit else None
        found = [Measure("accuracy", tuple(right), clusters=tuple(names) if names else None)]
        for field in by:
            of_value: dict[str, list[int]] = defaultdict(list)
            for i, row in enumerate(rows):
                value = inside(row, field)
                if not _is_missing(value):
                    of_value[str(value)].append(i)
            if len(of_value) > 1:
                for value in sorted(of_value):
                    kept = of_value[value]
                    inner = tuple(names[i] for i in kept) if names else None
                    short = field.rpartition(".")[2]
                    found.append(Measure(f"{short} {value}", tuple(right[i] for i in kept), clusters=inner))
        return found

    return measures


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def inside(row: Row, dotted: str) -> Any:
    """What a field holds, a missing one None; `a.b` is b inside a."""
    value: Any = row
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def worst_case(rows: Sequence[Row], right: Sequence[float]) -> list[Measure]:
    """DynaMath's numbers over its seed questions: all variants right, the average, and what is left of it.

    Source: DynaMath (arXiv 2411.00836): worst-case and average-case accuracy, and reasoning robustness, their ratio.
    """
    of_seed: dict[str, list[float]] = defaultdict(list)
    for i, (row, value) in enumerate(zip(rows, right, strict=True)):
        of_seed[str(row.get("id", i))].append(value)
    worst = tuple(min(values) for values in of_seed.values())
    average = tuple(sum(values) / len(values) for values in of_seed.values())
    counts = tuple(float(len(values)) for values in of_seed.values())
    sums = tuple(sum(values) for values in of_seed.values())
    found = [
        Measure("worst case", worst),
        Measure("average", sums, under=counts),
        Measure("robustness", worst, under=average),
    ]
    for variant in sorted({int(row["variant"]) for row in rows if str(row.get("variant", "")).isdigit()}):
        kept = tuple(v for row, v in zip(rows, right, strict=True) if str(row.get("variant")) == str(variant))
        found.append(Measure(f"variant {variant}", kept))
    return found


WEMATH_STATES = ("CM", "RM", "IG", "IK")


def wemath_state(parts: Sequence[bool], whole: bool, *, is_loose: bool) -> str:
    """What a group of one composed question and its one-step parts shows.

    CM complete mastery · RM rote memorisation, right without knowing the parts · IG inadequate generalisation, the parts
    alone right · IK insufficient knowledge.

    Source: We-Math (arXiv 2407.01284), evaluation/four_dimensional_metrics.py.
    """
    if not whole:
        return "IG" if all(parts) else "IK"
    return "CM" if (any(parts) if is_loose else all(parts)) else "RM"


def four_states(rows: Sequence[Row], right: Sequence[float]) -> list[Measure]:
    """We-Math's scores, strict first, over its groups: CM + IG / 2, and the share of each state; RM of what is right.

    Differs: the official denominator is always 525 and a group with a missing row counts as mastered; here a group's missing
    row is a wrong one, and the denominator is the number of groups that are there.
    """
    groups: dict[str, dict[str, bool]] = defaultdict(dict)
    for row, value in zip(rows, right, strict=True):
        groups[str(row.get("ID"))][str(row.get("key"))] = value > 0
    sizes = {name: _num_parts(name, keys) for name, keys in groups.items()}
    found = []
    for label, is_loose in (("strict", False), ("loose", True)):
        states = []
        for name, keys in groups.items():
            steps = f"{sizes[name]}steps"
            parts = [keys.get(f"{steps}_{i}", False) for i in range(1, sizes[name] + 1)]
            states.append(wemath_state(parts, keys.get(f"{steps}_multi", False), is_loose=is_loose))
        found.append(Measure(f"score {label}", tuple({"CM": 1.0, "IG": 0.5}.get(state, 0.0) for state in states)))
        found += [Measure(f"{state} {label}", tuple(float(one == state) for one in states)) for state in ("IK", "IG", "CM")]
        found.append(
            Measure(
                f"RM {label}",
                tuple(float(one == "RM") for one in states),
                under=tuple(float(one in ("RM", "CM")) for one in states),
            )
        )
    for steps in ("2steps", "3steps"):
        for kind, wanted in (("one-step", r"_\d$"), (steps.replace("steps", "-step"), "_multi$")):
            kept = [
                v for row, v in zip(rows, right, strict=True) if re.fullmatch(f"{steps}.*?{wanted}", str(row.get("key")))
            ]
            if kept:
                found.append(Measure(f"{steps} groups, {kind}", tuple(kept)))
    return found


def _num_parts(name: str, keys: Mapping[str, bool]) -> int:
    found = re.match(r"(\d)steps", next(iter(keys), "")) or re.match(r"(\d)steps", name)
    return int(found[1]) if found else 2


# --- Best-of-N files -----------------------------------------------------------------------------------------------


def first_majority(answers: Sequence[Any]) -> int:
    """The first candidate that gives the most frequent answer; of equally frequent ones the one seen first.

    Source: Qwen2.5-Math, evaluation/rm_maj_eval.py.
    """
    counts = Counter(map(str, answers))
    top = counts.most_common(1)[0][0]
    return next(i for i, answer in enumerate(answers) if str(answer) == top)


def first_best(scores: Sequence[Any]) -> int:
    """The first candidate with the highest score; a score may be a list of one."""
    flat = [float(score[0]) if isinstance(score, list | tuple) else float(score) for score in scores]
    return flat.index(max(flat))


def best_of_n_rows(rows: Sequence[Row], num: int | None = None) -> list[Measure]:
    """maj@N, rm@N, pass@N and the mean of a file with `pred`, `score` and `pred_score`, as its authors count.

    Args:
        num: N; None: the fewest candidates that a row has.
    Source: Qwen2.5-Math, evaluation/rm_maj_eval.py. `metrics.vote` and `metrics.best_of_n` share ties, this
        gives them to the first.
    """
    n = num or min(len(row["score"]) for row in rows)
    right = [[float(bool(value)) for value in row["score"][:n]] for row in rows]
    found = []
    if all(row.get("pred_score") for row in rows):
        found.append(
            Measure(f"rm@{n}", tuple(r[first_best(row["pred_score"][:n])] for row, r in zip(rows, right, strict=True)))
        )
    if all(row.get("pred") for row in rows):
        found.append(
            Measure(f"maj@{n}", tuple(r[first_majority(row["pred"][:n])] for row, r in zip(rows, right, strict=True)))
        )
    found.append(Measure(f"pass@{n}", tuple(max(values) for values in right)))
    found.append(Measure(f"mean@{n}", tuple(sum(values) / n for values in right)))
    return found
