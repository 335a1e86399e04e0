"""Several processes train what one does: data parallelism, DeepSpeed's stages, parts of a step, and a kill in the middle."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from components.records import LABEL, PROBLEM, SOLUTION, write_table
from tests.conftest import picture

ROOT = Path(__file__).parents[2]
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
COLOURS = ("red", "blue", "green", "yellow")


@pytest.fixture(scope="session")
def work(tmp_path_factory, checkpoint):
    """Seeds, rollouts and labels of a dozen problems, statements, demonstrations and params.yaml."""
    folder = tmp_path_factory.mktemp("training")
    problems, solutions, labels, statements = [], [], [], []
    for p in range(14):
        image = {"bytes": picture(p), "path": None}
        question = f"bars : total of {COLOURS[p % 4]} and {COLOURS[(p + 1) % 4]} ?"
        problems.append(
            {"problem_id": f"p{p}", "source_id": f"s{p}", "source": "x", "question": question, "images": [image]}
        )
        statements.append(
            {"question": question, "image": image, "statements": [f"{c}: {1 + (p + i) % 9}" for i, c in enumerate(COLOURS)]}
        )
        for s in range(2 + p % 3):
            steps = ["red: 3", f"blue: {1 + s}", f"3 + {1 + s} = {4 + s}", f"answer: {4 + s}"][: 2 + (p + s) % 3]
            verdict = ("right", "wrong")[(p + s) % 2]
            solutions.append(
                {"solution_id": f"p{p}s{s}", "problem_id": f"p{p}", "index": s, "steps": steps, "verdict": verdict}
            )
            for step in range(len(steps)):
                label = {"solution_id": f"p{p}s{s}", "problem_id": f"p{p}", "step": step, "num_steps": len(steps)}
                k = (3 * p + 5 * s + 7 * step) % 9
                labels.append(label | {"num_right": k, "num_verdicts": 8, "label": k / 8, "weight": 1.0 + step % 2})
    rows = {
        "seeds/seeds": (problems, PROBLEM),
        "rollouts/solutions": (solutions, SOLUTION),
        "labels/labels": (labels, LABEL),
    }
    for name, (content, schema) in rows.items():
        write_table(folder / f"{name}.parquet", [dict.fromkeys(schema.names) | row for row in content], schema)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(statements), folder / "statements.parquet")
    (folder / "policy").symlink_to(checkpoint("internvl"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"dev_frac": 0.3, "eval_steps": 3}
    params["train"]["optimiser"] = {"num_steps": 7, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2}
    params["train"]["perception"]["warmup"] = {"num_steps": 3, "batch_size": 5, "learning_rate": 1e-3, "warmup_steps": 1}
    params["train"]["perception"]["aux_batch_size"] = 3
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


IN_PROCESS = """
import components.optim, components.train as train
from components.cli import main
components.optim.CHECKPOINT_STEPS = 2
train._side_by_side = lambda jobs, num_workers: [train._train(*job) for job in jobs]
raise SystemExit(main())
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def command(work: Path, out: Path, code: str | None = None) -> list[str]:
    program = ["-c", code] if code else ["-m", "components"]
    words = [sys.executable, *program, "train", "--params", work / "params.yaml", "--out", out]
    for name in ("seeds", "rollouts", "labels", "policy"):
        words += [f"--{name}", work / name]
    return [str(word) for word in [*words, "--statements", work / "statements.parquet"]]


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STEPFORGE_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))}
    plain = {"STEPFORGE_HOME": str(home), "STEPFORGE_DEVICE": "cpu", "STEPFORGE_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return kept | plain | {"PYTHONPATH": str(ROOT)} | more


def start(work: Path, out: Path, num_processes: int, code: str | None = None, **more: str) -> list[subprocess.Popen]:
    """The processes of one training, as a launcher starts them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in range(num_processes):
        launched = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes), **address}
        env = environment(out.parent / f"{out.name}-home", **(launched if num_processes > 1 else {}), **more)
        log = (out.parent / f"{out.name}-{rank}.log").open("w")
        started.append(subprocess.Popen(command(work, out, code), env=env, cwd=work, stdout=log, stderr=subprocess.STDOUT))
    return started


def finish(processes: list[subprocess.Popen], out: Path) -> None:
    codes = [process.wait(timeout=600) for process in processes]
    logs = "\n".join((out.parent / f"{out.name}-{rank}.log").read_text()[-4000:] for rank in range(len(processes)))
    assert codes == [0] * len(codes), logs


def trained(work: Path, out: Path, num_processes: int = 1, **more: str) -> Path:
    finish(start(work, out, num_processes, **more), out)
    return out


@pytest.fixture(scope="module")
def alone(work, tmp_path_factory):
    return trained(work, tmp_path_factory.mktemp("alone") / "prm")


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: load_file(folder / name) for name in ("model.safetensors", "head.safetensors")}


def assert_same(found: Path, expected: Path, tolerance: float) -> None:
    """Losses, what was seen on dev, the contract and the weights."""
    import torch

    for name in ("prm", "blind"):
        for file, tensors in weights(expected / name).items():
            other = weights(found / name)[file]
            assert set(other) == set(tensors)
            worst = max(float((other[key] - value).abs().max()) for key, value in tensors.items())
            assert worst <= tolerance, (name, file, worst)
            assert all(torch.isfinite(value).all() for value in other.values())
        looks = [
            [json.loads(row) for row in (at / name / "history.jsonl").read_text().splitlines()] for at in (found, expected)
        ]
        assert len(looks[0]) == len(looks[1]) == 3
        for one, other in zip(*looks, strict=True):  # not AUROC: of scores this close it jumps with their order
            for key in ("step", "loss", "train_loss"):
                assert one[key] == pytest.approx(other[key], abs=max(tolerance, 2e-6))
    mine, theirs = (json.loads((at / "summary.json").read_text()) for at in (found, expected))
    for key in ("final_loss", "blind_final_loss", "perception_accuracy", "labels", "solutions", "steps"):
        assert mine[key] == pytest.approx(theirs[key], abs=max(tolerance, 2e-6)), key


def test_two_processes_train_what_one_does(work, alone, tmp_path):
    assert_same(trained(work, tmp_path / "prm", 2), alone, 1e-4)
    assert "train " in (tmp_path / "prm-0.log").read_text()
    assert "loss" not in (tmp_path / "prm-1.log").read_text()  # the first one speaks for all


def test_a_step_in_many_parts_is_the_same_step(work, alone, tmp_path):
    assert_same(trained(work, tmp_path / "prm", STEPFORGE_TOKENS_AT_ONCE="60"), alone, 1e-4)


def test_activations_computed_again_are_the_same(work, alone, tmp_path):
    assert_same(trained(work, tmp_path / "prm", STEPFORGE_CHECKPOINT_ACTIVATIONS="1"), alone, 1e-5)


def test_the_contract_holds_what_was_measured_on_the_problems_kept_aside(alone):
    from components.contract import checkpoint_digest, read_contract
    from components.records import file_sha256

    contract = read_contract(alone / "prm")
    assert (
        contract["digest"]
        == checkpoint_digest(alone / "prm")
        == json.loads((alone / "summary.json").read_text())["prm_digest"]
    )
    assert set(contract["controls"]) == {"prm", "shuffled", "blind"}
    for values in contract["controls"].values():
        assert values["loss"]["low"] <= values["loss"]["mean"] <= values["loss"]["high"]
    assert contract["held_out"]["calibrated"]["loss"] <= contract["held_out"]["as_learnt"]["loss"]
    assert contract["history_sha256"] == file_sha256(alone / "prm" / "history.jsonl")
    assert contract["policy_licence"] == "unknown"
    last = json.loads((alone / "prm" / "history.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == contract["held_out"]["as_learnt"]["loss"] == contract["controls"]["prm"]["loss"]["mean"]


def kill(processes: list[subprocess.Popen], out: Path, words: str) -> None:
    """Kill -9 all of them, as soon as the first one says so."""
    log = out.parent / f"{out.name}-0.log"
    until = time.monotonic() + 300
    while words not in log.read_text() and time.monotonic() < until and processes[0].poll() is None:
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert words in log.read_text(), log.read_text()


def assert_killed_is_whole(work: Path, expected: Path, out: Path, num_processes: int, tolerance: float, **more: str) -> None:
    """Killed behind its second look of three, run again: as if nothing had been."""
    begun = start(work, out, num_processes, code=IN_PROCESS, **more)
    kill(begun, out, "kept aside: loss")
    kept = list((out.parent / f"{out.name}-home" / "work").glob("train-*/prm.*"))
    assert kept, "nothing to go on from"
    finish(start(work, out, num_processes, code=IN_PROCESS, **more), out)
    assert_same(out, expected, tolerance)


def test_killed_and_run_again_to_the_bit(work, alone, tmp_path):
    assert_killed_is_whole(work, alone, tmp_path / "prm", 1, 0.0)
    for name in ("prm", "blind"):
        assert (tmp_path / "prm" / name / "prm.json").read_bytes() == (alone / name / "prm.json").read_bytes()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_trains_what_one_process_does(work, alone, tmp_path, stage):
    config = str(ROOT / f"infra/deepspeed/zero{stage}.json")
    found = trained(work, tmp_path / "prm", 2, STEPFORGE_DEEPSPEED=config)
    assert_same(found, alone, 1e-4)
    if stage > 1:
        in_parts = trained(work, tmp_path / "parts", 2, STEPFORGE_DEEPSPEED=config, STEPFORGE_TOKENS_AT_ONCE="60")
        assert_same(in_parts, alone, 1e-4)
        assert_killed_is_whole(work, found, tmp_path / "killed", 2, 1e-6, STEPFORGE_DEEPSPEED=config)


def test_adapters_are_merged_and_frozen_eyes_stay_as_they_were(work, tmp_path):
    from components.checkpoints import load_model
    from components.prm import RewardModel

    params = yaml.safe_load((work / "params.yaml").read_text())
    params["train"] |= {"freeze": ["vision"], "lora": {"rank": 2, "alpha": 4, "targets": ["q_proj", "down_proj"]}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("seeds", "rollouts", "labels", "policy", "statements.parquet"):
        (tmp_path / name).symlink_to(work / name)
    learnt = RewardModel.load(trained(tmp_path, tmp_path / "prm") / "prm", device="cpu").model.state_dict()
    policy = load_model(work / "policy", "cpu").state_dict()
    adapted = 0
    for name, weight in policy.items():
        change = learnt[name][: len(weight)] - weight
        if "vision_tower" in name:
            assert not change.any(), name
        elif name.endswith(("q_proj.weight", "down_proj.weight")):
            adapted += 1
            assert 0 < torch.linalg.matrix_rank(change, atol=1e-7, rtol=1e-4) <= 2, name
        elif "language_model.layers" in name:
            assert not change.any(), name
    assert adapted
    assert not any("lora" in name for name in learnt)
