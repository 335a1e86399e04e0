"""Data gates at each stage boundary: what must hold of seeds, rollouts, labels and candidate pools.

A critical failure stops the stage and names the first offender; a warning is shown and recorded. Owns the suites;
knows nothing of how the rows were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.expectations import Expect, Result, Suites, among, filled, greater, true, unique, within
from components.grading import KINDS
from components.problems import REASONS
from components.progress import say
from components.records import STOPPING_RULES, bytes_digest, write_json

VERDICTS = ("right", "wrong", "unknown")
MAX_UNKNOWN_FRAC = 0.05  # with more, k/n is about what the verifier can read
MAX_QUARANTINED_FRAC = 0.3
MAX_TOP_BIN_FRAC = 0.99
MAX_UNLABELLED_FRAC = 0.2
_NUM_BINS = 10
_EXACT = 1e-9


@dataclass(frozen=True)
class Gate:
    """All that was checked at one stage boundary."""

    name: str
    results: tuple[Result, ...]

    def failures(self, severity: str) -> list[Result]:
        """The failed checks of one severity, in the order of the suites."""
        return [result for result in self.results if not result.passed and result.severity == severity]


def enforce(gate: Gate, out: Path) -> None:
    """Write gate.json into the folder `out`, print the warnings, and stop at a critical failure.

    Raises:
        DataError: a critical check failed; says how many rows and names the first.
    """
    critical = gate.failures("critical")
    content = {"gate": gate.name, "passed": not critical, "checks": [asdict(result) for result in gate.results]}
    write_json(out / "gate.json", content)
    for result in gate.failures("warning"):
        say("gate", f"{result.check}: {result.line()}")
    if critical:
        others = ", ".join(result.check for result in critical[1:4])
        hint = f"{len(critical)} of {len(gate.results)} checks failed" + (f", also {others}" if others else "")
        raise DataError(critical[0].check, critical[0].line(), f"{hint}; correct what feeds this stage, then run it again")


def check_seeds(seeds: Any, quarantine: Any, rows_in: int, holdouts: Any) -> Gate:
    """Seeds are whole, unique and checkable, share no problem and no picture with a held-out file; every row has a fate.

    Args:
        seeds, holdouts: Arrow tables in the layout of records.PROBLEM.
        quarantine: Arrow table in the layout of records.QUARANTINE.
        rows_in: rows of all input files.
    Raises:
        DataError: a check cannot run.
    """
    suites = Suites("seeds")
    frame = _frame(seeds, ["problem_id", "source_id", "question", "answer", "answer_type"])
    held_pictures = {picture for pictures in _picture_digests(holdouts) for picture in pictures}
    frame["is_new_problem"] = ~frame["problem_id"].isin(set(holdouts.column("problem_id").to_pylist()))
    frame["is_new_picture"] = [held_pictures.isdisjoint(pictures) for pictures in _picture_digests(seeds)]
    frame["num_chars"] = frame["question"].str.len()
    suites.run(
        "seeds",
        frame,
        ("problem_id", "source_id"),
        [
            unique("problem_id", says="are one problem twice"),
            filled("question", says="have no question"),
            within("num_chars", 1, None, of="question", says="have an empty question"),
            filled("answer", says="have no answer"),
            filled("answer_type", says="have an answer that no rule checks"),
            among("answer_type", KINDS, says="have an unknown answer type"),
            true("is_new_problem", of="problem_id", says="are test problems"),
            true("is_new_picture", of="images", says="show the picture of a test problem"),
        ],
    )
    reasons = among("reason", REASONS, says="have an unknown reason")
    suites.run("quarantine", _frame(quarantine, ["source_id", "file", "row", "reason"]), ("file", "row"), [reasons])
    whole = {
        "num_unaccounted": rows_in - seeds.num_rows - quarantine.num_rows,
        "quarantined_frac": quarantine.num_rows / max(1, rows_in),
    }
    suites.run(
        "curate",
        _one_row(whole),
        (),
        [
            within("num_unaccounted", 0, 0, says="rows are neither seed nor quarantined"),
            _at_most("quarantined_frac", MAX_QUARANTINED_FRAC),
        ],
    )
    return Gate("seeds", tuple(suites.results))


class RolloutsGate:
    """Nothing cut off is judged, names are unique, every continuation continues a known prefix.

    Takes the rows in pieces of whole problems, so that memory does not grow with their number.
    """

    def __init__(self) -> None:
        self._merged = _Merged()
        self._digests: dict[str, set[str]] = {}
        self._rows = {"solutions": 0, "continuations": 0}
        self._unknown = {"solutions": 0, "continuations": 0}

    def add(self, solutions: Any, continuations: Any, prefixes: Any) -> None:
        """Check some rows.

        Args:
            solutions, continuations, prefixes: Arrow tables in the layouts of records.SOLUTION, CONTINUATION and PREFIX.
        Raises:
            DataError: a check cannot run.
        """
        suites = Suites("rollouts")
        columns = ["problem_id", "index", "verdict", "finish_reason", "num_tokens"]
        frame = _frame(solutions, ["solution_id", "answer", *columns])
        frame["is_read"] = frame["answer"].notna() | (frame["verdict"] == "unknown")
        frame["is_measured"] = frame["problem_id"].isin(set(prefixes.column("problem_id").to_pylist()))
        suites.run(
            "solutions",
            frame,
            ("problem_id", "index"),
            [
                *_sampled(frame, "solution_id"),
                unique("problem_id", "index", says="share their problem's index"),
                true("is_read", of="answer", says="are judged without an answer"),
                true("is_measured", of="problem_id", says="are of a problem without prefixes"),
            ],
        )
        tails = _frame(continuations, ["continuation_id", "prefix_id", "num_prefix_units", *columns])
        tails["is_known"] = tails["prefix_id"].isin(set(prefixes.column("prefix_id").to_pylist()))
        counts = _frame(prefixes, ["problem_id", "prefix_id", "num_right", "num_verdicts", "num_reused", "stopping_rule"])
        suites.run(
            "continuations",
            tails,
            ("problem_id", "prefix_id", "index"),
            [
                *_sampled(tails, "continuation_id"),
                unique("prefix_id", "index", says="share their prefix's index"),
                within("num_prefix_units", 0, None, says="below 0"),
                true("is_known", of="prefix_id", says="continue no known prefix"),
            ],
        )
        suites.run(
            "prefixes",
            counts,
            ("problem_id", "prefix_id"),
            [
                unique("prefix_id", says="come twice"),
                within("num_right", 0, None, says="below 0"),
                greater("num_verdicts", "num_right", or_equal=True, says="above num_verdicts"),
                greater("num_verdicts", "num_reused", or_equal=True, says="above num_verdicts"),
                among("stopping_rule", STOPPING_RULES, says="unknown"),
            ],
        )
        self._merged.add(suites.results)
        _collect(self._digests, solutions, continuations, prefixes)
        for name, rows in (("solutions", frame), ("continuations", tails)):
            self._rows[name] += len(rows)
            self._unknown[name] += int((rows["verdict"] == "unknown").sum())

    def gate(self) -> Gate:
        """What all checks found."""
        suites = Suites("rollouts")
        fracs = {
            f"unknown_{name.removesuffix('s')}_frac": self._unknown[name] / max(1, self._rows[name]) for name in self._rows
        }
        digests = {name: len(values) for name, values in self._digests.items()}
        expectations = [*(_at_most(name, MAX_UNKNOWN_FRAC) for name in fracs), *map(_single, digests)]
        suites.run("rollouts", _one_row(fracs | digests), (), expectations)
        return Gate("rollouts", (*self._merged.results(), *suites.results))


def check_rollouts(solutions: Any, continuations: Any, prefixes: Any) -> Gate:
    """What `RolloutsGate` finds in tables that fit into memory."""
    gate = RolloutsGate()
    gate.add(solutions, continuations, prefixes)
    return gate.gate()


class LabelsGate:
    """Every label is what its estimate says, no step has two, no step lies outside its solution, not all are alike.

    Takes the labels in pieces of whole solutions. Steps without a label are allowed, and shown as a warning.
    """

    def __init__(self, formulation: str) -> None:
        self._formulation = formulation
        self._merged = _Merged()
        self._digests: dict[str, set[str]] = {}
        self._values: set[float] = set()
        self._names: set[int] = set()
        self._num_repeated = self._num_unlabelled = self._num_steps = 0
        self._sum = 0.0
        self.num_labels = self.num_solutions = 0
        self.histogram = [0] * _NUM_BINS

    @property
    def mean(self) -> float:
        """The mean estimate of all labels."""
        return self._sum / max(1, self.num_labels)

    def add(self, labels: Any) -> None:
        """Check some labels.

        Args:
            labels: Arrow table in the layout of records.LABEL.
        Raises:
            DataError: a check cannot run.
        """
        if not labels.num_rows:
            return
        suites = Suites("labels")
        frame = _frame(labels, [name for name in labels.column_names if name != "prefix_id"])
        num_verdicts = frame["num_verdicts"].where(frame["num_verdicts"] > 0)
        frame["is_share"] = ((frame["mc"] - frame["num_right"] / num_verdicts).abs() <= _EXACT) | (
            frame["mc"].isna() & num_verdicts.isna()
        )
        if self._formulation in ("soft", "count"):
            frame["is_target"] = (frame["label"] - frame["mean"]).abs() <= _EXACT
        else:
            frame["is_target"] = frame["label"].isin(
                [0.0, 1.0] if self._formulation in ("value", "outcome") else [-1.0, 0.0, 1.0]
            )
        lowest = -1 if self._formulation == "advantage" else 0
        suites.run(
            "labels",
            frame,
            ("problem_id", "solution_id", "step"),
            [
                unique("label_id", says="share their name"),
                unique("problem_id", "solution_id", "step", says="label one step twice"),
                within("step", 0, None, says="below 0"),
                greater("num_steps", "step", says="behind the last step of the solution"),
                filled("label", says="missing"),
                within("label", lowest, 1, says=f"outside [{lowest}, 1]"),
                true("is_target", of="label", says=f"no target of the formulation {self._formulation}"),
                within("mean", 0, 1, says="outside [0, 1]"),
                within("low", 0, 1, says="outside [0, 1]"),
                greater("high", "low", or_equal=True, says="above high"),
                within("sd", 0, 1, says="outside [0, 1]"),
                within("weight", 0, None, says="below 0"),
                within("num_verdicts", 0, None, says="below 0"),
                within("num_right", 0, None, says="below 0"),
                greater("num_verdicts", "num_right", or_equal=True, says="above num_verdicts"),
                greater("num_verdicts", "num_reused", or_equal=True, says="above num_verdicts"),
                within("num_unknown", 0, None, says="below 0"),
                true("is_share", of="mc", says="not num_right / num_verdicts"),
                among("stopping_rule", STOPPING_RULES, says="unknown"),
            ],
        )
        solutions = frame.groupby("solution_id", sort=False).agg(
            problem_id=("problem_id", "first"),
            num_labelled=("step", "nunique"),
            num_steps=("num_steps", "max"),
            num_lengths=("num_steps", "nunique"),
        )
        solutions["num_unlabelled"] = solutions["num_steps"] - solutions["num_labelled"]
        suites.run(
            "labelled solutions",
            solutions.reset_index(),
            ("problem_id", "solution_id"),
            [
                within("num_lengths", None, 1, of="num_steps", says="have two lengths"),
                within("num_unlabelled", None, 0, severity="warning", says="have steps without a label"),
            ],
        )
        self._merged.add(suites.results)
        self._total(frame, solutions)
        _collect(self._digests, labels)

    def _total(self, frame: Any, solutions: Any) -> None:
        names = {int(name[:16], 16) for name in solutions.index if _is_hex(name)}
        self._num_repeated += len(names & self._names)
        self._names |= names
        values = frame["label"].dropna().clip(0, 1)
        if len(self._values) < 2:
            self._values |= set(frame["label"].dropna().unique()[:2])
        bins = (values * _NUM_BINS).astype(int).clip(upper=_NUM_BINS - 1).value_counts()
        for number, count in bins.items():
            self.histogram[int(number)] += int(count)
        self._sum += float(frame["mean"].sum())
        self.num_labels += len(frame)
        self.num_solutions += len(solutions)
        self._num_unlabelled += int(solutions["num_unlabelled"].sum())
        self._num_steps += int(solutions["num_steps"].sum())

    def gate(self) -> Gate:
        """What all checks found."""
        suites = Suites("labels")
        digests = {name: len(values) for name, values in self._digests.items()}
        whole = {
            "num_labels": self.num_labels,
            "num_label_values": len(self._values),
            "num_repeated": self._num_repeated,
            "top_bin_frac": max(self.histogram) / max(1, sum(self.histogram)),
            "unlabelled_frac": self._num_unlabelled / max(1, self._num_steps),
            **digests,
        }
        suites.run(
            "labels",
            _one_row(whole),
            (),
            [
                within("num_labels", 1, None, says="there are too few labels"),
                within("num_label_values", 2, None, of="histogram", says="all labels are equal, distinct values"),
                within("num_repeated", None, 0, of="solution_id", says="solutions that come twice"),
                _at_most("top_bin_frac", MAX_TOP_BIN_FRAC),
                _at_most("unlabelled_frac", MAX_UNLABELLED_FRAC),
                *map(_single, digests),
            ],
        )
        return Gate("labels", (*self._merged.results(), *suites.results))


def check_labels(labels: Any, formulation: str = "soft") -> Gate:
    """What `LabelsGate` finds in a table that fits into memory."""
    gate = LabelsGate(formulation)
    gate.add(labels)
    return gate.gate()


class _Merged:
    """The results of the same checks on several pieces of a table, as one."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, str, str, int], Result] = {}

    def add(self, results: Sequence[Result]) -> None:
        for number, result in enumerate(results):
            key = (result.check, result.expectation, result.says, number)
            old = self._results.get(key)
            self._results[key] = (
                result
                if old is None
                else replace(
                    old,
                    passed=old.passed and result.passed,
                    num_rows=old.num_rows + result.num_rows,
                    num_failed=old.num_failed + result.num_failed,
                    first=old.first or result.first,
                )
            )

    def results(self) -> tuple[Result, ...]:
        return tuple(self._results.values())


def _is_hex(name: str) -> bool:
    return len(name) >= 16 and all(c in "0123456789abcdef" for c in name[:16])


def check_candidates(candidates: Any, num_candidates: int) -> Gate:
    """Every problem has exactly N sampled candidates and a greedy one, and belongs to one split.

    Args:
        candidates: Arrow table in the layout of records.CANDIDATE.
        num_candidates: N.
    Raises:
        DataError: a check cannot run.
    """
    suites = Suites("candidates")
    place = ("split", "problem_id", "decoding", "index")
    frame = _frame(candidates, ["candidate_id", *place, "verdict", "finish_reason", "num_tokens"])
    last = num_candidates - 1
    suites.run(
        "candidates",
        frame,
        place,
        [
            *_sampled(frame, "candidate_id"),
            unique(*place, says="share a place in their pool"),
            within("index", 0, last, says=f"outside 0..{last}"),
            among("decoding", ("sample", "greedy"), says="unknown"),
        ],
    )
    counted = frame.assign(num_sample=frame["decoding"] == "sample", num_greedy=frame["decoding"] == "greedy")
    pools = counted.groupby(["split", "problem_id"], sort=False)[["num_sample", "num_greedy"]].sum().reset_index()
    pools["num_splits"] = pools.groupby("problem_id")["split"].transform("nunique")
    suites.run(
        "pools",
        pools,
        ("split", "problem_id"),
        [
            within("num_sample", num_candidates, num_candidates, says=f"have not {num_candidates} sampled candidates"),
            within("num_greedy", 1, 1, says="have not one greedy candidate"),
            within("num_splits", None, 1, of="split", says="are in two splits"),
        ],
    )
    whole = {"num_candidates": len(frame), "unknown_frac": _unknown_frac(frame), **(digests := _num_digests(candidates))}
    some = within("num_candidates", 1, None, says="there are too few candidates")
    suites.run("candidates", _one_row(whole), (), [some, _at_most("unknown_frac", MAX_UNKNOWN_FRAC), *map(_single, digests)])
    return Gate("candidates", tuple(suites.results))


def _sampled(frame: Any, name: str) -> list[Expect]:
    """What holds of every text that an engine wrote and the verifier judged."""
    frame["is_whole"] = (frame["finish_reason"] == "stop") | (frame["verdict"] == "unknown")
    return [
        unique(name, says="share their name"),
        filled("verdict", says="have no verdict"),
        among("verdict", VERDICTS, says=f"are none of {', '.join(VERDICTS)}"),
        among("finish_reason", ("stop", "length"), says="are neither stop nor length"),
        true("is_whole", of="verdict", says="were cut off and judged all the same"),
        within("num_tokens", 0, None, says="below 0"),
    ]


def _at_most(name: str, limit: float) -> Expect:
    return within(name, None, limit, severity="warning", says=f"more than {limit}")


def _single(name: str) -> Expect:
    return within(name, None, 1, says="several in one file")


def _collect(digests: dict[str, set[str]], *tables: Any) -> None:
    """Note which policies and verifiers took part."""
    for name in ("policy_digest", "verifier_digest"):
        for table in tables:
            digests.setdefault(name, set()).update(table.column(name).unique().to_pylist())


def _num_digests(*tables: Any) -> dict[str, int]:
    found: dict[str, set[str]] = {}
    _collect(found, *tables)
    return {name: len(values) for name, values in found.items()}


def _unknown_frac(frame: Any) -> float:
    return float((frame["verdict"] == "unknown").mean()) if len(frame) else 0.0


def _picture_digests(problems: Any) -> list[list[str]]:
    return [[bytes_digest(image["bytes"]) for image in images or ()] for images in problems.column("images").to_pylist()]


def _frame(table: Any, columns: Sequence[str]) -> Any:
    return table.select(list(columns)).to_pandas()


def _one_row(values: Mapping[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame([dict(values)])
