"""The problems of the gallery: what was answered, what the PRM chose, and which problems to show.

Owns the choice of what is shown and its order; verdicts and selections are those of the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.metrics import AGGREGATIONS
from components.records import CANDIDATE, SCORE, SELECTION, read_arrow
from components.report.comparison import SHOWN_SPLITS

KINDS = {"miss": "misses", "rescue": "rescues", "other": "others"}
MAX_OF_KIND = {"miss": 24, "rescue": 18, "other": 18}  # cards with every candidate; the others are brief
FAULTS = {  # how a miss came about; more than one may hold
    "tied": "right and wrong tied at the top",
    "believed": "it saw no fault in either",
    "doubted": "it doubted the right one",
    "both": "it doubted both",
    "against": "it chose what it doubted",
    "overlooked": "it believed the first wrong step",
    "lucky": "the right answer has a wrong step",
    "outvoted": "the majority had it right",
}
FILES = ("candidates/candidates.parquet", "evaluation/scores.parquet", "evaluation/selections.parquet")


_ENDINGS = (".parquet", ".jsonl", ".json", ".arrow")
_MAX_PIXELS = 100_000_000  # the stages had their own limit: what they used is shown
_SCORERS = ("prm", "blind", "truth")


@dataclass(frozen=True)
class Case:
    """One problem as the selectors saw it."""

    kind: str  # miss | rescue | other
    split: str
    problem_id: str
    sampled: list[dict[str, Any]]  # candidates the PRM chose from, best score first, equal ones once with their `copies`
    greedy: list[dict[str, Any]]  # candidates outside the choice
    chosen: frozenset[str]  # candidate ids in `sampled` that share the best score
    surety: float  # how far the choice was ahead of the best candidate of the other verdict
    prm: float | None  # the chance in [0, 1] that the PRM's pick is right, ties shared
    faults: tuple[str, ...] = ()  # of a miss: keys of FAULTS

    @property
    def is_solvable(self) -> bool:
        """There was a right candidate to choose."""
        return any(row["verdict"] == "right" for row in self.sampled)


def read_cases(
    artifacts: Path, aggregation: str, *, splits: Sequence[str] = SHOWN_SPLITS, threshold: float | None = None
) -> list[Case]:
    """Every problem of `splits` that has candidates, in no telling order.

    Args:
        aggregation: a key of AGGREGATIONS.
        threshold: at or below it a step counts as doubted; None: no miss is told from another by it.
    Raises:
        DataError: one of FILES is missing or cannot be read.
    """
    candidates, scores, selections = (artifacts / name for name in FILES)
    pools: dict[tuple[str, str], list[dict[str, Any]]] = {}
    table = read_arrow(candidates, CANDIDATE)
    for row in table.filter(pc.field("split").isin(pa.array(splits, pa.string()))).to_pylist():
        pools.setdefault((row["split"], row["problem_id"]), []).append(row)
    step_scores: dict[str, dict[str, list[float]]] = {name: {} for name in _SCORERS}
    table = read_arrow(scores, SCORE)
    for row in table.filter(pc.field("scorer").isin(_SCORERS)).to_pylist():
        step_scores[row["scorer"]][row["candidate_id"]] = row["step_scores"] or []
    selected: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_arrow(selections, SELECTION).to_pylist():
        selected.setdefault((row["split"], row["problem_id"]), {})[row["selector"]] = row["value"]
    aggregate = AGGREGATIONS[aggregation]
    return [
        _case(key, pool, step_scores, selected.get(key, {}), aggregate, threshold) for key, pool in sorted(pools.items())
    ]


def _case(
    key: tuple[str, str],
    pool: list[dict[str, Any]],
    step_scores: Mapping[str, Mapping[str, list[float]]],
    selected: Mapping[str, float],
    aggregate: Callable[[Sequence[float]], float],
    threshold: float | None,
) -> Case:
    for row in pool:
        row["scores"], row["blind"], row["truth"] = (step_scores[name].get(row["candidate_id"], []) for name in _SCORERS)
        row["score"] = aggregate(row["scores"]) if row["scores"] else None
    pool.sort(key=lambda row: (-math.inf if row["score"] is None else row["score"], -row["index"]), reverse=True)
    sampled = _once([row for row in pool if row["decoding"] == "sample"])
    known = [row for row in sampled if row["score"] is not None]
    chosen = [row for row in known if row["score"] == known[0]["score"]]
    prm, majority = selected.get("prm"), selected.get("majority")
    kind = "other"
    if prm is not None and prm < 0.5 and any(row["verdict"] == "right" for row in sampled):
        kind = "miss"
    elif prm is not None and majority is not None and prm >= 0.5 > majority:
        kind = "rescue"
    against = [row["score"] for row in known if (row["verdict"] == "right") == (kind == "miss")]
    surety = known[0]["score"] - against[0] if against else 0.0
    greedy = _once([row for row in pool if row["decoding"] != "sample"])
    faults = _faults(known, chosen, majority, threshold) if kind == "miss" else ()
    return Case(kind, *key, sampled, greedy, frozenset(row["candidate_id"] for row in chosen), surety, prm, faults)


def _faults(
    known: Sequence[dict[str, Any]], chosen: Sequence[dict[str, Any]], majority: float | None, threshold: float | None
) -> tuple[str, ...]:
    """How a miss came about, as keys of FAULTS."""
    found = []
    wrong = next((row for row in chosen if row["verdict"] != "right"), None)
    right = next((row for row in known if row["verdict"] == "right"), None)
    if any(row["verdict"] == "right" for row in chosen):
        found.append("tied")
    if threshold is not None and wrong is not None and right is not None:
        doubts = tuple(min(row["scores"]) <= threshold for row in (wrong, right))
        found.append({(False, False): "believed", (False, True): "doubted", (True, True): "both"}.get(doubts, "against"))
        first = next((i for i, truth in enumerate(wrong["truth"]) if truth < 0.5), None)
        if first is not None and first < len(wrong["scores"]) and wrong["scores"][first] > threshold:
            found.append("overlooked")
    if right is not None and any(truth < 0.5 for truth in right["truth"]):
        found.append("lucky")
    if majority is not None and majority >= 0.5:
        found.append("outvoted")
    return tuple(found)


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of every set of rows with the same steps, with the number of them as `copies`."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        first = found.setdefault(tuple(row["steps"] or ()), row)
        first["copies"] = first.get("copies", 0) + 1
    return list(found.values())


def shortlist(cases: Sequence[Case], splits: Sequence[str] = SHOWN_SPLITS) -> list[Case]:
    """The cases to show with every candidate: misses, then rescues, then others.

    Places that a kind leaves free go to the next; splits alternate; misses and rescues begin with the surest.
    """
    chosen: list[Case] = []
    places = 0
    for kind in KINDS:
        places += MAX_OF_KIND[kind]
        taken = _ranked(cases, kind, splits)[:places]
        places -= len(taken)
        chosen += taken
    return chosen


def ranked(cases: Sequence[Case], splits: Sequence[str] = SHOWN_SPLITS) -> list[Case]:
    """All cases: misses, then rescues, then others; misses and rescues begin with the surest, splits alternate."""
    return [case for kind in KINDS for case in _ranked(cases, kind, splits)]


def _ranked(cases: Sequence[Case], kind: str, splits: Sequence[str]) -> list[Case]:
    entries: list[tuple[int, int, Case]] = []
    for turn, split in enumerate(splits):
        of_split = [case for case in cases if case.kind == kind and case.split == split]
        # problem ids are digests: their order is as good as chance
        of_split.sort(key=lambda case: (0.0 if kind == "other" else -case.surety, case.problem_id))
        entries += [(rank, turn, case) for rank, case in enumerate(of_split)]
    return [case for _, _, case in sorted(entries, key=lambda entry: entry[:2])]


def read_problems(data: Path, cases: Sequence[Case]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """((split, problem id), the problem in the layout of records.PROBLEM) of those wanted that data/ holds, once each.

    Raises:
        DataError: a file of data/ cannot be read.
    """
    from components.problems import Quarantined, load_problems

    for split in dict.fromkeys(case.split for case in cases):
        wanted = {case.problem_id for case in cases if case.split == split}
        path = next((path for ending in _ENDINGS if (path := data / f"{split}{ending}").exists()), None)
        for _, row in load_problems(path, max_image_pixels=_MAX_PIXELS) if path and wanted else ():
            problem = row.problem if isinstance(row, Quarantined) else row
            if problem and problem["problem_id"] in wanted:
                wanted.remove(problem["problem_id"])
                yield (split, problem["problem_id"]), problem
                if not wanted:
                    break
