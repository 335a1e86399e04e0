"""A trained reward model as the reward function of a reinforcement-learning trainer, with the signature that TRL calls.

Owns how prompts and completions become problems and solutions, and what an unfinished completion is worth. Imports no
trainer; scores come from `score`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError, SettingsError
from components.extraction import extract_answer
from components.metrics import AGGREGATIONS, aggregate
from components.score import Asked, Scored, Scorer, open_prm

REWARDS = ("aggregated", "steps")


class PrmReward:
    """Rewards of completions, by a reward model; what `prm_reward` returns."""

    __name__ = "prm_reward"  # under which trainers log it

    def __init__(
        self,
        scorer: Scorer,
        *,
        rewards: str,
        aggregation: str | None,
        unfinished: float | None,
        is_finished: Callable[[str], bool] | None,
    ) -> None:
        if rewards not in REWARDS:
            raise SettingsError("prm_reward", f"rewards={rewards!r} is unknown", f"known: {', '.join(REWARDS)}")
        if aggregation is not None and aggregation not in AGGREGATIONS:
            raise SettingsError("prm_reward", f"aggregation={aggregation!r} is unknown", f"known: {', '.join(AGGREGATIONS)}")
        formulation = scorer.model.formulation
        if aggregation is not None and aggregation not in formulation.aggregations:
            what = f"aggregation={aggregation!r} means nothing for scores of formulation {formulation.name!r}"
            raise SettingsError("prm_reward", what, f"take one of {', '.join(formulation.aggregations)}")
        self.scorer, self.rewards = scorer, rewards
        self.aggregation = aggregation or scorer.aggregation
        self.unfinished = min(scorer.contract["weights"]) if unfinished is None else unfinished
        self.is_finished = is_finished or states_an_answer

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        """One reward a completion; with `rewards="steps"` one list of rewards a completion, one a step.

        Args:
            prompts: texts, or lists of messages whose last user turn is the question; its pictures are used if the data
                set has no column of them. A column `question` takes the place of what the prompt says.
            completions: texts, or lists of messages, of which the assistant's are read.
            columns: of the data set, one entry a completion: `image` or `images` (pictures or encoded bytes), `question`.
                Everything else that a trainer passes is ignored, but for `log_metric`, which is told the share unfinished.
        Raises:
            DataError: columns, prompts and completions are not of one length, or something is neither text nor messages.
        """
        asked = self.asked(prompts, completions, columns)
        texts = [text_of(completion) for completion in completions]
        finished = [self.is_finished(text) for text in texts]
        scored = self.scorer.score_all(asked)
        if (tell := columns.get("log_metric")) is not None and finished:
            tell("prm_unfinished_frac", 1 - sum(finished) / len(finished))
        if self.rewards == "steps":
            return [self._of_steps(*pair) for pair in zip(scored, finished, strict=True)]
        return [self._of_whole(*pair) for pair in zip(scored, finished, strict=True)]

    def asked(self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]) -> list[Asked]:
        """The solutions to be scored, in the order of the completions."""
        for name, column in (("prompts", prompts), *((n, columns.get(n)) for n in ("question", "image", "images"))):
            if column is not None and len(column) != len(completions):
                what = f"{len(column)} {name} for {len(completions)} completions"
                raise DataError("rewards", what, "a trainer passes one of each")
        questions = columns.get("question") or [None] * len(completions)
        out = []
        for i, (prompt, completion, question) in enumerate(zip(prompts, completions, questions, strict=True)):
            asks, shown = _question(prompt)
            given = [picture for name in ("image", "images") for picture in _listed(columns.get(name), i)]
            images = tuple(_encoded(picture) for picture in given or shown)
            out.append(Asked(asks if question is None else question, self.scorer.steps(text_of(completion)), images))
        return out

    def _of_whole(self, scored: Scored, is_finished: bool) -> float:
        if scored.fate != "scored" or not is_finished:
            return self.unfinished
        return aggregate(scored.scores, self.aggregation)

    def _of_steps(self, scored: Scored, is_finished: bool) -> list[float]:
        scores = list(scored.scores)
        if is_finished and scored.fate == "scored":
            return scores
        return [*scores[:-1], self.unfinished]  # the last step is where it broke off


def prm_reward(
    checkpoint: str | Path,
    *,
    rewards: str = "aggregated",
    aggregation: str | None = None,
    unfinished: float | None = None,
    is_finished: Callable[[str], bool] | None = None,
    device: str | None = None,
) -> PrmReward:
    """The reward function of a trained reward model, for `GRPOTrainer(reward_funcs=...)` and whoever calls alike.

    Args:
        checkpoint: folder written by train.
        rewards: `aggregated`: one number a completion, all that GRPO takes. `steps`: the steps' scores, for trainers that
            give credit step by step.
        aggregation: how the steps' scores become one; None: as the checkpoint's contract says.
        unfinished: reward of a completion that breaks off before it states an answer, that has no step or is too long to be
            read; None: the least that a score can be. A good beginning is worth nothing by itself: otherwise stopping
            before the first error would pay. Of `steps`, the reward of its last step.
        is_finished: text of a completion -> whether it states an answer; None: `states_an_answer`.
        device: None: what STEPFORGE_DEVICE says, else a GPU if there is one.
    Raises:
        EngineError: the checkpoint cannot be loaded or breaks its contract.
        SettingsError: an unknown choice.
    Source: TRL's `GRPOTrainer._calculate_rewards`: called with prompts=, completions=, completion_ids= and the data set's
        columns; one float a completion.
    """
    scorer = open_prm(checkpoint, device=device)
    return PrmReward(scorer, rewards=rewards, aggregation=aggregation, unfinished=unfinished, is_finished=is_finished)


def states_an_answer(text: str) -> bool:
    """Whether a text states an answer by any of the rules of grading."""
    return extract_answer(text) is not None or extract_answer(text, is_choice=True) is not None


def text_of(completion: Any) -> str:
    """The text of a completion: its own, or that of the assistant's messages.

    Raises:
        DataError: it is neither text nor messages.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and all(isinstance(message, Mapping) for message in completion):
        said = [message for message in completion if message.get("role", "assistant") == "assistant"]
        return "".join(_parts(message)[0] for message in said)
    raise DataError("rewards", f"a completion is {type(completion).__name__}", "give text, or a list of messages")


def _question(prompt: Any) -> tuple[str, list[Any]]:
    """The question of a prompt, and the pictures that its messages hold."""
    if isinstance(prompt, str):
        return prompt, []
    if isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt):
        asked = [message for message in prompt if message.get("role") == "user"]
        if asked:
            return _parts(asked[-1])[0], [picture for message in asked for picture in _parts(message)[1]]
    raise DataError("rewards", "a prompt is neither text nor messages with a user's turn", "or give a column `question`")


def _parts(message: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Text and pictures of a message."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content, []
    texts = [part["text"] for part in content if part.get("type") == "text"]
    return "".join(texts), [
        part["image"] for part in content if part.get("type") == "image" and part.get("image") is not None
    ]


def _listed(column: Sequence[Any] | None, i: int) -> list[Any]:
    value = column[i] if column is not None else None
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _encoded(picture: Any) -> bytes:
    """The bytes of a picture: encoded ones, those of a data set's row, or a decoded one as PNG."""
    if isinstance(picture, Mapping):
        picture = picture.get("bytes")
    if isinstance(picture, bytes):
        return picture
    if hasattr(picture, "save"):
        out = io.BytesIO()
        picture.convert("RGB").save(out, format="PNG")
        return out.getvalue()
    raise DataError("rewards", f"a picture is {type(picture).__name__}", "give pictures, or their encoded bytes")
