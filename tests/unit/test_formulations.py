"""Every formulation's loss against a closed form, its gradient against finite differences, its score at the corners."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln, softmax

from components.errors import DataError
from components.formulations import FORMULATIONS, Targets, concentration

logit = st.floats(-20, 20)
probabilities = st.lists(st.tuples(logit, logit, st.floats(0, 1)), min_size=1, max_size=8)


def loss(name, logits, labels, counts=None, weights=None):
    none = torch.zeros(len(labels))
    k, n = (none, none) if counts is None else (torch.tensor(column, dtype=torch.float32) for column in counts)
    weight = torch.ones(len(labels)) if weights is None else torch.tensor(weights)
    return FORMULATIONS[name].loss(logits, Targets(torch.as_tensor(labels), k, n, weight))


@pytest.mark.parametrize("name", ["soft", "value", "outcome"])
@given(probabilities)
def test_the_loss_of_a_probability_is_the_mean_cross_entropy_of_two_classes(name, rows):
    right, wrong, label = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    found = loss(name, torch.stack([right, wrong], -1), label).item()
    total = torch.logaddexp(right, wrong)
    expected = -(label * (right - total) + (1 - label) * (wrong - total)).mean().item()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(st.lists(st.tuples(logit, logit, logit, st.sampled_from([1.0, 0.0, -1.0])), min_size=1, max_size=8))
def test_the_loss_of_an_advantage_is_the_mean_cross_entropy_of_three_classes(rows):
    logits = [row[:3] for row in rows]
    expected = -sum(math.log(max(softmax(row[:3])[int(1 - row[3])], 1e-300)) for row in rows) / len(rows)
    assert loss("advantage", torch.tensor(logits), [row[3] for row in rows]).item() == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )


@given(st.floats(-3, 6), st.floats(-3, 6), st.integers(0, 16), st.integers(0, 16))
def test_the_loss_of_counts_is_the_beta_binomial_likelihood(right, wrong, k, others):
    alpha, beta = math.log1p(math.exp(right)), math.log1p(math.exp(wrong))
    expected = betaln(alpha, beta) - betaln(alpha + k, beta + others)
    found = loss("count", torch.tensor([[right, wrong]]), [0.0], ([k], [k + others])).item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_no_count_teaches_nothing():
    logits = torch.tensor([[0.3, -0.4]], requires_grad=True)
    loss("count", logits, [0.0], ([0], [0])).backward()
    assert logits.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


def test_the_count_formulation_finds_the_mean_and_the_spread_of_what_it_sees():
    """Counts drawn from Beta(6, 2): the likeliest head says mean .75, concentration 8."""
    draws = torch.distributions.Beta(6.0, 2.0)
    torch.manual_seed(0)
    n = torch.full((6000,), 16.0)
    k = torch.binomial(n, draws.sample((6000,)))
    logits = torch.zeros(1, 2, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=60, line_search_fn="strong_wolfe")

    def step():
        optimiser.zero_grad()
        found = FORMULATIONS["count"].loss(logits.expand(6000, 2), Targets(k / n, k, n, torch.ones(6000)))
        found.backward()
        return found

    optimiser.step(step)
    assert FORMULATIONS["count"].scores(logits).item() == pytest.approx(0.75, abs=0.01)
    assert concentration(logits).item() == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize("name", ["soft", "advantage", "count"])
def test_the_gradient_agrees_with_finite_differences(name):
    torch.manual_seed(0)
    logits = torch.randn(5, len(FORMULATIONS[name].weights), requires_grad=True)
    labels = [0.0, 0.1, 0.5, 0.75, 1.0] if name != "advantage" else [1.0, 0.0, -1.0, 1.0, -1.0]
    counts = ([0, 1, 4, 12, 16], [4, 16, 8, 16, 16])
    loss(name, logits, labels, counts).backward()
    for s in range(5):
        for c in range(logits.shape[1]):
            moved = [logits.detach().clone() for _ in range(2)]
            moved[0][s, c] += 1e-2
            moved[1][s, c] -= 1e-2
            slope = (loss(name, moved[0], labels, counts) - loss(name, moved[1], labels, counts)).item() / 2e-2
            assert logits.grad[s, c].item() == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_a_weight_counts_a_step_so_many_times_and_a_part_of_a_step_adds_up(name):
    torch.manual_seed(1)
    logits = torch.randn(3, len(FORMULATIONS[name].weights))
    labels, counts = [1.0, 0.0, 1.0], ([4, 0, 2], [4, 4, 2])
    weighted = loss(name, logits, labels, counts, [1.0, 2.0, 0.0])
    repeated = loss(name, logits[[0, 1, 1]], [1.0, 0.0, 0.0], ([4, 0, 0], [4, 4, 4]))
    assert weighted.item() == pytest.approx(repeated.item(), rel=1e-5)
    ones = Targets.of(torch.tensor(labels))
    whole = FORMULATIONS[name].loss(logits, ones)
    parts = [FORMULATIONS[name].loss(logits[part], Targets.of(ones.label[part]), 3.0) for part in (slice(0, 2), slice(2, 3))]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5, abs=1e-6)


def test_scores_at_the_corners():
    big = 40.0
    for name in ("soft", "value", "outcome"):
        assert FORMULATIONS[name].scores(torch.tensor([[big, 0.0], [0.0, big], [1.0, 1.0]])).tolist() == pytest.approx(
            [1, 0, 0.5]
        )
    rows = torch.tensor([[big, 0.0, 0.0], [0.0, big, 0.0], [0.0, 0.0, big], [1.0, 1.0, 1.0]])
    assert FORMULATIONS["advantage"].scores(rows).tolist() == pytest.approx([1, 0, -1, 0])
    assert FORMULATIONS["count"].scores(torch.tensor([[3.0, 3.0], [-60.0, -60.0]])).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "label"), [("soft", 1.0001), ("value", -0.01), ("outcome", float("nan")), ("advantage", 2.0)]
)
def test_a_label_outside_of_its_range_is_said(name, label):
    with pytest.raises(DataError, match="outside"):
        loss(name, torch.zeros(2, len(FORMULATIONS[name].weights)), [0.5, label])


def test_more_right_continuations_than_verdicts_are_said():
    with pytest.raises(DataError, match="more right"):
        loss("count", torch.zeros(1, 2), [0.5], ([3], [2]))
