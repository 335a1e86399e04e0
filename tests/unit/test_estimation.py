"""The joint estimate against enumeration of every combination of values, closed forms, and worlds with known values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.estimation import (
    DEFAULT,
    EDGES,
    NUM_BUCKETS,
    NUM_CELLS,
    THETA,
    UNRELATED,
    ZONES,
    Kernel,
    beta_prior,
    beta_shrinkage,
    components,
    covariance,
    expected_counts,
    fit,
    guard,
    messages,
    posteriors,
    quarter,
)
from components.forest import Forest


def lively_kernel(seed=0) -> Kernel:
    rng = np.random.default_rng(seed)
    return Kernel(
        rng.dirichlet(np.ones(len(components())), size=DEFAULT.weights.shape[:2]), rng.dirichlet(np.ones(NUM_CELLS))
    )


def counts(forest, **named):
    """Arrays of (right, total) from name=(k, n)."""
    right, total = np.zeros(forest.num_nodes), np.zeros(forest.num_nodes)
    for node, key in enumerate(forest.keys):
        right[node], total[node] = named.get(key, (0, 0)) if key else named.get("root", (0, 0))
    return right, total


def enumerated(forest, right, total, kernel):
    """The joint posterior of all values of ONE small tree, as an array with one axis a node, and the evidence."""
    num = forest.num_nodes
    axes = [chr(ord("a") + i) for i in range(num)]
    factors, names = [kernel.root], [axes[0]]
    for node in range(1, num):
        factors.append(kernel.matrices()[quarter(forest)[node]])
        names.append(axes[forest.parent[node]] + axes[node])
    for node in range(num):
        k = right[node] + forest.num_right_ends[node]
        n = total[node] + forest.num_ends[node]
        factors.append(THETA**k * (1 - THETA) ** (n - k))
        names.append(axes[node])
    joint = np.einsum(",".join(names) + "->" + "".join(axes), *factors, optimize=True)
    return joint / joint.sum(), joint.sum()


def marginal(joint, *nodes):
    return joint.sum(axis=tuple(i for i in range(joint.ndim) if i not in nodes))


FORK = Forest.build([[(["a", "b"], "right"), (["a", "c"], "wrong")]])
BUSH = Forest.build([[(["a", "b"], "right"), (["c"], "unknown"), ([], "wrong")]])


@pytest.mark.parametrize("forest", [FORK, BUSH])
@pytest.mark.parametrize("kernel", [DEFAULT, UNRELATED, lively_kernel()])
def test_the_posterior_is_that_of_enumerating_every_combination_of_values(forest, kernel):
    right, total = counts(forest, a=(1, 3), b=(4, 4), c=(0, 2), root=(2, 5))
    joint, evidence = enumerated(forest, right, total, kernel)
    known = posteriors(forest, right, total, kernel)
    for node in range(forest.num_nodes):
        exact = marginal(joint, node)
        assert np.allclose(known.cells[node], exact, atol=1e-12)
        assert known.mean[node] == pytest.approx(exact @ THETA)
        assert known.sd[node] ** 2 == pytest.approx(exact @ THETA**2 - (exact @ THETA) ** 2)
    assert known.log_evidence[0] == pytest.approx(np.log(evidence))


@pytest.mark.parametrize("forest", [FORK, BUSH])
@pytest.mark.parametrize("kernel", [DEFAULT, lively_kernel(1)])
def test_covariances_are_those_of_enumerating_every_combination_of_values(forest, kernel):
    right, total = counts(forest, a=(1, 3), b=(4, 4), c=(0, 2))
    joint, _ = enumerated(forest, right, total, kernel)
    matrix = covariance(forest, messages(forest, right, total, kernel), kernel)[0]
    means = [marginal(joint, node) @ THETA for node in range(forest.num_nodes)]
    for i, u in enumerate(forest.by_problem[0]):
        for j, v in enumerate(forest.by_problem[0]):
            if u == v:
                second = marginal(joint, u) @ THETA**2
            else:
                pair = marginal(joint, u, v)
                second = THETA @ pair @ THETA
            assert matrix[i, j] == pytest.approx(second - means[u] * means[v], abs=1e-12)


def test_expected_counts_are_those_of_enumerating_every_combination_of_values():
    kernel = lively_kernel(2)
    forest = Forest.build([[(["a"], "right"), (["c"], "wrong")]])
    last = NUM_BUCKETS - 1
    right, total = counts(forest, a=(1, 3), c=(0, 2))
    edges, roots = expected_counts(forest, right, total, kernel)
    joint, _ = enumerated(forest, right, total, kernel)
    assert np.allclose(roots, marginal(joint, 0))
    zone = np.searchsorted(ZONES, THETA)
    exact = np.zeros_like(edges)
    for child in (1, 2):
        pair = marginal(joint, 0, child)  # P(root, child | all)
        share = kernel.weights[last][zone].T[:, :, None] * components() / kernel.matrices()[last]
        for q in range(len(components())):
            np.add.at(exact[last, :, q], zone, (pair * share[q]).sum(1))
    assert np.allclose(edges, exact)


def test_every_step_but_redraw_keeps_the_mean_exactly():
    for matrix in components()[:-1]:
        assert np.abs(matrix.sum(1) - 1).max() < 1e-12
        assert np.abs(matrix @ THETA - THETA).max() < 1e-11
        assert (matrix >= 0).all()
        assert matrix[0, 0] == matrix[-1, -1] == 1  # right or wrong for certain stays so
    assert np.allclose(components()[-1], 1 / NUM_CELLS)


def test_steps_fall_into_quarters_of_the_longest_solution_through_them():
    forest = Forest.build([[(list("abcdefgh"), "right"), (["a", "x"], "wrong"), (["y"], "wrong")]])
    quarters = {key: int(q) for key, q in zip(forest.keys, quarter(forest), strict=True) if key}
    assert quarters == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 2, "g": 3, "h": 3, "x": 3, "y": 3}


def test_without_rollouts_a_verdict_moves_early_steps_less_than_late_ones():
    forest = Forest.build([[(["a", "b", "c", "d"], "right")]])
    known = posteriors(forest, *counts(forest))
    assert 0.5 < known.mean[1] < known.mean[2] < known.mean[3] < known.mean[4]


def test_one_prefix_and_a_flat_root_give_the_beta_posterior():
    """With the step `stay` alone, verdicts of root and prefix are of one value, whose prior is the grid's arcsine law."""
    stay = np.zeros_like(DEFAULT.weights)
    stay[..., 0] = 1
    forest = Forest.build([[(["a"], "right")]])
    known = posteriors(forest, *counts(forest, a=(5, 11)), Kernel(stay, np.full(NUM_CELLS, 1 / NUM_CELLS)))
    assert known.mean[1] == pytest.approx(6.5 / 13, abs=1e-3)
    assert known.sd[1] == pytest.approx(np.sqrt(0.25 / 14), abs=1e-3)


def test_unknown_verdicts_say_nothing():
    with_it = Forest.build([[(["a", "b"], "right"), (["a", "b"], "unknown")]])
    without = Forest.build([[(["a", "b"], "right")]])
    one = posteriors(with_it, *counts(with_it, a=(1, 2)))
    other = posteriors(without, *counts(without, a=(1, 2)))
    assert np.allclose(one.cells, other.cells)


PATHS = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abc"), min_size=0, max_size=4).map(tuple), st.sampled_from(["right", "wrong", "unknown"])
    ),
    min_size=1,
    max_size=4,
)


def states_of(path):
    return [path[: i + 1] for i in range(len(path))]


def by_name(problems, tallies):
    """Mean of every (problem, prefix) of a forest built in this order."""
    forest = Forest.build([[(states_of(path), verdict) for path, verdict in problem] for problem in problems])
    right, total = (
        np.array([tallies.get((p, key), (0, 0))[i] for p, key in zip(forest.problem, forest.keys, strict=True)])
        for i in (0, 1)
    )
    known = posteriors(forest, right, total, lively_kernel(3))
    return {(int(p), key): known.mean[i] for i, (p, key) in enumerate(zip(forest.problem, forest.keys, strict=True))}


@settings(max_examples=40, deadline=None)
@given(problem=PATHS, other=PATHS, seed=st.integers(0, 99))
def test_neither_the_order_of_solutions_nor_other_problems_matter(problem, other, seed):
    rng = np.random.default_rng(seed)
    keys = sorted({state for path, _ in problem for state in states_of(path)})
    tallies = {(0, key): (int(k), 6) for key, k in zip(keys, rng.integers(0, 7, len(keys)), strict=True)}
    alone = by_name([problem], tallies)
    shuffled = by_name([[problem[i] for i in rng.permutation(len(problem))]], tallies)
    beside = by_name([problem, other], tallies)
    for name, mean in alone.items():
        assert shuffled[name] == pytest.approx(mean, abs=1e-10)
        assert beside[name] == pytest.approx(mean, abs=1e-10)


def drawn(seed, *, num_problems, kernel, num_rollouts, length=5, solutions=3):
    """A world that IS the model: values drawn from the kernel, then counts and verdicts from the values."""
    rng = np.random.default_rng(seed)
    problems, values, matrices = [], {}, kernel.matrices()
    for p in range(num_problems):
        root = rng.choice(NUM_CELLS, p=kernel.root)
        problem = []
        for s in range(solutions):
            cell = root
            path = []
            for t in range(length):
                cell = rng.choice(NUM_CELLS, p=matrices[-(-4 * (t + 1) // length) - 1][cell])
                path.append(f"{s}.{t}")
                values[p, path[-1]] = THETA[cell]
            problem.append((path, "right" if rng.random() < THETA[cell] else "wrong"))
        problems.append(problem)
    forest = Forest.build(problems)
    truth = np.array([values.get((p, key), np.nan) for p, key in zip(forest.problem, forest.keys, strict=True)])
    total = np.where(forest.depth > 0, num_rollouts, 0)
    right = rng.binomial(total, np.nan_to_num(truth))
    return forest, right, total, truth


def test_in_a_world_drawn_from_the_model_the_posterior_is_calibrated_and_the_intervals_cover():
    forest, right, total, truth = drawn(1, num_problems=400, kernel=DEFAULT, num_rollouts=2)
    known = posteriors(forest, right, total)
    inner = forest.depth > 0
    assert abs((known.mean - truth)[inner].mean()) < 0.01
    half_cell = 0.03
    covered = ((truth >= known.low - half_cell) & (truth <= known.high + half_cell))[inner].mean()
    assert 0.88 < covered < 0.99
    error = np.sqrt(((known.mean - truth)[inner] ** 2).mean())
    assert error == pytest.approx(np.sqrt((known.sd[inner] ** 2).mean()), rel=0.05)
    assert error < 0.6 * np.sqrt(((right / np.maximum(total, 1) - truth)[inner] ** 2).mean())
    said = known.p_positive[inner].mean()  # POSITIVE, .03, lies within the cell of .0293
    assert (truth[inner] > 0.035).mean() - 0.01 < said < (truth[inner] > 0.025).mean() + 0.01


def test_each_iteration_of_the_fit_makes_what_was_seen_more_likely():
    forest, right, total, _ = drawn(2, num_problems=60, kernel=lively_kernel(4), num_rollouts=4)
    evidence = []
    kernel = DEFAULT
    for _ in range(6):
        evidence.append(posteriors(forest, right, total, kernel).log_evidence.sum())
        kernel = fit(forest, right, total, start=kernel, num_iterations=1, pseudo_counts=0, root_pseudo_counts=0)
    assert (np.diff(evidence) > 0).all()


def test_a_fit_recovers_how_often_values_stay():
    stays = np.zeros_like(DEFAULT.weights)
    stays[..., 0], stays[..., 4] = 0.8, 0.2  # nothing happens, or a decision
    world = Kernel(stays, DEFAULT.root)
    forest, right, total, _ = drawn(3, num_problems=200, kernel=world, num_rollouts=30)
    weights = fit(forest, right, total).weights
    assert weights[1:, 1:, 0].mean() > 0.55


def test_the_guard_trusts_the_chain_where_there_is_one_and_not_where_there_is_none():
    forest, right, total, _ = drawn(4, num_problems=60, kernel=DEFAULT, num_rollouts=2)
    chained = guard(forest, right, total)
    assert chained.uses_chain
    assert chained.chain > chained.beta
    rng = np.random.default_rng(5)
    unrelated = np.where(forest.depth > 0, rng.beta(0.5, 0.6, forest.num_nodes), 0)
    shuffled = guard(forest, rng.binomial(total, unrelated), total)
    assert not shuffled.uses_chain
    assert shuffled.num_rollouts == total.sum()


def test_the_guard_has_nothing_to_say_without_rollouts():
    assert guard(FORK, *counts(FORK)).reason == "no rollouts to predict"


def test_shrinkage_is_the_beta_posterior():
    right, total = np.array([0.0, 3, 16]), np.array([0.0, 4, 16])
    known = beta_shrinkage(right, total, (0.5, 1.5))
    assert known.mean == pytest.approx([0.25, 3.5 / 6, 16.5 / 18])
    assert known.sd[1] == pytest.approx(np.sqrt(3.5 / 6 * 2.5 / 6 / 7))
    scipy_low, scipy_high = 0.252532, 0.876235  # scipy.stats.beta(3.5, 2.5).ppf([.05, .95])
    assert known.low[1] == pytest.approx(scipy_low, abs=0.01)
    assert known.high[1] == pytest.approx(scipy_high, abs=0.01)


def test_the_fitted_beta_is_the_one_the_counts_came_from():
    rng = np.random.default_rng(0)
    values = rng.beta(2.0, 1.0, 4000)
    total = np.full(4000, 8)
    a, b = beta_prior(rng.binomial(total, values), total)
    assert a / (a + b) == pytest.approx(2 / 3, abs=0.03)
    assert a + b == pytest.approx(3.0, rel=0.25)


def test_intervals_and_cells_fit_together():
    known = posteriors(FORK, *counts(FORK, a=(3, 16)))
    assert (known.low <= known.mean).all()
    assert (known.mean <= known.high).all()
    assert np.allclose(known.cells.sum(1), 1)
    assert EDGES[0] == 0
    assert EDGES[-1] == pytest.approx(1)


def test_thousands_of_outcomes_do_not_underflow():
    known = posteriors(FORK, *counts(FORK, a=(0, 5000), b=(5000, 5000), root=(2500, 5000)))
    assert np.isfinite(known.cells).all()
    assert known.mean[FORK.keys.index("a")] < 0.01
    assert known.mean[FORK.keys.index("b")] > 0.99
