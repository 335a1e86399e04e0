"""Placement against greedy selection by hand, its promises, and worlds whose values are known exactly."""

import numpy as np
import pytest

from components.estimation import fit, posteriors
from components.forest import Forest
from components.joint import Solution, _blocks, joint, own_texts
from components.records import seed_for
from components.search import Outcome, Request, passed


def chain(name, length, verdict, *, tokens=10.0):
    """A solution whose text is its own."""
    states = [tuple(f"{name}{i}" for i in range(t + 1)) for t in range(length)]
    return Solution(states, [tokens * (length - t) for t in range(length)], verdict)


def problem(rng, *, length=6, num_solutions=4):
    """Solutions that go wrong at a random step and then stay wrong; their exact values."""
    solutions, values = [], {}
    hazard = rng.uniform(0.05, 0.25)
    for s in range(num_solutions):
        broken = False
        states = []
        for t in range(length):
            broken = broken or rng.random() < hazard
            states.append(tuple(f"{s}.{i}" for i in range(t + 1)))
            values[states[-1]] = 0.02 if broken else (1 - hazard) ** (length - 1 - t)
        verdict = "right" if rng.random() < values[states[-1]] else "wrong"
        solutions.append(Solution(states, [10.0 * (length - t) for t in range(length)], verdict))
    return solutions, values


def world(num_problems, seed=0):
    rng = np.random.default_rng(seed)
    made = {f"p{i}": problem(rng) for i in range(num_problems)}
    return {name: m[0] for name, m in made.items()}, {(n, s): v for n, m in made.items() for s, v in m[1].items()}


def driven(search, answer):
    """All requests in batches, and every outcome by prefix."""
    batches, outcomes, answers = [], {}, None
    while True:
        try:
            requests = next(search) if answers is None else search.send(answers)
        except StopIteration:
            return batches, outcomes
        batches.append(requests)
        answers = [[answer(r, r.first + i) for i in range(r.num)] for r in requests]
        for request, found in zip(requests, answers, strict=True):
            outcomes.setdefault((request.problem, request.state), []).extend(found)


def by_value(values, *, unknown=0.0):
    """An engine that is right as often as the exact value says; each outcome depends on its own name alone."""

    def answer(request: Request, index: int) -> Outcome:
        rng = np.random.default_rng(seed_for(0, request.problem, request.state, index))
        if rng.random() < unknown:
            return Outcome(("...",), "unknown")
        return Outcome(("...",), "right" if rng.random() < values[request.problem, request.state] else "wrong")

    return answer


def test_the_first_block_is_the_one_with_the_largest_gain_per_cost_and_changes_the_next():
    cov = np.array([[[0.10, 0.09, 0.0], [0.09, 0.10, 0.0], [0.0, 0.0, 0.08]]])
    noise, weight = np.full((1, 3), 0.05), np.ones((1, 3))
    cost = np.full((1, 3), 0.02)
    gains = [(0.01 + 0.0081) / 0.15, (0.01 + 0.0081) / 0.15, 0.0064 / 0.13]  # .121 .121 .049 by hand
    assert gains[0] / 0.02 > gains[2] / 0.02 > 1
    taken = _blocks(cov, noise=noise, weight=weight, cost=cost, room=np.full((1, 3), 9))
    # After a block at 0: v1 = .1 - .0081 / .15 = .046, v0 = .0333, c01 = .03; gains .020 .031 .049: node 2, then node 1.
    assert taken.tolist() == [[1, 1, 1]]
    assert _blocks(cov, noise=noise, weight=weight, cost=cost * 5, room=np.full((1, 3), 9)).tolist() == [[1, 0, 0]]
    assert _blocks(cov, noise=noise, weight=weight, cost=cost * 7, room=np.full((1, 3), 9)).tolist() == [[0, 0, 0]]
    assert _blocks(cov, noise=noise, weight=weight, cost=cost * 0.01, room=np.array([[0, 2, 0]])).tolist() == [[0, 2, 0]]


def test_the_chain_is_estimated_far_better_than_by_as_many_rollouts_step_by_step():
    problems, values = world(40)
    batches, outcomes = driven(joint(problems, price=0.004), by_value(values))
    forest = Forest.build([[(s.states, s.verdict) for s in solutions] for solutions in problems.values()])
    names = list(problems)
    keys = [(names[p], key) for p, key in zip(forest.problem, forest.keys, strict=True)]
    right = np.array([sum(o.verdict == "right" for o in outcomes.get(key, ())) for key in keys])
    total = np.array([len(outcomes.get(key, ())) for key in keys])
    known = posteriors(forest, right, total, fit(forest, right, total))
    inner = forest.depth > 0
    truth = np.array([values[key] for key, is_inner in zip(keys, inner, strict=True) if is_inner])
    error = np.sqrt(((known.mean[inner] - truth) ** 2).mean())
    as_many = np.sqrt((truth * (1 - truth)).mean() / total[inner].mean())
    assert error < 0.6 * as_many
    assert len(batches) <= 8


def test_a_problems_requests_depend_on_that_problem_alone():
    problems, values = world(12)
    _, together = driven(joint(problems), by_value(values))
    for name in ("p0", "p7"):
        _, alone = driven(joint({name: problems[name]}), by_value(values))
        assert alone == {key: found for key, found in together.items() if key[0] == name}
    backwards = dict(reversed(problems.items()))
    assert driven(joint(backwards), by_value(values))[1] == together


def test_indices_of_a_prefix_run_on_from_round_to_round():
    problems, values = world(6)
    batches, _ = driven(joint(problems, price=0.001), by_value(values))
    seen = {}
    for request in (request for batch in batches for request in batch):
        key = request.problem, request.state
        assert request.first == seen.get(key, 0)
        seen[key] = request.first + request.num


def test_bounds_are_kept_even_if_no_verdict_is_ever_known():
    problems, values = world(5)
    batches, outcomes = driven(joint(problems, price=1e-6, max_rounds=3, max_per_prefix=6), by_value(values, unknown=1.0))
    assert [max(r.num for r in batch) for batch in batches] == [2, 2, 2]  # 2, doubled, then the bound
    assert max(len(found) for found in outcomes.values()) == 6


def test_a_dear_rollout_is_not_taken_and_a_dearer_price_buys_fewer():
    problems, values = world(5)
    assert driven(joint(problems, price=10.0), by_value(values))[0] == []
    spent = [
        sum(map(len, driven(joint(problems, price=price), by_value(values))[1].values())) for price in (0.01, 0.003, 0.001)
    ]
    assert spent[0] < spent[1] < spent[2]


def test_the_price_does_not_depend_on_how_long_texts_are():
    short = {"p": [chain("a", 5, "wrong", tokens=3.0), chain("b", 5, "right", tokens=3.0)]}
    long = {"p": [chain("a", 5, "wrong", tokens=300.0), chain("b", 5, "right", tokens=300.0)]}
    assert next(joint(short)) == next(joint(long))


def test_where_only_the_sign_matters_sure_labels_get_fewer_rollouts():
    problems, values = world(20)

    def spent_on_sure_ones(weight, price):
        _, outcomes = driven(joint(problems, price=price, positive_weight=weight), by_value(values))
        total = sum(map(len, outcomes.values()))
        return sum(len(found) for key, found in outcomes.items() if values[key] > 0.6) / total

    assert spent_on_sure_ones(100.0, 0.05) < spent_on_sure_ones(0.0, 0.003)


def test_a_rollout_counts_at_every_known_prefix_it_passes_through():
    """With a right solution's text repeated by every rollout, prefixes behind the first need fewer of their own."""
    solution = chain("a", 5, "right")
    text = (*solution.states[-1], "answer: 1")

    def answer(request, index):
        return Outcome(text[len(request.state) :], "right" if index % 2 else "wrong")

    spent = [
        sum(len(found) for found in driven(joint({"p": [solution]}, price=0.002, reuse=reuse), answer)[1].values())
        for reuse in (True, False)
    ]
    assert spent[0] < spent[1]
    assert list(passed((), text)) == solution.states


def test_solutions_of_a_single_step_have_nothing_to_sample():
    assert driven(joint({"p": [Solution([], [], "right")], "q": []}), by_value({}))[0] == []


@pytest.mark.parametrize("verdict", ["right", "wrong", "unknown"])
def test_every_verdict_of_a_solution_is_taken(verdict):
    requests = next(joint({"p": [chain("a", 3, verdict)]}))
    assert all(request.num % 2 == 0 and request.first == 0 for request in requests)


def test_once_the_texts_seen_are_nearly_all_there_are_nothing_more_is_asked():
    """The policy has two things to say after any prefix; without their probabilities it takes far more rollouts."""
    solution = chain("a", 4, "right")

    def engine(mass):
        def answer(request, index):
            is_right = seed_for(0, request.state, index) % 2 == 0
            return Outcome(("right",) if is_right else ("wrong",), "right" if is_right else "wrong", mass)

        return answer

    spent = [
        sum(len(found) for found in driven(joint({"p": [solution]}, price=0.0005), engine(mass))[1].values())
        for mass in (0.499, 0.0)
    ]
    assert spent[0] * 3 < spent[1]


def test_what_solutions_wrote_is_known_once_at_each_of_their_prefixes():
    states = [("a",), ("a", "b")]
    one = Solution(states, [2.0, 1.0], "right", [("b", "c"), ("c",)])
    other = Solution(states, [2.0, 1.0], "wrong", [("b", "d"), ("d",)])
    unknown = Solution(states, [2.0, 1.0], "unknown", [("b", "e"), ("e",)])
    untold = Solution([("z",)], [1.0], "right")
    node = {(0, ("a",)): 1, (0, ("a", "b")): 2, (0, ("z",)): 3}
    assert own_texts({"p": [one, one, other, unknown, untold]}, node) == [
        (1, "right", ("b", "c")),
        (2, "right", ("c",)),
        (1, "wrong", ("b", "d")),
        (2, "wrong", ("d",)),
    ]
