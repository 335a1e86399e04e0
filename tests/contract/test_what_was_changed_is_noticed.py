"""Bytes that no longer are what their digest says, folders that are not ours, work that was killed: noticed, never used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from components.checkpoints import policy_digest
from components.cli import main
from components.errors import EngineError
from components.lineage import publishing
from components.prm import RewardModel
from components.records import write_json

ROOT_PARAMS = "params.yaml"


def test_a_policy_whose_weights_changed_has_no_digest(checkpoint, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(checkpoint("internvl"), folder)
    claimed = json.loads((folder / "policy.json").read_text())["digest"]
    assert policy_digest(folder) == claimed
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(EngineError, match=claimed):
        policy_digest(folder)


def test_a_pointer_whose_model_changed_has_no_digest(checkpoint, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint("internvl"), model)
    from components.checkpoints import describe, write_pointer

    pointer = tmp_path / "pointer"
    write_pointer(pointer, describe(str(model), None))
    before = policy_digest(pointer)
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with pytest.raises(EngineError, match=before):
        policy_digest(pointer)


def test_an_edited_contract_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "prm"
    policy = checkpoint("internvl")
    model = RewardModel.from_policy(policy, marker="<prm>", label_tokens=("+", "-"), device="cpu", sees=True)
    model.save(folder, policy, {})
    RewardModel.load(folder, device="cpu")
    contract = json.loads((folder / "prm.json").read_text())
    write_json(folder / "prm.json", {**contract, "view": "blind"})
    with pytest.raises(EngineError, match=contract["digest"]):
        RewardModel.load(folder, device="cpu")


@pytest.mark.parametrize("verb", ["label", "world"])
def test_a_folder_of_another_origin_is_left_alone(verb, tmp_path, monkeypatch, capsys, request):
    params = request.config.rootpath / ROOT_PARAMS
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    arguments = ["--seeds", "s", "--rollouts", "r", "--params", str(params)] if verb == "label" else []
    assert main([verb, *arguments, "--out", "mine"]) == 2
    assert "mine" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert main([verb, *arguments, "--out", "."]) == 2


def test_what_a_killed_run_left_is_swept_and_a_living_one_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".out.{dead.pid}-x.part"
    alive = tmp_path / f".out.{os.getpid()}-y.part"
    for folder in (left, alive):
        folder.mkdir()
    with publishing(tmp_path / "out") as part:
        (part / "a").write_text("new")
    assert not left.exists()
    assert alive.exists()
