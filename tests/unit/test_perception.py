"""What is learnt from statements about pictures: the loss, against one computed anew from plain rows and full logits."""

import math

import numpy as np
import pytest
import torch

from components.errors import DataError
from components.perception import Perception
from components.prm import RewardModel
from components.statements import Checked, picture_of
from tests.conftest import picture

QUESTION = "bars : most minus least ?"
ROWS = [
    {
        "question": QUESTION,
        "image": {"bytes": picture(i), "path": None},
        "statements": [f"{colour}: {1 + (i + j) % 9}" for j, colour in enumerate(("red", "blue", "green", "yellow"))],
    }
    for i in range(9)
]
REAL = [  # values of many tokens, several kinds, pictures with much and with little to say
    {
        "question": "What is to be seen?",
        "image": {"bytes": picture(i), "path": None},
        "statements": [
            {"text": f"the {'red' if i % 2 else 'blue'} bar is {112 + i * 7}.5 cm high", "value": f"{112 + i * 7}.5 cm"}
        ],
        "qa": [{"question": "Which city?", "answer": city}],
        "ocr": [f"TOTAL {i}00", "10% off"][: 1 + i % 2],
        "caption": f"{city} at night.",
    }
    for i, city in enumerate(("New York", "New Delhi", "Berlin"))
]


def policy_model(folder, **options):
    return RewardModel.from_policy(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def model(tiny_policy):
    return policy_model(tiny_policy)


@pytest.fixture
def perception(model):
    def call(corrupted_frac=0.5, rows=ROWS, model=model, **options):
        return Perception([picture_of(row) for row in rows], model, corrupted_frac=corrupted_frac, **options)

    return call


def plain_loss(task, num, seed):
    """The same statements as padded rows without any tree; logits of the whole vocabulary; values found by their bytes."""
    model, renderer = task.model, task.model.renderer
    drawn = np.random.default_rng(seed).choice(len(task.pictures), num, replace=num > len(task.pictures))
    judged, read, right, count = [], [], 0, 0
    for place, i in enumerate(drawn.tolist()):
        prompt = renderer.prompt(task.pictures[i].question, task.pictures[i].contents())
        ids = list(prompt.ids)
        for checked in task.drawn(i, np.random.default_rng([seed, place])):
            count += 1
            start = len(ids)
            ids += renderer.solution([checked.shown]).ids
            hidden = model.hidden([ids], [prompt])[0]
            says = torch.log_softmax(hidden[-1].float() @ model.head.float().T[:, [0, -1]], -1)
            judged.append(-says[0 if checked.is_true else 1])
            right += bool((says[0] > says[1]) == checked.is_true)
            if checked.is_negated:
                continue
            true, shown = renderer.text_ids(checked.true), renderer.text_ids(checked.shown)
            words = model.model.get_output_embeddings()(hidden).float().log_softmax(-1)
            before = len(renderer.text_ids(checked.true[: checked.span.start].rstrip()))  # the space may go with the value
            after = len(renderer.text_ids(checked.true[: checked.span.end]))
            places = list(range(before, after))
            if renderer.text_ids(" ") and before and renderer.tokenizer.decode([true[before]]).isspace():
                places = places[1:]
            if not checked.is_true:
                same = next((k for k, pair in enumerate(zip(true, shown, strict=False)) if pair[0] != pair[1]), len(true))
                places = [k for k in places if k <= same]
            read.append(-torch.stack([words[start + k - 1, true[k]] for k in places]).mean())
    return (torch.stack(judged).sum() + torch.stack(read).sum()) / count, right / count


def gradients(model, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
        ]
    )


@pytest.mark.parametrize("architecture", ["internvl", "qwen2_5_vl", "llava"])
@pytest.mark.parametrize(("rows", "num"), [(ROWS, 5), (REAL, 5)])
def test_loss_and_gradients_are_those_of_plain_rows(checkpoint, perception, architecture, rows, num):
    """Drawn with pictures twice (5 of 3), so that trees branch; one row each, and rows shared."""
    task = perception(rows=rows, model=policy_model(checkpoint(architecture)))
    task.model.eval()
    loss, accuracy = task.loss(num, 7)
    expected, right = plain_loss(task, num, 7)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert accuracy == pytest.approx(right)
    one, other = gradients(task.model, loss), gradients(task.model, expected)
    assert (one - other).norm() <= 1e-5 * other.norm()


def test_an_architecture_that_shares_nothing_learns_the_same(perception, tiny_policy):
    task = perception(rows=REAL, model=policy_model(tiny_policy))
    assert task.model.shares
    shared, accuracy = task.loss(6, 3)
    task.model.__dict__["shares"] = False
    apart, same = task.loss(6, 3)
    assert shared.item() == pytest.approx(apart.item(), rel=1e-5)
    assert accuracy == same


@pytest.mark.parametrize("num", [1, 4, 7])
def test_the_shares_of_processes_add_up(perception, num):
    task = perception(rows=REAL)
    whole, accuracy = task.loss(num, 5)
    shares = [task.loss(num, 5, (i, 3)) for i in range(3)]
    assert sum(loss.item() for loss, _ in shares) == pytest.approx(whole.item(), rel=1e-5)
    assert sum(right for _, right in shares) == pytest.approx(accuracy)


def test_parts_hold_no_more_tokens_than_asked_and_add_up(perception):
    task = perception()
    length = len(task.model.renderer.prompt(QUESTION, task.pictures[0].contents()).ids) + 4 * 3 + 12  # marks for 16, not 4
    assert task.num_parts(8, 1, 8 * length) == 1
    assert task.num_parts(8, 1, 4 * length) == 2
    assert task.num_parts(8, 2, 2 * length) == 2
    assert task.num_parts(8, 1, 1) == 8
    whole, _ = task.loss(8, 2)
    parts = [task.loss(8, 2, (rank * 2 + part, 4))[0].item() for rank in range(2) for part in range(2)]
    assert sum(parts) == pytest.approx(whole.item(), rel=1e-5)


def test_the_seed_decides_the_loss(perception):
    task = perception()
    (first, accuracy), (again, same), (other, _) = task.loss(4, 11), task.loss(4, 11), task.loss(4, 12)
    assert first.item() == again.item() != other.item()
    assert accuracy == same
    assert 0 <= accuracy <= 1


# --- which tokens of a value ---------------------------------------------------------------------------------------


def asked(task, text, value, other=None, shown=None):
    """The tokens of the true value that are predicted, as text, where `other` or the whole text `shown` is shown."""
    (statement,) = picture_of({"image": b"x", "statements": [{"text": text, "value": value}]}).statements
    (span,) = statement.spans
    shown = shown or (text if other is None else statement.having(span, other))
    tokenizer = task.model.renderer.tokenizer
    true = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [tokenizer.decode([true[k]]) for k in task.asked(Checked(shown, text, span, shown == text))]


@pytest.mark.parametrize(
    ("text", "value", "other", "expected"),
    [
        ("red: 125", "125", None, ["1", "2", "5"]),
        ("red: 125 </step>", "125", None, ["1", "2", "5"]),
        ("red: 125 </step>", "125", "126", ["1", "2", "5"]),
        ("red: 125 </step>", "125", "165", ["1", "2"]),
        ("red: 125", "125", "7", ["1"]),
        ("red: 12", "12", "125", ["1", "2"]),
        ("red: 125", "125", "12", ["1", "2", "5"]),
        ("12 cats", "12", "13", ["1", "2"]),
    ],
)
def test_of_bytes_all_up_to_the_first_that_differs_are_asked_for(checkpoint, perception, text, value, other, expected):
    task = perception(model=policy_model(checkpoint("qwen2_5_vl")))
    assert asked(task, text, value, other) == expected


def test_a_word_that_is_one_token_is_asked_for(perception):
    assert asked(perception(), "red: 5", "5", "6") == asked(perception(), "red: 5", "5") == ["5"]


def test_a_denied_statement_is_not_read(perception):
    (statement,) = picture_of({"image": b"x", "statements": ["it is red"]}).statements
    assert perception().asked(Checked("it is not red", "it is red", statement.spans[0], False, None, True)) == []


def test_a_value_at_the_very_beginning_is_read_from_the_prompts_last_token(perception):
    task = perception(0.0, rows=[{**ROWS[0], "statements": [{"text": "red: 5", "value": "red"}]}])
    loss, _ = task.loss(1, 0)
    assert loss.item() == pytest.approx(_start_loss(task), rel=1e-5)


def _start_loss(task):
    renderer, model = task.model.renderer, task.model
    prompt = renderer.prompt(QUESTION, task.pictures[0].contents())
    ids = prompt.ids + renderer.solution(["red: 5"]).ids
    hidden = model.hidden([ids], [prompt])[0]
    says = torch.log_softmax(hidden[-1].float() @ model.head.float().T, -1)[0]
    word = model.model.get_output_embeddings()(hidden[len(prompt.ids) - 1]).float().log_softmax(-1)
    return -(says + word[ids[len(prompt.ids)]]).item()


# --- what is shown -------------------------------------------------------------------------------------------------


def test_the_chat_template_is_read_where_it_reads_steps(checkpoint, perception):
    """The places of verdicts are the renderer's own; that of a value is just before its first token."""
    task = perception(0.0, model=policy_model(checkpoint("qwen2_5_vl"), template="chat"), rows=ROWS[:1])
    renderer = task.model.renderer
    prompt = renderer.prompt(QUESTION, task.pictures[0].contents())
    drawn = task.drawn(0, np.random.default_rng(0))
    rendered = renderer.solution([c.shown for c in drawn])
    chain = task.chain(prompt, drawn)
    assert chain.rendered.ids == [prompt.ids[-1], *rendered.ids]
    assert chain.rendered.markers[:4] == [place + 1 for place in rendered.markers]
    for place, word, checked in zip(chain.rendered.markers[4:], chain.words, drawn, strict=True):
        assert chain.rendered.ids[place + 1] == word == renderer.text_ids(checked.true[-1])[0]
        assert renderer.tokenizer.decode(chain.rendered.ids[: place + 2]).endswith(checked.true)


def test_statements_that_do_not_fit_are_not_learnt_and_none_is_cut(perception, tiny_policy):
    task = perception(0.0, model=policy_model(tiny_policy), rows=ROWS[:1])
    prompt = task.model.renderer.prompt(QUESTION, task.pictures[0].contents())
    drawn = task.drawn(0, np.random.default_rng(0))
    whole = task.chain(prompt, drawn)
    for room in range(len(whole.rendered.ids)):
        task.model.max_tokens = len(prompt.ids) + room
        chain = task.chain(prompt, drawn)
        fit = sum(place <= room for place in whole.rendered.markers[:4])
        assert chain.truths == whole.truths[:fit]
        assert chain.words == whole.words[:fit]
        assert len(chain.rendered.ids) == (whole.rendered.markers[fit - 1] + 1 if fit else 1)
    task.model.max_tokens = len(prompt.ids)
    loss, accuracy = task.loss(1, 0)
    assert (loss.item(), accuracy) == (0.0, 0.0)


def test_of_much_that_is_known_a_part_is_shown_at_a_time(perception):
    task = perception(max_statements=2)
    drawn = [task.drawn(0, np.random.default_rng(k)) for k in range(50)]
    assert {len(one) for one in drawn} == {2}
    assert len({c.true for one in drawn for c in one}) == 4


def test_the_report_counts_what_is_learnt_from(perception):
    report = perception(0.5, rows=REAL * 40).report()
    assert report["rows"] == 120
    assert report["statements"] == {"statements": 120, "caption": 120, "qa": 120, "ocr": 160}
    assert report["false_frac"] == pytest.approx(0.5, abs=0.1)
    assert set(report["corruptions"]) == {"neighbour", "elsewhere", "negation"}
    assert perception(0.0, corruptions=["neighbour"]).report()["corruptions"] == {}


def test_a_picture_that_cannot_be_shown_is_named(perception):
    task = perception(rows=[ROWS[0], {**ROWS[0], "image": {"bytes": b"no picture", "path": None}}])
    with pytest.raises(DataError, match="statements, row 1"):
        for seed in range(9):
            task.loss(2, seed)


def test_the_loss_teaches(perception, tiny_policy):
    """One picture by heart: the gradient points where it should."""
    learner = policy_model(tiny_policy)
    task = perception(0.5, rows=ROWS[:1], model=learner)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss, _ = task.loss(8, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert math.isfinite(losses[-1])
