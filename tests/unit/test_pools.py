"""Pools that were made elsewhere: every row finds its problem, or says why not, and the numbers are those of its authors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from components import measures, selection
from components.cli import main
from components.elsewhere import KeptScores
from components.errors import DataError
from components.pools import FORMATS, OFFICIAL, BadRowError, Problems, run
from components.problems import load_benchmark
from components.records import CANDIDATE, SCORE, digest, file_sha256, read_json, read_table, write_table
from components.selection import Choice
from components.settings import load_params, load_runtime
from components.tasks import load_task
from tests.unit.test_score import trained

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
PARAMS = Path(__file__).parents[2] / "params.yaml"
QUESTIONS = [{"id": f"q{i}", "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
MM_PRM = [
    {
        "question": row["question"],
        "image_path": "images/x.png",
        "solutions_splits": [["think", f"so \\boxed{{{i + 1}}}"], ["guess", " ", f"so \\boxed{{{i + 2}}}"]],
        "labels": [1, 0],
        "prm_scores": [[0.9, 0.8], [0.4, 0.3, 0.1]],
    }
    for i, row in enumerate(QUESTIONS)
]


@pytest.fixture
def imported(tmp_path):
    """(rows, format) -> (candidates, official, scores, summary)."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    def call(rows, form, *, problems=QUESTIONS, **more):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        runtime = load_runtime({"STEPFORGE_HOME": str(tmp_path / "home")})
        split = {"test": write("problems.jsonl", problems)}
        files = [write(f"pool{i}.jsonl", part) for i, part in enumerate(rows if isinstance(rows[0], list) else [rows])]
        summary = run(load_params(PARAMS), runtime, files=files, form=form, split=split, out=out, **more)
        assert summary == read_json(out / "summary.json")
        tables = (("candidates", CANDIDATE), ("official", OFFICIAL), ("scores", SCORE))
        return *(read_table(out / f"{name}.parquet", schema) for name, schema in tables), summary

    return call


def test_mm_prm_rows_keep_their_steps_labels_and_scores(imported):
    rows, official, scores, summary = imported(MM_PRM, "mm-prm", scorer="mm_prm")
    assert [row["steps"] for row in rows[:2]] == [["think", "so \\boxed{1}"], ["guess", "so \\boxed{2}"]]
    assert [row["text"] for row in rows[:2]] == ["think\n\nso \\boxed{1}", "guess\n\nso \\boxed{2}"]
    assert [(row["answer"], row["verdict"]) for row in rows[:2]] == [("1", "right"), ("2", "wrong")]
    assert [row["is_right"] for row in official] == [True, False] * 3
    assert [row["step_scores"] for row in scores[:2]] == [[0.9, 0.8], [0.4, 0.1]]  # that of the blank step is gone
    assert {row["scorer"] for row in scores} == {"mm_prm"}
    assert summary["official"] == {"num_judged": 6, "num_agreeing": 6}
    assert {row["logprob"] for row in rows} | {row["num_tokens"] for row in rows} | {row["seed"] for row in rows} == {None}
    named = [[row["candidate_id"], row["steps"], row["verdict"]] for row in rows]
    assert summary["pools"] == {"test": digest("pool", named)}


def test_the_verdicts_of_the_file_can_stand_instead_of_ours(imported):
    wrong = [row | {"labels": [0, 1]} for row in MM_PRM]
    rows, _, _, summary = imported(wrong, "mm-prm", verdicts="official")
    assert [row["verdict"] for row in rows] == ["wrong", "right"] * 3
    assert {(row["rule"], row["verifier_digest"]) for row in rows} == {("official", "official/mm-prm")}
    assert imported(wrong, "mm-prm")[3]["official"] == {"num_judged": 6, "num_agreeing": 0}
    assert summary["verdict_counts"] == {"right": 3, "wrong": 3, "unknown": 0}
    silent = [{k: v for k, v in row.items() if k != "labels"} for row in MM_PRM]
    assert imported(silent, "mm-prm")[3]["official"]["num_judged"] == 0
    with pytest.raises(DataError, match="candidate 0 of problem q0 has no official verdict"):
        imported(silent, "mm-prm", verdicts="official")


def test_a_solution_without_steps_has_a_score_of_none_where_the_others_have_some(imported, tmp_path):
    rows = [
        {**row, "solutions_splits": [row["solutions_splits"][0], [" "]], "prm_scores": [[0.9, 0.8], [0.1]]} for row in MM_PRM
    ]
    candidates, _, scores, summary = imported(rows, "mm-prm")
    assert [row["step_scores"] for row in scores] == [[0.9, 0.8], []] * len(rows)
    kept = KeptScores(next(tmp_path.glob("out*")), "elsewhere", [row["candidate_id"] for row in candidates])
    assert summary["num_scored"] == len(kept.steps) == 2 * len(rows)


def test_plain_rows_add_up_whether_a_response_or_many_a_row(imported):
    single = [
        {
            "id": row["id"],
            "response": f"so \\boxed{{{j}}}",
            "logprob": -1.5,
            "score": 0.25,
            "num_tokens": 7,
            "correct": j == 1,
        }
        for row in QUESTIONS
        for j in range(2)
    ]
    greedy = [{"id": row["id"], "response": ["a", "\\boxed{1}"], "decoding": "greedy"} for row in QUESTIONS]
    rows, official, scores, summary = imported([single, greedy], "jsonl")
    assert [(row["decoding"], row["index"]) for row in rows[:3]] == [("sample", 0), ("sample", 1), ("greedy", 0)]
    assert [row["steps"] for row in rows[1:3]] == [["so \\boxed{1}"], ["a", "\\boxed{1}"]]
    assert (rows[0]["logprob"], rows[0]["num_tokens"], rows[2]["logprob"]) == (-1.5, 7, None)
    assert [row["is_right"] for row in official[:3]] == [False, True, None]
    assert len(scores) == 6
    assert summary["tokens"] == 6 * 7
    many = [
        {
            "id": row["id"],
            "responses": [f"so \\boxed{{{j}}}" for j in range(2)],
            "logprobs": [-1.5] * 2,
            "scores": [0.25] * 2,
        }
        for row in QUESTIONS
    ]
    again, _, same, _ = imported(many, "jsonl")
    assert [row["text"] for row in again] == [row["text"] for row in rows if row["decoding"] == "sample"]
    assert same == scores


def test_a_truncated_response_has_no_verdict(imported):
    cut = [{"id": row["id"], "response": "so \\boxed{1}", "finish_reason": "length"} for row in QUESTIONS]
    rows, _, _, _ = imported(cut, "jsonl")
    assert {(row["finish_reason"], row["verdict"]) for row in rows} == {("length", "unknown")}


# --- which problem --------------------------------------------------------------------------------------------------


def found(problems, **row):
    read = FORMATS["jsonl"]({"response": "x", **row})
    answer = Problems({"test": problems}, load_task("maths")).find(read)
    return answer if isinstance(answer, str) else answer[1]["source_id"]


def problem(name, question):
    return {"source_id": name, "question": question}


def test_a_row_finds_its_problem_by_question_and_by_id_where_that_does_not_tell():
    known = [problem("a", "How many?"), problem("b", "How many?"), problem("c", "How\nlong is it?\nHint: an integer.")]
    assert found(known, id="b", question="How many?") == "b"
    assert found(known, question="How many?") == "2 problems have the question 'How many?'"
    assert found(known, id="c") == "c"
    assert found(known, id="c", question="How long is it?") == "c"  # the benchmark's file asks more than the row
    assert found(known, id="a", question="How long is it? Hint: an integer.") == "c"  # ids of another file say nothing
    assert found(known, id="a", question="Something else?") == "no problem has the question 'Something else?'"
    assert found(known, id="z") == "no problem has the id 'z'"
    assert found(known) == "it has neither id nor question"


def test_a_pool_that_leaves_problems_out_is_refused_and_rows_too_many_are_said(imported, capsys):
    with pytest.raises(DataError, match="1 problems have no candidates, the first: q2 of split 'test'"):
        imported(MM_PRM[:2], "mm-prm")
    rows, *_ = imported([*MM_PRM, MM_PRM[0] | {"question": "What is 9?"}], "mm-prm")
    assert len(rows) == 6
    assert "1 rows are about no problem of the splits" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of 1 rows is about a problem"):
        imported([{"id": "other", "response": "x"}], "jsonl")


# --- files that are not what they should be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "row", "said"),
    [
        ("mm-prm", {"question": "q"}, "solutions_splits is None"),
        ("mm-prm", {"solutions_splits": [["a"], "b"]}, "solution 1 of solutions_splits is no list of texts"),
        ("mm-prm", {"solutions_splits": [["a"]], "labels": [1, 0]}, "labels: 2 for 1 candidates"),
        ("mm-prm", {"solutions_splits": [["a"]], "prm_scores": [[0.1, 0.2]]}, "2 prm_scores for the 1 steps"),
        ("mm-prm", {"solutions_splits": [["a"]], "prm_scores": [[float("nan")]]}, "no finite number"),
        ("qwen-best-of-8", {"code": []}, "no list of candidates"),
        ("qwen-best-of-8", {"code": ["a"], "pred_score": [["x"]]}, "pred_score holds"),
        ("qwen-best-of-8", {"code": [3]}, "a response is 3, no text"),
        ("jsonl", {"id": 1}, "neither response nor responses"),
        ("jsonl", {"response": {"a": 1}}, "no text"),
        ("jsonl", {"responses": ["a"], "scores": [True]}, "no finite number"),
        ("jsonl", {"response": ["a", "b"], "score": [0.1, 0.2, 0.3]}, "3 scores for 2 steps"),
        ("jsonl", {"response": "a", "score": 10**400}, "no finite number"),
        ("jsonl", {"response": "a", "logprob": []}, "no finite number"),
        ("jsonl", {"response": "a", "logprob": [-1.0]}, "no finite number"),
        ("jsonl", {"responses": ["a"], "num_tokens": [[]]}, "no finite number"),
        *(("jsonl", {"response": "a", "num_tokens": n}, "no number of tokens") for n in (-1, 1.5, 2**31)),
        ("jsonl", {"response": "a\ud800"}, "half a character"),
        ("mm-prm", {"solutions_splits": [["a", "\ud800"]]}, "half a character"),
        ("qwen-best-of-8", {"code": ["a"], "pred": ["\ud800"]}, "half a character"),
    ],
)
def test_a_row_that_is_no_such_row_says_what_it_lacks(form, row, said):
    with pytest.raises(BadRowError, match=said.replace("(", r"\(")):
        FORMATS[form](row)


def test_a_mistake_is_two_lines_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    Path("problems.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    Path("pool.jsonl").write_text("\n".join(map(json.dumps, MM_PRM)))

    def call(*more, form="mm-prm", file="pool.jsonl"):
        told = ["--format", form, "--split", "test=problems.jsonl", "--params", str(PARAMS), "--out", "pool", *more]
        code = main(["import-pool", file, *told])
        lines = capsys.readouterr()
        return code, lines.out + lines.err

    assert call(form="magic") == (
        2,
        "error: command line: --format 'magic' is unknown\nhint: known: mm-prm, qwen-best-of-8, jsonl\n",
    )
    assert call("--verdicts", "theirs")[0] == 2
    code, said = call(form="qwen-best-of-8")
    assert code == 3
    assert said.startswith("error: pool.jsonl, row 0: response is None, no list of candidates")
    assert call(file="absent.jsonl")[0] == 3
    assert not Path("pool").exists()
    code, said = call()
    assert code == 0
    assert "pool: 6 candidates, 3 right, 3 wrong, 0 unknown; 6 with scores" in said
    assert "6 of 6 agree" in said


# --- real rows ------------------------------------------------------------------------------------------------------


def own_numbers(candidates, scores, problems):
    """Majority, choice of the reward model, pass@N and mean by the arithmetic of evaluate."""
    pool = selection.pools(candidates, {"test": {p["problem_id"]: p for p in problems}})["test"]
    known = {"rm": {row["candidate_id"]: row["step_scores"] for row in scores}}
    values = selection.selectors(pool, selection.choosers(pool, known, {"rm": Choice("last", "last")}))
    return {name: values[key] for name, key in (("maj", "majority"), ("rm", "rm"), ("pass", "oracle"), ("mean", "random"))}


@pytest.mark.skipif(not (REALDATA / "qwen25math_best_of_8").exists(), reason="no real data here")
def test_qwens_best_of_8_is_reproduced_by_our_own_arithmetic(imported, tmp_path):
    (path,) = (REALDATA / "qwen25math_best_of_8").glob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    problems = [{"id": str(row["idx"]), "question": row["question"], "answer": row["answer"]} for row in rows]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, problems)))
    checkable = load_benchmark(tmp_path / "all.jsonl", max_image_pixels=1)
    kept = {p["source_id"] for p in checkable}
    assert len(kept) >= 0.95 * len(rows)
    rows = [row for row in rows if str(row["idx"]) in kept]
    problems = [row for row in problems if row["id"] in kept]
    official = {m.name.partition("@")[0]: np.array(m.over) for m in measures.best_of_n_rows(rows)}

    for verdicts in ("official", "ours"):
        candidates, _, scores, summary = imported(rows, "qwen-best-of-8", problems=problems, verdicts=verdicts)
        assert len(candidates) == 8 * len(rows)
        numbers = own_numbers(candidates, scores, checkable)
        if verdicts == "official":  # every problem, but for ties that they give to the first and we share
            for name in ("rm", "pass", "mean"):
                assert np.array_equal(numbers[name], official[name])
            tied = (numbers["maj"] > 0) & (numbers["maj"] < 1)
            assert np.array_equal(numbers["maj"][~tied], official["maj"][~tied])
        else:
            assert summary["official"]["num_agreeing"] >= 0.97 * summary["official"]["num_judged"]
            for name in ("rm", "pass", "mean"):
                assert numbers[name].mean() == pytest.approx(official[name].mean(), abs=0.03)


@pytest.mark.skipif(not (REALDATA / "mmk12_test").exists(), reason="no real data here")
def test_a_pool_in_mm_prms_layout_finds_real_problems(imported, tmp_path):
    (path,) = (REALDATA / "mmk12_test").glob("k12_*_noimages.json")
    given = json.loads(path.read_text())
    (tmp_path / "all.jsonl").write_text(
        "\n".join(json.dumps({k: v for k, v in row.items() if k != "image_path"}) for row in given)
    )
    known = {row["source_id"] for row in load_benchmark(tmp_path / "all.jsonl", max_image_pixels=1)}
    given = [row for row in given if row["id"] in known]
    problems = [{k: row[k] for k in ("id", "question", "answer")} for row in given]
    pool = [
        {
            "id": row["id"],
            "question": row["question"],
            "image_path": row["image_path"],
            "solutions_splits": [["read", f"\\boxed{{{row['answer']}}}"], ["guess", "\\boxed{-123456}"]],
            "labels": [1, 0],
        }
        for row in given
    ]
    rows, _, _, summary = imported(pool, "mm-prm", problems=problems)
    assert len(rows) == 2 * len(given) > 200
    assert summary["official"]["num_agreeing"] >= 0.95 * len(rows)


# --- and then -------------------------------------------------------------------------------------------------------


def test_an_imported_pool_is_evaluated_and_its_own_scores_stand_beside_the_reward_models(tmp_path, monkeypatch, tiny_policy):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    (tmp_path / "prm").mkdir()
    trained(tiny_policy, tmp_path / "prm" / "prm")
    for split, first in (("dev", 0), ("test", 3)):
        questions = [{"id": f"q{i}", "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(first, first + 3)]
        Path(f"{split}.jsonl").write_text("\n".join(map(json.dumps, questions)))
        rows = [
            {"id": row["id"], "responses": [f"so \\boxed{{{j}}}" for j in (0, int(row["answer"]))], "scores": [0.1, 0.7]}
            for row in questions
        ]
        Path(f"{split}_pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = ["--split", "dev=dev.jsonl", "--split", "test=test.jsonl", "--params", str(PARAMS)]
    assert main(["import-pool", "dev_pool.jsonl", "test_pool.jsonl", "--format", "jsonl", *splits, "--out", "pool"]) == 0
    given = ["--candidates", "pool", "--prm", "prm", "--scorer", "theirs=pool"]
    assert main(["evaluate", *splits, *given, "--out", "evaluation"]) == 0
    found = read_json(Path("evaluation/metrics.json"))
    test = found["splits"]["test"]["selectors"]
    assert (test["random"]["mean"], test["theirs"]["mean"], test["theirs_vote"]["mean"]) == (0.5, 1.0, 1.0)
    assert "likelihood" not in test
    assert "greedy" not in test
    assert found["aggregations_by_scorer"]["theirs"] == "last"
    assert found["scorer_digests"]["theirs"] == file_sha256(Path("pool/scores.parquet"))[:32]
    assert [row["tokens"] for row in found["splits"]["test"]["curves"]["theirs"]] == [None, None]


def test_kept_scores_say_what_they_lack(tmp_path):
    rows = [
        {"candidate_id": key, "scorer": name, "step_scores": s}
        for key, name, s in [("a", "x", [-1.0, 2.0]), ("a", "y", [3.0])]
    ]
    write_table(tmp_path / "scores.parquet", rows, SCORE)
    assert KeptScores(tmp_path, "x", ["a"]).aggregations == ("min", "mean", "last", "max")  # no product of numbers below 0
    assert KeptScores(tmp_path, "y", ["a"]).aggregations == ("last",)
    with pytest.raises(DataError, match="holds no scorer 'z'"):
        KeptScores(tmp_path, "z", ["a"])
    with pytest.raises(DataError, match="scorer 'y' says nothing of candidate b"):
        KeptScores(tmp_path, "y", ["a", "b"])
    write_table(tmp_path / "scores.parquet", [{"candidate_id": "a", "scorer": "x", "step_scores": []}], SCORE)
    assert KeptScores(tmp_path, "x", ["a"]).aggregations == ("last",)  # nothing was read
    broken = [{"candidate_id": "a", "scorer": "x", "step_scores": [0.5, math.nan]}]
    write_table(tmp_path / "scores.parquet", broken, SCORE)
    with pytest.raises(DataError, match="a score of candidate a is no finite number"):
        KeptScores(tmp_path, "x", ["a"])
