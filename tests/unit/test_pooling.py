"""What vLLM is given: the weights as they are, the head as a classifier of tokens; transformers is the oracle for text."""

import json

import pytest
import torch
from safetensors.torch import load_file

from components.cli import main
from components.errors import EngineError
from components.pooling import MANIFEST, export
from components.prm import Reading, RewardModel
from components.records import read_json

QUESTION, STEPS = "bars : total of red and blue ?", ("red: 3", "blue: 5", "3 + 5 = 8")


def trained(policy, folder, *, temperature=1.7, sees=True, **options):
    model = RewardModel.from_policy(policy, device="cpu", sees=sees, **options).eval()
    model.temperature = temperature
    model.save(folder, policy, {"task": "maths"})
    return model


def test_transformers_reads_an_exported_text_model_as_a_token_classifier_with_our_scores(checkpoint, tmp_path):
    from transformers import AutoModelForTokenClassification

    model = trained(checkpoint("qwen2"), tmp_path / "prm")
    export(tmp_path / "prm", tmp_path / "out")
    classifier = AutoModelForTokenClassification.from_pretrained(tmp_path / "out").eval()
    prompt, solution = model.renderer.prompt(QUESTION, ()), model.renderer.solution(STEPS)
    ids = torch.tensor([prompt.ids + solution.ids])
    with torch.no_grad():
        logits = classifier(input_ids=ids).logits[0]
    marked = logits[ids[0] == read_json(tmp_path / "out" / MANIFEST)["marker_id"]]
    (expected,) = model.read([Reading(QUESTION, (), STEPS)])
    assert torch.allclose(marked, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["internvl", "qwen2_5_vl"])
def test_a_vision_language_model_keeps_its_weights_and_gains_a_classifier(checkpoint, tmp_path, architecture):
    model = trained(checkpoint(architecture), tmp_path / "prm")
    command = export(tmp_path / "prm", tmp_path / "out").format(folder="F")
    assert command.startswith("vllm serve F --runner pooling --convert classify --pooler-config '{")
    pooler = json.loads(command.split("'")[1])
    assert (pooler["tok_pooling_type"], pooler["step_tag_id"]) == ("STEP", model.renderer.marker_id)
    names = read_json(tmp_path / "out" / "model.safetensors.index.json")["weight_map"]
    before = load_file(tmp_path / "prm" / "model.safetensors")
    assert set(names) == {*before, "language_model.score.weight"}
    for name, file in names.items():
        found = load_file(tmp_path / "out" / file)[name]
        assert torch.equal(found, before[name]) if name in before else torch.allclose(found, model.head / 1.7)
    assert not (tmp_path / "out" / "head.safetensors").exists()  # vLLM would take its tensor for one of the model's
    assert not (tmp_path / "out" / "prm.json").exists()
    told = read_json(tmp_path / "out" / MANIFEST)
    assert [len(row["images_base64"]) for row in told["probe"]] == [0, 1]


def test_in_the_chat_template_every_token_is_asked(checkpoint, tmp_path):
    trained(checkpoint("internvl"), tmp_path / "prm", template="chat")
    assert '"tok_pooling_type": "ALL"' in export(tmp_path / "prm", tmp_path / "out").format(folder="F")


def test_a_blind_control_is_not_exported(checkpoint, tmp_path):
    trained(checkpoint("internvl"), tmp_path / "prm", sees=False)
    with pytest.raises(EngineError, match="blanked"):
        export(tmp_path / "prm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_changed_checkpoint_is_not_exported(checkpoint, tmp_path):
    trained(checkpoint("qwen2"), tmp_path / "prm")
    with (tmp_path / "prm" / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(EngineError, match="digest"):
        export(tmp_path / "prm", tmp_path / "out")


def test_the_command_exports_and_says_how_to_serve(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    trained(checkpoint("qwen2"), tmp_path / "artifacts" / "prm")
    for _ in range(2):  # an export of ours is replaced
        assert main(["export-vllm", str(tmp_path / "artifacts"), str(tmp_path / "out")]) == 0
    assert f"vllm serve {tmp_path / 'out'} --runner pooling" in capsys.readouterr().out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert main(["export-vllm", str(tmp_path / "artifacts"), str(tmp_path / "mine")]) == 2
