import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.strategies import (
    STRATEGIES,
    Continuation,
    Draw,
    Judged,
    Options,
    Read,
    beam,
    belief,
    best_of_n,
    budgets,
    early_stop,
    lead,
    majority,
    weighted_vote,
)


def solution(text, *, right=False, tokens=None):
    """A continuation of units parted by blanks, one token each; its answer is its last unit."""
    units = tuple(text.split())
    return Continuation(units, tokens or (1,) * max(1, len(units)), right, units[-1] if units else None)


def play(strategy, writes, score):
    """(outcome, all that was asked): `writes` maps a prefix to its continuations in order, `score` units to Judged."""
    asked = []
    reply = None
    try:
        while True:
            request = strategy.send(reply)
            asked.append(request)
            reply = [
                [writes[("greedy", one.units) if one.greedy else one.units][i] for i in one.indices]
                if isinstance(one, Draw)
                else score(one.units)
                for one in request
            ]
    except StopIteration as end:
        return end.value, asked


def by(table):
    return lambda units: Judged(table[" ".join(units)])


POOL = {(): [solution("a 1"), solution("b 2", right=True, tokens=(4, 3)), solution("c 1"), solution("d 2", right=True)]}
SCORES = by({"a 1": (0.9, 0.5), "b 2": (0.6, 0.7), "c 1": (0.9, 0.3), "d 2": (0.6, 0.6)})


def test_best_of_n_takes_the_highest_score_and_shares_ties():
    outcome, asked = play(best_of_n(range(3), "min"), POOL, SCORES)
    assert (outcome.value, outcome.num_tokens) == (1.0, 2 + 7 + 2)
    assert asked == [[Draw((), (0, 1, 2))], [Read(("a", "1")), Read(("b", "2")), Read(("c", "1"))]]
    assert play(best_of_n(range(3), "max"), POOL, SCORES)[0].value == 0.0
    tied = by({"a 1": (0.5,), "b 2": (0.5,), "c 1": (0.5,), "d 2": (0.1,)})
    assert play(best_of_n(range(4), "min"), POOL, tied)[0].value == pytest.approx(1 / 3)


def test_best_of_one_is_a_random_pick_over_its_blocks():
    runs = STRATEGIES["best_of_n"](1, 4, Options("min", 100))
    outcomes = [play(run, POOL, SCORES)[0] for run in runs]
    assert np.mean([one.value for one in outcomes]) == 0.5
    assert [one.num_tokens for one in outcomes] == [2, 7, 2, 2]


def test_votes_are_weighted_by_score_or_not_at_all():
    weighted = by({"a 1": (0.2,), "b 2": (0.9,), "c 1": (0.3,), "d 2": (0.0,)})
    assert play(weighted_vote(range(3), "min"), POOL, weighted)[0].value == 1.0
    outcome, asked = play(majority(range(3), "min"), POOL, weighted)
    assert outcome.value == 0.0
    assert asked == [[Draw((), (0, 1, 2))]]  # no reward model is asked


def test_a_solution_that_was_not_read_is_never_chosen():
    some = by({"a 1": (), "b 2": (0.01,), "c 1": (), "d 2": ()})
    for strategy in (best_of_n, weighted_vote):
        assert play(strategy(range(4), "min"), POOL, some)[0].value == 1.0


# --- early stopping ---


def test_a_clear_leader_ends_the_drawing():
    sure = by({"a 1": (0.5,), "b 2": (0.95,), "c 1": (0.99,), "d 2": (0.1,)})
    outcome, asked = play(early_stop(range(4), "min", confidence=0.9), POOL, sure)
    assert (outcome.value, outcome.num_tokens) == (1.0, 2 + 7)
    assert asked == [[Draw((), (0,))], [Read(("a", "1"))], [Draw((), (1,))], [Read(("b", "2"))]]
    unsure = by({"a 1": (0.5,), "b 2": (0.6,), "c 1": (0.7,), "d 2": (0.8,)})
    assert play(early_stop(range(4), "min", confidence=0.9), POOL, unsure)[0].num_tokens == 13


def test_a_wide_belief_draws_longer_than_a_narrow_one_with_the_same_means():
    table = {"a 1": 0.3, "b 2": 0.95, "c 1": 0.8, "d 2": 0.5}

    def told(concentration):
        return lambda units: Judged((table[" ".join(units)],), (concentration,))

    narrow = play(early_stop(range(4), "min", confidence=0.9), POOL, told(500.0))[0].num_tokens
    wide = play(early_stop(range(4), "min", confidence=0.9), POOL, told(2.0))[0].num_tokens
    assert (narrow, wide) == (9, 13)


def test_a_candidate_with_the_leaders_answer_is_no_rival():
    same = {(): [solution("a 1"), solution("c 1"), solution("b 2")]}
    other = {(): [solution("a 1"), solution("c 2"), solution("b 2")]}

    def told(units):
        return Judged(({"a": 0.8, "c": 0.9, "b": 0.1}[units[0]],), (30.0,))

    assert play(early_stop(range(3), "min", confidence=0.895), same, told)[0].num_tokens == 4
    assert play(early_stop(range(3), "min", confidence=0.895), other, told)[0].num_tokens == 6


def test_the_lead_is_looked_for_at_the_last_step_and_the_pick_by_the_aggregation():
    told = by({"a 1": (0.2, 0.95), "b 2": (0.9, 0.4), "c 1": (0.3, 0.99), "d 2": (0.7, 0.8)})
    outcome, _ = play(early_stop(range(4), "min", confidence=0.9), POOL, told)
    assert outcome.num_tokens == 2  # sure of itself at its last step, whatever came before
    outcome, _ = play(early_stop(range(4), "min", confidence=0.96), POOL, told)
    assert (outcome.value, outcome.num_tokens) == (1.0, 13)  # d's lowest step is the highest


@given(a=st.floats(1.0, 50.0), b=st.floats(1.0, 50.0))
def test_the_lead_over_one_rival_and_an_unknown_one_has_a_closed_form(a, b):
    """Of Beta(a, 1) over Beta(b, 1) and a uniform: the integral of a x^(a-1) x^b x."""
    closed = a / (a + b + 1)
    assert lead(moments(a, 1.0), [moments(b, 1.0)]) == pytest.approx(closed, abs=2e-3)
    assert lead(moments(a, 1.0), []) == pytest.approx(a / (a + 1), abs=2e-3)


def moments(a, b):
    mean = a / (a + b)
    return mean, mean * (1 - mean) / (a + b + 1)


def test_the_lead_agrees_with_drawing():
    rng = np.random.default_rng(0)
    pairs = [(8.0, 3.0), (5.0, 4.0), (0.7, 0.9)]
    drawn = [rng.beta(a, b, 400_000) for a, b in pairs] + [rng.random(400_000)]
    seen = float(np.mean(drawn[0] > np.max(drawn[1:], axis=0)))
    assert lead(moments(*pairs[0]), [moments(a, b) for a, b in pairs[1:]]) == pytest.approx(seen, abs=4e-3)


def test_a_known_score_leads_by_what_it_says():
    assert lead((0.8, 0.0), [(0.5, 0.0)]) == pytest.approx(0.8)
    assert lead((0.8, 0.0), [(0.9, 0.0)]) == 0.0
    assert lead((-math.inf, 0.0), []) == 0.0
    assert lead((0.8, 0.0), [(-math.inf, 0.0)]) == pytest.approx(0.8)
    assert lead((0.8, 0.0), [moments(1.0, 1.0)]) == pytest.approx(0.8 * 0.8, abs=2e-3)
    assert 0.0 <= lead((0.5, 0.25), [(0.5, 0.25)]) <= 1.0  # all of it at the two ends


def test_the_belief_about_a_solution_is_that_of_its_last_step():
    drawn = np.random.default_rng(1).beta(0.9 * 19, 0.1 * 19, 200_000)
    mean, variance = belief(Judged((0.8, 0.9), (9.0, 19.0)))
    assert (mean, variance) == (0.9, pytest.approx(drawn.var(), abs=1e-4))
    assert belief(Judged((0.8, 0.5))) == (0.5, 0.0)
    assert belief(Judged(())) == (-math.inf, 0.0)


# --- step by step ---


def test_a_beam_of_one_and_one_is_one_sample():
    writes = {(): [solution("a b 2", right=True, tokens=(3, 2, 1))]}
    outcome, asked = play(beam(1, "min", width=1, max_tokens=99), writes, lambda units: Judged((0.1,) * len(units)))
    assert (outcome.value, outcome.num_tokens) == (1.0, 6)
    assert asked == [[Draw((), (0,))], [Read(("a", "b", "2"))]]  # where there is no choice, nothing is read
    assert (
        play(beam(1, "min", width=1, max_tokens=99, num_ahead=3), writes, lambda units: Judged((0.1,)))[0] == outcome
    )  # nor rolled out


NEVER = solution("never")  # what a prefix's own continuation stands for
TREE = {
    (): [solution("a x 1"), solution("b y 2", right=True), solution("c z 3"), solution("a w 4")],
    ("b",): [NEVER, solution("u 5")],
    ("a",): [NEVER, solution("v 6", right=True)],
    ("b", "y"): [NEVER, solution("9")],
    ("b", "u"): [NEVER, solution("7")],
}
VALUES = {"a": 0.6, "b": 0.9, "c": 0.2, "b y": 0.8, "b u": 0.7, "a x": 0.1, "a v": 0.5}
VALUES |= {"b y 2": 0.8, "b y 9": 0.7, "b u 5": 0.3, "b u 7": 0.2}


def valued(changes=None):
    table = VALUES | (changes or {})
    return lambda units: Judged((table[" ".join(units)],))


def test_a_beam_by_hand():
    """N = 4, W = 2: a came twice and is one; b and a are kept, then both next steps of b, then the best whole solution."""
    outcome, asked = play(beam(4, "last", width=2, max_tokens=99), TREE, valued())
    assert asked == [
        [Draw((), (0, 1, 2, 3))],
        [Read(("a",)), Read(("b",)), Read(("c",))],
        [Draw(("b",), (1,)), Draw(("a",), (1,))],
        [Read(("b", "y")), Read(("b", "u")), Read(("a", "x")), Read(("a", "v"))],
        [Draw(("b", "y"), (1,)), Draw(("b", "u"), (1,))],
        [Read(("b", "y", "2")), Read(("b", "y", "9")), Read(("b", "u", "5")), Read(("b", "u", "7"))],
    ]
    assert (outcome.value, outcome.num_tokens) == (1.0, 12)  # a token a step that was looked at


def test_a_beam_shares_ties_and_follows_its_scores():
    assert play(beam(4, "last", width=2, max_tokens=99), TREE, valued({"b y 9": 0.8}))[0].value == 0.5
    assert play(beam(4, "last", width=2, max_tokens=99), TREE, valued({"b y 9": 0.9}))[0].value == 0.0
    tree = TREE | {("a", "v"): [NEVER, solution("8")], ("b", "y"): [NEVER, solution("9")]}
    towards = {"a v": 0.95, "a v 6": 0.9, "a v 8": 0.1}
    assert play(beam(4, "last", width=2, max_tokens=99), tree, valued(towards))[0].value == 1.0


def test_a_whole_solution_keeps_its_place():
    tree = {(): [solution("1", right=True), solution("b 2")], ("b",): [NEVER]}
    scores = valued({"1": 0.7, "b": 0.8, "b 2": 0.6})
    outcome, asked = play(beam(2, "last", width=2, max_tokens=99), tree, scores)
    assert (outcome.value, outcome.num_tokens) == (1.0, 3)
    assert asked[-1] == [Read(("b", "2"))]


def test_a_beam_that_becomes_too_long_is_cut_off_and_never_right():
    writes = {(): [solution("a b 2", right=True, tokens=(3, 2, 1))]}
    assert play(beam(1, "min", width=1, max_tokens=6), writes, lambda units: Judged((0.1,)))[0].value == 1.0
    outcome, _ = play(beam(1, "min", width=1, max_tokens=5), writes, lambda units: Judged((0.1,)))
    assert (outcome.value, outcome.num_tokens) == (0.0, 6)
    outcome, _ = play(beam(1, "min", width=1, max_tokens=99, rounds=2), writes, lambda units: Judged((0.1,)))
    assert (outcome.value, outcome.num_tokens) == (0.0, 5)


def test_a_prefix_that_needs_nothing_more_is_a_solution():
    tree = {(): [solution("a 1"), solution("a 2")], ("a",): [NEVER, Continuation((), (1,), True, "a")]}
    scores = valued({"a": 0.9, "a 1": 0.1})
    assert play(beam(2, "last", width=1, max_tokens=99), tree, scores)[0].value == 1.0


def test_an_empty_solution_is_never_best():
    empty = {(): [Continuation((), (1,), False, None), solution("b 2", right=True)], ("b",): [NEVER]}
    scores = by({"": (), "b": (0.1,), "b 2": (0.1,)})
    assert play(beam(2, "min", width=2, max_tokens=99), empty, scores)[0].value == 1.0
    assert play(best_of_n(range(2), "min"), empty, scores)[0].value == 1.0


def test_lookahead_values_a_prefix_by_where_it_leads_and_counts_what_it_rolled_out():
    tree = {
        (): [solution("a 1"), solution("b 2", right=True)],
        ("greedy", ("a",)): [solution("p q r", tokens=(5, 7, 11))],
        ("greedy", ("b",)): [solution("s", tokens=(13,))],
        ("a",): [NEVER, solution("3")],
        ("b",): [NEVER, solution("4")],
    }
    table = {"a": 0.9, "b": 0.1, "a p q": 0.2, "b s": 0.3, "b 2": 0.9, "b 4": 0.8, "a 1": 0.9, "a 3": 0.9}
    scores = by({text: (score,) for text, score in table.items()})
    assert play(beam(2, "last", width=1, max_tokens=99), tree, scores)[0].value == 0.0  # a looks better than it is
    outcome, asked = play(beam(2, "last", width=1, max_tokens=99, num_ahead=2), tree, scores)
    assert asked[1] == [Draw(("a",), (0,), greedy=True), Draw(("b",), (0,), greedy=True)]
    assert asked[2] == [Read(("a", "p", "q")), Read(("b", "s"))]
    assert outcome.value == 1.0
    assert outcome.num_tokens == (1 + 1) + (5 + 7 + 13) + (1 + 1)


@given(num=st.integers(1, 40), width=st.integers(1, 40), depth=st.integers(1, 4))
def test_a_beam_never_looks_at_more_steps_than_its_budget_a_round(num, width, depth):
    class Anything(dict):
        def __missing__(self, units):
            rest = depth - (len(units) if units and units[0] != "greedy" else 0)
            self[units] = [solution(" ".join([f"s{i}", *["t"] * (rest - 1)]), right=i == 0) for i in range(num)]
            return self[units]

    outcome, asked = play(beam(num, "last", width=width, max_tokens=999), Anything(), lambda units: Judged((len(units),)))
    for request in asked:
        assert sum(len(one.indices) if isinstance(one, Draw) else 1 for one in request) <= num
    assert outcome.num_tokens <= num * depth
    assert 0.0 <= outcome.value <= 1.0


def test_budgets_double_up_to_the_largest():
    assert budgets(1) == [1]
    assert budgets(8) == [1, 2, 4, 8]
    assert budgets(12) == [1, 2, 4, 8, 12]
    assert [Options("min", 9).width_of(n) for n in (1, 2, 4, 8, 16, 64)] == [1, 1, 2, 2, 4, 8]
    assert Options("min", 9, width=3).width_of(2) == 2
    runs = STRATEGIES["best_of_n"](8, 12, Options("min", 9))
    assert len(runs) == 1  # the other four are no whole run
