"""Curves over the number of candidates against every subset gone through one by one."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import metrics
from components.curves import NUM_SUBSETS, best_of_n_curve, mean_vote, sizes, subsets

scored = st.lists(st.tuples(st.sampled_from([-math.inf, 0.0, 0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=7)


def over_all_subsets(num, n, value):
    found = [value(list(chosen)) for chosen in itertools.combinations(range(num), n)]
    return sum(found) / len(found)


def test_the_sizes_double_up_to_all():
    assert sizes(1) == [1]
    assert sizes(2) == [1, 2]
    assert sizes(8) == [1, 2, 4, 8]
    assert sizes(12) == [1, 2, 4, 8, 12]
    assert sizes(128) == [1, 2, 4, 8, 16, 32, 64, 128]


@given(scored)
@settings(max_examples=80)
def test_the_closed_form_is_the_mean_over_all_subsets(pairs):
    scores, is_right = [s for s, _ in pairs], [r for _, r in pairs]
    found = best_of_n_curve(np.array([scores]), np.array([is_right]), range(1, len(pairs) + 1))
    for n in range(1, len(pairs) + 1):
        expected = over_all_subsets(
            len(pairs), n, lambda chosen: metrics.best_of_n([scores[i] for i in chosen], [is_right[i] for i in chosen])
        )
        assert found[n - 1, 0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_n_and_the_random_pick_are_its_ends():
    is_right = np.array([[True, True, False, False, False, False, False, False], [False] * 8])
    oracle = best_of_n_curve(is_right.astype(float), is_right, sizes(8))
    for n, row in zip(sizes(8), oracle, strict=True):
        assert row.tolist() == pytest.approx([1 - math.comb(6, n) / math.comb(8, n), 0.0])
    np.testing.assert_allclose(best_of_n_curve(np.zeros((2, 8)), is_right, [1, 2, 4, 8]), [[0.25, 0.0]] * 4)


def test_problems_side_by_side_are_those_alone_and_more_than_all_is_all():
    rng = np.random.default_rng(0)
    scores, is_right = rng.integers(0, 4, (30, 9)).astype(float), rng.random((30, 9)) < 0.4
    together = best_of_n_curve(scores, is_right, [1, 3, 9, 20])
    for i in range(30):
        assert (
            together[:, i].tolist() == best_of_n_curve(scores[i : i + 1], is_right[i : i + 1], [1, 3, 9, 20])[:, 0].tolist()
        )
        assert together[2, i] == pytest.approx(metrics.best_of_n(scores[i].tolist(), is_right[i].tolist()))
    assert together[3].tolist() == together[2].tolist()


ballot = st.tuples(st.sampled_from(["4", "5", "6", None]), st.sampled_from([-math.inf, -0.5, 0.0, 0.1, 0.2, 0.3]))


@given(st.lists(ballot, min_size=1, max_size=7), st.booleans())
@settings(max_examples=80)
def test_a_vote_is_the_mean_over_all_subsets(ballots, is_weighted):
    answers, is_right = [a for a, _ in ballots], [a == "4" for a, _ in ballots]
    weights = [w for _, w in ballots] if is_weighted else None
    for n in range(1, len(ballots) + 1):

        def value(chosen):
            given = [weights[i] for i in chosen] if weights else None
            return metrics.vote([answers[i] for i in chosen], [is_right[i] for i in chosen], given)

        found = mean_vote(answers, is_right, weights, subsets(len(ballots), n, seed=0))
        assert found == pytest.approx(over_all_subsets(len(ballots), n, value), abs=1e-12)


def test_many_subsets_are_drawn_and_the_mean_is_near_that_of_all():
    answers = ["4"] * 5 + ["5"] * 4 + ["6"] * 3
    is_right = [a == "4" for a in answers]
    drawn = subsets(12, 6, seed=1)
    assert drawn.shape == (NUM_SUBSETS, 12)
    assert (drawn.sum(axis=1) == 6).all()
    assert (drawn == subsets(12, 6, seed=1)).all()
    assert (drawn != subsets(12, 6, seed=2)).any()
    exact = over_all_subsets(12, 6, lambda chosen: metrics.vote([answers[i] for i in chosen], [is_right[i] for i in chosen]))
    assert mean_vote(answers, is_right, None, drawn) == pytest.approx(exact, abs=0.1)
    assert len(subsets(10, 5, seed=0)) == math.comb(10, 5)  # 252: all


def test_a_hundred_and_twenty_eight_candidates_take_no_time():
    rng = np.random.default_rng(0)
    scores, is_right = rng.random((500, 128)), rng.random((500, 128)) < 0.3
    started = time.process_time()
    best_of_n_curve(scores, is_right, sizes(128))
    assert time.process_time() - started < 2
