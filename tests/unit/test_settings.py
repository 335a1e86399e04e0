"""params.yaml says everything it can say, and nothing that is ignored; so does the environment."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.errors import SettingsError
from components.settings import CheckpointBase, Label, Runtime, TinyBase, load_params, load_runtime

ROOT = Path(__file__).parents[2]


@pytest.fixture
def changed(tmp_path):
    """Load the shipped settings after one change: a dotted name and its value, or REMOVED."""

    def call(name, value):
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        *above, last = name.split(".")
        inside = content
        for key in above:
            inside = inside[int(key)] if key.isdigit() else inside[key]
        if value == "REMOVED":
            del inside[last]
        else:
            inside[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_params(path)

    return call


def refusal(changed, name, value):
    with pytest.raises(SettingsError) as caught:
        changed(name, value)
    assert caught.value.exit_code == 2
    return caught.value


def test_the_shipped_settings_load_and_say_what_the_file_says():
    params = load_params(ROOT / "params.yaml")
    assert isinstance(params.sft.base, TinyBase)
    assert sum(phase.num_steps for phase in params.sft.phases) == params.sft.optimiser.num_steps
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    dumped = params.model_dump(mode="json")

    def said(file, settings):
        for key, value in file.items():
            if isinstance(value, dict):
                said(value, settings[key])
            elif not isinstance(value, list):
                assert settings[key] == value, key

    said(content, dumped)


def test_every_section_and_the_seed_are_required(changed):
    for name in ("seed", "curate", "sft", "rollout", "label", "train", "sample", "evaluate"):
        assert f"missing key '{name}'" in str(refusal(changed, name, "REMOVED"))


@pytest.mark.parametrize("name", ["sft.base", "sft.optimiser.batch_size", "train.perception.warmup", "sft.phases.1.column"])
def test_a_missing_key_is_named_in_full(changed, name):
    assert f"missing key '{name}'" in str(refusal(changed, name, "REMOVED"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sampel", "sample"),
        ("curate.max_image_pixel", "max_image_pixels"),
        ("curate.dificulty", "difficulty"),
        ("rollout.sampling.temprature", "temperature"),
        ("sft.phases.1.colum", "column"),
        ("sft.align.warmup_step", "warmup_steps"),
        ("sft.base.hiden_size", "hidden_size"),
        ("train.perception.warmup.num_step", "num_steps"),
    ],
)
def test_an_unknown_key_is_named_in_full_with_what_was_meant(changed, name, meant):
    error = refusal(changed, name, 1)
    assert f"unknown key '{name}'" in str(error)
    assert error.hint == f"did you mean '{meant}'?"


def test_an_unknown_key_of_a_checkpoint_base_is_compared_with_the_keys_of_a_checkpoint_base(changed):
    base = {"type": "checkpoint", "path_or_id": "folder", "revison": "main"}
    error = refusal(changed, "sft.base", base)
    assert "unknown key 'sft.base.revison'" in str(error)
    assert error.hint == "did you mean 'revision'?"


def test_a_key_named_like_a_kind_of_base_is_still_named(changed):
    assert "unknown key 'train.tiny'" in str(refusal(changed, "train.tiny", 1))


def test_an_unknown_key_like_no_other_is_answered_with_those_that_are_known(changed):
    for name in ("label.zzzzzz", "label.qqq"):
        assert refusal(changed, name, 1).hint == f"known keys: {', '.join(sorted(Label.model_fields))}"


def test_an_unknown_kind_of_base_and_a_checkpoint_without_its_place_are_said(changed):
    assert "'tyni'" in str(refusal(changed, "sft.base", {"type": "tyni"}))
    assert "type" in str(refusal(changed, "sft.base", {}))
    assert "missing key 'sft.base.path_or_id'" in str(refusal(changed, "sft.base", {"type": "checkpoint"}))


def test_a_checkpoint_base_is_told_from_a_tiny_one_by_its_type(changed):
    params = changed("sft.base", {"type": "checkpoint", "path_or_id": "a/b", "revision": "0" * 40})
    assert params.sft.base == CheckpointBase(type="checkpoint", path_or_id="a/b", revision="0" * 40)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("label.threshold", 1.5),
        ("label.formulation", "hard"),
        ("rollout.num_solutions", 0),
        ("rollout.sampling.top_p", 0.0),
        ("rollout.sampling.temperature", -0.1),
        ("train.optimiser.learning_rate", 0),
        ("train.controls", ["deaf"]),
        ("evaluate.confidence", 1.0),
        ("sft.phases", []),
    ],
)
def test_a_value_out_of_range_is_named_with_the_value(changed, name, value):
    message = str(refusal(changed, name, value))
    assert re.search(rf"\b{re.escape(name)}\b", message)
    assert repr(value[0] if value == ["deaf"] else value) in message


def test_phases_must_add_up_to_the_steps_unless_nothing_is_trained(changed):
    error = refusal(changed, "sft.phases.0.num_steps", 1)
    assert "sft.optimiser.num_steps is 600 but the phases add up to 151" in str(error)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())["sft"]
    content |= {"enabled": False, "optimiser": {**content["optimiser"], "num_steps": 7}}
    assert changed("sft", content).sft.optimiser.num_steps == 7


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: b: c", "\tseed: 1", "\x00"])
def test_a_file_that_is_no_mapping_is_said(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(str(path))):
        load_params(path)


def test_a_file_that_is_not_there_or_is_a_folder_is_said(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_params(tmp_path / "absent.yaml")
    with pytest.raises(SettingsError):
        load_params(tmp_path)


def test_the_runtime_has_defaults_that_do_not_depend_on_the_machine_except_for_workers():
    runtime = load_runtime({"PATH": "/bin", "STEPFORGE_ACTOR": "Ada"})
    assert runtime == Runtime(Path(".stepforge"), "hf", "auto", 2, runtime.num_workers)
    assert runtime.num_workers in (1, 2)


def test_the_runtime_says_what_the_environment_says():
    given = {"HOME": "/srv/x", "ENGINE": "scripted", "DEVICE": "cuda:1", "THREADS": "3", "WORKERS": "5"}
    runtime = load_runtime({f"STEPFORGE_{name}": value for name, value in given.items()})
    assert runtime == Runtime(Path("/srv/x"), "scripted", "cuda:1", 3, 5)


def test_an_unknown_variable_is_an_error_with_what_was_meant():
    with pytest.raises(SettingsError, match="unknown variable STEPFORGE_THREAD") as caught:
        load_runtime({"STEPFORGE_THREAD": "2"})
    assert caught.value.hint == "did you mean STEPFORGE_THREADS?"


def test_an_unknown_engine_is_an_error():
    with pytest.raises(SettingsError, match="STEPFORGE_ENGINE='gpt' is unknown"):
        load_runtime({"STEPFORGE_ENGINE": "gpt"})


@given(st.text(max_size=4) | st.sampled_from(["0", "-1", "1e3", " 2", "2.0", "²", "٣", "many"]))
def test_a_count_is_a_positive_number_or_an_error(text):
    for name in ("THREADS", "WORKERS"):
        try:
            runtime = load_runtime({f"STEPFORGE_{name}": text})
        except SettingsError as error:
            assert repr(text) in str(error)
        else:
            count = runtime.num_threads if name == "THREADS" else runtime.num_workers
            assert count == int(text) >= 1


def test_a_block_that_no_prefix_has_room_for_is_an_error_and_not_a_run_without_rollouts(tmp_path):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["rollout"]["search"] = {"type": "joint", "price": 0.003, "block": 4, "max_per_prefix": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError, match="max_per_prefix 2 leaves no room for a block of 4"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("model", ["", "  ", "\n"])
def test_a_judge_without_a_name_is_refused_in_one_line(changed, model):
    error = refusal(changed, "verify.judge", {"model": model})
    assert f"verify.judge.model = {model!r}: string should have at least 1 character" in str(error)
    assert "\n" not in error.lines().removesuffix(f"\nhint: {error.hint}")


def test_a_judges_name_is_read_without_the_spaces_around_it(changed):
    assert changed("verify.judge", {"model": " judge "}).verify.judge.model == "judge"
