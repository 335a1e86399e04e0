"""Labelled steps of other people's files: every layout with its own signs and counts, and scores made elsewhere."""

import json
from pathlib import Path

import pytest

from components.errors import DataError, SettingsError
from components.interchange.foreign import BadRow
from components.step_benchmarks import STEP_BENCHMARKS, Case, read_cases, scores_of_rows, step_benchmark

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
needs_rows = pytest.mark.skipif(not REALDATA.is_dir(), reason="real rows are not on this machine")


def cases(name, row):
    return STEP_BENCHMARKS[name].cases(row)


VISUAL = {
    "image": ["a.png"],
    "question": "How many?",
    "answer": "8",
    "data_source": "MMMU",
    "policy_model": "m",
    "response": {"steps": ["x", "y", "z"], "process_correctness": [1, 0, -1]},
}


def test_neutral_steps_of_visualprocessbench_have_no_label():
    (case,) = cases("visualprocessbench", VISUAL)
    assert case.labels == (True, None, False)
    assert (case.group, case.images, case.error_at) == ("MMMU", ("a.png",), 2)


def test_processbench_labels_reach_to_the_first_error():
    row = {"id": "gsm8k-3", "problem": "?", "steps": ["a", "b", "c"], "label": 1, "final_answer_correct": False}
    (case,) = cases("processbench", row)
    assert (case.labels, case.group, case.error_at) == ((True, False, None), "gsm8k", 1)
    (case,) = cases("processbench", {**row, "label": -1})
    assert (case.labels, case.error_at) == ((True, True, True), -1)


def test_prmbench_counts_errors_from_one_and_lends_its_originals_as_correct_ones():
    row = {
        "idx": "p_1", "classification": "redundency", "original_question": "?", "modified_question": "??",
        "original_process": ["a"], "modified_process": ["a", "b", "c"], "error_steps": [2],
    }  # fmt: skip
    modified, original = cases("prmbench", row)
    assert (modified.id, modified.labels, modified.is_extra) == ("redundency_p_1", (True, False, True), False)
    assert (original.id, original.labels, original.is_extra) == ("correct_p_1", (True,), True)
    assert len(cases("prmbench", {**row, "classification": "circular"})) == 1
    assert [case.id for case in cases("prmbench", {**row, "idx": "redundency_p_1"})] == [modified.id, original.id]


def test_every_rated_completion_of_prm800k_counts_once():
    def step(*rated, chosen=0):
        completions = [{"text": text, "rating": rating, "flagged": False} for text, rating in rated]
        return {"completions": completions, "human_completion": None, "chosen_completion": chosen}

    row = {
        "timestamp": "t",
        "question": {"problem": "2 + 1 ?", "ground_truth_answer": "3", "pre_generated_steps": None},
        "label": {"steps": [step(("a", 1)), step(("b", 0), ("c", -1)), step(("d", -1))], "finish_reason": "found_error"},
    }
    main, other = cases("prm800k", row)
    assert (main.steps, main.labels) == (("a", "b", "d"), (True, None, False))
    assert (other.steps, other.labels) == (("a", "c"), (None, False))


def test_one_marks_a_wrong_step_in_vlrmbench():
    text = "STEP1: a\n\nSTEP2: b\nmore\n\nSTEP3: c"
    row = {"id": "x", "question": "?", "reasoning_error": text, "task_gt": [0, 1, 0], "image": ["d/1.jpg"]}
    (case,) = cases("vlrmbench", row)
    assert case.steps == ("STEP1: a", "STEP2: b\nmore", "STEP3: c")
    assert case.labels == (True, False, True)
    assert cases("vlrmbench", {**row, "local_image": ["here.png"]})[0].images == ("here.png",)


def test_the_known_truth_is_right_so_far():
    row = {"id": "1", "source": "s", "question": "?", "steps": ["a", "b"], "right_so_far": [True, False], "image": None}
    (case,) = cases("known-truth", row)
    assert (case.labels, case.images, case.group) == ((True, False), (), "s")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("visualprocessbench", {**VISUAL, "response": {"steps": ["x"], "process_correctness": [1, 1]}}, "bad_label"),
        ("visualprocessbench", {**VISUAL, "response": {"steps": ["x"], "process_correctness": [2]}}, "bad_label"),
        ("visualprocessbench", {**VISUAL, "response": None}, "bad_row"),
        ("visualprocessbench", {**VISUAL, "question": " "}, "missing_question"),
        ("processbench", {"id": "a-1", "problem": "?", "steps": ["a"], "label": 1}, "bad_label"),
        ("processbench", {"id": "a-1", "problem": "?", "steps": [], "label": -1}, "bad_steps"),
        ("prmbench", {"modified_question": "?", "modified_process": ["a"], "error_steps": ["1"]}, "bad_label"),
        ("vlrmbench", {"question": "?", "reasoning_error": "STEP1: a", "task_gt": [0, 1]}, "bad_label"),
        ("known-truth", {"question": "?", "steps": ["a"], "right_so_far": []}, "bad_label"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(name, row, reason):
    with pytest.raises(BadRow) as error:
        cases(name, row)
    assert error.value.reason == reason


def test_cases_of_a_file_come_once_and_bad_rows_are_counted_aloud(tmp_path, capsys):
    rows = [VISUAL, {**VISUAL, "response": {}}, {**VISUAL, "id": "named"}, {**VISUAL, "id": "named"}]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for place in (path, tmp_path):
        assert [case.id for case in read_cases(STEP_BENCHMARKS["visualprocessbench"], place)] == ["test/0", "named"]
    assert "1 rows left out" in capsys.readouterr().err


def test_objects_one_after_another_over_many_lines_are_read(tmp_path):
    rows = [{"id": f"math-{i}", "problem": "?", "steps": ["a"], "label": -1} for i in range(2)]
    path = tmp_path / "two.json"
    path.write_text("\n".join(json.dumps(row, indent=1) for row in rows))
    assert [case.id for case in read_cases(STEP_BENCHMARKS["processbench"], path)] == ["math-0", "math-1"]


def test_subsets_are_the_files_where_ids_name_none(tmp_path):
    for name in ("gsm8k", "math"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"id": 1, "problem": name, "steps": ["a"], "label": -1}]))
    found = read_cases(STEP_BENCHMARKS["processbench"], tmp_path)
    assert {case.group for case in found} <= {"gsm8k", "math"}


def test_what_is_no_such_benchmark_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match="no step benchmark named 'x'"):
        step_benchmark("x")
    with pytest.raises(DataError, match="holds none of"):
        read_cases(STEP_BENCHMARKS["processbench"], tmp_path)
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="none of 1 rows is usable"):
        read_cases(STEP_BENCHMARKS["processbench"], path)


TWO = [Case("a", "?", ("x", "y"), (True, False)), Case("b", "?", ("x",), (True,))]


@pytest.mark.parametrize("field", ["scores", "step_scores", "prm_scores", "rewards", "predictions"])
def test_scores_made_elsewhere_are_joined_by_id(field):
    assert scores_of_rows(TWO, [{"id": "b", field: [1]}, {"id": "a", field: [0.5, -2]}]) == {"b": [1.0], "a": [0.5, -2.0]}


def test_scores_as_prmbench_writes_them_are_read():
    rows = [{"idx": "a", "scores": {"step_level_validity_labels": [True, False], "step_level_validity_scores": [0.9, 0.2]}}]
    assert scores_of_rows(TWO, rows) == {"a": [0.9, 0.2]}


def test_scores_without_ids_are_joined_by_order_if_there_are_as_many():
    assert scores_of_rows(TWO, [{"scores": [1, 2]}, {"scores": [3]}]) == {"a": [1.0, 2.0], "b": [3.0]}
    with pytest.raises(DataError, match="1 rows without ids for 2 cases"):
        scores_of_rows(TWO, [{"scores": [1, 2]}])


def test_scores_that_do_not_fit_are_left_out_aloud(capsys):
    rows = [{"id": "a", "scores": [1.0]}, {"id": "b", "scores": [1.0]}, {"id": "c", "scores": [1.0]}]
    assert scores_of_rows(TWO, rows) == {"b": [1.0]}
    assert "1 of another length, 1 of no case" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of 1 rows fits"):
        scores_of_rows(TWO, [{"id": "b", "scores": [float("nan")]}])


@needs_rows
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("prm800k", "prm800k/prm800k-phase*-example.json"),
        ("prmbench", "prmbench/subset*.jsonl"),
        ("vlrmbench", "vlrmbench/*.jsonl"),
    ],
)
def test_every_real_row_is_a_case(name, pattern, capsys):
    for path in sorted(REALDATA.glob(pattern)):
        found = read_cases(STEP_BENCHMARKS[name], path)
        assert found
        assert all(len(case.steps) == len(case.labels) for case in found)
        assert any(label is False for case in found for label in case.labels) or "phase1-test" in path.name
    assert "left out" not in capsys.readouterr().err
