"""OmegaPRM against trees worked out by hand (tests/golden/omegaprm.yaml), and its promises for any verdicts."""

import math
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import SettingsError
from components.omegaprm import OMEGAPRM_PAPER, exploration, omegaprm, quality, together
from components.search import Outcome, Request
from tests import tree_cost

GOLDEN = yaml.safe_load((Path(__file__).parents[1] / "golden/omegaprm.yaml").read_text())


def driven(search, answer):
    """Run a search to its end with `answer(request) -> outcomes`; returns its value and its batches."""
    batches = []
    answers = None
    while True:
        try:
            requests = next(search) if answers is None else search.send(answers)
        except StopIteration as end:
            return end.value, batches
        batches.append(requests)
        answers = [answer(request) for request in requests]


def scripted(rollouts):
    """Answers from a golden table."""

    def answer(request):
        lines = [line.split(" = ") for line in rollouts[" ".join(request.state)]]
        assert (request.first, request.num) == (0, len(lines))
        return [Outcome(tuple(units.split()), verdict) for units, verdict in lines]

    return answer


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_a_tree_worked_out_by_hand(golden):
    tree, batches = driven(omegaprm("p", **golden["arguments"]), scripted(golden["rollouts"]))
    assert [" ".join(request.state) for batch in batches for request in batch] == golden["measured"]
    assert all(len(batch) == 1 and batch[0].problem == "p" for batch in batches)
    found = {
        " ".join(state): [n.counts.num_right, n.counts.num_verdicts, n.counts.num_unknown, n.visits]
        for state, n in tree.nodes.items()
    }
    assert found == golden["counts"]
    lines = {True: [], False: []}
    for path in tree.paths:
        lines[path.is_positive].append(f"{' '.join(path.rollout.state)} / {path.rollout.index} / {path.num_units}")
        assert path.rollout.verdict == ("right" if path.is_positive else "wrong")
    assert lines[False] == golden.get("negative", [])
    assert lines[True] == golden.get("positive", [])
    assert [f"{' '.join(r.state)} / {r.index}" for r in tree.pool] == golden.get("pool", [])
    assert (tree.num_rollouts, tree.num_searches) == (golden["num_rollouts"], golden.get("num_searches", 0))
    assert tree.dropped == golden.get("dropped")


def test_the_prefixes_of_a_path_that_have_a_value_are_the_measured_ones_and_the_final_end():
    golden = GOLDEN[0]
    tree, _ = driven(omegaprm("p", **golden["arguments"]), scripted(golden["rollouts"]))
    # e | a, ab, abd (final) | the same | a, ax | a, ax | positive: a, ab
    assert [tree.cuts(path) for path in tree.paths] == [[1], [1, 2, 3], [1, 2, 3], [1, 2], [1, 2], [1, 2]]


def test_quality_and_exploration_are_the_papers_formulas():
    assert quality(1.0, 0, alpha=0.5, beta=0.9, length=500) == 1.0
    assert quality(0.25, 1000, alpha=0.5, beta=0.9, length=500) == pytest.approx(0.5**0.75 * 0.81, rel=1e-15)
    assert quality(0.5, 0, alpha=0.0, beta=0.9, length=500) == 0.0
    assert exploration(0, 0, c_puct=0.125) == 0.0
    assert exploration(16, 3, c_puct=0.125) == 0.125


def test_the_defaults_are_those_of_mm_prm_and_the_other_papers_can_be_asked_for():
    tree, batches = driven(omegaprm("p"), lambda request: [Outcome(("a",), "wrong")] * request.num)
    assert (tree.num_rollouts, tree.dropped) == (16, "hopeless")
    tree, batches = driven(omegaprm("p", **OMEGAPRM_PAPER), lambda request: [Outcome(("a",), "wrong")] * request.num)
    assert batches == [[Request("p", (), 0, 8)]]


@pytest.mark.parametrize("wrong", [{"num_root": 0}, {"num_probe": 0}, {"length": 0}, {"num_root": 8, "max_rollouts": 7}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError, match="omegaprm: num_root"):
        next(omegaprm("p", **wrong))


# A random text process: units from a small alphabet so that rollouts meet, verdicts from a coin of any bias.


def world(seed, *, right, unknown, letters="abc", longest=6):
    """Outcomes determined by (problem, state, index) alone, as an engine's seeds make them."""

    def answer(request):
        outcomes = []
        for index in range(request.first, request.first + request.num):
            rng = random.Random(f"{seed}/{request.problem}/{request.state}/{index}")
            num = rng.randint(0, max(0, longest - len(request.state)))
            roll = rng.random()
            verdict = "unknown" if roll < unknown else "right" if rng.random() < right else "wrong"
            outcomes.append(Outcome(tuple(rng.choice(letters) for _ in range(num)), verdict))
        return outcomes

    return answer


SHARES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    SHARES,
    SHARES,
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(0, 60),
)
def test_any_verdicts_end_and_keep_the_promises(seed, right, unknown, num_root, num_probe, max_searches, more):
    answer = world(seed, right=right, unknown=unknown)
    given_outcomes = {}

    def recording(request):
        assert request.state not in given_outcomes, "no state is measured twice"
        given_outcomes[request.state] = answer(request)
        return given_outcomes[request.state]

    arguments = {"num_root": num_root, "num_probe": num_probe, "max_searches": max_searches}
    tree, batches = driven(omegaprm("p", max_rollouts=num_root + more, **arguments), recording)
    # The bounds.
    assert tree.num_rollouts == sum(r.num for batch in batches for r in batch) <= num_root + more
    assert tree.num_searches <= max_searches
    assert sum(node.visits for node in tree.nodes.values()) == tree.num_searches
    # Every node's counts are those of its own rollouts, and of no other.
    assert list(tree.nodes) == list(given_outcomes)
    for state, node in tree.nodes.items():
        verdicts = [outcome.verdict for outcome in given_outcomes[state]]
        counts = node.counts
        assert (counts.num_right, counts.num_wrong, counts.num_unknown) == tuple(
            verdicts.count(word) for word in ("right", "wrong", "unknown")
        )
    # What waits and what is kept are wrong rollouts of states above zero; unknown ones are neither.
    negative = [path for path in tree.paths if not path.is_positive]
    positive = [path for path in tree.paths if path.is_positive]
    assert len(positive) <= len(negative) <= tree.num_searches
    kept = [path.rollout for path in tree.paths]
    assert len({(r.state, r.index) for r in [*kept, *tree.pool]}) == len(kept) + len(tree.pool)
    for rollout in [*tree.pool, *(path.rollout for path in negative)]:
        assert rollout.verdict == "wrong"
        assert tree.nodes[rollout.state].counts.num_right > 0
        assert given_outcomes[rollout.state][rollout.index] == Outcome(rollout.units, "wrong")
    # Negative paths: nothing before the end is 0, and the end is.
    for path in negative:
        cuts = tree.cuts(path)
        solution = path.rollout.solution
        assert cuts[-1] == path.num_units
        values = [tree.nodes[solution[:cut]].counts.mc if cut < len(solution) else 0.0 for cut in cuts]
        assert values[-1] == 0.0
        assert all(value > 0 for value in values[:-1])
    # Positive paths: they end at a leaf, all above zero.
    for path in positive:
        leaf = path.rollout.solution[: path.num_units]
        assert leaf == path.rollout.state and path.rollout.verdict == "right"
        assert not any(len(s) > len(leaf) and s[: len(leaf)] == leaf for s in tree.nodes)
        assert all(tree.nodes[leaf[:cut]].counts.mc > 0 for cut in tree.cuts(path))
    if tree.dropped:
        assert tree.num_searches == 0 and not tree.paths


@given(st.integers(0, 10**6))
def test_verdicts_that_are_all_unknown_end_after_the_root(seed):
    tree, batches = driven(omegaprm("p"), world(seed, right=0.5, unknown=1.0))
    assert tree.dropped == "unmeasured"
    assert len(batches) == 1


def test_the_bisection_finds_the_first_hopeless_step():
    """Where a step is right or wrong for good, the path ends at the first wrong step after log2 probes."""
    length = 11

    def answer(request):
        if not request.state:  # one right solution, and one wrong one that errs at its unit `first`
            units = tuple("r" if i < first else "w" for i in range(length))
            return [Outcome(("r",) * length, "right"), Outcome(units, "wrong")]
        verdict = "wrong" if "w" in request.state else "right"
        return [Outcome(("end",), verdict)] * request.num

    for first in range(length):
        tree, batches = driven(omegaprm("p", num_root=2, num_probe=2), answer)
        assert [path.num_units for path in tree.paths if not path.is_positive] == [first + 1]
        assert len(batches) - 1 <= math.ceil(math.log2(length))


def test_labels_are_fair_although_the_tree_grows_where_it_went_wrong():
    """Against exact values: a node is measured by rollouts that had no part in its being chosen."""
    world = tree_cost.TextWorld(24, seed=1)
    searches = {p: omegaprm(p, num_root=8, num_probe=8, max_rollouts=200) for p in world.problems}
    labels = tree_cost.tree_labels(tree_cost.driven(world, together(searches)).value)
    truth = world.values(labels)
    errors = [labels[key] - truth[key][0] for key in labels]
    variance = sum(truth[key][0] * (1 - truth[key][0]) / 8 for key in labels)
    assert len(errors) > 300
    assert abs(sum(errors)) < 4 * math.sqrt(variance)
    assert sum(e * e for e in errors) == pytest.approx(variance, rel=0.25)  # as wide as 8 independent rollouts are


def test_searches_run_together_find_what_each_finds_alone():
    answer = world(3, right=0.5, unknown=0.1)
    names = [f"p{i}" for i in range(40)]
    alone = {name: driven(omegaprm(name, num_root=4, num_probe=3), answer) for name in names}
    for min_sequences, max_live in ((1, 1), (64, 100), (10**6, 7), (256, 10**6)):
        searches = {name: omegaprm(name, num_root=4, num_probe=3) for name in names}
        values, batches = driven(together(searches, min_sequences=min_sequences, max_live=max_live), answer)
        assert list(values) == names
        assert values == {name: tree for name, (tree, _) in alone.items()}
        for name in names:
            assert [r for batch in batches for r in batch if r.problem == name] == [
                r for batch in alone[name][1] for r in batch
            ]
        assert max(len({r.problem for r in batch}) for batch in batches) <= max_live
    backwards = {name: omegaprm(name, num_root=4, num_probe=3) for name in reversed(names)}
    assert driven(together(backwards), answer)[0] == {name: tree for name, (tree, _) in alone.items()}


def test_many_trees_keep_256_sequences_in_flight_until_the_last_ones_end():
    answer = world(5, right=0.6, unknown=0.0)
    values, batches = driven(together({f"p{i}": omegaprm(f"p{i}") for i in range(64)}), answer)
    sizes = [sum(r.num for r in batch) for batch in batches]
    begun = [set().union(*({r.problem for r in batch} for batch in batches[: i + 1])) for i in range(len(batches))]
    with_trees_left = [size for size, names in zip(sizes, begun, strict=True) if len(names) < 64]
    assert with_trees_left and min(with_trees_left) >= 256
    assert sum(sizes) == sum(tree.num_rollouts for tree in values.values())


def test_a_search_without_requests_goes_on_at_once_and_nothing_is_no_batch():
    def silent(value):
        yield []
        yield []
        return value

    assert driven(together({}), None) == ({}, [])
    assert driven(together({"a": silent(1), "b": silent(2)}), None) == ({"a": 1, "b": 2}, [])


def test_what_stops_the_driver_stops_the_searches():
    closed = []

    def search(name):
        try:
            yield [Request(name, (), 0, 1)]
        finally:
            closed.append(name)

    merged = together({"a": search("a"), "b": search("b")})
    next(merged)
    merged.close()
    assert closed == ["a", "b"]
