"""What is put together for training: whole problems a batch, problems kept aside, parts for several processes, licences."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from components.errors import DataError, SettingsError
from components.examples import Example, is_kept_aside, read_examples
from components.learner import Labels, Learner, _starts, targets_of, trees_of
from components.licences import licence_of
from components.prm import RewardModel
from components.processes import Crew
from components.records import LABEL, PROBLEM, SOLUTION, write_json, write_table
from components.settings import load_runtime
from components.tasks import load_task
from components.train import _of_formulation
from tests.conftest import picture

COLOURS = ("red", "blue", "green", "yellow")


@pytest.fixture(scope="module")
def model(tiny_policy):
    return RewardModel.from_policy(tiny_policy, device="cpu").eval()


def examples(model, num=5):
    out = []
    for p in range(num):
        for s in range(1 + p % 3):
            steps = [f"{c}: {1 + (p + s) % 9}" for c in COLOURS[: 1 + (p + s) % 4]]
            targets = [((p + i) % 5 / 4, 0, 0, 1.0 + i) for i in range(len(steps))]
            rendered = model.renderer.solution(steps)
            images = (picture(p),) if p % 2 else ()
            out.append(Example(f"p{p}", f"bars : red plus {p} ?", images, rendered, targets, tuple(range(len(steps)))))
    return out


def crews(size):
    """The processes of a crew, one after the other; each is told that the others have no more parts than it."""
    for rank in range(size):
        crew = Crew(load_runtime({"RANK": str(rank), "WORLD_SIZE": str(size), "STEPFORGE_DEVICE": "cpu"}))
        crew.most = lambda number: number
        yield crew


def plain_loss(model, rows):
    logits = torch.cat([model.logits(trees_of(model, [row])[0]) for row in rows])
    return model.formulation.loss(logits, targets_of(rows, "cpu"))


@pytest.mark.parametrize(("size", "tokens_at_once"), [(1, 16_384), (1, 30), (2, 16_384), (2, 30), (9, 16_384)])
def test_the_parts_of_all_processes_add_up_to_the_loss_of_the_rows(model, size, tokens_at_once):
    rows = examples(model)
    expected = plain_loss(model, rows)
    gradients = torch.autograd.grad(expected, [model.head])[0]
    learner = Learner(model, None, tokens_at_once)
    parts = [part for crew in crews(size) for part in learner.parts(rows, crew)]
    total = sum(learner.loss_of(part)[0] for part in parts)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(total, [model.head])[0], gradients, atol=1e-6)
    assert len(parts) >= size  # a process without work computes something, and learns nothing from it
    if tokens_at_once == 30:
        assert len(parts) > size


def test_shares_are_whole_disjoint_and_even():
    sizes = [7, 3, 9, 1, 1, 4, 6, 2]
    shares = [crew.share(sizes) for crew in crews(3)]
    assert sorted(i for share in shares for i in share) == list(range(8))
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= 1
    assert [crew.share([5]) for crew in crews(2)] == [[0], []]


def test_what_is_read_comes_in_the_order_of_theread_examples(model):
    rows = examples(model, 6)[::-1]
    rows = [rows[i] for i in (3, 0, 5, 1, 4, 2)]  # solutions of one problem lie apart
    learner = Learner(model, None, 80)
    expected = torch.cat([model.logits(trees_of(model, [row])[0]) for row in rows]).detach()
    model.train()
    found = learner.read(rows, next(crews(1)), learner.loss_of)
    assert model.training
    model.eval()
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_tree_knows_its_solutions(model):
    trees, order = trees_of(model, examples(model))
    starts = _starts(trees)
    assert starts[-1] == len(order)
    for tree, start in zip(trees, starts, strict=False):
        assert [len(places) for places in tree.places] == [len(e.targets) for e in order[start : start + len(tree.places)]]


def test_a_part_that_is_not_learnt_has_neither_loss_nor_gradient(model):
    learner = Learner(model, None, 16_384)
    (part,) = learner.parts(examples(model), next(crews(1)))
    loss = learner.loss_of(Labels(part.batch, part.targets, float("inf")))[0]
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, [model.head])[0].any()


def test_a_problem_is_kept_aside_by_its_name_alone():
    names = [f"problem {i}" for i in range(4000)]
    few, many = ({name for name in names if is_kept_aside(name, frac)} for frac in (0.05, 0.2))
    assert few < many
    assert len(few) / 4000 == pytest.approx(0.05, abs=0.015)
    assert not any(is_kept_aside(name, 0.0) for name in names)
    assert all(is_kept_aside(name, 1.0) for name in names)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("# A model\nlicense: mit\n", "unknown"),
        ("---\nlicense: [mit\n---\n", "unknown"),
        ("---\ntags: [x]\n---\n", "unknown"),
    ],
)
def test_a_licence_is_read_from_the_front_matter_of_the_model_card(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "config.json").write_text("{}")
    assert licence_of(tmp_path) == licence


def test_a_licence_is_read_from_the_policy_or_the_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"license": "mit"}))
    assert licence_of(tmp_path) == "mit"
    (tmp_path / "policy.json").write_text(json.dumps({"path_or_id": None, "digest": "x", "license": "apache-2.0"}))
    assert licence_of(tmp_path) == "apache-2.0"
    pointer = tmp_path / "pointer"
    pointer.mkdir()
    (pointer / "policy.json").write_text(json.dumps({"path_or_id": None, "served": "m", "digest": "x"}))
    assert licence_of(pointer) == "unknown"


def test_labels_of_another_formulation_are_refused_with_both_names(tmp_path):
    _of_formulation(tmp_path, "soft")  # labels from elsewhere say nothing
    write_json(tmp_path / "summary.json", {"formulation": "soft"})
    _of_formulation(tmp_path, "soft")
    with pytest.raises(SettingsError, match=r"'count', but .* labels of formulation 'soft'"):
        _of_formulation(tmp_path, "count")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused_with_its_step(model, tmp_path, weight):
    said = {"solution_id": "s", "problem_id": "p"}
    rows = {
        "seeds": ({"problem_id": "p", "question": "bars : red ?", "images": []}, PROBLEM),
        "solutions": (said | {"steps": ["red: 3"], "verdict": "right"}, SOLUTION),
        "labels": (said | {"step": 0, "label": 1.0, "num_right": 1, "num_verdicts": 1, "weight": weight}, LABEL),
    }
    for name, (row, schema) in rows.items():
        write_table(tmp_path / f"{name}.parquet", [dict.fromkeys(schema.names) | row], schema)
    with pytest.raises(DataError, match="step 0 of solution s has weight"):
        read_examples(model, load_task("maths"), tmp_path, tmp_path, tmp_path)


PARENT = """
import multiprocessing, time
from components.train import _end_with_parent

def child():
    _end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child, daemon=True).start()
    time.sleep(60)
"""


def test_a_training_process_ends_with_the_one_that_started_it(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    status = Path(f"/proc/{int(parent.stdout.readline())}/status")
    assert status.exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while is_alive := status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not is_alive
