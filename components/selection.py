"""A frozen pool as arrays of right and wrong: whose candidate each selector picks, and which problems belong together.

Owns how candidates are read and what a selector is; knows no model. The arithmetic is `metrics`'.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components import curves, metrics, significance
from components.errors import DataError
from components.records import bytes_digest, row_images

Row = dict[str, Any]
Pool = dict[str, dict[str, list[Row]]]
"""problem id -> decoding -> candidates, in the benchmark's order"""
Scores = Mapping[str, list[float]]
"""candidate id -> step scores; empty: too long to be read"""

BASELINES = ("random", "majority", "likelihood", "likelihood_mean", "greedy", "oracle")
"""Selectors that ask no reward model."""
SCORERS = ("prm", "shuffled", "blind")
"""The reward model, the same shown other pictures, and the one that never saw any."""
# Paired differences to report: what the reward model adds, and what its looking adds.
PAIRS = (
    ("prm", "random"),
    ("prm", "greedy"),
    ("prm", "majority"),
    ("prm", "likelihood"),
    ("prm", "likelihood_mean"),
    ("prm", "blind"),
    ("prm", "shuffled"),
    ("prm_vote", "random"),
    ("prm_vote", "majority"),
    ("prm_vote", "blind_vote"),
    ("blind", "random"),
    ("shuffled", "random"),
)
_SHOWN = ("random", "majority", "prm", "prm_vote", "blind", "oracle")  # in tables
_GROUP_RESAMPLES = 2000  # of the gain of each row of a table
_QUARTERS = ("0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")


@dataclass(frozen=True)
class Choice:
    """How a scorer's step scores become one: for the best of N, and for the weight of a vote."""

    best: str
    vote: str


@dataclass(frozen=True)
class Choosers:
    """What every selector goes by: a list a problem, an entry a candidate, in the pool's order."""

    scores: dict[str, list[list[float]]]
    """Selectors that pick the highest."""
    weights: dict[str, list[list[float] | None]]
    """Selectors that vote; None: every candidate counts the same."""


def pools(rows: Sequence[Row], problems: Mapping[str, Mapping[str, Row]]) -> dict[str, Pool]:
    """The candidates of every problem of every split.

    Raises:
        DataError: a candidate of no problem, or a problem without candidates.
    """
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


def shuffled(problems: Mapping[str, Row], seed: int) -> dict[str, Row]:
    """The same problems, each with the pictures of another one from the same source; one without any has none.

    Of all sources, where one of them is too small or half of it shares a picture.
    """
    by_source: dict[str, list[str]] = defaultdict(list)
    for key, row in problems.items():
        if row_images(row):
            by_source[row["source"]].append(key)
    most = {source: max(Counter(row_images(problems[key]) for key in keys).values()) for source, keys in by_source.items()}
    if any(2 * most[source] > len(keys) for source, keys in by_source.items()):
        by_source = {"all": [key for keys in by_source.values() for key in keys]}
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
    return {key: out.get(key, row) for key, row in problems.items()}


def clusters(path: Path, pool: Pool, problems: Mapping[str, Row], *, by_picture: bool) -> list[str] | None:
    """What each problem of a pool shares with others, so that they are not independent; None where nothing is shared.

    Args:
        path: the problem file; its column `cluster`, if it has one, goes first.
        by_picture: problems with the same picture belong together.
    """
    return variants(path, pool, problems) or (pictures(pool, problems) if by_picture else None)


def pictures(pool: Pool, problems: Mapping[str, Row]) -> list[str]:
    """The picture of each problem of a pool; one without any stands for itself."""
    return ["/".join(bytes_digest(picture) for picture in row_images(problems[key])) or key for key in pool]


def variants(path: Path, pool: Pool, problems: Mapping[str, Row]) -> list[str] | None:
    """The question that each problem is a variant of, by column `cluster` of its Parquet file; None without one."""
    import pyarrow.parquet as pq

    if path.suffix != ".parquet" or not {"id", "cluster"} <= set(pq.read_schema(path).names):
        return None
    table = pq.read_table(path, columns=["id", "cluster"])
    named = dict(zip(map(str, table["id"].to_pylist()), table["cluster"].to_pylist(), strict=True))
    if not any(named.values()):
        return None
    return [named.get(problems[key]["source_id"]) or key for key in pool]


def is_right(rows: Sequence[Row]) -> list[bool]:
    """Which candidates are right; unknown is not."""
    return [row["verdict"] == "right" for row in rows]


def best_of_n(pool: Pool, scores: Scores, how: str) -> np.ndarray:
    """`[P]` the chance that the candidate with the highest aggregated score is right."""
    return np.array(
        [
            metrics.best_of_n(
                [metrics.aggregate(scores[row["candidate_id"]], how) for row in kinds["sample"]], is_right(kinds["sample"])
            )
            for kinds in pool.values()
        ]
    )


def vote(pool: Pool, scores: Scores, how: str) -> np.ndarray:
    """`[P]` the chance that the answer with the most aggregated score behind it is right."""
    values = []
    for kinds in pool.values():
        rows = kinds["sample"]
        weights = [metrics.aggregate(scores[row["candidate_id"]], how) for row in rows]
        values.append(metrics.vote([row["answer"] for row in rows], is_right(rows), weights))
    return np.array(values)


def chosen(pool: Pool, scores: Scores, aggregations: Sequence[str]) -> Choice:
    """The aggregations with the highest accuracy on this pool, the dev one; of equal ones the first."""
    best = {how: float(best_of_n(pool, scores, how).mean()) for how in aggregations}
    votes = {how: float(vote(pool, scores, how).mean()) for how in aggregations}
    return Choice(metrics.chosen_aggregation(best), metrics.chosen_aggregation(votes))


def choosers(pool: Pool, scores: Mapping[str, Scores], choices: Mapping[str, Choice]) -> Choosers:
    """Every selector that this pool allows: a scorer that read all of it, likelihoods where every candidate has one."""
    groups = [kinds["sample"] for kinds in pool.values()]
    every = [row for rows in groups for row in rows]
    out = Choosers({"random": [[0.0] * len(rows) for rows in groups]}, {"majority": [None] * len(groups)})
    if all(row["logprob"] is not None and math.isfinite(row["logprob"]) for row in every):
        out.scores["likelihood"] = [[row["logprob"] for row in rows] for rows in groups]
        if all(row["num_tokens"] is not None for row in every):
            out.scores["likelihood_mean"] = [[r["logprob"] / max(1, r["num_tokens"]) for r in rows] for rows in groups]
    out.scores["oracle"] = [[float(right) for right in is_right(rows)] for rows in groups]
    for name, known in scores.items():
        if all(row["candidate_id"] in known for row in every):
            best, votes = (
                [[metrics.aggregate(known[row["candidate_id"]], how) for row in rows] for rows in groups]
                for how in (choices[name].best, choices[name].vote)
            )
            out.scores[name] = best
            out.weights[f"{name}_vote"] = list(votes)
    return out


def selectors(pool: Pool, known: Choosers) -> dict[str, np.ndarray]:
    """The chance that each selector's pick is right: name -> `[P]`."""
    groups = [kinds["sample"] for kinds in pool.values()]
    right = [is_right(rows) for rows in groups]
    answers = [[row["answer"] for row in rows] for rows in groups]
    values = {name: np.array(list(map(metrics.best_of_n, scores, right))) for name, scores in known.scores.items()}
    values |= {name: np.array(list(map(metrics.vote, answers, right, each))) for name, each in known.weights.items()}
    if all(kinds["greedy"] for kinds in pool.values()):
        values["greedy"] = np.array([np.mean(is_right(kinds["greedy"])) for kinds in pool.values()])
    return values


def num_tokens(pool: Pool) -> np.ndarray | None:
    """`[P]` mean generated tokens of a candidate; None where a candidate's are not known."""
    counts = [[row["num_tokens"] for row in kinds["sample"]] for kinds in pool.values()]
    if any(count is None for row in counts for count in row):
        return None
    return np.array([sum(row) / len(row) for row in counts])


def curve_values(pool: Pool, known: Choosers, *, seed: int) -> tuple[list[int], dict[str, np.ndarray]]:
    """The sizes n, and each selector's expected value with n candidates: name -> `[L, P]`.

    A closed form where the best one is picked; for votes all subsets, or seeded ones where there are many. A problem with
    fewer than n candidates has its all.
    """
    groups = [kinds["sample"] for kinds in pool.values()]
    right = [is_right(rows) for rows in groups]
    answers = [[row["answer"] for row in rows] for rows in groups]
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, rows in enumerate(groups):
        by_length[len(rows)].append(i)
    wanted = curves.sizes(max(by_length))
    out = {name: np.empty((len(wanted), len(groups))) for name in (*known.scores, *known.weights)}
    for num, members in by_length.items():
        right_PN = np.array([right[i] for i in members])
        for name, scores in known.scores.items():
            out[name][:, members] = curves.best_of_n_curve(np.array([scores[i] for i in members]), right_PN, wanted)
        for row, n in enumerate(wanted):
            subsets_SN = curves.subsets(num, min(n, num), seed=seed)
            for name, weights in known.weights.items():
                out[name][row, members] = [curves.mean_vote(answers[i], right[i], weights[i], subsets_SN) for i in members]
    return wanted, out


def curve_rows(pool: Pool, known: Choosers, bootstrap: metrics.Bootstrap, *, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Each selector's accuracy with n candidates, with its interval and the tokens that n candidates cost a problem."""
    wanted, values = curve_values(pool, known, seed=seed)
    tokens_P = num_tokens(pool)
    lengths_P = np.array([len(kinds["sample"]) for kinds in pool.values()])
    tokens = [None if tokens_P is None else round(float(np.mean(tokens_P * np.minimum(n, lengths_P))), 6) for n in wanted]
    return {
        name: [
            {"n": n, **bootstrap.mean(value_P), "tokens": spent}
            for n, value_P, spent in zip(wanted, value_LP, tokens, strict=True)
        ]
        for name, value_LP in values.items()
    }


def groups_of(pool: Pool, problems: Mapping[str, Row]) -> dict[str, dict[str, list[int]]]:
    """Table -> group -> which problems: by source, by the share of right candidates, by the mean number of steps."""
    tables: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in ("source", "difficulty", "steps")}
    steps: dict[int, list[int]] = defaultdict(list)
    for i, (key, kinds) in enumerate(pool.items()):
        share = float(np.mean(is_right(kinds["sample"])))
        quarter = str(int(share)) if share in (0.0, 1.0) else _QUARTERS[math.ceil(share * 4) - 1]
        tables["source"][problems[key]["source"]].append(i)
        tables["difficulty"][quarter].append(i)
        steps[math.floor(np.mean([len(row["steps"]) for row in kinds["sample"]]) + 0.5)].append(i)
    order = ("0", *_QUARTERS, "1")
    return {
        "source": dict(sorted(tables["source"].items())),
        "difficulty": {group: tables["difficulty"][group] for group in order if group in tables["difficulty"]},
        "steps": {str(num): steps[num] for num in sorted(steps)},
    }


def table_rows(
    values: Mapping[str, np.ndarray],
    groups: Mapping[str, Sequence[int]],
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
    clusters: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """One row a group: what the selectors are worth there, and what the reward model gains over a random pick."""
    out = []
    for group, members in groups.items():
        bootstrap = metrics.Bootstrap(
            len(members),
            num_resamples=min(num_resamples, _GROUP_RESAMPLES),
            confidence=confidence,
            seed=seed,
            clusters=None if clusters is None else [clusters[i] for i in members],
        )
        shown = {name: round(float(values[name][members].mean()), 6) for name in _SHOWN if name in values}
        gain = bootstrap.mean((values["prm"] - values["random"])[members], is_difference=True)
        out.append({"group": group, "num_problems": len(members), **shown, "gain": gain})
    return out


def split_metrics(
    pool: Pool,
    problems: Mapping[str, Row],
    scores: Mapping[str, Scores],
    choices: Mapping[str, Choice],
    aggregations: Sequence[str],
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
    clusters: Sequence[str] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What metrics.json says of one split, and every selector's values: name -> `[P]`.

    Args:
        scores, choices: scorer -> step scores, and how they become one; what is no built-in scorer is compared with `prm`.
        aggregations: those of the reward model, each reported.
        seed: of resamples, flips and subsets.
        clusters: `[P]` names of problems that are not independent.
    """
    drawn: dict[str, Any] = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed, "clusters": clusters}
    bootstrap = metrics.Bootstrap(len(pool), **drawn)
    known = choosers(pool, scores, choices)
    values = selectors(pool, known)
    others = [name for name in scores if name not in SCORERS]
    pairs = [*PAIRS, *(pair for name in others for pair in (("prm", name), ("prm_vote", f"{name}_vote"), (name, "random")))]
    pairs = [(a, b) for a, b in pairs if a in values and b in values]
    flips: dict[str, Any] = {"clusters": clusters, "num_flips": num_resamples, "seed": seed}
    tests = [significance.against_random if b == "random" else significance.paired_p for _, b in pairs]
    p = [test(values[a], values[b], **flips) for test, (a, b) in zip(tests, pairs, strict=True)]
    gap = values["oracle"] - values["random"]
    best = {how: best_of_n(pool, scores["prm"], how) for how in aggregations}
    said = {
        "num_problems": len(pool),
        "num_candidates": max(len(kinds["sample"]) for kinds in pool.values()),
        "selectors": {name: bootstrap.mean(array) for name, array in values.items()},
        "aggregations": {how: bootstrap.mean(array) for how, array in best.items()},
        "differences": [
            {
                "a": a,
                "b": b,
                **bootstrap.mean(values[a] - values[b], is_difference=True),
                "p": round(one, 6),
                "p_holm": round(all_of, 6),
            }
            for (a, b), one, all_of in zip(pairs, p, significance.holm(p), strict=True)
        ],
        "gap_closed": {
            name: bootstrap.ratio(values[name] - values["random"], gap) for name in ("prm", "prm_vote") if name in values
        },
        "curves": curve_rows(pool, known, bootstrap, seed=seed),
        "tables": {name: table_rows(values, groups, **drawn) for name, groups in groups_of(pool, problems).items()},
    }
    return said, values
