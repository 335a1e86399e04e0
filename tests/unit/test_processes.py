"""Who trains together, as the environment says it, and what a DeepSpeed configuration may hold."""

import importlib.util
import json
from pathlib import Path

import pytest

from components.errors import EngineError, SettingsError
from components.processes import Crew
from components.settings import load_runtime

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "infra/deepspeed").glob("*.json"))
has_deepspeed = importlib.util.find_spec("deepspeed") is not None


def test_without_a_launcher_a_process_is_alone():
    runtime = load_runtime({})
    assert (runtime.rank, runtime.world_size, runtime.deepspeed) == (0, 1, None)
    assert (runtime.tokens_at_once, runtime.checkpoint_activations) == (16_384, False)
    crew = Crew(runtime)
    assert crew.is_first
    assert crew.stage is None
    assert crew.most(7) == 7
    assert crew.gathered("x") == ["x"]
    assert load_runtime({"WORLD_SIZE": "4"}).world_size == 1  # some shells set one of the two for other reasons


def test_a_launcher_says_who_is_who():
    runtime = load_runtime({"RANK": "3", "WORLD_SIZE": "4", "STEPFORGE_DEVICE": "cpu"})
    assert (runtime.rank, runtime.world_size) == (3, 4)
    assert not Crew(runtime).is_first


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "-1", "WORLD_SIZE": "4"},
        {"RANK": "one", "WORLD_SIZE": "4"},
        {"STEPFORGE_TOKENS_AT_ONCE": "0"},
        {"STEPFORGE_CHECKPOINT_ACTIVATIONS": "yes"},
        {"STEPFORGE_DEEPSPEED": "no/such/file.json"},
    ],
)
def test_an_environment_that_says_nothing_sensible_is_refused(wrong):
    with pytest.raises(SettingsError):
        load_runtime(wrong)


@pytest.mark.parametrize("content", ["{", "[]", '{"zero_optimization": 3}', '{"optimizer": {"type": "Adam"}}'])
def test_a_deepspeed_configuration_that_is_none_or_says_what_is_learnt_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"x\.json"):
        Crew(load_runtime({"STEPFORGE_DEEPSPEED": str(path), "STEPFORGE_DEVICE": "cpu"}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_that_ship_are_named_for_their_stage(path):
    assert json.loads(path.read_text())["zero_optimization"]["stage"] == int(path.stem.removeprefix("zero"))
    runtime = load_runtime({"STEPFORGE_DEEPSPEED": str(path), "STEPFORGE_DEVICE": "cpu"})
    if has_deepspeed:
        assert Crew(runtime).stage == int(path.stem.removeprefix("zero"))
    else:
        with pytest.raises(EngineError, match="not installed"):
            Crew(runtime)


def test_three_configurations_ship():
    assert [path.stem for path in CONFIGS] == ["zero1", "zero2", "zero3"]
