"""The search for first errors against solutions whose first error is known."""

from hypothesis import given, settings
from hypothesis import strategies as st

from components.first_errors import first_errors
from components.joint import Solution
from components.search import Outcome


def solution(name, length, verdict="wrong"):
    states = [tuple(f"{name}{i}" for i in range(t + 1)) for t in range(length)]
    return Solution(states, [10.0 * (length - t) for t in range(length)], verdict)


def driven(search, answer):
    batches, answers = [], None
    while True:
        try:
            requests = next(search) if answers is None else search.send(answers)
        except StopIteration as end:
            return batches, end.value
        batches.append(requests)
        answers = [[answer(r, r.first + i) for i in range(r.num)] for r in requests]


def certain(first_error):
    """An engine that is right exactly before the first error of each solution, named by its first letter."""

    def answer(request, index):
        return Outcome(("...",), "right" if len(request.state) <= first_error[request.state[0][0]] else "wrong")

    return answer


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=5), data=st.data())
def test_the_first_error_is_found_with_a_logarithm_of_the_steps(lengths, data):
    names = "abcde"[: len(lengths)]
    errors = {name: data.draw(st.integers(0, length)) for name, length in zip(names, lengths, strict=True)}
    problems = {"p": [solution(name, length) for name, length in zip(names, lengths, strict=True)]}
    batches, found = driven(first_errors(problems), certain(errors))
    assert found == {"p": [errors[name] for name in names]}
    asked = {name: {r.state for batch in batches for r in batch if r.state[0][0] == name} for name in names}
    for name, length in zip(names, lengths, strict=True):
        assert len(asked[name]) <= length.bit_length()


def test_a_prefix_is_asked_in_blocks_until_its_first_success():
    def answer(request, index):
        return Outcome(("...",), "right" if index == 5 else "wrong")

    batches, found = driven(first_errors({"p": [solution("a", 1)]}), answer)
    assert [[(r.first, r.num) for r in batch] for batch in batches] == [[(0, 4)], [(4, 4)]]
    assert found == {"p": [1]}


def test_a_prefix_is_zero_after_its_last_continuation_and_unknown_ones_end_the_search_too():
    for verdict in ("wrong", "unknown"):
        batches, found = driven(
            first_errors({"p": [solution("a", 1)]}, num_continuations=6), lambda r, i, v=verdict: Outcome(("...",), v)
        )
        assert [[r.num for r in batch] for batch in batches] == [[4], [2]]
        assert found == {"p": [0]}


def test_a_right_solution_costs_nothing():
    assert driven(first_errors({"p": [solution("a", 7, "right")]}), certain({})) == ([], {"p": [7]})


def test_a_success_settles_every_solution_that_shares_the_prefix():
    one, other = solution("a", 3), solution("a", 3)
    batches, found = driven(first_errors({"p": [one, other]}), certain({"a": 2}))
    assert found == {"p": [2, 2]}
    assert all(len(batch) == 1 for batch in batches)


def test_a_rollout_that_passed_through_a_later_prefix_settles_it():
    text = ("a0", "a1", "a2", "a3", "answer: 1")
    batches, found = driven(first_errors({"p": [solution("a", 4)]}), lambda r, i: Outcome(text[len(r.state) :], "right"))
    assert found == {"p": [4]}
    assert len(batches) == 1
