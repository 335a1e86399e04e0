"""Steps against what is known of them: exact checkers, step-error sets, and a solution's verdict.

Owns which steps count where; knows no model. What the numbers are is `metrics`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from components import metrics
from components.progress import say
from components.records import read_rows, read_table
from components.selection import Pool, Row, Scores


def step_errors(path: Path | None) -> list[Row]:
    """The solutions whose steps are known to be right or wrong; none without a file."""
    if path is None:
        return []
    return read_rows(path, ["id", "question", "steps", "right_so_far", "step_kinds"])


def num_unread(pools: Mapping[str, Pool], errors: Sequence[Row], scores: Scores) -> int:
    """How many solutions have steps and got no score: with their prompts they are longer than the model reads."""
    kinds = [kinds for pool in pools.values() for kinds in pool.values()]
    rows = [(row["candidate_id"], row) for known in kinds for row in (*known["sample"], *known["greedy"])]
    rows += [(row["id"], row) for row in errors]
    return sum(1 for key, row in rows if key in scores and row["steps"] and not scores[key])


Truths = dict[str, dict[str, Callable[[Sequence[str]], Any]]]
"""split -> problem id -> steps -> the exact truth about each"""


def checkers(path: Path | None, problems: Mapping[str, Mapping[str, Row]]) -> Truths:
    """The checkers of the problems whose derivations are known; of a kind that no world has, nothing is measured."""
    if path is None:
        return {}
    from components import scenes, world

    worlds: dict[str, Any] = dict.fromkeys((*world.KINDS, world.LONG_KIND), world)
    worlds |= dict.fromkeys((f"scene/{kind}" for kind in (*scenes.COUNTING, *scenes.SPATIAL, scenes.LONG_KIND)), scenes)
    rows = read_table(path, world.TRUTH)
    by_source_id = {
        row["id"]: _remembered(partial(worlds[row["kind"]].check, worlds[row["kind"]].truth_from_row(row)))
        for row in rows
        if row["kind"] in worlds
    }
    if len(by_source_id) < len(rows):
        say("evaluate", f"{path}: {len(rows) - len(by_source_id):,} rows of kinds without a checker are not measured")
    return {
        name: {key: by_source_id[row["source_id"]] for key, row in known.items() if row["source_id"] in by_source_id}
        for name, known in problems.items()
    }


def _remembered(check: Callable[[Sequence[str]], Any]) -> Callable[[Sequence[str]], Any]:
    """The same checker, which asks once about equal steps: every scorer's metrics need the answer."""
    known: dict[tuple[str, ...], Any] = {}

    def checked_once(steps: Sequence[str]) -> Any:
        key = tuple(steps)
        if key not in known:
            known[key] = check(steps)
        return known[key]

    return checked_once


def exact_scores(pools: Mapping[str, Pool], truths: Truths) -> dict[str, list[float]]:
    """Exact truth as step scores, 1 as long as all is right, for the page and whoever audits the scores."""
    known = {key: check for of_split in truths.values() for key, check in of_split.items()}
    return {
        row["candidate_id"]: [float(t.is_right_so_far) for t in known[key](row["steps"])]
        for pool in pools.values()
        for key, kinds in pool.items()
        if key in known
        for row in (*kinds["sample"], *kinds["greedy"])
    }


def checked(pool: Pool, scores: Scores, truths: Truths) -> tuple[list[list[float]], list[list[bool]], list[list[str]]]:
    """Scores, exact truth and kinds of the steps of every sampled solution that was read: a list a solution each."""
    out: tuple[list[list[float]], list[list[bool]], list[list[str]]] = ([], [], [])
    known = {key: check for of_split in truths.values() for key, check in of_split.items()}
    for key, kinds in pool.items():
        if key not in known:
            continue
        for row in kinds["sample"]:
            if scores.get(row["candidate_id"]) and row["steps"]:
                truth = known[key](row["steps"])
                out[0].append(scores[row["candidate_id"]])
                out[1].append([t.is_right_so_far for t in truth])
                out[2].append([t.kind for t in truth])
    return out


def with_truth(pool: Pool, scores: Scores, truths: Truths) -> tuple[list[float], list[bool]]:
    """Every step's score beside its exact truth."""
    rows, right, _ = checked(pool, scores, truths)
    return [s for row in rows for s in row], [t for row in right for t in row]


def with_outcome(pool: Pool, scores: Scores) -> tuple[list[float], list[bool]]:
    """Every step's score beside its solution's verdict: given its prefix, that is what a calibrated score foretells."""
    out: tuple[list[float], list[bool]] = ([], [])
    for kinds in pool.values():
        for row in kinds["sample"]:
            if row["verdict"] != "unknown":
                out[0].extend(scores[row["candidate_id"]])
                out[1].extend([row["verdict"] == "right"] * len(scores[row["candidate_id"]]))
    return out


def candidate_steps(
    pool: Mapping[str, Pool],
    names: Sequence[str],
    scores: Mapping[str, Scores],
    truths: Truths,
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """Step metrics of every scorer over the sampled candidates of these splits; empty where no truth is known."""
    if not truths:
        return {}
    merged: Pool = {key: kinds for name in names for key, kinds in pool[name].items()}
    return {
        scorer: metrics.step_metrics(*checked(merged, known, truths), thresholds[scorer]) for scorer, known in scores.items()
    }


def error_steps(errors: Sequence[Row], scores: Mapping[str, Scores], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Step metrics of every scorer over the step-error set."""
    out = {}
    for scorer, known in scores.items():
        rows = [row for row in errors if known.get(row["id"])]
        if rows:
            right, kinds = [r["right_so_far"] for r in rows], [r["step_kinds"] for r in rows]
            out[scorer] = metrics.step_metrics([known[r["id"]] for r in rows], right, kinds, thresholds[scorer])
    return out
