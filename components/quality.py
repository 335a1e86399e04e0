"""Data gates at each stage boundary: what must hold of seeds, rollouts, labels and candidate pools.

A critical failure stops the stage and names the first offender; a warning is shown and recorded. Owns the suites;
knows nothing of how the rows were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.expectations import Expect, Result, Suites, among, filled, greater, true, unique, within
from components.grading import KINDS
from components.problems import REASONS
from components.progress import say
from components.records import bytes_digest, prefix_id, write_json

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


def check_rollouts(solutions: Any, continuations: Any) -> Gate:
    """Nothing cut off is judged, names are unique, every continuation continues an unfinished prefix of a solution.

    Args:
        solutions, continuations: Arrow tables in the layouts of records.SOLUTION and records.CONTINUATION.
    Raises:
        DataError: a check cannot run.
    """
    suites = Suites("rollouts")
    columns = ["problem_id", "index", "verdict", "finish_reason", "num_tokens"]
    frame = _frame(solutions, ["solution_id", "answer", *columns])
    frame["is_read"] = frame["answer"].notna() | (frame["verdict"] == "unknown")
    suites.run(
        "solutions",
        frame,
        ("problem_id", "index"),
        [
            *_sampled(frame, "solution_id"),
            unique("problem_id", "index", says="share their problem's index"),
            true("is_read", of="answer", says="are judged without an answer"),
        ],
    )
    unfinished = {
        prefix_id(problem, steps[:cut])
        for problem, steps in zip(
            solutions.column("problem_id").to_pylist(), solutions.column("steps").to_pylist(), strict=True
        )
        for cut in range(max(1, len(steps)))
    }
    tails = _frame(continuations, ["continuation_id", "prefix_id", *columns])
    tails["is_unfinished"] = tails["prefix_id"].isin(unfinished)
    suites.run(
        "continuations",
        tails,
        ("problem_id", "prefix_id", "index"),
        [
            *_sampled(tails, "continuation_id"),
            unique("prefix_id", "index", says="share their prefix's index"),
            true("is_unfinished", of="prefix_id", says="continue no unfinished prefix of a solution"),
        ],
    )
    fracs = {"unknown_solution_frac": _unknown_frac(frame), "unknown_continuation_frac": _unknown_frac(tails)}
    digests = _num_digests(solutions, continuations)
    expectations = [*(_at_most(name, MAX_UNKNOWN_FRAC) for name in fracs), *map(_single, digests)]
    suites.run("rollouts", _one_row(fracs | digests), (), expectations)
    return Gate("rollouts", tuple(suites.results))


def check_labels(labels: Any) -> Gate:
    """Every label is what its counts say, no step has two, no step lies outside its solution, not all are alike.

    Steps without a label are allowed (too few verdicts), and shown as a warning.

    Args:
        labels: Arrow table in the layout of records.LABEL.
    Raises:
        DataError: a check cannot run.
    """
    suites = Suites("labels")
    frame = _frame(labels, [name for name in labels.column_names if name != "prefix_id"])
    num_verdicts = frame["num_verdicts"].where(frame["num_verdicts"] > 0)
    frame["is_share"] = (frame["mc"] - frame["num_right"] / num_verdicts).abs() <= _EXACT
    frame["is_made_from_mc"] = ((frame["label"] - frame["mc"]).abs() <= _EXACT) | frame["label"].isin([0.0, 1.0])
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
            within("label", 0, 1, says="outside [0, 1]"),
            true("is_made_from_mc", of="label", says="neither mc nor 0 or 1"),
            within("num_verdicts", 1, None, says="below 1"),
            within("num_right", 0, None, says="below 0"),
            greater("num_verdicts", "num_right", or_equal=True, says="above num_verdicts"),
            within("num_unknown", 0, None, says="below 0"),
            true("is_share", of="mc", says="not num_right / num_verdicts"),
            among("stopping_rule", ("fixed", "final"), says="unknown"),
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
    values = frame["label"].dropna().clip(0, 1)
    bins = (values * _NUM_BINS).astype(int).clip(upper=_NUM_BINS - 1).value_counts()
    whole = {
        "num_labels": len(frame),
        "num_label_values": values.nunique(),
        "top_bin_frac": int(bins.max()) / len(values) if len(values) else 0.0,
        "unlabelled_frac": float(solutions["num_unlabelled"].sum()) / max(1.0, float(solutions["num_steps"].sum())),
        **(digests := _num_digests(labels)),
    }
    suites.run(
        "labels",
        _one_row(whole),
        (),
        [
            within("num_labels", 1, None, says="there are too few labels"),
            within("num_label_values", 2, None, of="histogram", says="all labels are equal, distinct values"),
            _at_most("top_bin_frac", MAX_TOP_BIN_FRAC),
            _at_most("unlabelled_frac", MAX_UNLABELLED_FRAC),
            *map(_single, digests),
        ],
    )
    return Gate("labels", tuple(suites.results))


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


def _num_digests(*tables: Any) -> dict[str, int]:
    """How many policies and verifiers took part."""
    names = ("policy_digest", "verifier_digest")
    return {name: len({value for table in tables for value in table.column(name).unique().to_pylist()}) for name in names}


def _unknown_frac(frame: Any) -> float:
    return float((frame["verdict"] == "unknown").mean()) if len(frame) else 0.0


def _picture_digests(problems: Any) -> list[list[str]]:
    return [[bytes_digest(image["bytes"]) for image in images or ()] for images in problems.column("images").to_pylist()]


def _frame(table: Any, columns: Sequence[str]) -> Any:
    return table.select(list(columns)).to_pandas()


def _one_row(values: Mapping[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame([dict(values)])
