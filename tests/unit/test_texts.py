"""What seen texts say of a value: against their formula on a finer grid, enumeration, and a world that says little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.estimation import DEFAULT, EDGES, NUM_CELLS, THETA, fit, posteriors, quarter
from components.forest import Forest
from components.search import Counts
from components.texts import LONELINESS, Texts, beyond_counts, know, texts_of

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


def test_what_a_solution_itself_wrote_bounds_the_value_and_is_no_verdict_a_second_time():
    """One right text of .5, which is the solution's own, and a wrong one of .2: by hand, own first and without V."""

    def formula(value):
        alone = np.clip(1 - 0.5 / np.maximum(value, 1e-9), 0.001, 1) ** -LONELINESS
        return alone * (1 - value) * np.where((value >= 0.5) & (value <= 0.8), 1.0, 1e-9)

    exact = averaged(formula)
    found = told(3, 4, Texts([0.5], [0.2], num_repeated_right=3))
    inner = (EDGES[:-1] > 0.5) & (EDGES[1:] < 0.8)  # without the cell that has the pole
    assert np.allclose(found[inner] / found[inner].max(), exact[inner] / exact[inner].max(), atol=0.02)
    assert found[EDGES[1:] < 0.5].max() < 1e-4


def test_however_many_new_texts_there_are_the_probability_they_cover_bounds_the_value():
    """Seven wrong texts, each new, make low values likely; the right text of .8 forbids them."""
    found = told(30, 40, Texts([0.8], [0.03, 0.02, 0.02, 0.01, 0.01, 0.01, 0.01], 30, 3))
    assert found[EDGES[1:] < 0.8].sum() < 1e-3 * found.sum()


def test_no_number_of_neighbours_outvotes_a_bound():
    """Twelve prefixes behind one of them are worth nothing; a right text of .9 is known after it."""
    bush = Forest.build([[(["a", f"b{i}"], "unknown") for i in range(12)]])
    right, total = counts(bush, a=(3, 3), **{f"b{i}": (0, 20) for i in range(12)})
    node = bush.keys.index("a")
    beyond = beyond_counts(right, total, {node: Texts([0.9], [], num_repeated_right=2)})
    known = posteriors(bush, right, total, beyond_NG=beyond)
    assert known.mean[node] >= 0.9
    assert posteriors(bush, right, total).mean[node] < 0.5


def test_a_continuation_that_writes_what_a_solution_wrote_comes_again():
    found = Counts()
    know(found, "right", ("x",))
    know(found, "wrong", ("never again",))
    assert texts_of(found) == Texts([], [])
    for _ in range(3):
        found.add("right", units=("x",), mass=0.2)
    found.add("right", units=("y",), mass=0.1)
    assert texts_of(found) == Texts([0.2, 0.1], [], num_repeated_right=3)


def test_where_every_rollout_repeats_its_solution_texts_do_not_leak_how_that_ended():
    """Each prefix has one right and one wrong text, and its solution wrote one of them: fair if told, pulled if not."""
    rng = np.random.default_rng(1)
    forest = Forest.build([[(["a"], "right" if rng.random() < 0.5 else "wrong")] for _ in range(600)])
    nodes = np.flatnonzero(forest.depth == 1)
    is_right = forest.num_right_ends[nodes] == 1
    values = np.zeros(forest.num_nodes)
    values[nodes] = np.where(
        is_right, rng.beta(2, 1, 600), rng.beta(1, 2, 600)
    )  # P(V | verdict) of V ~ U(0, 1), P(right) = V
    right, total = np.zeros(forest.num_nodes, dtype=int), np.where(forest.depth == 1, 2, 0)
    right[nodes] = rng.binomial(2, values[nodes])
    leaks = []
    for is_told in (True, False):
        texts = {}
        for node, own in zip(nodes, is_right, strict=True):
            counts = Counts()
            if is_told:
                know(counts, "right" if own else "wrong", ("right" if own else "wrong",))
            for i in range(2):
                verdict = "right" if i < right[node] else "wrong"
                mass = values[node] if verdict == "right" else 1 - values[node]
                counts.add(verdict, units=(verdict,), mass=float(mass) / 2)
            texts[int(node)] = texts_of(counts)
        beyond = beyond_counts(right, total, texts)
        off = (
            posteriors(forest, right, total, fit(forest, right, total, beyond_NG=beyond), beyond_NG=beyond).mean - values
        )[nodes]
        leaks.append(off[is_right].mean() - off[~is_right].mean())
    assert leaks[0] < leaks[1] - 0.01


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
