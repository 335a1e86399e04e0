"""The Monte-Carlo search against a policy whose exact value at every prefix is known, and small trees by hand."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.search import Counts, Outcome, Request, monte_carlo, tally

# The text process: three letters, then an answer. An `a` is followed by an `a` more often than a `b` is; the chance
# of a right answer depends on the letters; some answers cannot be judged.
LENGTH = 3
UNKNOWN_FRAC = 0.2


def chance_of_a(state):
    return 0.5 if not state else 0.7 if state[-1] == "a" else 0.4


def chance_right(letters):
    return {0: 0.05, 1: 0.3, 2: 0.6, 3: 0.9}[letters.count("a")]


def value(state) -> float:
    """The exact chance that a text which starts with `state` is right, given that it can be judged."""
    if len(state) == LENGTH:
        return chance_right(state)
    p = chance_of_a(state)
    return p * value((*state, "a")) + (1 - p) * value((*state, "b"))


def written(state, rng):
    """A whole text that starts with `state`, without the answer."""
    while len(state) < LENGTH:
        state = (*state, "a" if rng.random() < chance_of_a(state) else "b")
    return state


def continuation(state, rng) -> Outcome:
    letters = written(state, rng)
    right = rng.random() < chance_right(letters)
    verdict = "unknown" if rng.random() < UNKNOWN_FRAC else "right" if right else "wrong"
    return Outcome((*letters[len(state) :], f"answer: {right}"), verdict)


def searched(prefixes, *, num, reuse, rng):
    """Run a search; returns its batches and, for each problem, the outcomes in order."""
    search = monte_carlo(prefixes, num_continuations=num, reuse=reuse)
    batches, stored, answers = [], {problem: [] for problem in prefixes}, None
    while True:
        try:
            requests = next(search) if answers is None else search.send(answers)
        except StopIteration:
            return batches, stored
        batches.append(requests)
        answers = [[continuation(r.state, rng) for _ in range(r.num)] for r in requests]
        for request, outcomes in zip(requests, answers, strict=True):
            stored[request.problem] += [(request.state, outcome) for outcome in outcomes]


def solutions_prefixes(rng, num_solutions=3):
    """The distinct unfinished prefixes of some solutions, as a rollout has them."""
    texts = [written((), rng) for _ in range(num_solutions)]
    return list(dict.fromkeys(text[:cut] for text in texts for cut in range(1, LENGTH + 1)))


@pytest.mark.parametrize("reuse", [False, True])
def test_the_share_of_right_continuations_is_the_value_of_the_prefix_on_average(reuse):
    rng = random.Random(5)
    problems = {f"p{i}": solutions_prefixes(rng) for i in range(1500)}
    _, stored = searched(problems, num=4, reuse=reuse, rng=rng)
    errors = {depth: [] for depth in range(1, LENGTH + 1)}
    for problem, prefixes in problems.items():
        for state, counts in tally(prefixes, stored[problem], reuse=reuse).items():
            if counts.mc is not None:
                errors[len(state)].append(counts.mc - value(state))
    for depth, found in errors.items():
        mean = sum(found) / len(found)
        deviation = math.sqrt(sum(e * e for e in found) / len(found) / len(found))
        assert len(found) > 1500
        assert abs(mean) < 4 * deviation, f"depth {depth}: {mean:+.4f} +- {deviation:.4f}"


@pytest.mark.parametrize("reuse", [False, True])
def test_each_prefix_alone_is_measured_without_bias(reuse):
    rng = random.Random(7)
    fixed = [("a",), ("b",), ("a", "b"), ("a", "a"), ("a", "b", "a"), ("a", "a", "a"), ("b", "b", "a")]
    problems = {f"p{i}": fixed for i in range(800)}
    _, stored = searched(problems, num=4, reuse=reuse, rng=rng)
    measured = {state: [] for state in fixed}
    for problem in problems:
        for state, counts in tally(fixed, stored[problem], reuse=reuse).items():
            if counts.mc is not None:
                measured[state].append(counts.mc - value(state))
    for state, found in measured.items():
        deviation = math.sqrt(sum(e * e for e in found)) / len(found)
        assert abs(sum(found) / len(found)) < 4 * deviation, state


def test_outcomes_that_passed_through_a_prefix_weigh_as_much_as_its_own():
    rng = random.Random(9)
    problems = {f"p{i}": [("a",), ("a", "a")] for i in range(2000)}
    _, stored = searched(problems, num=6, reuse=True, rng=rng)
    reused = own = 0
    reused_right = own_right = 0
    for outcomes in stored.values():
        for state, outcome in outcomes:
            if outcome.verdict == "unknown":
                continue
            if state == ("a", "a"):
                own, own_right = own + 1, own_right + (outcome.verdict == "right")
            elif outcome.units[0] == "a":
                reused, reused_right = reused + 1, reused_right + (outcome.verdict == "right")
    exact = value(("a", "a"))
    for count, right in ((reused, reused_right), (own, own_right)):
        assert abs(right / count - exact) < 4 * math.sqrt(exact * (1 - exact) / count)


@given(st.integers(0, 10**6), st.integers(1, 6), st.booleans())
def test_every_prefix_gets_as_many_outcomes_as_asked_for_and_none_is_asked_twice(seed, num, reuse):
    rng = random.Random(seed)
    problems = {f"p{i}": solutions_prefixes(rng) for i in range(3)}
    batches, stored = searched(problems, num=num, reuse=reuse, rng=rng)
    asked = [(r.problem, r.state) for batch in batches for r in batch]
    assert len(asked) == len(set(asked))
    assert all(request.num > 0 for batch in batches for request in batch)
    for problem, prefixes in problems.items():
        for counts in tally(prefixes, stored[problem], reuse=reuse).values():
            assert counts.num >= num if reuse else counts.num == num
    if reuse:
        total = sum(len(outcomes) for outcomes in stored.values())
        assert total <= num * sum(len(prefixes) for prefixes in problems.values())
        deepest = [max(len(r.state) for r in batch) for batch in batches]
        assert deepest == sorted(set(deepest))
        assert all(r.state for batch in batches for r in batch)


@given(st.integers(0, 10**6), st.booleans())
def test_stored_outcomes_in_any_order_give_the_same_counts(seed, reuse):
    rng = random.Random(seed)
    prefixes = solutions_prefixes(rng)
    _, stored = searched({"p": prefixes}, num=3, reuse=reuse, rng=rng)
    shuffled = rng.sample(stored["p"], len(stored["p"]))
    assert tally(reversed(prefixes), shuffled, reuse=reuse) == tally(prefixes, stored["p"], reuse=reuse)


def test_brute_force_is_one_batch_with_every_prefix():
    prefixes = {"p": [("x",), ("x", "y")], "q": [("z",)]}
    batches, _ = searched(prefixes, num=5, reuse=False, rng=random.Random(0))
    assert batches == [[Request("p", ("x",), 0, 5), Request("p", ("x", "y"), 0, 5), Request("q", ("z",), 0, 5)]]


def test_nothing_to_continue_is_no_batch():
    assert searched({"p": []}, num=5, reuse=True, rng=random.Random(0)) == ([], {"p": []})


def test_unknown_verdicts_are_in_neither_k_nor_n():
    counts = Counts()
    for verdict in ("right", "unknown", "wrong", "right", "unknown"):
        counts.add(verdict)
    assert counts == Counts(num_right=2, num_wrong=1, num_unknown=2)
    assert (counts.num, counts.num_verdicts, counts.mc) == (5, 3, 2 / 3)


def test_where_nothing_was_measured_there_is_no_value_which_is_not_zero():
    assert Counts().mc is None
    assert Counts(num_unknown=7).mc is None
    assert Counts(num_wrong=1).mc == 0.0


def test_a_small_tree_worked_out_by_hand():
    tree = {"p": [("A",), ("A", "B"), ("A", "B", "C"), ("A", "D")]}
    search = monte_carlo(tree, num_continuations=3, reuse=True)
    assert next(search) == [Request("p", ("A",), 0, 3)]
    # From A: one passes through AB and ABC to a right end, one through AB to a wrong end, one ENDS in D.
    first = [Outcome(("B", "C", "end"), "right"), Outcome(("B", "other", "end"), "wrong"), Outcome(("D",), "wrong")]
    # AB has two, AD none: its D was a final paragraph, not a step that was continued.
    assert search.send([first]) == [Request("p", ("A", "B"), 0, 1), Request("p", ("A", "D"), 0, 3)]
    second = [Outcome(("C", "C", "end"), "unknown")]
    third = [Outcome(("end",), "right"), Outcome(("B", "end"), "wrong"), Outcome((), "unknown")]
    # ABC has the first's right and the second's unknown: one more.
    assert search.send([second, third]) == [Request("p", ("A", "B", "C"), 0, 1)]
    fourth = [Outcome(("end",), "wrong")]
    with pytest.raises(StopIteration):
        search.send([fourth])
    states = [("A",)] * 3 + [("A", "B")] + [("A", "D")] * 3 + [("A", "B", "C")]
    counts = tally(tree["p"], zip(states, [*first, *second, *third, *fourth], strict=True), reuse=True)
    assert counts == {
        ("A",): Counts(1, 2, 0),
        ("A", "B"): Counts(1, 1, 1, num_reused=2, num_reused_right=1),
        ("A", "B", "C"): Counts(1, 1, 1, num_reused=1, num_reused_right=1),
        ("A", "D"): Counts(1, 1, 1),
    }
    alone = tally(tree["p"], zip(states, [*first, *second, *third, *fourth], strict=True), reuse=False)
    assert alone[("A", "B")] == Counts(0, 0, 1)
    assert alone[("A", "B", "C")] == Counts(0, 1, 0)


def test_a_wave_is_left_out_where_reuse_has_measured_enough():
    search = monte_carlo({"p": [("A",), ("A", "B")]}, num_continuations=2, reuse=True)
    assert next(search) == [Request("p", ("A",), 0, 2)]
    with pytest.raises(StopIteration):
        search.send([[Outcome(("B", "end"), "right"), Outcome(("B", "end"), "wrong")]])


def test_behind_a_prefix_without_a_right_continuation_nothing_is_measured_and_that_is_not_zero():
    prefixes = [("A",), ("A", "B"), ("A", "B", "C"), ("D",), ("D", "E")]
    search = monte_carlo({"p": prefixes}, num_continuations=2, reuse=False, stop_at_zero=True)
    assert next(search) == [Request("p", ("A",), 0, 2), Request("p", ("D",), 0, 2)]
    end = ("end",)
    zero, unknown = [Outcome(end, "wrong")] * 2, [Outcome(end, "unknown")] * 2
    assert search.send([zero, unknown]) == [Request("p", ("D", "E"), 0, 2)]  # unknown is not zero: go on
    with pytest.raises(StopIteration):
        search.send([zero])
    sampled = [(("A",), o) for o in zero] + [(("D",), o) for o in unknown] + [(("D", "E"), o) for o in zero]
    counts = tally(prefixes, sampled, reuse=False)
    assert [counts[state].mc for state in prefixes] == [0.0, None, None, None, 0.0]


def test_texts_are_remembered_once_with_the_largest_probability_known_whatever_the_order():
    found = [(("B", "end"), "right", 0.2), (("B", "end"), "right", 0.3), (("end",), "wrong", 0.4), (("x",), "right", 0.0)]
    for order in (found, found[::-1]):
        counts = tally([()], [((), Outcome(units, verdict, mass)) for units, verdict, mass in order], reuse=False)[()]
        assert counts == Counts(3, 1, 0)
        assert counts.seen("right") == ([0.3], 1)
        assert counts.seen("wrong") == ([0.4], 0)


def test_behind_a_longer_prefix_a_passing_text_is_what_is_left_and_at_least_as_probable():
    own, passing = (("A",), Outcome(("end",), "right", 0.9)), ((), Outcome(("A", "end"), "right", 0.5))
    unknown = (("A",), Outcome(("?",), "unknown", 0.01))
    counts = tally([(), ("A",)], [own, passing, unknown], reuse=True)
    assert counts["A",].seen("right") == ([0.9], 1)
    assert counts[()].seen("right") == ([0.5], 0)
    assert counts["A",].seen("unknown") == ([], 0)
