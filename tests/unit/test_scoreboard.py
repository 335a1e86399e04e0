"""The verb `benchmark` from the command line: outputs, stored verdicts, step scores, a reward model, a judge."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.cli import main
from components.records import CANDIDATE, SCORE, read_json, write_json, write_table
from components.scoreboard import candidate_rows, shown
from tests.conftest import picture
from tests.unit.test_judge import Server
from tests.unit.test_measures import group
from tests.unit.test_score import QUESTION, trained

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
needs_rows = pytest.mark.skipif(not REALDATA.is_dir(), reason="real rows are not on this machine")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbers(tmp_path, *arguments):
    out = tmp_path / "numbers.json"
    assert main(["benchmark", *map(str, arguments), "--out", str(out)]) == 0
    return read_json(out)


def means(content, judge):
    return {name: value and value["mean"] for name, value in content["measures"][judge].items()}


# --- answers -------------------------------------------------------------------------------------------------------


def test_we_math_by_the_official_letter_and_by_ours(tmp_path, capsys):
    rows = []
    for i, (parts, whole) in enumerate([((1, 1), 1), ((1, 0), 1), ((1, 1), 0), ((0, 0), 0)]):
        for row, right in group(f"2steps_{i}", parts, whole):
            letter = "B" if right else "C"
            rows.append({**row, "answer": "B", "option": "A. 1; B. 2; C. 3", "response": f"so\nAnswer: {letter}"})
    content = numbers(tmp_path, "wemath", written(tmp_path / "o.jsonl", rows))
    for judge in ("official", "ours"):
        found = means(content, judge)
        assert (found["score strict"], found["score loose"]) == (0.375, 0.625)
        assert (found["IK strict"], found["IG strict"], found["CM strict"], found["RM strict"]) == (0.25, 0.25, 0.25, 0.5)
    assert "score strict *" in capsys.readouterr().out


def test_official_and_ours_differ_where_the_official_rule_is_dubious(tmp_path):
    row = {"id": "9", "variant": 1, "question": "When?", "answer": "Oct", "answer_type": "text"}
    said = json.dumps({"solution": "", "short answer": "October or November"})
    content = numbers(tmp_path, "dynamath", written(tmp_path / "o.jsonl", [{**row, "response": said}] * 2))
    assert means(content, "official")["worst case"] == 1.0  # the gold text stands inside
    assert means(content, "ours")["worst case"] == 0.0


def test_stored_verdicts_are_compared_and_may_be_inverted(tmp_path, capsys):
    rows = [{"id": i, "answer": "8", "response": r"\boxed{8}", "match": "0" if i else "1"} for i in range(4)]
    path = written(tmp_path / "o.jsonl", rows)
    content = numbers(tmp_path, "mmk12", path, "--official", "match", "--inverted")
    assert (means(content, "stored")["accuracy"], means(content, "ours")["accuracy"]) == (0.75, 1.0)
    said = capsys.readouterr().out
    assert "ours and stored verdicts agree on 3 of 4 rows" in said
    assert "official: not computed here; its rule: GPT-4o judges" in said


def test_several_responses_of_a_row_count_by_their_share(tmp_path):
    rows = [{"id": 1, "answer": "8", "response": [r"\boxed{8}", r"\boxed{9}"]}]
    assert means(numbers(tmp_path, "mmk12", written(tmp_path / "o.jsonl", rows)), "ours")["accuracy"] == 0.5


def test_frozen_candidates_get_their_official_score(tmp_path):
    """Problems written by --to, answered in a pool, come back with the fields that the official rule needs."""
    source = {"image": {"bytes": picture(0), "path": None}, "answer_type": "float", "subject": "algebra"}
    trial = tmp_path / "data" / "sample_variant1-0.parquet"
    trial.parent.mkdir()
    rows = [{"id": str(i), "question": f"Find {i}.", "ground_truth": f"{i}.5", **source} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), trial)
    problems = tmp_path / "problems.parquet"
    assert main(["benchmark", "dynamath", str(tmp_path), "--to", str(problems)]) == 0
    from components.problems import load_problems

    known = [problem for _, problem in load_problems(problems, max_image_pixels=10**6)]
    empty = {field.name: None for field in CANDIDATE}
    texts = ("0.5", "1.5", "1.5", "2.5")  # greedy, and three samples of which the second and the third are equal
    pool = [
        {
            **empty,
            "candidate_id": f"{p['source_id']}-{i}",
            "problem_id": p["problem_id"],
            "decoding": "sample" if i else "greedy",
            "text": json.dumps({"short answer": text}),
            "answer": text,
        }
        for p in known
        for i, text in enumerate(texts)
    ]
    write_table(tmp_path / "pool" / "candidates.parquet", pool, CANDIDATE)
    steps = {"1": [0.9, 0.2], "2": [0.8, 0.1], "3": [0.5, 0.6]}  # by the least step the last sample is best
    scores = [
        {"candidate_id": row["candidate_id"], "scorer": "prm", "step_scores": steps[row["candidate_id"][-1]]}
        for row in pool
        if row["decoding"] == "sample"
    ]
    write_table(tmp_path / "evaluation" / "scores.parquet", scores, SCORE)
    write_json(tmp_path / "evaluation" / "metrics.json", {"aggregation": "min"})
    arguments = ("--candidates", tmp_path / "pool", "--evaluation", tmp_path / "evaluation")
    content = numbers(tmp_path, "dynamath", problems, *arguments)
    assert content["num_rows"] == 3
    rows = candidate_rows(problems, tmp_path / "pool", tmp_path / "evaluation")
    said = {name: {json.loads(row["response"])["short answer"] for row in chosen} for name, chosen in rows.items()}
    assert said == {"greedy": {"0.5"}, "majority": {"1.5"}, "prm": {"2.5"}}
    for selector in said:  # each picks the answer that is right for one of the three problems
        for judge in ("official", "ours"):
            assert content["measures"][judge][selector]["average"]["mean"] == pytest.approx(1 / 3, abs=1e-6)
    write_table(tmp_path / "evaluation" / "scores.parquet", scores[1:], SCORE)
    assert main(["benchmark", "dynamath", str(problems), *map(str, arguments)]) == 3


def test_wrong_words_name_those_that_are_known(tmp_path, capsys):
    path = written(tmp_path / "o.jsonl", [{"id": 1, "answer": "8"}])
    assert main(["benchmark", "mathvison", path]) == 2
    assert "mathvision" in capsys.readouterr().err
    assert main(["benchmark", "processbench", path]) == 2
    assert "one of --prm, --scores and --judge" in capsys.readouterr().err
    assert main(["benchmark", "mmk12", path]) == 3
    assert "no field 'response'" in capsys.readouterr().err
    assert main(["benchmark", "mathvision", str(tmp_path / "absent")]) == 3


# --- steps ---------------------------------------------------------------------------------------------------------


def process_rows(num=24):
    rows = []
    for i in range(num):
        at = i // 2 % 4 - 1
        steps = [f"{QUESTION} {i} {j}" for j in range(4)]
        rows.append({"id": f"{'gsm8k' if i % 2 else 'math'}-{i}", "problem": f"{QUESTION} {i}", "steps": steps, "label": at})
    return rows


def perfect(rows):
    return [{"id": row["id"], "scores": [0.1 if j == row["label"] else 0.9 for j in range(4)]} for row in rows]


def test_perfect_scores_reach_one_by_every_choice_of_the_threshold(tmp_path, capsys):
    rows = process_rows()
    path, scores = written(tmp_path / "p.jsonl", rows), written(tmp_path / "s.jsonl", perfect(rows))
    for more in ((), ("--threshold", "0.5"), ("--tune-on", "gsm8k")):
        content = numbers(tmp_path, "processbench", path, "--scores", scores, *more)
        assert [one["group"] for one in content["groups"]] == ["all", "gsm8k", "math"]
        assert {one["numbers"]["first_error_f1"]["mean"] for one in content["groups"]} == {1.0}
        assert content["num_scored"] == 24
    assert "its own row is optimistic" in capsys.readouterr().out
    assert main(["benchmark", "processbench", path, "--scores", scores, "--tune-on", "omnimath"]) == 2
    assert main(["benchmark", "processbench", path, "--scores", scores, "--tune-on", "math", "--threshold", "1"]) == 2


def test_a_reward_model_scores_with_its_own_threshold(tiny_policy, tmp_path, capsys):
    prm = trained(tiny_policy, tmp_path / "prm", aggregation="min", threshold=0.3)
    (tmp_path / "a.png").write_bytes(picture(1))
    rows = [
        {
            "id": str(i),
            "question": QUESTION,
            "image": ["a.png" if i < 3 else "absent.png"],
            "data_source": "MMMU",
            "response": {"steps": ["red: 3", f"blue: {i}"], "process_correctness": [1, -1 if i % 2 else 1]},
        }
        for i in range(4)
    ]
    content = numbers(tmp_path, "visualprocessbench", written(tmp_path / "test.jsonl", rows), "--prm", prm)
    assert (content["num_cases"], content["num_scored"]) == (4, 3)
    assert all(len(scores) == 2 for scores in content["scores"].values())
    said = capsys.readouterr()
    assert "the reward model's own threshold 0.30" in said.out
    assert "1 missing_image" in said.err


def test_a_judge_is_asked_at_its_url(tmp_path, monkeypatch):
    rows = process_rows(8)
    labels = {row["problem"]: [-1 if j == row["label"] else 1 for j in range(4)] for row in rows}

    def reply(body):
        text = body["messages"][1]["content"]
        problem = text.split("problem>>>\n")[1].split("\n<<<")[0]
        content = json.dumps({"steps": labels[problem]})
        return 200, {}, json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})

    with Server(reply) as server:
        monkeypatch.setenv("STEPFORGE_JUDGE_URL", server.url)
        content = numbers(tmp_path, "processbench", written(tmp_path / "p.jsonl", rows), "--judge", "m")
    assert content["groups"][0]["numbers"]["first_error_f1"]["mean"] == 1.0


# --- files of selections -------------------------------------------------------------------------------------------


def test_ties_are_given_to_the_first_there_and_shared_here(tmp_path):
    rows = [{"pred": ["1", "2"], "score": [True, False], "pred_score": [[0.5], [0.5]]}]
    content = numbers(tmp_path, "best-of-n", written(tmp_path / "b.jsonl", rows))
    assert means(content, "official") == {"rm@2": 1.0, "maj@2": 1.0, "pass@2": 1.0, "mean@2": 0.5}
    assert means(content, "ours") == {"rm@2": 0.5, "maj@2": 0.5, "pass@2": 1.0, "mean@2": 0.5}


def test_curves_are_shown_as_they_were_published(tmp_path, capsys):
    rows = [{"metric": "majority_voting", "num_samples_per_problem": n, "mean": n / 10, "std": 0.01} for n in (2, 4)]
    content = numbers(tmp_path, "best-of-n-curves", written(tmp_path / "c.jsonl", rows))
    assert content["curves"] == {"majority_voting": {"2": {"mean": 0.2, "std": 0.01}, "4": {"mean": 0.4, "std": 0.01}}}
    assert "0.200 ±0.010" in capsys.readouterr().out
    assert main(["benchmark", "best-of-n-curves", written(tmp_path / "x.jsonl", [{"metric": "m"}])]) == 3


@needs_rows
def test_the_real_curves_have_every_point(tmp_path):
    path = REALDATA / "prm800k/best-of-n-results.jsonl"
    points = [json.loads(line) for line in path.read_text().splitlines()]
    content = numbers(tmp_path, "best-of-n-curves", path)
    assert sum(len(curve) for curve in content["curves"].values()) == len(points) == 340
    majority = {str(p["num_samples_per_problem"]): p["mean"] for p in points if p["metric"] == "majority_voting"}
    assert {n: point["mean"] for n, point in content["curves"]["majority_voting"].items()} == majority


@needs_rows
def test_mmmu_says_what_its_guesses_are_worth(tmp_path, capsys):
    path = REALDATA / "mmmu/judged/llava1.5_13b.jsonl"
    content = numbers(tmp_path, "mmmu", path, "--official", "official_correct")
    assert means(content, "official")["accuracy"] == round(330 / 900, 6)
    said = capsys.readouterr().out
    assert "330 of 900 right; 2 answers were drawn at random, 1 of these right; without them 329" in said
    assert "official and stored verdicts agree on 900 of 900 rows" in said


def test_an_interval_reads_as_everywhere():
    assert shown({"mean": 0.8034, "low": 0.771, "high": 0.836}) == "0.803 [0.771, 0.836]"
    assert shown(None) == "-"
