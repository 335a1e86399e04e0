"""Trees of tokens against the rows that they stand for: layout by hand, states and gradients to the digit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.checkpoints import load_model, load_processor
from components.formulations import FORMULATIONS, Targets
from components.packing import batches, tree
from components.prm import RewardModel
from components.render import Encoded, Rendered, Renderer
from tests.conftest import picture

QUESTION = "bars : total of red and blue ?"
SOLUTIONS = (
    ("red: 3", "blue: 5", "3 + 5 = 8", "answer: 8"),
    ("red: 3", "blue: 5", "3 + 5 = 9", "answer: 9"),
    ("red: 3", "blue: 4"),
    ("red: 3", "blue: 5"),
    ("blue: 5", "red: 3"),
    ("red: 3", "blue: 5", "3 + 5 = 8", "answer: 8"),
)

solutions = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=8).map(lambda ids: Rendered(ids, sorted({0, len(ids) - 1}))),
    min_size=1,
    max_size=8,
)


def test_a_tree_by_hand():
    joined = tree(Encoded([7, 8], {}), [Rendered([1, 2, 3], [2]), Rendered([1, 4], [0, 1]), Rendered([1, 2], [1])])
    assert joined.ids == [7, 8, 1, 2, 3, 4]
    assert joined.depths == [0, 1, 2, 3, 4, 3]
    assert joined.ends == [6, 6, 6, 5, 5, 6]
    assert joined.places == [[4], [2, 5], [3]]


@given(solutions)
def test_every_path_of_a_tree_is_its_solution_and_nothing_is_there_twice(rendered):
    joined = tree(Encoded([9], {}), rendered)
    for solution, places in zip(rendered, joined.places, strict=True):
        for marker, place in zip(solution.markers, places, strict=True):
            path = [j for j in range(place + 1) if place < joined.ends[j]]
            assert [joined.ids[j] for j in path] == [9, *solution.ids[: marker + 1]]
            assert [joined.depths[j] for j in path] == list(range(len(path)))
    assert len(joined) == 1 + len({tuple(s.ids[: i + 1]) for s in rendered for i in range(len(s.ids))})


class _Plain:
    """As much of a model as the layout asks for."""

    dtype = torch.float32
    model = None


@given(st.lists(solutions, min_size=1, max_size=6), st.integers(1, 60), st.booleans())
def test_every_place_of_every_tree_is_read_once_in_batches_of_bounded_size(groups, max_tokens, share_rows):
    trees = [tree(Encoded([9], {}), rendered) for rendered in groups]
    seen = []
    for batch in batches(trees, _Plain, max_tokens=max_tokens, device="cpu", share_rows=share_rows):
        assert batch.num_tokens <= max_tokens or len(batch.ids_BT) == 1
        seen += batch.trees
        found = batch.ids_BT[batch.reads[:, 0], batch.reads[:, 1]].tolist()
        assert found == [s.ids[m] for i in batch.trees for s in groups[i] for m in s.markers]
        width = batch.ids_BT.shape[1]
        mask, causal = batch.mask(torch.float32), torch.ones(width, width).tril().bool()
        open_to = causal.repeat(len(batch.ids_BT), 1, 1) if mask is None else mask[:, 0] == 0
        for b, row in enumerate(open_to):
            numbers = row.sum(1)
            assert (numbers[: len(batch.ids_BT[b])] >= 1).all()  # padding sees itself: no row of a softmax is empty
        depths = open_to[batch.reads[:, 0], batch.reads[:, 1]].sum(-1).tolist()
        assert depths == [2 + m for i in batch.trees for s in groups[i] for m in s.markers]
    assert sorted(seen) == list(range(len(trees)))


@pytest.fixture(scope="module")
def model(tiny_policy):
    return RewardModel.from_policy(tiny_policy, device="cpu").eval()


def rows_of(model, num_problems=4):
    prompts = [model.renderer.prompt(QUESTION, (picture(i),)) for i in range(num_problems)]
    return prompts, [model.renderer.solution(steps) for steps in SOLUTIONS]


def test_states_of_trees_packed_rows_and_padded_rows_are_those_of_plain_rows(model):
    prompts, rendered = rows_of(model)
    trees = [tree(p, rendered) for p in prompts]
    rows = [tree(p, [r]) for p in prompts for r in rendered]
    with torch.no_grad():
        expected = torch.cat(
            [model.hidden([row.ids], [row.prompt])[0, row.places[0]].float() @ model.head.T for row in rows]
        )
        assert torch.allclose(model.logits(trees), expected, atol=2e-5)
        assert torch.allclose(model.logits(rows), expected, atol=2e-5)
        assert torch.allclose(model.logits(rows, max_tokens=1), expected, atol=2e-5)
    assert sum(map(len, rows)) > 1.8 * sum(map(len, trees))


def test_loss_and_gradients_of_trees_are_those_of_rows(model):
    prompts, rendered = rows_of(model)
    trees = [tree(p, rendered) for p in prompts]
    rows = [tree(p, [r]) for p in prompts for r in rendered]
    labels = torch.rand(sum(len(r.markers) for r in rendered) * len(prompts), generator=torch.Generator().manual_seed(0))
    found = []
    for layout, max_tokens in ((rows, 1), (rows, 4096), (trees, 4096), (trees, 100)):
        model.zero_grad()
        loss = FORMULATIONS["soft"].loss(model.logits(layout, max_tokens), Targets.of(labels))
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.item(), gradients))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert (gradients - found[0][1]).norm() <= 1e-5 * found[0][1].norm()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["red: 3", "blue: 5", "3 + 5 = 8", "answer: 8"]), min_size=1, max_size=5), min_size=1)
)
def test_any_set_of_solutions_is_read_as_one_by_one(model, given):
    prompt = model.renderer.prompt(QUESTION, (picture(1),))
    rendered = [model.renderer.solution(steps) for steps in given]
    with torch.no_grad():
        joined = model.logits(model.trees(prompt, rendered))
        apart = torch.cat([model.logits([tree(prompt, [r])]) for r in rendered])
    assert torch.allclose(joined, apart, atol=2e-5)


def test_a_tree_is_cut_at_solutions_where_it_would_grow_too_large(model):
    prompt = model.renderer.prompt(QUESTION, (picture(1),))
    rendered = [model.renderer.solution(steps) for steps in SOLUTIONS]
    room = len(prompt.ids) + 25
    trees = model.trees(prompt, rendered, max_tokens=room)
    assert len(trees) > 1
    assert all(len(t) <= room for t in trees)
    assert [len(places) for t in trees for places in t.places] == [len(steps) for steps in SOLUTIONS]


def test_pictures_go_where_their_own_tree_is(tiny_policy):
    """Problems of one text with different pictures, packed in one row, against each alone."""
    model = load_model(tiny_policy, "cpu")
    renderer = Renderer(load_processor(tiny_policy))
    trees = [tree(renderer.prompt(QUESTION, [picture(i)] * (i % 3)), [Rendered([12, 13], [1])]) for i in range(6)]
    (batch,) = batches(trees, model, max_tokens=4096, device="cpu")
    assert len(batch.ids_BT) == 1
    with torch.no_grad():
        packed = model.model(
            input_ids=batch.ids_BT, attention_mask=batch.mask(model.dtype), position_ids=batch.positions, **batch.tensors
        ).last_hidden_state[0, batch.reads[:, 1]]
        for state, i in zip(packed, batch.trees, strict=True):
            alone = model.model(input_ids=torch.tensor([trees[i].ids]), **trees[i].prompt.tensors).last_hidden_state[0, -1]
            assert torch.allclose(state, alone, atol=2e-5)
