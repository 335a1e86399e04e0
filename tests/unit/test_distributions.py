"""Official files become rows and problem files: every layout, on rows true to its schema and on real ones."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.benchmarks import BENCHMARKS, SUITES, answer_rule, benchmark
from components.distributions import official_rows, row_id, row_pictures, rows_of, write_problems
from components.errors import DataError, SettingsError
from components.grading import grade
from components.problems import load_benchmark
from components.sampling import gold_of
from components.tasks import load_task
from tests.conftest import picture

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
needs_rows = pytest.mark.skipif(not REALDATA.is_dir(), reason="real rows are not on this machine")
MAX_PIXELS = 50_000_000

HUB_ROWS = {  # one row of each, with the fields of its hub dataset
    "mmk12": {"id": "u1", "question": "How many?", "answer": "$$6$$", "image": True},
    "mathvista": {
        "pid": "1", "question": "How long?", "image": "images/1.jpg", "decoded_image": True, "choices": None, "unit": "m",
        "precision": 1.0, "answer": "1.2", "question_type": "free_form", "answer_type": "float",
    },
    "mathverse": {
        "sample_index": "5", "problem_index": "1", "problem_version": "Vision Only", "question": "", "image": True,
        "answer": "14", "question_type": "free-form",
    },
    "mathvision": {
        "id": "4", "question": "Which?\n<image1>", "options": ["12", "13"], "answer": "B", "level": 2, "subject": "algebra",
        "image": "images/4.jpg", "decoded_image": True,
    },
    "mmmu": {
        "id": "validation_Accounting_1", "question": "<image 1> Is <image 2>?", "options": "['$6', '$7']", "answer": "B",
        "question_type": "multiple-choice", "image_1": True, "image_2": True, "image_3": None,
    },
    "mmmu-pro": {
        "id": "test_History_1", "question": "Is <image 1>?", "options": "['x', 'y']", "answer": "B", "subject": "History",
        "image_1": True,
    },
    "dynamath": {
        "id": "9", "question": "Find it.", "image": "images/image9.png", "decoded_image": True, "ground_truth": "12.0",
        "answer_type": "float", "subject": "algebra",
    },
    "wemath": {
        "ID": "2steps_1", "key": "2steps_1", "question": "Which ( )?", "option": "A. 1; B. 2; C. No correct answer",
        "answer": "B", "image_path": True,
    },
    "logicvista": {"id": "v1_0", "question": "A, B or C?", "answer": "C", "image": True, "skill": "['inductive']"},
    "olympiadbench": {
        "id": 1, "context": "Let x be.", "question": "Find <image_1>.", "final_answer": ["5,15"], "unit": "m", "error": None,
        "image_1": True, "answer_type": "Numerical",
    },
    "gsm8k": {"question": "How much?", "answer": "2 * 9 = 18\n#### 18"},
    "math": {"problem": "What is $1+1$?", "answer": "2", "unique_id": "test/a/1.json", "level": 1, "subject": "Algebra"},
}  # fmt: skip


def with_pictures(row):
    return {
        key: {"bytes": picture(i), "path": None} if value is True else value for i, (key, value) in enumerate(row.items())
    }


def hub_snapshot(folder, name):
    """A folder with the first file that the benchmark's hub layout names."""
    pattern = next(iter(BENCHMARKS[name].files.values()))[0]
    path = folder / pattern.replace("variant*-*", "variant3-0").replace("*", "0")
    path.parent.mkdir(parents=True, exist_ok=True)
    row = with_pictures(HUB_ROWS[name])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_text(json.dumps(row) + "\n")
    return folder


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_hub_snapshot_becomes_a_problem_file_that_the_pipeline_reads(name, tmp_path):
    chosen = BENCHMARKS[name]
    rows = official_rows(chosen, hub_snapshot(tmp_path, name), pictures=True)
    out = tmp_path / "problems.parquet"
    assert write_problems(name, chosen, rows, out) == {"kept": 1}
    (problem,) = load_benchmark(out, max_image_pixels=MAX_PIXELS)
    assert problem["source"] == name
    assert problem["question"]
    assert "<image" not in problem["question"]
    shown = [value for value in HUB_ROWS[name].values() if value is True]
    assert len(problem["images"]) == len(shown)
    official = json.loads(pq.read_table(out).to_pylist()[0]["official_row"])
    gold = answer_rule(chosen.rule).read(official)
    assert gold == answer_rule(chosen.rule).read(HUB_ROWS[name])  # what the official score needs came along
    if gold.kind == "choice" and gold.options:  # the text of the option is as good as its letter
        known = gold_of(problem, load_task("maths"))
        assert (known.kind, known.options) == (gold.kind, gold.options)
        named = gold.options[ord(gold.answer.strip("()")) - ord("A")] if len(gold.answer.strip("()")) == 1 else gold.answer
        assert grade(rf"\boxed{{{named}}}", known).value == grade(rf"\boxed{{{named}}}", gold).value == "right"


def test_every_benchmark_has_a_rule_and_every_suite_benchmarks():
    for chosen in BENCHMARKS.values():
        answer_rule(chosen.rule)
    assert {name for suite in SUITES.values() for name in suite} <= set(BENCHMARKS)
    with pytest.raises(SettingsError, match="no benchmark named 'mathvison'"):
        benchmark("mathvison")


def test_variants_are_named_by_their_file_and_come_in_the_order_of_their_numbers(tmp_path):
    for trial in (10, 2, 1):
        path = tmp_path / f"trial{trial}" / "dataset.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"9": {"question": "?", "answer": "1"}, "12": {"question": "?", "answer": "2"}}))
    rows = official_rows(BENCHMARKS["dynamath"], tmp_path)
    assert [(row["variant"], row["id"]) for row in rows] == [(n, i) for n in (1, 2, 10) for i in ("9", "12")]
    assert row_id(BENCHMARKS["dynamath"], rows[0], 0) == "9/1"


def test_a_table_with_a_column_a_variant_becomes_rows_and_its_sums_are_left_out():
    table = [
        {"Question ID": "Q1", "Variant 1": "correct", "Variant 2": "fail", "Topic": "algebra"},
        {"Question ID": "# of correct", "Variant 1": "1", "Variant 2": "0", "Topic": ""},
        {"Question ID": "", "Variant 1": "", "Variant 2": "", "Topic": ""},
        {"Question ID": "Q2", "Variant 1": "", "Variant 2": "correct", "Topic": "logic"},  # unanswered is not right
    ]
    assert rows_of(table, Path("x.csv")) == [
        {"Question ID": "Q1", "Topic": "algebra", "id": "Q1", "variant": 1, "official": "correct"},
        {"Question ID": "Q1", "Topic": "algebra", "id": "Q1", "variant": 2, "official": "fail"},
        {"Question ID": "Q2", "Topic": "logic", "id": "Q2", "variant": 1, "official": ""},
        {"Question ID": "Q2", "Topic": "logic", "id": "Q2", "variant": 2, "official": "correct"},
    ]


def test_a_decoded_picture_stands_for_the_path_beside_it():
    row = {"image": "images/1.jpg", "decoded_image": {"bytes": b"x", "path": None}}
    assert row_pictures(BENCHMARKS["mathvista"], row) == [row["decoded_image"]]
    assert row_pictures(BENCHMARKS["mathvista"], {"image": "images/1.jpg"}) == ["images/1.jpg"]


def test_a_folder_without_the_files_and_an_unknown_split_are_errors(tmp_path):
    with pytest.raises(DataError, match="holds none of"):
        official_rows(BENCHMARKS["mathvision"], tmp_path)
    with pytest.raises(DataError, match="no such file"):
        official_rows(BENCHMARKS["mathvision"], tmp_path / "absent")
    with pytest.raises(SettingsError, match="no split 'mini'"):
        official_rows(BENCHMARKS["mathvision"], tmp_path, split="mini")


def test_rows_without_their_pictures_are_counted_by_reason(tmp_path):
    row = {**HUB_ROWS["mathvision"], "decoded_image": None}
    with pytest.raises(DataError, match="none of 1 rows is usable; the first: 4: missing_image"):
        write_problems("mathvision", BENCHMARKS["mathvision"], [row], tmp_path / "p.parquet", images=tmp_path)
    whole = with_pictures(HUB_ROWS["mathvision"])
    fates = write_problems("mathvision", BENCHMARKS["mathvision"], [whole, row], tmp_path / "p.parquet", images=tmp_path)
    assert fates == {"kept": 1, "missing_image": 1}


@needs_rows
@pytest.mark.parametrize(
    ("name", "place", "split", "images"),
    [
        ("dynamath", "dynamath", None, None),
        ("wemath", "wemath", None, "wemath/data"),
        ("logicvista", "logicvista", None, "logicvista/images"),
        ("mathvision", "mathvision", "testmini", None),
        ("olympiadbench", "olympiadbench", "to_maths_en", None),
        ("mathverse", "mathverse", "text_only", None),
    ],
)
def test_nearly_every_real_row_becomes_a_problem(name, place, split, images, tmp_path):
    rows = official_rows(BENCHMARKS[name], REALDATA / place, split=split)
    folder = REALDATA / images if images else None
    fates = write_problems(name, BENCHMARKS[name], rows[:60], tmp_path / "p.parquet", images=folder)
    assert fates["kept"] >= 0.9 * len(rows[:60])
    problems = load_benchmark(tmp_path / "p.parquet", max_image_pixels=MAX_PIXELS)
    assert all(problem["images"] for problem in problems) == (name not in ("olympiadbench", "mathverse"))
