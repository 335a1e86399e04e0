"""Every input row becomes a seed or a quarantine row with its reason, the same ones in every run."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from picture_fixture import bars, bomb, problem_rows, write_json_problems

from components import curate
from components.errors import DataError, SettingsError
from components.problems import REASONS
from components.records import PROBLEM, QUARANTINE, read_json, read_table, tree_sha256
from components.settings import load_params, load_runtime

ROOT = Path(__file__).parents[2]
REALDATA = ROOT.parent / "shared" / "realdata"


@pytest.fixture(scope="module")
def params():
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def run(params, tmp_path):
    def call(problems, holdout=(), task="maths", **changes):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        settings = params.curate.model_copy(update=changes)
        runtime = load_runtime({"STEPFORGE_HOME": str(tmp_path / "home")})
        curate.run(
            params.model_copy(update={"curate": settings, "task": task}),
            runtime,
            problems=list(problems),
            holdout=list(holdout),
            policy=None,
            out=out,
        )
        return out

    return call


def fates(out):
    return {row["source_id"]: row["reason"] for row in read_table(out / "quarantine.parquet", QUARANTINE)}


def test_each_row_has_its_fate(run, tmp_path):
    good = problem_rows(12)
    held = problem_rows(3, seed=1)
    rows = [
        *good,
        dict(good[0]),
        dict(good[1], id="copy"),
        dict(good[2], question="bars : another question , with the same id ?"),
        dict(held[0], id="leak"),
        dict(held[1], id="leaked picture", question="bars : how many bars are there ?", answer="4"),
        {"id": "lacking", "question": "q", "answer": None},
        {"id": "broken", "question": "q", "answer": "1", "picture": b"x"},
        {"id": "bomb", "question": "q", "answer": "1", "picture": bomb()},
        {"id": "prose", "question": "q", "answer": "a rhombus"},
        {"id": "outside", "question": "q", "answer": "1", "image_path": "../x.png"},
    ]
    problems = write_json_problems(tmp_path / "train", rows)
    (tmp_path / "train/images/p0-0.png").write_bytes(good[0]["picture"])
    out = run([problems], [write_json_problems(tmp_path / "test", held)], max_quarantined_frac=0.9)
    assert fates(out) == {
        "p0-0": "exact_duplicate",
        "copy": "exact_duplicate",
        "p0-2": "duplicate_id",
        "leak": "holdout_overlap",
        "leaked picture": "holdout_overlap",
        "lacking": "missing_answer",
        "broken": "broken_image",
        "bomb": "huge_image",
        "prose": "uncheckable_answer",
        "outside": "path_outside",
    }
    seeds = read_table(out / "seeds.parquet", PROBLEM)
    assert [seed["source_id"] for seed in seeds] == [row["id"] for row in good]
    summary = read_json(out / "summary.json")
    assert (summary["rows_in"], summary["seeds"], summary["quarantined"], summary["holdout_problems"]) == (22, 12, 10, 3)
    assert summary["reasons"] == dict(sorted(Counter(fates(out).values()).items()))
    assert set(summary["reasons"]) <= set(REASONS)
    assert read_json(out / "gate.json")["passed"]


def test_near_duplicates_go_and_the_first_stays(run, tmp_path):
    question = (
        "As shown in the figure the bars give the numbers of red blue green and yellow cards what is their total number"
    )
    alike = [bars([3, 5, 7, 2], noise=0.01, seed=seed) for seed in range(4)]
    rows = [{"id": i, "question": question, "answer": "17", "picture": alike[i]} for i in range(3)]
    rows.append({"id": 3, "question": question, "answer": "18", "picture": bars([3, 5, 8, 2])})
    rows.append({"id": 4, "question": "which bar is the longest", "answer": "7", "picture": alike[3]})
    rows[1]["question"] += " ?"
    out = run([write_json_problems(tmp_path, rows)])
    assert fates(out) == {"1": "near_duplicate", "2": "near_duplicate"}


def test_a_near_duplicate_of_a_test_problem_is_held_out_even_if_its_answer_cannot_be_checked(run, tmp_path):
    held = {"id": "t", "question": "name the shape of this figure", "answer": "a rhombus", "picture": bars([1, 2, 3, 4])}
    leak = dict(held, id="s", answer="4", picture=bars([1, 2, 3, 4], noise=0.01))
    out = run([write_json_problems(tmp_path / "a", [leak, *problem_rows(3)])], [write_json_problems(tmp_path / "b", [held])])
    assert fates(out) == {"s": "holdout_overlap"}


LONG_QUESTION = " ".join(f"word{i}" for i in range(70)) + " how many {} shapes stand in this picture of many small shapes ?"


def test_two_long_questions_on_one_picture_are_two_problems_where_the_unit_is_a_picture(run, tmp_path):
    picture = bars([3, 5, 7, 2])
    rows = [
        {"id": "red", "question": LONG_QUESTION.format("red"), "answer": "3", "picture": picture},
        {"id": "blue", "question": LONG_QUESTION.format("blue"), "answer": "4", "picture": picture},
        {
            "id": "again",
            "question": LONG_QUESTION.format("Red") + "!",
            "answer": "3",
            "picture": bars([3, 5, 7, 2], noise=0.01),
        },
    ]
    assert fates(run([write_json_problems(tmp_path, rows)], task="scene", max_quarantined_frac=1.0)) == {
        "again": "near_duplicate"
    }


def test_two_such_questions_are_near_duplicates_where_it_is_a_problem(run, tmp_path):
    rows = [
        {"id": colour, "question": LONG_QUESTION.format(colour), "answer": "3", "picture": bars([3, 5, 7, 2])}
        for colour in ("red", "blue")
    ]
    assert fates(run([write_json_problems(tmp_path, rows)], max_quarantined_frac=1.0)) == {"blue": "near_duplicate"}


def test_no_question_on_a_picture_that_looks_like_a_held_one_is_a_seed_where_the_unit_is_a_picture(run, tmp_path):
    held = [
        {"id": "t", "question": "how many red ?", "answer": "4", "picture": bars([1, 2, 3, 4])},
        {"id": "text", "question": "what is two and two ?", "answer": "4"},
    ]
    rows = [
        {
            "id": "other question",
            "question": "is blue left of red ?",
            "answer": "2",
            "picture": bars([1, 2, 3, 4], noise=0.01),
        },
        {"id": "same picture", "question": "how many green ?", "answer": "2", "picture": held[0]["picture"]},
        {"id": "other picture", "question": "how many red ?", "answer": "4", "picture": bars([4, 2, 3, 1])},
        {"id": "no picture", "question": "what is three and three ?", "answer": "6"},
    ]
    paths = [write_json_problems(tmp_path / name, content) for name, content in (("a", rows), ("b", held))]
    out = run(paths[:1], paths[1:], task="scene")
    assert fates(out) == {"other question": "holdout_overlap", "same picture": "holdout_overlap"}
    assert [row["source_id"] for row in read_table(out / "seeds.parquet", PROBLEM)] == ["other picture", "no picture"]


def test_the_same_row_is_a_seed_where_the_unit_is_a_problem(run, tmp_path):
    held = {"id": "t", "question": "how many red ?", "answer": "4", "picture": bars([1, 2, 3, 4])}
    row = {"id": "s", "question": "is blue left of red ?", "answer": "2", "picture": bars([1, 2, 3, 4], noise=0.01)}
    out = run([write_json_problems(tmp_path / "a", [row])], [write_json_problems(tmp_path / "b", [held])])
    assert fates(out) == {}


def test_two_runs_give_equal_bytes(run, tmp_path):
    path = write_json_problems(tmp_path, problem_rows(20))
    assert tree_sha256(run([path])) == tree_sha256(run([path]))


def test_several_files_count_as_one_input_and_ids_belong_to_their_file(run, tmp_path):
    first, second = problem_rows(4), [dict(row, id=f"p0-{i}") for i, row in enumerate(problem_rows(4, seed=5))]
    paths = [write_json_problems(tmp_path / "a", first), write_json_problems(tmp_path / "b", second)]
    out = run([*paths, paths[0]])
    assert read_json(out / "summary.json")["seeds"] == 8
    assert {row["reason"] for row in read_table(out / "quarantine.parquet", QUARANTINE)} == {"exact_duplicate"}


def test_too_many_unusable_rows_stop_the_stage(run, tmp_path):
    rows = [*problem_rows(1), {"id": "x", "question": "q", "answer": ""}, {"id": "y", "question": "q", "answer": ""}]
    with pytest.raises(DataError, match="2 of 3 rows are unusable") as caught:
        run([write_json_problems(tmp_path, rows)])
    assert "2 missing_answer" in caught.value.what
    assert "row 1 of" in caught.value.hint


def test_no_seed_at_all_stops_the_stage(run, tmp_path):
    with pytest.raises(DataError, match="1 of 1 rows are unusable"):
        run([write_json_problems(tmp_path, [{"id": "x", "question": "q", "answer": ""}])], max_quarantined_frac=1.0)


def test_the_difficulty_filter_needs_a_policy(run, params, tmp_path):
    difficulty = type(params.curate).model_fields["difficulty"].annotation.__args__[0]()
    with pytest.raises(SettingsError, match=r"curate\.difficulty needs a policy"):
        run([write_json_problems(tmp_path, problem_rows(2))], difficulty=difficulty)


def test_the_difficulty_filter_drops_both_ends_and_keeps_what_has_no_verdict(tmp_path):
    intake = curate.Intake(curate.Held([], 10**6))
    intake.read(write_json_problems(tmp_path, problem_rows(5)), 10**6)
    intake.drop_by_success([0.0, 0.1, 0.5, 1.0, None], 0.1, 0.9)
    assert [seed["source_id"] for seed in intake.seeds()] == ["p0-1", "p0-2", "p0-4"]
    assert [row["reason"] for row in intake.quarantine()] == ["too_hard", "too_easy"]


def test_problem_ids_depend_on_content_alone(run, tmp_path):
    rows = problem_rows(3)
    here = read_table(run([write_json_problems(tmp_path / "a", rows)]) / "seeds.parquet", PROBLEM)
    there = read_table(
        run([write_json_problems(tmp_path / "b", [dict(r, id=f"n{i}") for i, r in enumerate(rows)])]) / "seeds.parquet",
        PROBLEM,
    )
    assert [row["problem_id"] for row in here] == [row["problem_id"] for row in there]


@pytest.mark.skipif(not (REALDATA / "mmk12_test").is_dir(), reason="real rows are not on this machine")
def test_every_row_of_mm_k12_gets_a_fate(run):
    path = REALDATA / "mmk12_test" / "k12_55.json"
    out = run([path])
    rows = {row["id"]: row["answer"] for row in json.loads(path.read_text())}
    seeds = {row["source_id"]: row["answer_type"] for row in read_table(out / "seeds.parquet", PROBLEM)}
    quarantined = fates(out)
    assert seeds.keys() | quarantined.keys() == rows.keys()
    assert not seeds.keys() & quarantined.keys()
    assert set(quarantined.values()) == {"uncheckable_answer"}
    for source_id, answer in rows.items():
        several = "not unique" in answer
        prose = len([word for word in answer.split() if word.isalpha() and len(word) > 3]) > 3
        assert (source_id in quarantined) >= (several or prose), answer
        plain = answer.strip("$. ").lstrip("-").replace(".", "", 1).isdigit() and answer.count(".") < 3
        assert (source_id in seeds) >= plain, answer


@pytest.mark.skipif(not (REALDATA / "mmk12_test").is_dir(), reason="real rows are not on this machine")
def test_the_same_real_file_as_holdout_leaves_nothing(run):
    path = REALDATA / "mmk12_test" / "k12_55.json"
    with pytest.raises(DataError, match="50 holdout_overlap"):
        run([path], [path])


def test_pictures_keep_their_bytes(run, tmp_path):
    rows = problem_rows(2)
    seeds = read_table(run([write_json_problems(tmp_path, rows)]) / "seeds.parquet", PROBLEM)
    digests = [hashlib.sha256(seed["images"][0]["bytes"]).hexdigest() for seed in seeds]
    assert digests == [hashlib.sha256(row["picture"]).hexdigest() for row in rows]
