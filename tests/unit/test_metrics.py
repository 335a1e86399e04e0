"""Selection, intervals and step metrics against closed forms, brute force and small cases worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.metrics import (
    AGGREGATIONS,
    Bootstrap,
    aggregate,
    auroc,
    best_of_n,
    best_threshold,
    calibration,
    chosen_aggregation,
    f1_scores,
    first_error_f1,
    step_metrics,
    vote,
)

scored = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=12)


def test_ties_for_the_best_are_shared():
    assert best_of_n([0.9, 0.2, 0.9], [True, False, False]) == 0.5
    assert best_of_n([0.9, 0.2], [False, True]) == 0.0
    assert best_of_n([1, 1, 1], [True, False, True]) == 2 / 3


@given(scored, st.randoms())
def test_the_best_of_n_does_not_depend_on_the_order(pairs, rng):
    shuffled = rng.sample(pairs, len(pairs))
    assert best_of_n(*zip(*pairs, strict=True)) == best_of_n(*zip(*shuffled, strict=True))


def test_each_aggregation_is_its_formula():
    scores = [0.5, 0.25, 0.75]
    found = {how: aggregate(scores, how) for how in AGGREGATIONS}
    assert found == {"min": 0.25, "product": 0.09375, "mean": 0.5, "last": 0.75, "max": 0.75}


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_probabilities_of_zero_and_one_break_no_aggregation(how):
    assert aggregate([1.0, 1.0], how) == 1.0
    assert aggregate([0.0, 0.0], how) == 0.0
    for scores in itertools.product([0.0, 1.0], repeat=4):
        assert 0.0 <= aggregate(scores, how) <= 1.0
    assert aggregate([1e-9] * 400, how) >= 0.0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_solution_without_steps_is_never_best(how):
    scores = [aggregate([], how), aggregate([0.0], how)]
    assert best_of_n(scores, [True, False]) == 0.0
    assert vote(["7", "8"], [True, False], scores) == 0.0  # nor does it vote


def test_the_most_voted_answer_wins_and_ties_are_shared():
    right = [True, False, True, False]
    assert vote(["4", "5", "4", None], right) == 1.0
    assert vote(["4", "5", None, "5"], right) == 0.0
    assert vote(["4", "5", "4", "5"], right) == 0.5
    assert vote(["4", "5", "6", "7"], [True, False, False, False]) == 0.25


def test_a_candidate_without_an_answer_has_no_vote():
    assert vote([None, None, None, "4"], [False, False, False, True]) == 1.0
    assert vote([None, None], [False, False]) == 0.0


def test_votes_are_weighted():
    assert vote(["4", "5", "5"], [True, False, False], [0.9, 0.4, 0.4]) == 1.0
    assert vote(["4", "5", "5"], [True, False, False], [0.8, 0.4, 0.4]) == 0.5
    assert vote(["4", "5"], [True, False], [0.0, 0.0]) == 0.5
    assert vote(["4"] * 3 + ["5"], [True] * 3 + [False], [0.1, 0.2, 0.3, 0.6]) == 0.5  # 0.1 + 0.2 + 0.3 is not 0.6 in floats


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.integers(0, 5)), min_size=1, max_size=8))
def test_a_weighted_vote_is_that_of_repeated_candidates(ballots):
    answers = [answer for answer, weight in ballots for _ in range(weight)]
    weighted = vote([a for a, _ in ballots], [a == "1" for a, _ in ballots], [float(w) for _, w in ballots])
    if any(answer is not None for answer in answers):
        assert weighted == vote(answers, [a == "1" for a in answers])


@given(scored)
def test_auroc_is_the_share_of_pairs_in_order_ties_counting_half(pairs):
    right = [score for score, is_right in pairs if is_right]
    wrong = [score for score, is_right in pairs if not is_right]
    found = auroc(*zip(*pairs, strict=True))
    if not right or not wrong:
        assert found is None
    else:
        wins = [1.0 if r > w else 0.5 if r == w else 0.0 for r in right for w in wrong]
        assert found == pytest.approx(sum(wins) / len(wins), abs=1e-12)


def test_f1_by_hand():
    predicted = np.array([True, True, True, False, False])
    truth = np.array([True, True, False, True, False])
    # right: 2 found of 3 claimed and 3 real; wrong: 1 of 2 and 2
    assert f1_scores(predicted, truth) == {"f1_right": 0.666667, "f1_wrong": 0.5, "macro_f1": 0.583333}


def test_f1_without_any_of_a_kind_is_zero_not_an_error():
    everything = np.array([True, True])
    assert f1_scores(everything, everything) == {"f1_right": 1.0, "f1_wrong": 0.0, "macro_f1": 0.5}


@given(scored, st.sampled_from([0.05, 0.3, 0.7, 0.95]))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(pairs, threshold):
    predicted = np.array([score > threshold for score, _ in pairs])
    truth = np.array([is_right for _, is_right in pairs])
    both = int((predicted & truth).sum())
    if both:
        precision, recall = both / predicted.sum(), both / truth.sum()
        assert f1_scores(predicted, truth)["f1_right"] == pytest.approx(
            2 * precision * recall / (precision + recall), abs=1e-6
        )
    else:
        assert f1_scores(predicted, truth)["f1_right"] == 0.0


def test_first_error_f1_by_hand():
    scores = [[0.9, 0.2, 0.1], [0.9, 0.9, 0.1], [0.9, 0.8], [0.9, 0.4], [0.9]]
    truth = [[True, False, False], [True, False, False], [True, True], [True, True], [True]]
    # with an error: found, missed by one; without: spared, accused, spared
    a, b = 1 / 2, 2 / 3
    assert first_error_f1(scores, truth, 0.5) == pytest.approx(2 * a * b / (a + b))
    assert first_error_f1(scores, truth, 0.05) == 0.0  # no error is ever found
    assert first_error_f1(scores[:2], truth[:2], 0.5) is None
    assert first_error_f1(scores[2:], truth[2:], 0.5) is None


def test_a_score_at_the_threshold_is_an_error_everywhere_alike():
    found = step_metrics([[0.5], [0.6]], [[False], [True]], [["reading"], ["reading"]], 0.5)
    assert found["macro_f1"] == found["first_error_f1"] == 1.0


def test_calibration_by_hand():
    found = calibration([0.0, 0.05, 0.15, 0.95, 1.0], [False, True, False, True, True])
    first, second, last = found["bins"][0], found["bins"][1], found["bins"][9]
    assert first == {"low": 0.0, "high": 0.1, "num_steps": 2, "mean_score": 0.025, "right_frac": 0.5}
    assert (second["num_steps"], second["right_frac"]) == (1, 0.0)
    assert (last["num_steps"], last["mean_score"], last["right_frac"]) == (2, 0.975, 1.0)
    assert found["bins"][5] == {"low": 0.5, "high": 0.6, "num_steps": 0, "mean_score": None, "right_frac": None}
    assert found["ece"] == pytest.approx((2 * 0.475 + 1 * 0.15 + 2 * 0.025) / 5)
    assert calibration([], []) == {"ece": None, "bins": []}  # nothing was seen: that is not perfect


@given(scored)
def test_every_step_is_in_one_bin(pairs):
    found = calibration(*zip(*pairs, strict=True))
    assert sum(b["num_steps"] for b in found["bins"]) == len(pairs)
    assert 0.0 <= found["ece"] <= 1.0


def test_scores_that_mean_what_they_say_are_calibrated():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    assert calibration(scores, rng.random(20_000) < scores)["ece"] < 0.02
    assert calibration(np.sqrt(scores), rng.random(20_000) < scores)["ece"] == pytest.approx(1 / 6, abs=0.02)


def test_the_best_threshold_lies_between_the_kinds():
    scores, truth = [0.1, 0.2, 0.3, 0.6, 0.7], [False, False, False, True, True]
    found = best_threshold(scores, truth)
    assert 0.3 <= found < 0.6
    assert found == pytest.approx(0.45, abs=0.011)  # the middle of the best ones


@given(scored)
def test_no_threshold_between_zero_and_one_is_better_than_the_best(pairs):
    scores, truth = zip(*pairs, strict=True)
    best = best_threshold(scores, truth)
    assert 0 < best < 1

    def macro(threshold):
        return f1_scores(np.array(scores) > threshold, np.array(truth))["macro_f1"]

    assert macro(best) == max(macro(t) for t in (0.05, 0.3, 0.7, 0.95))


def test_step_metrics_by_hand():
    scores = [[0.9, 0.1, 0.2, 0.3], [0.8, 0.7]]
    right_so_far = [[True, False, False, False], [True, True]]
    kinds = [["reading", "reading", "reading", "reasoning"], ["reading", "reasoning"]]
    found = step_metrics(scores, right_so_far, kinds, 0.5)
    assert found["num_steps"] == 6
    assert found["wrong_frac"] == 0.5
    assert found["auroc"] == 1.0
    assert found["auroc_reading"] == 1.0  # the third reading follows a wrong step: it says nothing of reading
    assert found["macro_f1"] == found["first_error_f1"] == 1.0
    assert found["trivial"] == {"all_right_macro_f1": 0.333333, "random_macro_f1": 0.5}
    assert step_metrics([], [], [], 0.5) == {"num_steps": 0}


def test_a_coin_is_worth_what_it_is_worth_on_many_uneven_steps():
    truth = np.random.default_rng(0).random(100_000) < 0.9
    coin = np.random.default_rng(1).random(100_000) < 0.5
    found = step_metrics([[0.5]] * len(truth), [[right] for right in truth], [["reading"]] * len(truth), 0.5)
    assert found["trivial"]["random_macro_f1"] == pytest.approx(f1_scores(coin, truth)["macro_f1"], abs=0.005)
    assert found["trivial"]["random_macro_f1"] < 0.41


def test_readings_are_judged_after_a_right_prefix_only():
    scores, truth = [[0.2, 0.9], [0.8]], [[False, False], [True]]
    found = step_metrics(scores, truth, [["reading", "reading"], ["reading"]], 0.5)
    assert found["auroc_reading"] == 1.0
    assert found["auroc"] == 0.5


def test_the_first_of_equal_aggregations_is_chosen():
    assert chosen_aggregation({"min": 0.5, "product": 0.7, "mean": 0.7, "max": 0.6}) == "product"


def test_the_interval_of_a_share_is_near_the_normal_formula():
    values = np.array([1.0] * 120 + [0.0] * 280)
    found = Bootstrap(400, num_resamples=4000, confidence=0.95, seed=0).mean(values)
    half = 1.959964 * math.sqrt(0.3 * 0.7 / 400)
    assert found["mean"] == 0.3
    assert found["low"] == pytest.approx(0.3 - half, abs=0.005)
    assert found["high"] == pytest.approx(0.3 + half, abs=0.005)


def test_a_lower_confidence_is_a_narrower_interval():
    values = np.random.default_rng(0).random(100)
    found = Bootstrap(100, num_resamples=4000, confidence=0.68, seed=0).mean(values)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(values.std() / 10, rel=0.05)


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(0).random(50)
    first, again, other = (Bootstrap(50, num_resamples=200, confidence=0.95, seed=seed).mean(values) for seed in (1, 1, 2))
    assert first == again != other


def test_paired_differences_do_not_see_what_both_share():
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 300)  # how hard each problem is, for both
    a, b = hard + rng.normal(1, 1, 300), hard + rng.normal(0, 1, 300)
    bootstrap = Bootstrap(300, num_resamples=2000, confidence=0.95, seed=0)
    difference = bootstrap.mean(a - b)
    half = 1.96 * (a - b).std() / math.sqrt(300)
    assert difference["high"] - difference["low"] == pytest.approx(2 * half, rel=0.1)
    assert difference["low"] > 0
    assert bootstrap.mean(a)["high"] - bootstrap.mean(a)["low"] > 5 * half


def test_few_problems_have_students_interval():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(8).normal(0, 1, 12)
    found = Bootstrap(12, num_resamples=20_000, confidence=0.95, seed=0).mean(values)
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / math.sqrt(12)
    assert found["mean"] - found["low"] == pytest.approx(half, rel=0.06)
    assert found["high"] - found["mean"] == pytest.approx(half, rel=0.06)
    assert min(found["mean"] - found["low"], found["high"] - found["mean"]) > 0.98 * half


def test_the_expansion_of_students_t_is_near_scipys():
    stats = pytest.importorskip("scipy.stats")
    for confidence, num_freedom in itertools.product((0.68, 0.9, 0.95, 0.99), (4, 9, 29, 499)):
        expected = stats.t.ppf((1 + confidence) / 2, num_freedom)
        assert Bootstrap(num_freedom + 1, num_resamples=1, confidence=confidence, seed=0).num_errors == pytest.approx(
            expected * math.sqrt((num_freedom + 1) / num_freedom), rel=0.01
        )


def test_an_interval_stays_within_what_the_values_can_be():
    options = {"num_resamples": 500, "confidence": 0.95, "seed": 0}
    rare, common = np.array([1.0] + [0.0] * 19), np.array([0.0] + [1.0] * 19)
    assert Bootstrap(20, **options).mean(rare)["low"] == 0.0
    assert Bootstrap(20, **options).mean(common)["high"] == 1.0
    assert Bootstrap(20, **options).mean(rare - common)["low"] == -1.0
    assert Bootstrap(20, **options).mean(100 * rare)["low"] < 0
    # a difference that is never below 0 here might be elsewhere: 1 of 20 is 2.1 standard errors wide, more than its mean
    found = Bootstrap(20, **options).mean(rare, is_difference=True)
    assert found["low"] == pytest.approx(0.05 - 2.093 * math.sqrt(0.05 * 0.95 / 19), abs=0.01)


def test_a_ratio_has_the_delta_methods_interval():
    rng = np.random.default_rng(4)
    under = rng.random(500) + 0.5
    over = 0.6 * under + rng.normal(0, 0.2, 500)
    found = Bootstrap(500, num_resamples=4000, confidence=0.95, seed=0).ratio(over, under)
    ratio = over.mean() / under.mean()
    half = 1.96 * (over - ratio * under).std() / under.mean() / math.sqrt(500)
    assert found["mean"] == pytest.approx(ratio, abs=1e-6)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)


def test_a_ratio_over_nothing_is_none():
    bootstrap = Bootstrap(5, num_resamples=50, confidence=0.95, seed=0)
    assert bootstrap.ratio(np.ones(5), np.zeros(5)) is None
    rare = np.array([1.0, 0, 0, 0, 0])  # some resamples draw no denominator at all
    found = bootstrap.ratio(rare, rare)
    assert found["mean"] == 1.0
    assert 0.0 <= found["low"] <= found["high"] <= 1.0


def test_problems_of_one_cluster_come_and_go_together():
    """Five copies of each problem say no more than one: the interval is that of the clusters, not of the rows."""
    rng = np.random.default_rng(5)
    of_cluster = rng.random(200)
    values, clusters = np.repeat(of_cluster, 5), [str(i) for i in range(200) for _ in range(5)]
    found = Bootstrap(1000, num_resamples=4000, confidence=0.95, seed=0, clusters=clusters).mean(values)
    half = 1.959964 * of_cluster.std() / math.sqrt(200)
    assert found["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.07)
    rows = Bootstrap(1000, num_resamples=4000, confidence=0.95, seed=0).mean(values)
    assert found["high"] - found["low"] == pytest.approx(math.sqrt(5) * (rows["high"] - rows["low"]), rel=0.1)


def test_clusters_of_unequal_size_have_the_delta_methods_interval():
    rng = np.random.default_rng(6)
    sizes = rng.integers(1, 6, 300)
    levels = rng.random(300)
    values = np.repeat(levels, sizes) + rng.normal(0, 0.1, sizes.sum())
    clusters = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    found = Bootstrap(len(values), num_resamples=4000, confidence=0.95, seed=0, clusters=clusters).mean(values)
    sums = np.array([values[np.array(clusters) == str(i)].sum() for i in range(300)])
    half = 1.959964 * (sums - values.mean() * sizes).std() / sizes.mean() / math.sqrt(300)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.05)


def test_clusters_of_one_are_no_clusters():
    values = np.random.default_rng(7).random(40)
    options = {"num_resamples": 100, "confidence": 0.9, "seed": 3}
    alone = Bootstrap(40, **options, clusters=[f"picture {i}" for i in range(40)])
    assert alone.mean(values) == Bootstrap(40, **options).mean(values)
    together = Bootstrap(40, **options, clusters=["one picture"] * 40)
    assert together.num_clusters == 1
    # one draw of one picture says nothing of others
    assert (together.mean(values)["low"], together.mean(values)["high"]) == (0.0, 1.0)
    assert together.mean(values, is_difference=True)["low"] == -1.0


def test_a_threshold_may_lie_below_zero_where_scores_do():
    found = best_threshold([-0.8, -0.6, -0.2, 0.4], [False, False, True, True], low=-1.0, high=1.0)
    assert -0.6 <= found < -0.2
    assert best_threshold([-0.8, -0.6, -0.2, 0.4], [False, False, True, True]) > 0
