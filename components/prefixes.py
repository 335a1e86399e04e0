"""What the continuations of a problem's prefixes came to: from solutions and continuations to rows of PREFIX.

Shared by the stage that samples and the one that grades anew. Knows no engine and no estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from components.records import prefix_id
from components.search import Counts, Outcome, State, tally
from components.tasks import Task
from components.texts import know

Row = dict[str, Any]
_MASS_STEPS = 1000  # probabilities are cut to three places: batches round sums differently, a bound must not be too high


def is_usable(solution: Mapping[str, Any]) -> bool:
    """Whether a solution has steps to label: it ended by itself and says something."""
    return solution["finish_reason"] == "stop" and bool(solution["steps"])


def unfinished(task: Task, steps: Sequence[str]) -> list[State]:
    """The unfinished prefixes of a solution, from the shortest on."""
    out: list[State] = []
    units: State = ()
    for step in steps[:-1]:
        units += task.units([step])
        out.append(units)
    return out


def own_tails(task: Task, steps: Sequence[str]) -> list[State]:
    """What a solution itself wrote after each of its unfinished prefixes, in the units of a continuation."""
    whole = tuple(task.units(steps))
    return [whole[len(state) :] for state in unfinished(task, steps)]


def own_texts(task: Task, solutions: Iterable[Mapping[str, Any]]) -> list[tuple[State, str, State]]:
    """(prefix, verdict, units) of all that usable solutions wrote after a prefix, each once."""
    found = {
        (state, row["verdict"], tail): None
        for row in solutions
        if is_usable(row) and row.get("verdict") in ("right", "wrong")
        for state, tail in zip(unfinished(task, row["steps"]), own_tails(task, row["steps"]), strict=True)
    }
    return list(found)


def outcome(task: Task, continuation: Mapping[str, Any], *, temperature: float | None = None) -> Outcome:
    """A row of CONTINUATION as searches see it.

    Args:
        temperature: at which it was sampled; its probability is known at 1 only, where top_k and top_p can but raise it.
    """
    is_known = temperature == 1 and continuation.get("finish_reason") == "stop"
    mass = mass_of(continuation.get("logprob")) if is_known else 0.0
    return Outcome(tuple(task.splitter.split(continuation["text"])), continuation["verdict"], mass)


def mass_of(logprob: float | None) -> float:
    """At least the probability with this natural logarithm; 0 where it is unknown or below what is noticed."""
    if logprob is None or math.isnan(logprob):
        return 0.0
    return math.floor(math.exp(min(logprob, 0.0)) * _MASS_STEPS) / _MASS_STEPS


def prefix_rows(
    task: Task,
    problem: str,
    solutions: Iterable[Row],
    continuations: Mapping[State, Sequence[Row]],
    *,
    reuse: bool,
    stopping_rule: Callable[[str, Counts], str],
    digests: Mapping[str, str],
    temperature: float | None = None,
) -> list[Row]:
    """Rows of PREFIX for one problem: itself, every unfinished prefix of a usable solution, every other one continued.

    Args:
        continuations: state -> rows with `text` and `verdict`.
        stopping_rule: says, from a prefix's name and counts, why its sampling ended.
        digests: policy_digest and verifier_digest.
        temperature: at which the continuations were sampled; None if that is not known.
    """
    solutions = list(solutions)
    states: dict[State, None] = {(): None}
    for row in solutions:
        if is_usable(row):
            states |= dict.fromkeys(unfinished(task, row["steps"]))
    states |= dict.fromkeys(continuations)
    told = ((state, row) for state, rows in continuations.items() for row in rows)
    outcomes = ((state, outcome(task, row, temperature=temperature)) for state, row in told)
    counts = tally(states, outcomes, reuse=reuse)
    for state, verdict, units in own_texts(task, solutions):
        know(counts[state], verdict, units)
    out = []
    for state in sorted(states, key=lambda s: (len(s), s)):
        name, count = prefix_id(problem, state), counts[state]
        (right_masses, num_repeated_right), (wrong_masses, num_repeated_wrong) = count.seen("right"), count.seen("wrong")
        out.append(
            {
                "problem_id": problem,
                "prefix_id": name,
                "num_units": len(state),
                "num_right": count.num_right,
                "num_verdicts": count.num_verdicts,
                "num_unknown": count.num_unknown,
                "num_reused": count.num_reused,
                "num_reused_right": count.num_reused_right,
                "right_masses": right_masses,
                "wrong_masses": wrong_masses,
                "num_repeated_right": num_repeated_right,
                "num_repeated_wrong": num_repeated_wrong,
                "stopping_rule": stopping_rule(name, count),
                **digests,
            }
        )
    return out
