"""`annotate draw`: labelled solutions -> a sample for people, with the chance with which each was drawn.

Owns the audit's folder and its digest; how people are asked is the pages' business.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.annotate import label_studio, page
from components.annotate.sampling import MIN_SAMPLE, Drawn, draw, is_near, kind_of, strata
from components.errors import DataError, SettingsError
from components.estimation import POSITIVE
from components.lineage import SUMMARY
from components.prefixes import is_usable
from components.progress import say
from components.records import (
    IMAGE,
    LABEL,
    PROBLEM,
    SOLUTION,
    bytes_digest,
    digest,
    iterate_table,
    read_json,
    read_table,
    row_images,
    with_image_column,
    write_json,
    write_table,
)

Row = dict[str, Any]
FILE = "audit.parquet"
JUDGES = ("scores", "judged")
"""Columns of what others than the labels say of the steps: the reward model, and the model that judges."""

AUDIT = with_image_column(
    pa.schema(
        [
            ("solution_id", pa.string()),
            ("problem_id", pa.string()),
            ("source", pa.string()),
            ("question", pa.string()),
            ("images", pa.list_(IMAGE)),
            ("answer", pa.string()),  # the problem's gold answer
            ("steps", pa.list_(pa.string())),
            ("values", pa.list_(pa.float64())),  # what the label of each step says it is worth; null where there is none
            ("scores", pa.list_(pa.float64())),  # the reward model's; null where it gave none
            ("judged", pa.list_(pa.float64())),  # the judge's, 1 or 0; null where it said nothing
            ("stratum", pa.string()),
            ("num_drawn", pa.int32()),  # solutions drawn from the stratum
            ("num_in_stratum", pa.int32()),
            ("probability", pa.float64()),  # of being drawn
        ]
    ),
    "images",
    many=True,
)


def draw_audit(
    *,
    seeds: Path,
    rollouts: Path,
    labels: Path,
    out: Path,
    prm: str | None = None,
    scores: Path | None = None,
    judge: str | None = None,
    num: int = 100,
    threshold: float = POSITIVE,
    score_threshold: float | None = None,
    margin: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the sample, the page and the Label Studio tasks into `out`; returns what was drawn, by stratum.

    Args:
        prm: folder written by train, which scores every labelled solution; scores: or a file of step scores with their ids.
        judge: a model at STEPFORGE_JUDGE_URL, which is asked about every labelled solution.
        num: solutions to draw.
        threshold: a step whose label says at most this is worth "-".
        score_threshold: the same of the scores; None: the reward model's own, or 0.5.
        margin: a label without an interval is near the threshold if no further than this from it.
    Raises:
        SettingsError: a number is out of its range.
        DataError: the folders do not belong together, or nothing is labelled.
    """
    if not (0 <= threshold < 1 and 0 <= margin <= 1 and num >= MIN_SAMPLE):
        what = f"{num} solutions, a threshold of {threshold}, a margin of {margin}"
        hint = f"at least {MIN_SAMPLE} solutions, a threshold in [0, 1), a margin in [0, 1]"
        raise SettingsError("annotate", what, hint)
    if score_threshold is not None and not math.isfinite(score_threshold):
        raise SettingsError("annotate", f"a score threshold of {score_threshold}", "name a number")
    if prm is not None and scores is not None:
        raise SettingsError("annotate", "--prm and --scores", "name one")
    solutions = _labelled(rollouts, labels, threshold=threshold, margin=margin)
    sources = _sources(seeds, rollouts, solutions)
    thresholds = {"values": threshold}
    if prm is not None or scores is not None or judge is not None:
        thresholds |= _judge(seeds, solutions, prm=prm, scores=scores, judge=judge, score_threshold=score_threshold)
    judges = [name for name in JUDGES if name in thresholds]
    kinds = {
        row["solution_id"]: kind_of(
            row["values"],
            [row[name] for name in judges],
            threshold=threshold,
            other_thresholds=[thresholds[name] for name in judges],
            any_near=row["any_near"],
        )
        for row in solutions
    }
    members = strata(kinds, {row["solution_id"]: sources[row["problem_id"]] for row in solutions}, num)
    chosen = draw(members, num, seed=seed)
    rows = _audit_rows(seeds, {row["solution_id"]: row for row in solutions}, chosen)
    write_table(out / FILE, rows, AUDIT)
    drawn = Counter(one.stratum for one in chosen)
    summary: dict[str, Any] = {
        "set": set_digest(rows),
        "num_solutions": len(rows),
        "num_steps": sum(len(row["steps"]) for row in rows),
        "strata": {name: {"drawn": drawn[name], "of": len(keys)} for name, keys in members.items()},
        "thresholds": thresholds,
        "margin": margin,
        "seed": seed,
    }
    asked = {row["solution_id"]: list(range(len(row["steps"]))) for row in rows}
    write_questions(out, rows, asked, set_name=summary["set"], round_=1)
    write_json(out / SUMMARY, summary)
    return summary


def write_questions(
    out: Path,
    rows: Sequence[Row],
    asked: Mapping[str, Sequence[int]],
    *,
    set_name: str,
    round_: int,
    said: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """The page and the Label Studio files that ask about these steps.

    Args:
        asked: solution -> its steps, from 0; others are shown and not asked about.
        said: solution -> step -> what people said before, in words.
    """
    shown = [row for row in rows if asked.get(row["solution_id"])]
    page.write_page(out / page.FILE, shown, asked, set_name=set_name, round_=round_, said=said or {})
    write_json(out / label_studio.TASKS, label_studio.tasks(shown, asked, set_name=set_name, round_=round_, said=said or {}))
    (out / label_studio.CONFIG).write_text(label_studio.LABEL_CONFIG, encoding="utf-8")


def set_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """The name of the questions: answers to others are not answers to these."""
    names = ("solution_id", "problem_id", "question", "steps", "stratum", "num_drawn", "num_in_stratum")
    of_row = [[*(row[name] for name in names), [bytes_digest(content) for content in row_images(row)]] for row in rows]
    return digest("audit-set-1", sorted(of_row))


def read_audit(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """The sample in a folder and what its summary says.

    Raises:
        DataError: the folder holds no audit, or one whose digest is not that of its questions.
    """
    if not (folder / FILE).exists() or not (folder / SUMMARY).exists():
        raise DataError(str(folder), f"holds no {FILE}", "name a folder that annotate draw or annotate read wrote")
    rows, summary = read_table(folder / FILE, AUDIT), read_json(folder / SUMMARY)
    known = summary.get("set") if isinstance(summary, dict) else None
    if known != (found := set_digest(rows)):
        raise DataError(str(folder), f"{FILE} is set {found}, its summary speaks of {known}", "draw again")
    return rows, summary


# --- what there is to draw from ------------------------------------------------------------------------------------


def _labelled(rollouts: Path, labels: Path, *, threshold: float, margin: float) -> list[Row]:
    """Usable solutions with a label, each with the value of every step, and whether one is near the threshold."""
    wanted = ["solution_id", "problem_id", "steps", "finish_reason"]
    rows = {row["solution_id"]: row for row in read_table(rollouts / "solutions.parquet", SOLUTION, wanted)}
    columns = ["solution_id", "step", "mean", "low", "high"]
    for table in iterate_table(labels / "labels.parquet", LABEL, columns, num_rows=1 << 16):
        for key, step, mean, low, high in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
            row = rows.get(key)
            if row is None or not 0 <= step < len(row["steps"]):
                what = f"a label of step {step} of solution {key}, which the rollouts lack"
                raise DataError(str(labels), what, "name the labels made of these rollouts")
            if mean is not None and math.isfinite(mean):
                row.setdefault("values", [None] * len(row["steps"]))[step] = mean
                row["any_near"] = row.get("any_near", False) or is_near(mean, low, high, threshold=threshold, margin=margin)
    found = [row | {"scores": None, "judged": None} for row in rows.values() if "values" in row and is_finished(row)]
    if not found:
        raise DataError(str(labels), "no finished solution has a label", "name folders of one run that labelled something")
    return found


def is_finished(row: Mapping[str, Any]) -> bool:
    """Whether a solution is worth a person's time; an imported one says nothing of how it ended."""
    return is_usable(row) if row["finish_reason"] is not None else bool(row["steps"])


def _sources(seeds: Path, rollouts: Path, solutions: Sequence[Row]) -> dict[str, str]:
    rows = read_table(seeds / "seeds.parquet", PROBLEM, ["problem_id", "source"])
    found = {row["problem_id"]: row["source"] or "" for row in rows}
    strange = next((row for row in solutions if row["problem_id"] not in found), None)
    if strange is not None:
        what = f"solution {strange['solution_id']} is of problem {strange['problem_id']}, which is not among the seeds"
        raise DataError(str(rollouts), what, "name the seeds that rollout read")
    return found


def _problems(seeds: Path, wanted: set[str]) -> dict[str, Row]:
    """The problems of these ids, read in slices: their pictures are the bulk of the file."""
    found: dict[str, Row] = {}
    for table in iterate_table(seeds / "seeds.parquet", PROBLEM, num_rows=256):
        found |= {row["problem_id"]: row for row in table.to_pylist() if row["problem_id"] in wanted}
    return found


def _judge(
    seeds: Path,
    solutions: Sequence[Row],
    *,
    prm: str | None,
    scores: Path | None,
    judge: str | None,
    score_threshold: float | None,
) -> dict[str, float]:
    """Fill in what the others say of the steps; returns their thresholds."""
    from components.grade import read_rows
    from components.scoreboard import judge_scores, prm_scores
    from components.step_benchmarks import Case, scores_of_rows

    problems = _problems(seeds, {row["problem_id"] for row in solutions}) if prm is not None or judge is not None else {}
    cases = []
    for row in solutions:
        problem = problems.get(row["problem_id"], {"question": "", "images": None})
        pictures = tuple(one for one in problem["images"] or () if one is not None)
        nothing = (None,) * len(row["steps"])
        cases.append(Case(row["solution_id"], problem["question"], tuple(row["steps"]), nothing, images=pictures))
    thresholds: dict[str, float] = {}

    def put(column: str, found: Mapping[str, list[float]], limit: float) -> None:
        thresholds[column] = limit
        if len(found) < len(solutions):
            what = f"{len(solutions) - len(found):,} of {len(solutions):,} labelled solutions have none"
            say("annotate", f"{column}: {what}; they cannot be seen to disagree")
        for row in solutions:
            row[column] = found.get(row["solution_id"])

    if prm is not None:
        found, own = prm_scores(prm, cases, seeds)
        put("scores", found, own if score_threshold is None else score_threshold)
    elif scores is not None:
        put("scores", scores_of_rows(cases, read_rows(scores)), 0.5 if score_threshold is None else score_threshold)
    if judge is not None:
        put("judged", judge_scores(judge, cases, seeds), 0.5)
    return thresholds


def _audit_rows(seeds: Path, solutions: Mapping[str, Row], chosen: Sequence[Drawn]) -> list[Row]:
    problems = _problems(seeds, {solutions[one.solution_id]["problem_id"] for one in chosen})
    rows = []
    for one in chosen:
        row = solutions[one.solution_id]
        problem = problems[row["problem_id"]]
        if len(row_images(problem)) != len(problem["images"] or ()):
            what = f"a picture of problem {problem['problem_id']} has no bytes"
            raise DataError(str(seeds), what, "run curate: its seeds hold the pictures themselves")
        of_problem = {name: problem[name] for name in ("problem_id", "source", "question", "images", "answer")}
        of_solution = {name: row[name] for name in ("solution_id", "steps", "values", *JUDGES)}
        of_draw = {"stratum": one.stratum, "num_drawn": one.num_drawn, "num_in_stratum": one.num_in_stratum}
        rows.append(of_problem | of_solution | of_draw | {"probability": one.probability})
    return rows
