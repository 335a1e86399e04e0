"""Step labels worked out by hand: what is counted, what is left without a label, what is kept, and what names a label."""

import contextlib
import itertools
import math
from pathlib import Path

import pytest

from components.errors import DataError, SettingsError
from components.label import Labeller, _check_second, labelled, run
from components.measured import check_one_run
from components.prefixes import prefix_rows
from components.records import LABEL, PREFIX, PROBLEM, SOLUTION, prefix_id, read_json, write_json, write_table
from components.settings import Balance, Label, load_runtime
from components.tasks import MATHS

COUNTS = {"estimator": "counts", "min_verdicts": 2}
SOFT = Label(formulation="soft", **COUNTS)
DIGESTS = {"policy_digest": "policy", "verifier_digest": "verifier"}


def solution(*steps, verdict="right", finish_reason="stop", name="s", problem="p", **changes):
    row = {"solution_id": name, "problem_id": problem, "index": 0, "seed": 1, "steps": list(steps), "answer": "1"}
    row |= {"text": "\n\n".join(steps), "verdict": verdict, "rule": "integer", "finish_reason": finish_reason}
    return row | {"num_tokens": 9, "logprob": -1.0} | DIGESTS | changes


def continued(state, *outcomes):
    """Continuations of a state: each outcome is a verdict, or (units, verdict)."""
    rows = []
    for outcome in outcomes:
        units, verdict = (("end",), outcome) if isinstance(outcome, str) else outcome
        rows.append({"text": "\n\n".join(units), "verdict": verdict})
    return {tuple(state): rows}


@pytest.fixture
def labels_of(tmp_path):
    """Labels of some solutions from their continuations, through the files."""

    def made(solutions, continuations, settings, *, reuse=False, rule="fixed", second=None):
        rows = []
        for problem in dict.fromkeys(s["problem_id"] for s in solutions):
            own = [s for s in solutions if s["problem_id"] == problem]
            sampled = continuations.get(problem, {}) if problem in continuations else continuations
            rows += prefix_rows(
                MATHS,
                problem,
                own,
                sampled,
                reuse=reuse,
                stopping_rule=lambda _n, _c: rule,
                digests=DIGESTS,
                temperature=1.0,
            )
        write_table(tmp_path / "solutions.parquet", solutions, SOLUTION)
        write_table(tmp_path / "prefixes.parquet", rows, PREFIX)
        labeller = Labeller(settings, MATHS, second)
        return [row for table in labelled(labeller, tmp_path) for row in table.to_pylist()], labeller

    return made


def test_each_step_is_worth_the_share_of_its_right_continuations_and_the_last_its_verdict(labels_of):
    continuations = continued(["A"], "right", "right", "right", "wrong") | continued(
        ["A", "B"], "wrong", "wrong", "right", "wrong"
    )
    rows, labeller = labels_of([solution("A", "B", "C")], continuations, SOFT)
    assert labeller.switches.num_unlabelled == 0
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [(row["num_right"], row["num_verdicts"]) for row in rows] == [(3, 4), (1, 4), (1, 1)]
    assert [row["label"] for row in rows] == [row["mc"] for row in rows] == [0.75, 0.25, 1.0]
    assert [row["stopping_rule"] for row in rows] == ["fixed", "fixed", "final"]
    assert [row["prefix_id"] for row in rows] == [prefix_id("p", "ABC"[: i + 1]) for i in range(3)]
    assert {row["num_steps"] for row in rows} == {3}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)
    jeffreys = 3.5 / 5  # Beta(3.5, 1.5): the spread of what three of four tell
    assert rows[0]["sd"] == pytest.approx(math.sqrt(jeffreys * (1 - jeffreys) / 6), abs=1e-3)


def test_the_last_step_of_a_wrong_solution_is_worth_nothing_whatever_was_continued(labels_of):
    rows, _ = labels_of([solution("A", verdict="wrong")], {}, SOFT, reuse=True)
    assert [(row["label"], row["num_right"], row["num_verdicts"], row["stopping_rule"]) for row in rows] == [
        (0.0, 0, 1, "final")
    ]


def test_a_last_step_that_another_solution_continues_keeps_its_own_verdict(labels_of):
    solutions = [solution("A", verdict="wrong", name="short"), solution("A", "B", name="long")]
    rows, _ = labels_of(solutions, continued(["A"], "right", "right"), SOFT, reuse=True)
    assert [(row["solution_id"], row["label"]) for row in rows] == [("short", 0.0), ("long", 1.0), ("long", 1.0)]


def test_unknown_verdicts_are_counted_apart(labels_of):
    continuations = continued(["A"], "right", "unknown", "wrong", "unknown", "unknown")
    rows, _ = labels_of([solution("A", "B")], continuations, SOFT)
    assert (rows[0]["num_right"], rows[0]["num_verdicts"], rows[0]["num_unknown"]) == (1, 2, 3)
    assert rows[0]["label"] == 0.5


def test_a_step_with_too_few_verdicts_has_no_label(labels_of):
    continuations = continued(["A"], "right", "unknown", "unknown") | continued(["A", "B"], "right", "wrong")
    rows, labeller = labels_of([solution("A", "B", "C")], continuations, SOFT)
    assert [row["step"] for row in rows] == [1, 2]
    assert labeller.switches.num_unlabelled == 1


def test_a_step_that_was_never_measured_has_no_label_which_is_not_zero(labels_of):
    rows, labeller = labels_of(
        [solution("A", "B", "C")], continued(["A"], "wrong", "wrong"), SOFT.model_copy(update={"min_verdicts": 0})
    )
    assert [(row["step"], row["label"]) for row in rows] == [(0, 0.0), (2, 1.0)]
    assert labeller.switches.num_unlabelled == 1


def test_a_solution_whose_end_cannot_be_judged_keeps_its_other_labels(labels_of):
    rows, labeller = labels_of([solution("A", "B", verdict="unknown")], continued(["A"], "right", "wrong"), SOFT)
    assert [row["step"] for row in rows] == [0]
    assert labeller.switches.num_unlabelled == 1


def test_a_truncated_solution_has_no_labels_but_its_steps_are_counted(labels_of):
    truncated = solution("A", "B", "C", verdict="unknown", finish_reason="length")
    rows, labeller = labels_of([truncated], continued(["A"], "right", "right"), SOFT, reuse=True)
    assert (rows, labeller.switches.num_unlabelled) == ([], 3)


def test_a_continuation_counts_for_the_longer_prefix_that_it_passed_through_only_with_reuse(labels_of):
    continuations = continued(["A"], (("B", "end"), "right"), (("B",), "wrong")) | continued(["A", "B"], "wrong")
    settings = Label(estimator="counts", min_verdicts=1)
    of_reuse = {r: labels_of([solution("A", "B", "C")], continuations, settings, reuse=r)[0][1] for r in (True, False)}
    found = {r: (row["num_right"], row["num_verdicts"], row["num_reused"]) for r, row in of_reuse.items()}
    assert found == {True: (1, 2, 1), False: (0, 1, 0)}  # not the one that ended in B


def test_merged_steps_are_counted_by_their_paragraphs(labels_of):
    merged = solution("A\n\nB", "C", name="merged")
    plain = solution("A", "B", "C", name="plain")
    continuations = continued(["A"], "wrong", "wrong") | continued(["A", "B"], "right", "right")
    for settings in (SOFT, Label(min_verdicts=1)):
        rows, _ = labels_of([merged, plain], continuations, settings)
        labels = {(row["solution_id"], row["step"]): row["label"] for row in rows}
        assert labels["merged", 0] == labels["plain", 1] > labels["plain", 0]
        assert len({row["prefix_id"] for row in rows}) == 3


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, 1.0), (0.24, 1.0), (0.25, 0.0), (0.9, 0.0)])
def test_by_value_a_step_is_right_if_its_share_exceeds_the_threshold(labels_of, threshold, expected):
    settings = Label(formulation="value", threshold=threshold, **COUNTS)
    rows, _ = labels_of([solution("A", "B")], continued(["A"], "right", "wrong", "wrong", "wrong"), settings)
    assert [row["mc"] for row in rows] == [0.25, 1.0]
    assert [row["label"] for row in rows] == [expected, 1.0]


@pytest.mark.parametrize(("min_change", "expected"), [(0.0, [1, -1, 1]), (0.3, [1, -1, 1]), (0.5, [0, 0, 1])])
def test_by_advantage_a_step_is_worth_the_sign_of_its_change(labels_of, min_change, expected):
    # The problem: 1 of 2 solutions right = .5; A: 1; B: .5; C: the solution's own 1.
    solutions = [solution("A", "B", "C"), solution("X", verdict="wrong", name="other")]
    continuations = continued(["A"], "right", "right") | continued(["A", "B"], "right", "wrong")
    settings = Label(formulation="advantage", min_change=min_change, **COUNTS)
    rows, _ = labels_of(solutions, continuations, settings)
    if min_change == 0.5:
        expected = [0, 0, 0]  # a change of exactly .5 is not above it
    assert [row["label"] for row in rows if row["solution_id"] == "s"] == expected
    assert [row["label"] for row in rows if row["solution_id"] == "other"] == [-1 if min_change < 0.5 else 0]


def test_by_outcome_only_the_last_step_is_labelled_with_the_verdict(labels_of):
    solutions = [
        solution("A", "B", "C"),
        solution("X", verdict="wrong", name="other"),
        solution("Y", verdict="unknown", name="u"),
    ]
    continuations = continued(["A"], "right", "right") | continued(["A", "B"], "right", "wrong")
    rows, _ = labels_of(solutions, continuations, Label(formulation="outcome", **COUNTS))
    assert [(row["solution_id"], row["step"], row["label"]) for row in rows] == [("s", 2, 1.0), ("other", 0, 0.0)]


def test_what_a_search_for_the_first_error_did_not_sample_follows_from_what_it_did(labels_of):
    # B was seen to succeed, D to be hopeless: A is right, C was probed and is right, D and E are wrong.
    steps = ("A", "B", "C", "D", "E", "F")
    sampled = continued("AB", "wrong", "right") | continued("ABC", "right") | continued("ABCD", *["wrong"] * 4)
    settings = Label(formulation="value", estimator="counts", min_verdicts=4)
    rows, _ = labels_of([solution(*steps, verdict="wrong")], sampled, settings, rule="first_success")
    assert [row["label"] for row in rows] == [1, 1, 1, 0, 0, 0]
    assert [row["num_verdicts"] for row in rows] == [0, 2, 1, 4, 0, 1]
    rows, _ = labels_of([solution("A", "B", "C")], {}, settings, rule="first_success")
    assert [row["label"] for row in rows] == [1, 1, 1]  # a right solution is its own success
    with pytest.raises(SettingsError, match="stopped at the first success"):
        labels_of([solution(*steps)], sampled, SOFT, rule="first_success")
    with pytest.raises(SettingsError, match="'advantage' with counts that stopped at the first success"):
        labels_of([solution(*steps)], sampled, Label(formulation="advantage", **COUNTS), rule="first_success")


def test_a_label_is_named_by_its_step_its_counts_and_its_value(labels_of):
    def names(settings, *verdicts, **changes):
        rows, _ = labels_of([solution("A", "B") | changes], continued(["A"], *verdicts), settings)
        return [row["label_id"] for row in rows]

    first = names(SOFT, "right", "wrong")
    assert len(set(first)) == 2
    assert names(SOFT, "right", "wrong") == names(SOFT, "wrong", "right") == first
    assert names(SOFT, "right", "wrong", "unknown") == first  # unknown decides nothing
    assert names(SOFT, "right", "wrong", "right", "wrong")[0] != first[0]  # the same share, better known
    assert names(Label(formulation="value", **COUNTS), "right", "wrong")[0] != first[0]
    assert names(SOFT, "right", "wrong", solution_id="other")[0] != first[0]
    assert names(SOFT, "right", "wrong", verifier_digest="other")[0] != first[0]


# --- joint estimation ----------------------------------------------------------------------------------------------


def test_the_joint_estimate_labels_steps_that_were_never_sampled_and_says_how_sure_it_is(labels_of):
    verdicts = ["right", "wrong"] * 20  # of each solution, and of all that continues it
    solutions = [solution("A", "B", "C", "D", name=f"s{i}", problem=f"p{i}", verdict=v) for i, v in enumerate(verdicts)]
    sampled = {f"p{i}": continued(["A", "B"], *[v] * 8) | continued(["A"], v) for i, v in enumerate(verdicts)}
    rows, labeller = labels_of(solutions, sampled, Label())
    assert labeller.estimator == "joint"
    assert [row["num_verdicts"] for row in rows[:4]] == [1, 8, 0, 1]
    assert [row["mc"] for row in rows[:4]] == [1.0, 1.0, None, 1.0]
    first, second, third, last = rows[:4]
    assert min(first["mean"], second["mean"], third["mean"]) > 0.9
    assert last["mean"] == last["low"] == last["high"] == 1.0
    assert all(row["low"] <= row["mean"] <= row["high"] and 0 < row["sd"] < 0.2 for row in rows[:3])


# --- switches ------------------------------------------------------------------------------------------------------


def many(num=40):
    """Solutions A B C of as many problems; the first half never right behind B, the other always."""
    solutions, sampled = [], {}
    for i in range(num):
        is_right = i >= num // 2
        solutions.append(
            solution("A", "B", "C", name=f"s{i:02d}", problem=f"p{i:02d}", verdict="right" if is_right else "wrong")
        )
        behind = continued(["A", "B"], *["right" if is_right else "wrong"] * 4)
        sampled[f"p{i:02d}"] = continued(["A"], "right", "right", "right", "wrong") | behind
    return solutions, sampled


def test_equal_prefixes_are_labelled_once(labels_of):
    solutions = [solution("A", "B", name="one"), solution("A", "C", name="two")]
    rows, labeller = labels_of(solutions, continued(["A"], "right", "wrong"), Label(unique_prefixes=True, **COUNTS))
    assert [(row["solution_id"], row["step"]) for row in rows] == [("one", 0), ("one", 1), ("two", 1)]
    assert labeller.switches.counts["unique_prefixes"] == {"before": 4, "after": 3}


def test_the_consensus_filter_keeps_what_agrees_on_the_first_error(labels_of):
    solutions, sampled = many(4)  # first errors: 1, 1, none, none
    second = {"s00": 1, "s01": 0, "s02": -1}  # agrees, disagrees, agrees, does not know
    rows, labeller = labels_of(solutions, sampled, Label(formulation="value", **COUNTS), second=second)
    assert {row["solution_id"] for row in rows} == {"s00", "s02"}
    assert labeller.switches.counts["consensus"] == {"before": 12, "after": 6}


def test_the_best_solutions_are_mixed_and_reliable(labels_of):
    solutions, sampled = many(4)
    rows, labeller = labels_of(solutions, sampled, Label(formulation="value", best_frac=0.5, **COUNTS))
    # Wrong ones: p = 1/3, R = .75: (2/9 + .05) * .75 = .204. Right ones: p = 1, R = (.75 + 1 + 1) / 3: .05 * .917 = .046.
    assert {row["solution_id"] for row in rows} == {"s00", "s01"}
    assert labeller.switches.counts["best_frac"] == {"before": 12, "after": 6}


def test_positives_are_thinned_to_the_number_of_negatives_and_negatives_are_all_kept(labels_of):
    solutions, sampled = many(400)
    settings = Label(formulation="value", balance=Balance(max_positives_per_negative=1.0), **COUNTS)
    rows, _ = labels_of(solutions, sampled, settings)
    positives, negatives = (sum(row["label"] == value for row in rows) for value in (1, 0))
    assert negatives == 400
    assert abs(positives - 400) < 4 * math.sqrt(800 * 0.5 * 0.5)


def test_equal_classes_weigh_the_same_and_wrong_steps_can_weigh_more(labels_of):
    solutions, sampled = many(4)  # 8 positive, 4 negative labels
    both = [Balance(equal_classes=True), Balance(negative_weight=3.0)]
    weights = []
    for balance in both:
        rows, _ = labels_of(solutions, sampled, Label(formulation="value", balance=balance, **COUNTS))
        weights.append({value: sum(row["weight"] for row in rows if row["label"] == value) for value in (0, 1)})
    assert weights == [{0: 6.0, 1: 6.0}, {0: 12.0, 1: 8.0}]


def test_classes_are_balanced_over_what_the_other_switches_leave(labels_of):
    solutions, sampled = many(400)
    few = Balance(max_positives_per_negative=0.5, equal_classes=True)
    rows, labeller = labels_of(solutions, sampled, Label(formulation="value", best_frac=0.75, balance=few, **COUNTS))
    # The best 300 solutions: all 200 wrong ones (1 right label, 2 wrong ones each) and 100 right ones (3 right labels).
    assert labeller.switches.counts["best_frac"] == {"before": 1200, "after": 900}
    positives, negatives = (sum(row["label"] == value for row in rows) for value in (1, 0))
    assert negatives == 400
    assert abs(positives - 200) < 4 * math.sqrt(500 * 0.4 * 0.6)
    weights = [sum(row["weight"] for row in rows if row["label"] == value) for value in (1, 0)]
    assert weights == pytest.approx([len(rows) / 2] * 2)


@pytest.mark.parametrize("estimator", ["counts", "joint"])
def test_the_interval_holds_the_mean(labels_of, estimator):
    solutions, sampled = many(8)
    rows, _ = labels_of(solutions, sampled, Label(estimator=estimator))
    assert {row["mc"] for row in rows} >= {0.0, 1.0}
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)


def test_the_guard_and_the_labels_do_not_depend_on_the_order_of_the_problems(labels_of):
    solutions, sampled = many(7)
    found = []
    for order in (solutions, solutions[::2] + solutions[1::2]):
        rows, labeller = labels_of(order, sampled, Label(estimator="joint"))
        found.append((labeller.guard, {row["label_id"]: row for row in rows}))
    assert found[0] == found[1]


def test_steps_whose_value_is_known_too_badly_are_left_out(labels_of):
    continuations = continued(["A"], "right", "wrong") | continued(["A", "B"], *["right"] * 30)
    rows, _ = labels_of([solution("A", "B", "C")], continuations, Label(max_sd=0.1, **COUNTS))
    assert [row["step"] for row in rows] == [1, 2]


def test_every_reason_to_leave_a_step_out_is_counted_apart_each_of_what_the_one_before_left(labels_of):
    solutions, sampled = many(8)
    solutions += [
        solution("A", "B", name="cut", problem="cut", verdict="unknown", finish_reason="length"),
        solution(name="empty", problem="empty"),
        solution("A", "B", "C", "D", name="open", problem="open", verdict="unknown"),
    ]
    sampled |= {"cut": {}, "empty": {}}
    sampled["open"] = continued("A", "right", "wrong") | continued("AB", "right") | continued("ABC", *["wrong"] * 4)
    everything = Label(
        formulation="value",
        estimator="counts",
        min_verdicts=2,
        max_sd=0.2,
        unique_prefixes=True,
        best_frac=0.5,
        balance=Balance(max_positives_per_negative=0.25, equal_classes=True, negative_weight=2.0),
    )
    second = {f"s{i:02d}": 1 if i < 4 else -1 for i in range(7)}
    rows, labeller = labels_of(solutions, sampled, everything, second=second)
    counts = labeller.switches.counts
    assert {name: (count["before"], count["after"]) for name, count in list(counts.items())[:-3]} == {
        "usable_solutions": (30, 28),
        "known_value": (28, 27),  # the end of `open` was not judged
        "min_verdicts": (27, 26),  # its B was measured once
        "max_sd": (26, 25),  # its A by two that disagree
        "unique_prefixes": (25, 25),
        "consensus": (25, 21),  # nothing else is known of `open`, nor of s07
        "best_frac": (21, 12),  # of seven solutions the four with a wrong step
    }
    thinned = counts["max_positives_per_negative"]
    assert (thinned["before"], thinned["after"]) == (12, len(rows))
    assert all(before["after"] == after["before"] for before, after in itertools.pairwise(counts.values()))
    num_wrong = sum(row["label"] == 0 for row in rows)
    assert (
        (counts["negative_weight"]["weighted"], counts["equal_classes"]["after"]) == (num_wrong, len(rows)) == (8, len(rows))
    )
    assert (labeller.num_unusable, labeller.switches.num_unlabelled) == (2, 5)


def test_the_best_solutions_of_a_search_that_stops_early_are_chosen_by_what_follows_too(labels_of):
    solutions = [
        solution("A", "B", "C", name="mixed", problem="p", verdict="wrong"),
        solution("A", name="right", problem="q"),
    ]
    sampled = {"p": continued("AB", *["wrong"] * 4) | continued("A", "right"), "q": {}}
    settings = Label(formulation="value", estimator="counts", best_frac=0.5)
    rows, _ = labels_of(solutions, sampled, settings, rule="first_success")
    assert [(row["solution_id"], row["label"]) for row in rows] == [("mixed", 1), ("mixed", 0), ("mixed", 0)]
    implied = {"p": continued("AB", "right")}  # A was never measured: its mean is unknown, its label is not
    rows, _ = labels_of(solutions[:1], implied, settings.model_copy(update={"best_frac": 1.0}), rule="first_success")
    assert [(row["mean"], row["label"]) for row in rows] == [(None, 1), (1.0, 1), (0.0, 0)]


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "solution_made_by", "prefix_made_by", "rule", "match"),
    [
        ("other", {}, {}, "fixed", "problem p is no seed"),
        ("p", {}, {"policy_digest": "another"}, "fixed", "policy_digest another, which no solution has"),
        ("p", {}, {"verifier_digest": "older"}, "fixed", "verifier_digest older, which no solution has"),
        ("p", {}, {"verifier_digest": "made elsewhere"}, "imported", None),
        ("p", {}, {}, "fixed", None),
    ],
)
def test_seeds_solutions_and_prefixes_must_be_of_one_run(tmp_path, seed, solution_made_by, prefix_made_by, rule, match):
    solutions = [solution("A", "B") | DIGESTS | solution_made_by]
    digests = DIGESTS | prefix_made_by
    rows = prefix_rows(MATHS, "p", solutions, {}, reuse=False, stopping_rule=lambda _n, _c: rule, digests=digests)
    write_table(tmp_path / "seeds.parquet", [{"problem_id": seed, "question": "?", "answer": "1"}], PROBLEM)
    write_table(tmp_path / "solutions.parquet", solutions, SOLUTION)
    write_table(tmp_path / "prefixes.parquet", rows, PREFIX)
    with pytest.raises(DataError, match=match) if match else contextlib.nullcontext():
        check_one_run(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("ours", "theirs", "is_refused"),
    [
        ("soft", "advantage", True),
        ("advantage", "soft", True),
        ("value", "outcome", True),
        ("outcome", "outcome", False),
        ("soft", "value", False),
        ("soft", None, False),
    ],
)
def test_a_second_opinion_must_mean_the_same_by_a_first_error(tmp_path, ours, theirs, is_refused):
    write_json(tmp_path / "summary.json", {"formulation": theirs} if theirs else {"format": "stepwise"})
    with pytest.raises(SettingsError, match="for a first error by") if is_refused else contextlib.nullcontext():
        _check_second(tmp_path, Label(formulation=ours))


def test_files_of_two_runs_are_refused(labels_of, tmp_path):
    labels_of([solution("A", "B")], continued(["A"], "right", "wrong"), SOFT)
    write_table(tmp_path / "solutions.parquet", [solution("A", "X", "B")], SOLUTION)
    with pytest.raises(DataError, match="which a solution has"):
        list(labelled(Labeller(SOFT, MATHS), tmp_path))
    write_table(tmp_path / "solutions.parquet", [solution("A", "B", problem="other")], SOLUTION)
    with pytest.raises(DataError, match="which a solution has"):
        list(labelled(Labeller(SOFT, MATHS), tmp_path))


def test_problems_without_a_solution_are_passed_over(labels_of, tmp_path, monkeypatch):
    """A tree search measures prefixes of problems of which it keeps no path."""
    solutions, sampled = many(12)
    kept = [s for s in solutions if s["problem_id"] not in ("p00", "p05", "p06", "p11")]
    wanted = [
        row for row in labels_of(solutions, sampled, SOFT)[0] if row["solution_id"] in {s["solution_id"] for s in kept}
    ]
    write_table(tmp_path / "solutions.parquet", kept, SOLUTION)  # prefixes.parquet still has all twelve
    for at_once in (16384, 1, 2, 3):
        monkeypatch.setattr("components.label.SOLUTIONS_AT_ONCE", at_once)
        assert [row for table in labelled(Labeller(SOFT, MATHS), tmp_path) for row in table.to_pylist()] == wanted


def test_labels_do_not_depend_on_how_many_solutions_are_labelled_at_once(labels_of, monkeypatch):
    solutions, sampled = many(20)
    whole, _ = labels_of(solutions, sampled, Label())
    monkeypatch.setattr("components.label.SOLUTIONS_AT_ONCE", 3)
    assert labels_of(solutions, sampled, Label())[0] == whole


def test_the_stage_writes_labels_a_gate_and_what_its_switches_kept(labels_of, tmp_path):
    import yaml

    from components.settings import Params

    solutions, sampled = many(12)
    labels_of(solutions, sampled, Label())
    seeds = [{"problem_id": name} for name in dict.fromkeys(s["problem_id"] for s in solutions)]
    write_table(tmp_path / "seeds.parquet", seeds, PROBLEM)
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["label"] = {"formulation": "value", "unique_prefixes": True, "best_frac": 0.5, **COUNTS}
    out = tmp_path / "out"
    out.mkdir()
    run(Params.model_validate(content), load_runtime({}), seeds=tmp_path, rollouts=tmp_path, out=out)
    summary = read_json(out / "summary.json")
    assert (summary["labels"], summary["solutions"], summary["estimator"]) == (18, 6, "counts")
    kept = {"usable_solutions": (36, 36), "known_value": (36, 36), "min_verdicts": (36, 36)}
    kept |= {"unique_prefixes": (36, 36), "best_frac": (36, 18)}
    assert summary["switches"] == {name: {"before": b, "after": a} for name, (b, a) in kept.items()}
    assert (summary["unlabelled"], summary["unusable_solutions"]) == (0, 0)
    assert sum(count for _, _, count in summary["histogram"]) == 18
    assert sorted(p.name for p in out.iterdir()) == ["gate.json", "labels.parquet", "summary.json"]
    assert LABEL.names[0] == "label_id"


def test_texts_of_known_probability_bound_the_estimate_and_leave_the_counts_alone(labels_of):
    solutions = [solution(*"ABCDE", name=f"s{i}", problem=f"p{i}", verdict="unknown") for i in range(20)]

    def sampled(verdict, mass):
        rows = [{"text": "3", "verdict": verdict, "finish_reason": "stop", "logprob": math.log(mass)}] * 4
        return {tuple("ABCDE"[:cut]): rows for cut in range(1, 5)}

    found = {}
    for mass in (0.4, 1e-9):
        sides = {f"p{i}": sampled("right" if i % 2 else "wrong", mass) for i in range(20)}
        rows, labeller = labels_of(solutions, sides, Label())
        assert labeller.estimator == "joint"
        found[mass] = rows
    for seen, plain in zip(found[0.4], found[1e-9], strict=True):
        assert (seen["num_right"], seen["num_verdicts"]) == (plain["num_right"], plain["num_verdicts"])
        if seen["stopping_rule"] == "final":
            continue
        if seen["num_right"]:  # four times the same text is one right text of probability .4
            assert 0.4 <= seen["mean"] < plain["mean"]
        else:
            assert plain["mean"] < seen["mean"] <= 0.6
