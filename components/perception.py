"""The perception task: is this statement about the picture true?

Owns how true statements are corrupted and what is learnt from them. Monte-Carlo labels alone did not make a
small reward model look at the picture; checking statements against it did (docs/log.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.prm import RewardModel
from components.records import row_images
from components.render import Encoded

_VALUE = re.compile(r"(.*?)([^\s<>]+)((?:\s*</\w+>)*)", re.DOTALL)  # the last word, before closing tags


@dataclass(frozen=True)
class Checked:
    """A statement as shown, and the truth about it."""

    shown: str
    true: str

    @property
    def is_true(self) -> bool:
        """Whether what is shown is what is so."""
        return self.shown == self.true


class Perception:
    """Pictures with true statements, drawn and corrupted anew at every step.

    Args:
        rows: `question`, `image` or `images`, `statements`: steps as a solution has them, each with its value, the word
            that can be wrong, at its end or just before closing tags.
    """

    def __init__(self, rows: Sequence[dict], model: RewardModel, *, corrupted_frac: float) -> None:
        self.model = model
        self.corrupted_frac = corrupted_frac
        self.encoded = [model.renderer.prompt(row["question"], row_images(row)) for row in rows]
        self.statements = [list(row["statements"]) for row in rows]
        self._ids: dict[str, list[int]] = {}
        self.values = sorted({_parts(s)[1] for statements in self.statements for s in statements})

    def loss(self, num: int, seed: int) -> tuple[Tensor, float]:
        """Loss in nats and the accuracy of the verdicts, on `num` pictures drawn with `seed`.

        At each marker, whether the statement is true; just before each value, what the true one is: read before you
        judge.
        """
        rng = np.random.default_rng(seed)
        prompts: list[Encoded] = []
        ids: list[list[int]] = []
        markers: list[tuple[int, int]] = []
        values: list[tuple[int, int]] = []
        truths: list[float] = []
        true_ids: list[int] = []
        for b, i in enumerate(rng.integers(0, len(self.encoded), num)):
            prompt = self.encoded[int(i)]
            row = list(prompt.ids)
            for j in rng.permutation(len(self.statements[int(i)])):
                checked = self.corrupt(self.statements[int(i)][int(j)], rng)
                num_after = len(self._text_ids(_parts(checked.true)[2]))
                row += self._text_ids(checked.shown)
                values.append((b, len(row) - 2 - num_after))  # the token that predicts the value
                true_ids.append(self._text_ids(checked.true)[-1 - num_after])
                markers.append((b, len(row)))
                row.append(self.model.renderer.marker_id)  # type: ignore[arg-type]
                truths.append(float(checked.is_true))
            prompts.append(prompt)
            ids.append(row)
        hidden = self.model.hidden(ids, prompts)
        at, before = torch.tensor(markers), torch.tensor(values)
        logits = hidden[at[:, 0], at[:, 1]].float() @ self.model.head.T[:, [0, -1]]
        truth = torch.tensor(truths, device=logits.device)
        verdict_loss = torch.nn.functional.cross_entropy(logits, torch.stack([truth, 1 - truth], -1))
        words = self.model.model.get_output_embeddings()(hidden[before[:, 0], before[:, 1]])
        reading_loss = torch.nn.functional.cross_entropy(words.float(), torch.tensor(true_ids, device=words.device))
        accuracy = ((logits[:, 0] > logits[:, 1]) == (truth > 0.5)).float().mean().item()
        return verdict_loss + reading_loss, accuracy

    def _text_ids(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.model.renderer.text_ids(text) if text else []
        return self._ids[text]

    def corrupt(self, statement: str, rng: np.random.Generator) -> Checked:
        """The statement as it is, or with its value replaced: half of the time by a neighbouring number, else by any."""
        if rng.random() >= self.corrupted_frac:
            return Checked(statement, statement)
        head, last, tail = _parts(statement)
        others = [value for value in self.values if value != last]
        near = [value for value in others if _is_number(last) and _is_number(value) and abs(int(value) - int(last)) == 1]
        pool = near if near and rng.random() < 0.5 else others
        return Checked(f"{head}{pool[int(rng.integers(len(pool)))]}{tail}" if pool else statement, statement)


def _parts(statement: str) -> tuple[str, str, str]:
    """(what stands before the value, the value, closing tags); a statement without any word is all value."""
    found = _VALUE.fullmatch(statement)
    return (found[1], found[2], found[3]) if found else ("", statement, "")


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()
