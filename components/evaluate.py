"""Stage `evaluate`: frozen pools and a step-error set -> metrics with intervals, baselines and controls.

Owns which models score what and how a pool is read; the arithmetic is `metrics`'. Generates no text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from components import metrics
from components.errors import DataError, EngineError
from components.lineage import SUMMARY
from components.progress import Progress, say
from components.records import (
    CANDIDATE,
    SCORE,
    SELECTION,
    bytes_digest,
    read_json,
    read_rows,
    read_table,
    row_images,
    seed_for,
    write_json,
    write_table,
)
from components.settings import Params, Runtime
from components.tasks import load_task

Row = dict[str, Any]

# Paired differences to report: what the reward model adds, and what its looking adds.
PAIRS = (
    ("prm", "random"),
    ("prm", "greedy"),
    ("prm", "majority"),
    ("prm", "likelihood"),
    ("prm", "blind"),
    ("prm", "shuffled"),
    ("prm_vote", "random"),
    ("prm_vote", "majority"),
    ("prm_vote", "blind_vote"),
    ("blind", "random"),
    ("shuffled", "random"),
)


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
) -> dict[str, Any]:
    """Write metrics.json, selections.parquet and scores.parquet into `out`.

    Raises:
        DataError: a pool does not fit its benchmark, or there is no `dev` split to choose the aggregation on.
        EngineError: a checkpoint cannot be loaded or breaks its contract.
    """
    import torch

    from components.contract import read_contract
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
    pool = _pool(read_table(candidates / "candidates.parquet", CANDIDATE), problems)
    errors = [row | {"question": task.question(row["question"])} for row in _step_errors(step_errors)]

    if not (prm / "prm").exists():
        raise DataError(str(prm), "no folder prm: not what train writes", "name the folder written by train")
    scores: dict[str, dict[str, list[float]]] = {}  # scorer -> candidate or step-error id -> step scores
    digests = {}
    for name in ("prm", "blind"):
        folder = prm / name
        if not folder.exists():
            continue
        contract = read_contract(folder)
        digests[name] = contract["digest"]
        if contract.get("task_digest", task.digest) != task.digest:
            what = f"trained on task {contract['task']!r}, asked to score task {task.name!r}"
            raise EngineError(str(folder), what, "set `task` in params.yaml to the one it was trained on")
        model = RewardModel.load(folder, device=runtime.device)
        scores[name] = _score(model, name, pool, problems, errors)
        if name == "prm":
            swapped = {s: _shuffled(problems[s], seed_for(params.seed, "shuffle", s)) for s in split if s != "dev"}
            scores["shuffled"] = _score(model, "shuffled", {s: pool[s] for s in swapped}, swapped, [])

    contract = read_contract(prm / "prm")
    formulation = FORMULATIONS[contract["formulation"]]
    unread = {name: _num_unread(pool, errors, known) for name, known in scores.items()}
    if any(unread.values()):
        shown = ", ".join(f"{num:,} by {name}" for name, num in unread.items() if num)
        say("evaluate", f"too long to be read, never chosen, left out of the steps' metrics: {shown} (train.max_tokens)")
    picked = {how: _best_of_n(pool["dev"], scores["prm"], how) for how in formulation.aggregations}
    how = metrics.chosen_aggregation({name: float(values.mean()) for name, values in picked.items()})
    voted = {how: _vote(pool["dev"], scores["prm"], how) for how in formulation.aggregations}
    vote_how = metrics.chosen_aggregation({name: float(values.mean()) for name, values in voted.items()})
    truths = _truths(truth, problems)
    write_table(out / "scores.parquet", _score_rows({**scores, "truth": _exact(pool, truths)}), SCORE)
    dev_steps = _with_truth(pool["dev"], scores["prm"], truths)
    low, high = min(formulation.weights), max(formulation.weights)
    threshold = metrics.best_threshold(*dev_steps, low=low, high=high) if dev_steps[0] else contract["threshold"]
    say("evaluate", f"chosen on dev: aggregation {how} (votes: {vote_how}), threshold {threshold:.2f}")

    splits, selections = {}, []
    for name in split:
        values = _selectors(pool[name], scores, how, vote_how)
        bootstrap = metrics.Bootstrap(
            len(pool[name]),
            num_resamples=params.evaluate.num_resamples,
            confidence=params.evaluate.confidence,
            seed=seed_for(params.seed, "bootstrap"),
            clusters=_pictures(pool[name], problems[name]) if task.unit == "picture" else None,
        )
        by_aggregation = {a: bootstrap.mean(_best_of_n(pool[name], scores["prm"], a)) for a in formulation.aggregations}
        splits[name] = _split_metrics(values, bootstrap, by_aggregation, pool[name], problems[name])
        for selector, array in values.items():
            rows = zip(pool[name], array.tolist(), strict=True)
            selections += [{"split": name, "problem_id": key, "selector": selector, "value": value} for key, value in rows]
    write_table(out / "selections.parquet", selections, SELECTION)

    tests = [name for name in split if name != "dev"]
    result = {
        "prm_digest": digests["prm"],
        "blind_digest": digests.get("blind"),
        "policy_digest": next(iter(pool["dev"].values()))["sample"][0]["policy_digest"],
        "aggregation": how,
        "vote_aggregation": vote_how,
        "threshold": threshold,
        "confidence": params.evaluate.confidence,
        "pools": read_json(candidates / SUMMARY)["pools"],
        "splits": splits,
        "steps": {
            "candidates": _candidate_steps(pool, tests, scores, truths, threshold),
            "step_errors": _error_steps(errors, scores, threshold),
        },
        "unread": unread,
        "calibration": (
            metrics.calibration(*_with_outcome(pool[tests[0] if tests else "dev"], scores["prm"]))
            if formulation.is_probability
            else {"ece": None, "bins": []}
        ),
    }
    write_json(out / "metrics.json", result)
    main = splits.get("test", splits["dev"])["selectors"]
    write_json(
        out / SUMMARY,
        {
            "aggregation": how,
            "threshold": threshold,
            "prm_digest": digests["prm"],
            **{f"{k}_accuracy": v["mean"] for k, v in main.items()},
        },
    )
    return {"scored_solutions": sum(len(s) for s in scores.values())}


Pool = dict[str, dict[str, list[Row]]]
"""problem id -> decoding -> candidates, in the benchmark's order"""


def _pool(rows: Sequence[Row], problems: Mapping[str, Mapping[str, Row]]) -> dict[str, Pool]:
    pool: dict[str, Pool] = {name: {key: {"sample": [], "greedy": []} for key in known} for name, known in problems.items()}
    for row in rows:
        if row["split"] in pool:
            if row["problem_id"] not in pool[row["split"]]:
                what = f"candidate {row['candidate_id']} answers a problem that is not in split {row['split']!r}"
                raise DataError("candidates", what, "the benchmark has changed: run sample again")
            pool[row["split"]][row["problem_id"]][row["decoding"]].append(row)
    for name, known in pool.items():
        missing = [key for key, kinds in known.items() if not kinds["sample"]]
        if missing:
            raise DataError("candidates", f"no candidates for problem {missing[0]} of split {name!r}", "run sample again")
    return pool


def _score(
    model: Any, name: str, pools: Mapping[str, Pool], problems: Mapping[str, Mapping[str, Row]], errors: Sequence[Row]
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
    progress = Progress("evaluate", len(readings), unit=f"solutions by {name}")
    scored = model.score(list(readings), progress.advance)
    return {key: [round(s, 6) for s in steps] for keys, steps in zip(readings.values(), scored, strict=True) for key in keys}


def _num_unread(pools: Mapping[str, Pool], errors: Sequence[Row], scores: Mapping[str, list[float]]) -> int:
    """How many solutions have steps and got no score: with their prompts they are longer than the model reads."""
    kinds = [kinds for pool in pools.values() for kinds in pool.values()]
    rows = [(row["candidate_id"], row) for known in kinds for row in (*known["sample"], *known["greedy"])]
    rows += [(row["id"], row) for row in errors]
    return sum(1 for key, row in rows if key in scores and row["steps"] and not scores[key])


def _shuffled(problems: Mapping[str, Row], seed: int) -> dict[str, Row]:
    """The same problems, each with the pictures of another one from the same source."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for key, row in problems.items():
        by_source[row["source"]].append(key)
    if min(len(keys) for keys in by_source.values()) < 2:
        by_source = {"all": list(problems)}
    rng = np.random.default_rng(seed)
    out = {}
    for keys in by_source.values():
        of_picture: dict[tuple[bytes, ...], list[str]] = defaultdict(list)
        for i in rng.permutation(len(keys)):
            of_picture[row_images(problems[keys[i]])].append(keys[i])
        order = [key for sharing in of_picture.values() for key in sharing]
        shift = max(map(len, of_picture.values()))  # past all who share a picture
        for key, other in zip(order, [*order[shift:], *order[:shift]], strict=True):
            out[key] = {**problems[key], "images": problems[other]["images"]}
    return {key: out[key] for key in problems}


def _pictures(pool: Pool, problems: Mapping[str, Row]) -> list[str]:
    """The picture of each problem of a pool; one without any stands for itself."""
    return ["/".join(bytes_digest(picture) for picture in row_images(problems[key])) or key for key in pool]


def _is_right(rows: Sequence[Row]) -> list[bool]:
    return [row["verdict"] == "right" for row in rows]


def _best_of_n(pool: Pool, scores: Mapping[str, list[float]], how: str) -> np.ndarray:
    return np.array(
        [
            metrics.best_of_n(
                [metrics.aggregate(scores[row["candidate_id"]], how) for row in kinds["sample"]], _is_right(kinds["sample"])
            )
            for kinds in pool.values()
        ]
    )


def _vote(pool: Pool, scores: Mapping[str, list[float]], how: str) -> np.ndarray:
    values = []
    for kinds in pool.values():
        rows = kinds["sample"]
        weights = [metrics.aggregate(scores[row["candidate_id"]], how) for row in rows]
        values.append(metrics.vote([row["answer"] for row in rows], _is_right(rows), weights))
    return np.array(values)


def _selectors(
    pool: Pool, scores: Mapping[str, Mapping[str, list[float]]], how: str, vote_how: str
) -> dict[str, np.ndarray]:
    """The chance that each selector's pick is right: name -> `[P]`."""
    groups = [kinds["sample"] for kinds in pool.values()]
    values = {
        "random": np.array([np.mean(_is_right(rows)) for rows in groups]),
        "majority": np.array([metrics.vote([r["answer"] for r in rows], _is_right(rows)) for rows in groups]),
        "likelihood": np.array([metrics.best_of_n([r["logprob"] for r in rows], _is_right(rows)) for rows in groups]),
        "oracle": np.array([float(any(_is_right(rows))) for rows in groups]),
    }
    if all(kinds["greedy"] for kinds in pool.values()):
        values["greedy"] = np.array([np.mean(_is_right(kinds["greedy"])) for kinds in pool.values()])
    for name, known in scores.items():
        if not all(row["candidate_id"] in known for rows in groups for row in rows):
            continue
        values[name] = _best_of_n(pool, known, how)
        values[f"{name}_vote"] = _vote(pool, known, vote_how)
    return values


def _split_metrics(
    values: Mapping[str, np.ndarray],
    bootstrap: metrics.Bootstrap,
    by_aggregation: dict[str, Any],
    pool: Pool,
    problems: Mapping[str, Row],
) -> dict[str, Any]:
    gap = values["oracle"] - values["random"]
    sources: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(pool):
        sources[problems[key]["source"]].append(i)
    shown = [name for name in ("random", "majority", "prm", "prm_vote", "blind", "oracle") if name in values]
    return {
        "num_problems": len(pool),
        "num_candidates": max(len(kinds["sample"]) for kinds in pool.values()),
        "selectors": {name: bootstrap.mean(array) for name, array in values.items()},
        "aggregations": by_aggregation,
        "differences": [
            {"a": a, "b": b, **bootstrap.mean(values[a] - values[b])} for a, b in PAIRS if a in values and b in values
        ],
        "gap_closed": {
            name: bootstrap.ratio(values[name] - values["random"], gap) for name in ("prm", "prm_vote") if name in values
        },
        "sources": {
            source: {"num_problems": len(rows), **{name: round(float(values[name][rows].mean()), 6) for name in shown}}
            for source, rows in sorted(sources.items())
        },
    }


def _step_errors(path: Path | None) -> list[Row]:
    if path is None:
        return []
    return read_rows(path, ["id", "question", "steps", "right_so_far", "step_kinds"])


Truths = dict[str, dict[str, Callable[[Sequence[str]], Any]]]
"""split -> problem id -> steps -> the exact truth about each"""


def _truths(path: Path | None, problems: Mapping[str, Mapping[str, Row]]) -> Truths:
    """The checkers of the problems whose derivations are known; of a kind that no world has, nothing is measured."""
    if path is None:
        return {}
    from components import scenes, world

    worlds: dict[str, Any] = dict.fromkeys((*world.KINDS, world.LONG_KIND), world)
    worlds |= dict.fromkeys((f"scene/{kind}" for kind in (*scenes.COUNTING, *scenes.SPATIAL, scenes.LONG_KIND)), scenes)
    rows = read_table(path, world.TRUTH)
    by_source_id = {
        row["id"]: partial(worlds[row["kind"]].check, worlds[row["kind"]].truth_from_row(row))
        for row in rows
        if row["kind"] in worlds
    }
    if len(by_source_id) < len(rows):
        say("evaluate", f"{path}: {len(rows) - len(by_source_id):,} rows of kinds without a checker are not measured")
    return {
        name: {key: by_source_id[row["source_id"]] for key, row in known.items() if row["source_id"] in by_source_id}
        for name, known in problems.items()
    }


def _exact(pools: Mapping[str, Pool], truths: Truths) -> dict[str, list[float]]:
    """Exact truth as step scores, 1 as long as all is right, for the page and whoever audits the scores."""
    known = {key: check for of_split in truths.values() for key, check in of_split.items()}
    return {
        row["candidate_id"]: [float(t.is_right_so_far) for t in known[key](row["steps"])]
        for pool in pools.values()
        for key, kinds in pool.items()
        if key in known
        for row in (*kinds["sample"], *kinds["greedy"])
    }


def _checked(
    pool: Pool, scores: Mapping[str, list[float]], truths: Truths
) -> tuple[list[list[float]], list[list[bool]], list[list[str]]]:
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


def _with_truth(pool: Pool, scores: Mapping[str, list[float]], truths: Truths) -> tuple[list[float], list[bool]]:
    rows, right, _ = _checked(pool, scores, truths)
    return [s for row in rows for s in row], [t for row in right for t in row]


def _with_outcome(pool: Pool, scores: Mapping[str, list[float]]) -> tuple[list[float], list[bool]]:
    """Every step's score beside its solution's verdict: given its prefix, that is what a calibrated score foretells."""
    out: tuple[list[float], list[bool]] = ([], [])
    for kinds in pool.values():
        for row in kinds["sample"]:
            if row["verdict"] != "unknown":
                out[0].extend(scores[row["candidate_id"]])
                out[1].extend([row["verdict"] == "right"] * len(scores[row["candidate_id"]]))
    return out


def _candidate_steps(
    pool: Mapping[str, Pool],
    names: Sequence[str],
    scores: Mapping[str, Mapping[str, list[float]]],
    truths: Truths,
    threshold: float,
) -> dict[str, Any]:
    if not truths:
        return {}
    merged: Pool = {key: kinds for name in names for key, kinds in pool[name].items()}
    return {scorer: metrics.step_metrics(*_checked(merged, known, truths), threshold) for scorer, known in scores.items()}


def _error_steps(errors: Sequence[Row], scores: Mapping[str, Mapping[str, list[float]]], threshold: float) -> dict[str, Any]:
    out = {}
    for scorer, known in scores.items():
        rows = [row for row in errors if known.get(row["id"])]
        if rows:
            right, kinds = [r["right_so_far"] for r in rows], [r["step_kinds"] for r in rows]
            out[scorer] = metrics.step_metrics([known[r["id"]] for r in rows], right, kinds, threshold)
    return out


def _score_rows(scores: Mapping[str, Mapping[str, list[float]]]) -> list[Row]:
    return [
        {"candidate_id": key, "scorer": scorer, "step_scores": steps}
        for scorer, known in scores.items()
        for key, steps in sorted(known.items())
    ]
