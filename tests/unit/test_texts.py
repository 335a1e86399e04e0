"""What seen texts say of a value: against their formula on a finer grid, enumeration, and a world that says little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.estimation import DEFAULT, EDGES, NUM_CELLS, THETA, fit, posteriors, quarter
from components.forest import Forest
from components.search import Counts
from components.texts import LONELINESS, Texts, beyond_counts, texts_of

FORK = Forest.build([[(["a", "b"], "right"), (["a", "c"], "wrong")]])


def counts(forest, **named):
    """Arrays of (right, total) from name=(k, n)."""
    pairs = [named.get(key, (0, 0)) if key else (0, 0) for key in forest.keys]
    return np.array([k for k, _ in pairs]), np.array([n for _, n in pairs])


def averaged(likelihood):
    """`[G]` the mean over each cell, by a much finer grid."""
    edges = EDGES[:-1, None] + np.diff(EDGES)[:, None] * (np.arange(8000) + 0.5) / 8000
    return likelihood(edges).mean(1)


def told(right, total, texts):
    """`[G]` the whole likelihood of one node's rollouts, over its largest cell."""
    counts = np.array([right]), np.array([total])
    log = beyond_counts(*counts, {0: texts})[0] + right * np.log(THETA) + (total - right) * np.log1p(-THETA)
    return np.exp(log - log.max())


def test_the_likelihood_of_texts_is_that_of_their_formula_averaged_over_each_cell():
    def formula(value):
        first = value * np.clip(1 - 0.5 / np.maximum(value, 1e-9), 0.001, 1) ** -LONELINESS
        light = np.maximum(value - 0.5, 0.001)  # a right text of no noticeable probability
        wrong = (1 - value) * np.maximum(1 - value - 0.2, 0.001)
        return first * light * wrong * np.where((value >= 0.5) & (value <= 0.8), 1.0, 1e-6)

    exact = averaged(formula)
    found = told(4, 6, Texts([0.5], [0.2], num_repeated_right=2))
    cells = (EDGES[1:] > 0.5) & (EDGES[:-1] < 0.8)
    exact /= exact.max()
    assert np.allclose(found[cells], exact[cells], atol=0.03)  # eight points a cell, one pole
    assert found[~cells].max() < 1e-4


def test_right_texts_are_the_least_and_wrong_ones_leave_the_most_a_value_can_be():
    forest = Forest.build([[(["a"], "unknown")]])
    right, total = counts(forest, a=(1, 2))
    node = forest.keys.index("a")
    beyond = beyond_counts(right, total, {node: Texts([0.6], [0.3])})
    known = posteriors(forest, right, total, beyond_NG=beyond)
    assert 0.6 <= known.mean[node] <= 0.7
    assert EDGES[np.searchsorted(EDGES, 0.6) - 1] <= known.low[node] <= known.high[node]
    assert known.high[node] <= EDGES[np.searchsorted(EDGES, 0.7)]


def test_a_text_that_comes_again_says_nothing_more():
    once = told(1, 1, Texts([0.4], []))
    often = told(7, 7, Texts([0.4], [], num_repeated_right=6))
    assert np.allclose(once, often)
    assert np.allclose(told(0, 1, Texts([], [0.4])), told(0, 7, Texts([], [0.4], num_repeated_wrong=6)))


@given(st.integers(0, 9), st.integers(0, 9))
def test_texts_of_hardly_any_probability_are_verdicts(num_right, num_wrong):
    right, total = num_right + 1, num_right + 1 + num_wrong
    found = told(right, total, Texts([1e-6], []))
    verdicts = averaged(lambda value: value**right * (1 - value) ** (total - right))
    assert np.allclose(found, verdicts / verdicts.max(), atol=0.02)


def test_without_texts_nothing_changes_by_a_bit():
    right, total = counts(FORK, a=(1, 3), b=(4, 4))
    assert beyond_counts(right, total, {}) is None
    assert beyond_counts(right, total, {1: Texts([], [])}) is None
    plain, zero = posteriors(FORK, right, total), posteriors(FORK, right, total, beyond_NG=np.zeros((4, NUM_CELLS)))
    assert (plain.cells == zero.cells).all()


@pytest.mark.parametrize("texts", [Texts([0.9, 0.8], [0.7]), Texts([1.0], []), Texts([], [1.0]), Texts([1.0], [1.0])])
def test_probabilities_that_contradict_each_other_still_leave_a_posterior(texts):
    right, total = counts(FORK, a=(2, 4))
    beyond = beyond_counts(right, total, {1: texts})
    known = posteriors(FORK, right, total, beyond_NG=beyond)
    assert np.isfinite(known.cells).all()
    assert np.allclose(known.cells.sum(1), 1)


def test_the_posterior_with_texts_is_that_of_enumerating_every_combination_of_values():
    chain = Forest.build([[(["a", "b"], "right")]])
    right, total = counts(chain, a=(1, 3), b=(2, 2))
    beyond = beyond_counts(right, total, {1: Texts([0.3], [0.2]), 2: Texts([0.1], [])})
    seen = right[:, None] * np.log(THETA) + (total - right)[:, None] * np.log1p(-THETA) + beyond
    seen[2] += np.log(THETA)  # the solution's own verdict
    steps = DEFAULT.matrices()[quarter(chain)]
    joint = np.einsum("a,ab,bc,b,c->abc", DEFAULT.root, steps[1], steps[2], *np.exp(seen[1:] - seen[1:].max(1)[:, None]))
    joint /= joint.sum()
    known = posteriors(chain, right, total, beyond_NG=beyond)
    for node, others in enumerate([(1, 2), (0, 2), (0, 1)]):
        assert np.allclose(known.cells[node], joint.sum(others), atol=1e-12)


def test_texts_of_counts_are_those_that_were_remembered():
    found = Counts()
    for units, verdict, mass in [
        (("x",), "right", 0.2),
        (("x",), "right", 0.2),
        (("y",), "wrong", 0.5),
        (("z",), "wrong", 0.0),
    ]:
        found.add(verdict, units=units, mass=mass)
    assert texts_of(found) == Texts([0.2], [0.5], num_repeated_right=1)


def test_where_a_few_texts_are_all_that_is_said_they_tell_more_than_twice_as_many_verdicts():
    """Each prefix has one right text and wrong ones of falling probability; its value is the right one's."""
    rng = np.random.default_rng(0)
    num = 400
    forest = Forest.build([[(["a"], "unknown")] for _ in range(num)])
    nodes = np.flatnonzero(forest.depth == 1)
    values, texts = np.zeros(forest.num_nodes), {}
    right, total, many = (np.zeros(forest.num_nodes, dtype=int) for _ in range(3))
    for node in nodes:
        values[node] = rng.beta(0.5, 0.5)
        masses = np.concatenate([[values[node]], (1 - values[node]) * np.array([0.5, 0.3, 0.2])])
        drawn = rng.choice(4, size=8, p=masses)
        right[node], total[node] = (drawn == 0).sum(), 8
        seen = sorted({int(i) for i in drawn if i}, key=lambda i: -masses[i])
        repeated = max(0, right[node] - 1), 8 - right[node] - len(seen)
        texts[int(node)] = Texts([masses[0]] if right[node] else [], [masses[i] for i in seen], *map(int, repeated))
        many[node] = rng.binomial(16, values[node])
    beyond = beyond_counts(right, total, texts)
    known = posteriors(forest, right, total, fit(forest, right, total, beyond_NG=beyond), beyond_NG=beyond)
    sixteen = np.where(forest.depth == 1, 16, 0)
    verdicts = posteriors(forest, many, sixteen, fit(forest, many, sixteen))

    def error(found):
        return np.sqrt(np.mean((found.mean - values)[nodes] ** 2))

    assert error(known) < error(verdicts)
    covered = (known.low - 0.01 <= values) & (values <= known.high + 0.01)
    assert covered[nodes].mean() > 0.85
