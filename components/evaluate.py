"""Stage `evaluate`: frozen pools and a step-error set -> metrics with intervals, baselines and controls.

Owns which models score what and how a pool is read; the arithmetic is `metrics`'. Generates no text.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from components import controls, metrics, selection, step_truth
from components.elsewhere import SCORES, KeptScores
from components.errors import DataError, EngineError, SettingsError
from components.lineage import SUMMARY
from components.progress import Progress, say
from components.records import (
    CANDIDATE,
    SCORE,
    SELECTION,
    read_json,
    read_table,
    row_images,
    seed_for,
    write_json,
    write_table,
)
from components.selection import Pool, Row
from components.settings import Params, Runtime
from components.tasks import Task, load_task


def run(
    params: Params,
    runtime: Runtime,
    *,
    split: dict[str, Path],
    step_errors: Path | None,
    truth: Path | None,
    candidates: Path,
    prm: Path,
    out: Path,
    scorer: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Write metrics.json, selections.parquet and scores.parquet into `out`; returns what only the receipt holds: seconds.

    Args:
        scorer: further reward models by name, such as an outcome one: folders written by train, or checkpoints in them.
    Raises:
        SettingsError: a further reward model has a name that is no word or is taken.
        DataError: a pool does not fit its benchmark, or there is no `dev` split to choose the aggregation on.
        EngineError: a checkpoint cannot be loaded or breaks its contract.
    """
    import torch

    from components.formulations import FORMULATIONS
    from components.prm import RewardModel
    from components.problems import load_benchmark

    torch.set_num_threads(runtime.num_threads)
    if "dev" not in split:
        raise DataError(
            "evaluate",
            f"no split named 'dev' among {', '.join(split)}",
            "the aggregation and the threshold are chosen on dev",
        )
    task = load_task(params.task)
    problems = {
        name: {
            p["problem_id"]: p | {"question": task.question(p["question"])}
            for p in load_benchmark(path, max_image_pixels=params.curate.max_image_pixels)
        }
        for name, path in split.items()
    }
    pool = selection.pools(read_table(candidates / "candidates.parquet", CANDIDATE), problems)
    errors = [row | {"question": task.question(row["question"])} for row in step_truth.step_errors(step_errors)]

    folders = {name: prm / name for name in ("prm", "blind")} | _checkpoints(scorer or {})
    if not folders["prm"].exists():
        raise DataError(str(prm), "no folder prm: not what train writes", "name the folder written by train")
    folders = {name: folder for name, folder in folders.items() if name != "blind" or folder.exists()}
    sampled = [row["candidate_id"] for some in pool.values() for kinds in some.values() for row in kinds["sample"]]
    kept = {n: KeptScores(folders.pop(n), n, sampled) for n, folder in (scorer or {}).items() if (folder / SCORES).is_file()}
    contracts = {name: _contract(folder, task) for name, folder in folders.items()}
    spent: dict[str, float] = defaultdict(float)  # on what -> seconds: for the receipt, never in an output
    scores: dict[str, dict[str, list[float]]] = {}  # scorer -> candidate or step-error id -> step scores
    for name in folders:
        if name != "prm":  # one model in memory at a time; the reward model last, which is asked again
            scores[name] = _score(
                RewardModel.load(folders[name], device=runtime.device), name, pool, problems, errors, spent
            )
    model = RewardModel.load(folders["prm"], device=runtime.device)
    scores["prm"] = _score(model, "prm", pool, problems, errors, spent)
    swapped = {s: selection.shuffled(problems[s], seed_for(params.seed, "shuffle", s)) for s in split if s != "dev"}
    scores["shuffled"] = _score(model, "shuffled", {s: pool[s] for s in swapped}, swapped, [], spent)
    scores = {name: scores[name] for name in dict.fromkeys(("prm", "shuffled", *folders))}
    models = list(scores)
    scores |= {name: one.steps for name, one in kept.items()}

    contract = contracts["prm"]
    formulations = {name: FORMULATIONS[one["formulation"]] for name, one in contracts.items()}
    formulation = formulations["prm"]
    unread = {name: step_truth.num_unread(pool, errors, known) for name, known in scores.items()}
    if any(unread.values()):
        shown = ", ".join(f"{num:,} by {name}" for name, num in unread.items() if num)
        say("evaluate", f"too long to be read, never chosen, left out of the steps' metrics: {shown} (train.max_tokens)")
    choices = {n: selection.chosen(pool["dev"], scores[n], one.aggregations) for n, one in (formulations | kept).items()}
    ours = choices["shuffled"] = choices["prm"]
    truths = step_truth.checkers(truth, problems)
    write_table(out / "scores.parquet", _score_rows({**scores, "truth": step_truth.exact_scores(pool, truths)}), SCORE)
    thresholds: dict[str, float] = {}
    for name, one in formulations.items():
        known, right = step_truth.with_truth(pool["dev"], scores[name], truths)
        low, high = min(one.weights), max(one.weights)
        found = metrics.best_threshold(known, right, low=low, high=high) if known else contracts[name]["threshold"]
        thresholds[name] = found
    threshold = thresholds["shuffled"] = thresholds["prm"]
    say("evaluate", f"chosen on dev: aggregation {ours.best} (votes: {ours.vote}), threshold {threshold:.2f}")

    by_picture = task.unit == "picture"
    clusters = {s: selection.clusters(split[s], pool[s], problems[s], by_picture=by_picture) for s in split}
    splits, selections = {}, []
    for name in split:
        splits[name], values = selection.split_metrics(
            pool[name],
            problems[name],
            scores,
            choices,
            formulation.aggregations,
            num_resamples=params.evaluate.num_resamples,
            confidence=params.evaluate.confidence,
            seed=seed_for(params.seed, "bootstrap"),
            clusters=clusters[name],
        )
        for selector, array in values.items():
            rows = zip(pool[name], array.tolist(), strict=True)
            selections += [{"split": name, "problem_id": key, "selector": selector, "value": value} for key, value in rows]
    write_table(out / "selections.parquet", selections, SELECTION)

    tests = [name for name in split if name != "dev"]
    shown = "test" if "test" in split else (tests or ["dev"])[0]
    controlled = controls.measure(
        partial(_read, model, "altered solutions", spent),
        pool[shown],
        problems[shown],
        scores,
        aggregations={name: choices[name].best for name in scores},
        num_problems=params.evaluate.control_problems,
        num_resamples=params.evaluate.num_resamples,
        confidence=params.evaluate.confidence,
        seed=params.seed,
        clusters=clusters[shown],
    )
    result = {
        "prm_digest": contract["digest"],
        "blind_digest": contracts["blind"]["digest"] if "blind" in contracts else None,
        "policy_digest": next(iter(pool["dev"].values()))["sample"][0]["policy_digest"],
        "aggregation": ours.best,
        "vote_aggregation": ours.vote,
        "aggregations_by_scorer": {name: choices[name].best for name in scores},
        "vote_aggregations_by_scorer": {name: choices[name].vote for name in scores},
        "scorer_digests": {n: kept[n].digest if n in kept else contracts[n]["digest"] for n in scorer or {}},
        "threshold": threshold,
        "thresholds_by_scorer": thresholds,
        "confidence": params.evaluate.confidence,
        "pools": read_json(candidates / SUMMARY)["pools"],
        "clusters": {
            s: _numbered(pool[s], names) for s, names in clusters.items() if names and len(set(names)) < len(names)
        },
        "splits": splits,
        "controls": {"split": shown, **controlled},
        "steps": {
            "candidates": step_truth.candidate_steps(pool, tests, {n: scores[n] for n in models}, truths, thresholds),
            "step_errors": step_truth.error_steps(errors, scores, thresholds),
        },
        "unread": unread,
        "calibration": (
            metrics.calibration(*step_truth.with_outcome(pool[shown], scores["prm"]))
            if formulation.is_probability
            else {"ece": None, "bins": []}
        ),
    }
    write_json(out / "metrics.json", result)
    main = splits.get("test", splits["dev"])["selectors"]
    write_json(
        out / SUMMARY,
        {
            "aggregation": ours.best,
            "threshold": threshold,
            "prm_digest": contract["digest"],
            **{f"{k}_accuracy": v["mean"] for k, v in main.items()},
        },
    )
    return {
        "scored_solutions": sum(len(s) for s in scores.values()),
        "scoring_seconds": round(sum(spent.values()), 3),
        "scoring_seconds_by": {unit: round(seconds, 3) for unit, seconds in spent.items()},
    }


def _numbered(keys: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """Problem -> the number of its cluster, for whoever compares this run with another."""
    number = {name: str(i) for i, name in enumerate(dict.fromkeys(names))}
    return {key: number[name] for key, name in zip(keys, names, strict=True)}


def _checkpoints(scorers: Mapping[str, Path]) -> dict[str, Path]:
    """The checkpoint of each further reward model: a folder written by train, or one within it.

    Raises:
        SettingsError: a name that is no word or is taken.
    """
    taken = {"prm", "blind", "shuffled", "truth", *selection.BASELINES}
    for name in scorers:
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name.endswith("_vote"):
            hint = "lower-case letters, digits and _, not ending in _vote: --scorer orm=artifacts/orm"
            raise SettingsError("command line", f"--scorer: {name!r} cannot name a reward model", hint)
        if name in taken:
            what = f"--scorer: the name {name!r} is taken"
            raise SettingsError("command line", what, f"not one of {', '.join(sorted(taken))}")
    return {name: folder / "prm" if (folder / "prm").is_dir() else folder for name, folder in scorers.items()}


def _contract(folder: Path, task: Task) -> dict[str, Any]:
    """The contract of a checkpoint that scores this task."""
    from components.contract import read_contract

    contract = read_contract(folder)
    if contract.get("task_digest", task.digest) != task.digest:
        what = f"trained on task {contract['task']!r}, asked to score task {task.name!r}"
        raise EngineError(str(folder), what, "set `task` in params.yaml to the one it was trained on")
    return contract


def _score(
    model: Any,
    name: str,
    pools: Mapping[str, Pool],
    problems: Mapping[str, Mapping[str, Row]],
    errors: Sequence[Row],
    spent: dict[str, float],
) -> dict[str, list[float]]:
    """Step scores by candidate id (and step-error id); equal solutions of a problem are read once."""
    from components.prm import Reading

    readings: dict[Any, list[str]] = defaultdict(list)
    for split, pool in pools.items():
        for key, kinds in pool.items():
            problem = problems[split][key]
            for row in (*kinds["sample"], *kinds["greedy"]):
                readings[Reading(problem["question"], row_images(problem), tuple(row["steps"]))].append(row["candidate_id"])
    for row in errors:
        readings[Reading(row["question"], row_images(row), tuple(row["steps"]))].append(row["id"])
    scored = _read(model, f"solutions by {name}", spent, list(readings))
    return {key: [round(s, 6) for s in steps] for keys, steps in zip(readings.values(), scored, strict=True) for key in keys}


def _read(model: Any, unit: str, spent: dict[str, float], readings: list[Any]) -> list[list[float]]:
    started = time.monotonic()
    scores: list[list[float]] = model.score(readings, Progress("evaluate", len(readings), unit=unit).advance)
    spent[unit] += time.monotonic() - started
    return scores


def _score_rows(scores: Mapping[str, Mapping[str, list[float]]]) -> list[Row]:
    return [
        {"candidate_id": key, "scorer": scorer, "step_scores": steps}
        for scorer, known in scores.items()
        for key, steps in sorted(known.items())
    ]
