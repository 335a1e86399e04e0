"""An engine that never pays twice: what the journal knows is read, the rest is sampled and kept at once.

Knows nothing of how text is generated. A killed run loses the batch in flight and nothing else. Of two processes
that sample the same, the first to write wins: both go on with what the journal then holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from components.engines import Completion, Engine, Prompt
from components.progress import Progress
from components.records import bytes_digest, digest
from components.settings import Sampling
from components.store import Journal, Row

BATCH_ROWS = 8192  # completions, what a kill can cost; one prompt's are never parted
_KEPT_IMAGES = 4096


class JournaledEngine:
    """Wraps an engine with a journal and counts what each gave."""

    def __init__(self, engine: Engine, journal: Journal, *, name: str) -> None:
        self.engine = engine
        self.journal = journal
        self.name = name
        self.policy_digest = engine.policy_digest
        self.seeding = engine.seeding
        self.sampled_tokens = 0
        self.journal_tokens = 0
        self._image_digests: dict[int, tuple[bytes, str]] = {}

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`.

        Raises:
            EngineError, TryAgainError: from the engine within; the batches before are kept.
            DataError: the journal cannot be used.
        """
        settings = sampling.model_dump(mode="json")
        keys = [self._keys(prompt, settings) for prompt in prompts]
        out: list[list[Completion]] = [[] for _ in prompts]
        # Batches are cut from the whole list, known or not: a resumed run sees the batches of an uninterrupted one.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].prefill), len(prompts[i].question), i))
        progress = Progress(self.name, sum(len(k) for k in keys), unit="completions")
        for members in _batches(order, prompts):
            known = self.journal.get([key for i in members for key in keys[i]])
            asked: list[tuple[int, list[int]]] = []
            for i in members:
                missing = [j for j, key in enumerate(keys[i]) if key not in known]
                if missing and self.seeding == "request":
                    missing = list(range(len(keys[i])))
                if missing:
                    asked.append((i, missing))
            again = {keys[i][j] for i, missing in asked for j in missing}
            known = {key: row for key, row in known.items() if key not in again}
            self.journal_tokens += sum(row[2] for row in known.values())
            fresh = self._sample(prompts, asked, sampling)
            new = {
                keys[i][j]: completion
                for (i, missing), row in zip(asked, fresh, strict=True)
                for j, completion in zip(missing, row, strict=True)
            }
            self.journal.put((key, _row(completion)) for key, completion in new.items())
            self.sampled_tokens += sum(c.num_tokens for c in new.values())
            progress.skip(len(known))
            known.update(self.journal.get(list(new)))
            for i in members:
                out[i] = [_completion(known[key]) for key in keys[i]]
            progress.advance(len(new), f"{self.sampled_tokens:,} tokens")
        return out

    def _sample(
        self, prompts: Sequence[Prompt], asked: list[tuple[int, list[int]]], sampling: Sampling
    ) -> list[list[Completion]]:
        if not asked:
            return []
        rest = [
            Prompt(prompts[i].question, prompts[i].images, prompts[i].prefill, tuple(prompts[i].seeds[j] for j in missing))
            for i, missing in asked
        ]
        return self.engine.generate(rest, sampling)

    def close(self) -> None:
        """Close the engine and the journal."""
        self.engine.close()
        self.journal.close()

    def cost(self) -> dict[str, int]:
        """Tokens sampled by this run, and tokens that the journal gave back."""
        return {"sampled_tokens": self.sampled_tokens, "journal_tokens": self.journal_tokens}

    def _keys(self, prompt: Prompt, settings: dict[str, object]) -> list[str]:
        base = digest(
            "completion-1",
            self.policy_digest,
            prompt.question,
            [self._image_digest(image) for image in prompt.images],
            prompt.prefill,
            settings,
        )
        if self.seeding == "request":
            return [digest(base, list(prompt.seeds), j) for j in range(len(prompt.seeds))]
        return [digest(base, seed) for seed in prompt.seeds]

    def _image_digest(self, image: bytes) -> str:
        if len(self._image_digests) > _KEPT_IMAGES:
            self._image_digests.clear()
        known = self._image_digests.get(id(image))
        if known is None or known[0] is not image:  # the bytes are kept, so their id cannot be reused
            known = self._image_digests[id(image)] = (image, bytes_digest(image))
        return known[1]


def _batches(order: Sequence[int], prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """The prompts in this order, cut so that no batch has more than BATCH_ROWS completions, but one prompt at least."""
    batch: list[int] = []
    rows = 0
    for i in order:
        if batch and rows + len(prompts[i].seeds) > BATCH_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += len(prompts[i].seeds)
    if batch:
        yield batch


def _row(completion: Completion) -> Row:
    # SQLite keeps no NaN; no log-probability is infinite upwards.
    logprob = math.inf if math.isnan(completion.logprob) else completion.logprob
    return completion.text, completion.finish_reason, completion.num_tokens, logprob


def _completion(row: Row) -> Completion:
    text, finish_reason, num_tokens, logprob = row
    return Completion(text, finish_reason, num_tokens, math.nan if logprob == math.inf else logprob)
