"""What is measured on problems kept aside, against counting by hand, plain resampling and a search by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components import metrics
from components.formulations import FORMULATIONS, Targets
from components.heldout import HeldOut, Solution, _weighted_auroc


def held_out(rows, formulation="soft"):
    """rows: (problem, number of steps, {step: label}, whether right)."""
    solutions = [Solution(problem, num, tuple(labels), right) for problem, num, labels, right in rows]
    labels = torch.tensor([label for _, _, known, _ in rows for label in known.values()])
    return HeldOut(solutions, Targets.of(labels), FORMULATIONS[formulation])


def logits_of(scores):
    """Logits `[S, 2]` whose soft score is the number given."""
    return torch.tensor([[p, 1 - p] for p in scores]).log()


ROWS = [
    ("a", 3, {0: 0.9, 2: 0.2}, True),
    ("a", 1, {0: 1.0}, False),
    ("b", 2, {1: 0.0}, True),
    ("c", 2, {0: 0.6, 1: 0.8}, None),
]
SCORES = [0.8, 0.5, 0.4, 0.7, 0.9, 0.3, 0.6, 0.2]


def test_figures_are_those_of_the_labelled_steps():
    found = held_out(ROWS).figures(logits_of(SCORES))
    labels, scores = [0.9, 0.2, 1.0, 0.0, 0.6, 0.8], [0.8, 0.4, 0.7, 0.3, 0.6, 0.2]
    loss = -np.mean([y * np.log(p) + (1 - y) * np.log(1 - p) for y, p in zip(labels, scores, strict=True)])
    assert found["loss"] == pytest.approx(loss, abs=2e-6)
    # right: .8 .7 .6 .2 against wrong: .4 .3: six of eight pairs in order
    assert found["auroc"] == 0.75
    assert found["calibration_error"] == pytest.approx(metrics.calibration(scores, labels)["ece"], abs=1e-6)


def test_labels_of_one_kind_tell_no_auroc():
    one = held_out([("a", 2, {0: 1.0, 1: 0.9}, True)])
    assert one.figures(logits_of([0.5, 0.6]))["auroc"] is None
    assert one.intervals(logits_of([0.5, 0.6]), seed=0)["auroc"] is None
    assert one.threshold(logits_of([0.5, 0.6]), 1.0) == 0.5


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 4)), min_size=1, max_size=25), st.integers(0, 9))
def test_the_weighted_auroc_is_that_of_the_steps_written_out(steps, seed):
    scores, right = np.array([s[0] / 6 for s in steps]), np.array([s[1] for s in steps])
    problem = np.unique([s[2] for s in steps], return_inverse=True)[1]
    weight = np.random.default_rng(seed).integers(0, 3, (5, problem.max() + 1)).astype(float)
    found = _weighted_auroc(scores, right, weight, problem)
    for value, drawn in zip(found, weight, strict=True):
        times = drawn[problem].astype(int)
        expected = metrics.auroc(np.repeat(scores, times), np.repeat(right, times))
        assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_intervals_are_those_of_resampled_problems():
    rng = np.random.default_rng(0)
    rows = [(f"p{i}", 2, {0: float(rng.random()), 1: float(rng.random())}, True) for i in range(30)]
    logits = logits_of(rng.uniform(0.05, 0.95, 60))
    one = held_out(rows)
    found = one.intervals(logits, seed=1)
    losses = one.formulation.losses(logits, one.targets).numpy().reshape(30, 2).mean(1)
    drawn = np.random.default_rng(7).integers(0, 30, (4000, 30))
    low, high = np.quantile(losses[drawn].mean(1), [0.025, 0.975])
    assert found["loss"]["mean"] == pytest.approx(losses.mean(), abs=1e-5)
    assert (found["loss"]["low"], found["loss"]["high"]) == pytest.approx((low, high), abs=0.03)
    assert found["auroc"]["low"] < found["auroc"]["mean"] < found["auroc"]["high"]
    assert found == one.intervals(logits, seed=1) != one.intervals(logits, seed=2)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", ["soft", "count"])
def test_the_temperature_undoes_one(name, true_temperature):
    """Labels that are the scores themselves: dividing by what the logits were multiplied with is best."""
    torch.manual_seed(0)
    logits = torch.randn(200, 2) if name == "soft" else 3 + torch.rand(200, 2) * 20
    scores = FORMULATIONS[name].scores(logits)
    rows = [("a", 1, {0: float(score)}, True) for score in scores]
    one = held_out(rows, name)
    if name == "count":
        n = torch.full((200,), 40.0)
        one = HeldOut(one.solutions, Targets(scores, scores * n, n, torch.ones(200)), one.formulation)
    found = one.temperature(logits * true_temperature)
    assert one.figures(logits * true_temperature, found)["loss"] <= one.figures(logits * true_temperature)["loss"] + 1e-6
    grid = np.geomspace(0.25, 8.0, 400)
    best = min(grid, key=lambda t: float(one.formulation.loss(logits * true_temperature / t, one.targets)))
    assert found == pytest.approx(best, rel=0.02)
    if name == "soft":
        assert found == pytest.approx(true_temperature, rel=0.01)


def test_the_threshold_parts_right_from_wrong():
    rows = [("a", 4, {0: 0.9, 1: 0.8, 2: 0.1, 3: 0.2}, True)]
    assert 0.31 <= held_out(rows).threshold(logits_of([0.45, 0.5, 0.3, 0.1]), 1.0) <= 0.45
    one = held_out([("a", 3, {0: 1.0, 1: 0.0, 2: -1.0}, True)], "advantage")
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log()  # scores .85, .2, -.7
    assert -0.7 < one.threshold(logits, 1.0) < 0.2


def test_the_aggregation_is_the_one_that_picks_right_solutions():
    rows = [("a", 2, {0: 1.0}, True), ("a", 2, {0: 0.0}, False), ("b", 2, {0: 1.0}, True), ("c", 1, {0: 1.0}, None)]
    last = logits_of([0.1, 0.9, 0.6, 0.5, 0.5, 0.5, 0.9])  # the right one ends well, and begins badly
    how, accuracy = held_out(rows).aggregation(last, 1.0)
    assert accuracy == {"min": 0.0, "product": 0.0, "mean": 0.0, "last": 1.0, "max": 1.0}
    assert how == "last"
    assert held_out(rows[2:]).aggregation(last[4:], 1.0) == ("min", {})  # nothing to choose on
    tied = logits_of([0.9, 0.9, 0.1, 0.1, 0.5, 0.5, 0.9])
    assert held_out(rows, "outcome").aggregation(tied, 1.0)[0] == "last"  # of equal ones the formulation's own


def test_a_product_of_advantages_is_no_aggregation_and_an_outcome_is_read_at_its_end_alone():
    rows = [("a", 2, {0: 1.0}, True), ("a", 2, {0: -1.0}, False)]
    logits = torch.tensor([[0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]).log()  # .4 .4, -.7 -.7
    _, accuracy = held_out(rows, "advantage").aggregation(logits, 1.0)
    assert accuracy == {"mean": 1.0, "min": 1.0, "last": 1.0, "max": 1.0}  # the product would take the wrong one
    outcome = held_out([("a", 2, {1: 1.0}, True), ("a", 2, {1: 0.0}, False)], "outcome")
    assert outcome.aggregation(logits_of([0.9, 0.4, 0.1, 0.6]), 1.0) == ("last", {"last": 0.0})


def test_labels_that_do_not_count_leave_the_temperature_alone():
    one = held_out(ROWS)
    none = Targets.of(one.targets.label, torch.zeros_like(one.targets.label))
    assert HeldOut(one.solutions, none, one.formulation).temperature(logits_of(SCORES)) == 1.0
