"""Supervised training: parts of a step, a run that is interrupted, and parts of the model that stay as they are."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from components import optim, sft
from components.processes import Crew
from components.render import Encoded
from components.settings import Params, load_runtime
from tests.conftest import picture

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "blue", "green", "yellow")


def params_of(folder, **changes):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["sft"] |= {
        "base": {"type": "checkpoint", "path_or_id": str(folder)},
        "align": None,
        "phases": [{"column": "steps", "num_steps": 5}],
        "optimiser": {"num_steps": 5, "batch_size": 6, "learning_rate": 1e-3, "warmup_steps": 1},
        **changes,
    }
    return Params.model_validate(content)


@pytest.fixture
def demonstrations(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "question": f"bars : total of red and {COLOURS[i % 4]} ?",
            "image": {"bytes": picture(i), "path": None},
            "steps": [f"{c}: {1 + (i + j) % 9}" for j, c in enumerate(COLOURS[: 1 + i % 4])],
        }
        for i in range(11)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "demonstrations.parquet")
    return tmp_path / "demonstrations.parquet"


def trained(params, demonstrations, out, **environment):
    out.mkdir()
    runtime = load_runtime(
        {"STEPFORGE_HOME": str(out / "home"), "STEPFORGE_DEVICE": "cpu", "STEPFORGE_THREADS": "1", **environment}
    )
    sft.run(params, runtime, demonstrations=demonstrations, out=out / "policy")
    return load_file(out / "policy" / "model.safetensors")


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= tolerance


@pytest.mark.parametrize("architecture", ["internvl", "llava", "qwen2", "qwen2_5_vl"])
def test_a_step_in_parts_is_the_same_step(checkpoint, demonstrations, tmp_path, architecture):
    frozen = [] if architecture == "qwen2" else ["vision"]
    params = params_of(checkpoint(architecture), freeze=frozen)
    if architecture == "qwen2":
        import pyarrow.parquet as pq

        pq.write_table(pq.read_table(demonstrations).drop_columns(["image"]), demonstrations)
    whole = trained(params, demonstrations, tmp_path / "whole")
    parted = trained(params, demonstrations, tmp_path / "parted", STEPFORGE_TOKENS_AT_ONCE="80")
    again = trained(params, demonstrations, tmp_path / "again", STEPFORGE_CHECKPOINT_ACTIVATIONS="1")
    assert_close(parted, whole, 2e-4)
    assert_close(again, whole, 2e-4)
    before = load_file(checkpoint(architecture) / "model.safetensors")
    changed = {name for name in whole if not torch.equal(whole[name], before[name])}
    assert changed
    assert not any("vision_tower" in name or "visual.blocks" in name for name in changed)


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(checkpoint, demonstrations, tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 2)
    params = params_of(checkpoint("internvl"), freeze=[])
    whole = trained(params, demonstrations, tmp_path / "whole")
    call, steps = sft._parts, []

    def stopped(*arguments):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return call(*arguments)

    monkeypatch.setattr(sft, "_parts", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(params, demonstrations, tmp_path / "begun")
    (tmp_path / "begun" / "home").rename(tmp_path / "home")
    del steps[:]
    monkeypatch.setattr(sft, "_parts", lambda *arguments: steps.append(1) or call(*arguments))
    resumed = trained(params, demonstrations, tmp_path / "resumed", STEPFORGE_HOME=str(tmp_path / "home"))
    assert len(steps) == 3  # behind the second of five
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_demonstration_is_learnt_once_whoever_learns_it(size):
    prompts = [Encoded(list(range(3 + i)), {}) for i in range(4)]
    targets = [[100 * i + j for j in range(2 + i)] for i in range(4)]
    seen, weights = [], 0.0
    for rank in range(size):
        crew = Crew(load_runtime({"RANK": str(rank), "WORLD_SIZE": str(size), "STEPFORGE_DEVICE": "cpu"}))
        crew.most = lambda number: number
        for part in sft._parts(prompts, targets, crew, 20):
            weights += part.num_targets / part.total_targets
            if part.total_targets < float("inf"):
                seen += part.targets
    assert sorted(seen) == sorted(targets)
    assert weights == pytest.approx(1.0)
