"""Every architecture becomes a reward model: shared pictures, trees, training, saving and loading change no score."""

import json
import runpy
import shutil
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from components.checkpoints import describe, load_model, load_processor, location, write_pointer
from components.contract import CONTRACT, checkpoint_digest, write_contract
from components.errors import EngineError
from components.formulations import Targets
from components.prm import HEAD, Reading, RewardModel
from components.records import read_json
from components.render import TEMPLATES
from tests.architectures import EVERY, ROWS_ONLY, SEEING, internvl, picture, written_once
from tests.conftest import name_policy

QUESTION = "3 + 20 = ? <image> <|image_pad|>"  # what looks like a picture's place is text
STEPS = (("3 + 20", "= 23"), ("3 + 20", "= 24", "so 24"), ("20 and 3",), ("3 + 20", "= 23"))
ONE, TWO = (picture(1),), (picture(1), picture(2, 64, 32))
OTHER = (picture(3, 32, 64),)  # of another resolution
SEES = [*SEEING, "gemma3"]


folder = pytest.fixture(scope="session")(written_once)


@pytest.fixture(scope="session")
def started(folder):
    """(architecture, template) -> a reward model that has just been started; to be read only."""
    models = {}

    def call(architecture, template="marker"):
        key = architecture, template
        if key not in models:
            models[key] = RewardModel.from_policy(folder(architecture), template=template, device="cpu").eval()
        return models[key]

    return call


def shown(architecture):
    return [(), ONE, TWO, OTHER] if architecture in SEES else [()]


def readings(architecture):
    return [Reading(QUESTION, images, steps) for images in shown(architecture) for steps in STEPS]


def whole_model(model, prompt, solution):
    """The oracle: one row through transformers' own forward pass, positions and masks as it makes them."""
    ids = torch.tensor([prompt.ids + solution.ids])
    types = {}
    if prompt.token_types:
        row = prompt.token_types + [0] * (ids.shape[1] - len(prompt.token_types))
        types[prompt.types_name] = torch.tensor([row])
    states = model.model.base_model(input_ids=ids, use_cache=False, **types, **prompt.tensors).last_hidden_state[0]
    return states[[len(prompt.ids) + place for place in solution.markers]] @ model.head.T


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("architecture", EVERY)
def test_trees_of_every_architecture_are_read_as_its_rows_are(started, architecture, template):
    model = started(architecture, template)
    assert model.shares == (architecture not in ROWS_ONLY)
    prompts = [model.renderer.prompt(QUESTION, images) for images in shown(architecture)]
    solutions = [model.renderer.solution(steps) for steps in STEPS]
    with torch.no_grad():
        expected = [[whole_model(model, prompt, solution) for solution in solutions] for prompt in prompts]
        trees = [one for prompt in prompts for one in model.trees(prompt, solutions)]
        found = model.logits(trees)
    assert (len(trees) == len(prompts)) == model.shares
    flat = torch.cat([rows for row in expected for rows in row])
    assert found.shape == flat.shape
    assert torch.allclose(found, flat, atol=1e-4 * float(flat.abs().max()))
    scores = model.score(readings(architecture))
    told = [model.formulation.scores(rows).tolist() for row in expected for rows in row]
    for found_row, told_row in zip(scores, told, strict=True):
        assert found_row == pytest.approx(told_row, abs=1e-4)


@pytest.mark.parametrize("architecture", SEES)
def test_a_prompt_is_what_the_familys_own_processor_makes_of_the_whole_text(started, architecture):
    from PIL import Image

    model = started(architecture)
    processor, question = model.renderer.processor, "3 + 20 = ?"
    for images in (ONE, TWO, OTHER):
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        pictures = [Image.open(BytesIO(image)).convert("RGB") for image in images]
        bos = model.renderer.tokenizer.bos_token
        own = processor(
            text=[text],
            images=[pictures],
            return_tensors="pt",
            add_special_tokens=not (bos and text.startswith(bos)),
        )
        prompt = model.renderer.prompt(question, images)
        image_id = getattr(model.model.config, "image_token_id", None) or processor.image_token_id
        assert prompt.ids.count(image_id) == own["input_ids"][0].tolist().count(image_id) > 0
        if architecture not in ("llava", "gemma3"):  # where their pieces of text meet, these tokenizers split otherwise
            assert prompt.ids == own["input_ids"][0].tolist()
        assert model.renderer.unexpanded_ids(question, len(images))[0] == prompt.ids[0] == own["input_ids"][0, 0]
        for name, value in prompt.tensors.items():
            assert torch.equal(value, own[name]), name


@pytest.mark.parametrize("architecture", SEES)
def test_every_picture_is_seen_and_by_its_own_solutions_alone(started, architecture):
    model = started(architecture)
    second = (TWO[0], picture(9, 64, 32))
    given = [Reading(QUESTION, images, STEPS[0]) for images in ((), ONE, (picture(7),), TWO, second, OTHER)]
    scores = model.score(given)
    assert len({round(row[0], 5) for row in scores}) == len(given)
    for reading, row in zip(given, scores, strict=True):
        assert model.score([reading])[0] == pytest.approx(row, abs=1e-4)


@pytest.mark.parametrize("architecture", SEES)
def test_a_blind_model_is_told_nothing_by_any_picture(folder, architecture):
    model = RewardModel.from_policy(folder(architecture), device="cpu", sees=False).eval()
    other = (picture(11), picture(12, 64, 32))
    first, second = (model.score([Reading(QUESTION, images, STEPS[1])])[0] for images in (TWO, other))
    assert first == pytest.approx(second, abs=1e-6)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("architecture", EVERY)
def test_a_trained_model_scores_the_same_once_saved_and_loaded(folder, tmp_path, architecture, template):
    policy = folder(architecture)
    model = RewardModel.from_policy(policy, template=template, device="cpu")
    given = readings(architecture)
    before = model.eval().score(given)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        model.train()
        trees = []
        for images in shown(architecture):
            prompt = model.renderer.prompt(QUESTION, images)
            trees += model.trees(prompt, [model.renderer.solution(steps) for steps in STEPS])
        logits = model.logits(trees)
        places = torch.arange(len(logits))
        right = (places % 2).float()
        loss = model.formulation.loss(logits, Targets(right, right, torch.ones_like(right), torch.ones_like(right)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    eyes = [p for name, p in model.named_parameters() if "patch_embed" in name]
    assert all(p.grad is not None and p.grad.any() for p in eyes)
    assert bool(eyes) == (architecture in SEES)
    after = model.eval().score(given)
    assert max(abs(a - b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)) > 1e-3
    model.save(tmp_path / "prm", policy, {})
    again = RewardModel.load(tmp_path / "prm", device="cpu").score(given)
    for a, b in zip(after, again, strict=True):
        assert b == pytest.approx(a, abs=1e-6)


@pytest.fixture(scope="module")
def trained(folder, started, tmp_path_factory):
    """A checkpoint of LLaVA-OneVision, to be read only."""
    out = tmp_path_factory.mktemp("trained") / "prm"
    started("llava_onevision").save(out, folder("llava_onevision"), {})
    return out


def refusal(folder, *, policy=False):
    with pytest.raises(EngineError) as caught:
        RewardModel.from_policy(folder, device="cpu") if policy else RewardModel.load(folder, device="cpu")
    line, _ = caught.value.lines().splitlines()
    assert str(folder) in line
    return line


def mend_contract(folder):
    """What somebody does who believes the files: the digest is made to agree."""
    contract = read_json(folder / CONTRACT)
    write_contract(folder, contract)


def test_a_checkpoint_whose_weights_were_cut_is_refused(trained, tmp_path):
    copy = Path(shutil.copytree(trained, tmp_path / "prm"))
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-1000])
    line = refusal(copy)
    assert read_json(trained / CONTRACT)["digest"] in line
    assert checkpoint_digest(copy) in line
    mend_contract(copy)
    assert "cannot be loaded" in refusal(copy)


def test_a_checkpoint_with_a_renamed_file_is_refused(trained, tmp_path):
    copy = Path(shutil.copytree(trained, tmp_path / "prm"))
    (copy / HEAD).rename(copy / "other.safetensors")
    assert read_json(trained / CONTRACT)["digest"] in refusal(copy)


def test_a_checkpoint_with_the_weights_of_another_architecture_is_refused(trained, folder, tmp_path):
    copy = Path(shutil.copytree(trained, tmp_path / "prm"))
    shutil.copyfile(folder("idefics3") / "model.safetensors", copy / "model.safetensors")
    assert checkpoint_digest(copy) in refusal(copy)
    mend_contract(copy)
    line = refusal(copy)
    assert "LlavaOnevisionForConditionalGeneration" in line
    assert "model.connector" in line


@pytest.mark.parametrize("architecture", ["internvl", "qwen2", "llama"])
def test_a_policy_with_the_weights_of_another_architecture_is_refused(folder, tmp_path, architecture):
    copy = Path(shutil.copytree(folder(architecture), tmp_path / "policy"))
    shutil.copyfile(folder("qwen3_vl") / "model.safetensors", copy / "model.safetensors")
    assert load_model(folder(architecture), "cpu").__class__.__name__ in refusal(copy, policy=True)


def test_a_checkpoint_with_the_head_of_another_formulation_is_refused(trained, tmp_path):
    copy = Path(shutil.copytree(trained, tmp_path / "prm"))
    save_file({"weight": torch.zeros(3, 32)}, copy / HEAD)
    refusal(copy)
    mend_contract(copy)
    line = refusal(copy)
    assert "[3, 32]" in line
    assert "[2, 32]" in line


def test_a_checkpoint_with_the_tokenizer_of_another_model_is_refused(trained, folder, tmp_path):
    copy = Path(shutil.copytree(trained, tmp_path / "prm"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder("internvl") / name, copy / name)
    line = refusal(copy)
    assert "<prm>" in line or read_json(trained / CONTRACT)["renderer_digest"] in line


def test_a_policy_with_the_tokenizer_of_another_model_is_refused(folder, tmp_path):
    copy = Path(shutil.copytree(folder("idefics3"), tmp_path / "policy"))
    content = read_json(copy / "config.json")
    content["image_token_id"] += 1
    (copy / "config.json").write_text(json.dumps(content))
    line = refusal(copy, policy=True)
    assert str(content["image_token_id"]) in line
    assert str(content["image_token_id"] - 1) in line
    small = Path(shutil.copytree(folder("qwen2"), tmp_path / "small"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder("internvl") / name, small / name)
    assert "264 tokens, its model 260" in refusal(small, policy=True)


def test_a_checkpoint_that_lacks_a_shard_is_refused(folder, tmp_path):
    copy = Path(shutil.copytree(folder("qwen2_5_vl"), tmp_path / "policy"))
    model = load_model(copy, "cpu")
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="60KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert RewardModel.from_policy(copy, device="cpu").head.shape == (2, 32)
    shards[1].unlink()
    assert shards[1].name in refusal(copy, policy=True)


def test_a_hub_model_is_loaded_from_its_cache_at_the_commit_that_is_named(folder, tmp_path, monkeypatch):
    """Laid out as huggingface_hub does: blobs, and a folder of links for each commit."""
    import huggingface_hub.constants

    commit, other = "1" * 40, "2" * 40
    repository = tmp_path / "models--org--tiny-vl"
    for name, revision in (("qwen2_vl", commit), ("qwen2_5_vl", other)):
        for source in folder(name).iterdir():
            if source.name != "policy.json":
                blob = repository / "blobs" / f"{revision[0]}{source.name}"
                blob.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, blob)
                link = repository / "snapshots" / revision / source.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(blob)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, revision in (("qwen2_vl", commit), ("qwen2_5_vl", other)):
        policy = tmp_path / name
        policy.mkdir()
        write_pointer(policy, describe("org/tiny-vl", revision))
        assert location(policy) == ("org/tiny-vl", revision)
        model = RewardModel.from_policy(policy, device="cpu").eval()
        expected = RewardModel.from_policy(folder(name), device="cpu").eval().score(readings(name)[:4])
        assert model.score(readings(name)[:4]) == expected
        model.save(tmp_path / "out" / name, policy, {})
        assert RewardModel.load(tmp_path / "out" / name, device="cpu").score(readings(name)[:4]) == expected
    missing = tmp_path / "missing"
    missing.mkdir()
    write_pointer(missing, describe("org/tiny-vl", "3" * 40))
    with pytest.raises(EngineError, match="org/tiny-vl"):
        load_model(missing, "cpu")
    with pytest.raises(EngineError, match="org/tiny-vl"):
        load_processor(missing)


def test_a_checkpoint_that_needs_code_of_its_own_is_refused_in_words(tmp_path):
    """The config of VisualPRM-8B and MM-PRM-8B: InternVL in the format that came before transformers knew it."""
    config = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat"}
    config |= {"auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}}
    config |= {"vision_config": {"model_type": "intern_vit_6b"}, "llm_config": {"architectures": ["InternLM2ForCausalLM"]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = refusal(tmp_path, policy=True)
    assert "internvl_chat" in line
    assert "code" in line


def older_format(weights, config):
    """What InternVLChatModel calls the tensors of transformers' InternVL, by hand."""
    old = {}
    is_llama = config.text_config.model_type == "llama"
    groups = config.text_config.num_key_value_heads
    size = config.text_config.hidden_size // config.text_config.num_attention_heads
    for given, held in weights.items():
        name, value = given, held
        if name.startswith("model.vision_tower."):
            if ".attention.k_proj." in name or ".attention.v_proj." in name:
                continue
            if ".attention.q_proj." in name:
                value = torch.cat([weights[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv"])
            for new, older in {
                "model.vision_tower.": "vision_model.",
                "encoder.layer.": "encoder.layers.",
                "cls_token": "class_embedding",
                "position_embeddings": "position_embedding",
                "patch_embeddings.projection": "patch_embedding",
                "lambda_": "ls",
                "attention.projection_layer": "attn.proj",
                "attention.q_proj": "attn.qkv",
                "layernorm_before": "norm1",
                "layernorm_after": "norm2",
            }.items():
                name = name.replace(new, older)
        elif name.startswith("model.multi_modal_projector."):
            name = name.removeprefix("model.multi_modal_projector.")
            name = name.replace("layer_norm", "mlp1.0").replace("linear_1", "mlp1.1").replace("linear_2", "mlp1.3")
        elif not is_llama:
            name = name.replace("model.language_model.", "language_model.model.").replace(
                "lm_head", "language_model.lm_head"
            )
        else:
            if "k_proj" in name or "v_proj" in name:
                continue
            if "q_proj" in name:
                query, key, val = (weights[name.replace("q_proj", f"{kind}_proj")] for kind in "qkv")
                rows = [part.reshape(groups, -1, size, part.shape[-1]) for part in (query, key, val)]
                value = torch.cat(rows, 1).reshape(-1, value.shape[-1])
            for new, older in {
                "model.language_model.": "language_model.model.",
                "lm_head": "language_model.output",
                "embed_tokens": "tok_embeddings",
                "self_attn.q_proj": "attention.wqkv",
                "self_attn.o_proj": "attention.wo",
                "mlp.gate_proj": "feed_forward.w1",
                "mlp.down_proj": "feed_forward.w2",
                "mlp.up_proj": "feed_forward.w3",
                "input_layernorm": "attention_norm",
                "post_attention_layernorm": "ffn_norm",
            }.items():
                name = name.replace(new, older)
        old[name] = value.clone().contiguous()
    return old


@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_an_internvl_checkpoint_of_the_older_format_is_converted_without_its_code(tmp_path, text):
    convert = runpy.run_path(str(Path(__file__).parents[2] / "infra" / "convert_internvl.py"))["convert"]
    like, source, out = (tmp_path / name for name in ("like", "source", "out"))
    internvl(like, text=text)
    trained = RewardModel.from_policy(like, marker="<prm>", device="cpu").eval()
    with torch.no_grad():
        trained.model.get_input_embeddings().weight[trained.renderer.marker_id] += 1.0
    source.mkdir()
    save_file(older_format(trained.model.state_dict(), trained.model.config), source / "model.safetensors")
    convert(source, like, out, tokens=["<prm>"])
    name_policy(out)
    again = RewardModel.from_policy(out, marker="<prm>", device="cpu").eval()
    given = readings("internvl")
    assert again.score(given) == [pytest.approx(row, abs=1e-6) for row in trained.score(given)]
    with pytest.raises(SystemExit, match="--add-token"):
        convert(source, like, tmp_path / "other", tokens=["<prm>", "<more>"])


@pytest.mark.parametrize("architecture", ["llama", "llava", "qwen3_vl"])
def test_a_reward_model_is_started_the_same_every_time(folder, tmp_path, architecture):
    digests = []
    for name in ("one", "other"):
        torch.manual_seed(len(digests))
        model = RewardModel.from_policy(folder(architecture), device="cpu")
        digests.append(model.save(tmp_path / name, folder(architecture), {}))
    assert digests[0] == digests[1]


def test_a_marker_that_the_policy_knows_keeps_its_meaning(folder, tmp_path):
    model = RewardModel.from_policy(folder("llama"), device="cpu")
    with torch.no_grad():
        model.model.get_input_embeddings().weight[model.renderer.marker_id] = 0.5
    model.save(tmp_path / "policy", folder("llama"), {})
    again = RewardModel.from_policy(tmp_path / "policy", device="cpu")
    assert (again.model.get_input_embeddings().weight[again.renderer.marker_id] == 0.5).all()


@pytest.mark.parametrize(("max_tokens", "shares"), [(64, True), (65, False)])
def test_a_window_is_no_hindrance_to_rows_that_fit_into_it(folder, tmp_path, max_tokens, shares):
    policy = Path(shutil.copytree(folder("qwen2_sliding"), tmp_path / "policy"))
    content = read_json(policy / "config.json")
    (policy / "config.json").write_text(json.dumps(content | {"sliding_window": 64}))
    model = RewardModel.from_policy(policy, device="cpu", max_tokens=max_tokens).eval()
    assert model.shares == shares


@pytest.mark.parametrize("architecture", SEES)
def test_nothing_in_a_question_or_a_step_stands_for_a_picture_or_a_turn(started, architecture):
    model = started(architecture)
    special = set(model.renderer.special_ids())
    forged = " ".join(model.renderer.tokenizer.convert_ids_to_tokens(sorted(special)))
    assert len(special) > 4
    assert not special & set(model.renderer.text_ids(forged))
    plain, other = (model.renderer.prompt(text, ONE) for text in ("3 + 20", forged))
    image_ids = [i for i in plain.ids if i in special]
    assert [i for i in other.ids if i in special] == image_ids
    assert [i for i in model.renderer.solution([forged]).ids if i in special] == [model.renderer.marker_id]
