"""The controls on reward models made by hand: each planted fault is flagged by the shipped policy, a noisy oracle is not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import NormalDist
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import controls, metrics, selection
from components.controls import CONTROLS, NAMES, measure
from components.decision import Control, Evidence, decide, load_policy
from components.prm import Reading
from components.records import bytes_digest, seed_for

POLICY = load_policy(Path(__file__).parents[2] / "mlflow" / "policy.yaml")
FILLERS = ("", "", "so ", "we then see that ")

# A small world: a picture holds the values of some names, a solution reads them, adds them up and answers.


def world(seed, num_problems=60, num_candidates=8):
    """(problems, pool): candidates with wrong readings and sums, some wordier than others."""
    rng = np.random.default_rng(seed)
    problems, rows = {}, []
    for p in range(num_problems):
        values = {name: int(rng.integers(1, 10)) for name in "abcd"[: rng.integers(2, 5)]}
        key = f"p{p}"
        picture = json.dumps(values).encode()
        question = "the sum of " + " ".join(values)
        problems[key] = {
            "problem_id": key,
            "source": "s",
            "question": question,
            "images": [{"bytes": picture, "path": None}],
        }
        for c in range(num_candidates):
            read = {name: value + int(rng.random() < 0.15) for name, value in values.items()}
            steps = [f"{name} = {value}" for name, value in read.items()]
            total, *rest = read.values()
            for value in rest:
                result = total + value + int(rng.random() < 0.05)
                steps.append(f"{total} + {value} = {result}")
                total = result
            steps = [FILLERS[rng.integers(len(FILLERS))] + step for step in (*steps, f"answer = {total}")]
            verdict = "right" if total == sum(values.values()) else "wrong"
            row = {"candidate_id": f"{p}/{c}", "split": "test", "problem_id": key, "decoding": "sample", "steps": steps}
            rows.append({**row, "verdict": verdict})
    return problems, selection.pools(rows, {"test": problems})["test"]


def judged(reading, *, sees):
    """What a strict reader thinks of each step so far: 1 right, -1 wrong, 0 cannot say."""
    values = json.loads(reading.images[0])
    numbers, is_wrong, result, out = set(), False, None, []
    for step in reading.steps:
        verdict = 0
        if found := re.search(r"(\d+) \+ (\d+) = (\d+)", step):
            a, b, result = map(int, found.groups())
            is_wrong |= a + b != result or not {a, b} <= numbers
            numbers.add(result)
            verdict = 1
        elif found := re.search(r"answer = (\d+)", step):
            if result is not None:
                is_wrong |= int(found[1]) != result
                verdict = 1
        elif found := re.search(r"\b([a-d]) = (\d+)", step):
            numbers.add(int(found[2]))
            is_wrong |= sees and values.get(found[1]) != int(found[2])
            verdict = int(sees)
        out.append(-1 if is_wrong else verdict)
    return out


def noise(reading, place, seed, size=1.0):
    text = (bytes_digest(reading.images[0]), reading.question, *reading.steps[: place + 1])
    return size * NormalDist().inv_cdf((seed_for(seed, "noise", *text) + 0.5) / 2**63)


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def characters(reading):
    return sum(map(len, reading.steps))


def oracle(seed, sees=True, bonus=lambda reading: 0.0):
    """A noisy reader of steps; `bonus` is what else it pays for, in logits."""

    def scorer(readings):
        return [
            [sigmoid(2 * v + noise(r, i, seed) + bonus(r)) for i, v in enumerate(judged(r, sees=sees))] for r in readings
        ]

    return scorer


def answer_only(seed):
    """Every step is scored by the last one: whether the answer is right."""

    def logit(reading):
        found = re.search(r"answer = (\d+)", reading.steps[-1])
        right = found and int(found[1]) == sum(json.loads(reading.images[0]).values())
        alone = Reading(reading.question, reading.images, reading.steps[-1:])
        return (2 if right else -2) + noise(alone, 0, seed)

    return lambda readings: [[sigmoid(logit(r))] * len(r.steps) for r in readings]


def last_means(seed, early):
    """The last step's score judges the whole, those before it mean nothing."""
    whole = oracle(seed)

    def scorer(readings):
        return [
            [early(r, i) for i in range(len(scores) - 1)] + scores[-1:]
            for r, scores in zip(readings, whole(readings), strict=True)
        ]

    return scorer


def has_format(reading):
    return float(any(mark in step for mark in ("Step ", "**", "boxed") for step in reading.steps))


PLANTED = {
    "longer is better": lambda s: (
        lambda rs: [[sigmoid(characters(r) / 15 - 4 + noise(r, i, s, 0.3)) for i in range(len(r.steps))] for r in rs]
    ),
    "right and longer is better": lambda s: oracle(s, bonus=lambda r: characters(r) / 15 - 4),
    "the answer alone": answer_only,
    "the last score alone, noise before": lambda s: last_means(s, lambda r, i: sigmoid(noise(r, i, s + 1, 2.0))),
    "the last score alone, trust before": lambda s: last_means(s, lambda r, i: 0.98),
    "blind": lambda s: oracle(s, sees=False),
    "bold, numbered or boxed is better": lambda s: oracle(s, bonus=lambda r: 2 * has_format(r)),
    "boxed is better": lambda s: oracle(s, bonus=lambda r: 2.0 * ("boxed" in r.steps[-1])),
    "empty is better": lambda s: oracle(s, bonus=lambda r: 4 - characters(r) / 10),
    "nothing said is best": lambda s: oracle(s, bonus=lambda r: 6.0 * (max(map(len, r.steps)) < 2)),
}


def measured(scorer, seed, num_problems=60, **settings):
    """The controls of a scorer in a world of this seed, its aggregation chosen on another one, as evaluate does."""

    def scored(problems, pool, pictures):
        rows = [row for kinds in pool.values() for row in kinds["sample"]]
        readings = [
            Reading(
                problems[r["problem_id"]]["question"], (pictures[r["problem_id"]]["images"][0]["bytes"],), tuple(r["steps"])
            )
            for r in rows
        ]
        return {row["candidate_id"]: scores for row, scores in zip(rows, scorer(readings), strict=True)}

    problems, pool = world(seed + 1000, 40)
    scores = scored(problems, pool, problems)
    picked = {how: float(selection.best_of_n(pool, scores, how).mean()) for how in ("min", "product", "mean", "last")}
    problems, pool = world(seed, num_problems)
    scores = {
        "prm": scored(problems, pool, problems),
        "shuffled": scored(problems, pool, selection.shuffled(problems, seed)),
    }
    usual = {"num_problems": num_problems, "num_resamples": 400, "confidence": 0.95, "seed": seed}
    aggregations = {"prm": metrics.chosen_aggregation(picked)}
    return measure(scorer, pool, problems, scores, aggregations=aggregations, **{**usual, **settings})


def flags(found, environment="staging"):
    """Which controls of the shipped policy refuse."""
    reasons = decide(Evidence("p", "t", {"controls": found}, {}, {}), None, POLICY, environment).reasons
    return {r.gate.removeprefix("control ") for r in reasons if r.gate.startswith("control ") and not r.passed}


EXPECTED = {
    "longer is better": {"length", "padding", "picture"},
    "right and longer is better": {"length", "format"},
    "the answer alone": {"answer_only"},
    "the last score alone, noise before": {"before_last"},
    "the last score alone, trust before": {"before_last", "last_minimum"},
    "blind": {"picture"},
    "bold, numbered or boxed is better": {"format"},
    "boxed is better": {"format"},
    "empty is better": {"empty"},
    "nothing said is best": {"empty"},
}


def test_a_noisy_oracle_is_not_flagged():
    assert flags(measured(oracle(0), 0)) == set()


@pytest.mark.parametrize("fault", PLANTED)
def test_each_planted_fault_is_flagged_by_what_looks_for_it(fault):
    found = measured(PLANTED[fault](0), 0)
    assert EXPECTED[fault] <= flags(found)
    assert flags(found, "prod") >= flags(found)


@pytest.mark.slow
def test_over_twenty_worlds_faults_are_found_and_the_oracle_goes_free():
    num_flagged = {
        name: sum(bool(flags(measured(made(seed), seed))) for seed in range(20))
        for name, made in {"oracle": oracle, **PLANTED}.items()
    }
    assert num_flagged.pop("oracle") <= 1
    assert min(num_flagged.values()) >= 19, num_flagged


# Alterations

STEPS = st.lists(st.text("ab1 =", min_size=1, max_size=5), min_size=1, max_size=6).map(tuple)


@given(STEPS, st.integers(0, 2**32))
def test_an_alteration_says_what_it_says_of_any_steps(steps, seed):
    def altered(alter):
        return alter("q", steps, np.random.default_rng(seed))

    other = altered(controls.reordered)
    if other is None:
        assert len(set(steps[:-1])) < 2
    else:
        assert other[1] != steps
        assert other[1][-1] == steps[-1]
        assert sorted(other[1]) == sorted(steps)
    question, padded = altered(controls.padded)
    assert (question, len(padded), padded[-1], padded[:-2]) == ("q", len(steps) + 1, steps[-1], steps[:-1])
    assert padded[-2] in (steps[:-1] or steps)
    assert altered(controls.only_last) == (None if len(steps) == 1 else ("q", steps[-1:]))
    assert altered(controls.truncated) == (None if len(steps) == 1 else ("q", steps[:-1]))
    for alter in (controls.numbered, controls.bold, controls.boxed):
        question, formatted = altered(alter)
        assert all(step in new for step, new in zip(steps, formatted, strict=True))
        assert alter("q", formatted, np.random.default_rng(seed)) is None  # what has that form is left alone
    assert altered(controls.dots) == ("q", (".",) * len(steps))
    assert altered(controls.framed)[0] != "q"
    assert altered(controls.framed)[1] == steps


# Comparisons, by hand


def group(step_scores, is_right, steps=None, how="min", has_picture=True):
    return controls.Group(
        [tuple(f"{i}{j}" for j, _ in enumerate(row)) for i, row in enumerate(step_scores)] if steps is None else steps,
        is_right,
        step_scores,
        [metrics.aggregate(row, how) for row in step_scores],
        [metrics.aggregate(row[:-1], how) for row in step_scores],
        has_picture,
    )


def test_comparisons_of_one_problem_are_those_worked_out_by_hand():
    one = group([[0.9, 0.8], [0.7, 0.2], [0.6, 0.6], [], [0.3, 0.3, 0.1]], [True, False, False, False, False])
    # as read 0.8 is picked: right. Altered, 0.9 is picked: wrong.
    assert controls.best_of_n_lost(one, [0.1, 0.9, None, None, 0.2]) == (1.0, 1.0)
    # the one that could not be altered keeps its 0.6 and is picked
    assert controls.best_of_n_lost(one, [0.5, 0.5, None, None, 0.2]) == (1.0, 1.0)
    assert controls.best_of_n_lost(one, [None] * 5) == (0.0, 0.0)
    assert controls.unseen_gain(one, [0.4, 0.1, 0.4, -math.inf, 0.2]) == (0.5 - 0.2, 1.0)
    # of the wrong ones 0.2 rises to 0.9 and 0.6 does not; one was not read; 0.1 moves by less than what is told apart
    assert controls.rises(one, [0.0, 0.9, 0.5, 0.5, 0.10005]) == (1.0, 3.0)
    assert controls.beats(one, [0.7, 0.0, 0.0, None, 0.0]) == (1.0, 1.0)
    assert controls.beats(one, [0.8, 0.0, 0.0, None, 0.0]) == (0.5, 1.0)
    total, number = controls.moves(one, [0.7, 0.3, None, 0.5, 0.1])
    assert (round(total, 9), number) == (0.2, 3.0)
    # of the wrong ones: the last is lowest; both are; not read; the last is lowest
    assert controls.last_is_lowest(one, []) == (2.5, 3.0)
    # before the last: 0.9 right, 0.7, 0.6, none, 0.3: right, against a chance of one in four
    assert controls.early_gain(one, []) == (0.75, 1.0)
    assert controls.early_gain(group([[0.5], []], [True, False]), []) == (0.0, 0.0)
    blank = group([[0.9], [0.1]], [True, False], has_picture=False)
    assert controls.picture_lost(blank, [0.1, 0.9]) == controls.unseen_gain(blank, [0.1, 0.9]) == (0.0, 0.0)


def test_length_is_ranked_among_equally_right_texts_only():
    steps = [("a",), ("bb",), ("cccc",), ("cccc",), ("d",), ("eee",)]
    scores = [[0.1], [0.2], [0.3], [0.3], [0.9], [0.5]]
    is_right = [False, False, False, False, True, True]
    # wrong: three texts in order of length, rho 1 with weight 2; right: two against it, rho -1 with weight 1
    total, weight = controls.longer_is_higher(group(scores, is_right, steps, how="last"), [])
    assert (round(total, 12), weight) == (1.0, 3.0)
    equal = [("a",), ("b",)]
    assert controls.longer_is_higher(group([[0.1], [0.2]], [True, True], equal), []) == (0.0, 0.0)
    assert controls.longer_is_higher(group([[0.2], [0.2]], [True, True], [("a",), ("bb",)]), []) == (0.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=8))
def test_the_rank_correlation_is_that_of_mean_ranks(pairs):
    def ranks(values):
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    a, b = (ranks([pair[i] for pair in pairs]) for i in (0, 1))
    found = controls._rank_correlation(*zip(*pairs, strict=True))
    if len(set(a)) < 2 or len(set(b)) < 2:
        assert found == 0.0
    else:
        assert found == pytest.approx(float(np.corrcoef(a, b)[0, 1]), abs=1e-9)


# The suite


def test_every_control_is_measured_or_says_why_not():
    found = measured(oracle(1), 1, 12)
    names = [row["name"] for row in found["measures"]]
    assert [name for name in NAMES if name not in found["absent"]] == names
    assert found["absent"] == {"blind": "these candidates were not scored by 'blind'"}
    for row in found["measures"]:
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["num"] > 0
        assert row["says"].endswith(".")
    assert found == measured(oracle(1), 1, 12)


def test_without_a_sample_nothing_is_read_again_and_the_rest_is_measured():
    def deaf(readings):
        raise AssertionError("asked")

    problems, pool = world(0, 10)
    scores = {row["candidate_id"]: [0.5] * len(row["steps"]) for kinds in pool.values() for row in kinds["sample"]}
    settings = {"num_problems": 0, "num_resamples": 50, "confidence": 0.95, "seed": 0}
    found = measure(deaf, pool, problems, {"prm": scores, "blind": scores}, aggregations={"prm": "min"}, **settings)
    assert [row["name"] for row in found["measures"]] == ["before_last", "blind", "length", "last_minimum"]
    assert {found["absent"][control.name] for control in CONTROLS if control.alterations} == {
        "evaluate.control_problems is 0"
    }
    assert {row["name"]: row["mean"] for row in found["measures"]}["blind"] == 0.0


def test_solutions_of_one_step_and_problems_without_pictures_lack_what_they_cannot_show():
    problems, pool = world(0, 6)
    for row in (row for kinds in pool.values() for row in kinds["sample"]):
        row["steps"] = row["steps"][-1:]
    problems = {key: {**row, "images": []} for key, row in problems.items()}
    scores = {row["candidate_id"]: [0.5] for kinds in pool.values() for row in kinds["sample"]}
    known = {"prm": scores, "shuffled": scores, "blind": scores}
    settings = {"num_problems": 6, "num_resamples": 50, "confidence": 0.95, "seed": 0}
    found = measure(lambda rs: [[0.5]] * len(rs), pool, problems, known, aggregations={"prm": "min"}, **settings)
    assert {name: found["absent"][name] for name in ("answer_only", "before_last", "picture", "shuffled", "blind")} == {
        "answer_only": "no problem has a solution of several steps",
        "before_last": "no problem has a solution of several steps",
        "picture": "no problem has a picture",
        "shuffled": "no problem has a picture",
        "blind": "no problem has a picture",
    }
    refusals = decide(Evidence("p", "t", {"controls": found}, {}, {}), None, POLICY, "staging").reasons
    (answer_only,) = [reason for reason in refusals if reason.gate == "control answer_only"]
    assert answer_only.seen == "missing: no problem has a solution of several steps"
    assert not answer_only.passed


def test_what_is_too_long_once_altered_is_not_compared():
    def short(readings):
        return [[] if len(r.steps) > 6 else [0.5] * len(r.steps) for r in readings]

    problems, pool = world(0, 10)
    rows = [row for kinds in pool.values() for row in kinds["sample"]]
    scores = {row["candidate_id"]: [0.5] * len(row["steps"]) if len(row["steps"]) <= 6 else [] for row in rows}
    settings = {"num_problems": 10, "num_resamples": 50, "confidence": 0.95, "seed": 0}
    found = measure(short, pool, problems, {"prm": scores}, aggregations={"prm": "min"}, **settings)
    assert "padding" in found["absent"]  # six steps and one said again are seven
    (empty,) = [row for row in found["measures"] if row["name"] == "empty"]
    assert (empty["mean"], empty["num"]) == (
        0.5,
        sum(row["verdict"] == "right" and len(row["steps"]) <= 6 for row in rows),
    )


def test_what_could_not_be_read_is_no_better_for_being_cut():
    def last_alone(readings):
        assert all(len(r.steps) > 1 or r.steps == (".",) or not r.steps[0].startswith("long") for r in readings)
        return [[0.5] * len(r.steps) for r in readings]

    problems, pool = world(0, 10)
    scores = {}
    for row in (row for kinds in pool.values() for row in kinds["sample"]):
        is_long = row["candidate_id"].endswith("/0")
        row["steps"] = [f"long {row['candidate_id']} {step}" for step in row["steps"]] if is_long else row["steps"]
        scores[row["candidate_id"]] = [] if is_long else [0.5] * len(row["steps"])
    settings = {"num_problems": 10, "num_resamples": 50, "confidence": 0.95, "seed": 0}
    found = measure(last_alone, pool, problems, {"prm": scores}, aggregations={"prm": "min"}, **settings)
    (answer_only,) = [row for row in found["measures"] if row["name"] == "answer_only"]
    assert (answer_only["mean"], answer_only["low"], answer_only["high"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("num_problems", [1, 6])
def test_what_one_problem_or_one_cluster_says_has_no_interval_and_passes_no_gate(num_problems):
    found = measured(oracle(0), 0, num_problems, clusters=["one picture"] * num_problems)
    assert found["measures"] == []
    reasons = {row for name, row in found["absent"].items() if name not in ("blind", "steps_shuffled", "padding", "format")}
    assert any("there is no interval" in reason for reason in reasons)
    asked = {control.name for control in POLICY.environments.staging.controls}
    assert flags(found) == asked


def test_a_problem_is_altered_alike_in_whatever_sample_it_is():
    problems, pool = world(0, 12)
    seen = []

    def scorer(readings):
        seen.append(set(readings))
        return [[0.5] * len(r.steps) for r in readings]

    scores = {row["candidate_id"]: [0.5] * len(row["steps"]) for kinds in pool.values() for row in kinds["sample"]}
    for num in (12, 5):
        settings = {"num_problems": num, "num_resamples": 50, "confidence": 0.95, "seed": 0}
        found = measure(scorer, pool, problems, {"prm": scores}, aggregations={"prm": "min"}, **settings)
        assert found["num_problems"] == num
    assert seen[1] < seen[0]


def test_problems_that_share_a_picture_are_drawn_together():
    found = [measured(oracle(2), 2, 40, clusters=names) for names in (None, [str(i // 10) for i in range(40)])]
    widths = [[row["high"] - row["low"] for row in one["measures"]] for one in found]
    assert [row["mean"] for row in found[0]["measures"]] == [row["mean"] for row in found[1]["measures"]]
    assert widths[0] != widths[1]


# The gate


def test_the_gate_and_the_suite_know_the_same_names():
    assert get_args(Control.model_fields["name"].annotation) == NAMES
    assert len(set(NAMES)) == len(NAMES)


ROW = {"name": "length", "mean": 0.2, "low": 0.1, "high": 0.3, "num": 30}


@pytest.mark.parametrize(
    ("asked", "change", "passed"),
    [
        ({"low_above": 0.09}, {}, True),
        ({"low_above": 0.1}, {}, False),
        ({"high_below": 0.31}, {}, True),
        ({"high_below": 0.3}, {}, False),
        ({"min_mean": 0.2, "max_mean": 0.2}, {}, True),
        ({"min_mean": 0.21}, {}, False),
        ({"max_mean": 0.19}, {}, False),
        ({"max_mean": 1.0}, {"num": 29}, False),
        ({"max_mean": 1.0, "min_num": 29}, {"num": 29}, True),
        ({"max_mean": 1.0}, {"num": ...}, False),
        ({"max_mean": 1.0}, {"mean": float("nan")}, False),
        ({"max_mean": 1.0}, {"name": "padding"}, False),
    ],
)
def test_a_gate_on_a_control_answers_by_its_limits(asked, change, passed):
    gates = json.loads(POLICY.environments.staging.model_dump_json())
    gates["controls"] = [{"name": "length", **asked}]
    policy = type(POLICY).model_validate({"version": 1, "environments": {"staging": gates, "prod": gates}})
    row = {key: value for key, value in {**ROW, **change}.items() if value is not ...}
    reasons = decide(Evidence("p", "t", {"controls": {"measures": [row]}}, {}, {}), None, policy, "staging").reasons
    assert [reason.passed for reason in reasons if reason.gate == "control length"] == [passed]


def test_a_gate_that_asks_nothing_is_no_gate():
    with pytest.raises(ValueError, match="it asks nothing"):
        Control(name="length")
