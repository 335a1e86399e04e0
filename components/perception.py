"""The perception task: is this statement about the picture true?

Owns what a reward model learns from pictures and statements; how statements are read and made false is `statements`'.
Monte-Carlo labels alone did not make a small reward model look at the picture; this did (docs/log.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.errors import DataError
from components.packing import Batch, batches
from components.prm import RewardModel
from components.render import Encoded, Rendered
from components.statements import USUAL, Checked, Corruptions, Picture, census

_ALL_AT_ONCE = 2**40  # tokens: every process does one forward pass a step, as ZeRO-3 needs
_WASTE = 1.5  # where padding costs more than this, pictures share rows; short rows of like length are faster apart
_NUM_MEASURED = 8  # rows that are encoded to guess how long rows are
_NUM_COUNTED = 4_096  # statements drawn for the report
_NUM_CACHED = 65_536  # texts


@dataclass(frozen=True)
class _Chain:
    """Statements of one picture as a solution, and what should be read in it."""

    rendered: Rendered
    """Read at the verdicts, then at the tokens before values."""
    truths: list[float]
    """A verdict each."""
    words: list[int]
    """The true token that follows, a reading each."""
    weights: list[float]
    """Of the readings; they add up to 1 a statement."""


class Perception:
    """Pictures with true statements, drawn and corrupted anew at every step.

    Args:
        corrupted_frac: share of the statements that are made false.
        corruptions: by which of statements.CORRUPTIONS, and by `negation`.
        max_statements: of a picture at a time.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        model: RewardModel,
        *,
        corrupted_frac: float,
        corruptions: Sequence[str] = USUAL,
        max_statements: int = 16,
    ) -> None:
        self.pictures = pictures
        self.model = model
        self.corrupted_frac = corrupted_frac
        self.max_statements = max_statements
        self.corruptions = Corruptions(pictures, corruptions)
        self._longest: int | None = None
        self._tokens: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
        probe = model.renderer.solution(["3"])
        self._num_after = len(probe.ids) - len(model.renderer.text_ids("3"))  # tokens of the template behind a step

    def loss(self, num: int, seed: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor, float]:
        """Loss in nats a statement and the accuracy of the verdicts, on `num` pictures drawn with `seed`.

        After each statement, whether it is true; just before its value, what the true one is: read before you judge. Of
        a true value all tokens are asked for, of a wrong one those up to the first that differs from the true one:
        what follows it was never written. Statements behind `max_tokens` are not learnt, and count as not seen.

        Args:
            share: (i, n): every n-th picture from the i-th on. Loss and accuracy of the n shares add up to the whole's.
        """
        num_known = len(self.pictures)
        drawn = np.random.default_rng(seed).choice(num_known, num, replace=num > num_known).tolist()
        num_all = sum(min(len(self.pictures[i].statements), self.max_statements) for i in drawn)
        places = list(range(share[0], num, share[1]))
        scale = 1.0 / num_all if places else 0.0  # without a picture: compute with the others, and learn nothing
        groups: dict[int, list[list[Checked]]] = {}
        for place in places or [0]:
            groups.setdefault(drawn[place], []).append(self.drawn(drawn[place], np.random.default_rng([seed, place])))
        batch, chains = self._batch(groups)
        return self._loss(batch, chains, scale)

    def drawn(self, i: int, rng: np.random.Generator) -> list[Checked]:
        """Statements about picture i in random order, each true or false."""
        order = rng.permutation(len(self.pictures[i].statements))[: self.max_statements]
        return [self.corruptions.draw(i, int(j), rng, corrupted_frac=self.corrupted_frac) for j in order]

    def num_parts(self, num: int, size: int, max_tokens: int) -> int:
        """Into how many shares each of `size` processes should divide its part of `num` pictures, to compute at most
        about `max_tokens` tokens at once: by the longest of some rows, and never less than a picture.
        """
        if self._longest is None:
            self._longest = self._measured()
        mine = math.ceil(num / size)
        return min(mine, math.ceil(mine * self._longest / max_tokens))

    def _measured(self) -> int:
        """Tokens of the longest of some rows."""
        longest = 0
        for i in np.linspace(0, len(self.pictures) - 1, _NUM_MEASURED).astype(int).tolist():
            statements = sorted(len(self._tokens_of(one.text)[0]) for one in self.pictures[i].statements)
            template = self._num_after * self.max_statements
            length = len(self._prompt(i).ids) + sum(statements[-self.max_statements :]) + template
            longest = max(longest, min(length, self.model.max_tokens))
        return longest

    def report(self) -> dict[str, Any]:
        """What is learnt from: rows, statements of each kind, and how they are made false as they are drawn."""
        rng = np.random.default_rng(0)
        made: Counter[str] = Counter()
        num = num_false = 0
        for i in rng.permutation(len(self.pictures)):
            for checked in self.drawn(int(i), rng):
                num, num_false = num + 1, num_false + (not checked.is_true)
                made.update([checked.operator] if checked.operator else [])
                made.update(["negation"] if checked.is_negated else [])
            if num >= _NUM_COUNTED:
                break
        return {
            "rows": len(self.pictures),
            "statements": census(self.pictures),
            "false_frac": round(num_false / num, 4),
            "corruptions": {name: round(made[name] / num, 4) for name in sorted(made)},
        }

    # --- tokens --------------------------------------------------------------------------------------------------

    def _batch(self, groups: dict[int, list[list[Checked]]]) -> tuple[Batch, list[_Chain]]:
        """One batch of all pictures, each encoded once, and the chains in the order of its places."""
        trees, chains, starts = [], [], [0]
        for i, drawn in groups.items():
            prompt = self._prompt(i)
            made = [self.chain(prompt, statements) for statements in drawn]
            # The prompt's last token goes with the chains: it is where a value at their very beginning is read.
            short = replace(prompt, ids=prompt.ids[:-1])
            for one in self.model.trees(short, [chain.rendered for chain in made], _ALL_AT_ONCE):
                trees.append(one)
                starts.append(starts[-1] + len(one.places))
            chains += made
        wasteful = len(trees) * max(map(len, trees)) > _WASTE * sum(map(len, trees))
        (batch,) = batches(
            trees,
            self.model.model,
            max_tokens=_ALL_AT_ONCE,
            device=str(self.model.head.device),
            share_rows=wasteful and self.model.shares,
        )
        return batch, [chain for i in batch.trees for chain in chains[starts[i] : starts[i + 1]]]

    def _prompt(self, i: int) -> Encoded:
        picture = self.pictures[i]
        try:
            return self.model.renderer.prompt(picture.question, picture.contents())
        except (DataError, OSError) as error:
            what = f"its picture cannot be shown: {error}"
            raise DataError(f"statements, row {i}", what, "mend or remove this row") from error

    def chain(self, prompt: Encoded, statements: Sequence[Checked]) -> _Chain:
        """The whole statements that fit behind the prompt's last token, and what should be read where."""
        whole = self.model.renderer.solution([checked.shown for checked in statements])
        fit = whole.within(self.model.max_tokens - len(prompt.ids))
        readings: list[int] = []
        words: list[int] = []
        weights: list[float] = []
        for checked, marker in zip(statements, fit.markers, strict=False):
            start = marker + 1 - self._num_after - len(self._tokens_of(checked.shown)[0])
            asked = self.asked(checked)
            readings += [start + place for place in asked]  # one before the token, one on for the prompt's last
            words += [self._tokens_of(checked.true)[0][place] for place in asked]
            weights += [1 / max(len(asked), 1)] * len(asked)
        ids = [prompt.ids[-1], *fit.ids]
        truths = [float(checked.is_true) for checked in statements[: len(fit.markers)]]
        return _Chain(Rendered(ids, [*(marker + 1 for marker in fit.markers), *readings]), truths, words, weights)

    def asked(self, checked: Checked) -> list[int]:
        """Which tokens of the true statement are predicted: those of its value, as far as what is shown agrees with it."""
        if checked.is_negated:
            return []  # "is not ..." asks for what it is not
        true, offsets = self._tokens_of(checked.true)
        span = checked.span
        value = [k for k, (start, end) in enumerate(offsets) if start < span.end and end > span.start]
        if checked.is_true:
            return value
        shown = self._tokens_of(checked.shown)[0]
        same = next((k for k, (one, other) in enumerate(zip(true, shown, strict=False)) if one != other), len(true))
        return [k for k in value if k <= same] or [same][: same < len(true)]

    def _tokens_of(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a statement as the renderer gives them, and which characters each stands for."""
        if text not in self._tokens:
            if len(self._tokens) >= _NUM_CACHED:
                self._tokens.clear()
            tokenizer = self.model.renderer.tokenizer
            found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
            self._tokens[text] = found["input_ids"], found["offset_mapping"]
        return self._tokens[text]

    # --- loss ----------------------------------------------------------------------------------------------------

    def _loss(self, batch: Batch, chains: Sequence[_Chain], scale: float) -> tuple[Tensor, float]:
        states_RH = self.model.states(batch)
        device = states_RH.device
        verdicts: list[int] = []
        readings: list[int] = []
        start = 0
        for chain in chains:
            end = start + len(chain.rendered.markers)
            verdicts += range(start, start + len(chain.truths))
            readings += range(start + len(chain.truths), end)
            start = end
        truth = torch.tensor([t for chain in chains for t in chain.truths], device=device)
        logits = states_RH[verdicts].float() @ self.model.head[[0, -1]].float().T
        judged = torch.nn.functional.cross_entropy(logits, torch.stack([truth, 1 - truth], -1), reduction="sum")
        words = torch.tensor([w for chain in chains for w in chain.words], device=device, dtype=torch.long)
        weights = torch.tensor([w for chain in chains for w in chain.weights], device=device)
        said = self.model.model.get_output_embeddings()(states_RH[readings]).float()
        read = (torch.nn.functional.cross_entropy(said, words, reduction="none") * weights).sum()
        num_right = int(((logits[:, 0] > logits[:, 1]) == (truth > 0.5)).sum())
        return scale * (judged + read), scale * num_right
