"""Rewards for trainers: the shapes that TRL passes, and what an unfinished completion is worth."""

import inspect
import io

import pytest
from PIL import Image

from components.errors import DataError, SettingsError
from components.metrics import aggregate
from components.prm import RewardModel
from components.rewards import prm_reward, states_an_answer
from components.score import open_prm
from tests.conftest import picture

QUESTION = "bars : total of red and blue ?"
STEPS = ("red: 3", "blue: 5", "3 + 5 = 8", "answer: 8")
WHOLE, CUT = "\n\n".join(STEPS), "\n\n".join(STEPS[:3])


@pytest.fixture(scope="module")
def prm(tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards") / "prm"
    model = RewardModel.from_policy(tiny_policy, device="cpu").eval()
    model.save(folder, tiny_policy, {"task": "maths", "aggregation": "product"})
    return folder


@pytest.fixture(scope="module")
def reward(prm):
    return prm_reward(prm, device="cpu")


def opened(content):
    return Image.open(io.BytesIO(content))


def chat(text, role="assistant"):
    return [{"role": role, "content": text}]


def as_grpo_calls(function, prompts, completions, **columns):
    """As TRL 1.16 calls it (GRPOTrainer._calculate_rewards): everything by name, and more than most functions read."""
    told = {}
    more = {"trainer_state": object(), "log_extra": lambda *_: None, "log_metric": told.__setitem__, "answer": ["8"] * 9}
    ids = [[1, 2]] * len(completions)
    return function(prompts=prompts, completions=completions, completion_ids=ids, **columns, **more), told


def test_one_finite_float_a_completion_is_the_aggregated_score(reward, prm):
    scorer = open_prm(prm, device="cpu")
    rewards, told = as_grpo_calls(reward, [QUESTION] * 2, [WHOLE, "red: 4\n\nanswer: 4"], image=[opened(picture(0))] * 2)
    expected = [scorer.score(QUESTION, text, images=[picture(0)]).scores for text in (WHOLE, "red: 4\n\nanswer: 4")]
    assert rewards == pytest.approx([aggregate(row, "product") for row in expected], abs=1e-5)
    assert all(type(one) is float for one in rewards)
    assert told == {"prm_unfinished_frac": 0.0}


def test_text_messages_and_pictures_inside_messages_are_worth_the_same(reward):
    shown = opened(picture(0))
    parts = [{"type": "image", "image": shown}, {"type": "text", "text": QUESTION}]
    inside = [{"role": "system", "content": "think"}, {"role": "user", "content": parts}]
    placed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    spoken = [{"role": "assistant", "content": [{"type": "text", "text": WHOLE}]}]
    plain, _ = as_grpo_calls(reward, [QUESTION], [WHOLE], image=[shown])
    for prompt, completion, columns in (
        (chat(QUESTION, "user"), chat(WHOLE), {"image": [shown]}),
        (inside, chat(WHOLE), {}),
        (inside, chat(WHOLE), {"images": [[shown]]}),  # once, not twice
        (placed, spoken, {"images": [[picture(0)]]}),
        (chat("Solve it. " + QUESTION, "user"), spoken, {"question": [QUESTION], "images": [[{"bytes": picture(0)}]]}),
    ):
        rewards, _ = as_grpo_calls(reward, [prompt], [completion], **columns)
        assert rewards == pytest.approx(plain, abs=1e-6)


def test_the_picture_counts(reward):
    one, _ = as_grpo_calls(reward, [QUESTION] * 3, [WHOLE] * 3, image=[opened(picture(0)), opened(picture(1)), None])
    assert len(set(one)) == 3


def test_an_unfinished_completion_is_worth_the_least_however_well_it_begins(reward, prm):
    completions = [WHOLE, CUT, "", " \n\n ", "red: 3\n\n" * 300 + "answer: 8"]
    rewards, told = as_grpo_calls(reward, [QUESTION] * 5, completions, image=[opened(picture(0))] * 5)
    assert rewards[0] > 0
    assert rewards[1:] == [0.0] * 4
    assert told["prm_unfinished_frac"] == pytest.approx(3 / 5)  # the last is finished, but too long to be read
    lenient = prm_reward(prm, device="cpu", is_finished=lambda text: True)
    assert as_grpo_calls(lenient, [QUESTION], [CUT], image=[opened(picture(0))])[0][0] > 0
    lower = prm_reward(prm, device="cpu", unfinished=-1.0)
    assert as_grpo_calls(lower, [QUESTION], [CUT], image=[opened(picture(0))])[0] == [-1.0]


def test_the_least_of_advantages_is_minus_one(tiny_policy, tmp_path):
    model = RewardModel.from_policy(tiny_policy, formulation="advantage", label_tokens=("+", "=", "-"), device="cpu").eval()
    model.save(tmp_path / "prm", tiny_policy, {"task": "maths"})
    assert prm_reward(tmp_path / "prm", device="cpu")([QUESTION], [CUT]) == [-1.0]
    with pytest.raises(SettingsError, match="aggregation='product' means nothing for scores of formulation 'advantage'"):
        prm_reward(tmp_path / "prm", aggregation="product", device="cpu")


def test_step_rewards_are_the_steps_scores_and_a_cut_one_ends_with_the_least(prm):
    reward = prm_reward(prm, rewards="steps", device="cpu")
    scores = open_prm(prm, device="cpu").score(QUESTION, WHOLE, images=[picture(0)]).scores
    whole, cut, empty = reward([QUESTION] * 3, [WHOLE, CUT, ""], images=[[picture(0)]] * 3)
    assert whole == pytest.approx(scores, abs=1e-5)
    assert cut == pytest.approx([*scores[:2], 0.0], abs=1e-5)
    assert empty == [0.0]


def test_a_reward_depends_on_its_own_completion_alone(reward):
    texts = [WHOLE, "red: 4\n\nblue: 5\n\nanswer: 9", "answer: 8"]
    pictures = [picture(i) for i in range(3)]
    together = reward([QUESTION] * 3, texts, images=[[p] for p in pictures])
    alone = [reward([QUESTION], [text], images=[[p]])[0] for text, p in zip(texts, pictures, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_trainer_can_call_and_name_it(reward):
    assert reward.__name__ == "prm_reward"
    assert not inspect.iscoroutinefunction(reward) and not inspect.iscoroutinefunction(reward.__call__)
    kinds = {p.name: p.kind for p in inspect.signature(reward).parameters.values()}
    assert list(kinds) == ["prompts", "completions", "columns"]
    assert kinds["columns"] is inspect.Parameter.VAR_KEYWORD
    assert reward([], []) == []


@pytest.mark.parametrize(
    ("prompts", "completions", "columns", "said"),
    [
        (["a"], ["b", "c"], {}, "1 prompts for 2 completions"),
        (["a"], ["b"], {"images": [[], []]}, "2 images for 1"),
        ([7], ["b"], {}, "neither text nor messages"),
        ([[{"role": "system", "content": "x"}]], ["b"], {}, "user's turn"),
        (["a"], [7], {}, "a completion is int"),
        (["a"], ["b"], {"image": [3]}, "a picture is int"),
    ],
)
def test_what_is_no_prompt_completion_or_picture_is_an_error(reward, prompts, completions, columns, said):
    with pytest.raises(DataError, match=said):
        reward(prompts, completions, **columns)


def test_unknown_choices_are_refused(prm):
    with pytest.raises(SettingsError, match="rewards='tokens'"):
        prm_reward(prm, rewards="tokens")
    with pytest.raises(SettingsError, match="aggregation='median'"):
        prm_reward(prm, aggregation="median")


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("answer: 8", True),
        (r"so \boxed{3}", True),
        ("<answer>blue</answer>", True),
        ("The answer is (B).", True),
        ("red: 3\n\nblue: 5", False),
        ("3 + 5 = 8", False),
        ("", False),
        ("<think> answer: 8", False),
    ],
)
def test_what_states_an_answer(text, states):
    assert states_an_answer(text) is states
