"""The bars of docs/labels.md on a small free-text world with exact values; `make label-cost` prints the whole tables."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from label_cost import Bench, FreeText, Unrelated, at_equal_tokens, pooled, times_fewer


@pytest.fixture(scope="module")
def bench():
    return Bench(FreeText(num_problems=40, seed=7))


def test_the_worlds_values_are_what_its_continuations_come_to(bench):
    world = bench.world
    (problem, state), value = next((key, v) for key, v in world.values.items() if 0.3 < v < 0.7)
    outcomes = world.continuations(problem, state, 0, 4000, replicate=0)
    assert np.mean([o.verdict == "right" for o, _ in outcomes]) == pytest.approx(value, abs=0.03)
    assert world.continuations(problem, state, 2, 3, replicate=0) == outcomes[2:5]


def test_values_along_solutions_form_a_martingale():
    """The last unfinished prefixes are worth on average what the first ones are, and what the verdicts say."""
    world = FreeText(num_problems=400, seed=1)
    solutions = [(name, s) for name, ss in world.problems.items() for s in ss]
    first = np.mean([world.values[name, s.states[0]] for name, s in solutions])
    last = np.mean([world.values[name, s.states[-1]] for name, s in solutions])
    right = np.mean([s.verdict == "right" for _, s in solutions])
    assert first == pytest.approx(last, abs=0.02)
    assert last == pytest.approx(right, abs=0.02)


def test_a_label_costs_several_times_less_than_by_brute_force_at_equal_error(bench):
    brute = pooled([bench.brute(16, r) for r in range(2)])
    curve = [bench.joint(price, 0, reuse=False) for price in (0.008, 0.003)]
    assert times_fewer(brute, curve, num_resamples=20)[0] > 5
    quality = bench.quality(curve[-1].estimate)
    assert 0.86 < quality["cover"] < 0.99
    assert abs(quality["bias"]) < 0.02


def test_the_sign_of_a_label_costs_several_times_less_at_equal_error(bench):
    brute = pooled([bench.brute(16, r) for r in range(2)])
    signs = bench.first_errors(16, 0, reuse=False)
    assert signs.hard_error < brute.hard_error * 1.15
    assert signs.tokens * 5 < brute.tokens


def test_where_steps_are_unrelated_the_error_stays_at_or_below_that_of_brute_force_with_as_many_tokens():
    bench = Bench(Unrelated(num_problems=30, seed=5))
    brutes = [pooled([bench.brute(num, r) for r in range(2)]) for num in (2, 4, 8)]
    run = bench.joint(0.004, 0, reuse=False)
    assert brutes[0].tokens < run.tokens < brutes[-1].tokens
    assert run.rmse < at_equal_tokens(run, brutes)
