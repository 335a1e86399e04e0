"""An exported reward model in vLLM itself: its scores against our scorer's. Run by `make test-vllm`."""

import json

import pytest

from components.errors import EngineError
from components.pooling import MANIFEST, PooledRewardModel, export
from components.prm import Reading, RewardModel
from components.records import read_json, write_json
from components.settings import TinyBase
from tests import conftest
from tests.conftest import name_policy, picture
from tests.contract.conftest import HAS_VLLM

pytestmark = pytest.mark.skipif(not HAS_VLLM, reason="vLLM has an environment of its own: make test-vllm")
QUESTION, STEPS = "bars : total of red and blue ?", ("red: 3", "blue: 5", "3 + 5 = 8", "answer: 8")


def write_wide(architecture, folder, monkeypatch):
    """A tiny policy whose attention heads are wide enough for vLLM: 32."""
    if architecture == "internvl":
        from components.tiny import write_base

        write_base(folder, TinyBase(type="tiny", hidden_size=128, num_layers=2), seed=1)
        name_policy(folder)
        return
    sizes = conftest.text_sizes
    monkeypatch.setattr(conftest, "text_sizes", lambda tokenizer: sizes(tokenizer) | {"hidden_size": 128})
    conftest.WRITERS[architecture](folder)
    if architecture == "qwen2_5_vl":
        widen_vision(folder)
    name_policy(folder)


def widen_vision(folder):
    """Let the vision tower speak to the wide language model. vLLM normalises pictures itself, by what the files say."""
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    config = read_json(folder / "config.json")
    config["vision_config"] |= {"out_hidden_size": 128, "hidden_size": 128, "num_heads": 4}
    config["text_config"]["rope_parameters"]["mrope_section"] = [4, 6, 6]
    write_json(folder / "config.json", config)
    torch.manual_seed(1)
    Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    image = read_json(folder / "preprocessor_config.json")
    image |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_rescale": True, "do_normalize": True}
    write_json(folder / "preprocessor_config.json", image)


def readings(*, pictures):
    shown = [(picture(i),) if pictures else () for i in range(3)]
    return [
        Reading(QUESTION, shown[0], STEPS),
        Reading(QUESTION, shown[0], (*STEPS[:2], "3 + 5 = 9")),
        Reading("what ? <prm> <image>", shown[1] + shown[2], STEPS[:1]),
        Reading("what ?", (), STEPS[:2]),
    ]


@pytest.mark.parametrize(
    ("architecture", "template", "formulation"),
    [
        ("qwen2", "marker", "soft"),
        ("internvl", "marker", "count"),
        ("internvl", "chat", "advantage"),
        ("qwen2_5_vl", "marker", "soft"),
    ],
)
def test_vllm_scores_every_step_as_we_do(tmp_path, monkeypatch, architecture, template, formulation):
    policy, prm, out = tmp_path / "policy", tmp_path / "prm", tmp_path / "out"
    policy.mkdir()
    write_wide(architecture, policy, monkeypatch)
    words = ("+", "=", "-") if formulation == "advantage" else ("+", "-")
    options = {"template": template, "formulation": formulation, "label_tokens": words}
    model = RewardModel.from_policy(policy, device="cpu", **options).eval()
    model.temperature = 1.7
    model.save(prm, policy, {"task": "maths"})
    export(prm, out)
    given = readings(pictures=architecture != "qwen2")
    pooled = PooledRewardModel(out)
    try:
        assert pooled.max_difference < 1e-5
        found = pooled.score(given)
    finally:
        pooled.close()
    for one, expected in zip(found, model.score(given), strict=True):
        assert one == pytest.approx(expected, abs=1e-4)
    if architecture == "qwen2":
        told = json.loads((out / MANIFEST).read_text())
        told["probe"][0]["scores"][1] += 0.01
        (out / MANIFEST).write_text(json.dumps(told))
        with pytest.raises(EngineError, match="differ"):
            PooledRewardModel(out)
