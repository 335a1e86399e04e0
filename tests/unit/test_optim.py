"""The training loop against closed forms; an interrupted run ends, to the bit, where an uninterrupted one does."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components import optim
from components.adaptation import freeze
from components.checkpoints import load_model, load_processor
from components.errors import DataError
from components.optim import Watch, batch_groups, batch_rows, fit, learning_rate
from components.render import Renderer, join_tensors
from components.settings import Optimiser
from tests.conftest import picture

SETTINGS = Optimiser(num_steps=23, batch_size=4, learning_rate=0.05, warmup_steps=3)


def regression():
    """A small network, the loss of rows, and the rows of each step, in two parts."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 5, generator=generator)
    targets = inputs.sum(1, keepdim=True).sin()
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss_of(rows):
        return (module(inputs[rows]) - targets[rows]).square().sum() / SETTINGS.batch_size

    return module, loss_of


def parts_at(step):
    rows = drawn(step)
    return [rows[:3], rows[3:]]


def drawn(step):
    return batch_rows(10, SETTINGS.batch_size, step, seed=3)


def interrupted_at(stop):
    """Parts as they come, until somebody presses Ctrl-C."""

    def parts(step):
        if step == stop:
            raise KeyboardInterrupt
        return parts_at(step)

    return parts


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


def steps(step):
    """Steps of one part each: their number."""
    return [step]


def test_one_step_is_adamw_on_the_clipped_gradient():
    module = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0, -1.0]]))
    settings = Optimiser(num_steps=1, batch_size=1, learning_rate=0.1, warmup_steps=0, weight_decay=0.3, max_grad_norm=1.0)
    fitted = fit(module, lambda part: 3 * module.weight[0, 0] + 4 * module.weight[0, 1], steps, settings, name="x")
    assert fitted.final_loss == pytest.approx(2.0)
    # gradient (3, 4) is clipped to (0.6, 0.8); the first Adam step is the sign of it; decay is apart from it
    expected = [2.0 * (1 - 0.03) - 0.1, -1.0 * (1 - 0.03) - 0.1]
    assert module.weight[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_final_loss_is_the_mean_of_the_last_twenty():
    module = torch.nn.Linear(1, 1)
    settings = Optimiser(num_steps=30, batch_size=1, learning_rate=1e-9)
    fitted = fit(module, lambda step: 0 * module.weight.sum() + float(step), steps, settings, name="x")
    assert fitted.final_loss == sum(range(10, 30)) / 20
    assert [numbers[0] for numbers in fitted.numbers] == list(range(30))


def test_the_parts_of_a_step_are_the_step():
    whole, loss_of = regression()
    fitted = fit(whole, loss_of, lambda step: [drawn(step)], SETTINGS, name="x")
    parted, loss_of = regression()
    in_parts = fit(parted, loss_of, lambda step: [[row] for row in drawn(step)], SETTINGS, name="x")
    assert in_parts.numbers == [[pytest.approx(loss, rel=1e-5)] for (loss,) in fitted.numbers]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole.parameters(), parted.parameters(), strict=True))


def test_what_is_watched_is_summed_over_the_parts_and_not_learnt():
    module, loss_of = regression()
    said = []

    def two(rows):
        return torch.stack([loss_of(rows), torch.tensor(float(len(rows)))])

    fitted = fit(module, two, parts_at, SETTINGS, name="x", note=lambda numbers: said.append(numbers) or "")
    alone, loss_of = regression()
    expected = fit(alone, loss_of, parts_at, SETTINGS, name="x")
    assert [numbers[0] for numbers in fitted.numbers] == [numbers[0] for numbers in expected.numbers]
    assert {numbers[1] for numbers in fitted.numbers} == {4.0}
    assert fitted.final(1) == 4.0
    assert said == fitted.numbers


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 5)
    whole, loss_of = regression()
    expected = fit(whole, loss_of, parts_at, SETTINGS, name="x")

    module, loss_of = regression()
    with pytest.raises(KeyboardInterrupt):
        fit(module, loss_of, interrupted_at(12), SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]

    resumed, loss_of = regression()
    seen = []

    def watched(step):
        seen.append(step)
        return parts_at(step)

    assert fit(resumed, loss_of, watched, SETTINGS, name="x", checkpoint=tmp_path / "x.pt") == expected
    assert seen == list(range(10, 23))  # from the last checkpoint on
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_noise_of_a_module_in_training_is_the_same_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 5)

    def noisy():
        module, loss_of = regression()
        dropout = torch.nn.Dropout(0.5)
        return module, lambda rows: loss_of(rows) + dropout(module[0].weight).square().mean()

    whole, loss_of = noisy()
    fit(whole, loss_of, parts_at, SETTINGS, name="x", checkpoint=tmp_path / "whole.pt")

    module, loss_of = noisy()
    with pytest.raises(KeyboardInterrupt):
        fit(module, loss_of, interrupted_at(12), SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    resumed, loss_of = noisy()
    fit(resumed, loss_of, parts_at, SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_run_that_had_ended_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 23)
    module, loss_of = regression()
    expected = fit(module, loss_of, parts_at, SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    again, _ = regression()
    not_again = lambda step: pytest.fail("trained again")  # noqa: E731
    assert fit(again, loss_of, not_again, SETTINGS, name="x", checkpoint=tmp_path / "x.pt") == expected
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_leaves_the_weights(value):
    module, loss_of = regression()
    before = []

    def parts(step):
        if step == 2:
            before.extend(p.detach().clone() for p in module.parameters())
            return [None]
        return parts_at(step)

    with pytest.raises(DataError, match=f"x: the loss is {value} at step 2"):
        fit(module, lambda rows: loss_of(rows) if rows else loss_of([0]) * value, parts, SETTINGS, name="x")
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


LOOKS = [5.0, 4.0, 4.5, 4.2, 3.9, 6.0, 1.0]  # the last look comes too late


def looking(seen):
    """A look whose losses are decided beforehand."""

    def at(module):
        seen.append(len(seen))
        return {"loss": LOOKS[len(seen) - 1]}

    return at


@pytest.mark.parametrize(("patience", "num_steps", "best_step"), [(2, 8, 4), (3, 14, 14), (None, 14, None)])
def test_patience_ends_the_training_and_keeps_the_weights_of_the_best_look(tmp_path, patience, num_steps, best_step):
    settings = SETTINGS.model_copy(update={"num_steps": 14})
    kept = {}
    module, loss_of = regression()

    def parts(step):
        kept[step] = [p.detach().clone() for p in module.parameters()]
        return parts_at(step)

    watch = Watch(2, looking([]), patience)
    fitted = fit(module, loss_of, parts, settings, name="x", checkpoint=tmp_path / "x.pt", watch=watch)
    assert len(fitted.numbers) == num_steps
    assert fitted.best_step == best_step
    assert [look["step"] for look in fitted.history] == list(range(2, num_steps + 1, 2))
    means = [sum(n[0] for n in fitted.numbers[i : i + 2]) / 2 for i in range(0, num_steps, 2)]
    assert [look["train_loss"] for look in fitted.history] == pytest.approx(means)
    if patience == 2:
        assert all(torch.equal(a, b) for a, b in zip(kept[4], module.parameters(), strict=True))


def test_a_resumed_run_is_as_patient_as_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 5)
    expected, loss_of = regression()
    whole = fit(
        expected, loss_of, parts_at, SETTINGS, name="x", checkpoint=tmp_path / "a.pt", watch=Watch(2, looking([]), 2)
    )
    module, loss_of = regression()
    seen = []
    with pytest.raises(KeyboardInterrupt):
        fit(
            module,
            loss_of,
            interrupted_at(7),
            SETTINGS,
            name="x",
            checkpoint=tmp_path / "b.pt",
            watch=Watch(2, looking(seen), 2),
        )
    resumed, loss_of = regression()
    del seen[2:]  # what came after the checkpoint at step 5 is looked at again
    watch = Watch(2, looking(seen), 2)
    assert fit(resumed, loss_of, parts_at, SETTINGS, name="x", checkpoint=tmp_path / "b.pt", watch=watch) == whole
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), resumed.parameters(), strict=True))


def test_steps_too_small_for_half_precision_add_up():
    module = torch.nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        module.weight.fill_(1.0)
    settings = Optimiser(num_steps=100, batch_size=1, learning_rate=1e-3, warmup_steps=0, weight_decay=0.0)
    rates = [learning_rate(step, settings) for step in range(100)]
    fit(module, lambda step: module.weight.sum(), steps, settings, name="x")
    assert module.weight.item() == pytest.approx(
        1 - sum(rates), abs=2**-8
    )  # alone, each is lost: 1 - 0.001 is 1 in bfloat16
    assert module.weight.dtype == torch.bfloat16


class Half(torch.nn.Module):
    """A network with a layer in half precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.low, self.high = torch.nn.Linear(1, 8).bfloat16(), torch.nn.Linear(8, 1)

    def forward(self, rows):
        return self.high(self.low(torch.tensor(rows)[:, None].bfloat16() / 10).float()).square().mean()


def test_half_precision_goes_on_as_it_would_have(tmp_path, monkeypatch):
    monkeypatch.setattr(optim, "CHECKPOINT_STEPS", 5)
    whole, begun, resumed = Half(), Half(), Half()
    fit(whole, whole, parts_at, SETTINGS, name="x")
    with pytest.raises(KeyboardInterrupt):
        fit(begun, begun, interrupted_at(12), SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    fit(resumed, resumed, parts_at, SETTINGS, name="x", checkpoint=tmp_path / "x.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**63))
def test_batches_of_groups_have_enough_rows_and_each_epoch_has_every_group_once(sizes, batch_size, num_steps, seed):
    batches = batch_groups(sizes, batch_size, num_steps, seed)
    assert len(batches) == num_steps
    for batch in batches:
        assert sum(sizes[i] for i in batch) >= batch_size > sum(sizes[i] for i in batch[:-1])
    drawn = [i for batch in batches for i in batch]
    for start in range(0, len(drawn) - len(sizes) + 1, len(sizes)):
        assert sorted(drawn[start : start + len(sizes)]) == list(range(len(sizes)))
    assert batch_groups(sizes, batch_size, num_steps + 3, seed)[:num_steps] == batches


def test_frozen_parameters_stay_and_the_others_learn():
    module, loss_of = regression()
    module[0].weight.requires_grad_(False)
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, loss_of, parts_at, SETTINGS, name="x")
    assert [torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)] == [True, False, False, False]


def test_training_with_a_frozen_encoder_changes_everything_else(tiny_policy):
    model = load_model(tiny_policy, "cpu")
    freeze(model, ["vision"])
    model.train()
    prompt = Renderer(load_processor(tiny_policy)).prompt("bars : most minus least ?", [picture(0)])
    tensors = join_tensors([prompt], len(prompt.ids), "cpu", torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.tensor([prompt.ids])
    settings = Optimiser(num_steps=2, batch_size=1, learning_rate=0.01, warmup_steps=0)
    fit(model, lambda part: model(input_ids=ids, **tensors).logits.square().mean(), steps, settings, name="x")
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)
