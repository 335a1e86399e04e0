"""Parts held fixed, adapters and remembered vision features, on every architecture."""

import pytest
import torch

from components.adaptation import MEMORY_BYTES, add_lora, freeze, merge_lora, parts_of, remember_vision, vision_tower
from components.errors import SettingsError
from components.formulations import Targets
from components.prm import Reading, RewardModel
from tests.architectures import EVERY, SEEING, picture, written_once

SEES = [*SEEING, "gemma3"]
READS = [name for name in EVERY if name not in SEES]
STEPS = (("3 + 20", "= 23"), ("3 + 20", "= 24", "so 24"), ("20 and 3",))
PICTURES = [(picture(1),), (picture(1), picture(2, 64, 32)), (picture(3, 32, 64),), ()]


folder = pytest.fixture(scope="session")(written_once)


def fresh(folder, **options):
    return RewardModel.from_policy(folder, device="cpu", **options)


def readings(architecture, shown=PICTURES):
    return [Reading("3 + 20 = ?", images if architecture in SEES else (), steps) for images in shown for steps in STEPS]


def loss_of(model, architecture, shown=PICTURES):
    trees = []
    for images in shown if architecture in SEES else [()]:
        prompt = model.renderer.prompt("3 + 20 = ?", images)
        trees += model.trees(prompt, [model.renderer.solution(steps) for steps in STEPS])
    logits = model.logits(trees)
    right = (torch.arange(len(logits)) % 2).float()
    return model.formulation.loss(logits, Targets(right, right, torch.ones_like(right), torch.ones_like(right)))


def train(model, architecture, num_steps=2):
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.1)
    losses = []
    for _ in range(num_steps):
        loss = loss_of(model, architecture)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    return losses


def named(model):
    return {name: p.detach().clone() for name, p in model.model.named_parameters()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("architecture", EVERY)
def test_every_parameter_belongs_to_one_part(folder, architecture):
    model = fresh(folder(architecture)).model
    parts = parts_of(model)
    assert list(parts) == (["vision", "projector", "language"] if architecture in SEES else ["language"])
    ids = [id(p) for part in parts.values() for p in part]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    eyes = {id(p) for name, p in model.named_parameters() if "patch_embed" in name}
    between = ("merger", "projector", "connector", "image_newline")
    maps = {id(p) for name, p in model.named_parameters() if any(word in name for word in between)}
    assert eyes <= {id(p) for p in parts.get("vision", [])}
    assert maps == {id(p) for p in parts.get("projector", [])}
    words = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert {id(p) for p in words} <= {id(p) for p in parts["language"]}


@pytest.mark.parametrize("part", ["vision", "projector", "language"])
@pytest.mark.parametrize("architecture", SEES)
def test_a_frozen_part_stays_and_the_others_learn(folder, architecture, part):
    model = fresh(folder(architecture))
    parts = parts_of(model.model)
    assert freeze(model.model, [part]) == sum(p.numel() for p in parts[part])
    assert freeze(model.model, [part]) == 0
    part_of = {id(p): name for name, parameters in parts.items() for p in parameters}
    owner = {name: part_of[id(p)] for name, p in model.model.named_parameters()}
    before, head = named(model), model.head.detach().clone()
    train(model, architecture)
    assert {owner[name] for name in changed(before, named(model))} == set(parts) - {part}
    assert not torch.equal(model.head, head)


def test_a_part_that_a_model_has_not_is_named_with_those_it_has(folder):
    with pytest.raises(SettingsError, match="Qwen2ForCausalLM has no part 'vision', it has language"):
        freeze(fresh(folder("qwen2")).model, ["vision"])
    with pytest.raises(SettingsError, match="it has vision, projector, language"):
        freeze(fresh(folder("llava")).model, ["eyes"])


@pytest.mark.parametrize("architecture", [name for name in EVERY if name != "mamba"])
def test_adapters_learn_alone_and_are_merged_when_a_checkpoint_is_saved(folder, tmp_path, architecture):
    model = fresh(folder(architecture)).eval()
    if architecture in SEES:
        freeze(model.model, ["vision"])
    given, marker = readings(architecture), model.renderer.marker_id
    plain, untouched = named(model), model.score(given)
    num = add_lora(model.model, rank=4, alpha=8, token_ids=[marker])
    assert num == sum(p.numel() for p in model.model.get_decoder().parameters() if p.requires_grad)
    for a, b in zip(model.score(given), untouched, strict=True):  # an adapter starts as nothing
        assert a == pytest.approx(b, abs=1e-6)
    losses = train(model, architecture, num_steps=3)
    assert losses[-1] < losses[0]
    learnt = model.score(given)
    assert max(abs(a - b) for x, y in zip(learnt, untouched, strict=True) for a, b in zip(x, y, strict=True)) > 1e-3
    frozen = {name.replace(".base_layer", ""): p for name, p in named(model).items()}
    assert changed({n: p for n, p in plain.items() if not _between(n)}, frozen) == set()
    assert (architecture in SEES) == bool(changed({n: p for n, p in plain.items() if _between(n)}, frozen))

    model.save(tmp_path / "prm", folder(architecture), {})
    again = RewardModel.load(tmp_path / "prm", device="cpu")
    assert set(named(again)) == set(plain)
    for scores in (again.score(given), model.score(given)):
        for a, b in zip(scores, learnt, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    rows = again.model.get_input_embeddings().weight
    name = next(n for n, p in model.model.named_parameters() if p is model.model.get_input_embeddings().weight)
    others = torch.arange(len(rows)) != marker
    assert torch.equal(rows[others], plain[name][others])
    assert not torch.equal(rows[marker], plain[name][marker])
    assert merge_lora(model.model) == 0


def _between(name):
    return any(word in name for word in ("merger", "projector", "connector", "image_newline"))


def test_adapters_go_where_they_are_asked_to_go(folder):
    model = fresh(folder("qwen2")).model
    num = add_lora(model, rank=2, alpha=2, targets=["q_proj", "v_proj"])
    assert num == 2 * (2 * (32 + 32) + 2 * (32 + 16))  # layers, rank times the sides of both matrices
    trained = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}
    with pytest.raises(SettingsError, match="query: not a linear layer of this language model, it has down_proj"):
        add_lora(fresh(folder("qwen2")).model, rank=2, alpha=2, targets=["query"])


def test_layers_that_take_no_adapter_are_named(folder):
    with pytest.raises(SettingsError, match=r"out_proj.*incompatible"):
        add_lora(fresh(folder("mamba")).model, rank=2, alpha=2)
    assert add_lora(fresh(folder("mamba")).model, rank=2, alpha=2, targets=["in_proj"]) > 0


def test_the_gradient_of_a_trained_row_is_that_of_the_matrix(folder):
    """The oracle: the same model with its whole embedding matrix trained."""
    whole, rows = fresh(folder("llama")), fresh(folder("llama"))
    marker = whole.renderer.marker_id
    add_lora(rows.model, rank=1, alpha=1, token_ids=[5, marker])
    for model in (whole, rows):
        loss_of(model, "llama").backward()
    expected = whole.model.get_input_embeddings().weight.grad[[5, marker]]
    assert torch.allclose(rows.model.get_input_embeddings().trained_rows.grad, expected, atol=1e-6)


def started(folder, architecture):
    """A reward model with frozen eyes."""
    model = fresh(folder(architecture))
    freeze(model.model, ["vision", "projector"])
    return model


@pytest.mark.parametrize("architecture", SEES)
def test_remembered_features_are_those_of_the_tower_exactly_in_any_company(folder, architecture):
    model = started(folder, architecture).eval()
    tower = vision_tower(model.model)
    calls = []
    forward = tower.forward
    tower.forward = lambda *args, **kwargs: calls.append((args, kwargs)) or forward(*args, **kwargs)
    with torch.no_grad():
        expected = loss_of(model, architecture)
        memory = remember_vision(model.model)
        first, second = loss_of(model, architecture), loss_of(model, architecture)
        num_misses = memory.misses
        alone = [loss_of(model, architecture, [images]) for images in PICTURES]
    assert memory.refusal is None
    assert first == second
    assert first.item() == pytest.approx(expected.item(), abs=1e-5)
    assert memory.misses == num_misses > 1
    assert memory.hits >= num_misses
    assert 0 < memory.num_bytes < MEMORY_BYTES
    memory.forget()
    tower.forward = forward
    for loss, images in zip(alone, PICTURES, strict=True):
        with torch.no_grad():
            assert loss.item() == pytest.approx(loss_of(model, architecture, [images]).item(), abs=1e-5)


@pytest.mark.parametrize("architecture", SEES)
def test_training_with_remembered_features_reaches_the_same_weights(folder, architecture):
    plain, remembering = started(folder, architecture), started(folder, architecture)
    scores = remembering.eval().score(readings(architecture))  # scoring first must not spoil training
    memory = remember_vision(remembering.model)
    assert remembering.score(readings(architecture)) == [pytest.approx(row, abs=1e-5) for row in scores]
    num = memory.misses
    losses = [train(model, architecture, num_steps=3) for model in (plain, remembering)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert memory.misses == num
    for name, parameter in remembering.model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter, plain.model.get_parameter(name), atol=2e-3), name


def test_pictures_that_differ_in_one_bit_are_told_apart(folder):
    model = started(folder, "internvl")
    memory = remember_vision(model.model)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tower = vision_tower(model.model)
    tower(pixel_values=pixels)
    for place in (0, 1, 1000, 3071):
        other = pixels.clone()
        bits = other.flatten().view(torch.int32)
        bits[place] ^= 1
        tower(pixel_values=other)
    assert (memory.misses, memory.hits) == (5, 0)
    tower(pixel_values=pixels)
    assert (memory.misses, memory.hits) == (5, 1)


def test_the_memory_is_bounded_and_forgets_what_was_used_longest_ago(folder):
    model = started(folder, "internvl")
    tower = vision_tower(model.model)
    pixels = [torch.full((1, 3, 32, 32), float(i)) for i in range(4)]
    whole = remember_vision(model.model)
    tower(pixel_values=pixels[0])
    one = whole.num_bytes
    whole.forget()
    memory = remember_vision(model.model, max_bytes=2 * one)
    for i in (0, 1, 0, 2, 0, 1):  # 2 drives 1 out
        tower(pixel_values=pixels[i])
    assert (memory.misses, memory.hits) == (4, 2)
    assert memory.num_bytes == 2 * one


@pytest.mark.parametrize(
    ("architecture", "parts", "reason"),
    [
        ("llava", ["projector"], "is trained"),
        ("qwen2_5_vl", ["vision"], "freeze projector too"),
        ("qwen2", [], "has no vision tower"),
    ],
)
def test_what_cannot_be_remembered_is_left_as_it_is_and_said(folder, architecture, parts, reason):
    model = fresh(folder(architecture))
    freeze(model.model, parts)
    memory = remember_vision(model.model)
    assert reason in memory.refusal
    loss_of(model, architecture).backward()
    assert memory.misses == memory.hits == 0


def test_a_tower_that_mixes_pictures_is_found_out(folder):
    model = started(folder, "llava")
    tower = vision_tower(model.model)
    forward = tower.forward

    def mixing(pixel_values, **kwargs):
        return forward(pixel_values - pixel_values.mean(0), **kwargs)

    tower.forward = mixing
    with torch.no_grad():
        expected = loss_of(model, "llava")
        memory = remember_vision(model.model)
        assert loss_of(model, "llava") == expected
    assert "other company" in memory.refusal
    assert memory.num_bytes == 0
