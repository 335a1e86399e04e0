"""Where each solution goes wrong, for labels of which only the sign matters.

Owns a search that asks no more than that; knows no engine, file or probability model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from components.joint import Solution
from components.search import Counts, Request, Search, State, passed


def first_errors(
    problems: Mapping[str, Sequence[Solution]], *, num_continuations: int = 16, block: int = 4, reuse: bool = True
) -> Search:
    """The first step of each solution after which no continuation is right, by binary search.

    If a prefix can be continued to a right answer, so can every shorter one: the share mc is positive up to some
    step and 0 from there on. A prefix is positive at its first success, 0 after `num_continuations` without one; a
    right solution is its own success. Counts that stop at a success are biased upward: keep the stopping rule beside
    them.

    Args:
        block: continuations asked of a prefix at a time; each round asks one block of every open solution.
        reuse: count a continuation at every known prefix it passes through. Only the first `num_continuations` of a
            prefix decide: among enough of them there is a lucky one almost anywhere.
    Yields:
        Batches of requests, one of all problems a round; send back, for each request, its outcomes.
    Returns:
        For each problem and solution the number of its unfinished prefixes that are positive.
    Source: OmegaPRM (arXiv 2406.06592), binary search for the first error.
    Differs: all solutions at once; stops at the first success; a success anywhere settles every shorter prefix.
    """
    seen = {name: {state: Counts() for s in solutions for state in s.states} for name, solutions in problems.items()}
    asked: dict[tuple[str, State], int] = {}
    while True:
        wanted: dict[tuple[str, State], None] = {}
        for name, solutions in problems.items():
            for solution in solutions:
                low, high = _bounds(solution, seen[name], num_continuations)
                if low < high:
                    wanted[name, solution.states[(low + high) // 2]] = None
        if not wanted:
            return {
                name: [_bounds(solution, seen[name], num_continuations)[0] for solution in solutions]
                for name, solutions in problems.items()
            }
        requests = []
        for name, state in wanted:
            first = asked.get((name, state), 0)
            num = min(block, max(1, num_continuations - seen[name][state].num))
            asked[name, state] = first + num
            requests.append(Request(name, state, first, num))
        answers = yield requests
        for request, outcomes in zip(requests, answers, strict=True):
            for outcome in outcomes:
                for state in (request.state, *(passed(request.state, outcome.units) if reuse else ())):
                    counts = seen[request.problem].get(state)
                    if counts is not None and counts.num < num_continuations:
                        counts.add(outcome.verdict)


def _bounds(solution: Solution, counts: Mapping[State, Counts], num_continuations: int) -> tuple[int, int]:
    """The least and the largest number of positive prefixes that the counts allow; equal when the search is over."""
    if solution.verdict == "right":
        return len(solution.states), len(solution.states)
    positive = [i for i, state in enumerate(solution.states) if counts[state].num_right]
    low = positive[-1] + 1 if positive else 0
    for i in range(low, len(solution.states)):
        count = counts[solution.states[i]]
        if count.num >= num_continuations:
            return low, i if count.num_verdicts else low  # where nothing can be judged, the search is over
    return low, len(solution.states)
