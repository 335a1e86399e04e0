"""An engine that never pays twice: what the journal knows is read, the rest is sampled and kept at once.

Knows nothing of how text is generated. A killed run loses the batch in flight and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.engines import Completion, Engine, Prompt
from components.progress import Progress
from components.records import bytes_digest, digest
from components.settings import Sampling
from components.store import Journal

BATCH_PROMPTS = 1024  # what a kill can cost


class JournaledEngine:
    """Wraps an engine with a journal and counts what each gave."""

    def __init__(self, engine: Engine, journal: Journal, *, name: str) -> None:
        self.engine = engine
        self.journal = journal
        self.name = name
        self.policy_digest = engine.policy_digest
        self.sampled_tokens = 0
        self.journal_tokens = 0
        self._image_digests: dict[int, tuple[bytes, str]] = {}

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`."""
        settings = sampling.model_dump(mode="json")
        keys = [self._keys(prompt, settings) for prompt in prompts]
        out: list[list[Completion]] = [[] for _ in prompts]
        # Batches are cut from the whole list, known or not: a resumed run sees the batches of an uninterrupted one.
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].prefill), len(prompts[i].question), i))
        progress = Progress(self.name, sum(len(k) for k in keys), unit="completions")
        for start in range(0, len(order), BATCH_PROMPTS):
            members = order[start : start + BATCH_PROMPTS]
            known = self.journal.get([key for i in members for key in keys[i]])
            asked: list[tuple[int, list[int]]] = []
            for i in members:
                missing = [j for j, key in enumerate(keys[i]) if key not in known]
                if missing:
                    asked.append((i, missing))
            self.journal_tokens += sum(row[2] for row in known.values())
            fresh = self._sample(prompts, asked, sampling)
            new = {
                keys[i][j]: completion
                for (i, missing), row in zip(asked, fresh, strict=True)
                for j, completion in zip(missing, row, strict=True)
            }
            self.journal.put((key, (c.text, c.finish_reason, c.num_tokens, c.logprob)) for key, c in new.items())
            self.sampled_tokens += sum(c.num_tokens for c in new.values())
            for i in members:
                out[i] = [new[key] if key in new else Completion(*known[key]) for key in keys[i]]
            progress.skip(len(known))
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
        return [digest(base, seed) for seed in prompt.seeds]

    def _image_digest(self, image: bytes) -> str:
        known = self._image_digests.get(id(image))
        if known is None or known[0] is not image:  # the bytes are kept, so their id cannot be reused
            known = self._image_digests[id(image)] = (image, bytes_digest(image))
        return known[1]
