"""Step labels worked out by hand: what is counted, what is left without a label, and what names a label."""

import pytest

from components.label import step_labels
from components.records import prefix_id
from components.settings import Label

SOFT = Label(formulation="soft", min_verdicts=2)


def solution(*steps, verdict="right", finish_reason="stop", name="s"):
    return {
        "solution_id": name,
        "problem_id": "p",
        "steps": list(steps),
        "verdict": verdict,
        "finish_reason": finish_reason,
        "policy_digest": "policy",
        "verifier_digest": "verifier",
    }


def continued(state, *outcomes):
    """Continuations of a state: each outcome is a verdict, or (paragraphs, verdict)."""
    rows = []
    for outcome in outcomes:
        steps, verdict = (("end",), outcome) if isinstance(outcome, str) else outcome
        rows.append({"problem_id": "p", "prefix_id": prefix_id("p", state), "steps": list(steps), "verdict": verdict})
    return rows


def test_each_step_is_worth_the_share_of_its_right_continuations_and_the_last_its_verdict():
    continuations = [
        *continued(["A"], "right", "right", "right", "wrong"),
        *continued(["A", "B"], "wrong", "wrong", "right", "wrong"),
    ]
    rows, unlabelled = step_labels([solution("A", "B", "C")], continuations, SOFT, reuse=False)
    assert unlabelled == 0
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [(row["num_right"], row["num_verdicts"]) for row in rows] == [(3, 4), (1, 4), (1, 1)]
    assert [row["label"] for row in rows] == [row["mc"] for row in rows] == [0.75, 0.25, 1.0]
    assert [row["stopping_rule"] for row in rows] == ["fixed", "fixed", "final"]
    assert [row["prefix_id"] for row in rows] == [prefix_id("p", "ABC"[: i + 1]) for i in range(3)]
    assert {row["num_steps"] for row in rows} == {3}


def test_the_last_step_of_a_wrong_solution_is_worth_nothing_whatever_was_continued():
    rows, _ = step_labels([solution("A", verdict="wrong")], [], SOFT, reuse=True)
    assert [(row["label"], row["num_right"], row["num_verdicts"], row["stopping_rule"]) for row in rows] == [
        (0.0, 0, 1, "final")
    ]


def test_a_last_step_that_another_solution_continues_keeps_its_own_verdict():
    solutions = [solution("A", verdict="wrong", name="short"), solution("A", "B", name="long")]
    rows, _ = step_labels(solutions, continued(["A"], "right", "right"), SOFT, reuse=True)
    assert [(row["solution_id"], row["label"]) for row in rows] == [("short", 0.0), ("long", 1.0), ("long", 1.0)]


def test_unknown_verdicts_are_counted_apart():
    continuations = continued(["A"], "right", "unknown", "wrong", "unknown", "unknown")
    rows, _ = step_labels([solution("A", "B")], continuations, SOFT, reuse=False)
    assert (rows[0]["num_right"], rows[0]["num_verdicts"], rows[0]["num_unknown"]) == (1, 2, 3)
    assert rows[0]["label"] == 0.5


def test_a_step_with_too_few_verdicts_has_no_label():
    continuations = [*continued(["A"], "right", "unknown", "unknown"), *continued(["A", "B"], "right", "wrong")]
    rows, unlabelled = step_labels([solution("A", "B", "C")], continuations, SOFT, reuse=False)
    assert [row["step"] for row in rows] == [1, 2]
    assert unlabelled == 1


def test_a_solution_whose_end_cannot_be_judged_keeps_its_other_labels():
    rows, unlabelled = step_labels(
        [solution("A", "B", verdict="unknown")], continued(["A"], "right", "wrong"), SOFT, reuse=False
    )
    assert [row["step"] for row in rows] == [0]
    assert unlabelled == 1


def test_a_truncated_solution_has_no_labels_but_its_steps_are_counted():
    truncated = solution("A", "B", "C", verdict="unknown", finish_reason="length")
    rows, unlabelled = step_labels([truncated], continued(["A"], "right", "right"), SOFT, reuse=True)
    assert (rows, unlabelled) == ([], 3)


def test_a_continuation_counts_for_the_longer_prefix_that_it_passed_through_only_with_reuse():
    continuations = [
        *continued(["A"], (("B", "end"), "right"), (("B",), "wrong")),
        *continued(["A", "B"], "wrong"),
    ]
    settings = Label(min_verdicts=1)
    of_reuse = {
        reuse: step_labels([solution("A", "B", "C")], continuations, settings, reuse=reuse)[0][1] for reuse in (True, False)
    }
    assert (of_reuse[True]["num_right"], of_reuse[True]["num_verdicts"]) == (1, 2)  # not the one that ended in B
    assert (of_reuse[False]["num_right"], of_reuse[False]["num_verdicts"]) == (0, 1)


def test_a_prefix_measured_by_reuse_alone_has_its_label():
    continuations = continued(["A"], (("B", "end"), "right"), (("B", "end"), "wrong"))
    rows, unlabelled = step_labels([solution("A", "B", "C")], continuations, SOFT, reuse=True)
    assert [row["label"] for row in rows] == [0.5, 0.5, 1.0]
    assert unlabelled == 0


def test_merged_steps_are_counted_by_their_paragraphs():
    merged = solution("A\n\nB", "C", name="merged")
    plain = solution("A", "B", "C", name="plain")
    continuations = [*continued(["A"], "wrong", "wrong"), *continued(["A", "B"], "right", "right")]
    rows, _ = step_labels([merged, plain], continuations, SOFT, reuse=False)
    labels = {(row["solution_id"], row["step"]): row["label"] for row in rows}
    assert labels == {("merged", 0): 1.0, ("merged", 1): 1.0, ("plain", 0): 0.0, ("plain", 1): 1.0, ("plain", 2): 1.0}
    assert len({row["prefix_id"] for row in rows}) == 3


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 1.0), (0.24, 1.0), (0.25, 0.0), (0.9, 0.0)])
def test_by_value_a_step_is_right_if_its_share_exceeds_the_threshold(threshold, expected):
    settings = Label(formulation="value", threshold=threshold, min_verdicts=2)
    continuations = continued(["A"], "right", "wrong", "wrong", "wrong")
    rows, _ = step_labels([solution("A", "B")], continuations, settings, reuse=False)
    assert [row["mc"] for row in rows] == [0.25, 1.0]
    assert [row["label"] for row in rows] == [expected, 1.0]


def test_a_label_is_named_by_its_step_its_counts_and_its_value():
    def names(settings, *verdicts, **changes):
        rows = [solution("A", "B") | changes]
        return [row["label_id"] for row in step_labels(rows, continued(["A"], *verdicts), settings, reuse=False)[0]]

    first = names(SOFT, "right", "wrong")
    assert len(set(first)) == 2
    assert names(SOFT, "right", "wrong") == names(SOFT, "wrong", "right") == first
    assert names(SOFT, "right", "wrong", "unknown") == first  # unknown decides nothing
    assert names(SOFT, "right", "wrong", "right", "wrong")[0] != first[0]  # the same share, better known
    assert names(Label(formulation="value", min_verdicts=2), "right", "wrong")[0] != first[0]
    assert names(SOFT, "right", "wrong", solution_id="other")[0] != first[0]
    assert names(SOFT, "right", "wrong", verifier_digest="other")[0] != first[0]
