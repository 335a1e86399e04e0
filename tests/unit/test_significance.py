"""p-values against every flip gone through one by one, closed forms, and scipy where it is installed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.significance import against_random, holm, mcnemar, paired_p, sign_flip

FLIPS = {"num_flips": 4000, "seed": 0}


def brute_force(differences, clusters=None):
    names = clusters or range(len(differences))
    sums = {}
    for name, d in zip(names, differences, strict=True):
        sums[name] = sums.get(name, 0.0) + d
    values = list(sums.values())
    flipped = [
        sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return sum(abs(f) >= abs(sum(values)) - 1e-9 for f in flipped) / len(flipped)


@given(st.lists(st.sampled_from([-1.0, -0.75, -0.5, 0.0, 0.0, 1 / 3, 0.5, 1.0]), min_size=1, max_size=9))
@settings(max_examples=60)
def test_a_sign_flip_is_the_share_of_all_flips(differences):
    assert sign_flip(np.array(differences), **FLIPS) == pytest.approx(brute_force(differences), abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0])), min_size=1, max_size=14))
@settings(max_examples=60)
def test_problems_of_one_cluster_are_flipped_together(pairs):
    clusters, differences = [c for c, _ in pairs], [d for _, d in pairs]
    found = sign_flip(np.array(differences), clusters=clusters, **FLIPS)
    assert found == pytest.approx(brute_force(differences, clusters), abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (1, 1), (3, 2), (7, 1), (10, 0), (9, 7), (8, 8)])
def test_mcnemar_is_the_share_of_all_flips(wins, losses):
    assert mcnemar(wins, losses) == mcnemar(losses, wins)
    assert mcnemar(wins, losses) == pytest.approx(brute_force([1.0] * wins + [-1.0] * losses), abs=1e-12)


def test_mcnemar_is_the_binomial_tail_however_many_there_are():
    tail = sum(math.comb(1000, k) for k in range(451)) / 2**1000
    assert mcnemar(550, 450) == pytest.approx(2 * tail, rel=1e-9)
    assert mcnemar(3000, 0) == pytest.approx(0.0, abs=1e-300)


def test_scipy_says_the_same():
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in [(12, 3), (40, 25), (133, 98), (5, 5)]:
        assert mcnemar(wins, losses) == pytest.approx(stats.binomtest(wins, wins + losses, 0.5).pvalue, rel=1e-9)
    rng = np.random.default_rng(0)
    differences = rng.normal(0.2, 1, 12)
    found = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences, **FLIPS) == pytest.approx(found.pvalue, abs=1e-12)


def test_random_flips_are_near_the_exact_answer():
    differences = np.array([1.0] * 33 + [-1.0] * 20)
    found = sign_flip(differences, num_flips=20_000, seed=1)
    assert found == pytest.approx(mcnemar(33, 20), abs=0.012)
    assert sign_flip(np.ones(40), num_flips=999, seed=0) == 1 / 1000  # nothing rarer can be seen in 999 flips
    assert found == sign_flip(differences, num_flips=20_000, seed=1)


def test_values_of_zero_and_one_are_tested_exactly_and_shares_by_flips():
    a, b = np.array([1.0] * 30 + [0.0] * 10), np.array([1.0] * 15 + [0.0] * 20 + [1.0] * 5)
    assert paired_p(a, b, **FLIPS) == mcnemar(15, 5)
    alone = [f"picture {i}" for i in range(40)]
    assert paired_p(a, b, clusters=alone, **FLIPS) == mcnemar(15, 5)
    pairs = [f"picture {i // 10}" for i in range(40)]
    assert paired_p(a, b, clusters=pairs, **FLIPS) == brute_force(list(a - b), pairs)
    assert paired_p(a / 2, b / 2, **FLIPS) == pytest.approx(mcnemar(15, 5), abs=0.02)
    assert paired_p(a, a, **FLIPS) == 1.0


def test_where_nothing_differs_small_probabilities_are_as_rare_as_they_say():
    rng = np.random.default_rng(3)
    found = []
    for trial in range(400):
        share = np.repeat(rng.random(25), 4)  # four problems a picture, alike in difficulty
        sign = np.repeat(rng.choice([-1, 1], 25), 4)  # and in whom they favour
        differences = sign * (rng.random(100) < share)
        clusters = [str(i // 4) for i in range(100)]
        found.append(sign_flip(differences.astype(float), clusters=clusters, num_flips=400, seed=trial))
    assert np.mean(np.array(found) <= 0.05) <= 0.08
    assert np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.08)


picks = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.125, 0.5, 0.8, 1.0])), min_size=1, max_size=7
)


@given(picks)
@settings(max_examples=60)
def test_against_random_picks_every_pick_is_gone_through(pairs):
    values, shares = (np.array(column) for column in zip(*pairs, strict=True))
    expected = 0.0
    for right in itertools.product((0, 1), repeat=len(pairs)):
        chance = math.prod(s if r else 1 - s for r, s in zip(right, shares, strict=True))
        if abs(sum(right) - shares.sum()) >= abs(values.sum() - shares.sum()) - 1e-9:
            expected += chance
    assert against_random(values, shares, **FLIPS) == pytest.approx(expected, abs=1e-12)


def test_random_picks_are_found_better_than_random_as_rarely_as_it_says():
    """Of hard problems, where flipped signs would call nothing right out of 20 a finding of one in half a million."""
    shares = np.full(20, 1 / 8)
    nothing = np.zeros(20)
    assert against_random(nothing, shares, **FLIPS) == pytest.approx(
        0.875**20 + sum(math.comb(20, k) * 0.125**k * 0.875 ** (20 - k) for k in range(5, 21)), abs=1e-12
    )
    assert paired_p(nothing, shares, **FLIPS) < 0.001
    rng = np.random.default_rng(0)
    found = np.array([against_random((rng.random(20) < 1 / 8).astype(float), shares, **FLIPS) for _ in range(1000)])
    assert np.mean(found <= 0.05) <= 0.06
    assert np.mean(found <= 0.01) <= 0.015


def test_problems_of_one_cluster_are_not_picked_from_independently():
    values, shares, clusters = np.array([1.0, 1.0, 1.0, 0.0]), np.full(4, 0.5), ["a", "a", "a", "b"]
    assert against_random(values, shares, clusters=clusters, **FLIPS) == brute_force(list(values - shares), clusters)
    alone = ["a", "b", "c", "d"]
    assert against_random(values, shares, clusters=alone, **FLIPS) == against_random(values, shares, **FLIPS) == 10 / 16


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.4]) == pytest.approx([1.0, 1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.3))
def test_holm_finds_what_stepping_down_finds(p, level):
    order = sorted(range(len(p)), key=lambda i: p[i])
    found = set()
    for rank, i in enumerate(order):
        if p[i] * (len(p) - rank) > level:
            break
        found.add(i)
    assert {i for i, value in enumerate(holm(p)) if value <= level} == found
