"""What continuations came to, with the probability of their texts where that is known."""

import math

import pytest

from components.prefixes import mass_of, outcome, prefix_rows
from components.search import Outcome
from components.tasks import MATHS

DIGESTS = {"policy_digest": "policy", "verifier_digest": "verifier"}


def continuation(text, verdict, mass, finish_reason="stop"):
    logprob = math.log(mass) if mass else math.nan
    return {"text": text, "verdict": verdict, "finish_reason": finish_reason, "logprob": logprob}


def test_a_probability_is_cut_to_three_places_so_that_rounding_decides_nothing():
    assert mass_of(math.log(0.51239)) == 0.512
    assert mass_of(math.log(0.00099)) == 0.0
    assert mass_of(-80.0) == 0.0
    assert mass_of(1e-9) == 1.0
    assert mass_of(math.nan) == mass_of(None) == mass_of(-math.inf) == 0.0


@pytest.mark.parametrize(
    ("temperature", "finish_reason", "mass"),
    [(1.0, "stop", 0.5), (0.7, "stop", 0.0), (None, "stop", 0.0), (1.0, "length", 0.0)],
)
def test_a_text_s_probability_counts_only_if_it_ended_and_was_sampled_at_temperature_1(temperature, finish_reason, mass):
    row = continuation("so\n\n3", "right", 0.5, finish_reason)
    assert outcome(MATHS, row, temperature=temperature) == Outcome(("so", "3"), "right", mass)


def test_a_prefix_keeps_the_probabilities_of_its_distinct_texts_and_how_often_they_came_again():
    rows = [continuation("3", "right", 0.4), continuation("3", "right", 0.4), continuation("4", "wrong", 0.1)]
    rows += [continuation("2 + 1 = 3", "right", 0.5), continuation("5", "wrong", 0.0), continuation("?", "unknown", 0.0)]
    solution = {"finish_reason": "stop", "steps": ["A", "3"]}

    def made(temperature):
        kept = prefix_rows(
            MATHS,
            "p",
            [solution],
            {("A",): rows},
            reuse=True,
            stopping_rule=lambda _n, _c: "fixed",
            digests=DIGESTS,
            temperature=temperature,
        )
        return next(row for row in kept if row["num_units"] == 1)

    row = made(1.0)
    assert (row["num_right"], row["num_verdicts"]) == (3, 5)
    assert (row["right_masses"], row["wrong_masses"]) == ([0.5, 0.4], [0.1])
    assert (row["num_repeated_right"], row["num_repeated_wrong"]) == (1, 0)
    row = made(0.7)
    assert (row["num_right"], row["num_verdicts"]) == (3, 5)
    assert (row["right_masses"], row["wrong_masses"], row["num_repeated_right"]) == ([], [], 0)
