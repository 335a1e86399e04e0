"""What evaluation reads beside the scores: the checker that fits a problem, and another problem's picture."""

from __future__ import annotations

import numpy as np
import pytest

from components import evaluate, scenes, world
from components.records import write_table

MATHS = {"id": "m", "kind": "perimeter", "colours": ["red", "blue"], "values": [3, 5, 4, 9]}
SCENE = {"id": "s", "kind": "scene/both", "colours": ["red", "blue"], "values": [2, 1, 0, 1, 3, 0, 0, 3, 0, 2, 1, 3, 1]}
UNKNOWN = {"id": "u", "kind": "chess/mate", "colours": [], "values": []}


def test_each_row_of_truth_finds_the_checker_of_its_world_and_other_kinds_are_not_measured(tmp_path, capfd):
    write_table(tmp_path / "truth.parquet", [MATHS, SCENE, UNKNOWN], world.TRUTH)
    problems = {"test": {f"problem {key}": {"source_id": key} for key in ("m", "s", "u", "elsewhere")}}
    found = evaluate._truths(tmp_path / "truth.parquet", problems)
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
        shuffled = evaluate._shuffled(known, seed)
        assert list(shuffled) == list(known)
        for key, row in shuffled.items():
            theirs, ours = row["images"][0]["bytes"], known[key]["images"][0]["bytes"]
            assert theirs != ours
            assert theirs[0] == ours[0]  # of the same source
        given = sorted(row["images"][0]["bytes"] for row in shuffled.values())
        assert given == sorted(row["images"][0]["bytes"] for row in known.values())


def test_problems_without_pictures_are_clusters_of_their_own():
    rows = {
        row["problem_id"]: row
        for row in [problem("a", b"x", "s"), problem("b", b"", "s"), problem("c", b"x", "s"), problem("d", b"", "s")]
    }
    pool = {key: {"sample": [], "greedy": []} for key in rows}
    names = evaluate._pictures(pool, rows)
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
    assert evaluate._num_unread({"test": pool}, errors, scores) == 2  # c has no steps
    assert evaluate._error_steps(errors, {"prm": scores}, 0.5)["prm"]["num_steps"] == 2
    truths = {"test": {"p": lambda steps: [world.StepTruth("reading", True, True) for _ in steps]}}
    assert evaluate._checked(pool, scores, truths) == ([[0.9]], [[True]], [["reading"]])
