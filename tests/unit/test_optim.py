"""The training loop against closed forms; an interrupted run ends, to the bit, where an uninterrupted one does."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components import optim
from components.checkpoints import load_model, load_processor
from components.errors import DataError
from components.optim import batch_rows, fit, freeze_vision, learning_rate
from components.render import Renderer, join_tensors
from components.settings import Optimiser
from tests.conftest import picture

SETTINGS = Optimiser(num_steps=23, batch_size=4, learning_rate=0.05, warmup_steps=3)


def regression():
    """A small network, and the loss of each step on rows that its number decides."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 5, generator=generator)
    targets = inputs.sum(1, keepdim=True).sin()
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss_at(step):
        rows = batch_rows(10, SETTINGS.batch_size, step, seed=3)
        return torch.nn.functional.mse_loss(module(inputs[rows]), targets[rows]), ""

    return module, loss_at


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**63))
def test_batches_cover_every_row_once_an_epoch(num_rows, batch_size, seed):
    num_steps = -(-3 * num_rows // batch_size)
    rows = [row for step in range(num_steps) for row in batch_rows(num_rows, batch_size, step, seed)]
    assert len(rows) == num_steps * batch_size
    for epoch in range(3):
        assert sorted(rows[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    before = batch_rows(100, 8, 17, seed=5)
    assert [batch_rows(100, 8, step, seed=5) for step in (40, 3, 17)][2] == before
    assert batch_rows(100, 8, 17, seed=6) != before
    assert batch_rows(100, 100, 0, seed=5) != batch_rows(100, 100, 1, seed=5)  # each epoch has an order of its own


@given(st.integers(1, 500), st.integers(0, 50), st.floats(1e-6, 1.0), st.data())
def test_the_learning_rate_is_its_closed_form(num_steps, warmup_steps, peak, data):
    settings = Optimiser(num_steps=num_steps, batch_size=1, learning_rate=peak, warmup_steps=warmup_steps)
    step = data.draw(st.integers(0, num_steps))
    warm = 1.0 if step + 1 >= warmup_steps else (step + 1) / warmup_steps
    cosine = (1 + math.cos(math.pi * step / num_steps)) / 2
    assert learning_rate(step, settings) == pytest.approx(peak * warm * (0.05 + 0.95 * cosine), rel=1e-12)


def test_the_learning_rate_at_its_corners():
    settings = Optimiser(num_steps=100, batch_size=1, learning_rate=2.0, warmup_steps=10)
    assert learning_rate(0, settings) == pytest.approx(0.2, rel=1e-3)
    assert learning_rate(50, settings) == pytest.approx(2.0 * 0.525)
    assert learning_rate(100, settings) == pytest.approx(0.1)
    rates = [learning_rate(step, settings) for step in range(9, 100)]
    assert rates == sorted(rates, reverse=True)


def test_one_step_is_adamw_on_the_clipped_gradient():
    module = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0, -1.0]]))
    settings = Optimiser(num_steps=1, batch_size=1, learning_rate=0.1, warmup_steps=0, weight_decay=0.3, max_grad_norm=1.0)
    loss = fit(module, lambda step: (3 * module.weight[0, 0] + 4 * module.weight[0, 1], ""), settings, name="x")
    assert loss == pytest.approx(2.0)
    # gradient (3, 4) is clipped to (0.6, 0.8); the first Adam step is the sign of it; decay is apart from it
    expected = [2.0 * (1 - 0.03) - 0.1, -1.0 * (1 - 0.03) - 0.1]
    assert module.weight[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_returned_loss_is_the_mean_of_the_last_twenty():
    module = torch.nn.Linear(1, 1)
    settings = Optimiser(num_steps=30, batch_size=1, learning_rate=1e-9)
    loss = fit(module, lambda step: (0 * module.weight.sum() + float(step), ""), settings, name="x")
    assert loss == sum(range(10, 30)) / 20


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 5)
    whole, loss_at = regression()
    expected = fit(whole, loss_at, SETTINGS, name="x")

    module, loss_at = regression()

    def interrupted(step):
        if step == 12:
            raise KeyboardInterrupt
        return loss_at(step)

    with pytest.raises(KeyboardInterrupt):
        fit(module, interrupted, SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]

    resumed, loss_at = regression()
    seen = []

    def watched(step):
        seen.append(step)
        return loss_at(step)

    assert fit(resumed, watched, SETTINGS, name="x", checkpoint=tmp_path / "x.pt") == expected
    assert seen == list(range(10, 23))  # from the last checkpoint on
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_noise_of_a_module_in_training_is_the_same_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 5)

    def noisy():
        module, loss_at = regression()
        dropout = torch.nn.Dropout(0.5)
        return module, lambda step: (loss_at(step)[0] + dropout(module[0].weight).square().mean(), "")

    whole, loss_at = noisy()
    fit(whole, loss_at, SETTINGS, name="x", checkpoint=tmp_path / "whole.pt")

    module, loss_at = noisy()

    def interrupted(step):
        if step == 12:
            raise KeyboardInterrupt
        return loss_at(step)

    with pytest.raises(KeyboardInterrupt):
        fit(module, interrupted, SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    resumed, loss_at = noisy()
    fit(resumed, loss_at, SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_run_that_had_ended_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 23)
    module, loss_at = regression()
    expected = fit(module, loss_at, SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    again, _ = regression()
    assert (
        fit(again, lambda step: pytest.fail("trained again"), SETTINGS, name="x", checkpoint=tmp_path / "x.pt") == expected
    )
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_leaves_the_weights(value):
    module, loss_at = regression()
    before = []

    def broken(step):
        loss, note = loss_at(step)
        if step == 2:
            before.extend(p.detach().clone() for p in module.parameters())
            loss = loss * value
        return loss, note

    with pytest.raises(DataError, match=f"x: the loss is {value} at step 2"):
        fit(module, broken, SETTINGS, name="x")
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_frozen_parameters_stay_and_the_others_learn():
    module, loss_at = regression()
    module[0].weight.requires_grad_(False)
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, loss_at, SETTINGS, name="x")
    assert [torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)] == [True, False, False, False]


@pytest.mark.parametrize("architecture", ["internvl", "llava", "qwen2_5_vl"])
def test_a_frozen_vision_encoder_neither_learns_nor_leaves_evaluation(checkpoint, architecture):
    model = load_model(checkpoint(architecture), "cpu").train()
    eyes = model.model.visual if architecture == "qwen2_5_vl" else model.model.vision_tower
    assert freeze_vision(model) == sum(p.numel() for p in eyes.parameters()) > 0
    model.train()
    assert model.training
    assert not any(module.training for module in eyes.modules())
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learnt
    assert not any("vision_tower" in name or "visual." in name for name in learnt)


def test_a_language_model_without_eyes_has_nothing_to_freeze(checkpoint):
    model = load_model(checkpoint("qwen2"), "cpu")
    assert freeze_vision(model) == 0
    assert all(p.requires_grad for p in model.parameters())


def test_training_with_a_frozen_encoder_changes_everything_else(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    freeze_vision(model)
    model.train()
    prompt = Renderer(load_processor(tiny_policy)).prompt("bars : most minus least ?", [picture(0)])
    tensors = join_tensors([prompt], len(prompt.ids), "cpu", torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.tensor([prompt.ids])
    settings = Optimiser(num_steps=2, batch_size=1, learning_rate=0.01, warmup_steps=0)
    fit(model, lambda step: (model(input_ids=ids, **tensors).logits.square().mean(), ""), settings, name="x")
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
