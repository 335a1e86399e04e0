"""Frozen pools, their selectors, curves and tables, on a pool small enough to work out by hand."""

import math

import numpy as np
import pytest

from components import metrics, selection
from components.errors import DataError
from components.selection import Choice, choosers, chosen, groups_of, pools, selectors, split_metrics

OPTIONS = {"num_resamples": 300, "confidence": 0.95, "seed": 0}
CHOICE = Choice("min", "mean")


def candidate(problem, index, answer, verdict, *, logprob=-1.0, num_tokens=10, steps=2, decoding="sample"):
    return {
        "candidate_id": f"{problem}/{decoding}/{index}",
        "split": "test",
        "problem_id": problem,
        "decoding": decoding,
        "index": index,
        "steps": ["a step"] * steps,
        "answer": answer,
        "verdict": verdict,
        "num_tokens": num_tokens,
        "logprob": logprob,
    }


ROWS = [
    candidate("p", 0, "4", "right", logprob=-4.0, num_tokens=20),
    candidate("p", 1, "5", "wrong", logprob=-3.0, num_tokens=10),
    candidate("p", 2, "5", "wrong", logprob=-5.0, num_tokens=40),
    candidate("q", 0, "7", "right", logprob=-1.0, num_tokens=10, steps=3),
    candidate("q", 1, None, "unknown", logprob=-2.0, num_tokens=30, steps=4),
    candidate("q", 2, "7", "right", logprob=-3.0, num_tokens=10, steps=4),
]
PROBLEMS = {"p": {"source": "one", "images": []}, "q": {"source": "two", "images": []}}
SCORES = {
    "p/sample/0": [0.9, 0.8],
    "p/sample/1": [0.9, 0.1],
    "p/sample/2": [0.3, 0.3],
    "q/sample/0": [0.5, 0.4],
    "q/sample/1": [0.6, 0.6],
    "q/sample/2": [],  # too long to be read
}


@pytest.fixture
def pool():
    return pools(ROWS, {"test": PROBLEMS})["test"]


def test_a_pool_must_fit_its_problems():
    with pytest.raises(DataError, match="answers a problem that is not in split 'test'"):
        pools([*ROWS, candidate("r", 0, "1", "right")], {"test": PROBLEMS})
    with pytest.raises(DataError, match="no candidates for problem r"):
        pools(ROWS, {"test": {**PROBLEMS, "r": {}}})
    greedy = [candidate(key, 0, "4", "right", decoding="greedy") for key in ("p", "q")]
    found = pools([*ROWS, *greedy, candidate("z", 0, "1", "right") | {"split": "elsewhere"}], {"test": PROBLEMS})
    assert [len(kinds["greedy"]) for kinds in found["test"].values()] == [1, 1]


def test_every_selector_by_hand(pool):
    values = selectors(pool, choosers(pool, {"prm": SCORES}, {"prm": CHOICE}))
    assert {name: value.tolist() for name, value in values.items()} == {
        "random": [1 / 3, 2 / 3],
        "likelihood": [0.0, 1.0],  # -3 wins in p, -1 in q
        "likelihood_mean": [0.0, 0.0],  # -5 / 40 in p, -2 / 30 in q
        "oracle": [1.0, 1.0],
        "prm": [1.0, 0.0],
        "majority": [0.0, 1.0],
        "prm_vote": [1.0, 1.0],  # .85 against .5 + .3 in p; in q only the first has an answer and was read
    }


def test_a_pool_without_likelihoods_or_tokens_lacks_their_selectors(pool):
    pool["p"]["sample"][1] = pool["p"]["sample"][1] | {"num_tokens": None}
    known = choosers(pool, {}, {})
    assert "likelihood" in known.scores
    assert "likelihood_mean" not in known.scores
    curves = selection.curve_rows(pool, known, metrics.Bootstrap(2, **OPTIONS), seed=0)
    assert [row["tokens"] for row in curves["random"]] == [None, None, None]
    for missing in (None, math.nan, -math.inf):
        pool["p"]["sample"][1] = pool["p"]["sample"][1] | {"logprob": missing}
        assert not {"likelihood", "likelihood_mean"} & set(choosers(pool, {}, {}).scores)


def test_a_scorer_that_read_a_part_of_the_pool_only_is_no_selector(pool):
    part = {key: steps for key, steps in SCORES.items() if key.startswith("p")}
    assert "shuffled" not in choosers(pool, {"shuffled": part}, {"shuffled": CHOICE}).scores


def test_the_aggregation_is_the_best_one_on_dev(pool):
    assert chosen(pool, SCORES, ("last", "min", "mean")) == Choice("last", "last")  # all alike: the first
    late = {**SCORES, "p/sample/0": [0.1, 0.9], "p/sample/1": [0.4, 0.5]}  # min finds the wrong one, last and mean the right
    assert chosen(pool, late, ("min", "mean", "last")).best == "mean"


def test_a_curve_ends_at_the_selectors_own_value_and_begins_at_the_random_pick(pool):
    known = choosers(pool, {"prm": SCORES}, {"prm": CHOICE})
    wanted, values = selection.curve_values(pool, known, seed=0)
    assert wanted == [1, 2, 3]
    whole = selectors(pool, known)
    for name, value_LP in values.items():
        assert value_LP[-1].tolist() == pytest.approx(whole[name].tolist()), name
    for name in ("random", "likelihood", "oracle", "prm", "majority"):
        assert values[name][0].tolist() == pytest.approx([1 / 3, 2 / 3]), name
    assert values["oracle"][1].tolist() == pytest.approx([2 / 3, 1.0])
    assert values["prm"][1].tolist() == pytest.approx([2 / 3, 1 / 3])  # in q the unread one is never before a read one
    assert values["majority"][1].tolist() == pytest.approx([(0.5 + 0.5 + 0.0) / 3, 1.0])


def test_problems_with_fewer_candidates_have_all_of_theirs(pool):
    del pool["q"]["sample"][1:]
    known = choosers(pool, {"prm": SCORES}, {"prm": CHOICE})
    rows = selection.curve_rows(pool, known, metrics.Bootstrap(2, **OPTIONS), seed=0)
    assert [(row["n"], row["mean"]) for row in rows["prm"]] == [(1, 0.666667), (2, 0.833333), (3, 1.0)]
    mean = (20 + 10 + 40) / 3
    assert [row["tokens"] for row in rows["prm"]] == pytest.approx([(n * mean + 10) / 2 for n in (1, 2, 3)], abs=1e-6)


def test_problems_fall_into_groups_by_source_difficulty_and_steps(pool):
    assert groups_of(pool, PROBLEMS) == {
        "source": {"one": [0], "two": [1]},
        "difficulty": {"0.25-0.5": [0], "0.5-0.75": [1]},
        "steps": {"2": [0], "4": [1]},
    }


@pytest.mark.parametrize(
    ("num_right", "group"),
    [(0, "0"), (1, "0-0.25"), (2, "0-0.25"), (3, "0.25-0.5"), (4, "0.25-0.5"), (6, "0.5-0.75"), (7, "0.75-1"), (8, "1")],
)
def test_every_share_of_right_candidates_has_its_difficulty(num_right, group):
    rows = [candidate("p", i, "4", "right" if i < num_right else "wrong") for i in range(8)]
    pool = pools(rows, {"test": {"p": PROBLEMS["p"]}})["test"]
    assert list(groups_of(pool, PROBLEMS)["difficulty"]) == [group]


def many(num_problems, rng):
    rows, scores, orm = [], {}, {}
    for i in range(num_problems):
        for j in range(4):
            is_right = bool(rng.random() < 0.5)
            row = candidate(f"p{i}", j, "4" if is_right else str(rng.integers(5, 7)), "right" if is_right else "wrong")
            rows.append(row)
            scores[row["candidate_id"]] = [0.5, float(rng.normal(is_right, 0.5))]
            orm[row["candidate_id"]] = [0.5, float(rng.normal(is_right, 3))]
    problems = {f"p{i}": {"source": f"source {i % 2}", "images": []} for i in range(num_problems)}
    return pools(rows, {"test": problems})["test"], problems, scores, orm


def test_what_is_said_of_a_split_holds_together():
    pool, problems, scores, orm = many(60, np.random.default_rng(0))
    choices = {"prm": Choice("last", "last"), "orm": Choice("last", "last")}
    said, values = split_metrics(pool, problems, {"prm": scores, "orm": orm}, choices, ("last", "min"), **OPTIONS)
    assert set(said["selectors"]) == set(values) == {*said["curves"]}
    for name, rows in said["curves"].items():
        assert {k: rows[-1][k] for k in ("mean", "low", "high")} == said["selectors"][name]
    pairs = [(row["a"], row["b"]) for row in said["differences"]]
    assert {("prm", "random"), ("prm", "orm"), ("prm_vote", "orm_vote"), ("orm", "random")} <= set(pairs)
    for row in said["differences"]:
        assert row["mean"] == pytest.approx(float(np.mean(values[row["a"]] - values[row["b"]])), abs=1e-6)
        assert 0 <= row["p"] <= row["p_holm"] <= 1
        if row["low"] > 0.02:
            assert row["p"] < 0.05
    for rows in said["tables"].values():
        assert sum(row["num_problems"] for row in rows) == 60
        for name in ("random", "majority", "prm", "oracle"):
            whole = sum(row[name] * row["num_problems"] for row in rows) / 60
            assert whole == pytest.approx(said["selectors"][name]["mean"], abs=1e-6)
        assert all(row["gain"]["mean"] == pytest.approx(row["prm"] - row["random"], abs=2e-6) for row in rows)


def test_clusters_widen_what_is_said():
    pool, problems, scores, _ = many(60, np.random.default_rng(1))
    copies, all_problems, all_scores = {}, {}, {}
    for copy in range(4):  # the same four times over: no news
        for key, kinds in pool.items():
            rows = [row | {"candidate_id": f"{copy}{row['candidate_id']}"} for row in kinds["sample"]]
            copies[f"{copy}{key}"] = {"sample": rows, "greedy": []}
            all_problems[f"{copy}{key}"] = problems[key]
        all_scores |= {f"{copy}{key}": steps for key, steps in scores.items()}
    choices, clusters = {"prm": Choice("last", "last")}, [key[1:] for key in copies]
    more = OPTIONS | {"num_resamples": 2000}
    once, _ = split_metrics(pool, problems, {"prm": scores}, choices, ("last",), **more)
    apart, _ = split_metrics(copies, all_problems, {"prm": all_scores}, choices, ("last",), **more)
    together, _ = split_metrics(copies, all_problems, {"prm": all_scores}, choices, ("last",), **more, clusters=clusters)

    def width(said):
        return said["differences"][0]["high"] - said["differences"][0]["low"]

    assert width(together) == pytest.approx(width(once), rel=0.05)
    assert width(apart) == pytest.approx(width(once) / 2, rel=0.1)
    p = [said["differences"][1]["p"] for said in (once, apart, together)]  # prm - majority
    assert p[2] == pytest.approx(p[0], abs=0.03)
    assert p[1] <= p[0]
