"""Numbers of benchmarks as sums over units: against the formulas of their papers and the authors' own tables."""

import csv
import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.benchmarks import BENCHMARKS
from components.distributions import official_rows
from components.grade import read_rows
from components.measures import accuracy, best_of_n_rows, first_best, first_majority, four_states, wemath_state, worst_case

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
needs_rows = pytest.mark.skipif(not REALDATA.is_dir(), reason="real rows are not on this machine")


def files(pattern: str) -> list[Path]:
    return sorted(REALDATA.glob(pattern))


def values(measures):
    return {one.name: one.value for one in measures}


def test_accuracy_over_all_and_by_field():
    rows = [{"level": 1}, {"level": 2}, {"level": 2}, {"level": None}]
    assert values(accuracy("level")(rows, [1, 0, 1, 1])) == {"accuracy": 0.75, "level 1": 1.0, "level 2": 0.5}


def test_a_field_with_one_value_is_not_shown_and_a_nested_one_is_found():
    rows = [{"m": {"task": "a"}, "one": 1}, {"m": {"task": "b"}, "one": 1}]
    assert values(accuracy("m.task", "one")(rows, [1, 0])) == {"accuracy": 0.5, "task a": 1.0, "task b": 0.0}


def test_versions_of_a_problem_are_drawn_together():
    (measure,) = accuracy(unit="problem")([{"problem": "a"}, {"problem": "a"}, {"problem": "b"}], [1, 0, 1])
    assert measure.clusters == ("a", "a", "b")


def test_the_worst_case_is_a_seed_with_all_variants_right():
    rows = [{"id": seed, "variant": variant} for seed in "ab" for variant in (1, 2)]
    found = values(worst_case(rows, [1, 1, 0, 1]))
    assert found == {"worst case": 0.5, "average": 0.75, "robustness": 0.5 / 0.75, "variant 1": 0.5, "variant 2": 1.0}


@pytest.mark.parametrize(
    ("parts", "whole", "strict", "loose"),
    [
        ((True, True), True, "CM", "CM"),
        ((True, False), True, "RM", "CM"),
        ((False, False), True, "RM", "RM"),
        ((True, True), False, "IG", "IG"),
        ((True, False), False, "IK", "IK"),
        ((False, False), False, "IK", "IK"),
    ],
)
def test_the_states_of_a_group(parts, whole, strict, loose):
    assert wemath_state(parts, whole, is_loose=False) == strict
    assert wemath_state(parts, whole, is_loose=True) == loose


def group(name, parts, whole):
    steps = f"{len(parts)}steps"
    keys = [f"{steps}_{i}" for i in range(1, len(parts) + 1)] + [f"{steps}_multi"]
    return [({"ID": name, "key": key}, float(right)) for key, right in zip(keys, (*parts, whole), strict=True)]


verdicts = st.tuples(st.lists(st.booleans(), min_size=2, max_size=3), st.booleans())


@given(st.lists(verdicts, min_size=1, max_size=30))
def test_the_score_is_the_official_formula(groups):
    named = [pair for i, (parts, whole) in enumerate(groups) for pair in group(f"{len(parts)}steps_{i}", parts, whole)]
    found = values(four_states([row for row, _ in named], [right for _, right in named]))
    for label, kept in (("strict", all), ("loose", any)):
        num = len(groups)
        ig = sum(not whole and all(parts) for parts, whole in groups)
        ik = sum(not whole and not all(parts) for parts, whole in groups)
        rm = sum(whole and not kept(parts) for parts, whole in groups)
        cm = sum(whole and kept(parts) for parts, whole in groups)
        assert found[f"score {label}"] == pytest.approx((num - 0.5 * ig - rm - ik) / num)
        assert found[f"IK {label}"] == pytest.approx(ik / num)
        assert found[f"IG {label}"] == pytest.approx(ig / num)
        assert found[f"CM {label}"] == pytest.approx(cm / num)
        assert found[f"RM {label}"] == (pytest.approx(rm / (rm + cm)) if rm + cm else None)


def test_a_missing_row_of_a_group_is_a_wrong_one():
    rows = [row for row, _ in group("2steps_1", (True, True), True)]
    assert values(four_states(rows[1:], [1.0, 1.0]))["score strict"] == 0.0
    assert values(four_states(rows[1:], [1.0, 1.0]))["score loose"] == 1.0


@needs_rows
def test_the_real_groups_of_we_math_are_whole():
    for path in files("wemath/testmini*.json"):
        rows = read_rows(path)
        names = {row["ID"] for row in rows}
        for pattern in product((0.0, 1.0), repeat=2):
            right = [pattern[row["key"].endswith("multi")] for row in rows]
            found = values(four_states(rows, right))
            assert found["score strict"] == {(0, 0): 0.0, (1, 0): 0.5, (0, 1): 0.0, (1, 1): 1.0}[pattern]
        assert len(four_states(rows, [1.0] * len(rows))[0].over) == len(names)


# --- files of verdicts ---------------------------------------------------------------------------------------------


@needs_rows
@pytest.mark.parametrize("path", files("dynamath/results/*.csv"), ids=lambda path: path.stem)
def test_dynamath_numbers_are_those_of_the_file_itself(path):
    rows = official_rows(BENCHMARKS["dynamath"], path)
    found = values(worst_case(rows, [float(row["official"] == "correct") for row in rows]))
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.reader(file))
    per_question = [row for row in table if sum(cell in ("correct", "fail") for cell in row) == 10]
    counts = next(row for row in table if row[0].startswith("# of correct per variant"))
    assert len(per_question) == 501
    assert found["worst case"] == pytest.approx(sum(row[11] == "10" for row in per_question) / 501)
    assert found["average"] == pytest.approx(sum(int(row[11]) for row in per_question) / 5010)
    for variant in range(1, 11):
        assert found[f"variant {variant}"] == pytest.approx(int(counts[variant]) / 501)


@needs_rows
def test_mathvista_tables_are_those_of_its_score_file():
    golds = {row["id"]: row for row in read_rows(REALDATA / "mathvista/testmini_1000_noimages.json")}
    official = json.loads((REALDATA / "mathvista/judged/scores_llava_llama_2_13b.json").read_text())
    rows = [{**golds[row["pid"]], **row} for row in read_rows(REALDATA / "mathvista/judged/llava.jsonl")]
    right = [float(row["true_false"]) for row in rows]
    found = values(accuracy("question_type", "answer_type", "metadata.source", "metadata.task")(rows, right))
    assert found["accuracy"] == pytest.approx(official["average"]["correct"] / official["average"]["total"])
    for field in ("question_type", "answer_type", "source", "task"):
        for value, numbers in official[field].items():
            assert found[f"{field} {value}"] == pytest.approx(numbers["correct"] / numbers["total"])


# --- Best-of-N -----------------------------------------------------------------------------------------------------


def test_ties_go_to_the_first():
    assert first_majority(["2", "1", "1", "2"]) == 0
    assert first_best([[0.5], [0.9], [0.9]]) == 1


def test_best_of_n_by_hand():
    rows = [
        {"pred": ["1", "2", "2"], "score": [True, False, False], "pred_score": [[3.0], [1.0], [2.0]]},
        {"pred": ["5", "6", "7"], "score": [False, False, True], "pred_score": [[3.0], [1.0], [2.0]]},
    ]
    assert values(best_of_n_rows(rows)) == {"rm@3": 0.5, "maj@3": 0.0, "pass@3": 1.0, "mean@3": pytest.approx(1 / 3)}
    assert values(best_of_n_rows(rows, 1)) == {"rm@1": 0.5, "maj@1": 0.5, "pass@1": 0.5, "mean@1": 0.5}


@needs_rows
@pytest.mark.parametrize("path", files("qwen25math_best_of_8/*.jsonl"), ids=lambda path: path.stem)
def test_best_of_8_of_the_qwen_file_by_brute_force(path):
    rows = read_rows(path)
    majority = picked = reached = 0
    for row in rows:
        counts = [row["pred"].count(pred) for pred in row["pred"]]
        majority += row["score"][counts.index(max(counts))]
        scores = [score for (score,) in row["pred_score"]]
        picked += row["score"][scores.index(max(scores))]
        reached += any(row["score"])
    found = values(best_of_n_rows(rows))
    assert (found["maj@8"], found["rm@8"], found["pass@8"]) == (
        majority / len(rows),
        picked / len(rows),
        reached / len(rows),
    )
