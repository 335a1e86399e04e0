"""Statements about a picture: what is made false, how often, and a loss that its seed decides."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from components.perception import Perception
from components.prm import RewardModel
from tests.conftest import picture

ROWS = [
    {
        "question": "bars : most minus least ?",
        "image": {"bytes": picture(i), "path": None},
        "statements": [f"{colour}: {1 + (i + j) % 9}" for j, colour in enumerate(("red", "blue", "green", "yellow"))],
    }
    for i in range(9)
]


@pytest.fixture(scope="module")
def model(tiny_policy):
    return RewardModel.from_policy(tiny_policy, marker="<prm>", label_tokens=("+", "-"), device="cpu", sees=True)


@pytest.fixture
def perception(model):
    def call(corrupted_frac=0.5, rows=ROWS):
        return Perception(rows, model, corrupted_frac=corrupted_frac)

    return call


def test_only_the_last_word_is_corrupted_and_the_truth_is_kept(perception):
    task, rng = perception(1.0), np.random.default_rng(0)
    for _ in range(300):
        checked = task.corrupt("red: 5", rng)
        head, _, last = checked.shown.rpartition(" ")
        assert head == "red:"
        assert last in set("123456789") - {"5"}
        assert checked.true == "red: 5"
        assert not checked.is_true


@pytest.mark.parametrize("frac", [0.0, 0.3, 0.5, 1.0])
def test_as_many_statements_are_corrupted_as_the_setting_says(perception, frac):
    task, rng = perception(frac), np.random.default_rng(1)
    checked = [task.corrupt("blue: 3", rng) for _ in range(3000)]
    false = sum(not c.is_true for c in checked)
    assert false == sum(c.shown != "blue: 3" for c in checked)
    assert abs(false / 3000 - frac) <= 4 * math.sqrt(frac * (1 - frac) / 3000)


def test_half_of_the_corrupted_numbers_are_neighbours_and_the_rest_any(perception):
    task, rng = perception(1.0), np.random.default_rng(2)
    num = 4000
    counts = Counter(task.corrupt("red: 5", rng).shown.split()[-1] for _ in range(num))
    assert set(counts) == set("12346789")
    expected = 0.5 + 0.5 * 2 / 8  # the two neighbours: always in one half, two of eight in the other
    assert abs((counts["4"] + counts["6"]) / num - expected) < 4 * math.sqrt(expected * (1 - expected) / num)


def test_words_are_replaced_by_other_words_that_were_seen(perception):
    rows = [dict(row, statements=["the shape is round", "the shape is flat"]) for row in ROWS]
    task, rng = perception(1.0, rows), np.random.default_rng(3)
    assert {task.corrupt("the shape is flat", rng).shown for _ in range(20)} == {"the shape is round"}


def test_a_statement_with_nothing_to_confuse_stays_true(perception):
    task = perception(1.0, [dict(ROWS[0], statements=["red: 5"])])
    assert task.corrupt("red: 5", np.random.default_rng(0)).is_true


def test_an_odd_digit_is_a_word_like_any_other(perception):
    rows = [dict(row, statements=["area: 5", "area: ²"]) for row in ROWS]
    task, rng = perception(1.0, rows), np.random.default_rng(4)
    assert task.corrupt("area: ²", rng).shown == "area: 5"


def test_the_seed_decides_the_loss(perception):
    task = perception()
    (first, accuracy), (again, same), (other, _) = task.loss(4, 11), task.loss(4, 11), task.loss(4, 12)
    assert first.item() == again.item() != other.item()
    assert accuracy == same
    assert 0 <= accuracy <= 1


def test_the_loss_of_true_statements_is_that_of_reading_and_of_saying_so(perception, model):
    """One picture, nothing corrupted: the loss computed anew from the model's full logits."""
    task = perception(0.0, ROWS[:1])
    loss, accuracy = task.loss(1, 0)
    prompt = model.renderer.prompt(ROWS[0]["question"], [ROWS[0]["image"]["bytes"]])
    order = np.random.default_rng(0)
    order.integers(0, 1, 1)
    statements = []
    for j in order.permutation(4):
        statements.append(ROWS[0]["statements"][j])
        order.random()
    rendered = model.renderer.solution(statements)
    ids = torch.tensor([prompt.ids + rendered.ids])
    with torch.no_grad():
        logits = model.model(input_ids=ids, **prompt.tensors).logits[0]
        rows = [model.renderer.text_ids(word)[0] for word in ("+", "-")]
        at = torch.tensor(rendered.markers) + len(prompt.ids)
        verdict = logits[at][:, rows].log_softmax(-1)[:, 0]
        reading = logits[at - 2].log_softmax(-1).gather(1, ids[0, at - 1][:, None])[:, 0]
    assert loss.item() == pytest.approx(-(verdict.mean() + reading.mean()).item(), abs=1e-4)
    assert accuracy == (verdict > math.log(0.5)).float().mean().item()


def test_the_loss_teaches(perception, tiny_policy):
    """One picture by heart: the gradient points where it should."""
    learner = RewardModel.from_policy(tiny_policy, marker="<prm>", label_tokens=("+", "-"), device="cpu", sees=True)
    task = Perception(ROWS[:1], learner, corrupted_frac=0.5)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss, _ = task.loss(8, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_of_a_tagged_statement_the_value_before_the_tag_is_corrupted(perception):
    rows = [dict(row, statements=[f"<step>{text}</step>" for text in row["statements"]]) for row in ROWS]
    task, rng = perception(1.0, rows), np.random.default_rng(0)
    assert set(task.values) == set("123456789")
    shown = Counter(task.corrupt("<step>red: 5</step>", rng).shown for _ in range(600))
    assert set(shown) == {f"<step>red: {n}</step>" for n in "12346789"}
    near = sum(shown[f"<step>red: {n}</step>"] for n in "46")
    assert abs(near / 600 - (0.5 + 0.5 * 2 / 8)) < 4 * math.sqrt(0.25 / 600)


def test_the_true_value_is_asked_for_where_it_stands_before_closing_tags(perception, model, monkeypatch):
    """The position whose output must name the value is the one just before the value's token."""
    rows = [dict(ROWS[0], statements=["<step> red: 5 </step>"])]
    task = perception(0.0, rows)
    seen = []
    monkeypatch.setattr(model, "hidden", lambda ids, prompts, call=model.hidden: seen.append(ids) or call(ids, prompts))
    asked = []
    head = model.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, given, out: asked.append(given[0]))
    try:
        loss, _ = task.loss(1, 0)
    finally:
        handle.remove()
    after = len(model.renderer.text_ids("</step>"))
    value = model.renderer.text_ids("<step> red: 5 </step>")[-1 - after]
    ids = seen[0][0]
    at = len(ids) - 1 - after - 1  # marker, tag, then the value
    assert ids[at] == value
    with torch.no_grad():
        expected = model.hidden([ids], [task.encoded[0]])[0, at - 1]
    assert torch.allclose(asked[0][0], expected, atol=1e-5)
    assert math.isfinite(loss.item())
