"""The reward model: its scores against the full model, its trees against its rows, its checkpoint against tampering."""

import json
import math
import shutil

import pytest
import torch

from components import prm
from components.contract import checkpoint_digest, read_contract
from components.errors import DataError, EngineError
from components.packing import tree
from components.prm import Reading, RewardModel
from tests.conftest import WRITERS, picture

MARKER, LABELS = "<prm>", ("+", "-")
QUESTION = "bars : total of red and blue ?"
STEPS = ("red: 3", "blue: 5", "3 + 5 = 8", "answer: 8")


def started(policy, *, sees=True):
    return RewardModel.from_policy(policy, marker=MARKER, label_tokens=LABELS, device="cpu", sees=sees).eval()


@pytest.fixture(scope="module")
def model(tiny_policy):
    return started(tiny_policy)


@pytest.fixture(scope="module")
def saved(model, tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prm") / "prm"
    model.save(folder, tiny_policy, {"seed": 7})
    return folder


def readings(*, pictures=True):
    shown = [(picture(i),) if pictures else () for i in range(4)]
    return [
        Reading(QUESTION, shown[0], STEPS),
        Reading("cards : most minus least ?", shown[1], ("red: 3",)),
        Reading(QUESTION, shown[2], ("red: 3", "blue: 5\n\n3 + 5 = 8")),
        Reading("labels : red plus blue times green ?", shown[3], STEPS[:2]),
    ]


def test_reading_at_the_markers_equals_the_rows_of_the_whole_vocabularys_logits(model):
    encoded = [model.renderer.prompt(r.question, r.images) for r in readings()]
    rendered = [model.renderer.solution(r.steps) for r in readings()]
    rows = [model.renderer.text_ids(word)[0] for word in LABELS]
    expected = []
    with torch.no_grad():
        found = model.logits([tree(p, [r]) for p, r in zip(encoded, rendered, strict=True)])
        for prompt, solution in zip(encoded, rendered, strict=True):
            ids = torch.tensor([prompt.ids + solution.ids])
            logits_TV = model.model(input_ids=ids, **prompt.tensors).logits[0]
            expected.append(logits_TV[[len(prompt.ids) + m for m in solution.markers]][:, rows])
    assert found.shape == (4 + 1 + 2 + 2, 2)
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


def test_the_marker_starts_as_a_blank_line_sounds(model):
    embeddings = model.model.get_input_embeddings().weight
    blank = model.renderer.text_ids("\n\n")
    assert torch.equal(embeddings[model.renderer.marker_id], embeddings[blank].mean(0))


def test_a_score_is_a_probability_a_step(model):
    scores = model.score(readings())
    assert [len(row) for row in scores] == [4, 1, 2, 2]
    assert all(0 < score < 1 for row in scores for score in row)
    logits = model.logits([tree(model.renderer.prompt(QUESTION, (picture(0),)), [model.renderer.solution(STEPS)])])
    expected = 1 / (1 + (logits[:, 1] - logits[:, 0]).exp())
    assert scores[0] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_score_sees_its_own_step_and_those_before_but_none_after(model):
    whole, cut, changed = model.score(
        [Reading(QUESTION, (picture(0),), steps) for steps in (STEPS, STEPS[:2], ("red: 4", *STEPS[1:]))]
    )
    assert whole[:2] == pytest.approx(cut, abs=1e-5)
    assert all(abs(a - b) > 1e-4 for a, b in zip(whole, changed, strict=True))


def test_scores_do_not_depend_on_the_company(model, monkeypatch):
    together = model.score(readings() * 3)
    monkeypatch.setattr(RewardModel.batches, "__defaults__", (1,))
    monkeypatch.setattr(RewardModel.logits, "__defaults__", (1,))
    alone = model.score(readings())
    for i, row in enumerate(together):
        assert row == pytest.approx(alone[i % 4], abs=1e-5)


def test_scores_come_in_the_order_of_the_solutions(model):
    forwards, backwards = model.score(readings()), model.score(readings()[::-1])
    for a, b in zip(forwards, backwards[::-1], strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_a_solution_without_steps_has_no_scores(model):
    assert model.score([Reading(QUESTION, (picture(0),), ())]) == [[]]
    none, some = model.score([Reading(QUESTION, (picture(0),), ()), readings()[0]])
    assert none == []
    assert some == pytest.approx(model.score(readings()[:1])[0], abs=1e-5)
    assert model.score([]) == []


def test_progress_counts_every_solution(model, monkeypatch):
    monkeypatch.setattr(prm, "WINDOW", 2)
    counts = []
    model.score([*readings(), Reading(QUESTION, (), ())], counts.append)
    assert sum(counts) == 5
    assert len(counts) > 1


def test_a_solution_that_does_not_fit_is_not_read_and_cuts_no_other(tiny_policy):
    whole = started(tiny_policy)
    longest = len(whole.renderer.prompt(QUESTION, (picture(0),)).ids) + len(whole.renderer.solution(STEPS).ids)
    model = RewardModel.from_policy(tiny_policy, device="cpu", max_tokens=longest).eval()
    given = [Reading(QUESTION, (picture(0),), STEPS), Reading(QUESTION, (picture(0),), (*STEPS, "red: 3"))]
    read, unread = model.score(given)
    assert read == pytest.approx(whole.score(given)[0], abs=1e-5)
    assert unread == []


def test_pictures_change_the_scores_of_a_model_that_sees_and_of_no_other(model, tiny_policy):
    blind = started(tiny_policy, sees=False)
    shown = [Reading(QUESTION, (picture(shade),), STEPS) for shade in (1, 2)]
    seen, other = model.score(shown)
    assert max(abs(a - b) for a, b in zip(seen, other, strict=True)) > 1e-4
    unseen, same = (blind.score([reading]) for reading in shown)  # each alone: rows of one batch are rounded apart
    assert unseen == same


@pytest.mark.parametrize("architecture", WRITERS)
def test_every_architecture_is_loaded_scored_saved_and_loaded_again_with_equal_scores(checkpoint, tmp_path, architecture):
    policy = checkpoint(architecture)
    model = started(policy)
    given = readings(pictures=architecture != "qwen2")
    scores = model.score(given)
    model.save(tmp_path / "prm", policy, {})
    again = RewardModel.load(tmp_path / "prm", device="cpu").score(given)
    assert [len(row) for row in again] == [4, 1, 2, 2]
    for a, b in zip(scores, again, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize("architecture", WRITERS)
def test_no_architecture_lets_a_solution_see_its_company(checkpoint, monkeypatch, architecture):
    model = started(checkpoint(architecture))
    given = readings(pictures=architecture != "qwen2") + readings(pictures=False)[:1]  # with and without, side by side
    together = model.score(given)
    monkeypatch.setattr(RewardModel.batches, "__defaults__", (1,))
    monkeypatch.setattr(RewardModel.logits, "__defaults__", (1,))
    for a, b in zip(together, model.score(given), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_every_architecture_sees_its_own_picture(checkpoint, architecture):
    model = started(checkpoint(architecture))
    first, second = (model.score([Reading(QUESTION, (picture(shade),), STEPS)])[0] for shade in (1, 2))
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-4


@pytest.mark.parametrize("architecture", ["llava", "qwen2_5_vl"])
def test_the_markers_of_every_architecture_are_read_as_by_the_whole_model(checkpoint, architecture):
    """The processor's own batch of the whole text is the oracle: ids, positions and pictures as transformers makes them."""
    model = started(checkpoint(architecture))
    prompt = model.renderer.prompt(QUESTION, (picture(0),))
    solution = model.renderer.solution(STEPS)
    tokenizer = model.renderer.tokenizer
    from io import BytesIO

    from PIL import Image

    ids = prompt.ids + solution.ids
    image_id = model.model.config.image_token_id
    squeezed = [i for at, i in enumerate(ids) if i != image_id or ids[at - 1] != image_id]  # the places before they expand
    pictured = Image.open(BytesIO(picture(0))).convert("RGB")
    batch = model.renderer.processor(
        text=[tokenizer.decode(squeezed)], images=[pictured], return_tensors="pt", add_special_tokens=False
    )
    assert batch["input_ids"][0].tolist() == ids
    with torch.no_grad():
        hidden = model.model.model(**batch, use_cache=False).last_hidden_state[0]
        found = model.logits([tree(prompt, [solution])])
    expected = hidden[[len(prompt.ids) + m for m in solution.markers]] @ model.head.T
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_blind_model_stays_blind_on_disk(tiny_policy, tmp_path):
    started(tiny_policy, sees=False).save(tmp_path / "blind", tiny_policy, {})
    assert read_contract(tmp_path / "blind")["view"] == "blind"
    again = RewardModel.load(tmp_path / "blind", device="cpu")
    first, second = (again.score([Reading(QUESTION, (picture(shade),), STEPS)]) for shade in (1, 2))
    assert first == second


def test_a_trained_head_is_kept(tiny_policy, tmp_path):
    model = started(tiny_policy)
    with torch.no_grad():
        model.head.add_(torch.randn(model.head.shape, generator=torch.Generator().manual_seed(0)))
    scores = model.score(readings())
    first = model.save(tmp_path / "a", tiny_policy, {})
    again = RewardModel.load(tmp_path / "a", device="cpu")
    assert torch.equal(again.head, model.head)
    assert again.score(readings()) == scores
    assert model.save(tmp_path / "b", tiny_policy, {}) == first  # equal weights, equal digest, wherever
    with torch.no_grad():
        model.head.add_(1e-3)
    assert model.save(tmp_path / "c", tiny_policy, {}) != first


def test_the_contract_says_how_to_read_the_model(saved, model):
    contract = read_contract(saved)
    assert contract["marker"] == MARKER
    assert contract["view"] == "picture"
    assert contract["renderer_digest"] == model.renderer.digest
    assert contract["digest"] == checkpoint_digest(saved)
    assert contract["seed"] == 7


def tampered(saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    return copy


def refusal(folder):
    with pytest.raises(EngineError) as caught:
        RewardModel.load(folder, device="cpu")
    return str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
def test_a_tampered_weight_is_refused_with_both_digests(saved, tmp_path, name):
    folder = tampered(saved, tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert read_contract(saved)["digest"] in message
    assert checkpoint_digest(folder) in message


def test_a_changed_vocabulary_is_refused_with_both_digests(saved, tmp_path):
    folder = tampered(saved, tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["▁red:"], words["▁blue:"] = words["▁blue:"], words["▁red:"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    message = refusal(folder)
    assert read_contract(saved)["renderer_digest"] in message
    assert "the renderer is" in message


def test_a_changed_template_is_refused(saved, tmp_path):
    folder = tampered(saved, tmp_path)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ c.text }}", "{{ c.text }} "))
    assert read_contract(saved)["renderer_digest"] in refusal(folder)


def test_a_missing_head_and_a_missing_contract_are_refused(saved, tmp_path):
    folder = tampered(saved, tmp_path)
    (folder / "head.safetensors").unlink()
    assert read_contract(saved)["digest"] in refusal(folder)
    (folder / "prm.json").unlink()
    assert "no prm.json" in refusal(folder)


def test_label_words_that_the_tokenizer_does_not_know_apart_are_refused(tiny_policy):
    with pytest.raises(EngineError, match="zebra"):
        RewardModel.from_policy(tiny_policy, marker=MARKER, label_tokens=("zebra", "lion"), device="cpu", sees=True)


def test_an_empty_label_word_is_refused(tiny_policy):
    with pytest.raises(EngineError, match="a label token is empty: '', '-'"):
        RewardModel.from_policy(tiny_policy, marker=MARKER, label_tokens=("", "-"), device="cpu")


def test_more_tokens_than_the_model_has_positions_for_are_refused(tiny_policy):
    with pytest.raises(EngineError, match="max_tokens is 1,000,000, but the model has positions for"):
        RewardModel.from_policy(tiny_policy, marker=MARKER, device="cpu", max_tokens=1_000_000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("threshold", 1.5),
        ("threshold", math.nan),
        ("aggregation", "best"),
        ("max_tokens", 0),
        ("max_tokens", 10**9),
        ("max_steps", -3),
        ("max_steps", "12"),
        ("weights", [0.0, 1.0]),
        ("weights", [1.0, 0.0, -1.0]),
        ("weights", []),
        ("label_tokens", [5, 6]),
        ("label_token_ids", [1]),
        ("formulation", "advantage"),
        ("template", "both"),
        ("view", "shuffled"),
        ("marker", 7),
        ("marker_id", 3),
        ("task", 7),
    ],
)
def test_a_contract_that_says_what_none_can_is_refused_by_its_field_even_with_a_fitting_digest(
    saved, tmp_path, field, value
):
    folder = tampered(saved, tmp_path)
    contract = json.loads((folder / "prm.json").read_text()) | {field: value}
    (folder / "prm.json").write_text(json.dumps(contract))
    if not isinstance(value, float) or math.isfinite(value):  # the others have no digest
        contract["digest"] = checkpoint_digest(folder)
    (folder / "prm.json").write_text(json.dumps(contract))
    message = refusal(folder)
    assert {"weights": "weights", "marker_id": "marker", "formulation": "weights"}.get(field, field) in message
    assert "the digest of its files" not in message


def test_a_language_model_does_not_pass_over_pictures_in_silence(checkpoint):
    model = started(checkpoint("qwen2"))
    with pytest.raises(DataError, match="this model takes no pictures"):
        model.score([Reading("bars : red ?", (picture(0),), ("red: 3",))])


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_file_that_is_no_head_is_refused_even_if_its_digest_fits(saved, tmp_path, content):
    from safetensors.torch import save_file

    folder = tampered(saved, tmp_path)
    if content is None:
        save_file({"other": torch.zeros(2, 32)}, folder / "head.safetensors")
    else:
        (folder / "head.safetensors").write_bytes(content)
    contract = json.loads((folder / "prm.json").read_text())
    (folder / "prm.json").write_text(json.dumps(contract | {"digest": checkpoint_digest(folder)}))
    assert "is no head" in refusal(folder)
