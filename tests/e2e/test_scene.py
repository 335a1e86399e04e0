"""The whole pipeline on the second task, at smoke size: nothing in it knows maths only, and what can be exact is."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from components.cli import main
from components.metrics import Bootstrap
from components.records import seed_for
from components.scenes import check, truth_from_row, write_scenes
from components.tasks import SCENE

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SMOKE = {
    "sft": {
        "align": {"num_steps": 25, "batch_size": 32, "learning_rate": 4e-3},
        "phases": [{"column": "warmup_steps", "num_steps": 70}, {"column": "steps", "num_steps": 10}],
        "optimiser": {"num_steps": 80, "batch_size": 32, "learning_rate": 4e-3, "warmup_steps": 15},
    },
    "rollout": {"num_solutions": 2, "search": {"type": "joint", "price": 0.003, "max_rounds": 3}, "max_failed_frac": 1.0},
    "train": {
        "optimiser": {"num_steps": 6, "batch_size": 16, "learning_rate": 1e-3},
        "perception": {
            "warmup": {"num_steps": 6, "batch_size": 8, "learning_rate": 2e-3},
            "corrupted_frac": 0.5,
            "aux_batch_size": 4,
            "aux_weight": 0.5,
        },
    },
    "sample": {"num_candidates": 3},
    "evaluate": {"num_resamples": 400},
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """What all stages wrote, run as dvc.yaml runs them, on the scene task's data and settings."""
    folder = tmp_path_factory.mktemp("scene")
    params = yaml.safe_load((ROOT / "params/scene.yaml").read_text())
    for section, changes in SMOKE.items():
        params[section] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    write_scenes(folder / "data", scale=0.04)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")  # a stage sets it; this brings it back
        patch.setenv("STEPFORGE_HOME", str(folder / "home"))
        patch.setenv("STEPFORGE_THREADS", "1")
        for stage in STAGES.values():
            assert main(shlex.split(stage["cmd"])[3:]) == 0
    return folder / "artifacts"


def table(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def unwrapped(steps: list[str]) -> str | None:
    """The answer of a solution by its last unit, read without the verifier."""
    last = steps[-1] if steps else ""
    inside = last.removeprefix("<answer>").removesuffix("</answer>")
    return inside.strip() if last.startswith("<answer>") and last.endswith("</answer>") else None


def test_the_settings_of_the_task_are_complete():
    ours, theirs = (yaml.safe_load((ROOT / name).read_text()) for name in ("params/scene.yaml", "params.yaml"))
    assert ours.keys() == theirs.keys()
    assert ours["task"] == "scene"


def test_no_seed_shows_a_test_picture_and_questions_on_one_picture_stay_two_problems(artifacts):
    seeds = table(artifacts / "seeds/seeds.parquet")
    held = {
        row["image"]["bytes"] for name in ("dev", "test", "ood") for row in table(artifacts.parent / f"data/{name}.parquet")
    }
    asked = defaultdict(set)
    for row in seeds:
        assert row["images"][0]["bytes"] not in held
        asked[row["images"][0]["bytes"]].add(row["question"])
    assert len(seeds) == 80
    assert [len(questions) for questions in asked.values()] == [2] * 40
    reasons = [row["reason"] for row in table(artifacts / "seeds/quarantine.parquet")]
    assert len(reasons) == 8
    assert reasons.count("holdout_overlap") == 2


def test_solutions_are_split_by_the_tags_and_right_where_their_answer_is(artifacts):
    answers = {row["problem_id"]: row["answer"] for row in table(artifacts / "seeds/seeds.parquet")}
    solutions = table(artifacts / "rollouts/solutions.parquet")
    assert len(solutions) == 160
    for row in solutions:
        assert row["steps"] == SCENE.steps(row["text"], max_steps=12)
        given = unwrapped(row["steps"])
        if given is not None and row["finish_reason"] == "stop" and row["verdict"] != "unknown":
            assert (row["verdict"] == "right") == (given == answers[row["problem_id"]])


def test_the_last_step_of_a_solution_has_its_verdict_as_label(artifacts):
    verdicts = {row["solution_id"]: row["verdict"] for row in table(artifacts / "rollouts/solutions.parquet")}
    final = [row for row in table(artifacts / "labels/labels.parquet") if row["stopping_rule"] == "final"]
    assert len(final) > 20
    for row in final:
        assert row["label"] == (verdicts[row["solution_id"]] == "right")


def test_the_truth_beside_the_scores_is_the_checkers(artifacts):
    data = artifacts.parent / "data"
    by_content = {
        (row["question"], row["image"]["bytes"]): row["id"]
        for name in ("dev", "test", "ood")
        for row in table(data / f"{name}.parquet")
    }
    assert len(by_content) == 52
    truths = {row["id"]: truth_from_row(row) for row in table(data / "truth.parquet")}
    scores = {
        (row["candidate_id"], row["scorer"]): row["step_scores"] for row in table(artifacts / "evaluation/scores.parquet")
    }
    candidates = table(artifacts / "candidates/candidates.parquet")
    assert len(candidates) == 52 * 4
    problem_of = {}
    from components.problems import load_benchmark

    for name in ("dev", "test", "ood"):
        for problem in load_benchmark(data / f"{name}.parquet", max_image_pixels=10**6):
            problem_of[problem["problem_id"]] = by_content[problem["question"], problem["images"][0]["bytes"]]
    for row in candidates:
        found = check(truths[problem_of[row["problem_id"]]], row["steps"])
        assert scores[row["candidate_id"], "truth"] == [float(step.is_right_so_far) for step in found]
        assert len(scores[row["candidate_id"], "prm"]) == len(row["steps"])
        if found and found[-1].is_right_so_far and unwrapped(row["steps"]) is not None:
            assert row["verdict"] == "right"


def test_the_metrics_count_pictures_not_rows(artifacts):
    metrics = json.loads((artifacts / "evaluation/metrics.json").read_text())
    assert metrics["steps"]["candidates"]["prm"]["num_steps"] > 100
    errors = table(artifacts.parent / "data/step_errors.parquet")
    assert metrics["steps"]["step_errors"]["prm"]["num_steps"] == sum(len(row["steps"]) for row in errors)
    picked = [
        row
        for row in table(artifacts / "evaluation/selections.parquet")
        if (row["split"], row["selector"]) == ("test", "random")
    ]
    pictures = [row["image"]["bytes"].hex() for row in table(artifacts.parent / "data/test.parquet")]
    assert (len(picked), len(set(pictures))) == (24, 12)
    options = {"num_resamples": 400, "confidence": 0.95, "seed": seed_for(0, "bootstrap")}
    expected = Bootstrap(24, **options, clusters=pictures).mean(np.array([row["value"] for row in picked]))
    assert metrics["splits"]["test"]["selectors"]["random"] == expected
