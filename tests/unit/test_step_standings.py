"""Numbers of step scores, against the same metrics worked out on the flat steps, closed forms and simulation."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import metrics
from components.errors import DataError
from components.step_benchmarks import STEP_BENCHMARKS, Case
from components.step_standings import (
    Counts,
    chosen_threshold,
    crossed_thresholds,
    standings,
    trivial,
    weighted_aurocs,
)

VISUAL, PROCESS, PRM = (STEP_BENCHMARKS[name] for name in ("visualprocessbench", "processbench", "prmbench"))

labelled = st.lists(
    st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, 4)), min_size=1, max_size=5),
    min_size=2,
    max_size=12,
)


def made(rows, groups=("",)):
    cases = [
        Case(str(i), f"question {i}", tuple("s" for _ in row), tuple(label for label, _ in row), groups[i % len(groups)])
        for i, row in enumerate(rows)
    ]
    return cases, [[score / 4 for _, score in row] for row in rows]


def flat(cases, scores):
    pairs = [(s, t) for case, row in zip(cases, scores, strict=True) for s, t in zip(row, case.labels, strict=True)]
    return [s for s, t in pairs if t is not None], [t for _, t in pairs if t is not None]


@given(labelled)
def test_pooled_numbers_are_those_of_the_flat_steps(rows):
    cases, scores = made(rows)
    values, truth = flat(cases, scores)
    (overall, *_) = standings(VISUAL, cases, scores, np.full(len(cases), 0.5), num_resamples=20)
    assert overall.num_steps == len(values)
    if not values:
        return
    expected = metrics.f1_scores(np.array(values) > 0.5, np.array(truth))
    for name in ("macro_f1", "f1_right", "f1_wrong"):
        assert overall.numbers[name]["mean"] == pytest.approx(expected[name], abs=2e-6)
    auroc = metrics.auroc(values, truth)
    if auroc is None:
        assert overall.numbers["auroc"] is None
    else:
        assert overall.numbers["auroc"]["mean"] == pytest.approx(auroc, abs=2e-6)
    assert overall.wrong_frac == pytest.approx(1 - np.mean(truth), abs=2e-6)


@given(labelled)
def test_first_errors_are_those_of_processbench(rows):
    rows = [[(label is not False, score) for label, score in row] for row in rows]
    cases, scores = made(rows)
    found = Counts(cases, scores, np.full(len(cases), 0.5)).first_error_f1(np.ones(len(cases)))
    truth = [list(case.labels) for case in cases]
    expected = metrics.first_error_f1(scores, truth, 0.5)
    assert np.isnan(found) if expected is None else found == pytest.approx(expected)


def test_the_mean_of_the_subsets_counts_them_alike():
    easy = [Case(f"a{i}", f"a{i}", ("x",), (i % 2 == 0,), "a") for i in range(4)]
    hard = [Case(f"b{i}", f"b{i}", ("x",), (i % 2 == 0,), "b") for i in range(40)]
    scores = [[1.0 if case.labels[0] else 0.0] for case in easy] + [[1.0] for _ in hard]
    overall, first, second = standings(PROCESS, easy + hard, scores, np.full(44, 0.5), num_resamples=50)
    assert (first.numbers["first_error_f1"]["mean"], second.numbers["first_error_f1"]["mean"]) == (1.0, 0.0)
    assert overall.numbers["first_error_f1"]["mean"] == 0.5


def test_untouched_originals_of_prmbench_are_shown_and_not_counted():
    cases = [Case(f"c{i}", f"q{i}", ("x", "y"), (True, False), "circular") for i in range(3)]
    originals = [Case(f"o{i}", f"q{i}", ("x",), (True,), "correct", is_extra=True) for i in range(2)]
    scores = [[1.0, 0.0]] * 3 + [[0.0]] * 2
    found = {one.group: one for one in standings(PRM, cases + originals, scores, np.full(5, 0.5), num_resamples=20)}
    assert found["all"].num_cases == 3
    assert found["all"].numbers["prm_score"]["mean"] == 1.0
    assert found["correct"].numbers["f1_right"]["mean"] == 0.0


def test_the_trivial_baselines_are_those_that_were_published():
    share = 0.6835  # of right steps in VisualProcessBench, from 2q / (1 + q) / 2 = 40.6 %
    num_right = round(share * 10_000)
    cases = [Case("a", "?", ("s",) * 10_000, (True,) * num_right + (False,) * (10_000 - num_right))]
    found = trivial(cases, "macro_f1")
    assert {name: round(100 * value, 1) for name, value in found.items()} == {
        "all right": 40.6,
        "coin": 48.3,
        "prior": 50.0,
    }


def test_a_coins_first_error_is_a_chance_of_its_place():
    cases = [Case("a", "?", ("x", "y", "z"), (True, False, True)), Case("b", "?", ("x", "y"), (True, True))]
    found, spared = 0.5**2, 0.5**2
    assert trivial(cases, "first_error_f1")["coin"] == pytest.approx(2 * found * spared / (found + spared))
    assert trivial(cases, "first_error_f1")["all right"] == 0.0


@given(labelled)
def test_weighted_aurocs_are_those_of_repeated_cases(rows):
    cases, scores = made(rows)
    weights = np.array([[(i * 7 + r) % 3 for i in range(len(cases))] for r in range(4)], dtype=float)
    triples = [
        (s, t, i)
        for i, (case, row) in enumerate(zip(cases, scores, strict=True))
        for s, t in zip(row, case.labels, strict=True)
        if t is not None
    ]
    if not triples:
        return
    values, truth, index = (np.array(part) for part in zip(*triples, strict=True))
    found = weighted_aurocs(values, truth.astype(bool), index.astype(int), weights)
    for r in range(4):
        repeated = [(s, t) for s, t, i in triples for _ in range(int(weights[r, i]))]
        expected = metrics.auroc([s for s, _ in repeated], [t for _, t in repeated]) if repeated else None
        assert np.isnan(found[r]) if expected is None else found[r] == pytest.approx(expected)


@given(labelled, st.sampled_from(["macro_f1", "first_error_f1"]))
def test_no_threshold_is_better_than_the_chosen_one(rows, metric):
    cases, scores = made(rows)
    ones = np.ones(len(cases))

    def value(threshold):
        return float(np.nan_to_num(Counts(cases, scores, np.full(len(cases), threshold)).metric(metric, ones)))

    chosen = value(chosen_threshold(cases, scores, metric))
    seen = {score for row in scores for score in row}
    between = [t for t in np.arange(0.125, 1.0, 0.25) if min(seen) <= t < max(seen)]
    assert chosen >= max([value(t) for t in between], default=0.0) - 1e-12


def test_a_threshold_never_sees_the_labels_of_its_own_half():
    rng = np.random.default_rng(0)
    rows = [[(bool(rng.random() < 0.6), int(rng.integers(0, 5))) for _ in range(4)] for _ in range(40)]
    cases, _ = made(rows)
    scores = rng.random((40, 4)).tolist()
    threshold = crossed_thresholds(cases, scores, "macro_f1")
    assert len(set(threshold.tolist())) == 2
    half = threshold == threshold[0]
    turned = [
        replace(case, labels=tuple(not label for label in case.labels)) if half[i] else case for i, case in enumerate(cases)
    ]
    assert (crossed_thresholds(turned, scores, "macro_f1")[half] == threshold[half]).all()
    with pytest.raises(DataError, match="all cases are of one problem"):
        crossed_thresholds([replace(case, question="?") for case in cases], scores, "macro_f1")


def test_cases_of_one_problem_are_drawn_together():
    cases = [Case(str(i), f"q{i // 10}", ("x", "y"), (True, False)) for i in range(40)]
    scores = [[1.0, 0.0] if i // 10 < 2 else [0.0, 1.0] for i in range(40)]
    (together,) = standings(VISUAL, cases, scores, np.full(40, 0.5), num_resamples=400)
    alone = [replace(case, question=case.id) for case in cases]
    (apart,) = standings(VISUAL, alone, scores, np.full(40, 0.5), num_resamples=400)

    def width(one):
        return one.numbers["macro_f1"]["high"] - one.numbers["macro_f1"]["low"]

    assert width(together) > 2 * width(apart)
    assert together.numbers["macro_f1"]["mean"] == apart.numbers["macro_f1"]["mean"]


def test_intervals_hold_what_they_promise():
    """Macro F1 of a scorer that is right about a step with chance 0.8, on fresh problems each time."""
    rng, hits, num_trials = np.random.default_rng(1), 0, 120
    truth = 0.8  # both kinds are equally frequent and equally often found: F1 of each is 0.8
    for _ in range(num_trials):
        labels = rng.random((60, 5)) < 0.5
        right = rng.random((60, 5)) < 0.8
        cases = [Case(str(i), str(i), ("s",) * 5, tuple(bool(x) for x in labels[i])) for i in range(60)]
        scores = np.where(labels == right, 1.0, 0.0).tolist()
        (one,) = standings(VISUAL, cases, scores, np.full(60, 0.5), num_resamples=200)
        hits += one.numbers["macro_f1"]["low"] <= truth <= one.numbers["macro_f1"]["high"]
    assert 0.88 <= hits / num_trials <= 0.99


def test_scores_that_are_no_numbers_or_too_few_are_an_error():
    cases = [Case("a", "?", ("x", "y"), (True, False))]
    for row in ([1.0], [1.0, float("nan")]):
        with pytest.raises(DataError, match="case a"):
            standings(VISUAL, cases, [row], np.array([0.5]))
