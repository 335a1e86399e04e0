"""The stage on a pool of a few problems, and what it reads beside scores: a problem's checker, another's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import evaluate, scenes, selection, step_truth, world
from components.cli import main
from components.errors import DataError, EngineError, SettingsError
from components.problems import load_benchmark
from components.records import CANDIDATE, IMAGE, SCORE, read_json, read_table, write_json, write_table
from components.settings import load_params, load_runtime
from tests.unit.test_score import trained

ROOT = Path(__file__).parents[2]

MATHS = {"id": "m", "kind": "perimeter", "colours": ["red", "blue"], "values": [3, 5, 4, 9]}
SCENE = {"id": "s", "kind": "scene/both", "colours": ["red", "blue"], "values": [2, 1, 0, 1, 3, 0, 0, 3, 0, 2, 1, 3, 1]}
UNKNOWN = {"id": "u", "kind": "chess/mate", "colours": [], "values": []}


def test_each_row_of_truth_finds_the_checker_of_its_world_and_other_kinds_are_not_measured(tmp_path, capfd):
    write_table(tmp_path / "truth.parquet", [MATHS, SCENE, UNKNOWN], world.TRUTH)
    problems = {"test": {f"problem {key}": {"source_id": key} for key in ("m", "s", "u", "elsewhere")}}
    found = step_truth.checkers(tmp_path / "truth.parquet", problems)
    assert set(found) == {"test"}
    assert set(found["test"]) == {"problem m", "problem s"}
    maths = ["red: 3", "blue: 5", "3 + 5 = 8", "8 * 2 = 16", "answer: 16"]
    scene = ["<step>red: 3</step>", "<step>blue: 1</step>", "<step>3 + 1 = 4</step>", "<answer>4</answer>"]
    assert all(step.is_right_so_far for step in found["test"]["problem m"](maths))
    assert all(step.is_right_so_far for step in found["test"]["problem s"](scene))
    assert not any(step.is_right_so_far for step in found["test"]["problem m"](scene))
    assert "1 rows of kinds without a checker" in capfd.readouterr().err


def test_the_kinds_of_two_worlds_are_never_taken_for_each_other():
    kinds = [f"scene/{kind}" for kind in (*scenes.COUNTING, *scenes.SPATIAL, scenes.LONG_KIND)]
    assert not set(kinds) & {*world.KINDS, world.LONG_KIND}


def problem(key, picture, source):
    return {"problem_id": key, "source": source, "images": [{"bytes": picture, "path": None}] if picture else []}


@pytest.mark.parametrize("sharing", [1, 2, 3])
def test_the_shuffled_picture_is_always_another_one(sharing):
    rng = np.random.default_rng(sharing)
    rows = [problem(f"{s}-{i}", bytes([s, i // sharing]), f"source {s}") for s in range(3) for i in range(9)]
    known = {row["problem_id"]: row for row in (rows[i] for i in rng.permutation(len(rows)))}
    for seed in range(20):
        shuffled = selection.shuffled(known, seed)
        assert list(shuffled) == list(known)
        for key, row in shuffled.items():
            theirs, ours = row["images"][0]["bytes"], known[key]["images"][0]["bytes"]
            assert theirs != ours
            assert theirs[0] == ours[0]  # of the same source
        given = sorted(row["images"][0]["bytes"] for row in shuffled.values())
        assert given == sorted(row["images"][0]["bytes"] for row in known.values())


def test_problems_without_pictures_are_left_out_of_the_shuffle():
    known = {f"p{i}": problem(f"p{i}", bytes([i]) if i % 3 == 0 else b"", "s") for i in range(12)}
    for key, row in selection.shuffled(known, 0).items():
        assert bool(row["images"]) == bool(known[key]["images"])
        assert not row["images"] or row["images"] != known[key]["images"]
    blank = {key: row | {"images": []} for key, row in known.items()}
    assert selection.shuffled(blank, 0) == blank


def test_where_most_of_a_source_share_a_picture_it_comes_from_another_source():
    rows = [problem(f"a{i}", b"shared" if i < 3 else b"a", "a") for i in range(4)]
    known = {row["problem_id"]: row for row in (*rows, *(problem(f"b{i}", bytes([i]), "b") for i in range(4)))}
    for seed in range(10):
        assert all(row["images"] != known[key]["images"] for key, row in selection.shuffled(known, seed).items())


def test_problems_without_pictures_are_clusters_of_their_own():
    rows = {
        row["problem_id"]: row
        for row in [problem("a", b"x", "s"), problem("b", b"", "s"), problem("c", b"x", "s"), problem("d", b"", "s")]
    }
    pool = {key: {"sample": [], "greedy": []} for key in rows}
    names = selection.pictures(pool, rows)
    assert names[0] == names[2]
    assert len(set(names)) == 3


def test_what_was_too_long_to_be_read_is_counted_and_left_out_of_the_steps_metrics():
    def candidate(key, *steps):
        return {"candidate_id": key, "steps": list(steps)}

    pool = {"p": {"sample": [candidate("a", "red: 3", "blue: 5"), candidate("b", "red: 3"), candidate("c")], "greedy": []}}
    errors = [
        {"id": f"e{i}", "steps": ["red: 3"], "right_so_far": [right], "step_kinds": ["reading"]}
        for i, right in enumerate([True, False, False])
    ]
    scores = {"a": [], "b": [0.9], "c": [], "e0": [0.8], "e1": [0.1], "e2": []}
    assert step_truth.num_unread({"test": pool}, errors, scores) == 2  # c has no steps
    assert step_truth.error_steps(errors, {"prm": scores}, {"prm": 0.5})["prm"]["num_steps"] == 2
    # each scorer by its own threshold: between its scores of the right and of the wrong step
    both, limits = {"prm": scores, "other": {"e0": [-0.2], "e1": [-0.9]}}, {"prm": 0.5, "other": -0.5}
    assert [one["macro_f1"] for one in step_truth.error_steps(errors, both, limits).values()] == [1.0, 1.0]
    truths = {"test": {"p": lambda steps: [world.StepTruth("reading", True, True) for _ in steps]}}
    assert step_truth.checked(pool, scores, truths) == ([[0.9]], [[True]], [["reading"]])


# --- the whole stage on a pool of a few problems ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tiny_policy, tmp_path_factory):
    """Two splits of four problems in two clusters, three candidates each, and two reward models that nobody trained."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows = []
    for split in ("dev", "test"):
        problems = [
            {"id": f"{split}{i}", "question": f"{split} {i} + 3?", "answer": str(i + 3), "cluster": f"seed {i // 2}"}
            for i in range(4)
        ]
        table = pa.Table.from_pylist([p | {"source": "sums", "image": None} for p in problems])
        table = table.set_column(table.schema.get_field_index("image"), pa.field("image", IMAGE), pa.nulls(4, IMAGE))
        pq.write_table(table, folder / f"{split}.parquet")
        for problem in load_benchmark(folder / f"{split}.parquet", max_image_pixels=10**6):
            for i in range(3):
                answer = problem["answer"] if i < 2 else "0"
                row = dict.fromkeys(CANDIDATE.names) | {
                    "candidate_id": f"{problem['problem_id']}/{i}",
                    "split": split,
                    "problem_id": problem["problem_id"],
                    "decoding": "sample",
                    "index": i,
                    "steps": [f"a step {i}", f"answer: {answer}"],
                    "answer": answer,
                    "verdict": "right" if i < 2 else "wrong",
                    "num_tokens": 10 + i,
                    "policy_digest": "a policy",
                }
                rows.append(row)
    write_table(folder / "pool" / "candidates.parquet", rows, CANDIDATE)
    write_json(folder / "pool" / "summary.json", {"pools": {"dev": "d", "test": "t"}})
    for name, formulation, last in (("prm", "soft", "min"), ("outcome", "outcome", "last")):
        trained(tiny_policy, folder / name / "prm", formulation=formulation, aggregation=last, threshold=0.5)
    return folder


def evaluated(workspace, out, **more):
    params = load_params(ROOT / "params.yaml")
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"num_resamples": 200})})
    runtime = load_runtime({"STEPFORGE_HOME": str(out / "home"), "STEPFORGE_DEVICE": "cpu"})
    known = {"step_errors": None, "truth": None, "candidates": workspace / "pool", "prm": workspace / "prm"}
    split = {name: workspace / f"{name}.parquet" for name in ("dev", "test")}
    out.mkdir(exist_ok=True)
    spent = evaluate.run(params, runtime, **(known | {"split": split, "out": out} | more))
    return read_json(out / "metrics.json"), spent


def test_a_second_reward_model_is_scored_beside_the_first(workspace, tmp_path):
    alone, _ = evaluated(workspace, tmp_path / "alone")
    found, spent = evaluated(workspace, tmp_path / "both", scorer={"orm": workspace / "outcome"})
    assert found["aggregations_by_scorer"]["orm"] == found["vote_aggregations_by_scorer"]["orm"] == "last"
    assert found["aggregations_by_scorer"]["prm"] == found["aggregation"] == alone["aggregation"]
    assert set(found["scorer_digests"]) == {"orm"}
    said = found["splits"]["test"]
    assert {"orm", "orm_vote"} <= set(said["selectors"])
    assert {("prm", "orm"), ("prm_vote", "orm_vote")} <= {(row["a"], row["b"]) for row in said["differences"]}
    assert said["selectors"]["prm"] == alone["splits"]["test"]["selectors"]["prm"]
    assert not {"likelihood", "likelihood_mean", "greedy"} & set(said["selectors"])  # this pool has none of these
    assert [row["tokens"] for row in said["curves"]["prm"]] == [11.0, 22.0, 33.0]
    assert [(row["group"], row["num_problems"]) for row in said["tables"]["difficulty"]] == [("0.5-0.75", 4)]
    assert spent["scoring_seconds"] > 0
    assert "seconds" not in (tmp_path / "both" / "metrics.json").read_text()
    scorers = {row["scorer"] for row in read_table(tmp_path / "both" / "scores.parquet", SCORE)}
    assert scorers == {"prm", "shuffled", "orm"}


def test_each_reward_model_is_read_by_what_dev_says_of_it_and_test_says_nothing(workspace, tiny_policy, tmp_path):
    trained(tiny_policy, tmp_path / "both" / "prm", formulation="outcome", aggregation="last", threshold=0.5)
    trained(tiny_policy, tmp_path / "both" / "blind", formulation="soft", aggregation="min", threshold=0.4)
    signed = trained(tiny_policy, tmp_path / "signed", formulation="advantage", aggregation="mean", threshold=-0.3)
    given = {"prm": tmp_path / "both", "scorer": {"signed": signed}}
    found, _ = evaluated(workspace, tmp_path / "out", **given)
    assert found["thresholds_by_scorer"] == {"prm": 0.5, "shuffled": 0.5, "blind": 0.4, "signed": -0.3}
    assert found["aggregations_by_scorer"]["prm"] == found["aggregations_by_scorer"]["shuffled"] == "last"
    assert found["aggregations_by_scorer"]["blind"] != "last" or found["vote_aggregations_by_scorer"]["blind"] != "last"
    # the verdicts of test turned round: nothing that is chosen moves
    rows = read_table(workspace / "pool" / "candidates.parquet", CANDIDATE)
    other = {"right": "wrong", "wrong": "right"}
    turned = [row | {"verdict": other[row["verdict"]] if row["split"] == "test" else row["verdict"]} for row in rows]
    write_table(tmp_path / "turned" / "candidates.parquet", turned, CANDIDATE)
    write_json(tmp_path / "turned" / "summary.json", {"pools": {"dev": "d", "test": "t"}})
    again, _ = evaluated(workspace, tmp_path / "again", candidates=tmp_path / "turned", **given)
    for key in ("aggregations_by_scorer", "vote_aggregations_by_scorer", "thresholds_by_scorer"):
        assert again[key] == found[key]
    assert again["splits"]["test"]["selectors"]["random"] != found["splits"]["test"]["selectors"]["random"]


def test_the_same_reward_model_twice_differs_in_nothing(workspace, tmp_path):
    found, _ = evaluated(workspace, tmp_path / "twins", scorer={"twin": workspace / "prm" / "prm"})
    for row in found["splits"]["test"]["differences"]:
        if row["b"] in ("twin", "twin_vote"):
            assert (row["mean"], row["low"], row["high"], row["p"], row["p_holm"]) == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert found["scorer_digests"]["twin"] == found["prm_digest"]
    assert [sorted(numbers.values()) for numbers in found["clusters"].values()] == [["0", "0", "1", "1"]] * 2


def test_evaluating_twice_gives_the_same_bytes(workspace, tmp_path):
    for name in ("one", "two"):
        evaluated(workspace, tmp_path / name, scorer={"orm": workspace / "outcome"})
    for file in ("metrics.json", "selections.parquet", "scores.parquet", "summary.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_variants_of_one_question_are_one_cluster(workspace):
    problems = {p["problem_id"]: p for p in load_benchmark(workspace / "test.parquet", max_image_pixels=10**6)}
    pool = {key: {"sample": [], "greedy": []} for key in problems}
    found = selection.clusters(workspace / "test.parquet", pool, problems, by_picture=False)
    assert found == ["seed 0", "seed 0", "seed 1", "seed 1"]
    assert selection.clusters(workspace / "elsewhere.jsonl", pool, problems, by_picture=False) is None
    assert len(set(selection.clusters(workspace / "elsewhere.jsonl", pool, problems, by_picture=True))) == 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("prm", "the name 'prm' is taken"),
        ("majority", "the name 'majority' is taken"),
        ("truth", "the name 'truth' is taken"),
        ("orm_vote", "'orm_vote' cannot name a reward model"),
        ("My ORM", "'My ORM' cannot name a reward model"),
    ],
)
def test_a_further_reward_model_needs_a_name_of_its_own(workspace, tmp_path, name, says):
    with pytest.raises(SettingsError, match=says):
        evaluated(workspace, tmp_path / "out", scorer={name: workspace / "outcome"})


def test_a_name_given_twice_is_refused_not_overwritten(tmp_path, capfd):
    given = ["--split", "dev=d", "--candidates", "c", "--prm", "p", "--scorer", "orm=a", "--scorer", "orm=b"]
    assert main(["evaluate", *given, "--params", str(ROOT / "params.yaml"), "--out", str(tmp_path / "out")]) != 0
    assert "--scorer names 'orm' twice" in capfd.readouterr().err


def test_a_further_reward_model_must_be_one_and_fit_the_task(workspace, tiny_policy, tmp_path):
    with pytest.raises(EngineError, match=r"no prm\.json"):
        evaluated(workspace, tmp_path / "out", scorer={"orm": workspace / "pool"})
    other = trained(tiny_policy, tmp_path / "scene", aggregation="min", threshold=0.5, task_digest="of another")
    with pytest.raises(EngineError, match="asked to score task 'maths'"):
        evaluated(workspace, tmp_path / "out", scorer={"orm": other})


def test_a_pool_needs_a_dev_split(workspace, tmp_path):
    with pytest.raises(DataError, match="no split named 'dev'"):
        evaluated(workspace, tmp_path / "out", split={"test": workspace / "test.parquet"})


def test_no_engine_is_within_reach_so_no_token_can_be_generated():
    grimp = pytest.importorskip("grimp")
    reached = grimp.build_graph("components", cache_dir=None).find_upstream_modules("components.evaluate")
    assert "components.prm" in reached
    assert not {
        name for name in reached if name.startswith(("components.engines", "components.sampling", "components.store"))
    }
